"""Who computes which layers, and who does what when."""

from __future__ import annotations

import itertools
from collections import deque

import pytest
import torch

from gnnsys.errors import ArgumentError
from gnnsys.pipeline.schedule import (
    Action,
    Kind,
    epoch_actions,
    group_layers,
    slot_order,
    split_units,
)


@pytest.mark.parametrize("seed", range(6))
def test_the_dearest_stage_is_as_cheap_as_any_split_makes_it(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    costs = torch.randint(0, 9, (9,), generator=draw).tolist()
    for stages in range(1, len(costs) + 1):
        runs = split_units(costs, stages)
        assert [i for run in runs for i in run] == [*range(len(costs))]
        assert len(runs) == stages
        assert all(runs)
        dearest = max(sum(costs[i] for i in run) for run in runs)
        assert dearest == min(
            max(sum(costs[a:b]) for a, b in itertools.pairwise((0, *cuts, len(costs))))
            for cuts in itertools.combinations(range(1, len(costs)), stages - 1)
        )


def test_equal_layers_are_split_evenly() -> None:
    for stages in range(1, 9):
        sizes = [len(run) for run in split_units([1.0] * 32, stages)]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("stages", [0, 4])
def test_stages_that_would_be_empty_are_refused(stages: int) -> None:
    with pytest.raises(ArgumentError, match=rf"stages\({stages}\) > graph layers\(3\)"):
        split_units([1, 1, 1], stages)


def test_each_unit_of_layers_has_one_that_reads_the_graph() -> None:
    for is_graph in itertools.product([False, True], repeat=6):
        if not any(is_graph):
            with pytest.raises(ArgumentError, match="a graph layer at least"):
                group_layers(is_graph)
            continue
        units = group_layers(is_graph)
        assert [i for unit in units for i in unit] == [*range(6)]
        assert all(sum(is_graph[i] for i in unit) == 1 for unit in units)
        assert all(is_graph[unit.start] for unit in units[1:])


@pytest.mark.parametrize(("stages", "slots"), [(1, 1), (1, 4), (2, 1), (3, 5), (5, 3), (8, 8)])
def test_lists_of_all_stages_run_to_their_ends_in_order(stages: int, slots: int) -> None:
    """Each receive finds its chunk at the head of what the neighbour has sent."""
    order = slot_order(slots, seed=3, epoch=1)
    left = [deque(epoch_actions(stage, stages, order)) for stage in range(stages)]
    done: list[list[Action]] = [[] for _ in range(stages)]
    sent: dict[tuple[Kind, int], deque[int]] = {
        (kind, stage): deque()
        for kind in (Kind.SEND_FORWARD, Kind.SEND_BACKWARD)
        for stage in range(stages)
    }
    moved = True
    while moved:
        moved = False
        for stage, actions in enumerate(left):
            while actions:
                action = actions[0]
                source = {
                    Kind.RECEIVE_FORWARD: (Kind.SEND_FORWARD, stage - 1),
                    Kind.RECEIVE_BACKWARD: (Kind.SEND_BACKWARD, stage + 1),
                }.get(action.kind)
                if source:
                    if not sent[source]:
                        break
                    assert sent[source].popleft() == action.chunk
                if (action.kind, stage) in sent:
                    sent[action.kind, stage].append(action.chunk)
                done[stage].append(actions.popleft())
                moved = True
    assert not any(left)
    assert not any(sent.values())
    for actions in done:
        assert [a.chunk for a in actions if a.kind is Kind.FORWARD] == order
        assert [a.chunk for a in actions if a.kind is Kind.BACKWARD] == order[::-1]
        assert actions[-2:] == [Action(Kind.SYNC), Action(Kind.STEP)]

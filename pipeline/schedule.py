"""Which rank does what when: a fixed list of actions per rank, decided before anything runs.

All is pure. A pipeline of S stages takes J slots, each of one chunk of every way, through the
stages forwards and then, in the reverse order, backwards (GPipe's fill and drain; Huang et al.,
NeurIPS 2019, and Chen, Chen, Qian: "GNNPipe", arXiv 2308.10087): J + S - 1 steps a direction.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from gnnsys.errors import ArgumentError
from gnnsys.rng import permutation

__all__ = [
    "Action",
    "Event",
    "Kind",
    "bubble",
    "default_chunks",
    "epoch_actions",
    "group_layers",
    "num_slots",
    "slot_order",
    "split_units",
]


class Kind(str, enum.Enum):
    """What a rank does in one action."""

    RECEIVE_FORWARD = "receive forward"
    FORWARD = "forward"
    SEND_FORWARD = "send forward"
    RECEIVE_BACKWARD = "receive backward"
    BACKWARD = "backward"
    SEND_BACKWARD = "send backward"
    SYNC = "sync"
    STEP = "step"


@dataclass(frozen=True, slots=True)
class Action:
    """One entry of a rank's list."""

    kind: Kind

    chunk: int = -1
    """Number of the chunk among those of its way; -1 where the action is about none."""


@dataclass(frozen=True, slots=True)
class Event:
    """An action of a rank as it was carried out or simulated; times in seconds."""

    rank: int
    kind: str
    chunk: int
    start: float
    end: float


def default_chunks(stages: int, ways: int) -> int:
    """K where nobody says: four times the ranks; one chunk for each way of a single stage, which is
    exact.

    >>> default_chunks(4, 2), default_chunks(1, 8)
    (32, 8)
    """
    return ways if stages == 1 else 4 * stages * ways


def num_slots(slots: int, stages: int) -> int:
    """Steps of one direction of an epoch: K/W slots pass S stages.

    >>> num_slots(slots=16, stages=4)
    19
    """
    return slots + stages - 1


def bubble(slots: int, stages: int) -> float:
    """Share of a direction in which a stage has nothing to do, if all take the same time.

    >>> bubble(slots=12, stages=4)
    0.2
    """
    return (stages - 1) / num_slots(slots, stages)


def slot_order(slots: int, seed: int, epoch: int, shuffle: bool = True) -> list[int]:
    """The order in which an epoch takes the slots: the same on all ranks.

    >>> sorted(slot_order(5, seed=1, epoch=2))
    [0, 1, 2, 3, 4]
    """
    return permutation(slots, seed, epoch).tolist() if shuffle else list(range(slots))


def epoch_actions(stage: int, stages: int, order: Sequence[int]) -> list[Action]:
    """What a rank of a stage does in one epoch, which takes the chunks in ``order``.

    >>> [action.kind.value for action in epoch_actions(0, 2, [0])]
    ['forward', 'send forward', 'receive backward', 'backward', 'sync', 'step']
    """
    first, last = stage == 0, stage == stages - 1
    actions = []
    for chunk in order:
        actions += [] if first else [Action(Kind.RECEIVE_FORWARD, chunk)]
        actions += [Action(Kind.FORWARD, chunk)]
        actions += [] if last else [Action(Kind.SEND_FORWARD, chunk)]
    for chunk in reversed(order):
        actions += [] if last else [Action(Kind.RECEIVE_BACKWARD, chunk)]
        actions += [Action(Kind.BACKWARD, chunk)]
        actions += [] if first else [Action(Kind.SEND_BACKWARD, chunk)]
    return [*actions, Action(Kind.SYNC), Action(Kind.STEP)]


def group_layers(is_graph: Sequence[bool]) -> list[range]:
    """Units that stages are made of: each has one graph layer and the pointwise ones that follow;
    the first has those before it, too.

    Raises:
        ArgumentError: no graph layer.

    >>> group_layers([False, True, False, True])
    [range(0, 3), range(3, 4)]
    """
    starts = [number for number, graph in enumerate(is_graph) if graph]
    if not starts:
        raise ArgumentError(
            "layers: none of them takes edge_index; expected a graph layer at least"
        )
    cuts = [0, *starts[1:], len(is_graph)]
    return [range(first, last) for first, last in itertools.pairwise(cuts)]


def split_units(costs: Sequence[float], stages: int) -> list[range]:
    """Contiguous runs of units, one for each stage, the dearest as cheap as can be.

    Args:
        costs: of the units, not negative.
        stages: at most as many as there are units; every stage gets one at least.

    Raises:
        ArgumentError: more stages than units.

    >>> split_units([1, 1, 1, 3], 2)
    [range(0, 3), range(3, 4)]
    """
    count = len(costs)
    if not 1 <= stages <= count:
        raise ArgumentError(
            f"stages({stages}) > graph layers({count}): a stage holds one graph layer at least; "
            "use fewer stages or a deeper model"
        )
    sums = [0.0]
    for cost in costs:
        sums.append(sums[-1] + cost)

    @cache
    def best(end: int, parts: int) -> tuple[float, float, tuple[int, ...]]:
        """The greatest cost, the sum of squares (to be even among equals), and the ends."""
        if parts == 1:
            return sums[end], sums[end] ** 2, (end,)
        found = []
        for cut in range(parts - 1, end):
            greatest, squares, ends = best(cut, parts - 1)
            own = sums[end] - sums[cut]
            found.append((max(greatest, own), squares + own * own, (*ends, end)))
        return min(found)

    ends = best(count, stages)[2]
    return [range(first, last) for first, last in itertools.pairwise((0, *ends))]

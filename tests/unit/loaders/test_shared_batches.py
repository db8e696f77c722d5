"""Loaders of several ranks: together they draw the batches of one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch_geometric.data import Data

import gnnsys
from gnnsys.errors import ArgumentError

NODES, EDGES = 90, 500


def make_data() -> Data:
    draw = torch.Generator().manual_seed(1)
    return Data(
        x=torch.randn(NODES, 2, generator=draw),
        edge_index=torch.randint(NODES, (2, EDGES), generator=draw),
    )


def nodes(**options: Any) -> gnnsys.NeighborLoader:
    return gnnsys.NeighborLoader(make_data(), [3, 2], seed=5, **{"batch_size": 8, **options})


def links(**options: Any) -> gnnsys.LinkNeighborLoader:
    some = make_data().edge_index[:, :91]
    given = {"batch_size": 8, "neg_sampling": "binary", **options}
    return gnnsys.LinkNeighborLoader(make_data(), [3, 2], some, seed=5, **given)


def ids(batch: Data) -> list[list[int]]:
    return [batch.n_id.tolist(), batch.e_id.tolist(), batch.input_id.tolist()]


def drawn_by_ranks(
    make: Callable[..., Any], world_size: int, epoch: int, first: int, **options: Any
) -> list[list[list[int]]]:
    """What ranks draw, in the order of the batches' numbers."""
    found = {}
    for rank in range(world_size):
        loader = make(rank=rank, world_size=world_size, **options)
        loader.set_epoch(epoch, first)
        for step, batch in enumerate(loader):
            found[step * world_size + rank] = ids(batch)
    assert sorted(found) == [*range(len(found))]
    return [found[number] for number in sorted(found)]


@pytest.mark.parametrize("make", [nodes, links])
@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": True},
        {"shuffle": True, "drop_last": True, "dependent_batches": 3},
        {"batch_sampler": [[2, 1], [0], [5, 6, 7], [3]]},
    ],
)
def test_ranks_together_draw_the_batches_of_one(
    make: Callable[..., Any], options: dict[str, Any]
) -> None:
    if "batch_sampler" in options:
        options = {"batch_size": 1, **options}
    whole = drawn_by_ranks(make, 1, 1, 0, **options)
    assert len(whole) > 3
    for world_size in (2, 4, 8, len(whole) + 1):
        assert drawn_by_ranks(make, world_size, 1, 0, **options) == whole
        lengths = [
            len(make(rank=rank, world_size=world_size, **options)) for rank in range(world_size)
        ]
        assert sum(lengths) == len(whole)
        assert max(lengths) - min(lengths) <= 1
        # What one number of ranks has begun, another ends.
        assert drawn_by_ranks(make, world_size, 1, 3, **options) == whole[3:]


def test_a_copy_keeps_its_share() -> None:
    loader = copy.copy(nodes(rank=1, world_size=3))
    assert [ids(batch) for batch in loader] == [ids(batch) for batch in nodes()][1::3]
    assert "rank=1 of 3" in repr(loader)


@pytest.mark.parametrize(("rank", "world_size"), [(2, 2), (-1, 2), (0, 0), (1, 1)])
def test_a_rank_that_there_is_not_is_refused(rank: int, world_size: int) -> None:
    with pytest.raises(ArgumentError, match=rf"rank: {rank}, expected 0 to world_size"):
        nodes(rank=rank, world_size=world_size)

"""Self loops kept in the order of sums, against PyG's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.utils import add_remaining_self_loops, add_self_loops, remove_self_loops

from gnnsys.errors import ArgumentError, RowIndexError
from gnnsys.message_passing import Neighbors, neighbors_of
from gnnsys.message_passing.grouping import add_loops
from gnnsys.message_passing.self_loops import with_self_loops

NODES = 12


def edges_with_loops(seed: int, ascending: bool) -> Tensor:
    """(2, 60), loops among them, some of them twice; a node without edges."""
    generator = np.random.default_rng(seed)
    edge_index = torch.from_numpy(generator.integers(0, NODES - 1, (2, 60)))
    edge_index[1, ::4] = edge_index[0, ::4]
    return edge_index[:, edge_index[1].argsort(stable=True)] if ascending else edge_index


CASES = [
    edges_with_loops(0, True),
    edges_with_loops(1, False),
    torch.tensor([[3, 3], [3, 3]]),  # loops alone
    torch.empty(2, 0, dtype=torch.long),
]


@pytest.mark.parametrize("num_nodes", [0, 5, NODES, NODES + 3])
@pytest.mark.parametrize("edge_index", CASES)
def test_loops_replace_those_given(edge_index: Tensor, num_nodes: int) -> None:
    places = torch.arange(edge_index.size(1))
    looped = with_self_loops(edge_index, num_nodes)
    rest, left = remove_self_loops(edge_index, places)
    expected, number = add_self_loops(rest, left, fill_value=-1, num_nodes=num_nodes)
    assert torch.equal(looped.edge_index[:, looped.given_order], expected)
    assert torch.equal(looped.number[looped.given_order], number)
    by_target = expected[1].argsort(stable=True)
    assert torch.equal(looped.edge_index, expected[:, by_target])
    assert torch.equal(looped.number, number[by_target])


@pytest.mark.parametrize("edge_index", CASES)
def test_kept_loops_have_the_numbers_of_those_that_pyg_keeps(edge_index: Tensor) -> None:
    looped = with_self_loops(edge_index, NODES, keep=True)
    places = torch.arange(edge_index.size(1))
    expected, number = add_remaining_self_loops(edge_index, places, -1, NODES)
    assert torch.equal(looped.edge_index[:, looped.given_order], expected)
    assert torch.equal(looped.number[looped.given_order], number)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("num_nodes", [0, 5, NODES + 3])
@pytest.mark.parametrize("edge_index", CASES)
def test_torch_adds_loops_as_the_core_does(edge_index: Tensor, num_nodes: int, keep: bool) -> None:
    looped = with_self_loops(edge_index, num_nodes, keep=keep)
    edges, number = add_loops(edge_index, num_nodes, keep)
    assert torch.equal(looped.edge_index, edges)
    assert torch.equal(looped.number, number)


@pytest.mark.parametrize("num_nodes", [0, 5, NODES + 3])
@pytest.mark.parametrize("edge_index", CASES)
def test_neighbours_are_known_without_looking_at_the_edges(
    edge_index: Tensor, num_nodes: int
) -> None:
    looped = with_self_loops(edge_index, num_nodes).edge_index
    known, found = neighbors_of(looped), Neighbors(looped.clone())
    assert known.is_sorted
    assert known.counts == found.counts
    for end in (0, 1):
        ours, theirs = known.groups(end), found.groups(end)
        assert torch.equal(ours.indptr, theirs.indptr)
        assert torch.equal(ours.other, theirs.other)
        assert (ours.order is None) == (theirs.order is None)
        assert ours.order is None or torch.equal(ours.order, theirs.order)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_loops_are_added_once_until_the_edges_change(mode: type) -> None:
    edge_index = edges_with_loops(2, True)
    with mode():
        looped = with_self_loops(edge_index, NODES)
        assert with_self_loops(edge_index, NODES) is looped
        assert neighbors_of(looped.edge_index) is neighbors_of(looped.edge_index)
    assert with_self_loops(edge_index, NODES, keep=True) is not looped
    edge_index[0, 0] += 1
    assert with_self_loops(edge_index, NODES) is not looped


def test_bad_input_is_told() -> None:
    with pytest.raises(ArgumentError, match="num_nodes: -1, expected 0 or more"):
        with_self_loops(CASES[0], -1)
    with pytest.raises(RowIndexError, match="the least source is -2"):
        with_self_loops(torch.tensor([[-2], [0]]), 3)

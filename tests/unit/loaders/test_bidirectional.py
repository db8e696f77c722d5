"""Bidirectional subgraphs: every edge both ways, each by the number it has in the graph."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.sampler import EdgeSamplerInput, NodeSamplerInput

import gnnsys
from gnnsys.loaders import NeighborSampler

NODES = 30
TO, BACK, CITES = ("a", "to", "b"), ("b", "rev_to", "a"), ("a", "cites", "a")


def make_data(edges: int = 120, symmetric: bool = False) -> Data:
    draw = torch.Generator().manual_seed(1)
    edge_index = torch.randint(NODES, (2, edges), generator=draw)
    edge_index = torch.cat([edge_index, edge_index[:, :9]], dim=1)  # some edges twice
    if symmetric:
        edge_index = torch.cat([edge_index, edge_index.flip(0)], dim=1)
    count = edge_index.shape[1]
    return Data(edge_index=edge_index, edge_attr=torch.arange(count) * 10, num_nodes=NODES)


def make_hetero(complete: bool) -> HeteroData:
    draw = torch.Generator().manual_seed(2)
    data = HeteroData()
    data["a"].num_nodes, data["b"].num_nodes = 20, 30
    ends = [torch.randint(size, (90,), generator=draw) for size in (20, 30)]
    order = torch.randperm(90, generator=draw)[: 90 if complete else 60]
    data[TO].edge_index = torch.stack(ends)
    data[BACK].edge_index = torch.stack(ends[::-1])[:, order]
    cites = torch.randint(20, (2, 50), generator=draw)
    data[CITES].edge_index = torch.cat([cites, cites.flip(0)], dim=1) if complete else cites
    for kind in data.edge_types:
        data[kind].edge_attr = torch.arange(data[kind].edge_index.shape[1]) * 10
    return data


def pairs_of(edge_index: Tensor) -> list[tuple[int, int]]:
    return [tuple(pair) for pair in edge_index.t().tolist()]


def check_edges(
    found: Tensor, e_id: Tensor, sampled: set[int], graph: Tensor, one_tree: bool
) -> None:
    """Each edge has its own number, that of a sampled one if any; else that of its opposite."""
    known = pairs_of(graph)
    for pair, number in zip(pairs_of(found), e_id.tolist(), strict=True):
        own = [edge for edge in range(len(known)) if known[edge] == pair]
        if own:
            drawn = [edge for edge in own if edge in sampled]
            assert number in ((drawn or own[:1]) if one_tree else {own[0], *drawn}), pair
        else:
            assert known[number] == pair[::-1]
            assert number in sampled


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("disjoint", [False, True])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_edges_have_their_own_numbers_both_ways(
    symmetric: bool, disjoint: bool, direction: Any
) -> None:
    data = make_data(symmetric=symmetric)
    options = {"disjoint": disjoint, "sample_direction": direction}
    one, both = (
        NeighborSampler(data, [3, 2], subgraph_type=kind, **options)
        for kind in ("directional", "bidirectional")
    )
    for group in range(8):
        seeds = NodeSamplerInput(None, torch.arange(group, group + 5))
        plain, out = (part.sample_from_nodes(seeds, group=group, epoch=0) for part in (one, both))
        assert torch.equal(plain.node, out.node)
        local = set(pairs_of(torch.stack([plain.row, plain.col])))
        assert sorted(pairs_of(torch.stack([out.row, out.col]))) == sorted(
            local | {pair[::-1] for pair in local}
        )
        assert bool((out.col.diff() >= 0).all())
        sampled = set(one.edge_permutation[plain.edge].tolist())
        ends = torch.stack([out.node[out.row], out.node[out.col]])
        e_id = both.edge_permutation[out.edge]
        check_edges(ends, e_id, sampled, data.edge_index, one_tree=not disjoint)
        if disjoint:
            assert torch.equal(out.batch[out.row], out.batch[out.col])
        assert out.num_sampled_nodes is out.num_sampled_edges is out.orig_row is None


def test_attributes_of_batches_are_those_of_their_edges() -> None:
    data = make_data(symmetric=True)
    loader = gnnsys.NeighborLoader(data, [2, 2], subgraph_type="bidirectional", batch_size=4)
    for batch in loader:
        assert torch.equal(batch.n_id[batch.edge_index], data.edge_index[:, batch.e_id])
        assert torch.equal(batch.edge_attr, data.edge_attr[batch.e_id])
        assert len(batch.e_id.unique()) == len(batch.e_id)


def test_the_sampled_edges_are_kept_where_that_is_asked_for() -> None:
    data = make_data()
    sampler = NeighborSampler(data, [3, 2], subgraph_type="bidirectional")
    sampler.keep_orig_edges = True
    plain = NeighborSampler(data, [3, 2])
    seeds = NodeSamplerInput(None, torch.arange(5))
    out, one = (part.sample_from_nodes(seeds, group=0, epoch=0) for part in (sampler, plain))
    assert torch.equal(out.orig_row, one.row)
    assert torch.equal(out.orig_col, one.col)
    assert out.num_sampled_nodes == one.num_sampled_nodes
    assert out.num_sampled_edges == one.num_sampled_edges
    loader = gnnsys.NeighborLoader(data, [3, 2], neighbor_sampler=sampler, batch_size=5)
    assert torch.equal(next(iter(loader))._orig_edge_index, torch.stack([one.row, one.col]))


def test_an_edge_that_is_newer_than_its_tree_is_not_taken_for_a_reverse() -> None:
    edge_index = torch.tensor([[1, 0, 0, 2, 0], [0, 1, 1, 0, 2]])
    data = Data(edge_index=edge_index, time=torch.tensor([3, 9, 6, 3, 9]), num_nodes=3)
    sampler = NeighborSampler(data, [-1], time_attr="time", subgraph_type="bidirectional")
    for now, expected in ((5, [0, 0, 3, 3]), (7, [0, 2, 3, 3]), (9, [0, 2, 3, 4])):
        inputs = NodeSamplerInput(None, torch.tensor([0]), torch.tensor([now]))
        out = sampler.sample_from_nodes(inputs)
        assert sorted(sampler.edge_permutation[out.edge].tolist()) == expected
        links = EdgeSamplerInput(
            None, torch.tensor([0, 0]), torch.tensor([0, 0]), time=torch.tensor([now, now])
        )
        out = sampler.sample_from_edges(links)
        assert sorted(sampler.edge_permutation[out.edge].tolist()) == sorted(expected * 4)


@pytest.mark.parametrize("disjoint", [False, True])
def test_typed_edges_have_numbers_where_all_have_one_of_their_own(disjoint: bool) -> None:
    data = make_hetero(complete=True)
    loader = gnnsys.NeighborLoader(
        data,
        [2, 2],
        ("a", torch.arange(20)),
        subgraph_type="bidirectional",
        disjoint=disjoint,
        batch_size=4,
    )
    for batch in loader:
        for kind in data.edge_types:
            row, col = batch[kind].edge_index
            found = torch.stack([batch[kind[0]].n_id[row], batch[kind[-1]].n_id[col]])
            assert torch.equal(found, data[kind].edge_index[:, batch[kind].e_id])
            assert torch.equal(batch[kind].edge_attr, data[kind].edge_attr[batch[kind].e_id])
        there, back = set(pairs_of(batch[TO].edge_index)), set(pairs_of(batch[BACK].edge_index))
        assert there == {pair[::-1] for pair in back}
        cites = set(pairs_of(batch[CITES].edge_index))
        assert cites == {pair[::-1] for pair in cites}


def test_typed_edges_have_no_numbers_where_the_graph_lacks_some() -> None:
    data = make_hetero(complete=False)
    sampler = NeighborSampler(data, [-1, -1], subgraph_type="bidirectional")
    out = sampler.sample_from_nodes(NodeSamplerInput(None, torch.arange(20), None, "a"))
    known = {kind: set(pairs_of(data[kind].edge_index)) for kind in data.edge_types}
    for kind in data.edge_types:
        ends = [out.node[kind[0]][out.row[kind]], out.node[kind[-1]][out.col[kind]]]
        found = set(pairs_of(torch.stack(ends)))
        assert (out.edge[kind] is None) == (not found <= known[kind])
    assert out.edge[BACK] is out.edge[CITES] is None
    assert out.edge[TO] is not None
    loader = gnnsys.NeighborLoader(data, [-1, -1], "a", neighbor_sampler=sampler, batch_size=20)
    batch = next(iter(loader))
    assert "e_id" not in batch[BACK]
    assert "edge_attr" not in batch[BACK]


def test_types_whose_reverse_cannot_be_told_are_left_with_a_warning() -> None:
    data = make_hetero(complete=True)
    data["b", "other", "a"].edge_index = data[BACK].edge_index
    renamed = HeteroData()
    for kind in ("a", "b"):
        renamed[kind].num_nodes = data[kind].num_nodes
    for kind, name in ((TO, "to"), (BACK, "x"), (("b", "other", "a"), "y")):
        renamed[kind[0], name, kind[-1]].edge_index = data[kind].edge_index
    sampler = NeighborSampler(renamed, [2], subgraph_type="bidirectional")
    plain = NeighborSampler(renamed, [2])
    seeds = NodeSamplerInput(None, torch.arange(9), None, "b")
    with pytest.warns(UserWarning, match=r"edge type .*'to'.* does not seem to have a reverse"):
        out = sampler.sample_from_nodes(seeds, group=0, epoch=0)
    one = plain.sample_from_nodes(seeds, group=0, epoch=0)
    kind = ("a", "to", "b")
    assert torch.equal(out.row[kind], one.row[kind])
    assert torch.equal(out.edge[kind], one.edge[kind])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NeighborSampler(data, [2], subgraph_type="bidirectional")


def test_a_graph_without_edges_has_none_both_ways() -> None:
    sampler = NeighborSampler(Data(num_nodes=4), [2], subgraph_type="bidirectional")
    out = sampler.sample(torch.arange(2), group=0)
    assert len(out.row) == len(out.col) == len(out.edge) == 0

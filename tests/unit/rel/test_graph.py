"""Graphs with typed edges, against numpy's sorts and sets of (node, type)."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.data import HeteroData

from gnnsys.errors import ArgumentError, DeviceError, DTypeError, RowIndexError
from gnnsys.message_passing import sum_neighbors
from gnnsys.rel.graph import Pairs, RelationalGraph
from gnnsys.rel.pairing import number_by_torch, sort_by_torch
from gnnsys.rel.program import Domain

EDGES = torch.tensor([[0, 1, 3, 1, 0], [2, 2, 0, 2, 1]])
TYPES = torch.tensor([2, 0, 2, 0, 4])


def graph_of(edge_index: Tensor = EDGES, edge_type: Tensor = TYPES, **options: Any):
    return RelationalGraph(
        edge_index, edge_type, **{"num_relations": 5, "num_sources": 4, **options}
    )


def drawn(seed: int, edges: int, relations: int, sources: int, targets: int):
    generator = np.random.default_rng(seed)
    source, target = (
        (n * generator.random(edges) ** 2).astype(np.int64) for n in (sources, targets)
    )
    kind = generator.integers(relations, size=edges)
    return torch.from_numpy(np.stack([source, target])), torch.from_numpy(kind)


def check_pairs(pairs: Pairs, node: Tensor, edge_type: Tensor, relations: int) -> None:
    """Against the distinct columns of (type, node)."""
    both = np.stack([edge_type.numpy(), node.numpy()])
    kind = np.repeat(np.arange(relations), pairs.ptr.diff().numpy())
    made = np.stack([kind, pairs.node.numpy()])
    assert np.array_equal(np.unique(made, axis=1), np.unique(both, axis=1))
    assert len(pairs) == np.unique(both, axis=1).shape[1] == pairs.ptr[-1]
    assert np.array_equal(made[:, pairs.of_edge.numpy()], both)
    assert pairs.ratio == len(pairs) / max(len(node), 1)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.integers(1, 6).flatmap(
        lambda relations: st.tuples(
            st.just(relations),
            st.lists(
                st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(0, relations - 1))
            ),
        )
    )
)
def test_edges_are_sorted_stably_and_pairs_are_the_distinct_ones(case) -> None:
    relations, edges = case
    given_edges = torch.tensor(edges, dtype=torch.int64).reshape(-1, 3)
    edge_index, edge_type = given_edges[:, :2].t(), given_edges[:, 2]  # not contiguous
    graph = RelationalGraph(
        edge_index, edge_type, num_relations=relations, num_sources=5, num_targets=7
    )
    order = np.argsort(edge_type.numpy(), kind="stable")
    assert graph.order.tolist() == order.tolist()
    assert len(graph) == len(edges)
    assert torch.equal(graph.edge_index, edge_index[:, order])
    assert torch.equal(graph.edge_type, edge_type[order])
    counts = np.bincount(edge_type.numpy(), minlength=relations)
    assert graph.edge_ptr.diff().tolist() == counts.tolist()
    assert torch.equal(graph.to_given(graph.edge_type), edge_type)
    assert torch.equal(graph.from_given(edge_type), graph.edge_type)
    ends = (graph.sources_of_types, graph.targets_of_types)
    for end, pairs in enumerate(ends):
        check_pairs(pairs, graph.edge_index[end], graph.edge_type, relations)
        assert torch.equal(pairs.edges[end], pairs.of_edge)
        assert torch.equal(pairs.edges[1 - end], graph.edge_index[1 - end])
    assert torch.equal(graph.pair_nodes[1], ends[1].node)
    assert graph.pair_nodes[0].tolist() == [*range(len(ends[1]))]
    assert graph.degree_of_pairs.tolist() == [
        (ends[1].of_edge == pair).sum() for pair in range(len(ends[1]))
    ]
    counts = graph.counts()
    assert [counts.rows(each) for each in (Domain.SRC, Domain.DST, Domain.EDGE)] == [
        5,
        7,
        len(edges),
    ]
    pairs_of = (counts.rows(Domain.SRC_ETYPE), counts.rows(Domain.DST_ETYPE))
    assert pairs_of == tuple(map(len, ends))
    assert counts.rows(Domain.ETYPE) == relations


@pytest.mark.parametrize("relations", [1, 7, 100_000])
def test_operations_of_torch_give_what_native_code_gives(relations: int) -> None:
    edge_index, edge_type = drawn(3, 2000, relations, 90, 40)
    graph = RelationalGraph(
        edge_index, edge_type, num_relations=relations, num_sources=90, num_targets=40
    )
    ptr, rows = torch.empty_like(graph.edge_ptr), torch.empty(3, 2000, dtype=torch.int64)
    found = sort_by_torch(edge_index, edge_type, (90, 40), ptr, (rows[0], rows[1], rows[2]))
    assert found is (relations == 1)
    assert torch.equal(ptr, graph.edge_ptr)
    assert torch.equal(rows[:2], graph.edge_index)
    assert torch.equal(rows[2], graph.order)
    for end, pairs in enumerate((graph.sources_of_types, graph.targets_of_types)):
        of_edge = torch.empty(2000, dtype=torch.int64)
        node, starts = number_by_torch(graph.edge_index[end], ptr, (90, 40)[end], of_edge)
        assert torch.equal(starts, pairs.ptr)
        assert torch.equal(node[of_edge], pairs.node[pairs.of_edge])
        check_pairs(Pairs(node, starts, of_edge, edge_index), rows[end], graph.edge_type, relations)
    edge_index[1, 5] = 40
    assert sort_by_torch(edge_index, edge_type, (90, 40), ptr, (*rows,)) is None


def test_sums_over_pairs_are_those_over_edges() -> None:
    edge_index, edge_type = drawn(5, 500, 6, 50, 30)
    graph = RelationalGraph(edge_index, edge_type, num_relations=6, num_sources=50, num_targets=30)
    x = torch.randn(50, 4, dtype=torch.float64)
    expected = torch.zeros(30, 4, dtype=torch.float64).index_add(0, edge_index[1], x[edge_index[0]])
    sources, targets = graph.sources_of_types, graph.targets_of_types
    by_source = sum_neighbors(x[sources.node], sources.edges, num_nodes=30)
    by_pair = sum_neighbors(x, targets.edges, num_nodes=len(targets))
    by_target = sum_neighbors(by_pair, graph.pair_nodes, num_nodes=30)
    for found in (by_source, by_target, sum_neighbors(x, graph.edge_index, num_nodes=30)):
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


def test_a_permutation_of_the_edges_changes_only_their_order() -> None:
    edge_index, edge_type = drawn(7, 300, 5, 20, 20)
    permutation = torch.randperm(300)
    graphs = [
        RelationalGraph(edge_index[:, order], edge_type[order], num_relations=5, num_sources=20)
        for order in (torch.arange(300), permutation)
    ]
    assert graphs[0].counts() == graphs[1].counts()
    assert torch.equal(graphs[0].edge_ptr, graphs[1].edge_ptr)
    columns = [
        sorted(zip(graph.edge_type.tolist(), *graph.edge_index.tolist(), strict=True))
        for graph in graphs
    ]
    assert columns[0] == columns[1]
    values = torch.randn(300, 2, requires_grad=True)
    returned = graphs[1].to_given(graphs[1].from_given(values))
    assert torch.equal(returned, values)
    assert torch.equal(torch.autograd.grad(returned.sum(), values)[0], torch.ones(300, 2))


def test_a_graph_without_edges_has_no_pairs() -> None:
    for nodes in (0, 3):
        empty = graph_of(EDGES[:, :0], TYPES[:0], num_sources=nodes)
        assert len(empty) == len(empty.sources_of_types) == len(empty.targets_of_types) == 0
        assert empty.edge_ptr.tolist() == empty.targets_of_types.ptr.tolist() == [0] * 6
        assert empty.sources_of_types.ratio == 0
        assert empty.pair_nodes.shape == (2, 0)


NO_ROWS = torch.empty(2, 0, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"edge_index": EDGES[0]}, ArgumentError, r"edge_index: of shape \(5,\), expected \(2, e"),
        ({"edge_type": TYPES[:3]}, ArgumentError, r"edge_type: of shape \(3,\), expected \(5,\)"),
        ({"edge_index": EDGES.int()}, DTypeError, "edge_index: holds torch.int32, expected torch"),
        ({"edge_type": TYPES.double()}, DTypeError, "edge_type: holds torch.float64, expected"),
        ({"edge_type": TYPES.to("meta")}, DeviceError, "edge_type: is on meta, but edge_index is"),
        ({"num_relations": 4}, RowIndexError, "edge_type 4 at position 4; expected 0 to 3, as"),
        ({"edge_type": TYPES - 1}, RowIndexError, "edge_type -1 at position 1; expected 0 to 4"),
        ({"num_sources": 3, "num_targets": 9}, RowIndexError, "source 3 at position 2; expected"),
        ({"num_targets": 2}, RowIndexError, "target 2 at position 0; expected 0 to 1, as there"),
        ({"edge_index": -EDGES}, RowIndexError, "edge_index: source -1 at position 1; expected"),
        ({"num_relations": -1}, ArgumentError, "num_relations: -1, expected at least 0"),
        ({"node_ptr": torch.tensor([0, 3])}, ArgumentError, r"node_ptr: \[0, 3\], expected to as"),
        ({"node_ptr": torch.tensor([0, 3, 2, 4])}, ArgumentError, "expected to ascend from 0 to 4"),
        ({"node_ptr": NO_ROWS}, ArgumentError, "node_ptr: .* expected to ascend from 0 to 4"),
        ({"node_ptr": TYPES[:1], "num_targets": 9}, ArgumentError, "4 sources and 9 targets"),
    ],
)
def test_bad_graphs_are_told_apart(change: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        graph_of(**change)


def test_graphs_are_remembered_by_their_tensors() -> None:
    edge_index, edge_type, node_ptr = EDGES.clone(), TYPES.clone(), torch.tensor([0, 1, 4])
    options = {"num_relations": 5, "num_sources": 4, "node_ptr": node_ptr}

    tensors = {"edge_index": edge_index, "edge_type": edge_type}

    def made() -> RelationalGraph:
        return RelationalGraph.of(**tensors, **options)

    graph = made()
    assert made() is graph
    assert graph.node_ptr.tolist() == [0, 1, 4]
    assert RelationalGraph.of(edge_index, edge_type.clone(), **options) is not graph
    graph = made()
    edge_type[0] = 1
    changed = made()
    assert changed is not graph
    assert changed.edge_ptr.tolist() == [0, 2, 3, 4, 4, 5]
    options["num_relations"] = 6
    assert made().num_relations == 6
    alive = weakref.ref(edge_index), weakref.ref(edge_type)
    del edge_index, edge_type, tensors["edge_index"], tensors["edge_type"]
    assert alive[0]() is None
    assert alive[1]() is None


def test_a_graph_first_used_in_inference_mode_serves_for_training() -> None:
    edge_index, edge_type = EDGES.clone(), TYPES.clone()
    with torch.inference_mode():
        graph = RelationalGraph.of(edge_index, edge_type, num_relations=5, num_sources=4)
        pairs = graph.sources_of_types
    assert RelationalGraph.of(edge_index, edge_type, num_relations=5, num_sources=4) is graph
    x = torch.randn(4, 2, requires_grad=True)
    sum_neighbors(x[pairs.node], pairs.edges, num_nodes=4).sum().backward()
    assert x.grad[:, 0].tolist() == [2, 2, 0, 1]


# Graphs of several node types --------------------------------------------------------------------

NODES = {"author": 3, "paper": 4, "venue": 0}
KINDS = [("paper", "by", "author"), ("venue", "of", "paper"), ("author", "wrote", "paper")]


def hetero_edges() -> dict[tuple[str, str, str], Tensor]:
    return {
        KINDS[2]: torch.tensor([[2, 0, 0], [3, 3, 0]]),
        KINDS[0]: torch.tensor([[3, 1], [2, 2]]),
    }


def test_one_graph_of_several_types_is_that_of_pyg() -> None:
    edges = hetero_edges()
    data = HeteroData()
    for name, count in NODES.items():
        data[name].num_nodes = count
    for kind in KINDS:
        data[kind].edge_index = edges.get(kind, NO_ROWS)
    expected = data.to_homogeneous()
    with torch.device("meta"):  # where tensors without a device would be
        graph = RelationalGraph.from_hetero(edges, NODES, KINDS)
        assert graph_of().pair_nodes.device.type == "cpu"
    assert torch.equal(graph.edge_index, expected.edge_index)
    assert torch.equal(graph.edge_type, expected.edge_type)
    assert graph.node_ptr.tolist() == [0, 3, 7, 7]
    assert graph.edge_ptr.tolist() == [0, 2, 2, 5]
    assert graph.order.tolist() == [0, 1, 2, 3, 4]
    assert graph.counts().node_types == 3
    check_pairs(graph.sources_of_types, graph.source, graph.edge_type, 3)
    assert RelationalGraph.from_hetero(dict(edges), NODES, KINDS) is graph
    assert RelationalGraph.from_hetero(edges, {**NODES, "venue": 1}, KINDS) is not graph
    assert len(RelationalGraph.from_hetero({}, NODES, KINDS)) == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda e, n: e.update({("a", "b", "c"): NO_ROWS}), ArgumentError, "is not among edge_ty"),
        (lambda e, n: n.pop("paper"), ArgumentError, "num_nodes has no 'paper'"),
        (lambda e, n: e.update({KINDS[1]: NO_ROWS[0]}), ArgumentError, r"'paper'\)\]: of shape"),
        (lambda e, n: e.update({KINDS[1]: NO_ROWS.int()}), DTypeError, "holds torch.int32, expec"),
        (lambda e, n: e.update({KINDS[1]: NO_ROWS.to("meta")}), DeviceError, r"\['cpu', 'meta'\]"),
        (
            lambda e, n: n.update(author=2),
            RowIndexError,
            "source 2 at position 0; expected 0 to 1, as there are 2 nodes of 'author'",
        ),
        (
            lambda e, n: e[KINDS[2]].sub_(1),
            RowIndexError,
            r"source -1 at position 1; expected 0 to",
        ),
    ],
)
def test_bad_dicts_of_edges_are_told_apart(
    change: Callable[..., Any], error: type, message: str
) -> None:
    edges, nodes = hetero_edges(), dict(NODES)
    change(edges, nodes)
    with pytest.raises(error, match=message):
        RelationalGraph.from_hetero(edges, nodes, KINDS)


def test_graphs_keep_borders_of_their_own_and_lie_where_they_are_asked_to() -> None:
    edges, borders = torch.tensor([[0], [2]]), torch.tensor([0, 1, 3])
    graph = RelationalGraph(edges, edges[0], num_relations=1, num_sources=3, node_ptr=borders)
    borders[1] = 2
    assert graph.node_ptr.tolist() == [0, 1, 3]
    none = RelationalGraph.from_hetero({}, {"a": 2}, [], device=torch.device("meta"))
    assert none.edge_index.device.type == "meta"
    assert RelationalGraph.from_hetero({}, {"a": 2}, []).edge_index.device.type == "cpu"

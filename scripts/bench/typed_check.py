"""Checks of batches sampled from a graph with types, written apart from every sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from harness import CheckError
from numpy.typing import NDArray
from typed_rmat import SEED_TYPE, EdgeType, TypedGraph

__all__ = ["check_typed_batch"]

Ids = NDArray[np.int64]


def check_typed_batch(
    graph: TypedGraph,
    features: Mapping[str, NDArray[np.float32]],
    seeds: Ids,
    fanouts: Sequence[int],
    batch: Mapping[str, NDArray[Any]],
) -> None:
    """Compares a batch with its graph: PyG's semantics without replacement, for each edge type.

    Args:
        graph: that it was sampled from.
        features: (nodes, dim) by type.
        seeds: distinct ids.
        fanouts: of the hops, for each edge type, -1 for all neighbours.
        batch: for each node type T "node T" (n,) ids and "x T" (n, dim) their features; for each
            edge type "first A_to_B", how many edges the hop nearest the seeds has. Optionally, then
            for all, "hops T" how many nodes the seeds and each hop added, and for each edge type
            "row A_to_B" and "col A_to_B" (m,) positions of an edge's source and target among the
            nodes of their types, and "edge A_to_B" (m,) positions in the relation.

    Raises:
        CheckError: the batch is another one.
    """
    nodes = {name: batch[f"node {name}"].astype(np.int64) for name in features}
    _demand(np.array_equal(nodes[SEED_TYPE][: len(seeds)], seeds), "the seeds are not the first")
    for name, node in nodes.items():
        _demand(len(np.unique(node)) == len(node), f"a node of {name} occurs twice")
        x, expected = batch[f"x {name}"], features[name][node]
        same = x.shape == expected.shape and x.dtype == expected.dtype
        _demand(same and x.tobytes() == expected.tobytes(), f"features of {name} are not its rows")
    for kind, (indptr, _) in graph.relations.items():
        expanded = seeds if kind[2] == SEED_TYPE else seeds[:0]
        count = _expected_counts(indptr, expanded, fanouts[0]).sum()
        found = int(batch[f"first {'_'.join(kind)}"])
        _demand(found == count, f"{kind}: the first hop has {found} edges, expected {count}")
        if f"hops {SEED_TYPE}" in batch:
            _check_relation(graph, kind, nodes, fanouts, batch)


def _check_relation(
    graph: TypedGraph,
    kind: EdgeType,
    nodes: Mapping[str, Ids],
    fanouts: Sequence[int],
    batch: Mapping[str, NDArray[Any]],
) -> None:
    """Each edge is the graph's, once, and each node has as many as its hop gives it."""
    source, _, target = kind
    indptr, indices = graph.relations[kind]
    row, col, edge = (batch[f"{name} {'_'.join(kind)}"] for name in ("row", "col", "edge"))
    _demand(len(np.unique(edge)) == len(edge), f"{kind}: an edge occurs twice")
    ends = nodes[target][col]
    at_target = (indptr[ends] <= edge) & (edge < indptr[ends + 1])
    _demand(bool(at_target.all()), f"{kind}: an edge has another target in the graph")
    _demand(
        np.array_equal(indices[edge], nodes[source][row]),
        f"{kind}: an edge has another source in the graph",
    )
    expected = np.zeros(len(nodes[target]), np.int64)
    begin = 0
    for added, fanout in zip(batch[f"hops {target}"], fanouts, strict=False):
        frontier = nodes[target][begin : begin + added]
        expected[begin : begin + added] = _expected_counts(indptr, frontier, fanout)
        begin += added
    found = np.bincount(col, minlength=len(expected))
    _demand(np.array_equal(found, expected), f"{kind}: a node has too many edges, or too few")


def _expected_counts(indptr: Ids, nodes: Ids, fanout: int) -> Ids:
    degrees = indptr[nodes + 1] - indptr[nodes]
    return degrees if fanout < 0 else np.minimum(degrees, fanout)


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise CheckError(f"wrong batch: {otherwise}")

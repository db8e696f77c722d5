"""Checks of sampled neighbourhoods against the graph, written apart from every sampler.

Legend: N nodes of the graph, n nodes and m edges of a batch, f nodes that a hop expands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from harness import CheckError
from numpy.typing import NDArray

__all__ = ["check_all_nodes_expanded", "check_new_nodes_expanded"]

Ids = NDArray[np.int64]


def check_new_nodes_expanded(
    indptr: Ids,
    indices: NDArray[np.integer],
    seeds: Ids,
    fanouts: Sequence[int],
    batch: Mapping[str, Ids],
) -> None:
    """PyG's semantics without replacement.

    Seeds come first; nodes follow in the order in which edges name them, each once; a hop expands
    the nodes that the hop before added, in their order, each with min(degree, fanout) edges; an
    edge is one of the graph's, occurs once, and ends at the node that it was sampled for.

    Args:
        indptr: (N + 1,).
        indices: (edges,) in-neighbours.
        seeds: distinct ids.
        fanouts: of the hops, -1 for all neighbours.
        batch: "node" (n,) ids; "row", "col" (m,) positions in it of an edge's source and target;
            "edge" (m,) positions in ``indices``; optionally "nodes_per_hop" (the seeds included)
            and "edges_per_hop".

    Raises:
        CheckError: the batch is another one.
    """
    node, row, col, edge = (batch[name] for name in ("node", "row", "col", "edge"))
    _demand(len(row) == len(col) == len(edge), "row, col and edge differ in length")
    _demand(np.array_equal(node[: len(seeds)], seeds), "the seeds are not the first nodes")
    _demand(len(np.unique(node)) == len(node), "a node occurs twice")
    _demand(len(np.unique(edge)) == len(edge), "an edge occurs twice")
    for name, values, end in (
        ("node", node, len(indptr) - 1),
        ("row", row, len(node)),
        ("col", col, len(node)),
        ("edge", edge, len(indices)),
    ):
        _demand(_all_within(values, end), f"{name} holds values outside [0, {end})")
    _demand(np.array_equal(indices[edge], node[row]), "an edge has another source in the graph")
    at_target = (indptr[node[col]] <= edge) & (edge < indptr[node[col] + 1])
    _demand(bool(at_target.all()), "an edge has another target in the graph")
    _check_order_of_nodes(row, len(seeds), len(node))
    hops = _check_hops(indptr, node, row, col, len(seeds), fanouts)
    for name, found in zip(("nodes_per_hop", "edges_per_hop"), hops, strict=True):
        if name in batch:
            _demand(list(batch[name]) == found, f"{name} is {list(batch[name])}, is not {found}")


def _check_order_of_nodes(row: Ids, num_seeds: int, num_nodes: int) -> None:
    last_known = np.maximum.accumulate(np.concatenate(([num_seeds - 1], row)))
    _demand(bool((row <= last_known[:-1] + 1).all()), "nodes are not in the order of their edges")
    _demand(last_known[-1] == num_nodes - 1, "a node has no edge that names it")


def _check_hops(
    indptr: Ids, node: Ids, row: Ids, col: Ids, num_seeds: int, fanouts: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Follows the hops; returns how many nodes and edges each added."""
    begin, end, done = 0, num_seeds, 0
    nodes_per_hop, edges_per_hop = [num_seeds], []
    for hop, fanout in enumerate(fanouts):
        counts = _expected_counts(indptr, node[begin:end], fanout)
        size = int(counts.sum())
        expected = np.repeat(np.arange(begin, end), counts)
        _demand(
            np.array_equal(col[done : done + size], expected),
            f"hop {hop} does not give each of its nodes min(degree, {fanout}) edges, in order",
        )
        reached = int(row[done : done + size].max(initial=end - 1)) + 1
        nodes_per_hop.append(reached - end)
        edges_per_hop.append(size)
        begin, end, done = end, reached, done + size
    _demand(done == len(col), f"{len(col) - done} edges belong to no hop")
    return nodes_per_hop, edges_per_hop


def check_all_nodes_expanded(
    indptr: Ids,
    indices: NDArray[np.integer],
    seeds: Ids,
    fanouts: Sequence[int],
    batch: Mapping[str, Ids],
) -> None:
    """GraphBolt's semantics without replacement: every hop expands all nodes so far.

    Args:
        indptr: (N + 1,).
        indices: (edges,) in-neighbours, ascending for each node.
        seeds: distinct ids.
        fanouts: of the hops, -1 for all neighbours.
        batch: for hop h "targets<h>" (f,) ids expanded, "counts<h>" (f,) of their edges,
            "sources<h>" (m,) ids, and "compacted<h>" (m,) what compaction maps the sources to.

    Raises:
        CheckError: the batch is another one.
    """
    known = seeds
    for hop, fanout in enumerate(fanouts):
        targets, counts, sources, compacted = (
            batch[f"{name}{hop}"].astype(np.int64)
            for name in ("targets", "counts", "sources", "compacted")
        )
        _demand(np.array_equal(np.sort(targets), np.sort(known)), f"hop {hop} expands other nodes")
        _demand(np.array_equal(compacted, sources), f"hop {hop} is compacted to other nodes")
        expected = _expected_counts(indptr, targets, fanout)
        _demand(
            np.array_equal(counts, expected),
            f"hop {hop} does not give each of its nodes min(degree, {fanout}) edges",
        )
        _check_edges_exist(indptr, indices, targets, counts, sources, hop)
        known = np.union1d(known, sources)


def _check_edges_exist(
    indptr: Ids, indices: NDArray[np.integer], targets: Ids, counts: Ids, sources: Ids, hop: int
) -> None:
    """No (source, target) pair was drawn more often than the graph holds it."""
    num_nodes = len(indptr) - 1
    _demand(_all_within(sources, num_nodes), f"hop {hop} names nodes outside the graph")
    order = np.sort(targets)
    degrees = indptr[order + 1] - indptr[order]
    starts = np.repeat(indptr[order] - np.cumsum(degrees) + degrees, degrees)
    edges = starts + np.arange(len(starts))
    in_graph = np.repeat(order, degrees) * num_nodes + indices[edges]  # ascending
    drawn, times = np.unique(np.repeat(targets, counts) * num_nodes + sources, return_counts=True)
    held = np.searchsorted(in_graph, drawn, "right") - np.searchsorted(in_graph, drawn, "left")
    _demand(bool((times <= held).all()), f"hop {hop} has edges that the graph has not, or twice")


def _expected_counts(indptr: Ids, nodes: Ids, fanout: int) -> Ids:
    degrees = indptr[nodes + 1] - indptr[nodes]
    return degrees if fanout < 0 else np.minimum(degrees, fanout)


def _all_within(values: Ids, end: int) -> bool:
    return bool(((values >= 0) & (values < end)).all())


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise CheckError(f"wrong sample: {otherwise}")

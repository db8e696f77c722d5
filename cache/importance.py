"""Importance: how often each node's row is likely to be asked for, from the graph alone.

Pure functions of arrays; imports numpy and ``errors``. A graph is CSC: ``indices[indptr[v] :
indptr[v + 1]]`` are the in-neighbours of v, of which a sampler draws. ``indices`` may be a mapped
file: it is read from the first edge to the last, in blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.errors import ArgumentError, RowIndexError

__all__ = [
    "HIGHEST",
    "out_degree",
    "rank_normalised",
    "reverse_pagerank",
    "reverse_pagerank_of_types",
]

HIGHEST = (1 << 16) - 1
"""That of the most important node."""

_BLOCK = 1 << 21  # edges or nodes at a time
_Report = Callable[[int, int], None]


def out_degree(
    indices: NDArray[np.integer],
    num_nodes: int,
    progress: _Report = lambda done, total: None,
) -> NDArray[np.uint32] | NDArray[np.int64]:
    """How often each node occurs as a neighbour: in how many lists a sampler can find it.

    Args:
        indices: (edges,) node ids.
        num_nodes: of the graph.
        progress: is told the edges done and their number.

    Returns:
        (num_nodes,) counts; uint32, of 2^32 edges and more int64.

    Raises:
        RowIndexError: an id outside the graph.

    >>> out_degree(np.array([2, 0, 2]), 3).tolist()
    [1, 0, 2]
    """
    dtype = np.dtype(np.uint32 if len(indices) < 1 << 32 else np.int64)
    found: NDArray[Any] = np.zeros(num_nodes, dtype)
    for first, block in _blocks(indices, num_nodes):
        np.add.at(found, block, dtype.type(1))  # of one type: ten times as fast
        progress(first + len(block), len(indices))
    return found


def reverse_pagerank(
    indptr: NDArray[np.integer],
    indices: NDArray[np.integer],
    *,
    damping: float = 0.85,
    iterations: int = 20,
    progress: _Report = lambda done, total: None,
) -> NDArray[np.float64]:
    """PageRank on the reversed edges: where walks are that follow edges backwards, as samplers do.

    A walk steps from a node to one of its in-neighbours, each as likely, with probability d, and
    else, or where there is none, to any node:
    r'(u) = (1 - d) / n + d (sum over v of r(v) / indegree(v) for each edge u -> v + z / n), with z
    the sum of r over nodes without in-neighbours. (Page et al., "The PageRank Citation Ranking",
    1999; reversed for caches by Min et al., "Graph Neural Network Training with Data Tiering", KDD
    2022.)

    Args:
        indptr: (n + 1,).
        indices: (edges,) in-neighbours.
        damping: d.
        iterations: from the uniform distribution.
        progress: is told the edges done and their number, over all iterations.

    Returns:
        (n,) probabilities, their sum 1.

    Raises:
        ArgumentError: ``damping`` outside [0, 1], or ``iterations`` below 0.
        RowIndexError: an id outside the graph.

    >>> reverse_pagerank(np.array([0, 1, 1]), np.array([1])).round(3).tolist()
    [0.351, 0.649]
    """
    found = reverse_pagerank_of_types(
        {("", "", ""): (indptr, indices)},
        {"": len(indptr) - 1},
        damping=damping,
        iterations=iterations,
        progress=progress,
    )
    return found[""]


def reverse_pagerank_of_types(
    edges: Mapping[tuple[str, str, str], tuple[NDArray[np.integer], NDArray[np.integer]]],
    num_nodes: Mapping[str, int],
    *,
    damping: float = 0.85,
    iterations: int = 20,
    progress: _Report = lambda done, total: None,
) -> dict[str, NDArray[np.float64]]:
    """``reverse_pagerank`` of a graph with types: that of the graph in which all nodes are of one
    type, and all edges, as PyG's ``to_homogeneous`` makes it.

    Args:
        edges: ``indptr`` and ``indices`` of each source type, relation and target type.
        num_nodes: of each type.
        damping, iterations, progress: as there.

    Returns:
        (nodes,) probabilities of each type, the sum over all types 1.

    Raises:
        ArgumentError, RowIndexError: as there.

    >>> edges = {("a", "to", "b"): (np.array([0, 1]), np.array([0]))}
    >>> found = reverse_pagerank_of_types(edges, {"a": 1, "b": 1})
    >>> found["a"].round(3).tolist(), found["b"].round(3).tolist()
    ([0.649], [0.351])
    """
    if not 0 <= damping <= 1:
        raise ArgumentError(f"damping: {damping}, expected a probability in [0, 1]")
    if iterations < 0:
        raise ArgumentError(f"iterations: {iterations}, expected at least 0")
    nodes = max(1, sum(num_nodes.values()))
    total, done = iterations * sum(len(indices) for _, indices in edges.values()), 0
    rank = {kind: np.full(count, 1 / nodes) for kind, count in num_nodes.items()}
    for _ in range(iterations):
        arrived = {kind: np.zeros(count) for kind, count in num_nodes.items()}
        stuck = 0.0
        for kind, ranks in rank.items():
            into = [indptr for (_, _, target), (indptr, _) in edges.items() if target == kind]
            stuck += _share_among_edges(ranks, into)
        for (source, _, target), (indptr, indices) in edges.items():
            for first, block in _blocks(indices, num_nodes[source]):
                passed = _per_edge(rank[target], indptr, first, first + len(block))
                np.add.at(arrived[source], block, passed)
                done += len(block)
                progress(done, total)
        rank = arrived
        for ranks in rank.values():
            ranks += stuck / nodes
            ranks *= damping
            ranks += (1 - damping) / nodes
    return rank


def _share_among_edges(
    ranks: NDArray[np.float64], into: Sequence[NDArray[np.integer]]
) -> np.float64 | float:
    """Makes of the rank of each node what it passes on along each of its edges.

    Args:
        ranks: (n,), of those without edges unchanged.
        into: (n + 1,) of each edge type that leads to the nodes.

    Returns:
        The sum of the ranks of nodes without edges.
    """
    stuck: np.float64 | float = 0.0
    for part in _parts(len(ranks)):
        degree = np.zeros(len(ranks[part]), np.int64)
        for indptr in into:
            degree += np.diff(indptr[part.start : part.stop + 1])
        stuck += ranks[part][degree == 0].sum()
        np.divide(ranks[part], degree, out=ranks[part], where=degree > 0)
    return stuck


def rank_normalised(
    values: NDArray[np.integer] | NDArray[np.floating], ties: NDArray[np.integer] | None = None
) -> NDArray[np.uint16]:
    """Importance in the order of ``values``, spread evenly over 0 to ``HIGHEST``.

    Equal values share one. Of more different values than there is room for, neighbours share one
    as well. The least value gets 0, the greatest ``HIGHEST``; all get 0 where all are equal. Takes
    the memory of a copy of the values, which is 8 bytes each with ties.

    Args:
        values: (n,) numbers; with ties, counts below 2^32.
        ties: (n,) counts below 2^32 that order equal values; None where those are to share one.

    Raises:
        ArgumentError: a NaN.

    >>> rank_normalised(np.array([7, 0, 7, 3])).tolist()
    [65535, 0, 65535, 32767]
    >>> rank_normalised(np.array([7, 0, 7, 3]), ties=np.array([2, 5, 1, 0])).tolist()
    [65535, 0, 43690, 21845]
    """
    if len(values) == 0:
        return np.empty(0, np.uint16)
    keys = values.copy() if ties is None else np.empty(len(values), np.uint64)
    for part in _parts(len(values)):
        if ties is not None:
            keys[part] = _joined(values[part], ties[part])
        elif values.dtype.kind == "f" and np.isnan(values[part]).any():
            place = part.start + int(np.isnan(values[part]).argmax())
            raise ArgumentError(f"values: NaN at {place}, expected numbers")
    keys.sort()
    last = _keep_different(keys) - 1
    # The least place of each rank that some place has: place * HIGHEST // last is not less.
    ranks = np.arange(HIGHEST + 1)
    if last < HIGHEST:
        ranks = np.arange(last + 1) * HIGHEST // max(1, last)
    least = keys[-(-ranks * max(1, last) // HIGHEST)]
    ranked = np.empty(len(values), np.uint16)
    for part in _parts(len(values)):
        each = values[part] if ties is None else _joined(values[part], ties[part])
        ranked[part] = ranks[np.searchsorted(least, each, side="right") - 1]
    return ranked


def _joined(values: NDArray[Any], ties: NDArray[Any]) -> NDArray[np.uint64]:
    """Counts whose order is that of the values, and of the ties among equal ones."""
    return values.astype(np.uint64) << np.uint64(32) | ties.astype(np.uint64)


def _keep_different(ordered: NDArray[Any]) -> int:
    """Moves the different ones of ascending numbers to the front; returns how many they are."""
    kept = 1
    for part in _parts(len(ordered)):
        block = ordered[part]
        different = block[1:][block[1:] != block[:-1]]
        if part.start > 0 and block[0] != ordered[kept - 1]:
            different = np.concatenate([block[:1], different])
        ordered[kept : kept + len(different)] = different
        kept += len(different)
    return kept


def _parts(count: int) -> Iterator[slice]:
    return (slice(first, min(count, first + _BLOCK)) for first in range(0, count, _BLOCK))


def _blocks(
    indices: NDArray[np.integer], num_nodes: int
) -> Iterator[tuple[int, NDArray[np.integer]]]:
    for part in _parts(len(indices)):
        block = np.asarray(indices[part])
        if block.min() < 0 or block.max() >= num_nodes:
            wrong = block[(block < 0) | (block >= num_nodes)][0]
            raise RowIndexError(f"indices: {wrong} is outside the graph's nodes [0, {num_nodes})")
        yield part.start, block


def _per_edge(
    values: NDArray[np.float64], indptr: NDArray[np.integer], first: int, end: int
) -> NDArray[np.float64]:
    """The value of the target of each edge from ``first`` to ``end``."""
    low = int(np.searchsorted(indptr, first, side="right")) - 1
    high = int(np.searchsorted(indptr, end, side="left"))
    counts = np.diff(indptr[low : high + 1].clip(first, end))
    return np.repeat(values[low:high], counts)

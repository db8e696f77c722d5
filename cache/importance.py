"""Importance: how often each node's row is likely to be asked for, from the graph alone.

Pure functions of arrays; imports numpy and ``errors``. A graph is CSC: ``indices[indptr[v] :
indptr[v + 1]]`` are the in-neighbours of v, of which a sampler draws. ``indices`` may be a mapped
file: it is read from the first edge to the last, in blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from gnnsys.errors import ArgumentError, RowIndexError

__all__ = ["HIGHEST", "out_degree", "rank_normalised", "reverse_pagerank"]

HIGHEST = (1 << 16) - 1
"""That of the most important node."""

_BLOCK = 1 << 21  # edges at a time
_Report = Callable[[int, int], None]


def out_degree(
    indices: NDArray[np.integer],
    num_nodes: int,
    progress: _Report = lambda done, total: None,
) -> NDArray[np.int64]:
    """How often each node occurs as a neighbour: in how many lists a sampler can find it.

    Args:
        indices: (edges,) node ids.
        num_nodes: of the graph.
        progress: is told the edges done and their number.

    Returns:
        (num_nodes,) counts.

    Raises:
        RowIndexError: an id outside the graph.

    >>> out_degree(np.array([2, 0, 2]), 3).tolist()
    [1, 0, 2]
    """
    found = np.zeros(num_nodes, np.int64)
    for first, block in _blocks(indices, num_nodes):
        np.add.at(found, block, 1)
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
    if not 0 <= damping <= 1:
        raise ArgumentError(f"damping: {damping}, expected a probability in [0, 1]")
    if iterations < 0:
        raise ArgumentError(f"iterations: {iterations}, expected at least 0")
    nodes, edges = len(indptr) - 1, len(indices)
    if nodes == 0:
        return np.empty(0)
    degree = np.diff(indptr)
    rank = np.full(nodes, 1 / nodes)
    for number in range(iterations):
        # What each node passes on along each of its edges; nothing where it has none.
        passed = np.divide(rank, degree, out=np.zeros(nodes), where=degree > 0)
        arrived = np.zeros(nodes)
        for first, block in _blocks(indices, nodes):
            np.add.at(arrived, block, _per_edge(passed, indptr, first, first + len(block)))
            progress(number * edges + first + len(block), iterations * edges)
        stuck = rank[degree == 0].sum()
        rank = damping * (arrived + stuck / nodes) + (1 - damping) / nodes
    return rank


def rank_normalised(
    values: NDArray[np.integer] | NDArray[np.floating], ties: NDArray[np.integer] | None = None
) -> NDArray[np.uint16]:
    """Importance in the order of ``values``, spread evenly over 0 to ``HIGHEST``.

    Equal values share one. Of more different values than there is room for, neighbours share one
    as well. The least value gets 0, the greatest ``HIGHEST``; all get 0 where all are equal.

    Args:
        values: (n,) numbers.
        ties: (n,) numbers that order equal values; None where those are to share one.

    Raises:
        ArgumentError: a NaN.

    >>> rank_normalised(np.array([7, 0, 7, 3])).tolist()
    [65535, 0, 65535, 32767]
    >>> rank_normalised(np.array([7, 0, 7, 3]), ties=np.array([2, 5, 1, 0])).tolist()
    [65535, 0, 43690, 21845]
    """
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise ArgumentError(f"values: NaN at {int(np.isnan(values).argmax())}, expected numbers")
    if len(values) == 0:
        return np.empty(0, np.uint16)
    keys = [values] if ties is None else [ties, values]
    order = np.lexsort(keys)
    differs = np.zeros(len(values) - 1, bool)
    for key in keys:
        ordered = key[order]
        differs |= ordered[1:] != ordered[:-1]
    place = np.zeros(len(values), np.int64)  # among the different values
    np.cumsum(differs, out=place[1:])
    ranked = np.empty(len(values), np.uint16)
    ranked[order] = place * HIGHEST // max(1, int(place[-1]))
    return ranked


def _blocks(
    indices: NDArray[np.integer], num_nodes: int
) -> Iterator[tuple[int, NDArray[np.integer]]]:
    for first in range(0, len(indices), _BLOCK):
        block = np.asarray(indices[first : first + _BLOCK])
        if block.min() < 0 or block.max() >= num_nodes:
            wrong = block[(block < 0) | (block >= num_nodes)][0]
            raise RowIndexError(f"indices: {wrong} is outside the graph's nodes [0, {num_nodes})")
        yield first, block


def _per_edge(
    values: NDArray[np.float64], indptr: NDArray[np.integer], first: int, end: int
) -> NDArray[np.float64]:
    """The value of the target of each edge from ``first`` to ``end``."""
    low = int(np.searchsorted(indptr, first, side="right")) - 1
    high = int(np.searchsorted(indptr, end, side="left"))
    counts = np.diff(indptr[low : high + 1].clip(first, end))
    return np.repeat(values[low:high], counts)

"""Orders of nodes by which rows that are needed together lie together.

Pure functions of arrays, which may be mapped files: a graph is CSC, and its edges are read from the
first to the last. The same graph gives the same order; no random number is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.errors import RowIndexError
from gnnsys.system.extension import core

__all__ = ["community_order", "degree_order"]

_PASSES = 20
_STILL = 0.01  # share of the nodes below which a pass that moves no more is the last
_SHARE = 16  # communities that all nodes would fill, at least
_EDGES = 1 << 24  # of a call, about half a second: in between, the process can be interrupted

_Report = Callable[[int, int], None]


def degree_order(degree: NDArray[np.integer]) -> NDArray[np.int64]:
    """Nodes by how often they stand in lists of neighbours, descending; equal ones by number.

    >>> degree_order(np.array([1, 3, 1, 3])).tolist()
    [1, 3, 0, 2]
    """
    return np.argsort(-degree, kind="stable")


def community_order(
    indptr: NDArray[np.int64],
    indices: NDArray[Any],
    degree: NDArray[np.integer],
    progress: _Report = lambda done, total: None,
) -> NDArray[np.int64]:
    """Nodes by community, in each by ``degree``, descending; those without any edge last.

    Communities are found by label propagation (Raghavan et al., "Near linear time algorithm to
    detect community structures in large-scale networks", 2007): in pass after pass each node takes
    the label that most of its in-neighbours have, until fewer than 1 % of the nodes take another
    one, or 20 times. A community has at most a sixteenth of the nodes, so that one does not swallow
    all (Meyerhenke, Sanders, Schulz, "Partitioning complex networks via size-constrained
    clustering", 2014). Takes, in one thread, about 25 ns an edge and pass, and beside ``degree`` at
    most 32 bytes a node.

    Args:
        indptr: (n + 1,).
        indices: (edges,) in-neighbours, int32 where n is below 2^31, else int64.
        degree: (n,) how often each node stands in a list.
        progress: is told the passes done and how many there may be.

    Returns:
        (n,) the nodes in their order.

    Raises:
        RowIndexError: an edge from a node outside the graph.

    >>> pairs = {0: 2, 1: 3, 2: 0, 3: 1}  # two pairs of nodes
    >>> indices = np.array([pairs[v] for v in range(4)], np.int32)
    >>> community_order(np.arange(5), indices, np.ones(4, int)).tolist()
    [0, 2, 1, 3]
    """
    labels = _communities(indptr, indices, progress)
    labels[(degree == 0) & (indptr[1:] == indptr[:-1])] = len(labels)
    order = np.argsort(-degree, kind="stable")
    return order[np.argsort(labels[order], kind="stable")]


def _communities(
    indptr: NDArray[np.int64], indices: NDArray[Any], progress: _Report
) -> NDArray[Any]:
    """(n,) labels: the number of a node for each community."""
    nodes = len(indptr) - 1
    labels = np.arange(nodes, dtype=indices.dtype)
    sizes = np.ones(nodes, indices.dtype)
    votes = np.zeros(nodes, indices.dtype)
    most = max(2, -(-nodes // _SHARE))
    cuts = np.searchsorted(indptr, np.arange(_EDGES, len(indices), _EDGES))
    parts = list(pairwise([0, *cuts.tolist(), nodes]))
    for done in range(_PASSES):
        progress(done, _PASSES)
        moved = 0
        for part in parts:
            found = core.propagate_labels(indptr, indices, *part, most, labels, sizes, votes)
            if found < 0:
                edge = -1 - found
                raise RowIndexError(f"edge {edge} has the source {indices[edge]} of {nodes} nodes")
            moved += found
        if moved < _STILL * nodes:
            break
    for part in parts:
        core.adopt_labels(indptr, indices, *part, labels, votes)
    progress(_PASSES, _PASSES)
    return labels

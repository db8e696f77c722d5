"""How much nodes within some steps of each other have in common."""

from __future__ import annotations

import logging

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from gnnsys.errors import ArgumentError, RowIndexError, TooLargeError

__all__ = ["influence_adjacency"]

_log = logging.getLogger(__name__)
_BLOCK = 1 << 22  # entries of a block of rows at a time, about
_DENSE = 10  # times the edges: more entries are told of


def influence_adjacency(
    edge_index: Tensor,
    num_nodes: int,
    order: int = 1,
    *,
    cumulative: bool = True,
    max_nnz: int = 100_000_000,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Weights of positive pairs: walks of up to R steps (Kulatilleke, Portmann, Chandra: "SCGC" and
    "PamC", 2022 and 2023).

    The matrix is ``W = A' + A'^2 + … + A'^R`` with ``A' = D^-1 (A + I)``, A the graph without
    loops, directions and duplicates, D the row sums of A + I; or ``A'^R`` alone. Its entries grow
    fast with R: they are counted before they are kept, block by block of rows.

    Args:
        edge_index: (2, E) int64, in any order and direction.
        num_nodes: N.
        order: R, at least 1.
        cumulative: the sum of the powers; else the last one.
        max_nnz: entries that are kept at most; each takes 20 bytes in the end.
        dtype: of the weights, float32 or float64.

    Returns:
        (2, M) int64 and (M,): row i, column j and weight W_ij, by rows.

    Raises:
        ArgumentError: R below 1.
        RowIndexError: a node outside 0 … N - 1.
        TooLargeError: more than ``max_nnz`` entries, with their number.

    >>> pairs, weight = influence_adjacency(torch.tensor([[0], [1]]), 3)
    >>> pairs.tolist(), weight.tolist()
    ([[0, 0, 1, 1, 2], [0, 1, 0, 1, 2]], [0.5, 0.5, 0.5, 0.5, 1.0])
    """
    if order < 1:
        raise ArgumentError(f"order({order}): expected at least 1")
    step = _walk(edge_index, num_nodes)
    kept: list[scipy.sparse.csr_matrix] | None = []
    count = 0
    for begin, end in _blocks(step):
        block = _sum_of_powers(step, begin, end, order, cumulative)
        count += block.nnz
        if count > max_nnz:
            kept = None  # what is left is counted alone
        if kept is not None:
            kept.append(block)
    if kept is None:
        raise TooLargeError(
            f"order({order}): the influence of {num_nodes} nodes has {count} entries, more than "
            f"max_nnz({max_nnz}); take a lower order, or raise max_nnz ({20 * count >> 20} MiB)"
        )
    if count > _DENSE * max(1, step.nnz):
        _log.warning(
            "influence_adjacency: order %d makes %d entries of %d edges, %.0f for each node",
            order,
            count,
            step.nnz - num_nodes,
            count / num_nodes,
        )
    counts = np.concatenate([np.diff(block.indptr) for block in kept])
    row = torch.arange(num_nodes).repeat_interleave(torch.from_numpy(counts.astype(np.int64)))
    column = torch.from_numpy(np.concatenate([block.indices for block in kept])).long()
    weight = torch.from_numpy(np.concatenate([block.data for block in kept]))
    return torch.stack([row, column]), weight.to(dtype)


def _walk(edge_index: Tensor, num_nodes: int) -> scipy.sparse.csr_matrix:
    """``D^-1 (A + I)``, in float64."""
    row, column = edge_index.cpu().numpy()
    if len(row) and (edge_index.min() < 0 or edge_index.max() >= num_nodes):
        raise RowIndexError(
            f"edge_index: nodes {int(edge_index.min())} to {int(edge_index.max())}, expected 0 to "
            f"{num_nodes - 1}"
        )
    nodes = np.arange(num_nodes)
    rows = np.concatenate([row, column, nodes])
    columns = np.concatenate([column, row, nodes])
    shape = num_nodes, num_nodes
    matrix = scipy.sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=shape)
    counts = np.diff(matrix.indptr)
    matrix.data[:] = np.repeat(1 / counts, counts)
    return matrix


def _blocks(step: scipy.sparse.csr_matrix) -> list[tuple[int, int]]:
    """Ranges of rows, whose first step has not many entries each."""
    nodes = step.shape[0]
    rows = max(1, int(_BLOCK / 64 * nodes / max(1, step.nnz)))
    return [(begin, min(nodes, begin + rows)) for begin in range(0, nodes, rows)]


def _sum_of_powers(
    step: scipy.sparse.csr_matrix, begin: int, end: int, order: int, cumulative: bool
) -> scipy.sparse.csr_matrix:
    power = total = step[begin:end]
    for _ in range(order - 1):
        power = power @ step
        total = total + power if cumulative else power
    total.sort_indices()
    return total

"""Edges from sources to targets that are numbered apart, and the sum over them."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from gnnsys.errors import ArgumentError

__all__ = ["Edges", "edges_of_kind", "full_edges", "sort_edges"]


@dataclass(frozen=True, slots=True)
class Edges:
    """Edges by target; E of them, from m sources to n targets."""

    index: Tensor
    """(2, E) int64: source, target."""

    weight: Tensor | None
    """(E,) if the aggregation has weights."""

    sizes: tuple[int, int]
    """(m, n)."""

    _matrices: dict[torch.dtype, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def sum(self, sources: Tensor) -> Tensor:
        """Rows (m, C) of the sources to their weighted sums (n, C) over the edges of each target.

        Its backward, by the rows alone, is the same product with the transposed matrix, which is
        made once; nothing else is kept.

        >>> edges = sort_edges(torch.tensor([0, 2, 1]), torch.tensor([1, 1, 0]), None, (3, 2))
        >>> edges.sum(torch.tensor([[1.0], [2.0], [4.0]])).tolist()
        [[2.0], [5.0]]
        """
        return _Sum.apply(sources, *self._matrix(sources.dtype))

    def counts(self, dtype: torch.dtype) -> Tensor:
        """(n,) int64, edges of each target, off the matrix that sums rows of a dtype."""
        return self._matrix(dtype)[0].crow_indices().diff()

    def to(self, device: torch.device) -> Edges:
        """The same edges on a device."""
        weight = None if self.weight is None else self.weight.to(device)
        return Edges(self.index.to(device), weight, self.sizes)

    def _matrix(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(n, m) and its transpose, in rows."""
        if dtype not in self._matrices:
            _hear_warnings()
            source, target = self.index
            sources, targets = self.sizes
            weight = self.weight
            if weight is None:
                weight = torch.ones(len(source), dtype=dtype, device=source.device)
            weight = weight.to(dtype)
            order = source.argsort(stable=True)
            self._matrices[dtype] = (
                _rows(target, source, weight, (targets, sources)),
                _rows(source[order], target[order], weight[order], (sources, targets)),
            )
        return self._matrices[dtype]


def sort_edges(
    source: Tensor, target: Tensor, weight: Tensor | None, sizes: tuple[int, int]
) -> Edges:
    """Edges by target, those of a target in the order they came.

    Args:
        source, target: (E,) int64.
        weight: (E,).
        sizes: how many sources and targets there are.
    """
    order = target.argsort(stable=True)
    index = torch.stack([source[order], target[order]])
    return Edges(index, None if weight is None else weight[order], sizes)


def full_edges(
    edge_index: Tensor,
    num_nodes: int,
    kind: str,
    edge_weight: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Edges:
    """All edges of a graph.

    Args:
        edge_index: (2, E) int64.
        kind: see ``edges_of_kind``.
        edge_weight: (E,).
        dtype: of the weights.

    >>> full_edges(torch.tensor([[0, 1], [1, 0]]), 2, "gcn").weight
    tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    pairs, weight = edges_of_kind(edge_index, num_nodes, kind, edge_weight, dtype)
    return sort_edges(pairs[0], pairs[1], weight, (num_nodes, num_nodes))


def edges_of_kind(
    edge_index: Tensor,
    num_nodes: int,
    kind: str,
    edge_weight: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """The edges that a kind of aggregation reads, (2, E), and their weights.

    Args:
        kind: "plain": the edges as they are. "gcn": with self loops, and weighted by
            D^-1/2 (A + I) D^-1/2 as PyG's ``gcn_norm`` has it (Kipf and Welling, ICLR 2017).

    Raises:
        ArgumentError: another kind.
    """
    weight = None if edge_weight is None else edge_weight.to(dtype)
    if kind == "plain":
        return edge_index, weight
    if kind == "gcn":
        return gcn_norm(edge_index, weight, num_nodes, dtype=dtype)
    raise ArgumentError(f"kind({kind!r}) of edges: expected 'plain' or 'gcn'")


class _Sum(Function):
    @staticmethod
    def forward(ctx: Any, sources: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:
        ctx.transposed = transposed
        return matrix @ sources

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> Any:
        return ctx.transposed @ gradients.contiguous(), None, None


def _rows(row: Tensor, column: Tensor, value: Tensor, sizes: tuple[int, int]) -> Tensor:
    """A sparse matrix of entries that are sorted by row."""
    indptr = row.new_zeros(sizes[0] + 1)
    torch.cumsum(torch.bincount(row, minlength=sizes[0]), 0, out=indptr[1:])
    return torch.sparse_csr_tensor(indptr, column, value, sizes)


@functools.cache
def _hear_warnings() -> None:
    """Torch tells once a process that sparse tensors are new; nobody here can act on that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zero = torch.zeros(1, dtype=torch.int64)
        _rows(zero, zero, torch.ones(1), (1, 1))

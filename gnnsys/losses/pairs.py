"""Positive pairs of nodes, and the sums over them: the sampled product of a contrastive loss.

N nodes, d columns, E pairs.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from gnnsys.errors import ArgumentError, DTypeError, RowIndexError
from gnnsys.system.extension import core
from gnnsys.system.gpu import Device
from gnnsys.system.gpu.graph_kernels import EdgeLaunches, WeightedRows
from gnnsys.system.gpu.placement import device_of

__all__ = ["PositivePairs", "positive_sums", "unit_rows"]


class PositivePairs:
    """Weighted pairs (i, j) of nodes, sorted once for any number of losses.

    Each pair lies beside the same pair the other way round, so that the derivative by row i, to
    which both contribute, reads row j once.

    Args:
        edge_index: (2, E) int64, rows i and j; pairs that occur twice count by the sum of their
            weights.
        edge_weight: (E,), not negative; None for 1. A constant: no gradient flows into it.
        num_nodes: N; None for one more than the greatest node.

    Raises:
        ArgumentError: shapes that do not fit; weights that are negative, not finite, or that ask
            for a gradient.
        RowIndexError: a node outside 0 … N - 1.

    >>> pairs = PositivePairs(torch.tensor([[0, 1, 1], [1, 0, 1]]))
    >>> pairs.num_nodes, pairs.num_pairs
    (2, 3)
    """

    def __init__(
        self, edge_index: Tensor, edge_weight: Tensor | None = None, num_nodes: int | None = None
    ) -> None:
        _check_pairs(edge_index, edge_weight)
        row, column = edge_index.cpu().numpy()
        greatest = max(row.max(initial=-1), column.max(initial=-1))
        least = min(row.min(initial=0), column.min(initial=0))
        self.num_nodes = int(greatest) + 1 if num_nodes is None else num_nodes
        if least < 0 or greatest >= self.num_nodes:
            raise RowIndexError(
                f"edge_index: nodes {least} to {greatest}, expected 0 to {self.num_nodes - 1}, the "
                "rows of z"
            )
        self.num_pairs = edge_index.shape[1]
        if edge_weight is None:
            weight = np.ones(self.num_pairs, np.float32)
        elif edge_weight.dtype == torch.float64:
            weight = edge_weight.cpu().numpy()
        else:
            weight = edge_weight.float().cpu().numpy()
        self._sort(row, column, weight)
        self._placed: _Placed | None = None

    def _sort(self, row: Any, column: Any, weight: Any) -> None:
        shape = self.num_nodes, self.num_nodes
        matrix = scipy.sparse.csr_matrix((weight, (row, column)), shape=shape)
        own = matrix.diagonal()
        matrix.setdiag(0)
        matrix.eliminate_zeros()
        # A complex number holds a pair's weight and that of the pair the other way round.
        both = (matrix + 1j * matrix.T.tocsr()).tocsr()
        both.sort_indices()
        self.indptr = torch.from_numpy(both.indptr.astype(np.int64, copy=False))  # (N + 1,)
        self.other = torch.from_numpy(both.indices)  # (E',) int32 or int64
        self.own = torch.from_numpy(own)  # (N,): weights of pairs of a node with itself
        self._weight = torch.from_numpy(both.data.view(weight.dtype).reshape(-1, 2))

    def rows(self) -> Tensor:
        """(E',): row i of each pair that is kept."""
        return torch.arange(self.num_nodes).repeat_interleave(self.indptr.diff())

    def edges(self) -> tuple[Tensor, Tensor]:
        """(2, M) int64 and (M,): pairs and weights, each pair and each node with itself once."""
        nodes = torch.arange(self.num_nodes)
        row, column = torch.cat([self.rows(), nodes]), torch.cat([self.other, nodes])
        return torch.stack([row, column]), torch.cat([self._weight[:, 0], self.own])

    def weights(self, dtype: torch.dtype) -> Tensor:
        """(E', 2): of each pair that is kept, and of the same two nodes the other way round."""
        return self._weight.to(dtype)

    def place(self, device: Device, like: Tensor) -> _Placed:
        """What kernels read, where ``like`` lies and as its type; kept for the next call."""
        made = self._placed
        if made is None or not made.serves(device, like):
            where = like.device
            launches = EdgeLaunches(device, self.indptr.to(where), self.other.to(where))
            weight = self.weights(like.dtype).to(where).contiguous()
            made = self._placed = _Placed(launches, weight, self.own.to(like))
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_placed": None}  # a device is of its process

    def __repr__(self) -> str:
        return f"PositivePairs({self.num_nodes} nodes, {self.num_pairs} pairs)"


@dataclass(frozen=True, slots=True)
class _Placed:
    """Pairs where kernels reach them, as edges from their second row to their first."""

    launches: EdgeLaunches
    weight: Tensor  # (E', 2)
    own: Tensor  # (N,)

    def serves(self, device: Device, like: Tensor) -> bool:
        weight = self.weight
        same = weight.device == like.device and weight.dtype == like.dtype
        return self.launches.device is device and same


def unit_rows(z: Tensor) -> Tensor:
    """Rows (N, d) divided by their norms; a zero row stays zero and has no gradient."""
    unit: Tensor = _Unit.apply(z)
    return unit


def positive_sums(u: Tensor, pairs: PositivePairs, tau: float) -> Tensor:
    """(N,): ``sum_j w_ij exp(tau u_i . u_j)`` over the pairs of each node, where a node's pair with
    itself counts as if the product were 0.

    Keeps ``u`` alone for backward, which computes the products anew. By kernels where
    ``gnnsys.system.gpu.placement`` has a device for ``u``; else on the CPU a compiled loop, and
    elsewhere torch's operations, which write out rows pair by pair.

    Args:
        u: (N, d) float32 or float64, rows of norm 1 or 0.
    """
    if u.device.type != "cpu" and device_of(u) is None:
        return _sums_by_torch(u, pairs, tau)
    sums: Tensor = _Sums.apply(u, pairs, tau)
    return sums


def _sums_by_torch(u: Tensor, pairs: PositivePairs, tau: float) -> Tensor:
    """What ``positive_sums`` gives, by (E, d) products."""
    row = pairs.rows().to(u.device)
    column = pairs.other.to(u.device).long()
    weight = pairs.weights(u.dtype)[:, 0].to(u.device)
    terms = weight * torch.exp(tau * (u[row] * u[column]).sum(1))
    return pairs.own.to(u).index_add(0, row, terms)


class _Unit(Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(z, dim=1, keepdim=True)
        inverse = torch.where(norm > torch.finfo(norm.dtype).tiny, 1 / norm, 0)
        u = z * inverse
        ctx.save_for_backward(u, inverse)
        return u

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        u, inverse = ctx.saved_tensors
        along = (grad * u).sum(1, keepdim=True)
        return torch.addcmul(grad, u, along, value=-1).mul_(inverse)


class _Sums(Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, pairs: PositivePairs, tau: float) -> Tensor:
        u = u.contiguous()
        ctx.save_for_backward(u)
        ctx.pairs, ctx.tau, ctx.device = pairs, tau, device_of(u)
        out = u.new_empty(len(u))
        if ctx.device is not None:
            placed = pairs.place(ctx.device, u)
            terms = placed.launches.pair_terms(placed.weight, u, tau)
            placed.launches.sum_segments(terms, out)
            return out.add_(placed.own)
        weights = pairs.weights(u.dtype).numpy()
        _kernel(torch.get_num_threads()).sum(
            pairs.indptr.numpy(), pairs.other.numpy(), weights, u.detach().numpy(), tau, out.numpy()
        )
        return out.add_(pairs.own)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (u,) = ctx.saved_tensors
        pairs: PositivePairs = ctx.pairs
        grad, out = grad.contiguous(), torch.empty_like(u)
        if ctx.device is not None:
            placed = pairs.place(ctx.device, u)
            factors = placed.launches.pair_factors(placed.weight, u, ctx.tau, grad)
            placed.launches.sum(WeightedRows(u, weight=factors[:, None]), out)
            return out, None, None
        _kernel(torch.get_num_threads()).derive(
            pairs.indptr.numpy(),
            pairs.other.numpy(),
            pairs.weights(u.dtype).numpy(),
            u.detach().numpy(),
            ctx.tau,
            grad.numpy(),
            out.numpy(),
        )
        return out, None, None


@functools.lru_cache
def _kernel(threads: int) -> Any:
    return core.PairSums(threads)


def _check_pairs(edge_index: Tensor, edge_weight: Tensor | None) -> None:
    if edge_index.dtype != torch.int64:
        raise DTypeError(f"edge_index: {edge_index.dtype}, expected torch.int64")
    if edge_index.dim() != 2 or edge_index.shape[0] != 2:
        raise ArgumentError(f"edge_index {tuple(edge_index.shape)}: expected (2, E)")
    if edge_weight is None:
        return
    if edge_weight.shape != edge_index.shape[1:]:
        raise ArgumentError(
            f"edge_weight {tuple(edge_weight.shape)}: expected ({edge_index.shape[1]},), one for "
            "each pair of edge_index"
        )
    if not edge_weight.is_floating_point():
        raise DTypeError(f"edge_weight: {edge_weight.dtype}, expected floats")
    if edge_weight.requires_grad:
        raise ArgumentError("edge_weight: is a constant of the loss; pass edge_weight.detach()")
    if not edge_weight.isfinite().all() or (edge_weight < 0).any():
        bad = edge_weight[~(edge_weight.isfinite() & (edge_weight >= 0))][0].item()
        raise ArgumentError(f"edge_weight: {bad}, expected finite weights of 0 and more")

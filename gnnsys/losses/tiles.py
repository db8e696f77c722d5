"""Sums of exponentials over all nodes or all clusters for each node, a tile at a time.

N nodes, d columns, K clusters. Nothing of N x N or N x K is kept: backward computes it anew.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

__all__ = ["all_pair_sums", "cluster_sums"]

_TILE = 1 << 20  # elements of a tile, about


def all_pair_sums(u: Tensor, tau: float) -> Tensor:
    """(N,): ``sum_j exp(tau u_i . u_j)`` over all nodes, that of a node with itself counting as if
    the product were 0."""
    sums: Tensor = _AllPairs.apply(u, tau)
    return sums


def cluster_sums(u: Tensor, centers: Tensor, sizes: Tensor, assign: Tensor, tau: float) -> Tensor:
    """(N,): ``sum_k (n_k - a_ik) exp(tau u_i . centers_k) + sum_k a_ik``.

    Args:
        u: (N, d).
        centers: (K, d), rows of norm 1 or 0.
        sizes: (K,), n_k.
        assign: (N,) int64, a node's cluster, or (N, K), what it has of each.
    """
    sums: Tensor = _Clusters.apply(u, centers, sizes, assign, tau)
    return sums


class _AllPairs(Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, tau: float) -> Tensor:
        ctx.save_for_backward(u)
        ctx.tau = tau
        return torch.cat([_tile(u, rows, tau).sum(1) for rows in _rows(len(u), len(u))])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (u,) = ctx.saved_tensors
        out = torch.empty_like(u)
        for rows in _rows(len(u), len(u)):
            tile = _tile(u, rows, ctx.tau)
            tile.mul_(grad[rows, None] + grad)
            _diagonal(tile, rows).zero_()
            torch.mm(tile, u, out=out[rows])
        return out.mul_(ctx.tau), None


def _tile(u: Tensor, rows: slice, tau: float) -> Tensor:
    tile = (u[rows] @ u.t()).mul_(tau).exp_()
    _diagonal(tile, rows).fill_(1)
    return tile


def _diagonal(tile: Tensor, rows: slice) -> Tensor:
    """The elements of rows of a square matrix that lie on its diagonal."""
    return tile.diagonal(rows.start)


class _Clusters(Function):
    @staticmethod
    def forward(
        ctx: Any, u: Tensor, centers: Tensor, sizes: Tensor, assign: Tensor, tau: float
    ) -> Tensor:
        ctx.save_for_backward(u, centers, sizes, assign)
        ctx.tau = tau
        sums = []
        for rows in _rows(len(u), len(centers)):
            terms = (u[rows] @ centers.t()).mul_(tau).exp_()
            part = assign[rows]
            if part.dim() == 1:
                sums.append(terms @ sizes - terms.gather(1, part[:, None])[:, 0] + 1)
            else:
                sums.append(terms @ sizes - (terms * part).sum(1) + part.sum(1))
        return torch.cat(sums)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        u, centers, sizes, assign = ctx.saved_tensors
        is_soft = assign.dim() == 2
        by_u, by_centers, by_sizes = (torch.zeros_like(t) for t in (u, centers, sizes))
        by_assign = torch.empty_like(assign) if is_soft and ctx.needs_input_grad[3] else None
        for rows in _rows(len(u), len(centers)):
            terms = (u[rows] @ centers.t()).mul_(ctx.tau).exp_()
            own, part = grad[rows, None], assign[rows]
            by_sizes.addmv_(terms.t(), grad[rows])
            if by_assign is not None:
                torch.mul(own, 1 - terms, out=by_assign[rows])
            if is_soft:
                terms.mul_(sizes - part)
            else:
                single = terms.gather(1, part[:, None])
                terms.mul_(sizes).scatter_add_(1, part[:, None], -single)
            terms.mul_(ctx.tau * own)
            torch.mm(terms, centers, out=by_u[rows])
            by_centers.addmm_(terms.t(), u[rows])
        return by_u, by_centers, by_sizes, by_assign, None


def _rows(count: int, width: int) -> list[slice]:
    """Rows of tiles of about the same number of elements."""
    step = max(1, _TILE // max(1, width))
    return [slice(begin, min(count, begin + step)) for begin in range(0, count, step)]

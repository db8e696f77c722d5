"""Sums of exponentials over all nodes or all clusters for each node, a tile at a time.

N nodes, d columns, K clusters. Nothing of N x N or N x K is kept: backward computes it anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

__all__ = ["all_pair_sums", "cluster_sums"]

_SIDE = 1024  # rows and columns of a tile


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
        out = u.new_zeros(len(u))
        for rows, columns, tile in _exponentials(u, tau, diagonal=1):
            out[rows] += tile.sum(1)
            if columns != rows:
                out[columns] += tile.sum(0)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (u,) = ctx.saved_tensors
        # Element (i, j) counts (grad_i + grad_j) times: as two products instead of such a matrix.
        both = torch.cat([u, u * grad[:, None]], 1)
        sums = torch.zeros_like(both)
        for rows, columns, tile in _exponentials(u, ctx.tau, diagonal=0):
            sums[rows].addmm_(tile, both[columns])
            if columns != rows:
                sums[columns].addmm_(tile.t(), both[rows])
        plain, weighted = sums.chunk(2, 1)
        return torch.addcmul(weighted, plain, grad[:, None]).mul_(ctx.tau), None


def _exponentials(u: Tensor, tau: float, diagonal: float) -> Iterator[tuple[slice, slice, Tensor]]:
    """Tiles of the symmetric matrix exp(tau u u^T), whose diagonal is something else: those on the
    diagonal and one of each two others."""
    blocks = _blocks(len(u), _SIDE)
    room = u.new_empty(min(len(u), _SIDE) ** 2)
    for rows in blocks:
        for columns in blocks:
            if columns.start < rows.start:
                continue
            left, right = u[rows], u[columns]
            tile = room[: len(left) * len(right)].view(len(left), len(right))
            torch.mm(left, right.t(), out=tile).mul_(tau).exp_()
            if columns == rows:
                tile.fill_diagonal_(diagonal)
            yield rows, columns, tile


class _Clusters(Function):
    @staticmethod
    def forward(
        ctx: Any, u: Tensor, centers: Tensor, sizes: Tensor, assign: Tensor, tau: float
    ) -> Tensor:
        ctx.save_for_backward(u, centers, sizes, assign)
        ctx.tau = tau
        out = u.new_empty(len(u))
        for rows, (terms, others) in _tiles(u, len(centers), copies=2):
            torch.mm(u[rows], centers.t(), out=terms).mul_(tau).exp_()
            torch.sum(terms.mul_(_others(others, sizes, assign[rows])), 1, out=out[rows])
        return out.add_(assign.sum(1) if assign.dim() == 2 else 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        u, centers, sizes, assign = ctx.saved_tensors
        is_asked = assign.dim() == 2 and ctx.needs_input_grad[3]
        by_u, by_centers, by_sizes = (torch.zeros_like(t) for t in (u, centers, sizes))
        by_assign = torch.ones_like(assign) if is_asked else None
        for rows, (terms, others) in _tiles(u, len(centers), copies=2):
            torch.mm(u[rows], centers.t(), out=terms).mul_(ctx.tau).exp_()
            own = grad[rows, None]
            by_sizes.addmv_(terms.t(), grad[rows])
            if by_assign is not None:
                by_assign[rows].sub_(terms).mul_(own)
            terms.mul_(_others(others, sizes, assign[rows])).mul_(ctx.tau * own)
            torch.mm(terms, centers, out=by_u[rows])
            by_centers.addmm_(terms.t(), u[rows])
        return by_u, by_centers, by_sizes, by_assign, None


def _others(out: Tensor, sizes: Tensor, part: Tensor) -> Tensor:
    """``n_k - a_ik``: what all nodes but i have of each cluster."""
    if part.dim() == 2:
        return torch.sub(sizes, part, out=out)
    out.copy_(sizes.expand_as(out))
    return out.scatter_add_(1, part[:, None], out.new_full((), -1).expand(len(part), 1))


def _tiles(u: Tensor, width: int, copies: int) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
    """Rows of u, and matrices of as many rows to work in.

    They are the same memory each time: an allocator asked for one tile after another may not find
    the room that the last one left.
    """
    step = max(1, min(len(u), _SIDE**2 // width))
    room = u.new_empty(copies, step, width)
    for rows in _blocks(len(u), step):
        yield rows, room[:, : rows.stop - rows.start].unbind()


def _blocks(count: int, step: int) -> list[slice]:
    return [slice(begin, min(count, begin + step)) for begin in range(0, count, step)]

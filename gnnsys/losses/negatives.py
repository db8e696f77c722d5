"""The negative part of the meta-node loss: clusters in the place of pairs of nodes.

N nodes, d columns, K clusters that are not empty. With ``a_ik`` what node i has of cluster k (0 or
1 if assignments are hard), ``n_k = sum_i a_ik``, ``t_kl = sum_i a_ik a_il``: the pairs of different
nodes between clusters k and l number ``c_kl = n_k n_l - t_kl``, and ``t_kl`` are of a node with
itself, whose cosine counts as 0. The sum over the block (k, l) of exp(tau cos) is
``B_kl = c_kl (mean of exp(tau cos) over different nodes) + t_kl``; the modes differ in the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from gnnsys.losses.pairs import unit_rows
from gnnsys.losses.tiles import all_pair_sums, cluster_sums
from gnnsys.message_passing import sum_neighbors

__all__ = ["EPSILON", "NEGATIVES", "Clusters", "moment_blocks"]

EPSILON = 1e-10
"""Added before a logarithm where the paper does."""


@dataclass(frozen=True, slots=True)
class Clusters:
    """The nodes and what they have of the clusters that are not empty."""

    z: Tensor
    """(N, d)."""

    u: Tensor
    """(N, d), rows of z of norm 1, or 0."""

    assign: Tensor
    """(N,) int64 below K, or (N, K)."""

    sizes: Tensor
    """(K,), n_k."""

    tau: float

    @property
    def is_soft(self) -> bool:
        return self.assign.dim() == 2

    def sums(self, rows: Tensor) -> Tensor:
        """(N, d) to (K, d): ``sum_i a_ik rows_i``."""
        if self.is_soft:
            return self.assign.t() @ rows
        if rows.device.type != "cpu":
            return rows.new_zeros(len(self.sizes), rows.shape[1]).index_add(0, self.assign, rows)
        edge_index = torch.stack([torch.arange(len(rows)), self.assign])
        return sum_neighbors(rows, edge_index, num_nodes=len(self.sizes))

    def overlaps(self, of: Tensor | None = None) -> Tensor:
        """(K, K): ``sum_i of_i a_ik a_il``; ``of`` (N,) is 1 by default."""
        if self.is_soft:
            weighted = self.assign if of is None else self.assign * of[:, None]
            return weighted.t() @ self.assign
        if of is None:
            return self.sizes.diag()
        return of.new_zeros(len(self.sizes)).index_add_(0, self.assign, of).diag()


def _paper(of: Clusters) -> Tensor:
    """``(1/K) sum_k log(sum_l exp(tau cos(m_k, m_l)) + 1e-10)``, the diagonal's cosine being 0."""
    meta = unit_rows(of.sums(of.z))
    cosine = meta @ meta.t()
    cosine = cosine - cosine.diag().diag()
    return ((of.tau * cosine).exp().sum(1) + EPSILON).log().mean()


def _weighted(of: Clusters) -> Tensor:
    """All nodes of a cluster stand where its meta-node stands."""
    meta = unit_rows(of.sums(of.z))
    # Of norm 1 or 0, which rounding would make less exact.
    is_there = (meta.detach() != 0).any(1).to(meta)
    cosine = meta @ meta.t()
    cosine = cosine - cosine.diag().diag() + is_there.diag()
    own = of.overlaps()
    different = of.sizes[:, None] * of.sizes - own
    return _by_blocks(of, different * (of.tau * cosine).exp() + own)


def _node(of: Clusters) -> Tensor:
    """``(1/N) sum_i log(sum_k (n_k - a_ik) exp(tau cos(z_i, m_k)) + sum_k a_ik)``."""
    centers = unit_rows(of.sums(of.z))
    return cluster_sums(of.u, centers, of.sizes, of.assign, of.tau).log().mean()


def _exact(of: Clusters) -> Tensor:
    """``(1/N) sum_i log(sum_j exp(tau cos(z_i, z_j)))``, whatever the clusters are."""
    return all_pair_sums(of.u, of.tau).log().mean()


NEGATIVES: dict[str, Callable[[Clusters], Tensor]] = {
    "paper": _paper,
    "weighted": _weighted,
    "moment1": lambda of: _by_blocks(of, moment_blocks(of, second=False)),
    "moment2": lambda of: _by_blocks(of, moment_blocks(of, second=True)),
    "node": _node,
    "exact": _exact,
}
"""By mode."""


def moment_blocks(of: Clusters, second: bool) -> Tensor:
    """(K, K): sums over blocks, with the mean of ``exp(tau cos)`` by the moments of the cosine.

    By the mean cosine alone it is a lower bound (Jensen's inequality), whose logarithm is short by
    tau^2 / 2 at most (Hoeffding's lemma: cosines lie in an interval of length 2). ``second`` adds
    ``tau^2 / 2`` times the variance of the cosine.
    """
    sums = of.sums(of.u)
    directed = (of.u.detach() != 0).any(1).to(of.u)  # 0 for a zero row, whose cosines are all 0
    own, same = of.overlaps(), of.overlaps(directed)
    different = of.sizes[:, None] * of.sizes - own
    # A block without two different nodes has no mean: what stands for it is multiplied by 0.
    is_empty = different <= 1e-6 * of.sizes[:, None] * of.sizes
    different = different.masked_fill(is_empty, 0)
    divisor = different.masked_fill(is_empty, 1)
    mean = ((sums @ sums.t() - same) / divisor).masked_fill(is_empty, 0)
    blocks = different * (of.tau * mean).exp()
    if second:
        # (K, d, d): sum_i a_ik u_i u_i^T
        moments = _SecondMoments.apply(of.u, of.assign, len(of.sizes)).flatten(1)
        squares = ((moments @ moments.t() - same) / divisor).masked_fill(is_empty, 0)
        variance = (squares - mean.square()).clamp(min=0)
        blocks = blocks * (1 + of.tau**2 / 2 * variance)
    return blocks + own


def _by_blocks(of: Clusters, blocks: Tensor) -> Tensor:
    """``(1/N) sum_k n_k log(sum_l B_kl / n_k)``."""
    mean = (blocks.sum(1) / of.sizes).log()
    return (of.sizes * mean).sum() / of.sizes.sum()


class _SecondMoments(Function):
    """Cluster by cluster, so that nothing larger than u and the result is ever there."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, assign: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(u, assign)
        out = u.new_empty(count, u.shape[1], u.shape[1])
        for k, (nodes, part) in enumerate(_members(assign, count)):
            rows = u[nodes]
            torch.mm((rows if part is None else rows * part).t(), rows, out=out[k])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        u, assign = ctx.saved_tensors
        both = grad + grad.transpose(1, 2)
        by_u = torch.zeros_like(u)
        by_assign = torch.empty_like(assign) if ctx.needs_input_grad[1] else None
        for k, (nodes, part) in enumerate(_members(assign, len(grad))):
            rows = u[nodes]
            derivative = rows @ both[k]
            if part is None:
                by_u[nodes] = derivative
            else:
                by_u.addcmul_(derivative, part)
            if by_assign is not None:
                torch.sum((rows @ grad[k]) * rows, 1, out=by_assign[:, k])
        return by_u, by_assign, None


def _members(assign: Tensor, count: int) -> Iterator[tuple[Any, Tensor | None]]:
    """Of each cluster the nodes to take, and (N, 1) what each has of it; None for all."""
    if assign.dim() == 2:
        yield from ((slice(None), assign[:, k, None]) for k in range(count))
        return
    order = assign.argsort(stable=True)
    sizes = torch.bincount(assign, minlength=count).tolist()
    yield from ((nodes, None) for nodes in order.split(sizes))

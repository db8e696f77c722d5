"""The meta-node contrastive loss."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from gnnsys.errors import ArgumentError, DTypeError, RowIndexError
from gnnsys.losses.negatives import EPSILON, NEGATIVES, Clusters
from gnnsys.losses.pairs import PositivePairs, positive_sums, unit_rows

__all__ = ["Mode", "pamc_loss"]

Mode = Literal["paper", "weighted", "moment1", "moment2", "node", "exact"]

_GREATEST = 80.0  # of tau: exp(tau) has to be a float32
_SUM = 1e-2  # how far a row of soft assignments may be from 1


def pamc_loss(
    z: Tensor,
    edge_index: Tensor | PositivePairs,
    edge_weight: Tensor | None,
    assign: Tensor,
    num_clusters: int,
    tau: float,
    mode: Mode = "paper",
) -> Tensor:
    """A contrastive loss over all nodes of a graph, in time linear in its nodes and pairs.

    ``-(1/N) sum_i log(pos_i + 1e-10)`` plus a negative part (Kulatilleke, Portmann, Chandra:
    "PamC", 2023). ``pos_i = sum_j w_ij exp(tau cos(z_i, z_j))``, where a node's cosine with itself
    counts as 0. The negatives of a contrastive loss are all pairs of nodes; here nodes of a cluster
    are taken together:

    - ``"paper"``: clusters k by their meta-nodes ``m_k = sum of their z``, ``(1/K) sum_k log(sum_l
      exp(tau cos(m_k, m_l)) + 1e-10)``, the diagonal's cosine being 0.
    - ``"weighted"``: each node stands at its meta-node; ``(1/N) sum_k n_k log neg_k`` with ``neg_k
      = sum_{l != k} n_l exp(tau cos(m_k, m_l)) + (n_k - 1) e^tau + 1``. Equals ``"exact"`` where
      every cluster is one direction.
    - ``"moment1"``: the mean of ``exp(tau cos)`` over the pairs of two clusters by the mean cosine:
      a lower bound of each such sum, in logarithms short by ``tau^2 / 2`` at most, though no bound
      of the loss. ``"moment2"`` multiplies by ``1 + tau^2 V / 2``, V the variance of the cosine:
      closer where ``tau <= 1`` and clusters spread, not always beyond.
    - ``"node"``: each node against the meta-nodes, ``(1/N) sum_i log(sum_k n_k exp(tau cos(z_i,
      m_k)))``, without itself in its own cluster, plus 1.
    - ``"exact"``: all pairs of nodes, a tile at a time: time, though not memory, is quadratic.

    If every node is a cluster of its own, all modes are the exact loss. Empty clusters are left out
    of all sums and of K. A zero row has cosine 0 with all and no gradient.

    Args:
        z: (N, d) embeddings, float32, float64 or bfloat16; sums are in float32 at least.
        edge_index: (2, E) int64, the positive pairs (i, j); or these with their weights, sorted
            beforehand, which many losses over the same pairs should be given.
        edge_weight: (E,) weights of the pairs, not negative; None for 1 or with ``PositivePairs``.
        assign: (N,) int64, the cluster of each node; or (N, K), what a node has of each, which sum
            to 1 and may ask for gradients.
        num_clusters: K, at most N.
        tau: multiplies cosines (an inverse temperature), above 0 and at most 80.
        mode: the negative part.

    Returns:
        A scalar, float32 or float64.

    Raises:
        ArgumentError: shapes or values that do not fit; NaN or infinity in ``z``.
        DTypeError: element types that cannot be used.
        RowIndexError: a node or a cluster outside.

    >>> z = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> pairs = torch.tensor([[0, 1], [1, 0]])
    >>> pamc_loss(z, pairs, None, torch.tensor([0, 0, 1]), 2, tau=0.5)
    tensor(8.0504)
    """
    _check(z, assign, num_clusters, tau, mode)
    if isinstance(edge_index, PositivePairs):
        pairs = edge_index
        if edge_weight is not None:
            raise ArgumentError("edge_weight: expected None, since the pairs have their weights")
        if pairs.num_nodes != len(z):
            raise ArgumentError(f"pairs of {pairs.num_nodes} nodes, but z has {len(z)} rows")
    else:
        pairs = PositivePairs(edge_index, edge_weight, len(z))
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    u = unit_rows(z)
    positive = (positive_sums(u, pairs, tau) + EPSILON).log().mean()
    negative = NEGATIVES[mode](_clusters(z, u, assign, num_clusters, tau))
    return negative - positive


def _clusters(z: Tensor, u: Tensor, assign: Tensor, num_clusters: int, tau: float) -> Clusters:
    """Without those that are empty."""
    if assign.dim() == 2:
        part = assign.to(u.dtype)
        sizes = part.sum(0)
        there = sizes.detach() > 0
        part, sizes = (part, sizes) if there.all() else (part[:, there], sizes[there])
        return Clusters(z, u, part, sizes, tau)
    counts = torch.bincount(assign, minlength=num_clusters)
    there = counts > 0
    number = there.cumsum(0) - 1
    return Clusters(z, u, number[assign], counts[there].to(u.dtype), tau)


def _check(z: Tensor, assign: Tensor, num_clusters: int, tau: float, mode: str) -> None:
    if mode not in NEGATIVES:
        raise ArgumentError(f"mode({mode!r}): expected one of {', '.join(NEGATIVES)}")
    if not (math.isfinite(tau) and 0 < tau <= _GREATEST):
        raise ArgumentError(f"tau({tau}): expected a number above 0, up to {_GREATEST:g}")
    if z.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise DTypeError(f"z: {z.dtype}, expected float32, float64, bfloat16 or float16")
    if z.dim() != 2 or z.numel() == 0:
        raise ArgumentError(f"z {tuple(z.shape)}: expected (N, d), neither being 0")
    finite = z.detach().isfinite().all(1)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise ArgumentError(f"z: row {row} is not finite; has the training diverged?")
    if not 1 <= num_clusters <= len(z):
        raise ArgumentError(f"num_clusters({num_clusters}): expected 1 to {len(z)}, the nodes")
    _check_assign(z, assign, num_clusters)


def _check_assign(z: Tensor, assign: Tensor, num_clusters: int) -> None:
    if assign.dim() == 1 and len(assign) == len(z):
        if assign.dtype != torch.int64:
            raise DTypeError(f"assign: {assign.dtype}, expected torch.int64 for (N,)")
        least, greatest = assign.min().item(), assign.max().item()
        if least < 0 or greatest >= num_clusters:
            raise RowIndexError(
                f"assign: clusters {least} to {greatest}, expected 0 to {num_clusters - 1}"
            )
        return
    if assign.shape != (len(z), num_clusters):
        raise ArgumentError(
            f"assign {tuple(assign.shape)}: expected ({len(z)},) or ({len(z)}, {num_clusters})"
        )
    if not assign.is_floating_point():
        raise DTypeError(f"assign: {assign.dtype}, expected floats for (N, K)")
    sums = assign.detach().sum(1)
    fits = ((sums - 1).abs() <= _SUM) & (assign.detach() >= 0).all(1)
    if not fits.all():
        row = int((~fits).nonzero()[0])
        raise ArgumentError(
            f"assign: row {row} sums to {sums[row].item():.4g} with least "
            f"{assign[row].min().item():.4g}; expected assignments of 0 and more that sum to 1"
        )

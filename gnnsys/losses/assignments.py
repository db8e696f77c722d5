"""Soft assignments of nodes to clusters, and what they are drawn towards.

N nodes, d columns, K clusters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gnnsys.errors import ArgumentError

__all__ = ["dec_kl", "student_t_assign", "target_distribution"]


def student_t_assign(z: Tensor, centers: Tensor) -> Tensor:
    """How much each node belongs to each cluster, by Student's t with one degree of freedom.

    ``q_ik`` is ``1 / (1 + |z_i - centers_k|^2)``, each row divided by its sum (Xie, Girshick,
    Farhadi: "Unsupervised Deep Embedding for Clustering Analysis", ICML 2016, eq. 1). Distances
    come from ``|z|^2 + |c|^2 - 2 z c``, without an (N, K, d) product.

    Args:
        z: (N, d).
        centers: (K, d).

    Returns:
        (N, K), rows that sum to 1; differentiable by both.

    Raises:
        ArgumentError: shapes that do not fit.

    >>> student_t_assign(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0]]))
    tensor([[0.6667, 0.3333],
            [0.3333, 0.6667]])
    """
    if z.dim() != 2 or centers.dim() != 2 or z.shape[1] != centers.shape[1] or not len(centers):
        raise ArgumentError(
            f"z {tuple(z.shape)}, centers {tuple(centers.shape)}: expected (N, d) and (K, d)"
        )
    squares = z.square().sum(1, keepdim=True) + centers.square().sum(1)
    distances = torch.addmm(squares, z, centers.t(), alpha=-2)
    q = 1 / (1 + distances.clamp(min=0))
    return q / q.sum(1, keepdim=True)


def target_distribution(q: Tensor, totals: Tensor | None = None) -> Tensor:
    """Assignments sharpened and balanced: ``p_ik`` is ``q_ik^2 / sum_i q_ik``, each row divided by
    its sum (Xie et al., ICML 2016, eq. 3). A constant: no gradient flows into it.

    Args:
        q: (N, K).
        totals: (K,), the sums over i of all nodes, where ``q`` is of some of them.

    Returns:
        (N, K).

    >>> target_distribution(torch.tensor([[0.6, 0.4], [0.2, 0.8]]))
    tensor([[0.7714, 0.2286],
            [0.0857, 0.9143]])
    """
    _check_assignments(q, "q")
    q = q.detach()
    # A cluster that nobody belongs to has no weight, instead of 0 / 0.
    totals = q.sum(0) if totals is None else totals.detach()
    p = q.square() / totals.clamp(min=torch.finfo(q.dtype).tiny)
    return p / p.sum(1, keepdim=True)


def dec_kl(p: Tensor, q: Tensor) -> Tensor:
    """``(1/N) sum p log(p / q)``, the clustering loss of deep embedded clustering (Xie et al.,
    ICML 2016, eq. 2).

    Args:
        p: (N, K), the target.
        q: (N, K).

    Returns:
        A scalar, 0 if both are the same; terms where ``p`` is 0 are 0.

    >>> q = torch.tensor([[0.6, 0.4], [0.2, 0.8]])
    >>> dec_kl(target_distribution(q), q)
    tensor(0.0577)
    """
    _check_assignments(q, "q")
    if p.shape != q.shape:
        raise ArgumentError(f"p {tuple(p.shape)}: expected {tuple(q.shape)}, as q")
    tiny = torch.finfo(q.dtype).tiny
    return (torch.xlogy(p, p) - p * q.clamp(min=tiny).log()).sum() / len(q)


def _check_assignments(q: Tensor, name: str) -> None:
    if q.dim() != 2 or not q.is_floating_point() or q.numel() == 0:
        raise ArgumentError(f"{name} {tuple(q.shape)}, {q.dtype}: expected floats (N, K)")

"""Losses that the meta-node loss is compared with.

N nodes, d columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gnnsys.errors import ArgumentError
from gnnsys.losses.negatives import EPSILON
from gnnsys.losses.pairs import unit_rows

__all__ = ["cca_ssg_loss", "dense_contrastive_loss", "info_nce_loss"]


def dense_contrastive_loss(
    z: Tensor, edge_index: Tensor, edge_weight: Tensor | None, tau: float
) -> Tensor:
    """What ``pamc_loss(mode="exact")`` computes, with (N, N) matrices: the influence contrastive
    loss of SCGC (Kulatilleke, Portmann, Chandra, 2022).

    ``-(1/N) sum_i log(sum_j w_ij exp(tau cos) + 1e-10) + (1/N) sum_i log(sum_j exp(tau cos))``, a
    node's cosine with itself counting as 0.

    Args:
        z: (N, d).
        edge_index: (2, E) int64, the positive pairs.
        edge_weight: (E,); None for 1.
        tau: multiplies cosines.

    >>> z, pairs = torch.eye(2), torch.tensor([[0, 1], [1, 0]])
    >>> dense_contrastive_loss(z, pairs, None, tau=1.0)
    tensor(0.6931)
    """
    u = unit_rows(z)
    cosine = u @ u.t()
    # One matrix is kept for backward, the exponentials; the cosines are written over.
    similarity = cosine.fill_diagonal_(0).mul_(tau).exp_()
    if edge_weight is None:
        edge_weight = torch.ones(edge_index.shape[1], dtype=u.dtype, device=u.device)
    row, column = edge_index
    positive = torch.zeros(len(u), dtype=u.dtype, device=u.device).index_add(
        0, row, edge_weight.to(u) * similarity[row, column]
    )
    return similarity.sum(1).log().mean() - (positive + EPSILON).log().mean()


def info_nce_loss(first: Tensor, second: Tensor, temperature: float = 0.5) -> Tensor:
    """The loss of GRACE between two views of all nodes, by (N, N) matrices (Zhu et al.: "Deep Graph
    Contrastive Representation Learning", 2020, eq. 1 and 2).

    A node's two views are the positive pair; negatives are the views of other nodes, in both views.

    Args:
        first, second: (N, d), rows of the same nodes.
        temperature: divides cosines.

    Returns:
        The mean over nodes and over which view is the anchor.

    >>> info_nce_loss(torch.eye(2), torch.eye(2), temperature=1.0)
    tensor(0.5514)
    """
    _check_views(first, second)
    u, v = unit_rows(first), unit_rows(second)
    between = (u @ v.t() / temperature).exp()
    total = torch.zeros((), dtype=u.dtype, device=u.device)
    for own, across in ((u, between.sum(1)), (v, between.sum(0))):
        within = (own @ own.t() / temperature).exp()
        total = total + (across + within.sum(1) - within.diag()).log()
    return (total / 2 - between.diag().log()).mean()


def cca_ssg_loss(first: Tensor, second: Tensor, decorrelation: float = 1e-3) -> Tensor:
    """The loss of CCA-SSG, linear in the nodes, between two views of all nodes (Zhang et al.: "From
    Canonical Correlation Analysis to Self-supervised Graph Neural Networks", NeurIPS 2021, eq. 5).

    With columns of mean 0 and of norm 1: ``|A - B|^2 + decorrelation (|A^T A - I|^2 + |B^T B -
    I|^2)``.

    Args:
        first, second: (N, d), rows of the same nodes.
        decorrelation: weight of what keeps columns apart.

    >>> view = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    >>> cca_ssg_loss(view, view)
    tensor(0.)
    """
    _check_views(first, second)
    a, b = _standardised(first), _standardised(second)
    identity = torch.eye(a.shape[1], dtype=a.dtype, device=a.device)
    apart = sum((c.t() @ c - identity).square().sum() for c in (a, b))
    return (a - b).square().sum() + decorrelation * apart


def _standardised(view: Tensor) -> Tensor:
    centred = view - view.mean(0)
    norm = torch.linalg.vector_norm(centred, dim=0)
    return centred / norm.clamp(min=torch.finfo(view.dtype).eps)


def _check_views(first: Tensor, second: Tensor) -> None:
    if first.dim() != 2 or first.shape != second.shape:
        raise ArgumentError(
            f"views {tuple(first.shape)} and {tuple(second.shape)}: expected (N, d) twice"
        )

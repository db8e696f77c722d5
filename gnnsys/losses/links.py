"""Losses of links against negative ones, from their scores.

n links, k negatives for each.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from gnnsys.errors import ArgumentError, DTypeError

__all__ = ["in_batch_loss", "link_bce_loss", "link_bpr_loss", "link_info_nce_loss"]


def link_bce_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """Binary cross entropy: links are of class 1, negatives of class 0.

    The mean over all scores, so that more negatives weigh more.

    Args:
        positive: (n,) scores of links, as logits.
        negative: scores of negatives, of any shape.

    Returns:
        A scalar.

    Raises:
        ArgumentError, DTypeError: no links, or scores that are not floats.

    >>> link_bce_loss(torch.zeros(2), torch.zeros(2, 3))
    tensor(0.6931)
    """
    _check_scores(positive, negative)
    return torch.cat([F.softplus(-positive), F.softplus(negative.flatten())]).mean()


def link_bpr_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """BPR: each link is to score above its negatives (Rendle et al.: "BPR: Bayesian Personalized
    Ranking from Implicit Feedback", UAI 2009, section 4.1).

    ``-mean log sigmoid(positive_i - negative_ij)``; regularisation is the optimiser's.

    Args:
        positive: (n,) scores of links.
        negative: (n,) or (n, k) scores of their negatives.

    Returns:
        A scalar.

    Raises:
        ArgumentError, DTypeError: shapes that do not fit, no links, or scores that are not floats.

    >>> link_bpr_loss(torch.tensor([1.0]), torch.tensor([[1.0, 1.0]]))
    tensor(0.6931)
    """
    negative = _check_pairs(positive, negative)
    return F.softplus(negative - positive[:, None]).mean()


def link_info_nce_loss(positive: Tensor, negative: Tensor, temperature: float = 1.0) -> Tensor:
    """InfoNCE: which of a link and its negatives is the link (van den Oord, Li, Vinyals:
    "Representation Learning with Contrastive Predictive Coding", 2018, eq. 4).

    ``-mean log(exp(p_i / t) / (exp(p_i / t) + sum_j exp(n_ij / t)))``. For negatives that are drawn
    by weights, subtract the logarithms of their probabilities from the scores beforehand.

    Args:
        positive: (n,) scores of links.
        negative: (n,) or (n, k) scores of their negatives; -inf leaves one out.
        temperature: divides scores, above 0.

    Returns:
        A scalar.

    Raises:
        ArgumentError, DTypeError: shapes or a temperature that do not fit, no links, or scores that
            are not floats.

    >>> link_info_nce_loss(torch.tensor([2.0]), torch.tensor([[2.0, 2.0]]))
    tensor(1.0986)
    """
    negative = _check_pairs(positive, negative)
    _check_temperature(temperature)
    scores = torch.cat([positive[:, None], negative], 1) / temperature
    return (scores.logsumexp(1) - scores[:, 0]).mean()


def in_batch_loss(
    scores: Tensor,
    log_q: Tensor | None = None,
    targets: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Softmax over the targets of a batch: those of other links are a link's negatives (Yi et al.:
    "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations", RecSys 2019,
    eq. 3 to 5).

    A target is in a batch as often as it is linked, so that popular ones would be pushed down too
    much: ``s_ij / t - log q_j`` corrects that, and the loss is the mean cross entropy of i.

    Args:
        scores: (n, n), of the source of link i (row) with the target of link j (column).
        log_q: (n,) logarithms of the chance that the target of link j is that of a link of the
            training set: ``(weight / weight.sum()).log()`` with ``degree_weights(..., power=1)``
            of ``gnnsys.loaders``. None corrects nothing.
        targets: (n,) ids of the targets, so that the same target of another link is no negative.
            None counts it as one, as the paper does, which suits few targets that fill a batch.
        temperature: divides scores, above 0.

    Returns:
        A scalar.

    Raises:
        ArgumentError, DTypeError: shapes or values that do not fit, no links, or scores that are
            not floats.

    >>> in_batch_loss(torch.zeros(4, 4), targets=torch.tensor([7, 7, 8, 9]))
    tensor(1.2425)
    """
    if scores.dim() != 2 or scores.shape[0] != scores.shape[1] or len(scores) == 0:
        raise ArgumentError(
            f"scores {tuple(scores.shape)}: expected (n, n), sources above their targets, n > 0"
        )
    _check_floats("scores", scores)
    _check_temperature(temperature)
    for name, given in (("log_q", log_q), ("targets", targets)):
        if given is not None and given.shape != scores.shape[:1]:
            raise ArgumentError(f"{name} {tuple(given.shape)}: expected ({len(scores)},)")
    logits = scores / temperature
    if log_q is not None:
        if not log_q.isfinite().all():
            link = int((~log_q.isfinite()).nonzero()[0])
            raise ArgumentError(
                f"log_q: {log_q[link].item()} of link {link}; expected the logarithm of a chance "
                "above 0: count the targets of all links of the training set"
            )
        logits = logits - log_q.to(logits)
    if targets is not None:
        targets = targets.to(scores.device)
        same = targets[:, None] == targets
        logits = logits.masked_fill(same.fill_diagonal_(False), -math.inf)
    return (logits.logsumexp(1) - logits.diagonal()).mean()


def _check_pairs(positive: Tensor, negative: Tensor) -> Tensor:
    """The negatives as (n, k)."""
    _check_scores(positive, negative)
    if negative.dim() not in (1, 2) or len(negative) != len(positive):
        raise ArgumentError(
            f"negative {tuple(negative.shape)}: expected ({len(positive)},) or "
            f"({len(positive)}, k), the negatives of each link"
        )
    return negative.reshape(len(positive), -1)


def _check_scores(positive: Tensor, negative: Tensor) -> None:
    _check_floats("positive", positive)
    _check_floats("negative", negative)
    if positive.dim() != 1 or len(positive) == 0 or negative.numel() == 0:
        raise ArgumentError(
            f"positive {tuple(positive.shape)}, negative {tuple(negative.shape)}: expected (n,) "
            "scores of links and those of their negatives, neither empty"
        )


def _check_floats(name: str, scores: Tensor) -> None:
    if not scores.is_floating_point():
        raise DTypeError(f"{name}: {scores.dtype}, expected floats")


def _check_temperature(temperature: float) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise ArgumentError(f"temperature({temperature}): expected a number above 0")

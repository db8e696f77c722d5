"""How right scores of links are: from ranks, from the best candidates, from sampled negatives.

n queries. torchmetrics and PyG's metrics, which take seconds to import, are imported where they are
needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gnnsys.errors import ArgumentError, DivergedError
from gnnsys.loaders.checks import check_ids_below
from gnnsys.loaders.user_graph import check_ids_dtype
from gnnsys.system.whole import check_whole

__all__ = ["known_answers", "link_auc", "rank_metrics", "rank_scores", "retrieval_metrics"]

_QUERIES = 1 << 16  # that PyG's metrics see at a time


def known_answers(asked: Tensor, known: Tensor) -> Tensor:
    """Which answers of each query are known: what filtered ranks leave out.

    Args:
        asked: (n,) sources; or (p, n) where p numbers make a query, such as head and relation.
        known: (2, k) links, sources above targets; or (p + 1, k), such as head, relation and tail.

    Returns:
        (2, m) numbers of queries, ascending, above their answers.

    Raises:
        ArgumentError: shapes that do not fit.

    >>> known_answers(torch.tensor([5, 3]), torch.tensor([[3, 5, 3], [0, 1, 2]])).tolist()
    [[0, 1, 1], [1, 0, 2]]
    """
    asked = asked[None] if asked.dim() == 1 else asked
    if asked.dim() != 2 or known.dim() != 2 or len(known) != len(asked) + 1:
        raise ArgumentError(
            f"asked {tuple(asked.shape)} and known {tuple(known.shape)}: expected (p, n) and "
            "(p + 1, k), the last row being answers"
        )
    both = torch.cat([asked, known[:-1]], 1)
    key = both[0].unique(return_inverse=True)[1]
    for part in both[1:]:  # numbers of the pairs so far, which keeps keys small
        number = part.unique(return_inverse=True)[1]
        key = (key * (int(number.max()) + 1 if len(number) else 1) + number).unique(
            return_inverse=True
        )[1]
    wanted, (found, order) = key[: asked.shape[1]], key[asked.shape[1] :].sort(stable=True)
    first = torch.searchsorted(found, wanted)
    counts = torch.searchsorted(found, wanted, right=True) - first
    query = torch.repeat_interleave(counts)
    within = torch.arange(len(query), device=query.device) - (counts.cumsum(0) - counts)[query]
    return torch.stack([query, known[-1][order[first[query] + within]]])


def rank_scores(positive: Tensor, negative: Tensor) -> Tensor:
    """Ranks of links among sampled candidates, as ``rank_links`` counts them.

    Args:
        positive: (n,) scores of links.
        negative: (n, k) scores of other targets of their sources; -inf leaves one out.

    Returns:
        (n,) float64, from 1 on.

    Raises:
        ArgumentError: shapes that do not fit.
        DivergedError: NaN scores.

    >>> rank_scores(torch.tensor([1.0, 3.0]), torch.tensor([[2.0, 1.0], [0.0, 1.0]]))
    tensor([2.5000, 1.0000], dtype=torch.float64)
    """
    if positive.dim() != 1 or negative.dim() != 2 or len(positive) != len(negative):
        raise ArgumentError(
            f"positive {tuple(positive.shape)} and negative {tuple(negative.shape)}: expected (n,) "
            "and (n, k)"
        )
    _check_not_nan("positive", positive)
    _check_not_nan("negative", negative)
    own = positive[:, None]
    return 1 + (negative > own).sum(1) + (negative == own).sum(1).double() / 2


def rank_metrics(ranks: Tensor, k: Sequence[int] = (1, 3, 10)) -> dict[str, float]:
    """MRR, the mean rank and hits@k of links by their ranks.

    Args:
        ranks: (n,) of ``rank_links`` or ``rank_scores``.
        k: ranks up to which a link is a hit.

    Returns:
        ``mrr``, ``mean_rank`` and ``hits@K`` of each k; NaN without links.

    Raises:
        ArgumentError: ranks below 1 or a k below 1.

    >>> rank_metrics(torch.tensor([1.0, 4.0]), k=[1])
    {'mrr': 0.625, 'mean_rank': 2.5, 'hits@1': 0.5}
    """
    _check_k(k)
    if len(ranks) and not bool((ranks >= 1).all()):
        raise ArgumentError(f"ranks: {ranks.min().item()}, expected ranks from 1 on")
    ranks = ranks.double()
    found = {"mrr": ranks.reciprocal().mean().item(), "mean_rank": ranks.mean().item()}
    return found | {f"hits@{at}": (ranks <= at).double().mean().item() for at in k}


def retrieval_metrics(ids: Tensor, links: Tensor, k: Sequence[int] = (10,)) -> dict[str, float]:
    """How many of each source's targets are among its best candidates, by PyG's metrics.

    Args:
        ids: (n, c) candidates of each source, best first and each once, as ``top_links`` finds
            them; -1 for none.
        links: (2, m) sources, as rows of ``ids``, above their targets. Sources without targets do
            not count.
        k: how many of the candidates are looked at, each at most c.

    Returns:
        ``recall@K``, ``precision@K``, ``ndcg@K``, ``map@K``, ``mrr@K`` and ``hits@K`` of each k,
        means over sources; NaN without links.

    Raises:
        ArgumentError, DTypeError: shapes, sources, candidates or a k that do not fit.

    >>> retrieval_metrics(torch.tensor([[4, 2], [0, 1]]), torch.tensor([[0, 0], [2, 7]]), k=[2])[
    ...     "recall@2"
    ... ]
    0.5
    """
    from torch_geometric import metrics

    _check_k(k)
    if ids.dim() != 2 or max(k) > ids.shape[1]:
        raise ArgumentError(
            f"ids {tuple(ids.shape)}: expected (n, c) with c at least k({max(k)}); find more"
        )
    if links.dim() != 2 or len(links) != 2:
        raise ArgumentError(f"links {tuple(links.shape)}: expected (2, m), sources above targets")
    ids = check_ids_dtype("ids", ids, "ids of candidates").to("cpu", torch.int64)
    check_ids_below("links, sources", links[0], len(ids))
    links = check_ids_dtype("links", links, "ids").to(ids)
    _check_distinct(ids)
    kinds = {
        "recall": metrics.LinkPredRecall,
        "precision": metrics.LinkPredPrecision,
        "ndcg": metrics.LinkPredNDCG,
        "map": metrics.LinkPredMAP,
        "mrr": metrics.LinkPredMRR,
        "hits": metrics.LinkPredHitRatio,
    }
    judges = {f"{name}@{at}": kind(at) for at in k for name, kind in kinds.items()}
    links = links.unique(dim=1)  # sorted by source
    none = int(torch.cat([ids.flatten(), links[1]]).max()) + 1 if links.numel() else 0
    for first in range(0, len(ids), _QUERIES):
        some = ids[first : first + _QUERIES]
        begin, end = torch.searchsorted(
            links[0].contiguous(), torch.tensor([first, first + len(some)])
        ).tolist()
        own = torch.stack([links[0, begin:end] - first, links[1, begin:end]])
        best = some.masked_fill(some < 0, none)  # which is nobody's target
        for judge in judges.values():
            judge.update(best, own)
    if links.numel() == 0:
        return dict.fromkeys(judges, math.nan)
    return {name: float(judge.compute()) for name, judge in judges.items()}


def link_auc(positive: Tensor, negative: Tensor) -> float:
    """The chance that a link scores above a negative one: the area under the ROC curve, by
    torchmetrics.

    Args:
        positive, negative: scores, of any shapes.

    Returns:
        From 0 to 1; 0.5 where scores tell nothing.

    Raises:
        ArgumentError: no scores of one of them.
        DivergedError: NaN scores.

    >>> link_auc(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 0.0]))
    0.75
    """
    from torchmetrics.functional.classification import binary_auroc

    for name, scores in (("positive", positive), ("negative", negative)):
        if scores.numel() == 0:
            raise ArgumentError(f"{name}: no scores, expected at least one")
        _check_not_nan(name, scores)
    scores = torch.cat([positive.flatten(), negative.flatten()])
    truth = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
    truth[: positive.numel()] = 1
    # torchmetrics takes scores beyond [0, 1] for logits, whose sigmoids in part are equal: so their
    # order is told in other numbers.
    order = scores.unique(return_inverse=True)[1].double()
    return float(binary_auroc(order / order.max().clamp(min=1), truth))


def _check_not_nan(name: str, scores: Tensor) -> None:
    if scores.isnan().any():
        raise DivergedError(f"{name}: a score is NaN; has the training diverged?")


def _check_distinct(ids: Tensor) -> None:
    """Raises ArgumentError where a candidate, unlike -1, is listed twice."""
    places = ids.sort(1).values
    row, column = ((places[:, 1:] == places[:, :-1]) & (places[:, 1:] >= 0)).nonzero().unbind(1)
    if len(row):
        raise ArgumentError(
            f"ids: {int(places[row[0], column[0]])} is twice among the candidates of source "
            f"{int(row[0])}; list each once"
        )


def _check_k(k: Sequence[int]) -> None:
    if not k:
        raise ArgumentError("k: none, expected at least one number")
    for each in k:
        check_whole("k", each, least=1)

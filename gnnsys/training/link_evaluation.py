"""How right embeddings are about links that were held out.

Ranks and candidates are filtered: other links that are known, of any part, do not count (Bordes et
al.: "Translating Embeddings for Modeling Multi-relational Data", NeurIPS 2013, section 4.2). Links
are taken in blocks, so that neither scores nor the tables of embeddings need to fit in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from gnnsys import rng
from gnnsys.training.link_metrics import (
    known_answers,
    link_auc,
    rank_metrics,
    rank_scores,
    retrieval_metrics,
)
from gnnsys.training.link_ranking import rank_links, top_links
from gnnsys.training.link_task import LinkTask, stacked
from gnnsys.training.task import PARTS, Part

__all__ = ["LinkJudge"]

_RANKED = 1 << 14
"""Links that are ranked at a time among all candidates."""
_DRAWN = 256
"""Those whose candidates are drawn, and scored, at a time."""
_STREAM = (1 << 64) - 1
"""In the place of an epoch."""
_K = 10
_OF_THE_BEST = (f"recall@{_K}", f"ndcg@{_K}")


class LinkJudge:
    """Judges embeddings by the links of a part.

    Args:
        task: what is known of links.
        num_sources: nodes of the source type; ``num_targets`` likewise.
        candidates: other targets a link is ranked among, drawn uniformly; None for all. Those that
            are known answers are left out.
        seed: of the draws.
    """

    def __init__(
        self,
        task: LinkTask,
        num_sources: int,
        num_targets: int,
        candidates: int | None = None,
        seed: int = 0,
    ) -> None:
        self._task, self._candidates, self._seed = task, candidates, seed
        self._num_sources, self._num_targets = num_sources, num_targets
        self._known: dict[Part, Tensor] = {}

    def measure(
        self,
        metrics: Iterable[str],
        part: Part,
        source: Tensor,
        target: Tensor,
        queries: Callable[[Tensor], Tensor] = lambda rows: rows,
    ) -> dict[str, float]:
        """Metrics of a part's links: of ``gnnsys.choices.METRICS`` for links; NaN without
            links, and an auc where all candidates drawn are known.

        Args:
            metrics: names. mrr and hits@k are of ranks; recall@k and ndcg@k of the best candidates
                of each source that has links in the part; auc is of links against their
                candidates, or against one each where these are all.
            part: which links.
            source: (sources, d) embeddings, ordinary or unified; ``target`` (targets, d) likewise.
            queries: what is multiplied with targets' embeddings, of those of sources.

        Raises:
            DivergedError: scores that are NaN.
        """
        names = [*metrics]
        if not self._task.num_seeds(part):
            return dict.fromkeys(names, math.nan)
        found: dict[str, float] = {}
        if any(name == "mrr" or name.startswith("hits@") for name in names):
            blocks = self._ranks if self._candidates is None else self._sampled_ranks
            found |= rank_metrics(torch.cat([*blocks(part, source, target, queries)]))
        if not {*_OF_THE_BEST}.isdisjoint(names):
            found |= self._retrieval(part, source, target, queries)
        if "auc" in names:
            drawn = [*self._drawn_scores(part, source, target, queries)]
            positive, negative = (torch.cat(scores) for scores in zip(*drawn, strict=True))
            others = negative[negative > -math.inf]
            found["auc"] = link_auc(positive, others) if len(others) else math.nan
        return {name: found[name] for name in names}

    def _ranks(
        self, part: Part, source: Tensor, target: Tensor, queries: Callable[[Tensor], Tensor]
    ) -> Iterator[Tensor]:
        """Among all candidates."""
        known, links = self._known_of(part), stacked(self._task.links(part))
        for first in range(0, links.shape[1], _RANKED):
            ids, targets = links[:, first : first + _RANKED]
            own = _between(known, first, first + len(ids))
            yield rank_links(queries(source[ids]), target, targets, known=own)

    def _sampled_ranks(
        self, part: Part, source: Tensor, target: Tensor, queries: Callable[[Tensor], Tensor]
    ) -> Iterator[Tensor]:
        for positive, negative in self._drawn_scores(part, source, target, queries):
            yield rank_scores(positive, negative)

    def _drawn_scores(
        self, part: Part, source: Tensor, target: Tensor, queries: Callable[[Tensor], Tensor]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(n,) scores of links and (n, k) of drawn candidates; -inf for those that are known."""
        known, links = self._known_of(part), stacked(self._task.links(part))
        for block, first in enumerate(range(0, links.shape[1], _DRAWN)):
            ids, targets = links[:, first : first + _DRAWN]
            shape = len(ids), self._candidates or 1
            key = rng.negatives_key(self._seed, _STREAM, block, PARTS.index(part))
            drawn = rng.integers(key, shape[0] * shape[1], self._num_targets)
            others = torch.from_numpy(drawn).view(shape)
            rows = queries(source[ids])
            positive = (rows * target[targets]).sum(1)
            negative = (rows[:, None] * target[others.flatten()].view(*shape, -1)).sum(2)
            query, answer = _between(known, first, first + len(ids))
            pairs = self._key(torch.arange(len(ids))[:, None], others)
            seen = torch.isin(pairs, self._key(query, answer))
            yield positive, negative.masked_fill(seen, -math.inf)

    def _retrieval(
        self, part: Part, source: Tensor, target: Tensor, queries: Callable[[Tensor], Tensor]
    ) -> dict[str, float]:
        """Of the best candidates of each source that has links in the part."""
        links = stacked(self._task.links(part))
        sources, row = links[0].unique(return_inverse=True)
        known = self.answers(sources, [other for other in PARTS if other != part])
        # At another time a link may be one to train on, too, as of a task.
        both = torch.isin(self._key(*known), self._key(row, links[1]))
        known = known[:, ~both]
        best = []
        for first in range(0, len(sources), _RANKED):
            ids = sources[first : first + _RANKED]
            own = _between(known, first, first + len(ids))
            best.append(top_links(queries(source[ids]), target, _K, known=own)[1])
        found = retrieval_metrics(torch.cat(best), torch.stack([row, links[1]]), k=[_K])
        return {name: found[name] for name in _OF_THE_BEST}  # its hits are of sources, not links

    def _key(self, query: Tensor, target: Tensor) -> Tensor:
        """A number for each pair."""
        return query * self._num_targets + target

    def _known_of(self, part: Part) -> Tensor:
        """(2, m) numbers of a part's links, ascending, above all known targets of their sources."""
        if part not in self._known:
            self._known[part] = self.answers(self._task.links(part).source.long(), PARTS)
        return self._known[part]

    def answers(self, asked: Tensor, parts: Sequence[Part] = PARTS) -> Tensor:
        """(2, m) numbers of any sources, ascending, above their known targets in some parts."""
        wanted = torch.zeros(self._num_sources, dtype=torch.bool)
        wanted[asked] = True
        found = []
        for part in parts:
            if self._task.num_seeds(part):
                links = self._task.links(part)
                kept = wanted[links.source.long()]
                found.append(torch.stack([links.source[kept].long(), links.target[kept].long()]))
        return known_answers(asked, torch.cat(found, 1))


def _between(known: Tensor, first: int, last: int) -> Tensor:
    """Pairs of queries from ``first`` to before ``last``, numbered from 0."""
    bounds = torch.tensor([first, last])
    begin, end = torch.searchsorted(known[0].contiguous(), bounds).tolist()
    return known[:, begin:end] - torch.tensor([[first], [0]])

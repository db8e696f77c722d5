"""Metrics of links, against counting by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score, roc_auc_score
from torch import Tensor

from gnnsys.choices import METRICS
from gnnsys.dataset.links import Links
from gnnsys.training import link_evaluation
from gnnsys.training.link_evaluation import LinkJudge
from gnnsys.training.link_task import LinkTask

SOURCES, TARGETS = 30, 40


def make_task(seed: int = 0) -> LinkTask:
    """Links without order; nobody has any for the test."""
    draw = torch.Generator().manual_seed(seed)
    pairs = torch.randperm(SOURCES * TARGETS, generator=draw)[:260]
    links = torch.stack([pairs // TARGETS, pairs % TARGETS])
    parts = {"train": links[:, :200], "val": links[:, 200:], "test": links[:, :0]}
    return LinkTask(
        target="a", metric="mrr", edge_type=("a", "to", "b"), is_edge=True, width=6, timed=False,
        sizes={part: each.shape[1] for part, each in parts.items()},
        open_links=lambda part: Links(source=parts[part][0], target=parts[part][1]),
    )  # fmt: skip


def embeddings() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(SOURCES, 6, generator=draw), torch.randn(TARGETS, 6, generator=draw)


def known_of(task: LinkTask, parts: tuple[str, ...]) -> set[tuple[int, int]]:
    links = (task.links(part) for part in parts)
    return {
        pair
        for each in links
        for pair in zip(each.source.tolist(), each.target.tolist(), strict=True)
    }


def test_all_metrics_are_those_of_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_evaluation, "_RANKED", 16)  # several blocks
    monkeypatch.setattr(link_evaluation, "_DRAWN", 16)
    task, (source, target) = make_task(), embeddings()
    judge = LinkJudge(task, SOURCES, TARGETS, seed=4)
    weight = torch.rand(6) + 0.5
    found = judge.measure(METRICS["links"], "val", source, target, lambda rows: rows * weight)
    scores = ((source * weight) @ target.t()).numpy()
    links = task.links("val")
    every = known_of(task, ("train", "val"))
    ranks = []
    for a, b in zip(links.source.tolist(), links.target.tolist(), strict=True):
        others = [scores[a, c] for c in range(TARGETS) if (a, c) not in every]
        ranks.append(1 + sum(other > scores[a, b] for other in others))
    reached = np.array(ranks)
    assert found["mrr"] == pytest.approx(np.mean(1 / reached))
    for k in (1, 3, 10):
        assert found[f"hits@{k}"] == pytest.approx(np.mean(reached <= k))
    recalls, gains = [], []
    for a in links.source.unique().tolist():
        own = links.target[links.source == a].tolist()
        left = [c for c in range(TARGETS) if (a, c) not in known_of(task, ("train",))]
        best = sorted(left, key=lambda c: -scores[a, c])[:10]
        recalls.append(len({*own} & {*best}) / len(own))
        truth = np.array([[float(c in own) for c in left]])
        gains.append(ndcg_score(truth, scores[a, left][None], k=10))
    assert found["recall@10"] == pytest.approx(np.mean(recalls))
    assert found["ndcg@10"] == pytest.approx(np.mean(gains), abs=1e-6)
    # Against one target each; known ones are left out.
    drawn = [*judge._drawn_scores("val", source, target, lambda rows: rows * weight)]
    positive, negative = (torch.cat(each) for each in zip(*drawn, strict=True))
    kept = negative[negative > -math.inf]
    truths = np.r_[np.ones(len(positive)), np.zeros(len(kept))]
    assert found["auc"] == pytest.approx(roc_auc_score(truths, np.r_[positive, kept]), abs=1e-6)


def test_drawn_candidates_are_the_same_each_time_and_no_known_answers() -> None:
    task, (source, target) = make_task(), embeddings()
    judge = LinkJudge(task, SOURCES, TARGETS, candidates=500, seed=4)
    first, again = (judge.measure(["mrr", "auc"], "val", source, target) for _ in range(2))
    assert first == again
    assert LinkJudge(task, SOURCES, TARGETS, 500, seed=5).measure(
        ["mrr", "auc"], "val", source, target
    ) != pytest.approx(first)
    scores, every = source @ target.t(), known_of(task, ("train", "val"))
    links = task.links("val")
    ((positive, negative),) = judge._drawn_scores("val", source, target, lambda rows: rows)
    for row, (a, b) in enumerate(zip(links.source.tolist(), links.target.tolist(), strict=True)):
        assert positive[row] == pytest.approx(float(scores[a, b]), abs=1e-5)
        left = torch.stack([scores[a, c] for c in range(TARGETS) if (a, c) not in every])
        seen = negative[row][negative[row] > -math.inf]
        # With 500 draws of 40 all others were met, and nothing else.
        assert len(seen) > 300
        assert (seen[:, None] - left).abs().amin(1).max() < 1e-5


def test_a_link_that_was_one_to_train_on_can_be_found_again() -> None:
    task, (source, target) = make_task(), embeddings()
    links = task.links("val")
    task._links["train"] = links  # as at another time
    found = LinkJudge(task, SOURCES, TARGETS).measure(["recall@10"], "val", source, target)
    assert found["recall@10"] > 0


def test_no_links_have_no_metric() -> None:
    found = LinkJudge(make_task(), SOURCES, TARGETS).measure(["mrr", "auc"], "test", *embeddings())
    assert all(map(math.isnan, found.values()))

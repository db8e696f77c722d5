"""Ranks and top candidates equal those found by sorting all scores; metrics equal others'."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score, roc_auc_score
from torch import Tensor

import gnnsys
from gnnsys.errors import ArgumentError, DivergedError, DTypeError, StorageError
from gnnsys.training import (
    known_answers,
    link_auc,
    link_ranking,
    rank_links,
    rank_metrics,
    rank_scores,
    retrieval_metrics,
    top_links,
    write_top_links,
)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_ranking, "_QUERIES", 4)
    monkeypatch.setattr(link_ranking, "_CANDIDATES", 7)


def tables(seed: int, queries: int, candidates: int) -> tuple[Tensor, Tensor]:
    """Of small integers, whose products are exact and often equal."""
    draw = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randint(-2, 3, (count, 3), generator=draw).float() for count in (queries, candidates)
    )


def pairs(seed: int, queries: int, candidates: int, share: float) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return (torch.rand(queries, candidates, generator=draw) < share).nonzero().t()


sizes = st.tuples(st.integers(0, 99), st.integers(1, 13), st.integers(1, 30), st.floats(0, 1))


@settings(max_examples=40, deadline=None)
@given(sizes, st.sampled_from([1, 400, 1 << 20]))
def test_filtered_ranks_equal_brute_force(given: Any, block_bytes: int) -> None:
    seed, n, m, share = given
    queries, candidates = tables(seed, n, m)
    targets = torch.arange(n) * 5 % m
    known = pairs(seed, n, m, share)
    ranks = rank_links(queries, candidates, targets, known=known, block_bytes=block_bytes)
    left_out = set(map(tuple, known.t().tolist()))
    scores = (queries @ candidates.t()).tolist()
    for i, target in enumerate(targets.tolist()):
        own = scores[i][target]
        others = [scores[i][j] for j in range(m) if j != target and (i, j) not in left_out]
        above, same = sum(s > own for s in others), sum(s == own for s in others)
        assert ranks[i] == 1 + above + same / 2


def test_what_is_left_out_does_not_count_beside_a_target_that_scores_minus_infinity() -> None:
    candidates = torch.tensor([[-math.inf], [1.0], [1.0], [-math.inf], [-math.inf]])
    known = torch.tensor([[4, 4, 4, 4, 5], [1, 3, 3, 0, 1]])
    for block_bytes in (1, 1 << 20):
        found = rank_links(
            torch.ones(6, 1), candidates, torch.zeros(6).long(), known=known,
            block_bytes=block_bytes,
        )  # fmt: skip
        assert found.tolist() == [4.0, 4.0, 4.0, 4.0, 2.5, 3.0]


@settings(max_examples=40, deadline=None)
@given(sizes, st.integers(1, 12), st.sampled_from([1, 400, 1 << 20]))
def test_top_candidates_equal_a_sort_by_score_and_id(given: Any, k: int, block_bytes: int) -> None:
    seed, n, m, share = given
    queries, candidates = tables(seed, n, m)
    known = pairs(seed, n, m, share)
    scores, ids = top_links(queries, candidates, k, known=known, block_bytes=block_bytes)
    every = queries @ candidates.t()
    every[known[0], known[1]] = -math.inf
    for i in range(n):
        order = sorted(
            (j for j in range(m) if every[i, j] > -math.inf), key=lambda j: (-every[i, j], j)
        )
        wanted = order[:k] + [-1] * (k - len(order))
        assert ids[i].tolist() == wanted
        assert scores[i].tolist() == [every[i, j] if j >= 0 else -math.inf for j in wanted]


def test_neither_depends_on_the_size_of_blocks_to_the_last_bit() -> None:
    draw = torch.Generator().manual_seed(1)
    queries, candidates = (torch.randn(count, 33, generator=draw) for count in (50, 90))
    targets = torch.arange(50)
    found = [
        (rank_links(queries, candidates, targets, block_bytes=size),
         *top_links(queries, candidates, 5, block_bytes=size))
        for size in (1, 3000, 1 << 28)
    ]  # fmt: skip
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_tables_in_files_and_scores_of_one_s_own_are_taken(tmp_path: Path) -> None:
    queries, candidates = tables(3, 11, 20)
    np.save(tmp_path / "c.npy", candidates.numpy())
    stored = gnnsys.unified(tmp_path / "c.npy", device="cpu")

    def score(asked: Tensor, among: Tensor) -> Tensor:
        return -torch.cdist(asked, among).square().round()

    for options in ({}, {"score": score}):
        wanted = top_links(queries, candidates, 4, **options)
        found = top_links(queries, stored, 4, **options)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    every = score(queries, candidates)
    own = every[:, 2:3]
    wanted_ranks = 1 + (every > own).sum(1) + ((every == own).sum(1) - 1) / 2
    ranks = rank_links(queries, stored, torch.full((11,), 2), score=score)
    assert ranks.tolist() == wanted_ranks.tolist()


def test_the_written_files_are_what_is_returned(tmp_path: Path) -> None:
    queries, candidates = tables(4, 23, 19)
    known = pairs(4, 23, 19, 0.3)
    told = []
    folder = write_top_links(
        tmp_path / "out" / "top", queries, candidates, 3, known=known, block_bytes=1,
        progress=lambda what, done, total: told.append((done, total)),
    )  # fmt: skip
    scores, ids = top_links(queries, candidates, 3, known=known)
    assert np.array_equal(np.load(folder / "ids.npy"), ids)
    assert np.array_equal(np.load(folder / "scores.npy"), scores)
    assert told[-1] == (23, 23)
    with pytest.raises(ArgumentError, match="exists already"):
        write_top_links(folder, queries, candidates, 3)


def test_nothing_is_left_of_what_could_not_be_written_whole(tmp_path: Path) -> None:
    queries, candidates = tables(4, 23, 19)
    candidates[17, 1] = math.nan
    with pytest.raises(DivergedError, match="NaN for query 0 and candidate 17"):
        write_top_links(tmp_path / "top", queries, candidates, 3)
    assert [*tmp_path.iterdir()] == []
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        write_top_links(tmp_path / "file" / "top", queries, candidates[:5], 3)


# Metrics -----------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.integers(0, 6), st.integers(0, 30), st.integers(1, 3))
def test_known_answers_are_those_of_the_same_question(seed, asked, known, parts) -> None:
    draw = torch.Generator().manual_seed(seed)
    questions = torch.randint(3, (parts, asked), generator=draw)
    facts = torch.randint(3, (parts + 1, known), generator=draw)
    wanted = [
        (i, int(fact[-1]))
        for i, question in enumerate(questions.t())
        for fact in facts.t()
        if torch.equal(fact[:-1], question)
    ]
    found = known_answers(questions[0] if parts == 1 else questions, facts)
    assert list(map(tuple, found.t().tolist())) == wanted


def test_ranks_among_samples_are_those_among_the_same_candidates() -> None:
    queries, candidates = tables(5, 9, 12)
    every = queries @ candidates.t()
    targets = torch.arange(9)
    others = every[~torch.nn.functional.one_hot(targets, 12).bool()].view(9, 11)
    found = rank_scores(every[range(9), targets], others)
    assert torch.equal(found, rank_links(queries, candidates, targets))


def test_metrics_of_ranks_are_their_formulas() -> None:
    found = rank_metrics(torch.tensor([1.0, 2.5, 11, 10]), k=(1, 10))
    assert found["mrr"] == pytest.approx((1 + 0.4 + 1 / 11 + 0.1) / 4)
    assert found["mean_rank"] == 24.5 / 4
    assert (found["hits@1"], found["hits@10"]) == (0.25, 0.75)
    assert math.isnan(rank_metrics(torch.empty(0))["mrr"])


def test_metrics_of_the_best_candidates_equal_scikit_learn_s_and_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from gnnsys.training import link_metrics

    monkeypatch.setattr(link_metrics, "_QUERIES", 4)
    draw = torch.Generator().manual_seed(6)
    every = torch.randn(10, 15, generator=draw)
    ids = every.argsort(1, descending=True)
    truth = torch.rand(10, 15, generator=draw) < 0.2
    truth[3] = False
    links = truth.nonzero().t()
    links = torch.cat([links, links[:, :2]], 1)[:, torch.randperm(links.shape[1] + 2)]
    some = truth.any(1)
    found = retrieval_metrics(ids[:, :5], links, k=[2, 5])
    for k in (2, 5):
        hits = truth.gather(1, ids[:, :k])[some].double()
        assert found[f"recall@{k}"] == pytest.approx(
            float((hits.sum(1) / truth[some].sum(1)).mean())
        )
        assert found[f"precision@{k}"] == pytest.approx(float(hits.mean()))
        assert found[f"hits@{k}"] == pytest.approx(float(hits.amax(1).mean()))
        first = (hits / torch.arange(1, k + 1)).amax(1)
        assert found[f"mrr@{k}"] == pytest.approx(float(first.mean()))
        precision = hits.cumsum(1) / torch.arange(1, k + 1) * hits
        average = precision.sum(1) / truth[some].sum(1).clamp(max=k)
        assert found[f"map@{k}"] == pytest.approx(float(average.mean()))
        wanted = ndcg_score(truth[some].numpy(), every[some].numpy(), k=k)
        assert found[f"ndcg@{k}"] == pytest.approx(wanted)


def test_candidates_that_are_none_are_nobody_s_targets() -> None:
    ids = torch.tensor([[1, -1], [0, -1]])
    links = torch.tensor([[0, 1], [1, 3]])
    assert retrieval_metrics(ids, links, k=[2])["recall@2"] == 0.5
    nothing = retrieval_metrics(ids, links[:, :0], k=[2])
    assert len(nothing) == 6
    assert all(map(math.isnan, nothing.values()))


def test_blocks_of_whole_tiles_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    draw = torch.Generator().manual_seed(9)
    queries, candidates = (torch.randn(count, 8, generator=draw) for count in (300, 4200))
    targets = torch.arange(300)
    found = [
        (rank_links(queries, candidates, targets, block_bytes=size),
         *top_links(queries, candidates, 3, block_bytes=size))
        for size in (1, 1 << 28)
    ]  # fmt: skip
    assert all(torch.equal(*both) for both in zip(*found, strict=True))
    torch.testing.assert_close(found[0][1], (queries @ candidates.t()).topk(3).values)


def test_what_is_made_is_made_where_the_arguments_are() -> None:
    draw = torch.Generator().manual_seed(8)
    asked, known = torch.tensor([5, 3]), torch.tensor([[3, 5, 3], [0, 1, 2]])
    positive, negative = torch.randn(2, 9, generator=draw)
    calls = [
        lambda: known_answers(asked, known).tolist(),
        lambda: rank_scores(positive, negative[:, None]).tolist(),
        lambda: link_auc(positive, negative),
    ]
    for call in calls:
        wanted = call()
        with torch.device("meta"):  # where tensors without a device would be
            assert call() == wanted


def test_the_area_is_scikit_learn_s_also_where_sigmoids_are_equal() -> None:
    draw = torch.Generator().manual_seed(7)
    positive, negative = (
        (40 + 30 * torch.randn(60, generator=draw)).round() + shift for shift in (8, 0)
    )
    truth = [1] * 60 + [0] * 60
    wanted = roc_auc_score(truth, torch.cat([positive, negative]).numpy())
    assert link_auc(positive, negative.view(6, 10)) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda q, c: rank_links(q, c, torch.ones(3).long()), ArgumentError, r"targets \(3,\)"),
        (lambda q, c: rank_links(q, c, torch.ones(2)), DTypeError, "targets: dtype torch.float32"),
        (
            lambda q, c: rank_links(q, c, torch.tensor([0, 4])),
            ArgumentError,
            r"4 is outside \[0, 4",
        ),
        (lambda q, c: top_links(q, c[:0], 1), ArgumentError, "candidates: none"),
        (lambda q, c: top_links(q, c, 1.5), ArgumentError, "k: 1.5, expected a whole number"),
        (lambda q, c: top_links(q, c, torch.tensor(True)), ArgumentError, r"k: tensor\(True\)"),
        (lambda q, c: top_links(q, c[:, :2], 1), ArgumentError, r"candidates \(4, 2\): expected"),
        (lambda q, c: top_links(q[None], c[None], 1), ArgumentError, r"queries \(1, 2, 3\)"),
        (lambda q, c: top_links(q, c.double(), 1), DTypeError, "float32 and .*float64"),
        (lambda q, c: top_links(q.int(), c.int(), 1), DTypeError, "expected floats"),
        (
            lambda q, c: top_links(q, c, 0),
            ArgumentError,
            "k: 0, expected a whole number from 1 on",
        ),
        (lambda q, c: top_links(q[0], c, 1), ArgumentError, r"queries \(3,\)"),
        (lambda q, c: top_links(q, c, 1, block_bytes=0), ArgumentError, "block_bytes: 0"),
        (
            lambda q, c: top_links(q, c, 1, known=torch.tensor([[2], [0]])),
            ArgumentError,
            r"known, queries: 2 is outside \[0, 2\)",
        ),
        (lambda q, c: top_links(q, c, 1, known=torch.ones(3, 1)), ArgumentError, r"known \(3, 1\)"),
        (
            lambda q, c: top_links(q, c, 1, score=lambda a, b: a),
            ArgumentError,
            r"score: gave \(2, 3\) torch.float32 for 2 queries and 4 candidates",
        ),
        (lambda q, c: rank_scores(q[0], c), ArgumentError, r"positive \(3,\)"),
        (lambda q, c: rank_metrics(torch.tensor([0.5])), ArgumentError, "ranks: 0.5"),
        (lambda q, c: rank_metrics(torch.ones(1), k=[0]), ArgumentError, "k: 0"),
        (lambda q, c: link_auc(q, c[:0]), ArgumentError, "negative: no scores"),
        (lambda q, c: link_auc(q, c * math.nan), DivergedError, "negative: a score is NaN"),
        (
            lambda q, c: retrieval_metrics(torch.ones(2, 3).long(), torch.ones(2, 1).long(), [4]),
            ArgumentError,
            r"at least k\(4\)",
        ),
        (
            lambda q, c: retrieval_metrics(torch.ones(2, 3).long(), torch.full((2, 1), 2), [1]),
            ArgumentError,
            r"links, sources: 2 is outside \[0, 2\)",
        ),
        (lambda q, c: retrieval_metrics(q, torch.ones(2, 1).long(), [1]), DTypeError, "ids: dtype"),
        (
            lambda q, c: retrieval_metrics(q.cumsum(1).long(), torch.ones(2, 1), [1]),
            DTypeError,
            "links, sources: dtype",
        ),
        (
            lambda q, c: retrieval_metrics(q.long(), torch.ones(2, 1).long(), [1]),
            ArgumentError,
            "ids: 1 is twice among the candidates of source 0",
        ),
        (lambda q, c: known_answers(q[0], torch.ones(3, 1)), ArgumentError, r"asked \(1, 3\)"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(call: Any, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        call(torch.ones(2, 3), torch.ones(4, 3))

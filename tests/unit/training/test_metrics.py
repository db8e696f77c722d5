"""Losses and scores against scikit-learn and formulas written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics

from gnnsys.errors import ArgumentError
from gnnsys.training.metrics import check_metric, loss_of, measure

DRAW = torch.Generator().manual_seed(3)


def one(metric: str, out: torch.Tensor, labels: torch.Tensor) -> float:
    """Of logits in blocks, together with the others, as of all of them alone."""
    whole = measure([metric], [out], labels)[metric]
    names = ["accuracy", "f1", metric]
    assert measure(names, out.split(17), labels)[metric] == pytest.approx(whole, nan_ok=True)
    nodes = torch.randperm(len(labels), generator=DRAW)[: len(labels) // 2]
    of_some = measure([metric], [out[nodes]], labels[nodes])[metric]
    blocks = out[nodes].split(17)
    assert measure([metric], blocks, labels, nodes)[metric] == pytest.approx(of_some, nan_ok=True)
    return whole


def test_scores_of_one_label_equal_scikit_learn() -> None:
    out = torch.randn(200, 5, generator=DRAW)
    labels = torch.randint(5, (200,), generator=DRAW)
    predicted = out.argmax(1)
    expected = metrics.accuracy_score(labels, predicted)
    assert one("accuracy", out, labels) == pytest.approx(expected)
    expected = metrics.f1_score(labels, predicted, average="macro")
    assert one("f1", out, labels) == pytest.approx(expected)


def test_rocauc_of_two_classes_equals_scikit_learn() -> None:
    out = torch.randn(200, 2, generator=DRAW)
    labels = torch.randint(2, (200,), generator=DRAW)
    expected = metrics.roc_auc_score(labels, out.softmax(1)[:, 1])
    assert one("rocauc", out, labels) == pytest.approx(expected)


def test_unknown_labels_count_in_no_score() -> None:
    out = torch.randn(50, 4, generator=DRAW)
    labels = torch.randint(4, (50,), generator=DRAW)
    known = labels.clone()
    known[::3] = -1
    kept = known >= 0
    for name in ("accuracy", "f1"):
        assert one(name, out, known) == one(name, out[kept], labels[kept])
    assert np.isnan(one("accuracy", out[:0], labels[:0]))


def test_scores_of_several_labels_equal_scikit_learn_where_they_are_known() -> None:
    out = torch.randn(300, 4, generator=DRAW)
    labels = torch.randint(2, (300, 4), generator=DRAW).float()
    labels[torch.rand(300, 4, generator=DRAW) < 0.2] = torch.nan
    labels[:, 3] = 1  # one class alone: no ROC curve
    known = ~labels.isnan()
    truth, predicted = labels[known].int().numpy(), (out > 0).int()[known].numpy()
    assert one("accuracy", out, labels) == pytest.approx((truth == predicted).mean())
    assert one("f1", out, labels) == pytest.approx(metrics.f1_score(truth, predicted))
    by_label = [
        metrics.roc_auc_score(labels[known[:, k], k], out[known[:, k], k]) for k in range(3)
    ]
    assert one("rocauc", out, labels) == pytest.approx(np.mean(by_label))


def test_loss_of_several_labels_is_the_mean_over_known_ones() -> None:
    out = torch.randn(20, 3, generator=DRAW, dtype=torch.float64)
    labels = torch.randint(2, (20, 3), generator=DRAW).double()
    labels[4, 1] = torch.nan
    chance = out.sigmoid()
    each = -(labels * chance.log() + (1 - labels) * (1 - chance).log())
    assert loss_of(out, labels) == pytest.approx(float(each[~each.isnan()].mean()))


def test_rocauc_needs_two_classes_or_several_labels() -> None:
    check_metric("rocauc", 2, False, "d")
    check_metric("rocauc", 7, True, "d")
    with pytest.raises(ArgumentError, match=r"--metric rocauc: d has 7 classes, expected 2"):
        check_metric("rocauc", 7, False, "d")

"""Losses and scores against scikit-learn and formulas written out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics
from sklearn.utils.class_weight import compute_class_weight

from gnnsys.choices import METRICS
from gnnsys.config.optimisation import OptimisationOptions
from gnnsys.errors import ArgumentError
from gnnsys.training.metrics import (
    check_metric,
    is_better,
    loss_of,
    make_loss,
    measure,
    reported_metrics,
)

DRAW = torch.Generator().manual_seed(3)


def one(metric: str, out: torch.Tensor, labels: torch.Tensor) -> float:
    """Of logits in blocks, together with the others, as of all of them alone."""
    whole = measure([metric], [out], labels)[metric]
    names = [metric, *reported_metrics(metric, labels)]
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
    expected = metrics.precision_score(labels, predicted, average="macro")
    assert one("precision", out, labels) == pytest.approx(expected)
    assert one("recall", out, labels) == pytest.approx(
        metrics.balanced_accuracy_score(labels, predicted)
    )
    assert one("mcc", out, labels) == pytest.approx(metrics.matthews_corrcoef(labels, predicted))
    assert one("loss", out, labels) == pytest.approx(metrics.log_loss(labels, out.softmax(1)))


def test_areas_under_curves_of_two_classes_equal_scikit_learn() -> None:
    out = torch.randn(200, 2, generator=DRAW)
    labels = torch.randint(2, (200,), generator=DRAW)
    chance = out.softmax(1)[:, 1]
    assert one("rocauc", out, labels) == pytest.approx(metrics.roc_auc_score(labels, chance))
    assert one("ap", out, labels) == pytest.approx(metrics.average_precision_score(labels, chance))


@pytest.mark.parametrize("metric", ["rocauc", "ap"])
def test_areas_tell_confident_outputs_apart(metric: str) -> None:
    margin = torch.tensor([20.0, 30.0, 25.0, 40.0, -200.0, -100.0, 25.0])
    labels = torch.tensor([0, 0, 1, 1, 0, 1, 0])
    of_sklearn = {"rocauc": metrics.roc_auc_score, "ap": metrics.average_precision_score}[metric]
    expected = pytest.approx(of_sklearn(labels, margin))
    assert (
        measure([metric], [torch.stack([-margin / 2, margin / 2], 1)], labels)[metric] == expected
    )
    assert measure([metric], [margin[:, None]], labels[:, None].float())[metric] == expected


def test_scores_of_numbers_equal_scikit_learn_where_they_are_known() -> None:
    labels = 1e4 + torch.randn(300, generator=DRAW)  # far from 0, where float32 sums lose much
    out = (labels + torch.randn(300, generator=DRAW))[:, None]
    labels[::7] = torch.nan
    known = ~labels.isnan()
    truth, guess = labels[known].double().numpy(), out[known, 0].double().numpy()
    expected = {
        "rmse": metrics.root_mean_squared_error(truth, guess),
        "mae": metrics.mean_absolute_error(truth, guess),
        "r2": metrics.r2_score(truth, guess),
    }
    assert expected.keys() == {*METRICS["values"]}
    for name, value in expected.items():
        assert one(name, out, labels) == pytest.approx(value, rel=1e-6)
    lone = torch.tensor([2.0])
    assert np.isnan(measure(["r2"], [lone[:, None]], lone)["r2"])
    assert np.isnan(measure(["mae"], [lone[:, None]], lone * torch.nan)["mae"])


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
    expected = metrics.precision_score(truth, predicted)
    assert one("precision", out, labels) == pytest.approx(expected)
    assert one("recall", out, labels) == pytest.approx(metrics.recall_score(truth, predicted))
    expected = metrics.log_loss(truth, out[known].sigmoid().double())
    assert one("loss", out, labels) == pytest.approx(expected)
    by_label = [
        metrics.roc_auc_score(labels[known[:, k], k], out[known[:, k], k]) for k in range(3)
    ]
    assert one("rocauc", out, labels) == pytest.approx(np.mean(by_label))
    by_label = [
        metrics.average_precision_score(labels[known[:, k], k], out[known[:, k], k])
        for k in range(3)
    ]
    assert one("ap", out, labels) == pytest.approx(np.mean(by_label))


def test_loss_of_several_labels_is_the_mean_over_known_ones() -> None:
    out = torch.randn(20, 3, generator=DRAW, dtype=torch.float64)
    labels = torch.randint(2, (20, 3), generator=DRAW).double()
    labels[4, 1] = torch.nan
    chance = out.sigmoid()
    each = -(labels * chance.log() + (1 - labels) * (1 - chance).log())
    assert loss_of(out, labels) == pytest.approx(float(each[~each.isnan()].mean()))


def test_metrics_fit_the_labels() -> None:
    classes, labels, values = torch.tensor([0, 6]), torch.zeros(2, 7), torch.zeros(2)
    check_metric("rocauc", torch.tensor([0, 1]), 2, "d")
    check_metric("rocauc", labels, 7, "d")
    check_metric("r2", values, 1, "d")
    with pytest.raises(ArgumentError, match=r"--metric rocauc: d has 7 classes, expected 2"):
        check_metric("rocauc", classes, 7, "d")
    with pytest.raises(ArgumentError, match=r"--metric rmse: the nodes of d have a class each"):
        check_metric("rmse", classes, 7, "d")
    with pytest.raises(ArgumentError, match=r"a number each; expected one of rmse, mae, r2"):
        check_metric("accuracy", values, 1, "d")
    assert is_better("loss", 0.1, None)
    assert not is_better("loss", 0.2, 0.1)
    assert not is_better("accuracy", float("nan"), 0.1)
    assert is_better("accuracy", 0.1, float("nan"))
    assert is_better("loss", 0.1, float("nan"))
    assert not is_better("loss", float("nan"), float("nan"))


# In a process without memory that was freed before and is taken again. The peak begins anew.
AREAS = """
    import sys
    from pathlib import Path
    import torch
    from gnnsys.config.train import TrainConfig
    from gnnsys.dataset.format import Task
    from gnnsys.system.budget import resident_memory
    from gnnsys.training.batch_memory import answer_bytes
    from gnnsys.training.metrics import measure

    nodes, labels = 1 << 20, int(sys.argv[1])
    several = labels > 1
    truth = torch.randint(2, (nodes, labels))
    truth = truth.float() if several else truth[:, 0]
    out = torch.randn(1 << 13, labels if several else 2)
    task = Task(node_type="node", num_classes=labels if several else 2, multi_label=several)
    planned = nodes * answer_bytes(TrainConfig(dataset="demo", metric="rocauc"), task)
    measure(["rocauc"], [out], truth[: 1 << 13])
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_memory().peak
    measure(["rocauc"], (out for _ in range(nodes >> 13)), truth)
    print((resident_memory().peak - before) / planned)
"""


@pytest.mark.parametrize("labels", [1, 3])
def test_areas_take_what_is_planned_for_them(
    run_forked: Callable[..., Any], tmp_path: Path, labels: int
) -> None:
    done = run_forked(AREAS, tmp_path, labels)
    assert done.returncode == 0, done.stderr
    assert 0.5 < float(done.stdout) < 1.1


def test_all_metrics_are_of_all_labels_of_their_kind() -> None:
    samples = {
        "classes": (torch.randn(9, 2), torch.arange(9) % 2),
        "labels": (torch.randn(9, 2), (torch.arange(18).view(9, 2) % 4 > 1).float()),
        "values": (torch.randn(9, 1), torch.randn(9)),
    }
    assert samples.keys() == METRICS.keys() - {"links"}
    for kind, (out, labels) in samples.items():
        found = measure(METRICS[kind], [out], labels)
        assert [*found] == [*METRICS[kind]]
        assert np.isfinite([*found.values()]).all()


# Losses ------------------------------------------------------------------------------------------


def loss_with(labels: torch.Tensor, classes: int, train: torch.Tensor, **options: Any) -> Any:
    return make_loss(OptimisationOptions(**options), labels, train, classes)


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    labels = torch.tensor([0] * 20 + [1] * 5 + [3] * 15 + [2] * 40)  # none of class 2 is trained on
    train = torch.arange(40)
    out = torch.randn(40, 4, generator=DRAW)
    weights = torch.zeros(4)
    present = np.array([0, 1, 3])
    known = compute_class_weight("balanced", classes=present, y=labels[train].numpy())
    weights[present] = torch.from_numpy(known).float()
    loss = loss_with(labels, 4, train, class_weights="balanced")
    expected = F.cross_entropy(out, labels[train], weights)
    torch.testing.assert_close(loss(out, labels[train]), expected)
    # The means of equal batches have it as their mean: none is divided by its own weights.
    batches = [loss(out[some], labels[some]) for some in train[torch.randperm(40)].split(8)]
    torch.testing.assert_close(torch.stack(batches).mean(), expected)


def test_weights_may_be_given_in_any_unit() -> None:
    labels = torch.randint(3, (30,), generator=DRAW)
    out, train = torch.randn(30, 3, generator=DRAW), torch.arange(30)
    expected = F.cross_entropy(out, labels, torch.tensor([1.0, 2.0, 0.5]))
    for text in ("1,2,0.5", "10 20 5"):
        loss = loss_with(labels, 3, train, class_weights=text)
        torch.testing.assert_close(loss(out, labels), expected)


@pytest.mark.parametrize("text", ["balanced", "3,1,0.5"])
def test_weights_of_several_labels_are_those_of_the_ones_that_are_there(text: str) -> None:
    labels = (torch.rand(60, 3, generator=DRAW) < 0.3).float()
    out, train = torch.randn(60, 3, generator=DRAW), torch.arange(40)
    trained = labels[train]
    weights = (1 - trained).sum(0) / trained.sum(0)
    weights = weights if text == "balanced" else torch.tensor([3.0, 1.0, 0.5])
    loss = loss_with(labels, 3, train, class_weights=text)
    torch.testing.assert_close(
        loss(out, labels), F.binary_cross_entropy_with_logits(out, labels, pos_weight=weights)
    )
    gap = labels.clone()
    gap[5] = torch.nan
    kept = torch.arange(60) != 5
    torch.testing.assert_close(loss(out, gap), loss(out[kept], labels[kept]))


def test_losses_of_numbers_are_torchs() -> None:
    labels, out = torch.randn(20, generator=DRAW) * 3, torch.randn(20, 1, generator=DRAW)
    train = torch.arange(20)
    kinds = {None: F.mse_loss, "mse": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}
    for name, expected in kinds.items():
        loss = loss_with(labels, 1, train, loss=name)
        assert torch.equal(loss(out, labels), expected(out[:, 0], labels))


def test_losses_that_do_not_fit_the_labels_are_refused() -> None:
    classes, values, train = torch.tensor([0, 1, 2]), torch.zeros(3), torch.arange(3)
    with pytest.raises(ArgumentError, match=r"--loss l1: is of a regression"):
        loss_with(classes, 3, train, loss="l1")
    with pytest.raises(ArgumentError, match=r"--class-weights 1,2: 2 numbers, .* of 3 classes"):
        loss_with(classes, 3, train, class_weights="1,2")
    with pytest.raises(ArgumentError, match=r"classes of weight 0"):
        loss_with(classes, 4, train, class_weights="0,0,0,1")
    with pytest.raises(ArgumentError, match=r"--class-weights balanced: the labels are numbers"):
        loss_with(values, 1, train, class_weights="balanced")

"""Losses and metrics of nodes: of one class each, of several labels each, or of a number each.

Owns what tells the three apart: labels are (nodes,) int64 classes, -1 where unknown; (nodes,
labels) float32 of 0 and 1, NaN where unknown; or (nodes,) float32 numbers, NaN where unknown.

torchmetrics, which takes seconds to import, is imported by the metrics that need it: a training run
that is judged by accuracy does without.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gnnsys.choices import LOWER_IS_BETTER, METRICS
from gnnsys.config.optimisation import OptimisationOptions, parse_class_weights
from gnnsys.errors import ArgumentError
from gnnsys.system.once import warn_once

__all__ = [
    "Kind",
    "Loss",
    "are_known",
    "check_metric",
    "is_better",
    "kind_of",
    "loss_of",
    "make_loss",
    "measure",
    "reported_metrics",
    "warn_of_nan",
]

_log = logging.getLogger(__name__)

Loss = Callable[[Tensor, Tensor], Tensor]
"""The mean loss of outputs (nodes, outputs) and the labels of these nodes."""

Kind = Literal["classes", "labels", "values"]
"""One class a node, several labels a node, or a number a node."""

_IGNORED = -1  # torchmetrics' mark for an unknown label
_RANKING = ("rocauc", "ap")
"""Metrics that need all scores at once."""


def kind_of(labels: Tensor) -> Kind:
    """What labels are, by their type and shape."""
    if labels.dim() == 2:
        return "labels"
    return "values" if labels.is_floating_point() else "classes"


def are_known(labels: Tensor) -> Tensor:
    """Which labels are known, of the same shape.

    >>> are_known(torch.tensor([2, -1])), are_known(torch.tensor([0.5, torch.nan]))
    (tensor([ True, False]), tensor([ True, False]))
    """
    return labels >= 0 if kind_of(labels) == "classes" else ~labels.isnan()


# Losses ------------------------------------------------------------------------------------------


def loss_of(out: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy; with several labels a node, that of each label, unknown (NaN) left out;
    of numbers, the mean squared difference.

    Args:
        out: (nodes, classes) logits, or (nodes, 1) numbers.
        labels: as the module says.
    """
    kind = kind_of(labels)
    if kind == "classes":
        return F.cross_entropy(out, labels)
    if kind == "values":
        return F.mse_loss(out[:, 0], labels)
    known = ~labels.isnan()
    return F.binary_cross_entropy_with_logits(out[known], labels[known])


def make_loss(
    options: OptimisationOptions, labels: Tensor, train: Tensor, num_classes: int
) -> Loss:
    """The loss that a run minimises.

    With class weights w, that of n nodes of the classes c is the sum of w[c] times their cross
    entropies over n, where the weights are scaled to a mean of 1 over the training nodes: so it is
    torch's weighted mean over all of these, and a mini-batch's is an unbiased estimate of it.
    Balanced weights are n / (classes * n_c), as scikit-learn has them; of several labels a node,
    those that are not there over those that are, as ``pos_weight`` of
    ``torch.nn.BCEWithLogitsLoss``.

    Args:
        options: ``loss`` and ``class_weights``.
        labels: of all nodes.
        train: (n,) ids of the training nodes.
        num_classes: or labels of a node.

    Raises:
        ArgumentError: options that do not fit the labels.

    >>> out, labels, train = torch.zeros(2, 2), torch.tensor([0, 1]), torch.tensor([0, 1])
    >>> loss = make_loss(OptimisationOptions(class_weights="1,3"), labels, train, 2)
    >>> float(loss(out[1:], labels[1:]) / loss_of(out[1:], labels[1:]))
    1.5
    """
    kind = kind_of(labels)
    if kind == "values":
        if options.class_weights is not None:
            raise ArgumentError(
                f"--class-weights {options.class_weights}: the labels are numbers, not classes; "
                "leave it out"
            )
        known: dict[str, Loss] = {"mse": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}
        differ = known[options.loss or "mse"]
        return lambda out, truth: differ(out[:, 0], truth)
    if options.loss is not None:
        raise ArgumentError(
            f"--loss {options.loss}: is of a regression, but the labels are classes; leave it out, "
            "or convert the dataset with --regression"
        )
    if options.class_weights is None:
        return loss_of
    given = parse_class_weights(options.class_weights)
    if given is not None and len(given) != num_classes:
        raise ArgumentError(
            f"--class-weights {options.class_weights}: {len(given)} numbers, expected one for each "
            f"of {num_classes} classes"
        )
    make = _weighted_labels if kind == "labels" else _weighted_classes
    return make(None if given is None else torch.tensor(given), labels[train], num_classes)


def _weighted_classes(given: Tensor | None, truth: Tensor, num_classes: int) -> Loss:
    counts = torch.bincount(truth, minlength=num_classes).double()
    # A class that no training node has counts nothing.
    weights = torch.where(counts > 0, 1 / counts, 0.0) if given is None else given.double()
    mean = float((weights * counts).sum() / counts.sum())
    if mean == 0:
        raise ArgumentError("--class-weights: all training nodes have classes of weight 0")
    weights = weights / mean

    def loss(out: Tensor, labels: Tensor) -> Tensor:
        total = F.cross_entropy(out, labels, weights.to(out), reduction="sum")
        return total / len(labels)

    return loss


def _weighted_labels(given: Tensor | None, truth: Tensor, num_classes: int) -> Loss:
    there, absent = ((truth == value).sum(0).double() for value in (1, 0))
    # A label that no training node has is weighted as one that has none to make up for.
    weights = torch.where(there > 0, absent / there, 1.0) if given is None else given

    def loss(out: Tensor, labels: Tensor) -> Tensor:
        known = ~labels.isnan()
        of_labels = weights.to(out).expand_as(out)[known]
        return F.binary_cross_entropy_with_logits(out[known], labels[known], pos_weight=of_labels)

    return loss


# Metrics -----------------------------------------------------------------------------------------


def check_metric(metric: str, labels: Tensor, num_classes: int, dataset: str) -> None:
    """Raises ArgumentError for a metric that does not fit the labels."""
    kind = kind_of(labels)
    if metric not in METRICS[kind]:
        told = {"classes": "a class", "labels": "several labels", "values": "a number"}[kind]
        raise ArgumentError(
            f"--metric {metric}: the nodes of {dataset} have {told} each; expected one of "
            f"{', '.join(METRICS[kind])}"
        )
    if metric in _RANKING and kind == "classes" and num_classes != 2:
        raise ArgumentError(
            f"--metric {metric}: {dataset} has {num_classes} classes, expected 2, or several "
            "labels a node; use --metric accuracy or f1"
        )


def is_better(metric: str, value: float, than: float | None) -> bool:
    """Whether a score is better than another, or the first; a number is better than NaN.

    >>> is_better("rmse", 0.5, 0.6), is_better("accuracy", 0.5, 0.6)
    (True, False)
    >>> is_better("rmse", 0.5, float("nan")), is_better("rmse", float("nan"), 0.5)
    (True, False)
    """
    if than is None:
        return True
    if math.isnan(than):
        return not math.isnan(value)
    return value < than if metric in LOWER_IS_BETTER else value > than


def warn_of_nan(metric: str, score: float) -> None:
    """Warns once where the score that a run is judged by is not a number."""
    if math.isnan(score):
        warn_once(
            _log, "--metric %s: is NaN on the validation nodes or links, as where all labels are "
            "one class, or all candidates that were drawn are known links; epochs of which it is a "
            "number are taken as better; give another --metric, or more to validate on", metric
        )  # fmt: skip


def reported_metrics(metric: str, labels: Tensor) -> list[str]:
    """Those that a run tells, which is judged by ``metric``: that of all labels of the kind, too.

    >>> reported_metrics("f1", torch.tensor([1, 0])), reported_metrics("mae", torch.tensor([0.5]))
    (['accuracy', 'f1'], ['rmse', 'mae', 'r2'])
    """
    first = METRICS["values"] if kind_of(labels) == "values" else ("accuracy",)
    return [*dict.fromkeys((*first, metric))]


def measure(
    metrics: Iterable[str], logits: Iterable[Tensor], labels: Tensor, nodes: Tensor | None = None
) -> dict[str, float]:
    """Metrics against the labels that are known; NaN where none is.

    With one class a node: accuracy; rocauc and ap (average precision) of the second of two classes;
    f1, precision and recall averaged over classes (macro; such a recall is also called balanced
    accuracy); mcc, Matthews' correlation; loss, the mean cross entropy. With several labels: the
    share of labels that are right; rocauc and ap averaged over labels, as the Open Graph Benchmark
    does; f1, precision and recall of all labels together (micro); loss of all labels. With numbers:
    mae and rmse, in the unit of the labels, and r2, the share of their variance that is explained.

    Args:
        metrics: of ``gnnsys.choices.METRICS`` for labels of this kind.
        logits: of all nodes, (n, classes) or (n, 1) a block. One is held at a time: of each is kept
            what the metrics need; rocauc and ap all scores, the others counts and sums.
        labels: as the module says.
        nodes: (n,) ids of those that have logits, into the labels; None for all, in their order.

    >>> measure(["accuracy"], [torch.eye(2), torch.eye(2)], torch.tensor([0, 1, 1, -1]))
    {'accuracy': 0.6666666666666666}
    """
    names, kind, end, count = [*metrics], kind_of(labels), 0, 0
    meters: dict[str, _Meter] = {}
    for block in logits:
        begin, end = end, end + len(block)
        truth = labels[begin:end] if nodes is None else labels[nodes[begin:end]]
        if not meters:
            total = len(labels) if nodes is None else len(nodes)
            meters = {name: _make_meter(name, kind, block.shape[1], total) for name in names}
        known = are_known(truth)
        count += int(known.sum())
        if kind != "labels":
            block, truth = block[known], truth[known]
        for meter in meters.values():
            meter.update(block, truth)
    if count == 0:
        return dict.fromkeys(names, float("nan"))
    return {name: float(meter.compute()) for name, meter in meters.items()}


class _Meter(Protocol):
    """Sees block after block of outputs and labels; of classes and numbers, known ones alone."""

    def update(self, out: Tensor, truth: Tensor) -> None: ...

    def compute(self) -> float | Tensor: ...


def _make_meter(name: str, kind: Kind, classes: int, rows: int) -> _Meter:
    if name == "loss":
        return _MeanLoss()
    if name in _RANKING:
        return _Ranking(name, torch.empty((rows,) if kind == "classes" else (rows, classes)))
    if (name, kind) == ("accuracy", "classes"):
        return _Accuracy()
    return _Counts(name, kind, classes)


class _Accuracy:
    """Of one class a node."""

    def __init__(self) -> None:
        self._right = self._count = 0

    def update(self, out: Tensor, truth: Tensor) -> None:
        self._right += int((out.argmax(1) == truth).sum())
        self._count += len(truth)

    def compute(self) -> float:
        return self._right / self._count


class _MeanLoss:
    """Over all known labels."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def update(self, out: Tensor, truth: Tensor) -> None:
        count = len(truth) if truth.dim() == 1 else int((~truth.isnan()).sum())
        if count:
            self._sum += float(loss_of(out.double(), truth.to(_wide(truth)))) * count
            self._count += count

    def compute(self) -> float:
        return self._sum / self._count


def _wide(truth: Tensor) -> torch.dtype:
    return torch.float64 if truth.is_floating_point() else truth.dtype


class _Ranking:
    """Area under a curve over all thresholds, which takes all scores.

    Args:
        name: rocauc or ap.
        scores: (nodes,) or (nodes, labels) room for them.
    """

    def __init__(self, name: str, scores: Tensor) -> None:
        self._name, self._scores, self._end = name, scores, 0
        self._truth = torch.empty(scores.shape, dtype=torch.float32)

    def update(self, out: Tensor, truth: Tensor) -> None:
        begin, self._end = self._end, self._end + len(out)
        single = self._scores.dim() == 1
        self._scores[begin : self._end] = out[:, 1] - out[:, 0] if single else out
        self._truth[begin : self._end] = truth

    def compute(self) -> float:
        from torchmetrics.functional.classification import binary_auroc, binary_average_precision

        area = binary_auroc if self._name == "rocauc" else binary_average_precision
        scores, truth = self._scores[: self._end], self._truth[: self._end]
        if scores.dim() == 1:
            return float(area(_ranks(scores), truth.int()))
        found = []
        for column in range(truth.shape[1]):
            known = ~truth[:, column].isnan()
            labels = truth[known, column].int()
            if 0 < labels.sum() < len(labels):  # one class alone has no curve
                found.append(area(_ranks(scores[known, column]), labels))
        return float(torch.stack(found).mean()) if found else float("nan")


def _ranks(scores: Tensor) -> Tensor:
    """Numbers from 0 and below 1 in the order of scores, which torchmetrics takes as they are.

    Of logits it would make probabilities, which are equal for all that are large.
    """
    places: Tensor = scores.unique(return_inverse=True)[1]
    return places.double() / len(places)


class _Counts:
    """A metric of torchmetrics that keeps counts or sums."""

    def __init__(self, name: str, kind: Kind, classes: int) -> None:
        from torchmetrics import classification, regression

        self._name, self._kind, self._count = name, kind, 0
        of_classes: dict[str, Any] = {"num_classes": classes, "validate_args": False}
        of_labels: dict[str, Any] = {
            "num_labels": classes, "average": "micro", "ignore_index": _IGNORED,
            "validate_args": False,
        }  # fmt: skip
        macro = {**of_classes, "average": "macro"}
        known: dict[tuple[str, Kind], Callable[[], Any]] = {
            ("f1", "classes"): lambda: classification.MulticlassF1Score(**macro),
            ("precision", "classes"): lambda: classification.MulticlassPrecision(**macro),
            ("recall", "classes"): lambda: classification.MulticlassRecall(**macro),
            ("mcc", "classes"): lambda: classification.MulticlassMatthewsCorrCoef(**of_classes),
            ("accuracy", "labels"): lambda: classification.MultilabelAccuracy(**of_labels),
            ("f1", "labels"): lambda: classification.MultilabelF1Score(**of_labels),
            ("precision", "labels"): lambda: classification.MultilabelPrecision(**of_labels),
            ("recall", "labels"): lambda: classification.MultilabelRecall(**of_labels),
            ("mae", "values"): lambda: regression.MeanAbsoluteError(),
            ("rmse", "values"): lambda: regression.MeanSquaredError(squared=False),
            ("r2", "values"): lambda: regression.R2Score(),
        }
        self._metric = known[name, kind]()
        if kind == "values":
            self._metric.set_dtype(torch.float64)

    def update(self, out: Tensor, truth: Tensor) -> None:
        if len(truth) == 0:
            return
        self._count += len(truth)
        if self._kind == "values":
            self._metric.update(out[:, 0].double(), truth.double())
        elif self._kind == "classes":
            self._metric.update(out.argmax(1), truth)
        else:
            self._metric.update((out > 0).int(), truth.nan_to_num(_IGNORED).int())

    def compute(self) -> float:
        if self._name == "r2" and self._count < 2:  # no variance
            return float("nan")
        return float(self._metric.compute())

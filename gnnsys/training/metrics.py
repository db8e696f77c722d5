"""Losses and metrics of node classification, with one or with several labels a node.

torchmetrics, which takes seconds to import, is imported by the metrics that need it: a training run
that is judged by accuracy does without.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gnnsys.errors import ArgumentError

__all__ = ["METRICS", "check_metric", "loss_of", "measure"]

_IGNORED = -1  # torchmetrics' mark for an unknown label


def loss_of(out: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy; with several labels a node, that of each label, unknown (NaN) left out.

    Args:
        out: (nodes, classes) logits.
        labels: (nodes,) int64, or (nodes, classes) float32.
    """
    if labels.dim() == 1:
        return F.cross_entropy(out, labels)
    known = ~labels.isnan()
    return F.binary_cross_entropy_with_logits(out[known], labels[known])


def measure(metric: str, out: Tensor, labels: Tensor) -> float:
    """A metric in [0, 1] of logits against the labels that are known; see ``METRICS``."""
    if labels.dim() == 1 and len(labels) and int(labels.min()) < 0:
        known = labels >= 0
        out, labels = out[known], labels[known]
    return METRICS[metric](out, labels) if len(labels) else float("nan")


def check_metric(metric: str, num_classes: int, multi_label: bool, dataset: str) -> None:
    """Raises ArgumentError for a metric that does not fit the labels."""
    if metric == "rocauc" and not multi_label and num_classes != 2:
        raise ArgumentError(
            f"--metric rocauc: {dataset} has {num_classes} classes, expected 2, or several labels "
            "a node; use --metric accuracy or f1"
        )


def _accuracy(out: Tensor, labels: Tensor) -> float:
    if labels.dim() == 1:
        return float((out.argmax(1) == labels).float().mean())
    from torchmetrics.functional.classification import multilabel_accuracy

    predicted, known = (out > 0).int(), labels.nan_to_num(_IGNORED).int()
    return float(
        multilabel_accuracy(predicted, known, out.shape[1], average="micro", ignore_index=_IGNORED)
    )


def _rocauc(out: Tensor, labels: Tensor) -> float:
    from torchmetrics.functional.classification import binary_auroc

    if labels.dim() == 1:
        return float(binary_auroc(out.softmax(dim=1)[:, 1], labels))
    found = []
    for column in range(labels.shape[1]):
        known = ~labels[:, column].isnan()
        truth = labels[known, column].int()
        if 0 < truth.sum() < len(truth):  # one class alone has no ROC curve
            found.append(binary_auroc(out[known, column], truth))
    return float(torch.stack(found).mean()) if found else float("nan")


def _f1(out: Tensor, labels: Tensor) -> float:
    from torchmetrics.functional.classification import multiclass_f1_score, multilabel_f1_score

    if labels.dim() == 1:
        return float(multiclass_f1_score(out, labels, out.shape[1], average="macro"))
    predicted, known = (out > 0).int(), labels.nan_to_num(_IGNORED).int()
    return float(
        multilabel_f1_score(predicted, known, out.shape[1], average="micro", ignore_index=_IGNORED)
    )


METRICS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "accuracy": _accuracy,
    "rocauc": _rocauc,
    "f1": _f1,
}
"""By name. With one label a node: accuracy; rocauc of the second of two classes; f1 averaged over
classes (macro). With several: the share of labels that are right; rocauc averaged over labels, as
the Open Graph Benchmark does; f1 of all labels together (micro)."""

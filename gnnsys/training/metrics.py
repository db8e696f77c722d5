"""Losses and metrics of node classification, with one or with several labels a node.

torchmetrics, which takes seconds to import, is imported by the metrics that need it: a training run
that is judged by accuracy does without.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from gnnsys.errors import ArgumentError

__all__ = ["check_metric", "loss_of", "measure"]

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


def measure(
    metrics: Iterable[str], logits: Iterable[Tensor], labels: Tensor, nodes: Tensor | None = None
) -> dict[str, float]:
    """Metrics in [0, 1] against the labels that are known; NaN where none is.

    With one label a node: accuracy; rocauc of the second of two classes; f1 averaged over classes
    (macro). With several: the share of labels that are right; rocauc averaged over labels, as the
    Open Graph Benchmark does; f1 of all labels together (micro).

    Args:
        metrics: of accuracy, rocauc and f1.
        logits: of all nodes, (n, classes) a block. One is held at a time: of each is kept what the
            metrics need; the accuracy of single labels only counts.
        labels: (nodes,) int64, -1 where unknown; or (nodes, classes) float32, NaN where unknown.
        nodes: (n,) ids of those that have logits, into the labels; None for all, in their order.

    >>> measure(["accuracy"], [torch.eye(2), torch.eye(2)], torch.tensor([0, 1, 1, -1]))
    {'accuracy': 0.6666666666666666}
    """
    names, single = [*metrics], labels.dim() == 1
    predicted = ranked = None
    if nodes is not None and not (single and names == ["accuracy"]):
        labels, nodes = labels[nodes], None
    if not single:
        predicted = torch.empty(labels.shape, dtype=torch.bool)
    elif "f1" in names:
        predicted = torch.empty(labels.shape, dtype=torch.int64)
    if "rocauc" in names:
        ranked = torch.empty(labels.shape)
    classes = end = right = count = 0
    for block in logits:
        begin, end, classes = end, end + len(block), block.shape[1]
        answers = block.argmax(1) if single else block > 0
        if single:
            truth = labels[begin:end] if nodes is None else labels[nodes[begin:end]]
            right += int((answers == truth).sum())
            count += int((truth >= 0).sum())
        if predicted is not None:
            predicted[begin:end] = answers
        if ranked is not None:
            ranked[begin:end] = block.softmax(1)[:, 1] if single else block
    if not single:
        count = int((~labels.isnan()).sum())
    if count == 0:
        return dict.fromkeys(names, float("nan"))
    if single and (predicted is not None or ranked is not None):
        known = labels >= 0
        labels = labels[known]
        predicted = None if predicted is None else predicted[known]
        ranked = None if ranked is None else ranked[known]
    found = {}
    for name in names:
        if name == "rocauc":
            assert ranked is not None
            found[name] = _rocauc(ranked, labels)
        elif name == "accuracy" and single:
            found[name] = right / count
        else:
            assert predicted is not None
            found[name] = (_f1 if name == "f1" else _label_accuracy)(predicted, labels, classes)
    return found


def check_metric(metric: str, num_classes: int, multi_label: bool, dataset: str) -> None:
    """Raises ArgumentError for a metric that does not fit the labels."""
    if metric == "rocauc" and not multi_label and num_classes != 2:
        raise ArgumentError(
            f"--metric rocauc: {dataset} has {num_classes} classes, expected 2, or several labels "
            "a node; use --metric accuracy or f1"
        )


def _label_accuracy(predicted: Tensor, labels: Tensor, classes: int) -> float:
    from torchmetrics.functional.classification import multilabel_accuracy

    known = labels.nan_to_num(_IGNORED).int()
    return float(
        multilabel_accuracy(predicted.int(), known, classes, average="micro", ignore_index=_IGNORED)
    )


def _rocauc(ranked: Tensor, labels: Tensor) -> float:
    from torchmetrics.functional.classification import binary_auroc

    if labels.dim() == 1:
        return float(binary_auroc(ranked, labels))
    found = []
    for column in range(labels.shape[1]):
        known = ~labels[:, column].isnan()
        truth = labels[known, column].int()
        if 0 < truth.sum() < len(truth):  # one class alone has no ROC curve
            found.append(binary_auroc(ranked[known, column], truth))
    return float(torch.stack(found).mean()) if found else float("nan")


def _f1(predicted: Tensor, labels: Tensor, classes: int) -> float:
    from torchmetrics.functional.classification import multiclass_f1_score, multilabel_f1_score

    if labels.dim() == 1:
        return float(multiclass_f1_score(predicted, labels, classes, average="macro"))
    known = labels.nan_to_num(_IGNORED).int()
    return float(
        multilabel_f1_score(predicted.int(), known, classes, average="micro", ignore_index=_IGNORED)
    )

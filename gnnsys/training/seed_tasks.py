"""What a dataset folder is to be trained for: labels of its nodes, or one of its tasks.

A task of a relational database has rows: a node, the time at which is predicted, and a label
(``gnnsys.dataset.seeds``). Its ``NodeTask`` has the rows of train, val and test one after the
other.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gnnsys.config.train import TrainConfig
from gnnsys.dataset.folder import Dataset
from gnnsys.dataset.format import Task as FolderTask
from gnnsys.dataset.seeds import Seeds
from gnnsys.dataset.times import timed_types
from gnnsys.errors import ArgumentError
from gnnsys.features.replay import target_of
from gnnsys.memory.alloc import view_array
from gnnsys.system.budget import SPLITS, process_budget
from gnnsys.training.metrics import Kind, are_known, kind_of
from gnnsys.training.task import PARTS, NodeTask, Part

__all__ = [
    "NODE",
    "add_rows",
    "hold_mapped",
    "open_task",
    "reserve_seeds",
    "seeds_have_times",
    "task_of",
]

NODE = "node"
"""The task of nodes, with labels of their own."""

_log = logging.getLogger(__name__)
_LABELS, _TIMES, _ROWS = "labels, mapped", "times of the seeds, mapped", "rows of the task"
_NEVER = torch.iinfo(torch.int64).max
"""The time of a row of a database that has none."""


def task_of(dataset: Dataset, target: str | None = None, task: str = NODE) -> FolderTask:
    """What is to be learnt of a folder: its own task, or that of the labels of another node type,
    whose number of classes is 0 until they are counted; or the task of a name.

    Args:
        dataset: that is open.
        target: node type to classify; None for the one that the folder's task names.
        task: node, or the name of one of the folder's.

    Raises:
        ArgumentError: no such node type, or one without labels; no such task.
    """
    if target is not None:
        target_of(dataset, target)
    if task != NODE:
        return _named_task(dataset, target, task)
    labelled = [kind for kind in dataset.node_types if dataset.has("labels", kind)]
    if target is not None and target not in labelled:
        there = f"those of {', '.join(labelled)} have" if labelled else "no nodes have"
        raise ArgumentError(
            f"--target {target}: {dataset.path} has no labels of these nodes, {there} some; give "
            "another target, or convert it again with labels"
        )
    own = dataset.task
    if target is None or (own is not None and own.node_type == target):
        if own is None:
            raise ArgumentError(_no_labels(dataset))
        return own
    labels = dataset.manifest.nodes[target].tables["labels"]
    kind: Kind = "classes"
    if len(labels.shape) > 1:
        kind = "labels"
    elif labels.encoding.dtype.startswith("float"):
        kind = "values"
    return _task(target, kind)


def _task(node_type: str, kind: Kind, num_classes: int = 0, binary: bool = False) -> FolderTask:
    if kind == "values":
        return FolderTask(node_type=node_type, num_classes=1, regression=True, metric="rmse")
    metric = "rocauc" if kind == "labels" or binary else "accuracy"
    return FolderTask(
        node_type=node_type, num_classes=num_classes, multi_label=kind == "labels", metric=metric
    )


def _no_labels(dataset: Dataset) -> str:
    if tasks := _tasks(dataset):
        return (
            f"{dataset.path}: its nodes have no labels to train with, but it has tasks; give "
            f"--task {' or '.join(tasks)}"
        )
    return f"{dataset.path}: has no labels to train with; convert it again with --labels FILE"


def _tasks(dataset: Dataset) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = dataset.manifest.source.get("tasks", {})
    return found


def _named_task(dataset: Dataset, target: str | None, name: str) -> FolderTask:
    tasks = _tasks(dataset)
    if name not in tasks:
        raise ArgumentError(
            f"--task {name}: {dataset.path} has {', '.join(tasks) or 'no tasks'}; give node for "
            "labels of nodes, link for links held out, or convert a RelBench folder with this task"
        )
    about = tasks[name]
    node_type = str(about["node_type"])
    if target not in (None, node_type):
        raise ArgumentError(
            f"--target {target}: task {name} is of nodes of type {node_type}; leave it out"
        )
    if not dataset.has(f"train.{name}.labels", node_type):
        raise ArgumentError(f"--task {name}: {dataset.path} has no train rows of it")
    labels = dataset.node_table(f"train.{name}.labels", node_type)
    kind = kind_of(torch.from_numpy(labels[:1].copy()))
    classes = about.get("classes")
    binary = about["task_type"] == "binary_classification"
    count = labels.shape[1] if kind == "labels" else 0
    if kind == "classes":
        count = (
            2
            if binary
            else len(classes)
            if isinstance(classes, list)
            else _count(dataset, name, node_type)
        )
    return _task(node_type, kind, count, binary)


def _count(dataset: Dataset, name: str, node_type: str) -> int:
    """Classes that a row of some part has."""
    tables = (f"{part}.{name}.labels" for part in PARTS)
    found = [
        dataset.node_table(table, node_type) for table in tables if dataset.has(table, node_type)
    ]
    return 1 + max((int(labels.max()) for labels in found if len(labels)), default=0)


def seeds_have_times(dataset: Dataset, config: TrainConfig) -> bool:
    """Whether a run's neighbours are sampled with regard to time: nodes or edges have times, the
    seeds, too, and the options do not say otherwise.

    Raises:
        ArgumentError: see ``task_of``.
    """
    if config.ignore_times or not timed_types(dataset):
        return False
    node_type = task_of(dataset, config.target, config.task).node_type
    return dataset.has("time", node_type) or (
        config.task != NODE and dataset.has(f"train.{config.task}.time", node_type)
    )


# Opening -----------------------------------------------------------------------------------------


def open_task(dataset: Dataset, target: str | None, task: str, timed: bool) -> NodeTask:
    """The seeds of a folder.

    Args:
        dataset: that is open.
        target: as of ``task_of``; ``task`` likewise.
        timed: whether neighbours are sampled with regard to time.

    Raises:
        ArgumentError: see ``task_of``; or no rows to train with or to judge by, seeds without a
            time.
        FileFormatError: labels or ids that are damaged.
    """
    about = task_of(dataset, target, task)
    kind = about.node_type
    times = None
    if timed and dataset.has("time", kind):
        times = view_array(dataset.node_table("time", kind))
    if task != NODE:
        return _open_rows(dataset, task, about, times, timed)
    labels = hold_mapped(_LABELS, dataset.labels(kind))
    return NodeTask(
        target=kind,
        labels=labels,
        num_classes=about.num_classes or _count_classes(labels),
        train=hold_mapped(SPLITS, dataset.split("train", kind)),
        val=hold_mapped(SPLITS, dataset.split("val", kind)),
        num_test=dataset.split_size("test", kind),
        open_test=lambda: hold_mapped(SPLITS, dataset.split("test", kind)),
        metric=about.metric,
        seed_time=None if times is None else hold_mapped(_TIMES, times),
    )


def _count_classes(labels: Tensor) -> int:
    if labels.dim() == 2:
        return labels.shape[1]
    return int(labels.max()) + 1 if len(labels) else 0


def _open_rows(
    dataset: Dataset, name: str, about: FolderTask, own: Tensor | None, timed: bool
) -> NodeTask:
    """The rows of a task; ``own`` are the times of its nodes, for rows that have none."""
    known = _tasks(dataset)[name]["rows"]
    seeds = {part: dataset.seeds(name, part) for part in PARTS if part in known}
    for part in ("train", "val"):
        if part not in seeds:
            raise ArgumentError(f"--task {name}: {dataset.path} has no {part} rows of it")
    like = seeds["train"].labels
    assert like is not None
    labels = torch.cat([_labels_of(each, like) for each in seeds.values()])
    nodes = torch.cat([each.nodes for each in seeds.values()])
    time = None
    if timed:
        time = torch.cat([_times_of(each, own) for each in seeds.values()])
        if (time == _NEVER).any():
            row = int((time == _NEVER).nonzero()[0])
            raise ArgumentError(
                f"--task {name}: the {about.node_type} {int(nodes[row])} of its rows has no time "
                "at which is predicted; give --ignore-times, or rows with times"
            )
    ends = np.cumsum([0, *(len(each.nodes) for each in seeds.values())])
    rows: dict[Part, Tensor] = {
        part: torch.arange(first, end)
        for part, first, end in zip(seeds, ends, ends[1:], strict=False)
    }
    rows["train"] = _labelled(dataset, name, "train", rows["train"], labels)
    _labelled(dataset, name, "val", rows["val"], labels)  # where it is unknown, nothing is judged
    test = rows.get("test", torch.empty(0, dtype=torch.int64))
    held = (nodes, labels, *([] if time is None else [time]))
    process_budget().hold(_ROWS, sum(each.nbytes for each in held), labels)
    return NodeTask(
        target=about.node_type,
        labels=labels,
        num_classes=about.num_classes,
        train=rows["train"],
        val=rows["val"],
        num_test=len(test),
        open_test=lambda: test,
        metric=about.metric,
        name=name,
        seed_nodes=nodes,
        seed_time=time,
        test_is_hidden=not bool(are_known(labels[test]).any()),
    )


def _labels_of(seeds: Seeds, like: Tensor) -> Tensor:
    """Those of the rows, unknown where the split has none."""
    return _unknown(len(seeds.nodes), like) if seeds.labels is None else seeds.labels


def _unknown(count: int, like: Tensor) -> Tensor:
    value = -1 if kind_of(like) == "classes" else float("nan")
    return torch.full((count, *like.shape[1:]), value, dtype=like.dtype)


def add_rows(task: NodeTask, nodes: Tensor, time: Tensor | None) -> tuple[NodeTask, Tensor]:
    """A task with further seeds, whose labels are not known, and (n,) ids of them.

    Args:
        task: of which all seeds have times, or none.
        nodes: (n,) int64 ids.
        time: (n,) int64 times, where the task's have some.
    """
    first = len(task.labels)
    before = torch.arange(first) if task.seed_nodes is None else task.seed_nodes
    times = None
    if task.seed_time is not None and time is not None:
        times = torch.cat([task.seed_time, time])
    made = dataclasses.replace(
        task,
        labels=torch.cat([task.labels, _unknown(len(nodes), task.labels)]),
        seed_nodes=torch.cat([before, nodes]),
        seed_time=times,
    )
    return made, first + torch.arange(len(nodes))


def _times_of(seeds: Seeds, own: Tensor | None) -> Tensor:
    if seeds.time is not None:
        return seeds.time
    assert own is not None
    return own[seeds.nodes]


def _labelled(dataset: Dataset, name: str, part: str, rows: Tensor, labels: Tensor) -> Tensor:
    """The rows of a part with a label; how many have none is told."""
    known = are_known(labels[rows])
    there = rows[known.any(1) if known.dim() > 1 else known]
    if len(there) == 0:
        raise ArgumentError(f"--task {name}: {dataset.path} has no {part} rows of it with a label")
    if len(there) < len(rows):
        _log.warning(
            "--task %s: %d of %d %s rows have no label and do not count", name,
            len(rows) - len(there), len(rows), part
        )  # fmt: skip
    return there


def hold_mapped(name: str, tensor: Tensor) -> Tensor:
    """Enters a mapped tensor into the process's budget, for as long as it lives."""
    process_budget().hold(name, tensor.nbytes, tensor, mapped=True)
    return tensor


def reserve_seeds(
    dataset: Dataset,
    about: FolderTask,
    task: str,
    parts: Iterable[Part] = PARTS,
    timed: bool = False,
) -> dict[Part, int]:
    """Reserves in the process's budget what ``open_task`` holds, and counts the seeds of each part.

    Args:
        dataset: that is open.
        about: what ``task_of`` says of it.
        task: node, or a name.
        parts: whose ids of nodes a run reads; the rows of a task are all read.
        timed: as of ``open_task``.
    """
    budget, kind = process_budget(), about.node_type
    tables = dataset.manifest.nodes[kind].tables
    if task == NODE:
        labels = tables["labels"].data_bytes if "labels" in tables else 0
        budget.reserve(_LABELS, labels, mapped=True)
        if timed and "time" in tables:
            budget.reserve(_TIMES, tables["time"].data_bytes, mapped=True)
        sizes = {part: dataset.split_size(part, kind) for part in PARTS}
        budget.reserve(SPLITS, 8 * sum(sizes[part] for part in parts), mapped=True)
        return sizes
    names = {part: f"{part}.{task}" for part in PARTS}
    sizes = {
        part: tables[f"{name}.nodes"].shape[0] if f"{name}.nodes" in tables else 0
        for part, name in names.items()
    }
    row = 3 * 8 + tables[f"train.{task}.labels"].encoding.row_stride  # node, time, own number
    budget.reserve(_ROWS, row * sum(sizes.values()))
    return sizes

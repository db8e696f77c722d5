"""Seeds of tasks: nodes at times with what is to be predicted of them.

A task of a relational database may ask for the same node at several times, so that its labels are
no table of the nodes. They lie beside the node type's tables: ``SPLIT.TASK.nodes``, ``.time``,
``.labels``, and for links ``.targets`` with ``.ends``; ``source`` of ``graph.json`` says of which
type each task's nodes are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gnnsys.errors import ArgumentError

if TYPE_CHECKING:
    from gnnsys.dataset.folder import Dataset

__all__ = ["Seeds", "read_seeds"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Seeds:
    """The rows of a task's split; seeds of a loader with ``time`` as its ``input_time``.

    >>> Seeds(node_type="users", nodes=torch.tensor([3, 5])).nodes.tolist()
    [3, 5]
    """

    node_type: str

    nodes: Tensor
    """(n,) int64 ids"""

    time: Tensor | None = None
    """(n,) int64 microseconds since 1970 at which is predicted: all that is later is not known."""

    labels: Tensor | None = None
    """(n,) int64 classes, -1 where unknown; (n,) float32 values, NaN where unknown; or (n, labels)
    float32 of 0 and 1."""

    target_type: str | None = None
    """Of links: the type of the nodes to predict."""

    targets: tuple[Tensor, ...] | None = None
    """Of links: for each seed the (k,) int64 ids that it leads to."""


def read_seeds(dataset: Dataset, task: str, split: str) -> Seeds:
    """See ``Dataset.seeds``."""
    tasks = dataset.manifest.source.get("tasks", {})
    if task not in tasks:
        raise ArgumentError(
            f"task {task!r}: {dataset.path} has {', '.join(tasks) or 'none'}; gnnsys convert makes "
            "them of the tasks of a RelBench folder"
        )
    about = tasks[task]
    node_type = str(about["node_type"])

    def table(what: str) -> Tensor | None:
        name = f"{split}.{task}.{what}"
        if not dataset.has(name, node_type):
            return None
        return torch.from_numpy(dataset.node_table(name, node_type).copy())

    nodes = table("nodes")
    if nodes is None:
        known = [each for each in ("train", "val", "test") if each in about["rows"]]
        raise ArgumentError(f"split {split!r}: task {task} has {', '.join(known)}")
    targets, ends = table("targets"), table("ends")
    return Seeds(
        node_type=node_type,
        nodes=nodes,
        time=table("time"),
        labels=table("labels"),
        target_type=about.get("target_type"),
        targets=None
        if targets is None or ends is None
        else torch.tensor_split(targets, ends[:-1])
        if len(ends)
        else (),
    )

"""The seeds around which batches are drawn where nothing is trained: for plans, and importance."""

from __future__ import annotations

import logging

from torch import Tensor

from gnnsys.dataset.folder import Dataset
from gnnsys.dataset.links import held_links
from gnnsys.errors import UnsupportedError
from gnnsys.features.replay import target_of, training_seeds
from gnnsys.system.once import warn_once
from gnnsys.training.link_task import is_link_task
from gnnsys.training.seed_tasks import NODE, open_task

__all__ = ["planned_seeds"]

_log = logging.getLogger(__name__)


def planned_seeds(
    dataset: Dataset, target: str | None = None, task: str = NODE
) -> tuple[str, Tensor, str]:
    """What training on a folder would draw its batches around.

    What else there is to train for in the folder is told where no task was asked for.

    Args:
        dataset: that is open.
        target: node type, as the user named it; None for the one that the task is of.
        task: node, or the name of one of the folder's.

    Returns:
        The node type of the seeds; their (n,) int64 ids, one for each row of a task, or all nodes
        where no training nodes are named; and which these are.

    Raises:
        ArgumentError: no such type or task, or one without rows; see ``target_of``, ``open_task``.
        UnsupportedError: a task of links.
    """
    if is_link_task(dataset, task):
        raise UnsupportedError(
            f"--task {task}: is of links, and only batches around nodes are sampled here; leave it "
            "out, and name the type of their ends by --target"
        )
    if task != NODE:
        rows = open_task(dataset, target, task, timed=False)
        return rows.target, rows.node_ids(rows.train), f"train rows of task {task}"
    kind = target_of(dataset, target)
    of = f" of type {kind}" if dataset.heterogeneous else ""
    seeds, named = training_seeds(dataset, kind), dataset.split_size("train", kind) > 0
    others = _others(dataset)
    if others:
        warn_once(
            _log, "%s: without --task its batches are drawn as for a classification of nodes%s, "
            "but it also has %s", dataset.path, of, " and ".join(others)
        )  # fmt: skip
        return kind, seeds, f"{'training' if named else 'all'} nodes{of}"
    return (
        kind,
        seeds,
        f"training nodes{of}" if named else (f"all nodes{of}, for no training nodes are named"),
    )


def _others(dataset: Dataset) -> list[str]:
    """What a folder has to train for beside labels of nodes."""
    tasks = dataset.manifest.source.get("tasks", {})
    held = [",".join(kind) for kind in dataset.edge_types if held_links(dataset, kind)]
    return [
        *([f"tasks ({', '.join(tasks)})"] if tasks else []),
        *([f"links held out ({' '.join(held)})"] if held else []),
    ]

"""Which nodes ``gnnsys predict`` is asked about, and when."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gnnsys.convert.tables import open_array
from gnnsys.dataset.tables import check_nodes
from gnnsys.errors import FileFormatError
from gnnsys.training.datasets import NodeDataset
from gnnsys.training.seed_tasks import add_rows
from gnnsys.training.task import NodeTask

__all__ = ["read_seeds"]


def read_seeds(path: str | None, dataset: NodeDataset) -> Tensor:
    """(n,) what is predicted of.

    Of links the ids of nodes; else seeds as ``NodeTask.nodes`` has them, which those of a file are
    added to as rows.

    Args:
        path: of a file of ids, or of ids and times; None for all nodes, or the rows to judge by.
        dataset: of the run.

    Raises:
        FileFormatError: a file of something else.
        ArgumentError: ids outside the nodes.
    """
    count = dataset.num_nodes[dataset.target]
    task = dataset.task if isinstance(dataset.task, NodeTask) else None
    has_rows = task is not None and task.seed_nodes is not None
    if path is None:
        return torch.cat([task.val, task.test]) if task and has_rows else torch.arange(count)
    source = open_array(path)
    timed = task is not None and task.seed_time is not None
    with_times, expects_times = timed and source.shape[1:] == (2,), timed and has_rows
    fits = with_times or (len(source.shape) == 1 and not expects_times)
    if not fits or source.dtype.kind not in "iu":
        expected = ".npy of (n, 2) nodes and times" if expects_times else "(n,) node ids"
        raise FileFormatError(
            f"{path}: {source.dtype} of shape {source.shape}, expected {expected}, whole numbers"
        )
    blocks = [block.astype(np.int64) for block in source.blocks()]
    rows = np.concatenate([np.empty((0, *source.shape[1:]), np.int64), *blocks])
    ids, times = (rows[:, 0].copy(), rows[:, 1].copy()) if with_times else (rows, None)
    check_nodes(ids, count, path)
    nodes = torch.from_numpy(ids)
    if task is None or not (with_times or has_rows):
        return nodes
    dataset.task, seeds = add_rows(task, nodes, None if times is None else torch.from_numpy(times))
    return seeds

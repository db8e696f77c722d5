"""Predictions of a run on links: embeddings of nodes of both ends, and the best targets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.commands.prediction_table import TABLES, write_link_table
from gnnsys.config.predict import PredictConfig
from gnnsys.config.resolve import Run
from gnnsys.dataset.folder import open_dataset
from gnnsys.dataset.format import node_folder
from gnnsys.errors import ArgumentError
from gnnsys.system.budget import process_budget
from gnnsys.system.files import as_storage_error, npy_header
from gnnsys.system.progress import Progress
from gnnsys.training.datasets import NodeDataset
from gnnsys.training.link_models import LinkModel
from gnnsys.training.link_ranking import read_rows, top_links
from gnnsys.training.link_steps import LinkMiniBatch
from gnnsys.training.link_task import LinkTask
from gnnsys.training.task import Part

__all__ = ["check_link_options", "plan_best", "predict_links", "write_rows"]

_ROWS = 1 << 16  # of embeddings, or sources, that are in memory at a time
_BEST = "best targets of sources"
_BEST_BYTES = 64 << 20
"""Of a block of sources with their best targets, where fewer than ``_SOURCES`` have more."""
_SOURCES = 256
"""Of a block at least, as ``top_links`` ranks at a time."""
_TILE = 4096  # targets that it ranks them among at a time
_PARTS: tuple[Part, ...] = ("val", "test")

Shapes = dict[str, tuple[int, ...]]
"""By name of a file."""


def check_link_options(config: PredictConfig, of_links: bool) -> None:
    """Raises ArgumentError for options that do not fit a run, on links or on nodes."""
    if not of_links:
        if config.top is not None:
            raise ArgumentError(f"--top {config.top}: goes with a run on links; leave it out")
        return
    if config.top is None and config.nodes is not None:
        raise ArgumentError(
            f"--nodes {config.nodes}: the sources whose best targets are asked for; give --top K"
        )
    if config.top is None and config.out is not None and Path(config.out).suffix in TABLES:
        raise ArgumentError(
            f"--out {config.out}: a table is of the best targets; give --top K, or a folder"
        )


def predict_links(
    config: PredictConfig,
    trained: Run,
    dataset: NodeDataset,
    model: LinkModel,
    nodes: Tensor,
    place: Path,
    progress: Progress,
) -> tuple[Shapes, dict[str, dict[str, float]]]:
    """Writes what is predicted by a run on links.

    Args:
        config: of the command.
        trained: the run.
        dataset: of links.
        model: with the run's weights.
        nodes: (n,) ids of the sources of the best targets.
        place: a folder, or a table that is to be made.
        progress: is told how far the work is.

    Returns:
        Shapes of the files, or of the table, whose name is empty; metrics by part and name.
    """
    steps = LinkMiniBatch(trained, dataset, model)
    steps.progress = progress
    task = dataset.task
    assert isinstance(task, LinkTask)
    step = 0
    if config.top is not None:
        targets = dataset.num_nodes[task.edge_type[2]]
        step = plan_best(config.top, len(nodes), targets, task.width)
    reported = task.reported(task.chosen(trained.config.metric))
    metrics: dict[str, dict[str, float]] = {
        part: steps.evaluate(reported, part) for part in _PARTS if task.num_seeds(part)
    }
    rows = steps.embeddings()
    table = place if place.suffix in TABLES else None
    folder = place.parent if table else place
    files: Shapes = {} if table else _write_embeddings(folder, rows, model)
    if config.top is not None:
        blocks = _best(config, steps, model, task, rows, nodes.split(step), progress)
        found = write_rows(folder, blocks, len(nodes))
        _save(folder / "nodes.npy", nodes.numpy())
        files |= {"nodes.npy": (len(nodes),), **found}
    if table:
        files = {"": _write_table(table, trained, task, nodes, folder)}
    steps.forget()
    return files, metrics


def plan_best(top: int, sources: int, targets: int, width: int) -> int:
    """Reserves what ranking takes in the budget of this process.

    Args:
        top: ``--top``.
        sources: how many have their targets ranked.
        targets: how many are ranked.
        width: of the embeddings.

    Returns:
        How many sources to rank at a time.

    Raises:
        ArgumentError: more than there are targets.
        TooLargeError: it does not fit.

    >>> plan_best(1000, 10**6, 10**6, 16) < plan_best(10, 10**6, 10**6, 16)
    True
    """
    if top > targets:
        raise ArgumentError(f"--top {top}: there are {targets} targets; give at most as many")
    budget = process_budget()
    each = 2 * (8 + 4) * top + 2 * 4 * width  # ids and scores while they are joined, both rows
    step = max(_SOURCES, min(_BEST_BYTES, budget.left() // 2) // each)
    step = max(1, min(step, _ROWS, sources))
    ranked = min(step, _SOURCES) * (top + min(_TILE, targets)) * 2 * (8 + 4)  # sorted, and before
    budget.reserve(_BEST, step * each + ranked)
    budget.check("give a smaller --top, or more memory")
    return step


def _write_embeddings(folder: Path, rows: dict[str, Tensor], model: LinkModel) -> Shapes:
    files: Shapes = {}
    for kind, found in rows.items():
        name = f"embeddings.{Path(node_folder(True, kind)).name}.npy"
        files |= write_rows(
            folder,
            (
                {name: read_rows(found, first, min(first + _ROWS, len(found))).numpy()}
                for first in range(0, len(found), _ROWS)
            ),
            len(found),
        )
    if model.relation is not None:
        relation = model.relation.detach().numpy()
        _save(folder / "relation.npy", relation)
        files["relation.npy"] = relation.shape
    return files


def _best(
    config: PredictConfig,
    steps: LinkMiniBatch,
    model: LinkModel,
    task: LinkTask,
    rows: dict[str, Tensor],
    parts: Sequence[Tensor],
    progress: Progress,
) -> Iterator[dict[str, NDArray[Any]]]:
    """The best targets of one block of sources after another, and their scores."""
    source, target = rows[task.edge_type[0]], rows[task.edge_type[2]]
    assert config.top is not None
    done, count = 0, sum(map(len, parts))
    for some in parts:
        known = None if config.keep_known else steps.known(some)
        with torch.no_grad():
            queries = model.queries(source[some])
        scores, ids = top_links(queries, target, config.top, known=known)
        yield {"ids.npy": ids.numpy(), "scores.npy": scores.float().numpy()}
        done += len(some)
        progress("rank: sources", done, count)


def write_rows(folder: Path, blocks: Iterator[dict[str, NDArray[Any]]], count: int) -> Shapes:
    """Writes blocks of rows of some files, of so many rows each; returns their shapes."""
    shapes: Shapes = {}
    with ExitStack() as held:
        files: dict[str, BinaryIO] = {}
        for block in blocks:
            for name, rows in block.items():
                with as_storage_error(folder / name):
                    if name not in files:
                        files[name] = held.enter_context(open(folder / name, "wb"))
                        shapes[name] = (count, *rows.shape[1:])
                        files[name].write(npy_header(shapes[name], rows.dtype))
                    files[name].write(np.ascontiguousarray(rows).data)
    return shapes


def _save(path: Path, array: NDArray[Any]) -> None:
    with as_storage_error(path):
        np.save(path, array)


def _write_table(
    path: Path, trained: Run, task: LinkTask, nodes: Tensor, folder: Path
) -> tuple[int, int]:
    opened = open_dataset(trained.config.dataset)
    ids, scores = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("ids", "scores"))
    return write_link_table(
        path,
        nodes.numpy(),
        ids,
        scores,
        source_ids=opened.node_ids(task.edge_type[0]),
        target_ids=opened.node_ids(task.edge_type[2]),
    )

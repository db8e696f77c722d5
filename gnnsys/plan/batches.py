"""The batches that are planned: which rows each of them asks for, table by table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.cache.trace import Trace, TraceWriter, read_trace
from gnnsys.config.plan import PlanConfig
from gnnsys.config.train import TrainConfig
from gnnsys.dataset.folder import Dataset
from gnnsys.dataset.format import NODE_TYPE
from gnnsys.errors import ArgumentError
from gnnsys.features.replay import sampled_ids_of_types, source_to_sample
from gnnsys.features.setup import feature_tables
from gnnsys.features.topology import graph_to_sample
from gnnsys.plan.caches import Workload
from gnnsys.system.progress import Progress
from gnnsys.system.scratch import ScratchFolder
from gnnsys.training.link_batches import link_ids
from gnnsys.training.link_task import is_link_task, link_task
from gnnsys.training.planned_seeds import planned_seeds

__all__ = ["PlannedBatches", "open_traces", "planned_batches", "workload_of"]

_BATCHES = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedBatches:
    """What training on a folder would draw."""

    target: str
    """Node type of the seeds; of links, of their sources."""

    seeds: Tensor
    """(n,) nodes that batches are drawn around; none of links."""

    count: int
    """Seeds of an epoch, or links."""

    told: str
    """Which these are."""

    draw: Callable[[int], Iterator[dict[str, NDArray[np.int64]]]]
    """The distinct ids of each node type in so many batches, one after the other."""


def planned_batches(config: PlanConfig, run: TrainConfig, dataset: Dataset) -> PlannedBatches:
    """The batches of a task of nodes, or of links, without regard to times.

    Args:
        config: what is planned.
        run: the training run.
        dataset: with features.

    Raises:
        ArgumentError: see ``planned_seeds``, ``link_task`` and ``link_negatives``.
    """
    if is_link_task(dataset, config.task):
        task = link_task(dataset, config.task, config.target, run.hidden or 0, timed=False)
        task.check(dataset.name, "")
        return PlannedBatches(
            target=task.target,
            seeds=torch.empty(0, dtype=torch.int64),
            count=task.num_seeds("train"),
            told=f"links {task.named} to train on",
            draw=partial(link_ids, run.filled_in(), dataset, task),
        )
    target, seeds, told = planned_seeds(dataset, config.target, config.task)
    source = source_to_sample(dataset) if dataset.heterogeneous else graph_to_sample(dataset)

    def draw(batches: int) -> Iterator[dict[str, NDArray[np.int64]]]:
        return sampled_ids_of_types(
            source,
            target,
            seeds,
            config.fanouts,
            batch_size=config.batch_size,
            batches=batches,
            seed=config.seed,
            seed_block=config.seed_block,
            threads=config.threads,
        )

    return PlannedBatches(target=target, seeds=seeds, count=len(seeds), told=told, draw=draw)


@contextmanager
def open_traces(
    config: PlanConfig, dataset: Dataset, planned: PlannedBatches, progress: Progress
) -> Iterator[dict[str, Trace]]:
    """The rows of each table of features that batches ask for; sampled ones lie in temporary files
    meanwhile.

    Args:
        config: how they are sampled, or what is replayed.
        dataset: with features.
        planned: the batches to sample.
        progress: is told the batches done.

    Raises:
        ArgumentError: a recorded trace of another dataset, or without batches.
        MissingFileError, FileFormatError: no trace.
    """
    if config.trace is not None:
        yield {NODE_TYPE: _recorded(config.trace, dataset)[: config.batches]}
        return
    batches = config.batches or _BATCHES
    with closing(ScratchFolder("gnnsys-plan-")) as folder:
        places = {kind: folder.path / str(n) for n, kind in enumerate(feature_tables(dataset))}
        with ExitStack() as stack:
            writers = {
                kind: stack.enter_context(TraceWriter(place, dataset.num_nodes(kind)))
                for kind, place in places.items()
            }
            for number, ids in enumerate(planned.draw(batches), 1):
                for kind, writer in writers.items():
                    writer.add(ids[kind])
                progress("sample: batches", number, batches)
        yield {kind: read_trace(place) for kind, place in places.items()}


def _recorded(path: str, dataset: Dataset) -> Trace:
    rows, trace = dataset.num_nodes(), read_trace(path)
    if trace.num_rows != rows:
        raise ArgumentError(
            f"--trace {path}: of a table of {trace.num_rows} rows, but {dataset.path} has {rows} "
            "nodes; give a trace that was recorded with this dataset"
        )
    if len(trace) == 0:
        raise ArgumentError(f"--trace {path}: holds no batch; record it again")
    return trace


def workload_of(
    config: PlanConfig,
    dataset: Dataset,
    kind: str,
    trace: Trace,
    epoch: int | None,
    importance: NDArray[np.uint16] | None,
) -> Workload:
    """A table of features and the rows of it that batches ask for.

    Args:
        config: of the caches.
        dataset: with the table.
        kind: node type that it is of.
        trace: the rows.
        epoch: batches of an epoch, as far as that matters to ranks; None for all.
        importance: (nodes,) or None.
    """
    table = dataset.manifest.nodes[kind].tables["features"]
    return Workload(
        table=kind,
        trace=trace,
        rows=table.shape[0],
        columns=int(np.prod(table.shape[1:], dtype=np.int64)),
        dtype=table.encoding.dtype,
        row_bytes=table.encoding.row_stride,
        offset=table.shards[0].bytes - table.shards[0].rows * table.encoding.row_stride,
        importance=importance,
        window=config.window,
        policy=config.policy,
        ranks=config.ranks,
        epoch=epoch,
    )

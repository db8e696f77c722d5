"""The batches that are planned: which rows each of them asks for, table by table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.cache.trace import Trace, TraceWriter, read_trace
from gnnsys.config.plan import PlanConfig
from gnnsys.dataset.folder import Dataset
from gnnsys.dataset.format import NODE_TYPE
from gnnsys.errors import ArgumentError
from gnnsys.features.replay import sampled_ids_of_types, source_to_sample
from gnnsys.features.setup import feature_tables
from gnnsys.features.topology import graph_to_sample
from gnnsys.plan.caches import Workload
from gnnsys.system.progress import Progress
from gnnsys.system.scratch import ScratchFolder

__all__ = ["open_traces", "workload_of"]

_BATCHES = 200


@contextmanager
def open_traces(
    config: PlanConfig, dataset: Dataset, target: str, seeds: Tensor, progress: Progress
) -> Iterator[dict[str, Trace]]:
    """The rows of each table of features that batches ask for; sampled ones lie in temporary files
    meanwhile.

    Args:
        config: how they are sampled, or what is replayed.
        dataset: with features.
        target: node type of the seeds.
        seeds: (n,) nodes.
        progress: is told the batches done.

    Raises:
        ArgumentError: a recorded trace of another dataset, or without batches.
        MissingFileError, FileFormatError: no trace.
    """
    if config.trace is not None:
        yield {NODE_TYPE: _recorded(config.trace, dataset)[: config.batches]}
        return
    batches = config.batches or _BATCHES
    run = sampled_ids_of_types(
        source_to_sample(dataset) if dataset.heterogeneous else graph_to_sample(dataset),
        target,
        seeds,
        config.fanouts,
        batch_size=config.batch_size,
        batches=batches,
        seed=config.seed,
        seed_block=config.seed_block,
        threads=config.threads,
    )
    with closing(ScratchFolder("gnnsys-plan-")) as folder:
        places = {kind: folder.path / str(n) for n, kind in enumerate(feature_tables(dataset))}
        with ExitStack() as stack:
            writers = {
                kind: stack.enter_context(TraceWriter(place, dataset.num_nodes(kind)))
                for kind, place in places.items()
            }
            for number, ids in enumerate(run, 1):
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

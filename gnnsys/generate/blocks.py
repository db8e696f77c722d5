"""What the generators share: random numbers by block, and the tables that both kinds have."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gnnsys.convert.csc import EdgeReader, EdgeSort, write_csc
from gnnsys.convert.stored_rows import encode
from gnnsys.dataset.format import NODE_TYPE, Task
from gnnsys.dataset.writer import DatasetWriter, RowReader
from gnnsys.generate.graphs import CommunityGraph, RmatGraph
from gnnsys.rng import stream_key
from gnnsys.system.extension import core
from gnnsys.system.progress import Progress
from gnnsys.system.threads import num_threads
from gnnsys.system.whole import check_whole

__all__ = [
    "DrawRows",
    "Job",
    "draw_noise",
    "in_order",
    "open_job",
    "write_features",
    "write_graph",
    "write_labels",
    "write_split",
]

# What a block is decides its random numbers: another size is another graph from the same seed.
_BLOCK_VALUES = 1 << 18  # features in a block of rows
_BLOCK_NODES = 1 << 17  # labels or ids in a block
_LEAST_MEMORY = 1 << 20
_BLOCK_BYTES = 64 << 20  # that drawing a block takes at most, temporary arrays included

_HOP = (1 << 64) - 2  # one that no sampler uses and not that of the shuffle: streams of our own
_STREAMS = ("edges", "ids", "features", "labels", "split", "centres")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Job:
    """One folder in the making."""

    writer: DatasetWriter
    seed: int
    num_nodes: int
    memory: int
    threads: int

    @property
    def workers(self) -> int:
        """Threads that draw blocks: no more than have their blocks in memory."""
        return max(1, min(self.threads, self.memory // _BLOCK_BYTES))

    def key(self, stream: str) -> int:
        """What a stream's random numbers are drawn from, 64 bits."""
        return stream_key(self.seed, _STREAMS.index(stream), 0, _HOP)

    def rng(self, stream: str, first: int) -> np.random.Generator:
        """Random numbers of the block of rows that begins at ``first``."""
        # Blocks are 2**128 counts apart, more than numpy draws from one of them.
        counter = np.array([0, 0, first, 0], np.uint64)
        key = np.array([self.key(stream), 0], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter))

    def permute(self, stream: str, ids: NDArray[np.int64], inverse: bool = False) -> None:
        """Maps nodes in place by the bijection that belongs to a stream."""
        core.permute_ids(self.key(stream), self.num_nodes, inverse, ids)


DrawRows = Callable[[int, int], NDArray[Any]]
"""Given the first row and the number of rows, draws them."""


@contextmanager
def open_job(
    path: str | os.PathLike[str],
    graph: CommunityGraph | RmatGraph,
    name: str,
    num_nodes: int,
    memory: int,
    threads: int,
    progress: Progress,
) -> Iterator[Job]:
    """A folder to be generated, which is continued only with the same parameters."""
    check_whole("memory", memory, _LEAST_MEMORY, 1 << 62)
    check_whole("threads", threads, 0, 1 << 10)
    source = {**graph.about(), "numpy": np.__version__}  # another version may draw other numbers
    with DatasetWriter(
        path,
        name=name,
        fingerprint=json.dumps(source, sort_keys=True),
        source=source,
        progress=progress,
    ) as writer:
        yield Job(writer, graph.seed, num_nodes, memory, num_threads(threads))


def in_order(draw: Callable[[int], _T], numbers: range, workers: int) -> Iterator[_T]:
    """``draw`` of each number, a few of them ahead on threads."""
    if workers == 1 or len(numbers) == 1:
        yield from map(draw, numbers)
        return
    waiting: deque[Future[_T]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for number in numbers:
            waiting.append(pool.submit(draw, number))
            if len(waiting) >= workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _in_blocks(job: Job, draw: DrawRows, rows: int, step: int) -> RowReader:
    """Reads rows that are drawn in blocks of ``step``, the last one shorter."""

    def read(first: int) -> Iterator[NDArray[Any]]:
        starts = range(first - first % step, rows, step)
        blocks = in_order(lambda at: draw(at, min(step, rows - at)), starts, job.workers)
        for start, block in zip(starts, blocks, strict=True):
            yield block[max(0, first - start) :]

    return read


def write_graph(job: Job, read: EdgeReader, undirected: bool = False) -> None:
    """Declares the nodes and sorts the edges."""
    job.writer.add_nodes(job.num_nodes)
    sort = EdgeSort(
        writer=job.writer,
        label="generated edges",
        undirected=undirected,
        memory=job.memory,
        threads=job.threads,
    )
    write_csc(sort, read)


def write_features(job: Job, graph: CommunityGraph | RmatGraph, draw: DrawRows) -> None:
    """Writes (nodes, features) in the element type that is asked for."""
    width, dtype = graph.features, graph.dtype

    def draw_encoded(first: int, count: int) -> NDArray[Any]:
        return encode(draw(first, count), dtype)

    read = _in_blocks(job, draw_encoded, job.num_nodes, max(1, _BLOCK_VALUES // width))
    job.writer.write_nodes("features", read, (job.num_nodes, width), dtype)


def write_labels(job: Job, classes: int, draw: DrawRows) -> None:
    """Writes the nodes' classes and sets the task."""
    read = _in_blocks(job, draw, job.num_nodes, _BLOCK_NODES)
    job.writer.write_nodes("labels", read, (job.num_nodes,), "int64")
    job.writer.task = Task(node_type=NODE_TYPE, num_classes=classes)


def write_split(job: Job, graph: CommunityGraph | RmatGraph) -> None:
    """Writes train, val and test: consecutive parts of a random order of the nodes."""
    first_val = round(graph.train * job.num_nodes)
    first_test = min(job.num_nodes, first_val + round(graph.val * job.num_nodes))
    end = job.num_nodes
    if graph.test is not None:
        end = min(end, first_test + round(graph.test * job.num_nodes))
    bounds = {"train": (0, first_val), "val": (first_val, first_test), "test": (first_test, end)}
    for name, (begin, end) in bounds.items():
        draw = partial(_draw_part, job, begin)
        read = _in_blocks(job, draw, end - begin, _BLOCK_NODES)
        job.writer.write_nodes(name, read, (end - begin,), "int64")


def _draw_part(job: Job, begin: int, first: int, count: int) -> NDArray[np.int64]:
    ids = np.arange(begin + first, begin + first + count)
    job.permute("split", ids)
    return ids


def draw_noise(job: Job, width: int, first: int, count: int) -> NDArray[np.float32]:
    """(count, width) standard normal features of a block."""
    return job.rng("features", first).standard_normal((count, width), dtype=np.float32)

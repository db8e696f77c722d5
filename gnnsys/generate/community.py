"""Graphs of communities, whose labels a GNN learns and an MLP does not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.generate.blocks import (
    Job,
    draw_noise,
    in_order,
    open_job,
    write_features,
    write_graph,
    write_labels,
    write_split,
)
from gnnsys.generate.graphs import CommunityGraph, described_by
from gnnsys.system.progress import Progress

__all__ = ["generate_community"]

# What a block is decides its random numbers: another size is another graph from the same seed.
_BLOCK_EDGES = 1 << 19  # of a block of nodes


@described_by(CommunityGraph)
def generate_community(
    path: str | os.PathLike[str],
    *,
    memory: int = 2 << 30,
    threads: int = 0,
    progress: Progress = lambda what, done, total: None,
    **graph: Any,
) -> Path:
    """Writes a graph of communities as a dataset folder: its labels take a GNN to learn.

    The label of a node is its community; all are of one size, give or take a node. Every node draws
    ``degree`` in-neighbours: each with the probability ``within`` among its own community, else
    among all nodes (a planted partition: Condon, Karp, "Algorithms for graph partitioning on the
    planted partition model", 2001), so that within + (1 - within) / classes of the edges stay
    inside. Features are standard normal noise plus ``signal`` times the community's centre, itself
    standard normal: a node's own say little, their mean over its neighbours much.

    A killed call is continued by the same call. With the same numpy, which draws everything but the
    ids, the same arguments give the same bytes.

    Args:
        path: of the folder to make.
        memory: bytes for sorting edges and for blocks of rows, at least one of which is in hand;
            16 bytes a node come on top, and the centres.
        threads: that draw and sort; 0 for all cores this process may use.
        progress: is told how far the work is.
        **graph: nodes, classes, degree, features, within, signal, train, val, dtype and seed, as of
            ``gnnsys.generate.graphs.CommunityGraph``.

    Returns:
        ``path``, absolute.

    Raises:
        ArgumentError: an argument that cannot be used, or a folder that exists.
        StorageError: the folder cannot be written.

    >>> import tempfile
    >>> folder = generate_community(Path(tempfile.mkdtemp()) / "small", nodes=100, features=4)
    >>> np.bincount(np.load(folder / "labels.npy")).tolist()
    [10, 10, 10, 10, 10, 10, 10, 10, 10, 10]
    """
    asked = CommunityGraph(**graph)
    with open_job(path, asked, "community", asked.nodes, memory, threads, progress) as job:
        communities = _Communities(job, asked.classes, asked.degree, asked.within)
        write_graph(job, communities.read_edges)
        shape = asked.classes, asked.features
        centres = job.rng("centres", 0).standard_normal(shape, dtype=np.float32)
        draw = partial(communities.draw_features, centres * np.float32(asked.signal))
        write_features(job, asked, draw)
        write_labels(job, asked.classes, communities.labels)
        write_split(job, asked)
        return job.writer.commit()


@dataclass(frozen=True, slots=True)
class _Communities:
    """Nodes stand in a random order; community ``c`` has every ``classes``-th place from ``c`` on.

    The order is a bijection computed in both directions, so that neither a node's label nor a
    community's member takes a table.
    """

    job: Job
    classes: int
    degree: int
    within: float

    def labels(self, first: int, count: int) -> NDArray[np.int64]:
        """Communities of ``count`` nodes from ``first`` on."""
        places = np.arange(first, first + count)
        self.job.permute("ids", places, inverse=True)
        return places % self.classes

    def read_edges(self, first: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Sources and targets from edge number ``first`` on."""
        step = max(1, _BLOCK_EDGES // self.degree)
        starts = range(first // self.degree // step * step, self.job.num_nodes, step)
        blocks = in_order(partial(self._draw_edges, step), starts, self.job.workers)
        for start, ends in zip(starts, blocks, strict=True):
            skipped = max(0, first - start * self.degree)
            yield ends[0][skipped:], ends[1][skipped:]

    def _draw_edges(self, step: int, first: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        count = min(step, self.job.num_nodes - first)
        rng = self.job.rng("edges", first)
        shape = (count, self.degree)
        labels = self.labels(first, count)[:, None]
        sizes = (self.job.num_nodes - labels + self.classes - 1) // self.classes
        inside = rng.random(shape) < self.within
        draw = rng.random(shape)
        places = np.where(
            inside,
            labels + self.classes * (draw * sizes).astype(np.int64),
            (draw * self.job.num_nodes).astype(np.int64),
        ).reshape(-1)
        self.job.permute("ids", places)
        return places, np.repeat(np.arange(first, first + count), self.degree)

    def draw_features(
        self, centres: NDArray[np.float32], first: int, count: int
    ) -> NDArray[np.float32]:
        """(count, width) noise plus the community's row of (classes, width) ``centres``."""
        rows = draw_noise(self.job, centres.shape[1], first, count)
        rows += centres[self.labels(first, count)]
        return rows

"""R-MAT graphs: the skewed degrees of a social network, and nothing to learn."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.convert.csc import EdgeReader
from gnnsys.errors import ArgumentError
from gnnsys.generate.blocks import (
    Job,
    draw_noise,
    open_job,
    write_features,
    write_graph,
    write_labels,
    write_split,
)
from gnnsys.generate.graphs import INT32_NODES, RmatGraph, described_by, is_number
from gnnsys.system.extension import core
from gnnsys.system.progress import Progress

__all__ = ["generate_rmat"]

_BLOCK_EDGES = (1 << 14, 1 << 22)  # drawn at a time; changes nothing in the graph

_LEVELS = 4  # that one random word draws
_OUTCOMES = 1 << 2 * _LEVELS
_COLUMN = 1 << 32 - 2 * _LEVELS  # words that fall to one column of the alias table


@described_by(RmatGraph)
def generate_rmat(
    path: str | os.PathLike[str],
    *,
    memory: int = 2 << 30,
    threads: int = 0,
    progress: Progress = lambda what, done, total: None,
    **graph: Any,
) -> Path:
    """Writes an R-MAT graph of 2**scale nodes and edge_factor * 2**scale edges as a dataset folder.

    Each edge falls, once a level, into a quarter of the adjacency matrix: upper left with the
    probability ``a``, upper right ``b``, lower left ``c``, lower right 1 - a - b - c (Chakrabarti,
    Zhan, Faloutsos: "R-MAT: A recursive model for graph mining", SDM 2004, section 3). The
    defaults are those of Graph500. Four levels are drawn at once by the alias method (Hübschle-
    Schneider, Sanders: "Linear work generation of R-MAT graphs", Network Science 2020), with
    probabilities rounded to multiples of 2**-32. Rows are sources, columns targets. Nodes are
    renumbered by a random bijection, as the low ids would be the hubs. Edges may repeat and be
    loops. Features are standard normal and labels uniform: there is nothing to learn.

    A killed call is continued by the same call. With the same numpy, which draws features and
    labels, the same arguments give the same bytes.

    Args:
        path: of the folder to make.
        memory: bytes for sorting edges and for blocks of rows, at least one of which is in hand;
            16 bytes a node come on top.
        threads: that draw and sort; 0 for all cores this process may use.
        progress: is told how far the work is.
        **graph: scale, edge_factor, a, b, c, features, classes, train, val, dtype, undirected and
            seed, as of ``gnnsys.generate.graphs.RmatGraph``; without ``classes`` there are neither
            labels nor splits.

    Returns:
        ``path``, absolute.

    Raises:
        ArgumentError: an argument that cannot be used, or a folder that exists.
        StorageError: the folder cannot be written.

    >>> import tempfile
    >>> folder = generate_rmat(Path(tempfile.mkdtemp()) / "rmat", scale=4, features=2)
    >>> np.load(folder / "indptr.npy").shape, np.load(folder / "indices.npy").shape
    ((17,), (256,))
    """
    rmat = RmatGraph(**graph)
    alias = _alias_table(rmat.a, rmat.b, rmat.c)
    with open_job(
        path, rmat, f"rmat-{rmat.scale}", 1 << rmat.scale, memory, threads, progress
    ) as job:
        write_graph(job, _read_rmat(job, rmat, alias), rmat.undirected)
        if rmat.features:
            write_features(job, rmat, partial(draw_noise, job, rmat.features))
        if rmat.classes:
            write_labels(job, rmat.classes, partial(_draw_labels, job, rmat.classes))
            write_split(job, rmat)
        return job.writer.commit()


def _draw_labels(job: Job, classes: int, first: int, count: int) -> NDArray[np.int64]:
    return job.rng("labels", first).integers(0, classes, count)


def _read_rmat(job: Job, rmat: RmatGraph, alias: NDArray[np.uint32]) -> EdgeReader:
    scale, num_edges = rmat.scale, rmat.edge_factor << rmat.scale
    index = np.int32 if job.num_nodes < INT32_NODES else np.int64
    least, most = _BLOCK_EDGES
    step = min(most, max(least, job.memory // 64))

    def read(first: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        for start in range(first, num_edges, step):
            count = min(step, num_edges - start)
            source: NDArray[Any] = np.empty(count, index)
            target: NDArray[Any] = np.empty(count, index)
            core.draw_rmat_edges(
                job.key("edges"), job.key("ids"), scale, alias, start, source, target, job.threads
            )
            yield source, target

    return read


def _alias_table(a: float, b: float, c: float) -> NDArray[np.uint32]:
    """What four levels draw from a random word: threshold * 256 + other outcome, for each outcome.

    An outcome is four row bits and four column bits. The word's upper 8 bits choose a column of the
    table, its lower 24 the column's own outcome if they are below the threshold, else the other one
    (Vose: "A linear algorithm for generating random numbers with a given distribution", 1991).
    Fractions make the table the same on every machine.

    Raises:
        ArgumentError: a probability that is not above 0, or a sum that is not below 1.
    """
    for name, value in (("a", a), ("b", b), ("c", c)):
        if not (is_number(value) and 0 < value < 1):
            raise ArgumentError(f"{name} is {value!r}, expected a probability above 0 and below 1")
    quarters = [Fraction(float(value)) for value in (a, b, c)]
    quarters.append(1 - quarters[0] - quarters[1] - quarters[2])
    if quarters[3] <= 0:
        raise ArgumentError(f"a + b + c is {a} + {b} + {c} = {a + b + c}, expected less than 1")
    weights = _round_weights([_outcome_share(quarters, outcome) for outcome in range(_OUTCOMES)])
    threshold, other = [0] * _OUTCOMES, list(range(_OUTCOMES))
    small = [outcome for outcome in range(_OUTCOMES) if weights[outcome] < _COLUMN]
    large = [outcome for outcome in range(_OUTCOMES) if weights[outcome] >= _COLUMN]
    while small:
        outcome = small.pop()
        giver = large[-1]
        threshold[outcome], other[outcome] = weights[outcome], giver
        weights[giver] -= _COLUMN - weights[outcome]
        if weights[giver] < _COLUMN:
            small.append(large.pop())
    return np.array(threshold, np.uint32) << np.uint32(8) | np.array(other, np.uint32)


def _outcome_share(quarters: list[Fraction], outcome: int) -> Fraction:
    share = Fraction(1)
    for level in range(_LEVELS):
        row, column = outcome >> _LEVELS + level & 1, outcome >> level & 1
        share *= quarters[2 * row + column]
    return share


def _round_weights(shares: list[Fraction]) -> list[int]:
    """Whole numbers in these proportions whose sum is 2**32: the largest remainders round up."""
    exact = [share * (_OUTCOMES * _COLUMN) for share in shares]
    weights = [math.floor(weight) for weight in exact]
    by_remainder = sorted(range(len(exact)), key=lambda place: weights[place] - exact[place])
    for place in by_remainder[: _OUTCOMES * _COLUMN - sum(weights)]:
        weights[place] += 1
    return weights

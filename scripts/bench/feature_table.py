"""A table of features in a file and lists of its rows, the distinct nodes of sampled mini-batches.

A folder holds ``feat.npy``, float32, behind a header of 4096 bytes, so that pages of the disk hold
whole rows; row i begins with the number i, by which every reader can be checked; and ``ids.npz``,
the lists b0, b1, ..., which all readers read.
"""

from __future__ import annotations

import argparse
import os
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from disk import DISK_PAGE
from harness import BenchError
from minibatch import Workload, find_graph
from numpy.typing import NDArray

from gnnsys.cache.importance import out_degree, rank_normalised
from gnnsys.loaders import CSC, NeighborSampler

__all__ = ["FeatureTable", "find_table", "make_table", "open_table", "score_rows"]

_BLOCK_BYTES = 64 << 20
_MAX_EXACT_ROW = 1 << 24  # row numbers that float32 holds


@dataclass(frozen=True, slots=True)
class FeatureTable:
    """A table on disk."""

    folder: Path
    rows: int
    row_bytes: int
    offset: int
    """Of row 0 in the file."""
    lists: list[NDArray[np.int64]]
    """The distinct rows of each batch."""

    @property
    def file(self) -> Path:
        """Of the features."""
        return self.folder / "feat.npy"

    def pages(self, rows: NDArray[np.int64]) -> int:
        """How many pages of the disk hold these rows."""
        begin = self.offset + rows * self.row_bytes
        first, last = begin // DISK_PAGE, (begin + self.row_bytes - 1) // DISK_PAGE
        most = int((last - first).max(initial=0))
        return len(np.unique(np.minimum(first[:, None] + np.arange(most + 1), last[:, None])))


def make_table(folder: Path, work: Workload, dim: int) -> FeatureTable:
    """Writes a table for all nodes of the work's graph, and the lists of its batches.

    Raises:
        BenchError: the folder's parent does not exist, or the row numbers do not fit into float32.
    """
    rows = work.graph.spec.num_nodes
    if rows > _MAX_EXACT_ROW:
        raise BenchError(f"{rows} rows > {_MAX_EXACT_ROW}: float32 cannot number them")
    if not folder.absolute().parent.is_dir():
        raise BenchError(f"{folder}: its parent folder does not exist; make it first")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        partial.mkdir()
        np.savez(partial / "ids.npz", **dict(_sample_lists(work)))
        _write_features(partial / "feat.npy", rows, dim)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_table(folder)


def open_table(folder: Path) -> FeatureTable:
    """Opens what ``make_table`` wrote.

    Raises:
        BenchError: there is none.
    """
    try:
        features = np.load(folder / "feat.npy", mmap_mode="r")
        with np.load(folder / "ids.npz") as arrays:
            lists = [arrays[f"b{number}"].astype(np.int64) for number in range(len(arrays.files))]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BenchError(
            f"{folder}: not a table with lists ({error}); give a folder that does not exist"
        ) from error
    rows, dim = features.shape
    if features.dtype != np.float32:
        raise BenchError(f"{folder / 'feat.npy'}: {features.dtype} != float32")
    return FeatureTable(folder, rows, dim * 4, features.offset, lists)


def find_table(options: argparse.Namespace, scratch: Path) -> FeatureTable:
    """Opens the folder ``table`` of the options, or makes it from the graph of the options.

    A table that is made has as many lists again as are read; they can give scores.

    Raises:
        BenchError: it has fewer lists than are to be read.
    """
    read = options.warm + options.batches
    if options.table.exists():
        table = open_table(options.table)
    else:
        _, graph = find_graph(options, scratch)
        print(f"making the table in {options.table}", flush=True)
        work = Workload(graph, options.fanouts[0], options.batch_size, 2 * read)
        table = make_table(options.table, work, options.dim)
    if len(table.lists) < read:
        raise BenchError(
            f"{options.table}: has {len(table.lists)} lists < --warm {options.warm} + --batches "
            f"{options.batches}"
        )
    return table


def score_rows(
    table: FeatureTable, options: argparse.Namespace, scratch: Path
) -> tuple[str, NDArray[np.uint16] | None]:
    """What the option ``scores`` stands for, in words, and the scores of all rows.

    Raises:
        BenchError: the graph is not the table's, or no list is left that is not read.
    """
    if options.scores == "none":
        return "none", None
    if options.scores == "degree":
        _, graph = find_graph(options, scratch)
        if graph.spec.num_nodes != table.rows:
            raise BenchError(
                f"--scale {options.scale}: a graph of {graph.spec.num_nodes} nodes != {table.rows} "
                f"rows of {table.folder}"
            )
        return "out-degree", rank_normalised(out_degree(graph.indices, table.rows))
    others = table.lists[options.warm + options.batches :]
    if not others:
        raise BenchError(f"--scores frequency: {table.folder} has no lists that are not read")
    count = np.zeros(table.rows, np.int64)
    for rows in others:
        count[rows] += 1
    return f"frequency in {len(others)} lists that are not read", rank_normalised(count)


def _sample_lists(work: Workload) -> Iterator[tuple[str, NDArray[np.int64]]]:
    graph = CSC(torch.from_numpy(work.graph.indptr), torch.from_numpy(work.graph.indices))
    sampler = NeighborSampler(graph, work.fanouts)
    for number in range(work.batches):
        yield f"b{number}", sampler.sample(work.seeds(number), group=number).node.numpy()


def _write_features(path: Path, rows: int, dim: int) -> None:
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dim}), }}"
    preamble = b"\x93NUMPY\x01\x00"
    length = DISK_PAGE - len(preamble) - 2
    step = max(1, _BLOCK_BYTES // (4 * dim))
    block = np.random.default_rng(3).standard_normal((step, dim), np.float32)
    with path.open("wb") as file:
        file.write(preamble + length.to_bytes(2, "little"))
        file.write(head.encode().ljust(length - 1) + b"\n")
        for start in range(0, rows, step):
            count = min(step, rows - start)
            block[:count, 0] = np.arange(start, start + count)
            block[:count].tofile(file)
        file.flush()
        os.fsync(file.fileno())

"""The rows that recorded plans read, written in the order of the batches that read them.

Owns ``pack_rows``. The table is read once, from its first row to its last: a batch reads ascending
ids, so that of each piece of the table it takes rows that follow one another in what is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gnnsys.cache.packed.plans import RecordedPlans
from gnnsys.memory.reads import PendingRows, Reads
from gnnsys.memory.store import Store
from gnnsys.system.extension import core
from gnnsys.system.files import as_storage_error
from gnnsys.system.threads import num_threads

__all__ = ["pack_rows"]

_PAGE = 4096
_SPARSE = 0.3
"""Pages of single rows are read where they are less than this share of a piece's bytes: a disk of
85,000 reads of a page a second reads 1.2 GB/s in one pass."""


def pack_rows(
    source: Store,
    plans: RecordedPlans,
    batches: int,
    path: Path,
    *,
    memory: int,
    threads: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Writes what the first batches read, as it is stored, row after row.

    Args:
        source: the table.
        plans: of the batches.
        batches: how many of them.
        path: of the file.
        memory: bytes for rows on their way, about.
        threads: that move rows; 0 for all cores.
        progress: is told (bytes of the table passed, bytes of the table).

    Raises:
        StorageError: the table cannot be read, or the file not written.
        FileFormatError: the table became shorter.
    """
    num_rows, row_bytes = source.shape[0], source.row_bytes
    step = max(1, memory // 3 // row_bytes)  # a piece, the next one, rows to be written
    bounds = np.array([*range(0, num_rows, step), num_rows], np.int32)
    reads = [plans.reads(place) for place in range(batches)]
    starts = plans.first_reads[:batches]
    passed = np.zeros(batches, np.int64)  # of each batch's reads, those in pieces that were begun
    mover, buffer = core.PlanExecutor(num_threads(threads)), np.empty((step, row_bytes), np.uint8)

    def read(number: int) -> tuple[NDArray[np.int64], _Piece]:
        """Places in the file of what each batch reads of a piece, the next one, and the piece."""
        nonlocal passed
        begins, last = passed, bounds[number + 1]
        passed = np.array([ids.searchsorted(last) for ids in reads], np.int64)
        ends = zip(reads, begins.tolist(), passed.tolist(), strict=True)
        of_piece = [ids[begin:end] for ids, begin, end in ends]
        return starts + begins, _Piece(source, of_piece, bounds[number], last)

    with as_storage_error(path), open(path, "wb", buffering=0) as file:
        ahead: list[tuple[NDArray[np.int64], _Piece]] = []
        try:
            for number in range(len(bounds) - 1):
                for each in range(number + len(ahead), min(number + 2, len(bounds) - 1)):
                    ahead.append(read(each))
                places, piece = ahead.pop(0)
                addresses = piece.wait()
                for first, last in _groups(piece.sizes, step):
                    begin, end = piece.ends[first] - piece.sizes[first], piece.ends[last - 1]
                    targets = buffer.ctypes.data + np.arange(end - begin) * row_bytes
                    mover.move(addresses[begin:end], targets, row_bytes)
                    done = 0
                    for size, place in zip(
                        piece.sizes[first:last], places[first:last], strict=True
                    ):
                        _write(file.fileno(), buffer[done : done + size], int(place) * row_bytes)
                        done += size
                progress(int(bounds[number + 1]) * row_bytes, num_rows * row_bytes)
        finally:
            for _, piece in ahead:
                piece.cancel()
        os.fdatasync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # it is read once


def _groups(sizes: list[int], most: int) -> Iterator[tuple[int, int]]:
    """Runs of batches that have at most so many rows together; each batch alone has no more."""
    first = rows = 0
    for number, size in enumerate(sizes):
        if rows + size > most:
            yield first, number
            first, rows = number, 0
        rows += size
    if rows:
        yield first, len(sizes)


class _Piece:
    """Rows [first, last) of the table, those that batches read or all, on their way.

    Args:
        source: the table.
        reads: (n,) ids that each batch reads of these rows.
        first, last: rows.
    """

    def __init__(
        self, source: Store, reads: list[NDArray[np.int32]], first: int, last: int
    ) -> None:
        self.sizes = [len(ids) for ids in reads]
        """Rows that each batch reads."""
        self.ends = np.cumsum(self.sizes).tolist()
        """Where they end among those of all."""
        places = np.concatenate(reads) - first
        wanted = np.zeros(last - first, bool)
        wanted[places] = True
        pages = int(wanted.sum()) * -(-source.row_bytes // _PAGE) * _PAGE
        if pages >= _SPARSE * len(wanted) * source.row_bytes:
            wanted[:] = True
        self._places = (np.cumsum(wanted) - 1)[places]
        self._pending: PendingRows | None = None
        if len(places):
            self._pending = source.start_reads(Reads(first + np.flatnonzero(wanted)))

    def wait(self) -> NDArray[np.int64]:
        """(rows of all batches,) addresses of the rows; valid as long as this object lives."""
        if self._pending is None:
            return np.empty(0, np.int64)
        self._staged = self._pending.wait()
        return (self._staged.address + self._staged.offsets)[self._places]

    def cancel(self) -> None:
        """Lets go of rows that nobody waits for."""
        if self._pending is not None:
            self._pending.cancel()


def _write(handle: int, data: NDArray[np.uint8], offset: int) -> None:
    view = data.reshape(-1).data
    while len(view):
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written

"""The rows that recorded plans read, written in the order of the batches that read them.

Owns ``pack_rows``. The table is read once, from its first row to its last: a batch reads ascending
ids, so that of each piece of the table it takes rows that follow one another in what is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable
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
_SPARSE = 0.5
"""Pages of single rows are read where they are less than this share of the piece's bytes."""


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
    starts = plans.first_reads[:batches] * row_bytes
    reads = [plans.reads(place) for place in range(batches)]
    step = max(1, memory // 3 // row_bytes)  # a piece, the next one, rows to be written
    mover, buffer = core.PlanExecutor(num_threads(threads)), np.empty(step * row_bytes, np.uint8)
    with as_storage_error(path), open(path, "wb", buffering=0) as file:
        ahead: list[_Piece] = []
        done = np.zeros(batches, np.int64)  # of the rows of each batch
        firsts = range(0, num_rows, step)
        try:
            for number in range(len(firsts)):
                for first in firsts[number + len(ahead) : number + 2]:
                    ahead.append(_Piece(source, reads, first, min(first + step, num_rows)))
                piece = ahead.pop(0)
                addresses = piece.wait()
                for batch in np.flatnonzero(piece.ends > done):
                    ids = reads[batch][done[batch] : piece.ends[batch]]
                    size = len(ids) * row_bytes
                    targets = buffer.ctypes.data + np.arange(len(ids)) * row_bytes
                    mover.move(addresses[piece.places(ids)], targets, row_bytes)
                    _write(
                        file.fileno(), buffer[:size], int(starts[batch] + done[batch] * row_bytes)
                    )
                done = piece.ends
                progress(piece.last * row_bytes, num_rows * row_bytes)
        finally:
            for piece in ahead:
                piece.cancel()
        os.fdatasync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # it is read once


class _Piece:
    """Rows [first, last) of the table, those that batches read or all, on their way."""

    def __init__(
        self, source: Store, reads: list[NDArray[np.int32]], first: int, last: int
    ) -> None:
        bounds = np.array([first, last], np.int32)  # of the ids' type, which are not copied then
        slices = np.array([np.searchsorted(ids, bounds) for ids in reads])
        self.ends = slices[:, 1]
        wanted = np.zeros(last - first, bool)
        for ids, (begin, end) in zip(reads, slices.tolist(), strict=True):
            wanted[ids[begin:end] - first] = True
        size = last - first
        pages = int(wanted.sum()) * -(-source.row_bytes // _PAGE) * _PAGE
        if pages >= _SPARSE * size * source.row_bytes:
            wanted[:] = True
        self.last, self._first = last, first
        self._place_of = np.cumsum(wanted) - 1
        self._pending: PendingRows | None = None
        if wanted.any():
            self._pending = source.start_reads(Reads(first + np.flatnonzero(wanted)))

    def wait(self) -> NDArray[np.int64]:
        """(rows,) addresses of the rows; valid as long as this object lives."""
        if self._pending is None:
            return np.empty(0, np.int64)
        self._staged = self._pending.wait()
        return self._staged.address + self._staged.offsets

    def places(self, ids: NDArray[np.int32]) -> NDArray[np.int64]:
        """Where rows stand among those that were read."""
        return self._place_of[ids - self._first]

    def cancel(self) -> None:
        if self._pending is not None:
            self._pending.cancel()


def _write(handle: int, data: NDArray[np.uint8], offset: int) -> None:
    view = data.data
    while len(view):
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written

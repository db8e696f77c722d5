"""Plans of the batches of an epoch in a folder: recorded in order, read at any place.

Owns ``record_plans`` and ``RecordedPlans``. The folder has ``plans.bin``, int32: the hits, fills,
copies and reads of each batch, one batch after another; ``index.npy``, where each batch lies in it
and how many of each there are; ``residents.npy``, the rows that the cache holds at the start.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gnnsys.cache.plan import BatchPlan
from gnnsys.cache.planner import Planner
from gnnsys.errors import FileFormatError
from gnnsys.system.files import as_storage_error, map_npy, replace_npy, write_whole

__all__ = ["OF_A_USE", "RecordedPlans", "record_plans"]

_PLANS, _INDEX, _RESIDENTS = "plans.bin", "index.npy", "residents.npy"
OF_A_USE = 24
"""Bytes that a cache's planner has for each row of a batch ahead: 4 of its id until the batch is
looked at, then a record of 16 in a ring that is half full at least before it doubles, so that it
takes 24 on the average of its sizes and 32 at most."""
_START, _ROWS, _HITS, _FILLS, _COPIES, _EVICTIONS, _CHECKSUM = range(7)
"""Columns of the index."""


def record_plans(
    folder: Path,
    planner: Planner,
    batches: Iterable[NDArray[np.int64]],
    *,
    ahead_bytes: int,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Plans batches, and writes the plans to a folder.

    Args:
        folder: to write to.
        planner: without batches and without a victim buffer. Where its window and ``ahead_bytes``
            span all batches, it reads as few rows as any plan can (Belady: "A study of replacement
            algorithms for a virtual-storage computer", 1966).
        batches: (n,) ids of each.
        ahead_bytes: for batches that wait to be planned, about.
        progress: is told how many plans are made.

    Raises:
        StorageError: they cannot be written.
    """
    waiting: deque[tuple[int, int]] = deque()  # ids and checksum of each batch that is announced
    index: list[list[int]] = []
    held = end = 0
    with as_storage_error(folder / _PLANS), open(folder / _PLANS, "wb", buffering=0) as file:
        replace_npy(folder / _RESIDENTS, np.asarray(planner.prefilled, np.int32))

        def plan_next() -> None:
            nonlocal held, end
            plan, (size, checksum) = planner.plan(), waiting.popleft()
            planner.commit(plan.batch)
            parts = plan.hits, plan.fills, plan.copies, plan.reads.astype(np.int32)
            counts = [plan.rows, *map(len, parts[:3]), plan.evictions, checksum]
            index.append([end, *counts])
            data = np.concatenate([part.reshape(-1) for part in parts])
            write_whole(file, data.view(np.uint8).data)
            held, end = held - size, end + len(data)
            progress(len(index))

        for ids in batches:
            planner.announce(ids)
            waiting.append((len(ids), _checksum(ids)))
            held += len(ids)
            while len(waiting) > 1 and (
                OF_A_USE * held > ahead_bytes or len(waiting) > planner.window
            ):
                plan_next()
        while waiting:
            plan_next()
    replace_npy(folder / _INDEX, np.array(index, np.int64).reshape(len(index), 7))


class RecordedPlans:
    """What ``record_plans`` wrote.

    Args:
        folder: that it wrote to.

    Raises:
        MissingFileError, FileFormatError: it is not there, or not whole.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> batches = [np.array(ids) for ids in ([3, 4], [4, 5], [3])]
    >>> record_plans(folder, Planner(9, capacity=1, window=3), batches, ahead_bytes=1000)
    >>> [RecordedPlans(folder).reads(place).tolist() for place in range(3)]
    [[3, 4], [5], [3]]
    """

    def __init__(self, folder: Path) -> None:
        self._index = map_npy(folder / _INDEX)
        self.residents: NDArray[np.int32] = np.array(map_npy(folder / _RESIDENTS))
        """(k,) ids that slots 0 .. k - 1 hold before the first batch, ascending."""
        path = folder / _PLANS
        try:
            # Not as a memmap, each slice of which costs microseconds.
            self._data: NDArray[np.int32] = np.asarray(np.memmap(path, np.int32, "r"))
        except (OSError, ValueError) as error:
            raise FileFormatError(f"{path}: cannot be read ({error}); pack again") from error
        if len(self._index) == 0 or len(self._data) != self._end(len(self._index) - 1):
            raise FileFormatError(f"{path}: not as long as {_INDEX} says; pack again")
        self.nbytes = sum((folder / name).stat().st_size for name in (_PLANS, _INDEX, _RESIDENTS))
        """Of the files."""

    def __len__(self) -> int:
        return len(self._index)

    @property
    def first_reads(self) -> NDArray[np.int64]:
        """(batches + 1,) how many rows are read before each batch, and in all."""
        return np.concatenate([[0], np.cumsum(self._index[:, _FILLS])])

    def is_of(self, place: int, ids: NDArray[np.int64]) -> bool:
        """Whether the batch at a place has these ids, by a checksum."""
        row = self._index[place]
        return bool(row[_ROWS] == len(ids) and row[_CHECKSUM] == _checksum(ids))

    def plan(self, place: int) -> BatchPlan:
        """The plan of the batch at a place, its arrays in the file's memory."""
        start, rows, *sizes, evictions, _ = self._index[place].tolist()
        tables = []
        for size, columns in zip(sizes, (2, 3, 2), strict=True):
            tables.append(self._data[start : start + size * columns].reshape(size, columns))
            start += size * columns
        hits, fills, copies = tables
        return BatchPlan(
            batch=place,
            rows=rows,
            hits=hits,
            victim_in=np.empty((0, 3), np.int32),
            fills=fills,
            copies=copies,
            reads=self.reads(place).astype(np.int64),
            victim_out=np.empty((0, 2), np.int32),
            drops=0,
            evictions=evictions,
        )

    def reads(self, place: int) -> NDArray[np.int32]:
        """(r,) ids that the batch at a place reads, ascending."""
        end = self._end(place)
        return self._data[end - self._index[place, _FILLS] : end]

    def entered(self, place: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """(n,) slots that the batch at a place fills, and the ids they hold from then on."""
        row = self._index[place]
        start, size = int(row[_START] + 2 * row[_HITS]), int(row[_FILLS])
        fills = self._data[start : start + 3 * size].reshape(size, 3)
        fills = fills[fills[:, 2] >= 0]
        return fills[:, 2], self.reads(place)[fills[:, 1]]

    def _end(self, place: int) -> int:
        row = self._index[place]
        return int(row[_START] + 2 * row[_HITS] + 4 * row[_FILLS] + 2 * row[_COPIES])


def _checksum(ids: NDArray[np.int64]) -> int:
    return zlib.crc32(np.ascontiguousarray(ids, np.int64).view(np.uint8).data)

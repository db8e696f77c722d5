"""Traces: the ids of every batch, in order, for the simulator to replay.

Owns ``TraceWriter``, ``Trace`` and ``read_trace``. Imports numpy, ``files`` and ``errors``. A trace
is a folder of .npy files: ``ids.npy``, the ids of all batches one after another (int32 where every
row number fits, else int64); ``offsets.npy``, where each batch begins among them, and their number;
``rows.npy``, the rows of the table.
"""

from __future__ import annotations

import os
import shutil
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gnnsys.errors import (
    ArgumentError,
    DTypeError,
    FileFormatError,
    MissingFileError,
    RowIndexError,
    StorageError,
)
from gnnsys.system.files import (
    HEADER_BYTES,
    as_storage_error,
    check_folder_of,
    lock_file,
    map_npy,
    npy_header,
    replace_npy,
    sync,
    write_at,
)

__all__ = ["Trace", "TraceWriter", "read_trace"]

_IDS, _OFFSETS, _ROWS = "ids.npy", "offsets.npy", "rows.npy"
_LOCK = "lock"
_SMALL_IDS = 1 << 31  # rows of a table up to which an id fits into int32


class TraceWriter:
    """Records the ids of batches; the trace appears under its name when it is closed.

    Until then it grows as ``NAME.new``, which a kill leaves behind and the next recording to the
    same name begins anew. Memory taken: 8 bytes a batch. In a ``with`` statement an error inside
    removes what was recorded.

    Args:
        path: of the trace; a trace or a file that exists is replaced.
        num_rows: rows of the table that ids point into.

    Raises:
        ArgumentError: ``num_rows`` below 0.
        StorageError: the trace cannot be written, a folder of something else has its name, or
            another writer records to it.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "epoch.trace"
    >>> with TraceWriter(path, num_rows=100) as trace:
    ...     trace.add([3, 99])
    ...     trace.add([0])
    >>> [ids.tolist() for ids in read_trace(path)]
    [[3, 99], [0]]
    """

    def __init__(self, path: str | os.PathLike[str], num_rows: int) -> None:
        if num_rows < 0:
            raise ArgumentError(f"num_rows: {num_rows}, expected at least 0")
        self.path = Path(path).absolute()
        self.num_rows = num_rows
        self._new = self.path.with_name(self.path.name + ".new")
        self._dtype = np.dtype("<i4" if num_rows <= _SMALL_IDS else "<i8")
        self._offsets = array("q", [0])
        check_folder_of(self.path)
        if self.path.is_dir() and not (self.path / _ROWS).is_file():
            raise StorageError(f"{self.path}: a folder that is no trace; choose another name")
        with as_storage_error(self.path):
            lock = lock_file(self._new / _LOCK)
            if lock is None:
                raise StorageError(
                    f"{self.path}: another writer records a trace there; wait, or give another name"
                )
            self._lock = lock
            (self._new / _IDS).unlink(missing_ok=True)

    def add(self, ids: ArrayLike) -> None:
        """Appends a batch.

        Args:
            ids: (n,) integers; may repeat, may be none.

        Raises:
            RowIndexError: an id outside the table.
            ArgumentError, DTypeError: not a list of integers, or the writer is closed.
            StorageError: the disk is full.
        """
        if self._lock.closed:
            raise ArgumentError(f"{self.path}: the trace is closed; make another writer")
        batch = np.asarray(ids)
        if batch.ndim != 1:
            raise ArgumentError(f"ids: an array of shape {batch.shape}, expected (n,)")
        if len(batch) and batch.dtype.kind not in "iu":
            raise DTypeError(f"ids: of type {batch.dtype}, expected integers")
        wrong = _outside(batch, self.num_rows)
        if wrong is not None:
            raise RowIndexError(f"ids: {wrong} is outside [0, {self.num_rows})")
        with self._all_or_nothing():
            place = HEADER_BYTES + self._offsets[-1] * self._dtype.itemsize
            write_at(self._new / _IDS, place, batch.astype(self._dtype))
        self._offsets.append(self._offsets[-1] + len(batch))

    def close(self) -> None:
        """Completes the trace and gives it its name. Closing again does nothing."""
        if self._lock.closed:
            return
        with self._all_or_nothing():
            header = npy_header((self._offsets[-1],), self._dtype)
            write_at(self._new / _IDS, 0, np.frombuffer(header, np.uint8))
            sync(self._new / _IDS)
            replace_npy(self._new / _OFFSETS, np.asarray(self._offsets, "<i8"))
            replace_npy(self._new / _ROWS, np.array(self.num_rows, "<i8"))
            (self._new / _LOCK).unlink()
            _remove(self.path)
            os.replace(self._new, self.path)
            sync(self.path.parent)
        self._lock.close()

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """What cannot be written leaves nothing: half a batch may be there."""
        try:
            with as_storage_error(self.path):
                yield
        except StorageError:
            self.discard()
            raise

    def discard(self) -> None:
        """Removes what was recorded."""
        if not self._lock.closed:
            _remove(self._new)
            self._lock.close()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if error is None:
            self.close()
        else:
            self.discard()


class Trace(Sequence[NDArray[np.int64]]):
    """The batches of a recording, each (n,) int64 ids, read from the mapped file as they are asked
    for. A slice is a ``Trace`` as well; its step must be 1.

    >>> trace = Trace(np.array([3, 99, 0], np.int32), np.array([0, 2, 3]), num_rows=100)
    >>> len(trace), trace[-1].tolist(), trace[:1].num_ids
    (2, [0], 2)
    """

    def __init__(
        self,
        ids: NDArray[np.int32] | NDArray[np.int64],
        starts: NDArray[np.int64],
        num_rows: int,
        path: Path | None = None,
    ) -> None:
        self.num_rows = num_rows
        """Of the table that ids point into."""
        self._ids, self._starts, self._path = ids, starts, path

    @property
    def num_ids(self) -> int:
        """Of all batches together."""
        return int(self._starts[-1] - self._starts[0])

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, place: int) -> NDArray[np.int64]: ...
    @overload
    def __getitem__(self, place: slice) -> Trace: ...
    def __getitem__(self, place: int | slice) -> NDArray[np.int64] | Trace:
        if isinstance(place, slice):
            first, end, step = place.indices(len(self))
            if step != 1:
                raise ArgumentError(f"trace: a slice with step {step}, expected 1")
            starts = self._starts[first : max(first, end) + 1]
            return Trace(self._ids, starts, self.num_rows, self._path)
        number = range(len(self))[place]  # IndexError, and the end of an iteration
        ids = np.array(self._ids[self._starts[number] : self._starts[number + 1]], np.int64)
        wrong = _outside(ids, self.num_rows)
        if wrong is not None:
            raise FileFormatError(
                f"{self._path}: batch {number} holds the id {wrong}, outside [0, {self.num_rows}): "
                "the file is damaged; record it again"
            )
        return ids


def read_trace(path: str | os.PathLike[str]) -> Trace:
    """Opens a trace without loading it.

    Raises:
        MissingFileError: there is no such trace.
        FileFormatError: it is no trace, that of an older version, or damaged.
    """
    place = Path(path)
    if not place.exists():
        raise MissingFileError(
            f"{place}: no such file; a trace is recorded by gnnsys train --trace FILE"
        )
    if not (place / _ROWS).is_file():
        raise FileFormatError(
            f"{place}: not a trace, which is a folder with {_IDS}, {_OFFSETS} and {_ROWS} (older "
            "versions wrote one file); record one by gnnsys train --trace FILE"
        )
    ids, starts, rows = (map_npy(place / name) for name in (_IDS, _OFFSETS, _ROWS))
    integers = all(array.dtype in ("<i4", "<i8") for array in (ids, starts, rows))
    ends = integers and starts.ndim == 1 and [*starts[:1], *starts[-1:]] == [0, *ids.shape]
    if not ends or (np.diff(starts) < 0).any() or rows.ndim or rows < 0:
        raise FileFormatError(
            f"{place}: damaged: {_OFFSETS} does not ascend from 0 to the length of {_IDS}, or one "
            "of its arrays is of another kind; record the trace again"
        )
    return Trace(ids, starts, int(rows), place)


def _outside(ids: NDArray[np.integer], num_rows: int) -> int | None:
    """The first id outside [0, num_rows)."""
    if len(ids) == 0 or (ids.min() >= 0 and ids.max() < num_rows):
        return None
    return int(ids[(ids < 0) | (ids >= num_rows)][0])


def _remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)

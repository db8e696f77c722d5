"""Trace files: the ids of every batch, in order, for the simulator to replay.

Owns ``TraceWriter``, ``Trace`` and ``read_trace``. Imports numpy, ``files`` and ``errors``. A file
is a header of 64 bytes, then the ids of all batches one after another (int32 where every row
number fits, else int64), zeros up to a multiple of 8 bytes, and where each batch begins among the
ids (batches + 1 times int64). All numbers are little-endian:

====== ====== ==============================
offset  type   what
====== ====== ==============================
0      8 byte ``gnntrace``
8      uint32 version, 1
12     uint32 bytes of an id, 4 or 8
16     int64  rows of the table
24     int64  batches
32     int64  ids of all batches together
40     24 byte zero
====== ====== ==============================
"""

from __future__ import annotations

import fcntl
import os
import struct
from array import array
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from types import TracebackType
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
from gnnsys.system.files import as_storage_error, sync, write_whole

__all__ = ["Trace", "TraceWriter", "read_trace"]

_HEADER = struct.Struct("<8sIIqqq24x")
_MAGIC = b"gnntrace"
_VERSION = 1
_SMALL_IDS = 1 << 31  # rows of a table up to which an id fits into int32


class TraceWriter:
    """Records the ids of batches; the file appears under its name when it is closed.

    Until then it grows as ``NAME.new``, which a kill leaves behind and the next recording to the
    same name begins anew. Memory taken: 8 bytes a batch. In a ``with`` statement an error inside
    removes what was recorded.

    Args:
        path: of the file; one that exists is replaced.
        num_rows: rows of the table that ids point into.

    Raises:
        ArgumentError: ``num_rows`` below 0.
        StorageError: the file cannot be written, or another writer records to the same name.

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
        self._partial = self.path.with_name(self.path.name + ".new")
        self._dtype = np.dtype("<i4" if num_rows <= _SMALL_IDS else "<i8")
        self._starts = array("q", [0])
        with as_storage_error(self.path):
            if self.path.is_dir():
                raise IsADirectoryError(None, "it is a folder")
            self._file: FileIO | None = _open_alone(self._partial)
            write_whole(self._file, bytes(_HEADER.size))

    def add(self, ids: ArrayLike) -> None:
        """Appends a batch.

        Args:
            ids: (n,) integers; may repeat, may be none.

        Raises:
            RowIndexError: an id outside the table.
            ArgumentError, DTypeError: not a list of integers, or the writer is closed.
            StorageError: the disk is full.
        """
        if self._file is None:
            raise ArgumentError(f"{self.path}: the trace is closed; make another writer")
        batch = np.asarray(ids)
        if batch.ndim != 1:
            raise ArgumentError(f"ids: an array of shape {batch.shape}, expected (n,)")
        if len(batch) and batch.dtype.kind not in "iu":
            raise DTypeError(f"ids: of type {batch.dtype}, expected integers")
        wrong = _outside(batch, self.num_rows)
        if wrong is not None:
            raise RowIndexError(f"ids: {wrong} is outside [0, {self.num_rows})")
        try:
            with as_storage_error(self.path):
                data = np.ascontiguousarray(batch, self._dtype)
                write_whole(self._file, data.view(np.uint8).data)
        except StorageError:
            self.discard()  # half a batch may be written
            raise
        self._starts.append(self._starts[-1] + len(batch))

    def close(self) -> None:
        """Completes the file and gives it its name. Closing again does nothing."""
        if self._file is None:
            return
        batches, ids = len(self._starts) - 1, self._starts[-1]
        header = _HEADER.pack(_MAGIC, _VERSION, self._dtype.itemsize, self.num_rows, batches, ids)
        try:
            with as_storage_error(self.path):
                write_whole(self._file, bytes(-ids * self._dtype.itemsize % 8))
                write_whole(self._file, np.asarray(self._starts, "<i8").view(np.uint8).data)
                self._file.seek(0)
                write_whole(self._file, header)
                os.fsync(self._file.fileno())
                os.replace(self._partial, self.path)
                sync(self.path.parent)
        except StorageError:
            self.discard()
            raise
        self._file.close()
        self._file = None

    def discard(self) -> None:
        """Removes what was recorded."""
        if self._file is not None:
            self._partial.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
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
    """Opens a trace file without loading it.

    Raises:
        MissingFileError: there is no such file.
        FileFormatError: it is no trace, a newer version's, or cut short.
    """
    place = Path(path)
    try:
        size = place.stat().st_size
        with open(place, "rb") as file:
            header = file.read(_HEADER.size)
    except FileNotFoundError:
        raise MissingFileError(
            f"{place}: no such file; a trace is recorded by gnnsys train --trace FILE"
        ) from None
    except OSError as error:
        raise FileFormatError(f"{place}: cannot be read ({error.strerror})") from error
    if header[: len(_MAGIC)] != _MAGIC or len(header) < _HEADER.size:
        raise FileFormatError(
            f"{place}: begins with {header[: len(_MAGIC)]!r}, expected {_MAGIC!r} and a header of "
            f"{_HEADER.size} bytes: not a trace; record one by gnnsys train --trace FILE"
        )
    _, version, itemsize, num_rows, batches, num_ids = _HEADER.unpack(header)
    if version != _VERSION:
        raise FileFormatError(
            f"{place}: version {version}, this gnnsys reads {_VERSION}; upgrade gnnsys or record "
            "the trace again"
        )
    if itemsize not in (4, 8) or min(num_rows, batches, num_ids) < 0:
        raise FileFormatError(f"{place}: its header is damaged; record the trace again")
    ids_end = _HEADER.size + -(-num_ids * itemsize // 8) * 8
    expected = ids_end + (batches + 1) * 8
    if size != expected:
        raise FileFormatError(
            f"{place}: {size} bytes, expected {expected} for {batches} batches of {num_ids} ids: "
            f"{'cut short' if size < expected else 'something follows'}; record the trace again"
        )
    starts = np.fromfile(place, "<i8", count=batches + 1, offset=ids_end)
    if starts[0] != 0 or starts[-1] != num_ids or (np.diff(starts) < 0).any():
        raise FileFormatError(
            f"{place}: where its batches begin does not ascend from 0 to {num_ids}: the file is "
            "damaged; record the trace again"
        )
    dtype = np.dtype(f"<i{itemsize}")
    ids = (
        np.memmap(place, dtype, mode="r", offset=_HEADER.size, shape=(num_ids,))
        if num_ids
        else np.empty(0, dtype)  # nothing cannot be mapped
    )
    return Trace(ids, starts, num_rows, place)


def _outside(ids: NDArray[np.integer], num_rows: int) -> int | None:
    """The first id outside [0, num_rows)."""
    if len(ids) == 0 or (ids.min() >= 0 and ids.max() < num_rows):
        return None
    return int(ids[(ids < 0) | (ids >= num_rows)][0])


def _open_alone(path: Path) -> FileIO:
    """Opens an empty file that no other writer has."""
    while True:
        file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise StorageError(
                f"{path}: another writer records a trace there; wait, or give another name"
            ) from None
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            file.truncate(0)
            return file
        file.close()  # the writer that had it gave it its name meanwhile

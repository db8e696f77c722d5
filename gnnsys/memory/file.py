"""Rows in a file: a .npy array or raw bytes."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.counters import Counters
from gnnsys.errors import ArgumentError, DTypeError, FileFormatError, ReadOnlyError
from gnnsys.memory.alloc import empty
from gnnsys.memory.describe import in_short
from gnnsys.memory.direct_rows import DirectRows, best_depth, direct_mode
from gnnsys.memory.encoding import Encoding, Quantised, bytes_of, check_dtype
from gnnsys.memory.gate import Gate
from gnnsys.memory.ids import check_ids
from gnnsys.memory.mapped_rows import MappedRows
from gnnsys.memory.reads import PendingRows, Reads, ReadStats, Storage
from gnnsys.memory.row_writer import open_writer
from gnnsys.memory.store import Store, check_out, check_range, check_rows, check_write
from gnnsys.memory.table_file import Shard, TableFile
from gnnsys.system.budget import process_budget
from gnnsys.system.files import as_storage_error, npy_header
from gnnsys.system.names import naming_keywords

__all__ = ["FileStore"]

_log = logging.getLogger(__name__)
_MAX_DEPTH = 4096
_PIECE_BYTES = 16 << 20  # that are read at once of rows to be decoded


class FileStore(Store):
    """Rows of a ``.npy`` file (C order), of several one after another, or of a raw file.

    Only the pages of the rows asked for are read.

    Args:
        path: of the file, or of the files that hold one range of rows each, maybe on several disks.
        dtype: of what is gathered; None for that of the file.
        encoding: element type of the file where its header cannot name it: ``torch.bfloat16`` for
            a uint16 ``.npy``. A raw file needs it. Or how its rows are quantised: then it holds
            (rows, row_bytes) uint8, and float32 is gathered of it where ``dtype`` is None.
        shape: (rows, …); for a raw file, and only there.
        offset: bytes before the first row of a raw file.
        threads: that gather; 0 for all cores this process may use.
        writable: whether ``write`` may change the file.
        isa: "auto", or an instruction set of ``gnnsys._core.isas()``.
        storage: how the file is read. "mmap": through the page cache, mapped. "uring" and "pread":
            past the page cache (O_DIRECT, where the file system has it), by io_uring or by a pool
            of threads. "auto": "mmap" where the file fits in a quarter of the available memory,
            else "uring" where the kernel has it, else "pread".
        depth: reads in flight at once; 0 for what a probe of the disk found, or 128. Not used by
            "mmap".

    Raises:
        MissingFileError: there is no such file.
        FileFormatError: not a .npy array in C order, or shorter or longer than its header says.
        DTypeError, ArgumentError: an unusable dtype, or raw options that do not fit.
        UnsupportedError: "uring" was asked for where there is no io_uring; the reason is told.

    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "features.npy")
    >>> np.save(path, np.arange(6, dtype=np.float32).reshape(3, 2))
    >>> FileStore(path).gather(torch.tensor([2, 0]))
    tensor([[4., 5.],
            [0., 1.]])
    """

    tier = "file"

    @naming_keywords()
    def __init__(
        self,
        path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        dtype: torch.dtype | None = None,
        encoding: torch.dtype | Quantised | None = None,
        shape: Sequence[int] | None = None,
        offset: int = 0,
        threads: int = 0,
        writable: bool = False,
        isa: str = "auto",
        storage: Storage = "auto",
        depth: int = 0,
    ) -> None:
        self.paths = _absolute(path)
        self._options: dict[str, Any] = {
            "encoding": encoding,
            "shape": shape,
            "offset": offset,
            "threads": threads,
            "writable": writable,
            "isa": isa,
            "storage": storage,
            "depth": depth,
        }
        codes = encoding if isinstance(encoding, Quantised) else None
        in_file = torch.uint8 if isinstance(encoding, Quantised) else encoding
        self._table = TableFile(self.paths, in_file, shape, offset)
        self.path = self.paths[0]
        stored = self._table.stored
        self.encoding = Encoding(stored, dtype or (torch.float32 if codes else stored), codes)
        self.shape = self.encoding.delivered_shape(self._table.shape)
        if self._table.row_bytes != self.row_bytes:
            self._table.close()
            raise FileFormatError(
                f"{self.path}: rows of {self._table.row_bytes} bytes, expected {self.row_bytes}: "
                f"{codes}; convert the source again"
            )
        self.counters = Counters()
        self._gate = Gate(self.path)
        try:
            self._reader = self._open_reader(storage, depth, threads, isa)
        except BaseException:
            self._table.close()
            raise
        self.depth = self._reader.depth

    def _open_reader(
        self, storage: Storage, depth: int, threads: int, isa: str
    ) -> MappedRows | DirectRows:
        if storage not in get_args(Storage):
            raise ArgumentError(
                f"storage: {storage!r}, expected one of {', '.join(get_args(Storage))}"
            )
        if depth < 0 or depth > _MAX_DEPTH:
            raise ArgumentError(f"depth: {depth}, expected 1 to {_MAX_DEPTH}, or 0 for the default")
        fits = 4 * self._table.nbytes <= process_budget().left()
        if storage == "mmap" or (storage == "auto" and fits):
            return MappedRows(self._table, threads, isa)
        depth = depth or best_depth(self._table)
        return DirectRows(self._table, direct_mode(storage, depth), depth, threads, isa)

    @property
    def storage(self) -> str:
        """How the file is read: "uring", "pread" or "mmap"."""
        return self._reader.mode

    @property
    def writable(self) -> bool:
        """Whether ``write`` may change the file."""
        return bool(self._options["writable"])

    @property
    def read_stats(self) -> ReadStats:
        """What was read from the disk so far."""
        return self._reader.stats

    def gather(self, ids: Tensor, out: Tensor | None = None, stream: Any = None) -> Tensor:
        """See ``Store.gather``.

        Raises:
            FileFormatError: the file became shorter.
            StorageError: the disk failed; the message names the file and the place.
        """
        del stream
        with self._gate:
            rows = self._reader.gather(check_ids(ids), self.encoding, out)
        self.counters.add(self.tier, len(rows), len(rows) * self.row_bytes)
        return rows

    def start_reads(self, batch: Reads) -> PendingRows:
        """See ``Store.start_reads``.

        >>> import ctypes, os, tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "features.npy")
        >>> np.save(path, np.arange(6, dtype=np.uint8).reshape(3, 2))
        >>> staged = FileStore(path).start_reads(Reads(np.array([0, 2]))).wait()
        >>> [list(ctypes.string_at(staged.address + at, 2)) for at in staged.offsets.tolist()]
        [[0, 1], [4, 5]]
        """
        with self._gate:
            return self._reader.start(batch)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        *,
        threads: int = 0,
        storage: Storage = "auto",
    ) -> FileStore:
        """Makes a .npy file of zeros and opens it for writing; it takes room as it is written.

        Args:
            path: of the file; one that is there is overwritten.
            shape: (rows, …).
            dtype: of its elements; torch.bfloat16 is stored as uint16.
            threads: that gather; 0 for all cores.
            storage: how it is read and written.

        Raises:
            StorageError: the file cannot be written.
            DTypeError, ArgumentError: an unusable dtype or shape.

        >>> import os, tempfile
        >>> store = FileStore.create(os.path.join(tempfile.mkdtemp(), "h.npy"), (4, 2))
        >>> store.write(torch.tensor([1, 2]), torch.ones(2, 2))
        >>> store.gather(torch.tensor([0, 1]))
        tensor([[0., 0.],
                [1., 1.]])
        """
        check_dtype(dtype, "dtype")
        if len(shape) == 0 or min(shape) < 0:
            raise ArgumentError(f"shape {tuple(shape)}: expected (rows, …), none below 0")
        encoding = torch.bfloat16 if dtype == torch.bfloat16 else None
        in_file = np.dtype(str(torch.uint16 if encoding else dtype).removeprefix("torch."))
        with as_storage_error(Path(path)), open(path, "wb") as file:
            file.write(npy_header(tuple(shape), in_file))
            file.truncate(file.tell() + math.prod(shape) * in_file.itemsize)
        return cls(path, encoding=encoding, threads=threads, writable=True, storage=storage)

    def write(self, ids: Tensor, rows: Tensor) -> None:
        """See ``Store.write``.

        What is written shows in every store of the file at once. Rows that follow one another are
        written past the page cache where the file is read so.

        Raises:
            FileFormatError: the file became shorter.
            StorageError: the disk is full, or the file cannot be written.
        """
        self._check_writable()
        with self._gate:
            self._table.check_size()
            wanted, dense = check_write(ids, rows, self.shape, self.encoding)
            data = np.frombuffer(bytes_of(dense), np.uint8).reshape(len(wanted), self.row_bytes)
            for shard in self._table.shards:
                inside = (wanted >= shard.first) & (wanted < shard.first + shard.rows)
                self._write_shard(shard, wanted[inside] - shard.first, data[inside.numpy()])

    def write_range(self, first: int, rows: Tensor) -> None:
        """Writes rows one after another, from row ``first`` on.

        Args:
            first: row that the first of ``rows`` takes the place of.
            rows: (n, …) on the CPU; cast to the stored element type.

        Raises:
            RowIndexError: they go beyond the last row; nothing is written.
            ReadOnlyError, DTypeError, ArgumentError, FileFormatError, StorageError: as of
                ``write``.

        >>> import os, tempfile
        >>> store = FileStore.create(os.path.join(tempfile.mkdtemp(), "h.npy"), (3, 2))
        >>> store.write_range(1, torch.ones(2, 2))
        >>> store.read_range(0, 2)
        tensor([[0., 0.],
                [1., 1.]])
        """
        self._check_writable()
        last = first + (rows.shape[0] if rows.dim() else 0)
        check_range(first, last, self.shape[0])
        dense = self.encoding.encode(check_rows(rows, last - first, self.shape, self.encoding))
        data = np.frombuffer(bytes_of(dense), np.uint8).reshape(last - first, self.row_bytes)
        with self._gate:
            self._table.check_size()
            for shard in self._table.shards:
                begin, end = max(first, shard.first), min(last, shard.first + shard.rows)
                if begin < end:
                    with open_writer(shard, direct=self.storage != "mmap") as writer:
                        place = shard.offset + (begin - shard.first) * self.row_bytes
                        writer.write(place, data[begin - first : end - first].reshape(-1))

    def _check_writable(self) -> None:
        if not self.writable:
            raise ReadOnlyError(f"{self.path}: opened read-only; open it with writable=True")

    def _write_shard(self, shard: Shard, ids: Tensor, data: NDArray[np.uint8]) -> None:
        # Rows that follow one another go to the file together.
        starts = [0, *(1 + torch.nonzero(ids.diff() != 1)[:, 0]).tolist(), len(ids)]
        with open_writer(shard, direct=self.storage != "mmap") as writer:
            for first, last in pairwise(starts):
                if first < last:
                    place = shard.offset + int(ids[first]) * self.row_bytes
                    writer.write(place, data[first:last].reshape(-1))

    def read_range(self, first: int, last: int, out: Tensor | None = None) -> Tensor:
        """See ``Store.read_range``.

        Raises:
            FileFormatError, StorageError: as of ``gather``.
        """
        check_range(first, last, self.shape[0])
        if out is not None:
            check_out(out, last - first, self.shape, self.dtype)
        with self._gate:
            self._reader.check_size()
            rows = self._read_range(first, last, out)
        self.counters.add(self.tier, last - first, (last - first) * self.row_bytes)
        return rows

    def _read_range(self, first: int, last: int, out: Tensor | None) -> Tensor:
        encoding, shape = self.encoding, (last - first, *self.shape[1:])
        if encoding.codes is None:
            target = encoding.target(out, decodes=False)
            rows = empty(shape, encoding.stored) if target is None else target
            self._read_into(first, rows)
            return encoding.cast(rows, out)
        rows = empty(shape, encoding.delivered) if out is None else out
        step = max(1, _PIECE_BYTES // self.row_bytes)
        stored = empty(encoding.stored_shape((min(step, len(rows)),)), encoding.stored)
        for start in range(0, len(rows), step):
            piece = rows[start : start + step]
            self._read_into(first + start, stored[: len(piece)])
            encoding.decode(stored[: len(piece)], piece)
        return rows

    def _read_into(self, first: int, rows: Tensor) -> None:
        if rows.numel():
            # As bytes: numpy does not know every element type, and conj and neg are views.
            self._reader.read_into(first, rows.view(-1).view(torch.uint8).numpy())

    def close(self) -> None:
        """See ``Store.close``."""
        if self._gate.close():
            self._reader.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(FileStore, dtype=self.dtype, **self._options), (self.paths,)

    def __repr__(self) -> str:
        more = f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
        return f"FileStore({self.path!r}{more}, {in_short(self)})"


def _absolute(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
) -> list[str]:
    given = [path] if isinstance(path, (str, os.PathLike)) else list(path)
    for each in given:
        if not isinstance(each, (str, os.PathLike)):
            raise DTypeError(
                f"source: a {type(path).__name__}, expected a tensor or numpy array, or the path "
                f"of a file or several; it holds a {type(each).__name__}"
            )
    return [os.path.abspath(each) for each in given]

"""The files of an embedding table: a version of all records, and the log of later ones.

A folder holds ``table.json``, which describes the table and tells its version; ``rows.npy``, the
records of that version; and, while rows are trained, ``changes.npy``, the log, whose records nobody
counts on until ``prepared.bin`` says which of them make the next version. Renaming that file to
``committed.bin`` is the decision: from then on the records go to the table, again from the start
where a process is killed meanwhile.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.cache.embedding.directory import IN_LOG, IN_TABLE
from gnnsys.choices import Storage
from gnnsys.errors import ArgumentError, FileFormatError, MissingFileError, StorageError
from gnnsys.memory.file import FileStore
from gnnsys.memory.reads import PendingRows, Reads, StagedRows
from gnnsys.system.files import (
    as_storage_error,
    lock_file,
    lock_holder,
    read_text_file,
    replace_file,
    replacing,
    sync,
)

__all__ = ["TABLE", "RowFiles", "RowReads", "TableHeader", "create_files"]

TABLE = "table.json"
_ROWS, _CHANGES, _LOCK = "rows.npy", "changes.npy", "lock"
_PREPARED, _COMMITTED = "prepared.bin", "committed.bin"
_FORMAT = 1
_PAGE = 4096
_BLOCK_BYTES = 8 << 20  # of records that are written or moved at a time
_LEAST_LOG_BYTES = 64 << 20
"""A log up to so long is not rewritten without the records that newer ones stand for."""

DTYPES = {"float32": torch.float32, "float64": torch.float64}
"""Element types of records."""


@dataclass(kw_only=True, slots=True)
class TableHeader:
    """What a table is, as ``table.json`` has it."""

    rows: int
    dim: int
    """Elements of a row."""

    dtype: str
    """Of all elements: float32 or float64."""

    state: dict[str, float] = field(default_factory=dict)
    """Names of what an optimiser keeps for each element of a row, and what they begin with."""

    version: int = 0
    """Counts commits."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Tells tables apart."""

    @property
    def row_bytes(self) -> int:
        """Size of a row."""
        return self.dim * DTYPES[self.dtype].itemsize

    @property
    def width(self) -> int:
        """Elements of a record: the row and its state."""
        return self.dim * (1 + len(self.state))

    @property
    def record_bytes(self) -> int:
        """Size of a record."""
        return self.row_bytes * (1 + len(self.state))

    def write(self, folder: Path) -> None:
        """Replaces the file."""
        text = json.dumps({"format": _FORMAT, **asdict(self)}, indent=2)
        replace_file(folder / TABLE, text.encode())

    @classmethod
    def read(cls, folder: Path) -> TableHeader:
        """That of a folder.

        Raises:
            MissingFileError, FileFormatError: it is not there, or not whole.
        """
        path = folder / TABLE
        try:
            content = json.loads(read_text_file(path, "the header of an embedding table"))
            if content.pop("format") != _FORMAT:
                raise FileFormatError(f"{path}: of another format; read it with a newer gnnsys")
            header = cls(**content)
            if header.dtype not in DTYPES or min(header.rows, header.dim) < 1:
                raise ValueError(f"{header.rows} rows of {header.dim} {header.dtype}")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingFileError(
                f"{path}: no such file; EmbeddingStore.create makes a table"
            ) from error
        except FileFormatError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileFormatError(
                f"{path}: not the header of an embedding table ({error}); make the table again"
            ) from error
        return header


def create_files(
    folder: Path, header: TableHeader, initial: Callable[[int, int], Tensor] | None
) -> None:
    """Makes the folder of a table; none is left where that fails.

    Args:
        initial: gives rows ``[first, last)``; None for zeros.

    Raises:
        StorageError: something is in the way, or the disk is full.
    """
    if folder.exists():
        raise StorageError(
            f"{folder}: is there already; open it with EmbeddingStore(folder), or name another"
        )
    made = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.new")
    try:
        with as_storage_error(made):
            made.mkdir(parents=True)
            _write_first(made / _ROWS, header, initial)
            header.write(made)
            sync(made)
            os.rename(made, folder)
            sync(folder.parent)
    except BaseException:
        _remove(made / _ROWS, made / TABLE)
        if made.exists():
            made.rmdir()
        raise


def _write_first(
    path: Path, header: TableHeader, initial: Callable[[int, int], Tensor] | None
) -> None:
    dtype, dim = DTYPES[header.dtype], header.dim
    store = FileStore.create(path, (header.rows, header.width), dtype, storage="pread")
    try:
        for first, last in _blocks(header.rows, header.record_bytes):
            records = torch.zeros(last - first, header.width, dtype=dtype)
            if initial is not None:
                records[:, :dim] = initial(first, last)
            for number, start in enumerate(header.state.values(), 1):
                records[:, number * dim : (number + 1) * dim] = start
            store.write(torch.arange(first, last), records)
        sync(path)
    finally:
        store.close()


def _blocks(rows: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows; all but the last are a multiple of 16, and none but a table is below it."""
    step = max(16, _BLOCK_BYTES // row_bytes // 16 * 16)
    first = 0
    while first < rows:
        last = first + step if rows - first >= step + 16 else rows
        yield first, last
        first = last


class RowReads:
    """Records on their way from the disk.

    Args:
        ids: (n,) of rows, ascending.
        places: (n,) where they are read.
        parts: positions among them, and the reads of those.
    """

    def __init__(
        self,
        ids: NDArray[np.int64],
        places: NDArray[np.int32],
        parts: list[tuple[NDArray[np.int64], PendingRows]],
    ) -> None:
        self.ids, self.places = ids, places
        self.newest = np.ones(len(ids), np.bool_)
        """(n,) whether the records are still the newest of their rows."""
        self._parts = parts
        self._staged: list[StagedRows] = []
        self._addresses: NDArray[np.int64] | None = None

    def wait(self) -> NDArray[np.int64]:
        """(n,) addresses of the records, valid as long as this object.

        Raises:
            StorageError, FileFormatError: the disk failed.
        """
        if self._addresses is None:
            addresses = np.empty(len(self.ids), np.int64)
            for positions, pending in self._parts:
                staged = pending.wait()
                self._staged.append(staged)
                addresses[positions] = staged.address + staged.offsets
            self._addresses = addresses
        return self._addresses

    def cancel(self) -> None:
        """Lets go of reads that nobody will wait for."""
        for _, pending in self._parts:
            pending.cancel()


class RowFiles:
    """The open files of a table; one process has them.

    Args:
        folder: of the table.
        storage: how they are read; see ``FileStore``.

    Raises:
        MissingFileError, FileFormatError: there is no table, or it is not whole.
        StorageError: another process has it open.
    """

    def __init__(self, folder: Path, storage: Storage = "auto") -> None:
        self.folder = folder
        self.header = TableHeader.read(folder)
        with as_storage_error(folder):
            lock = lock_file(folder / _LOCK)
        if lock is None:
            raise StorageError(
                f"{folder}: {lock_holder(folder / _LOCK)} has this table open; end it first, or "
                "copy the folder"
            )
        self._lock = lock
        self.is_prepared = (folder / _PREPARED).exists()
        """Whether a next version is ready."""
        try:
            self.table = FileStore(folder / _ROWS, writable=True, storage=storage)
            self._check_table()
            self._log: FileStore | None = None
            if (folder / _COMMITTED).exists():
                self._apply()
            elif not self.is_prepared:
                _remove(folder / _CHANGES)
        except BaseException:
            lock.close()
            raise

    def _check_table(self) -> None:
        found = (tuple(self.table.shape), self.table.dtype)
        expected = ((self.header.rows, self.header.width), DTYPES[self.header.dtype])
        if found != expected:
            self.table.close()
            raise FileFormatError(
                f"{self.table.path}: {found[1]} of shape {found[0]}, expected {expected[1]} of "
                f"shape {expected[0]}, as {TABLE} says; restore the folder from a copy"
            )

    # Reading and appending -----------------------------------------------------------------------

    def start(self, ids: NDArray[np.int64], places: NDArray[np.int32]) -> RowReads:
        """Begins to read the records of rows, whose ids ascend, at their places on disk."""
        parts: list[tuple[NDArray[np.int64], PendingRows]] = []
        in_table = np.flatnonzero(places == IN_TABLE)
        if len(in_table):
            parts.append((in_table, self.table.start_reads(Reads(ids[in_table]))))
        in_log = np.flatnonzero(places <= IN_LOG)
        if len(in_log):
            cells = IN_LOG - places[in_log].astype(np.int64)
            order = np.argsort(cells)
            assert self._log is not None
            parts.append((in_log[order], self._log.start_reads(Reads(cells[order]))))
        return RowReads(ids, places, parts)

    @property
    def is_log_full(self) -> bool:
        """Whether the log is to be rewritten before more is appended."""
        return self._log is not None and self._end >= self._rewrite_at

    def append(self, records: Tensor) -> int:
        """Writes (n, width) records to the log; returns the cell of the first.

        Raises:
            StorageError: the disk is full; nothing counts as written.
        """
        if self._log is None:
            self.discard_prepared()
            self._log, self._end = self._create_log(self.folder / _CHANGES), 0
            self._rewrite_at = self._least_log
        first, self._end = self._end, self._append_to(self._log, self._end, records)
        return first

    def _append_to(self, log: FileStore, end: int, records: Tensor) -> int:
        """Returns where the next records begin: of many, on a page of their own, so that they are
        written past the page cache."""
        log.write(torch.arange(end, end + len(records)), records)
        end += len(records)
        a_page = max(1, _PAGE // self.header.record_bytes)
        return -(-end // a_page) * a_page if len(records) >= 4 * a_page else end

    @property
    def _least_log(self) -> int:
        return _LEAST_LOG_BYTES // self.header.record_bytes + 1

    def _create_log(self, path: Path) -> FileStore:
        # A quarter is left empty, at most. What is in use doubles until the log is rewritten, and a
        # cache of all rows may be appended twice before that is seen.
        cells = 5 * self.header.rows + 2 * self._least_log
        shape, dtype = (cells, self.header.width), DTYPES[self.header.dtype]
        return FileStore.create(path, shape, dtype, storage=self.table.storage)  # type: ignore[arg-type]

    def _open_log(self) -> FileStore | None:
        if not (self.folder / _CHANGES).exists():
            return None  # nothing was changed
        return FileStore(self.folder / _CHANGES, writable=True, storage=self.table.storage)  # type: ignore[arg-type]

    def rewrite_log(self, cells: NDArray[np.int64]) -> NDArray[np.int64]:
        """Leaves only some cells in the log, in their order; returns their new numbers.

        Args:
            cells: (n,) ascending.

        Raises:
            StorageError: the disk is full; the log is as it was.
        """
        assert self._log is not None
        self.discard_prepared()
        path = self.folder / f"{_CHANGES}.new"
        log = self._create_log(path)
        moved, end = np.empty_like(cells), 0
        try:
            step = max(1, _BLOCK_BYTES // self.header.record_bytes)
            for first in range(0, len(cells), step):
                piece = cells[first : first + step]
                moved[first : first + step] = end + np.arange(len(piece))
                end = self._append_to(log, end, self._log.gather(torch.from_numpy(piece)))
            with as_storage_error(path):
                os.replace(path, self.folder / _CHANGES)
        except BaseException:
            log.close()
            _remove(path)
            raise
        log.close()
        self._log.close()
        self._log, self._end = self._open_log(), end
        self._rewrite_at = max(self._least_log, 2 * end)
        return moved

    # Versions ------------------------------------------------------------------------------------

    def prepare(self, places: Iterable[NDArray[np.int32]]) -> int:
        """Makes the next version ready; returns its number.

        Args:
            places: on disk of all rows, block by block in the order of their ids.

        Raises:
            StorageError: the disk is full; nothing is prepared.
        """
        self.discard_prepared()
        version = self.header.version + 1
        with replacing(self.folder / _PREPARED) as file:
            file.write(np.array([version, 0], np.int32).tobytes())
            first = 0
            for block in places:
                changed = np.flatnonzero(block <= IN_LOG)
                pairs = np.stack([first + changed, IN_LOG - block[changed].astype(np.int64)], 1)
                file.write(pairs.astype(np.int32).tobytes())
                first += len(block)
            if self._log is not None:
                sync(self.folder / _CHANGES)
        sync(self.folder)
        self.is_prepared = True
        return version

    def discard_prepared(self) -> None:
        """Takes back ``prepare``."""
        if self.is_prepared:
            _remove(self.folder / _PREPARED)
            self.is_prepared = False

    def commit(self) -> None:
        """Makes the prepared version the table's; the log is empty then."""
        with as_storage_error(self.folder):
            os.rename(self.folder / _PREPARED, self.folder / _COMMITTED)
            sync(self.folder)
        self.is_prepared = False
        self._apply()

    def _apply(self) -> None:
        path = self.folder / _COMMITTED
        self._log = self._log or self._open_log()
        with as_storage_error(path), open(path, "rb") as file:
            self.header.version = int(np.fromfile(file, np.int32, 2)[0])
            step = max(1, _BLOCK_BYTES // self.header.record_bytes)
            while len(pairs := np.fromfile(file, np.int32, 2 * step).reshape(-1, 2)):
                assert self._log is not None
                ids, cells = torch.from_numpy(pairs.astype(np.int64)).unbind(1)
                self.table.write(ids, self._log.gather(cells))
            sync(self.folder / _ROWS)
            self.header.write(self.folder)
            _remove(path)
        self.drop_log()

    def drop_log(self) -> None:
        """Lets go of all records since the table's version."""
        if self._log is not None:
            self._log.close()
            self._log = None
            _remove(self.folder / _CHANGES)

    def restore(self, version: int) -> None:
        """Makes the table hold that version: its own, or the one that is prepared.

        Raises:
            ArgumentError: it is neither.
        """
        self.check_version(version)
        if version == self.header.version:
            self.discard_prepared()
            self.drop_log()
        else:
            self.commit()

    def check_version(self, version: int) -> None:
        """Raises ArgumentError for one that ``restore`` cannot bring back."""
        if version not in range(self.header.version, self.header.version + 1 + self.is_prepared):
            raise ArgumentError(
                f"version: {version}, but {self.folder} holds version {self.header.version}; take "
                "the checkpoint that was saved last, or restore the folder from a copy"
            )

    def close(self) -> None:
        """Lets go of the files."""
        self.table.close()
        if self._log is not None:
            self._log.close()
        self._lock.close()


def _remove(*paths: Path) -> None:
    for path in paths:
        with as_storage_error(path):
            path.unlink(missing_ok=True)

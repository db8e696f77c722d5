"""The files of an embedding table: a version of all records, and the log of later ones.

A folder holds ``table.json``, which describes the table and tells its version; ``rows.npy``, the
records of that version; and, while rows are trained, ``changes.N.npy``, the log, whose records
nobody counts on until ``prepared.bin`` says which of them make the next version. Renaming that file
to ``committed.bin`` is the decision: from then on the records go to the table, again from the start
where that was interrupted. These two files alone say how far a commit is, to this process as to the
next one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.cache.embedding.directory import IN_LOG, IN_TABLE
from gnnsys.cache.embedding.table import DTYPES, LOCK, ROWS, TABLE, TableHeader, remove
from gnnsys.choices import Storage
from gnnsys.errors import ArgumentError, FileFormatError, StorageError
from gnnsys.memory.file import FileStore
from gnnsys.memory.reads import PendingRows, Reads, StagedRows
from gnnsys.system.files import as_storage_error, lock_file, lock_holder, replacing, sync

__all__ = ["RowFiles", "RowReads"]

_PREPARED, _COMMITTED = "prepared.bin", "committed.bin"
_PAGE = 4096
_BLOCK_BYTES = 8 << 20  # of records that are moved at a time
_LEAST_LOG_BYTES = 64 << 20
"""A log up to so long is not rewritten without the records that newer ones stand for."""


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


@dataclass(slots=True)
class _Log:
    store: FileStore
    number: int
    end: int = 0
    """The cell of the next record."""

    rewrite_at: int = 0
    """It is full when it ends there."""


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
        TableHeader.read(folder)  # no lock is left where there is no table
        with as_storage_error(folder):
            lock = lock_file(folder / LOCK)
        if lock is None:
            raise StorageError(
                f"{folder}: {lock_holder(folder / LOCK)} has this table open; end it first, or "
                "copy the folder"
            )
        self._lock = lock
        self._log: _Log | None = None
        self._rewritten: _Log | None = None
        try:
            self.header = TableHeader.read(folder)
            self.table = FileStore(folder / ROWS, writable=True, storage=storage)
            self._check_table()
            with as_storage_error(folder):
                waiting = [path for path in self._decisions() if path.exists()]
                self._last_log = int(np.fromfile(waiting[0], np.int32, 2)[1]) if waiting else 0
                self._remove_logs(but=self._last_log)
                remove(*folder.glob("*.new"))
            if self.is_decided:
                self.apply()
                self.forget_decision()
        except BaseException:
            lock.close()
            raise

    def _decisions(self) -> tuple[Path, Path]:
        return self.folder / _COMMITTED, self.folder / _PREPARED

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
            parts.append((in_log[order], self._log.store.start_reads(Reads(cells[order]))))
        return RowReads(ids, places, parts)

    @property
    def is_log_full(self) -> bool:
        """Whether the log is to be rewritten before more is appended."""
        return self._log is not None and self._log.end >= self._log.rewrite_at

    def append(self, records: Tensor) -> int:
        """Writes (n, width) records to the log; returns the cell of the first.

        Raises:
            StorageError: the disk is full; nothing counts as written.
        """
        if self._log is None:
            self._log = self._create_log()
        return self._append_to(self._log, records)

    def _append_to(self, log: _Log, records: Tensor) -> int:
        """The next records begin, after many, on a page of their own, so that they are written past
        the page cache."""
        first, end = log.end, log.end + len(records)
        log.store.write(torch.arange(first, end), records)
        a_page = max(1, _PAGE // self.header.record_bytes)
        log.end = -(-end // a_page) * a_page if len(records) >= 4 * a_page else end
        return first

    @property
    def _least_log(self) -> int:
        return _LEAST_LOG_BYTES // self.header.record_bytes + 1

    def _log_path(self, number: int) -> Path:
        return self.folder / f"changes.{number}.npy"

    def _create_log(self) -> _Log:
        self._last_log += 1  # files of an earlier log are never written again
        path = self._log_path(self._last_log)
        # A quarter is left empty, at most. What is in use doubles until the log is rewritten, and a
        # cache of all rows may be appended twice before that is seen.
        cells = 5 * self.header.rows + 2 * self._least_log
        shape, dtype = (cells, self.header.width), DTYPES[self.header.dtype]
        try:
            store = FileStore.create(path, shape, dtype, storage=self.table.storage)  # type: ignore[arg-type]
        except BaseException:
            remove(path)
            raise
        return _Log(store, self._last_log, rewrite_at=self._least_log)

    def _remove_logs(self, but: int) -> None:
        remove(*(set(self.folder.glob("changes.*")) - {self._log_path(but)}))

    def rewrite_log(self, blocks: Iterable[NDArray[np.int64]]) -> None:
        """Writes a log of some cells alone; ``take_rewritten`` puts it in place of the other.

        Args:
            blocks: cells, block by block.

        Raises:
            StorageError: the disk is full; the log is as it was.
        """
        assert self._log is not None
        log, firsts = self._create_log(), []
        try:
            for cells in blocks:
                firsts.append(log.end)
                if len(cells):
                    self._append_to(log, self._log.store.gather(torch.from_numpy(cells)))
        except BaseException:
            log.store.close()
            remove(self._log_path(log.number))
            raise
        log.rewrite_at = max(self._least_log, 2 * log.end)
        self.rewritten_at = firsts
        """The cell of the first record of each block in the rewritten log."""
        self._rewritten = log

    @property
    def is_rewritten(self) -> bool:
        """Whether a rewritten log waits to be taken."""
        return self._rewritten is not None

    def take_rewritten(self) -> None:
        """Puts the rewritten log in place of the other."""
        assert self._rewritten is not None
        before, self._log = self._log, self._rewritten
        self._rewritten = None
        if before is not None and before is not self._log:
            before.store.close()
        self._remove_logs(but=self._log.number)

    # Versions ------------------------------------------------------------------------------------

    @property
    def is_prepared(self) -> bool:
        """Whether a next version is ready."""
        return (self.folder / _PREPARED).exists()

    @property
    def is_decided(self) -> bool:
        """Whether there is a next version whose records are not all in the table yet."""
        return (self.folder / _COMMITTED).exists()

    def prepare(self, places: Iterable[NDArray[np.int32]]) -> int:
        """Makes the next version ready; returns its number.

        Args:
            places: on disk of all rows, block by block in the order of their ids.

        Raises:
            StorageError: the disk is full; nothing is prepared.
        """
        version, log = self.header.version + 1, self._log
        try:
            with replacing(self.folder / _PREPARED) as file:
                number = log.number if log is not None else 0
                file.write(np.array([version, number], np.int32).tobytes())
                first = 0
                for block in places:
                    changed = np.flatnonzero(block <= IN_LOG)
                    pairs = np.stack([first + changed, IN_LOG - block[changed].astype(np.int64)], 1)
                    file.write(pairs.astype(np.int32).tobytes())
                    first += len(block)
                if log is not None:
                    sync(self._log_path(log.number))
        except BaseException:
            self.withdraw()
            raise
        return version

    def withdraw(self) -> None:
        """Takes back ``prepare``."""
        remove(self.folder / _PREPARED)

    def decide(self) -> None:
        """Makes the prepared version the table's, by whoever applies it."""
        with as_storage_error(self.folder):
            os.rename(self.folder / _PREPARED, self.folder / _COMMITTED)
            sync(self.folder)

    def apply(self) -> None:
        """Brings the records of the version that is decided to the table; the log has them, too.

        Raises:
            StorageError: the disk failed; it is to be done again.
            FileFormatError: the log is not there.
        """
        path = self.folder / _COMMITTED
        with as_storage_error(path), open(path, "rb") as file:
            version, number = map(int, np.fromfile(file, np.int32, 2))
            step = max(1, _BLOCK_BYTES // self.header.record_bytes)
            while len(pairs := np.fromfile(file, np.int32, 2 * step).reshape(-1, 2)):
                log = self._log = self._log or self._open_log(number)
                ids, cells = torch.from_numpy(pairs.astype(np.int64)).unbind(1)
                self.table.write(ids, log.store.gather(cells))
            sync(self.folder / ROWS)
            replace(self.header, version=version).write(self.folder)
            self.header.version = version

    def _open_log(self, number: int) -> _Log:
        path = self._log_path(number)
        if not path.exists():
            raise FileFormatError(
                f"{path}: is not there, but {self.folder / _COMMITTED} needs it; restore the "
                "folder from a copy"
            )
        store = FileStore(path, writable=True, storage=self.table.storage)  # type: ignore[arg-type]
        return _Log(store, number)

    def forget_decision(self) -> None:
        """Ends ``apply``: nobody needs the log any more."""
        with as_storage_error(self.folder):
            remove(self.folder / _COMMITTED)
            sync(self.folder)
        self.drop_log()

    def drop_log(self) -> None:
        """Lets go of all records since the table's version."""
        log, self._log = self._log, None
        if log is not None:
            log.store.close()
        self._remove_logs(but=0)

    def check_version(self, version: int) -> None:
        """Raises ArgumentError for one that is neither the table's nor prepared."""
        if version not in range(self.header.version, self.header.version + 1 + self.is_prepared):
            raise ArgumentError(
                f"version: {version}, but {self.folder} holds version {self.header.version}; take "
                "the checkpoint that was saved last, or restore the folder from a copy"
            )

    def close(self) -> None:
        """Lets go of the files."""
        self.table.close()
        for log in (self._log, self._rewritten):
            if log is not None:
                log.store.close()
        self._lock.close()

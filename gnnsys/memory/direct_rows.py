"""Rows of a file read past the page cache, many at once, by io_uring or by threads."""

from __future__ import annotations

import errno
import logging
import os
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.choices import Storage
from gnnsys.errors import ArgumentError, UnsupportedError
from gnnsys.memory.alloc import pooled
from gnnsys.memory.encoding import Encoding
from gnnsys.memory.ids import RowIds, check_ascending, row_index_error
from gnnsys.memory.reads import Reads, ReadStats, StagedRows
from gnnsys.memory.store import RowReader
from gnnsys.memory.table_file import TableFile, read_error
from gnnsys.system import disk_probe
from gnnsys.system.extension import core
from gnnsys.system.once import warn_once

__all__ = ["DirectRows", "best_depth", "direct_mode", "uring_refusal"]

_log = logging.getLogger(__name__)

DEPTH = 128
"""Reads in flight where no probe said better: what saturates the cloud disks that were measured."""


def uring_refusal(depth: int = DEPTH) -> str:
    """Why there is no io_uring here, or "" where there is.

    >>> isinstance(uring_refusal(), str)
    True
    """
    if not core.has_uring:
        return "gnnsys was built without liburing: install liburing-dev and build it again"
    code = core.find_uring_fault(depth)
    if code == 0:
        return ""
    why = {
        errno.EPERM: "; a seccomp filter or /proc/sys/kernel/io_uring_disabled forbids it",
        errno.ENOSYS: "; the kernel has none, or a seccomp filter hides it",
        errno.ENOMEM: "; raise the limit of locked memory (ulimit -l)",
    }
    return f"the kernel refuses it ({os.strerror(code)}{why.get(code, '')})"


def direct_mode(storage: Storage, depth: int) -> Literal["uring", "pread"]:
    """How files are read past the page cache; where it is not io_uring unasked, that is told once.

    Raises:
        UnsupportedError: "uring" was asked for where there is none.
    """
    refusal = uring_refusal(depth) if storage != "pread" else ""
    if refusal and storage == "uring":
        raise UnsupportedError(
            f"storage: 'uring' cannot be used: {refusal}; storage='pread' reads with threads"
        )
    if refusal:
        told = "files are read by a pool of threads instead of io_uring: %s"
        warn_once(_log, told, refusal)
    return "pread" if refusal or storage == "pread" else "uring"


class DirectRows(RowReader):
    """Gathers rows of files past the page cache.

    Args:
        table: the files.
        mode: by io_uring, or by a pool of threads.
        depth: reads in flight at once, for each disk.
        threads: that copy rows; 0 for all cores this process may use.
        isa: "auto", or an instruction set of ``gnnsys._core.isas()``.
    """

    cast_block_bytes = 32 << 20  # a block waits for the disk once

    def __init__(
        self,
        table: TableFile,
        mode: Literal["uring", "pread"],
        depth: int = DEPTH,
        threads: int = 0,
        isa: str = "auto",
    ) -> None:
        super().__init__(0, table.shape, table.stored, table.row_bytes, threads, isa)
        self.mode = mode
        self.depth = depth
        self._table = table
        files = [(shard.handle, shard.rows, shard.offset) for shard in table.shards]
        self._files: core.FileReader | None = core.FileReader(
            files, table.row_bytes, mode == "uring", depth, self._gatherer.threads
        )
        self._last = ReadStats()
        self._all_direct = True
        self._look_at_direct()

    @property
    def stats(self) -> ReadStats:
        """What was read so far, or until the files were closed."""
        if self._files is None:
            return self._last
        rows, requests, pages, nbytes, nanoseconds = self._files.counts()
        return ReadStats(rows, requests, pages, nbytes, nanoseconds * 1e-9)

    def start(self, batch: Reads) -> DirectPending:
        """See ``Store.start_reads``."""
        try:
            return DirectPending(self, self._core.start(batch.ids))
        except ValueError:
            check_ascending(batch.ids, self.shape[0])
            raise

    def gather(self, ids: RowIds, encoding: Encoding, out: Tensor | None = None) -> Tensor:
        """See ``Store.gather``."""
        self.check_size()
        rows = super().gather(ids, encoding, out)
        self._look_at_direct()
        return rows

    def check_size(self) -> None:
        """Raises FileFormatError where a file became shorter."""
        self._table.check_size()

    def read_into(self, first: int, out: NDArray[np.uint8]) -> None:
        """Reads rows one after another from row ``first`` on until ``out`` is full."""
        count = len(out) // self.row_bytes
        self.check(self._core.read_range(first, count, out.ctypes.data))

    def close(self) -> None:
        """Lets go of the files; rows under way stay valid."""
        self._last, self._files = self.stats, None
        self._table.close()

    def check(self, fault: tuple[int, int, int] | None) -> None:
        """Raises the error of a read that failed."""
        if fault is None:
            return
        part, place, code = fault
        shard = self._table.shards[part]
        if code == 0 and shard.handle >= 0:
            shard.check_size()
        raise read_error(shard.path, place, code)

    @property
    def _core(self) -> core.FileReader:
        if self._files is None:
            raise ArgumentError(f"{self._table.shards[0].path}: this store was closed")
        return self._files

    def _copy_rows(self, ids: RowIds, out: Tensor, coding: core.RowCoding | None) -> None:
        if coding is None:
            self._read_rows(ids, out)
            return
        step = max(1, self.cast_block_bytes // max(1, self.row_bytes))
        block = pooled((min(step, len(ids)), self.row_bytes), torch.uint8)
        for start in range(0, len(ids), step):
            some = RowIds(ids[start : start + step])
            self._read_rows(some, block)
            offsets = torch.arange(len(some)) * self.row_bytes
            self.copy_at(block.data_ptr(), offsets, out[start : start + step], coding)

    def _read_rows(self, ids: RowIds, out: Tensor) -> None:
        bad, fault = self._core.gather(ids.data_ptr(), ids.element_size(), len(ids), out.data_ptr())
        if bad >= 0:
            raise row_index_error(ids, bad, self.shape[0])
        self.check(fault)

    def _look_at_direct(self) -> None:
        if self._all_direct:
            direct = self._core.direct()
            if not all(direct):
                self._all_direct = False
                warn_once(
                    _log,
                    "%s: its file system refuses O_DIRECT, so rows are read through the page "
                    "cache, which may push out what else is in memory",
                    self._table.shards[direct.index(False)].path,
                )


class DirectPending:
    """Rows that are being read; see ``PendingRows``."""

    def __init__(self, reader: DirectRows, job: core.ReadJob) -> None:
        self._reader = reader
        self._job = job

    def wait(self) -> StagedRows:
        """See ``PendingRows.wait``."""
        try:
            fault = self._job.wait()
        except RuntimeError as error:
            raise ArgumentError(f"{error}; start reads in the process that uses them") from error
        if self._job.cancelled:
            raise ArgumentError("these rows were cancelled")
        self._reader.check(fault)
        return self._job

    def cancel(self) -> None:
        """See ``PendingRows.cancel``."""
        self._job.cancel()


def best_depth(table: TableFile) -> int:
    """Reads in flight for the disk of a table: probed once, on the table, where it is large."""
    path = table.shards[0].path
    profile = disk_probe.load(path)
    if profile is None and _tells_of_its_disk(table.shards[0].handle):
        profile = _probe(path, disk_probe.disk_name(path))
    return DEPTH if profile is None else profile.depth


def _tells_of_its_disk(handle: int) -> bool:
    status = os.fstat(handle)
    on_disk = os.major(status.st_dev) != 0  # not in memory, nor across a network
    written = min(status.st_size, status.st_blocks * 512)  # the rest is holes
    return on_disk and written >= disk_probe.LEAST_BYTES and 2 * written >= status.st_size


@lru_cache
def _probe(path: str, disk: str) -> disk_probe.DiskProfile | None:
    _log.info("%s: its disk (%s) is probed for about a second, once", path, disk)
    try:
        profile = disk_probe.measure(path)
    except OSError as error:
        _log.warning("%s: its disk could not be probed (%s)", path, error)
        return None
    disk_probe.save(path, profile)
    return profile

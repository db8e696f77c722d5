"""What reading rows of a file gives: rows on their way, rows that lie in memory, counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from operator import sub
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gnnsys.choices import Storage

__all__ = ["PendingRows", "ReadStats", "Reads", "RowsInPlace", "StagedRows", "Storage"]


@dataclass(frozen=True, slots=True, eq=False)
class Reads:
    """The rows that a batch needs of a store."""

    ids: NDArray[np.int64]
    """(n,) strictly ascending."""

    batch: int = -1
    """Number of the batch, as its planner counts; -1 where it is none of them."""


class StagedRows(Protocol):
    """Rows that were read; their memory is valid as long as this object lives."""

    @property
    def address(self) -> int:
        """Of the memory they lie in."""

    @property
    def offsets(self) -> NDArray[np.int64]:
        """(n,) row k lies at ``address + offsets[k]``, as it is stored."""

    @property
    def requests(self) -> int:
        """Reads that were asked of the disk; 0 in mmap mode, where the page cache decides."""

    @property
    def pages(self) -> int:
        """Pages of 4 KiB that they covered; 0 in mmap mode."""

    @property
    def bytes_read(self) -> int:
        """Bytes that came back, less than the pages at the end of a file; 0 in mmap mode."""


class PendingRows(Protocol):
    """Rows that are being read."""

    def wait(self) -> StagedRows:
        """The rows, once they are there; from any thread, once.

        Raises:
            StorageError: the disk failed, naming file and offset.
            FileFormatError: the file became shorter than its rows.
            ArgumentError: they were cancelled, or started in another process.
        """

    def cancel(self) -> None:
        """Lets go of the rows without waiting for them."""


@dataclass(frozen=True, slots=True, eq=False)
class RowsInPlace:
    """Rows that lie in memory already: pending and staged in one."""

    address: int
    offsets: NDArray[np.int64]

    owner: Any
    """What keeps the memory."""

    is_mapped: bool = False
    """Whether the device of a cache reads them there, and may still do so later."""

    check: Callable[[], None] = lambda: None
    """Raises where the rows must not be touched."""

    requests: int = 0
    pages: int = 0
    bytes_read: int = 0

    def wait(self) -> RowsInPlace:
        """See ``PendingRows.wait``."""
        self.check()
        return self

    def cancel(self) -> None:
        """See ``PendingRows.cancel``."""


@dataclass(frozen=True, slots=True)
class ReadStats:
    """What a store read from its file so far; of mmap mode, rows alone are known."""

    rows: int = 0
    """Distinct rows asked for."""
    requests: int = 0
    """Reads asked of the disk."""
    pages: int = 0
    """Pages of 4 KiB they covered."""
    bytes_read: int = 0
    """Bytes that came back."""
    seconds_waited: float = 0.0
    """Time that callers waited for rows."""

    def __sub__(self, other: ReadStats) -> ReadStats:
        return ReadStats(*map(sub, astuple(self), astuple(other)))

"""Rows of a mapped file, read through the page cache."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.memory.encoding import Encoding
from gnnsys.memory.ids import RowIds, check_ascending, check_bounds
from gnnsys.memory.reads import Reads, ReadStats, RowsInPlace
from gnnsys.memory.store import RowReader
from gnnsys.memory.table_file import Shard, TableFile
from gnnsys.system.extension import core

__all__ = ["MappedRows"]


class MappedRows(RowReader):
    """Gathers rows of mapped files; the mapping is advised that they are read at random."""

    mode = "mmap"

    depth = 0

    def __init__(self, table: TableFile, threads: int = 0, isa: str = "auto") -> None:
        self._table = table
        # (shards,) where the first row of each lies, and its number
        self._addresses = np.array([shard.map() for shard in table.shards], np.int64)
        self._first = np.array([shard.first for shard in table.shards], np.int64)
        self._base = int(self._addresses.min())
        self._rows = 0
        address = int(self._addresses[0])
        super().__init__(address, table.shape, table.stored, table.row_bytes, threads, isa)

    @property
    def stats(self) -> ReadStats:
        """What was read so far."""
        return ReadStats(rows=self._rows)

    def start(self, batch: Reads) -> RowsInPlace:
        """See ``Store.start_reads``; nothing is read before it is touched."""
        check_ascending(batch.ids, self.shape[0])
        self._rows += len(batch.ids)
        shards = self._table.shards
        check = partial(_check_sizes, shards)
        return RowsInPlace(self._base, self._offsets(batch.ids), shards, check=check)

    def gather(self, ids: RowIds, encoding: Encoding, out: Tensor | None = None) -> Tensor:
        """See ``Store.gather``."""
        self.check_size()
        return super().gather(ids, encoding, out)

    def check_size(self) -> None:
        """Reading a mapping past the end of its file kills the process, so look before."""
        self._table.check_size()

    def read_into(self, first: int, out: NDArray[np.uint8]) -> None:
        """Reads rows one after another from row ``first`` on until ``out`` is full."""
        self._table.read_into(first, out)

    def close(self) -> None:
        """Lets go of the files and mappings; rows that were started keep theirs."""
        self._table.shards = []

    def _copy_rows(self, ids: RowIds, out: Tensor, coding: core.RowCoding | None) -> None:
        self._rows += len(ids)
        if len(self._addresses) == 1:
            super()._copy_rows(ids, out, coding)
            return
        check_bounds(ids, self.shape[0])
        offsets = torch.from_numpy(self._offsets(ids.long().numpy()))
        self.copy_at(self._base, offsets, out, coding)

    def _offsets(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        place = np.searchsorted(self._first, ids, side="right") - 1  # the shard of each row
        return self._addresses[place] - self._base + (ids - self._first[place]) * self.row_bytes


def _check_sizes(shards: list[Shard]) -> None:
    for shard in shards:
        shard.check_size()

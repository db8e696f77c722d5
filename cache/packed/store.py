"""Rows of a table, of which those that recorded plans read lie one after another in a file."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from gnnsys.cache.packed.planner import RecordedPlanner
from gnnsys.memory.reads import PendingRows, Reads
from gnnsys.memory.store import Store

__all__ = ["PackedRows"]


class PackedRows(Store):
    """Reads a batch's rows from the packed file where they are in it, else from the table.

    Args:
        source: the table.
        packed: the rows that batches read, in their order.
        planner: knows which these are.
    """

    tier = "packed"

    def __init__(self, source: Store, packed: Store, planner: RecordedPlanner) -> None:
        self.shape, self.encoding, self.path = source.shape, source.encoding, source.path
        self.counters, self.depth = source.counters, source.depth
        self._source, self._packed, self._planner = source, packed, planner

    def gather(self, ids: Tensor, out: Tensor | None = None, stream: Any = None) -> Tensor:
        """See ``Store.gather``; rows are those of the table."""
        return self._source.gather(ids, out, stream)

    def start_reads(self, batch: Reads) -> PendingRows:
        """See ``Store.start_reads``."""
        found = self._planner.packed_rows(batch.batch)
        if found is None:
            return self._source.start_reads(batch)
        first, ids = found
        return self._packed.start_reads(Reads(first + np.searchsorted(ids, batch.ids)))

    def read_range(self, first: int, last: int, out: Tensor | None = None) -> Tensor:
        """See ``Store.read_range``; rows are those of the table."""
        return self._source.read_range(first, last, out)

    def close(self) -> None:
        """Leaves the table and the packed file open."""

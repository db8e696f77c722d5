"""The memory of cached records, and copies out of it and into it. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.cache.executor import new_area
from gnnsys.system.budget import EMBEDDINGS, process_budget
from gnnsys.system.extension import core

__all__ = ["RecordSlots"]


class RecordSlots:
    """Slots for records in host memory, on huge pages, which is taken as they are filled.

    A record is parts of equal size: a row, and what an optimiser keeps for it.

    Args:
        capacity: number of slots.
        part_bytes: of a part.
        parts: of a record.
        threads: that copy.

    Raises:
        TooLargeError: the system does not hand out so much memory.
    """

    def __init__(self, capacity: int, part_bytes: int, parts: int, threads: int) -> None:
        self._capacity, self._part_bytes = capacity, part_bytes
        self._record_bytes = parts * part_bytes
        self._area = new_area(capacity, self._record_bytes)  # (capacity, record_bytes) uint8
        self._gatherer = core.Gatherer(threads)
        self._mover = core.PlanExecutor(threads)
        process_budget().hold(EMBEDDINGS, self._area.nbytes, self._area)

    def addresses(self, slots: NDArray[Any]) -> NDArray[np.int64]:
        """(n,) of the records in slots."""
        return self._area.data_ptr() + slots.astype(np.int64) * self._record_bytes

    def take(self, slots: NDArray[np.int32], outs: Sequence[Tensor], first: int = 0) -> None:
        """Copies parts of records from part ``first`` on: part k + first to row i of ``outs[k]``,
        which is dense."""
        for part, out in enumerate(outs, first):
            self._gatherer.gather(
                self._area.data_ptr() + part * self._part_bytes,
                self._capacity,
                self._part_bytes,
                self._record_bytes,
                slots.ctypes.data,
                slots.itemsize,
                len(slots),
                out.data_ptr(),
            )

    def put(self, slots: NDArray[Any], parts: Sequence[Tensor]) -> None:
        """Copies row i of each dense tensor to that part of the record in ``slots[i]``."""
        targets = self.addresses(slots)
        for part, values in enumerate(parts):
            to = targets + part * self._part_bytes
            self._mover.move(_addresses(values), to, self._part_bytes)

    def load(self, slots: NDArray[Any], sources: NDArray[np.int64]) -> None:
        """Copies whole records from addresses into slots."""
        self._mover.move(sources, self.addresses(slots), self._record_bytes)

    def unload(self, slots: NDArray[Any], records: Tensor) -> None:
        """Copies whole records out of slots to the rows of a dense tensor."""
        self._mover.move(self.addresses(slots), _addresses(records), self._record_bytes)

    def read_rows(self, sources: NDArray[np.int64], rows: Tensor) -> None:
        """Copies the first parts of records at addresses to the rows of a dense tensor."""
        self._mover.move(sources, _addresses(rows), self._part_bytes)


def _addresses(rows: Tensor) -> NDArray[np.int64]:
    """(n,) addresses of the rows of a dense tensor."""
    stride = rows.stride(0) * rows.element_size()
    return rows.data_ptr() + np.arange(len(rows), dtype=np.int64) * stride

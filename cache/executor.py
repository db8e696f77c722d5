"""The memory of a cache and the moves of its plans.

Owns the ``Executor`` protocol, and ``CpuExecutor``: slots, cells of the victim buffer, pooled
outputs. Decides nothing and reads no file by itself. One thread at a time.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.cache.plan import BatchPlan
from gnnsys.errors import TooLargeError
from gnnsys.memory.alloc import empty, pooled
from gnnsys.memory.reads import StagedRows
from gnnsys.system.extension import core
from gnnsys.system.threads import num_threads

__all__ = ["CpuExecutor", "Executor", "new_area"]

_NO_ROWS = np.empty(0, np.int64)


class Executor(Protocol):
    """Slots and cells for rows, and who moves rows there, as plans say."""

    capacity: int
    """Number of slots."""

    cells: int
    """Number of cells."""

    decodes: bool = False
    """Whether ``execute`` takes a coding."""

    def new_output(self, rows: int) -> Tensor:
        """(rows, row_bytes) uint8 in memory that is used again once it is let go."""

    def new_staging(self, rows: int) -> Tensor:
        """(rows, row_bytes) uint8 of the CPU, likewise, for rows that are read in pieces."""

    def execute(
        self,
        plan: BatchPlan,
        staged: StagedRows | None,
        out: Tensor,
        coding: core.RowCoding | None = None,
    ) -> None:
        """Gathers a batch into ``out`` and leaves slots and cells as the plan says.

        Args:
            staged: the rows of ``plan.reads``; None where there are none.
            out: (plan.rows, …) dense, with the element type of the store.
            coding: by which rows go to ``out`` decoded, which is float32 then.
        """

    def fill(self, slots: NDArray[np.int64], staged: StagedRows) -> None:
        """Copies staged row k to slot ``slots[k]``."""

    def collect(self, staged: StagedRows, out: Tensor) -> None:
        """Copies staged row k to row k of ``out``, which is part of a ``new_staging``."""


class CpuExecutor(Executor):
    """Slots and cells in host memory, on huge pages, which is taken as they are filled.

    Args:
        capacity, cells: numbers of slots and of cells.
        row_bytes: of a row as it is stored.
        threads: that move rows; 0 for all cores this process may use.

    Raises:
        TooLargeError: the system does not hand out so much memory.
    """

    decodes = True

    def __init__(self, capacity: int, cells: int, row_bytes: int, threads: int = 0) -> None:
        self.capacity, self.cells, self.row_bytes = capacity, cells, row_bytes
        self._slots = new_area(capacity, row_bytes)
        self._cells = new_area(cells, row_bytes)
        self._mover = core.PlanExecutor(num_threads(threads))

    def new_output(self, rows: int) -> Tensor:
        """See ``Executor.new_output``."""
        return self.new_staging(rows)

    def new_staging(self, rows: int) -> Tensor:
        """See ``Executor.new_staging``."""
        return pooled((rows, self.row_bytes), torch.uint8)

    def execute(
        self,
        plan: BatchPlan,
        staged: StagedRows | None,
        out: Tensor,
        coding: core.RowCoding | None = None,
    ) -> None:
        """See ``Executor.execute``."""
        if self.row_bytes == 0:
            return
        self._mover.execute(
            plan.rows,
            plan.hits,
            plan.victim_in,
            plan.fills,
            plan.copies,
            plan.victim_out,
            self._slots.data_ptr(),
            self.capacity,
            self._cells.data_ptr(),
            self.cells,
            staged.address if staged is not None else 0,
            staged.offsets if staged is not None else _NO_ROWS,
            self.row_bytes,
            out.data_ptr(),
            coding,
        )

    def fill(self, slots: NDArray[np.int64], staged: StagedRows) -> None:
        """See ``Executor.fill``."""
        self._move(staged, self._slots.data_ptr() + slots * self.row_bytes)

    def collect(self, staged: StagedRows, out: Tensor) -> None:
        """See ``Executor.collect``."""
        self._move(staged, out.data_ptr() + np.arange(len(out)) * self.row_bytes)

    def _move(self, staged: StagedRows, targets: NDArray[np.int64]) -> None:
        self._mover.move(staged.address + staged.offsets, targets, self.row_bytes)


def new_area(rows: int, row_bytes: int) -> Tensor:
    """(rows, row_bytes) uint8 of host memory, on huge pages.

    Raises:
        TooLargeError: the system does not hand it out.
    """
    try:
        return empty((rows, row_bytes), torch.uint8)
    except (MemoryError, OSError) as error:
        raise TooLargeError(
            f"cache: the system refuses {rows * row_bytes} bytes for {rows} rows ({error}); give "
            "a smaller cache= or victim_buffer="
        ) from error

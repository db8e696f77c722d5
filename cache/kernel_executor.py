"""The moves of a cache's plans by the kernels of a device."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.cache.executor import CpuExecutor
from gnnsys.cache.plan import BatchPlan
from gnnsys.memory.reads import StagedRows
from gnnsys.system.gpu import Device
from gnnsys.system.gpu.kernels import MOST_BLOCKS
from gnnsys.system.gpu.plan_kernels import LISTS, PlanLaunches

__all__ = ["KernelExecutor"]

_NO_OFFSETS = np.empty(0, np.int64)
_EMPTY = np.empty((0, 3), np.int32)


class KernelExecutor(CpuExecutor):
    """Slots and cells that kernels move rows between: two launches a batch.

    Args:
        capacity, cells, row_bytes: see ``CpuExecutor``.
        device: that moves rows.
    """

    def __init__(self, capacity: int, cells: int, row_bytes: int, device: Device) -> None:
        super().__init__(capacity, cells, row_bytes)
        self._launches = PlanLaunches(device, self._slots, self._cells, MOST_BLOCKS)

    def execute(self, plan: BatchPlan, staged: StagedRows | None, out: Tensor) -> None:
        """See ``Executor.execute``."""
        lists = {name: getattr(plan, name, _EMPTY) for name in LISTS}
        self._run(plan.rows, lists, staged, out)

    def fill(self, slots: NDArray[np.int64], staged: StagedRows) -> None:
        """See ``Executor.fill``."""
        self._take(slots, staged, self.new_output(len(slots)))

    def collect(self, staged: StagedRows, out: Tensor) -> None:
        """See ``Executor.collect``."""
        self._take(np.full(len(out), -1), staged, out)

    def _take(self, slots: NDArray[np.int64], staged: StagedRows, out: Tensor) -> None:
        rows = np.arange(len(slots))
        fills = np.ascontiguousarray(np.stack([rows, rows, slots], 1).astype(np.int32))
        self._run(len(slots), {"fills": fills}, staged, out)

    def _run(
        self,
        rows: int,
        lists: dict[str, NDArray[np.int32]],
        staged: StagedRows | None,
        out: Tensor,
    ) -> None:
        if self.row_bytes == 0:
            return
        self._launches.run(
            rows,
            [lists.get(name, _EMPTY) for name in LISTS],
            0 if staged is None else staged.address,
            _NO_OFFSETS if staged is None else staged.offsets,
            out,
        )

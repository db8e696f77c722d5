"""The moves of a cache's plans by the kernels of a device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.cache.executor import CpuExecutor, Executor, new_area
from gnnsys.cache.plan import BatchPlan
from gnnsys.errors import DeviceError, ResourceError, TooLargeError
from gnnsys.memory.reads import RowsInPlace, StagedRows
from gnnsys.system.extension import core
from gnnsys.system.gpu import Device
from gnnsys.system.gpu.device import Mapping
from gnnsys.system.gpu.kernels import MOST_BLOCKS
from gnnsys.system.gpu.plan_kernels import LISTS, PlanLaunches, Staging

__all__ = ["KernelExecutor"]

_EMPTY = np.empty((0, 3), np.int32)


class KernelExecutor(Executor):
    """Slots in a device's memory that kernels move rows to and from: two launches a batch, on the
    current stream of torch, which is not waited for.

    The cells of the victim buffer lie in host memory that the device reads and writes, or with the
    slots where it cannot. What was read of a file is copied to the device as a whole; rows in
    memory that the device reads (``RowsInPlace.is_mapped``) are taken from there.

    Args:
        capacity, cells, row_bytes: see ``CpuExecutor``.
        device: that moves rows.
        threads: of the CPU, that gather what was read.
        slots: (capacity, row_bytes) uint8 of the device; None for new memory.

    Raises:
        TooLargeError: the device, or the system, does not hand out so much memory.
    """

    def __init__(
        self,
        capacity: int,
        cells: int,
        row_bytes: int,
        device: Device,
        threads: int = 0,
        slots: Tensor | None = None,
    ) -> None:
        self.capacity, self.cells, self.row_bytes = capacity, cells, row_bytes
        self._device = device
        self._cpu = CpuExecutor(0, 0, row_bytes, threads)
        self._slots = self._new_slots(capacity) if slots is None else slots
        self._cells = new_area(cells, row_bytes)
        try:
            self._mapping = Mapping(device, self._cells)
        except (ResourceError, DeviceError):
            self._cells = self._new_slots(cells)
        self._launches = PlanLaunches(device, self._slots, self._cells, MOST_BLOCKS)

    def _new_slots(self, rows: int) -> Tensor:
        device = self._device.torch_device
        if device.type == "cpu":
            return new_area(rows, self.row_bytes)
        try:
            return torch.empty((rows, self.row_bytes), dtype=torch.uint8, device=device)
        except torch.OutOfMemoryError as error:
            raise TooLargeError(
                f"cache: {rows} rows of {self.row_bytes} bytes do not fit into the memory of "
                f"{device} ({error}); give a smaller cache="
            ) from error

    def new_output(self, rows: int) -> Tensor:
        """See ``Executor.new_output``; on the device."""
        if self._device.torch_device.type == "cpu":
            return self._cpu.new_output(rows)
        shape = (rows, self.row_bytes)
        return torch.empty(shape, dtype=torch.uint8, device=self._device.torch_device)

    def new_staging(self, rows: int) -> Tensor:
        """See ``Executor.new_staging``."""
        return self._cpu.new_staging(rows)

    def collect(self, staged: StagedRows, out: Tensor) -> None:
        """See ``Executor.collect``."""
        self._cpu.collect(staged, out)

    def execute(
        self,
        plan: BatchPlan,
        staged: StagedRows | None,
        out: Tensor,
        coding: core.RowCoding | None = None,
    ) -> None:
        """See ``Executor.execute``; faults of earlier plans on a GPU are raised here."""
        assert coding is None, "kernels copy rows; Encoding.decode follows"
        lists = {name: getattr(plan, name, _EMPTY) for name in LISTS}
        self._run(plan.rows, lists, staged, out)

    def fill(self, slots: NDArray[np.integer[Any]], staged: StagedRows) -> None:
        """See ``Executor.fill``."""
        rows = np.arange(len(slots))
        fills = np.ascontiguousarray(np.stack([rows, rows, slots], 1).astype(np.int32))
        self._run(len(slots), {"fills": fills}, staged, self.new_output(len(slots)))

    def _run(
        self,
        rows: int,
        lists: dict[str, NDArray[np.int32]],
        staged: StagedRows | None,
        out: Tensor,
    ) -> None:
        if self.row_bytes == 0:
            return
        every = [lists.get(name, _EMPTY) for name in LISTS]
        self._launches.run(rows, every, self._staging_of(staged), out)

    def _staging_of(self, staged: StagedRows | None) -> Staging:
        """Where the device reads them."""
        if staged is None:
            return Staging.of_rows(self.new_staging(0))
        if isinstance(staged, RowsInPlace) and staged.is_mapped:
            return Staging(staged.address, staged.offsets, staged.owner)
        device = self._device.torch_device
        shape = (len(staged.offsets), self.row_bytes)
        rows = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._cpu.collect(staged, rows)
        return Staging.of_rows(rows.to(device, non_blocking=True))

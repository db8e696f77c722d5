"""The memory of a shared cache in devices: slots that kernels of every rank read."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.cache.kernel_executor import KernelExecutor
from gnnsys.cache.shared.memory import RowMemory
from gnnsys.memory.alloc import pooled
from gnnsys.memory.ids import RowIds
from gnnsys.memory.reads import StagedRows
from gnnsys.memory.store import Store
from gnnsys.system.gpu import Device
from gnnsys.system.gpu.kernels import MOST_BLOCKS, Faults, Rows, gather_rows
from gnnsys.system.gpu.peer_memory import PeerMemory

__all__ = ["DeviceRows"]


class DeviceRows(RowMemory):
    """Places in the memory of each rank's device.

    The owner's rows are copied on a stream of its own, which it waits for. A gather is one launch
    on torch's current stream, which is not waited for; ``finish`` does.

    Args:
        source: of the rows.
        rank: of this process.
        gpu: that gathers here.
        own: this rank's memory.
        addresses: of each rank's, where ``gpu`` reads it.
        places: number of this rank's own.
        threads: of the CPU, that collect what was read.
        part: waits for the other ranks, and returns whether they have left this one's memory.
    """

    def __init__(
        self,
        source: Store,
        rank: int,
        gpu: Device,
        own: PeerMemory,
        addresses: Sequence[int],
        places: int,
        threads: int = 0,
        part: Callable[[], bool] = lambda: True,
    ) -> None:
        self.source, self.places, self.device = source, places, gpu.torch_device
        self._gpu, self._own, self._addresses, self._part = gpu, own, addresses, part
        self._row_bytes = row_bytes = source.row_bytes
        slots = own.memory[: places * row_bytes].view(places, row_bytes)
        self._executor = KernelExecutor(places, 0, row_bytes, gpu, threads, slots)
        on_gpu = self.device.type == "cuda"
        self._stream = torch.cuda.Stream(self.device) if on_gpu else None
        self._gathered: list[torch.cuda.Event] = []
        self._finishing = threading.Lock()
        # Rows begin at multiples of it everywhere, so that kernels find them by number.
        self._unit = math.gcd(16, row_bytes)
        self._anywhere = Rows(0, torch.iinfo(torch.int64).max, row_bytes, self._unit, torch.uint8)
        self._faults = Faults(self.device)

    def put(self, staged: StagedRows, places: NDArray[np.int32]) -> None:
        """See ``RowMemory.put``."""
        if self._stream is None:
            self._executor.fill(places, staged)
            return
        with torch.cuda.stream(self._stream):
            self._executor.fill(places, staged)
        self._stream.synchronize()

    def tell(self, rank: int, places: NDArray[np.int32]) -> NDArray[np.int32]:
        """See ``RowMemory.tell``."""
        del rank
        return places

    def locate(self, rank: int, told: bytearray | memoryview, rows: int) -> NDArray[np.int64]:
        """See ``RowMemory.locate``."""
        del rows
        places = np.frombuffer(told, np.int32).astype(np.int64)
        return np.where(places < 0, -1, self._addresses[rank] + places * self._row_bytes)

    def gather(self, ids: RowIds, addresses: NDArray[np.int64], out: Tensor | None) -> Tensor:
        """See ``RowMemory.gather``."""
        rows = self._new_output(len(ids)) if out is None else out
        lost = np.flatnonzero(addresses < 0)
        if len(lost):
            found = self.read(RowIds(ids[torch.from_numpy(lost)]), None)
            addresses = addresses.copy()
            addresses[lost] = found.data_ptr() + np.arange(len(lost)) * self._row_bytes
        if rows.numel():
            numbers = torch.from_numpy(addresses // self._unit)
            if self._stream is not None:
                numbers = numbers.pin_memory().to(self.device, non_blocking=True)
            flat = rows.view(len(rows), -1).view(torch.uint8)
            gather_rows(
                self._gpu, self._anywhere, numbers, flat, self._faults, most_blocks=MOST_BLOCKS
            )
        if self._stream is not None:
            self._gathered.append(torch.cuda.current_stream(self.device).record_event())
        return rows

    def read(self, ids: RowIds, out: Tensor | None) -> Tensor:
        """See ``RowMemory.read``."""
        if self.source.device == self.device:
            return self.source.gather(ids, out)
        rows = self.source.gather(ids)
        return rows.to(self.device) if out is None else out.copy_(rows)

    def finish(self) -> None:
        """See ``RowMemory.finish``."""
        with self._finishing:  # of another thread's gathers, too
            while self._gathered:
                self._gathered.pop().synchronize()

    def close(self, together: bool) -> None:
        """See ``RowMemory.close``."""
        self.finish()
        self._own.leave()
        if together and self._part():
            self._own.free()

    def _new_output(self, rows: int) -> Tensor:
        shape, stored = (rows, *self.source.shape[1:]), self.source.encoding.stored
        if self._stream is None:
            return pooled(shape, stored)
        return torch.empty(shape, dtype=stored, device=self.device)

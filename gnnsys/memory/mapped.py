"""Rows in host memory that a device reads where they are, row by row."""

from __future__ import annotations

import logging
import threading
from typing import Any, Literal

import torch
from torch import Tensor

from gnnsys.counters import Counters
from gnnsys.errors import ArgumentError, DeviceError, DTypeError, ResourceError
from gnnsys.memory.ids import RowIds, check_ascending, check_bounds, check_ids, from_dlpack
from gnnsys.memory.reads import PendingRows, Reads, RowsInPlace
from gnnsys.memory.store import Store, check_out
from gnnsys.system.gpu import Device
from gnnsys.system.gpu.device import Mapping
from gnnsys.system.gpu.kernels import MOST_BLOCKS, Faults, Rows, can_cast, gather_rows
from gnnsys.system.gpu.way import Way, choose_way
from gnnsys.system.once import warn_once

__all__ = ["MappedStore"]

_log = logging.getLogger(__name__)


class MappedStore(Store):
    """The rows of another store, delivered to a device in one of two ways.

    By "zero-copy" a kernel reads the rows where they are (Min et al., "Large graph convolutional
    network training with GPU-oriented data communication architecture", VLDB 2021). By "staged" the
    CPU gathers them into pinned memory, which is copied as a whole.

    Args:
        source: a store whose rows lie in memory (``resident``), element by element. What is not
            gathered (ranges, writes, rows that are read ahead) is the source's affair.
        device: that gathers.
        way: "auto" for the faster one on this device, as ``gnnsys doctor --probe`` measured it;
            staged, which is logged once, where the device cannot read the rows.

    Raises:
        ArgumentError: the source's rows do not lie in memory, or their elements are not dense.
        DTypeError: the device does not cast the rows to what the source delivers.

    >>> from gnnsys.memory import HostStore
    >>> from gnnsys.system.gpu import HostExecutorDevice
    >>> store = MappedStore(HostStore(torch.arange(6.0).view(3, 2)), HostExecutorDevice())
    >>> store.gather(torch.tensor([2, 0]))
    tensor([[4., 5.],
            [0., 1.]])
    """

    tier = "mapped"

    def __init__(self, source: Store, device: Device, way: Way | Literal["auto"] = "auto") -> None:
        rows = source.resident
        if rows is None:
            raise ArgumentError(
                f"device: kernels read rows in memory, and those of {source.path or 'source'} are "
                "in a file; give it a cache, load it, or use device='cpu'"
            )
        if rows.numel() > 0 and not rows[0].is_contiguous():
            raise ArgumentError("source: the elements of its rows are not dense; use .contiguous()")
        self.shape, self.encoding, self.counters = source.shape, source.encoding, source.counters
        self.path, self.device = source.path, device.torch_device
        self._source, self._gpu = source, device
        stored, delivered = self.encoding.stored, self.encoding.delivered
        if stored != delivered and not can_cast(stored, delivered):
            raise DTypeError(f"dtype: rows of {stored} are not cast to {delivered} on a device")
        self.way: Way = choose_way(device, self.row_bytes) if way == "auto" else way
        """How rows are delivered."""
        self._mapping: Mapping | None = None
        if self.way == "zero-copy":
            try:
                self._map(rows)
            except (ResourceError, DeviceError) as error:
                if way != "auto":
                    raise
                warn_once(_log, "rows are gathered by the CPU and then copied: %s", str(error))
                self.way = "staged"
        self._faults = threading.local()

    @property
    def resident(self) -> Tensor | None:
        """See ``Store.resident``."""
        return self._source.resident

    def gather(self, ids: Tensor, out: Tensor | None = None, stream: Any = None) -> Tensor:
        """See ``Store.gather``; on the current stream of torch, which is not waited for.

        Args:
            ids: on the CPU or on the device. Of those on the device, one outside the rows gives
                zeros, and RowIndexError at a later gather of the same thread.
            out: on the device.
            stream: the current one.
        """
        del stream
        given = from_dlpack(ids)
        wanted = check_ids(given) if self.way == "staged" else self._on_device(given)
        if out is not None:
            check_out(out, len(wanted), self.shape, self.dtype, self.device)
        if self.way == "staged":
            rows = self._gather_staged(wanted, out)
        else:
            rows = self._gather_by_kernel(wanted, out)
            if given.device.type == self.device.type:  # else they were looked at
                self._faults_of_thread().raise_earlier()
        self.counters.add(self.tier, len(wanted), len(wanted) * self.row_bytes)
        return rows

    def _gather_staged(self, ids: RowIds, out: Tensor | None) -> Tensor:
        on_gpu = self.device.type == "cuda"
        shape = (len(ids), *self.shape[1:])
        # Pinned memory that is let go of is used again once torch has copied it.
        staged = torch.empty(shape, dtype=self.dtype, pin_memory=on_gpu)
        reader = self._source.with_dtype(self.dtype)
        reader.counters = Counters()  # rows are counted here alone
        reader.gather(ids, staged)
        if out is None:
            return staged.to(self.device, non_blocking=True)
        return out.copy_(staged, non_blocking=True)

    def _gather_by_kernel(self, ids: RowIds, out: Tensor | None) -> Tensor:
        rows, target = self._mapped_rows(), out
        if target is None or not target.is_contiguous():
            shape = (len(ids), *self.shape[1:])
            target = torch.empty(shape, dtype=self.dtype, device=self.device)
        if target.numel() > 0:
            table = Rows.of(rows.flatten(1) if rows.dim() > 1 else rows.view(-1, 1))
            flat, faults = target.view(len(ids), table.columns), self._faults_of_thread()
            gather_rows(self._gpu, table, ids, flat, faults, most_blocks=MOST_BLOCKS)
        return target if out is None or out is target else out.copy_(target)

    def _mapped_rows(self) -> Tensor:
        rows = self._source.resident
        assert rows is not None
        if self._mapping is None or not self._mapping.is_of(rows):  # share_memory_() moves a tensor
            self._map(rows)
        return rows

    def _map(self, rows: Tensor) -> None:
        if self._mapping is not None:
            self._mapping.close()
        self._mapping = Mapping(self._gpu, rows)

    def _faults_of_thread(self) -> Faults:
        found: Faults | None = getattr(self._faults, "found", None)
        if found is None:
            found = self._faults.found = Faults(self.device)
        return found

    def _on_device(self, ids: Tensor) -> RowIds:
        wanted = check_ids(ids, None)
        if wanted.device.type == self.device.type:
            return RowIds(wanted.to(self.device))
        check_bounds(wanted, self.shape[0])
        return RowIds(wanted.pin_memory().to(self.device, non_blocking=True))

    def start_reads(self, batch: Reads) -> PendingRows:
        """See ``Store.start_reads``; by zero-copy the device reads rows where they are."""
        if self.way == "staged":
            return self._source.start_reads(batch)
        rows = self._mapped_rows()
        check_ascending(batch.ids, self.shape[0])
        stride = rows.stride(0) * rows.element_size()
        offsets = batch.ids * stride
        return RowsInPlace(rows.data_ptr(), offsets, self._mapping, is_mapped=True)

    def read_range(self, first: int, last: int, out: Tensor | None = None) -> Tensor:
        """See ``Store.read_range``; on the CPU."""
        return self._source.read_range(first, last, out)

    def write(self, ids: Tensor, rows: Tensor) -> None:
        """See ``Store.write``."""
        self._source.write(ids, rows)

    def with_dtype(self, dtype: torch.dtype) -> MappedStore:
        """See ``Store.with_dtype``."""
        return MappedStore(self._source.with_dtype(dtype), self._gpu, self.way)

    def close(self) -> None:
        """See ``Store.close``."""
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None
        self._source.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedStore, (self._source, self._gpu, self.way)

    def __repr__(self) -> str:
        return f"MappedStore({self._source!r}, {self.way!r})"

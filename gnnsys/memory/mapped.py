"""Rows in host memory that a device reads where they are, row by row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gnnsys.errors import ArgumentError, DTypeError
from gnnsys.memory.ids import check_ids
from gnnsys.memory.reads import PendingRows, Reads
from gnnsys.memory.store import Store, check_out
from gnnsys.system.gpu import Device
from gnnsys.system.gpu.kernels import MOST_BLOCKS, Faults, Rows, can_cast, gather_rows

__all__ = ["MappedStore"]


class MappedStore(Store):
    """The rows of another store, gathered by a kernel of a device in place of the CPU (Min et al.,
    "Large graph convolutional network training with GPU-oriented data communication architecture",
    VLDB 2021).

    Args:
        source: a store whose rows lie in memory (``resident``), element by element. What is not
            gathered (ranges, writes, rows that are read ahead) is the source's affair.
        device: that gathers.

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

    def __init__(self, source: Store, device: Device) -> None:
        rows = source.resident
        if rows is None:
            raise ArgumentError(
                f"device: kernels read rows in memory, and those of {source.path or 'source'} are "
                "in a file; give it a cache, load it, or use device='cpu'"
            )
        if rows.numel() > 0 and not rows[0].is_contiguous():
            raise ArgumentError("source: the elements of its rows are not dense; use .contiguous()")
        self.shape, self.encoding, self.counters = source.shape, source.encoding, source.counters
        self.path = source.path
        self._source, self._gpu = source, device
        stored, delivered = self.encoding.stored, self.encoding.delivered
        if stored != delivered and not can_cast(stored, delivered):
            raise DTypeError(f"dtype: rows of {stored} are not cast to {delivered} on a device")

    @property
    def resident(self) -> Tensor | None:
        """See ``Store.resident``."""
        return self._source.resident

    def gather(self, ids: Tensor, out: Tensor | None = None, stream: Any = None) -> Tensor:
        """See ``Store.gather``."""
        del stream
        wanted, rows = check_ids(ids).contiguous(), self._source.resident
        assert rows is not None
        if out is not None:
            check_out(out, len(wanted), self.shape, self.dtype)
        target = out
        if target is None or not target.is_contiguous():
            target = torch.empty((len(wanted), *self.shape[1:]), dtype=self.dtype)
        if target.numel() > 0:
            table = Rows.of(rows.flatten(1) if rows.dim() > 1 else rows.view(-1, 1))
            flat = target.view(len(wanted), table.columns)
            faults = Faults()  # of this thread alone
            gather_rows(self._gpu, table, wanted, flat, faults, most_blocks=MOST_BLOCKS)
            faults.raise_found()
        self.counters.add(self.tier, len(wanted), len(wanted) * self.row_bytes)
        return target if out is None or out is target else out.copy_(target)

    def start_reads(self, batch: Reads) -> PendingRows:
        """See ``Store.start_reads``."""
        return self._source.start_reads(batch)

    def read_range(self, first: int, last: int, out: Tensor | None = None) -> Tensor:
        """See ``Store.read_range``."""
        return self._source.read_range(first, last, out)

    def write(self, ids: Tensor, rows: Tensor) -> None:
        """See ``Store.write``."""
        self._source.write(ids, rows)

    def with_dtype(self, dtype: torch.dtype) -> MappedStore:
        """See ``Store.with_dtype``."""
        return MappedStore(self._source.with_dtype(dtype), self._gpu)

    def close(self) -> None:
        """See ``Store.close``."""
        self._source.close()

    def __repr__(self) -> str:
        return f"MappedStore({self._source!r})"

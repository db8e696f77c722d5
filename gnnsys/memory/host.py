"""Rows in host memory, where they are."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.counters import Counters
from gnnsys.errors import ArgumentError, DTypeError, ReadOnlyError
from gnnsys.memory.alloc import view_array
from gnnsys.memory.describe import in_short
from gnnsys.memory.encoding import Encoding, check_dtype
from gnnsys.memory.ids import RowIds, check_ascending, check_bounds, check_ids, from_dlpack
from gnnsys.memory.reads import Reads, RowsInPlace
from gnnsys.memory.store import RowReader, Store, check_out, check_range, check_write
from gnnsys.system.gpu.host_memory import check_not_lost
from gnnsys.system.names import naming_keywords
from gnnsys.system.once import warn_once

__all__ = ["HostStore"]

_log = logging.getLogger(__name__)


class HostStore(Store):
    """An existing CPU tensor or numpy array, gathered in C++ without being copied.

    Args:
        source: (rows, …) tensor or array of a supported dtype; read where it lies, so later changes
            to it show. Where the elements of a row are not dense (``matrix.t()``), torch gathers
            instead of the C++ loop, which is logged once.
        dtype: of what is gathered; None for that of ``source``.
        threads: that gather; 0 for all cores this process may use.
        writable: whether ``write`` may change the source.
        isa: "auto", or an instruction set of ``gnnsys._core.isas()``.

    Raises:
        DTypeError, ArgumentError: a source that is not a CPU matrix of a supported dtype.

    >>> store = HostStore(torch.arange(6.0).view(3, 2))
    >>> store.gather(torch.tensor([2, 0]))
    tensor([[4., 5.],
            [0., 1.]])
    >>> store.counters.as_dict()
    {'rows': {'host': 2}, 'bytes': {'host': 16}}
    """

    tier = "host"

    @naming_keywords()
    def __init__(
        self,
        source: Tensor | NDArray[Any],
        *,
        dtype: torch.dtype | None = None,
        threads: int = 0,
        writable: bool = False,
        isa: str = "auto",
    ) -> None:
        self._source = _as_tensor(source)  # nobody else has this object: its layout stays
        self.shape = self._source.shape
        self.encoding = Encoding(self._source.dtype, dtype or self._source.dtype)
        self.counters = Counters()
        self._options: dict[str, Any] = {"threads": threads, "writable": writable, "isa": isa}
        self._needed_bytes = _bytes_until_end(self._source)
        self._reader: RowReader | None = None
        if _rows_are_dense(self._source):
            stride = self._source.stride(0) * self._source.element_size()
            address = self._source.data_ptr()
            self._reader = RowReader(address, self.shape, self._source.dtype, stride, threads, isa)

    @property
    def resident(self) -> Tensor:
        """See ``Store.resident``."""
        return self._source.detach()

    def gather(self, ids: Tensor, out: Tensor | None = None, stream: Any = None) -> Tensor:
        """See ``Store.gather``."""
        del stream
        rows = self._gather(check_ids(ids), self.encoding, out)
        self.counters.add(self.tier, len(rows), len(rows) * self.row_bytes)
        return rows

    def _gather(self, ids: RowIds, encoding: Encoding, out: Tensor | None) -> Tensor:
        if self._reader is None:
            warn_once(
                _log,
                "the elements of a source's rows are not dense: torch gathers them, slower than "
                "the C++ loop; source.contiguous() avoids it",
            )
            if out is not None:
                check_out(out, len(ids), self.shape, encoding.delivered)
            check_bounds(ids, self.shape[0])
            return encoding.decode(self._source.index_select(0, ids), out)
        while True:  # share_memory_() moves a tensor's memory
            self._reader.address = address = self._source.data_ptr()
            self._check_source()
            rows = self._reader.gather(ids, encoding, out)
            if self._source.data_ptr() == address:
                return rows

    def _check_source(self) -> None:
        check_not_lost(self._source.data_ptr(), self._needed_bytes)
        found = self._source.untyped_storage().nbytes()
        if found < self._needed_bytes:
            raise ArgumentError(
                f"source: its storage has {found} bytes left of the {self._needed_bytes} that its "
                f"{self.shape[0]} rows took"
            )

    def start_reads(self, batch: Reads) -> RowsInPlace:
        """See ``Store.start_reads``; rows are copied at once, since their memory may move."""
        check_ascending(batch.ids, self.shape[0])
        stored, ids = self.encoding.stored, RowIds(torch.from_numpy(batch.ids))
        rows = self._gather(ids, Encoding(stored, stored), None)
        return RowsInPlace(rows.data_ptr(), np.arange(len(ids)) * self.row_bytes, rows)

    def read_range(self, first: int, last: int, out: Tensor | None = None) -> Tensor:
        """See ``Store.read_range``."""
        check_range(first, last, self.shape[0])
        if out is not None:
            check_out(out, last - first, self.shape, self.dtype)
        self._check_source()
        rows = self._source[first:last]
        self.counters.add(self.tier, last - first, (last - first) * self.row_bytes)
        if out is None and self.encoding.stored == self.dtype:
            return rows.clone()
        return self.encoding.decode(rows, out)

    def write(self, ids: Tensor, rows: Tensor) -> None:
        """See ``Store.write``; the source is changed."""
        if not self._options["writable"]:
            raise ReadOnlyError("this HostStore is read-only: make it with writable=True")
        self._check_source()
        wanted, values = check_write(ids, rows, self.shape, self.encoding)
        self._source[wanted] = values

    def close(self) -> None:
        """Nothing to let go of: the memory is the source's."""

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(HostStore, dtype=self.dtype, **self._options), (self._source,)

    def __repr__(self) -> str:
        return f"HostStore({in_short(self)})"


def _as_tensor(source: Any) -> Tensor:
    source = from_dlpack(source)
    if isinstance(source, np.ndarray):
        source = _view_numpy(source)
    if not isinstance(source, Tensor):
        raise DTypeError(f"source: a {type(source).__name__}, expected a tensor or numpy array")
    if source.is_nested or source.layout != torch.strided or source.device.type != "cpu":
        raise ArgumentError(
            f"source: {source.layout} tensor on {source.device}, expected a dense one on the CPU"
        )
    if source.dim() == 0:
        raise ArgumentError("source: a scalar, expected at least one dimension: the rows")
    if source.requires_grad:
        raise ArgumentError("source: requires grad, but gathers are not recorded; use .detach()")
    check_dtype(source.dtype, "source")
    # A tensor object of its own: set_() and the like, called on the one given, change that alone.
    return source.detach().resolve_conj().resolve_neg()


def _view_numpy(source: NDArray[Any]) -> Tensor:
    if not source.dtype.isnative:
        raise DTypeError(
            f"source: byte order of {source.dtype.str} is not this machine's; use "
            "source.astype(source.dtype.newbyteorder('='))"
        )
    try:
        return view_array(source)
    except (TypeError, ValueError) as error:
        raise DTypeError(
            f"source: torch cannot view the numpy array of dtype {source.dtype} and strides "
            f"{source.strides} ({error}); use numpy.ascontiguousarray"
        ) from error


def _bytes_until_end(source: Tensor) -> int:
    """Bytes of a tensor's storage up to its last element."""
    if source.numel() == 0:
        return 0
    steps = zip(source.shape, source.stride(), strict=True)
    last = int(source.storage_offset()) + sum((size - 1) * stride for size, stride in steps)
    return (last + 1) * source.element_size()


def _rows_are_dense(source: Tensor) -> bool:
    return source.numel() == 0 or source[0].is_contiguous()

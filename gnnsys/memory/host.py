"""Rows in host memory, where they are."""

from __future__ import annotations

import logging
import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.counters import Counters
from gnnsys.errors import ArgumentError, DTypeError, ReadOnlyError
from gnnsys.memory.alloc import view_array
from gnnsys.memory.store import RowReader, check_dtype, check_ids, gather_by_torch

__all__ = ["HostStore"]

_log = logging.getLogger(__name__)


class HostStore:
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

    def __init__(
        self,
        source: Tensor | NDArray[Any],
        *,
        dtype: torch.dtype | None = None,
        threads: int = 0,
        writable: bool = False,
        isa: str = "auto",
    ) -> None:
        self.source = _as_tensor(source)
        self.shape = self.source.shape
        self.dtype = dtype or self.source.dtype
        check_dtype(self.dtype, "dtype")
        self.row_bytes = math.prod(self.shape[1:]) * self.source.element_size()
        self.counters = Counters()
        self._options: dict[str, Any] = {"threads": threads, "writable": writable, "isa": isa}
        self._needed_bytes = _bytes_until_end(self.source)
        self._reader = self._make_reader(threads, isa)

    def _make_reader(self, threads: int, isa: str) -> RowReader | None:
        if not _rows_are_dense(self.source):
            return None
        return RowReader(
            self.source.data_ptr(),
            self.shape,
            self.source.dtype,
            self.dtype,
            self.source.stride(0) * self.source.element_size(),
            threads,
            isa,
        )

    def gather(self, ids: Tensor, out: Tensor | None = None, stream: Any = None) -> Tensor:
        """See ``Store.gather``."""
        del stream
        ids = check_ids(ids)
        if self._reader is not None:
            rows = self._gather(self._reader, ids, out)
        else:
            _log_scattered_rows()
            rows = gather_by_torch(self.source, self.dtype, ids, out)
        self.counters.add(self.tier, len(ids), len(ids) * self.row_bytes)
        return rows

    def _gather(self, reader: RowReader, ids: Tensor, out: Tensor | None) -> Tensor:
        """Rows from where the source lies now: share_memory_() moves a tensor's memory."""
        while True:
            reader.address = address = self.source.data_ptr()
            if self.source.untyped_storage().nbytes() < self._needed_bytes:
                raise ArgumentError(
                    f"source: its storage has {self.source.untyped_storage().nbytes()} bytes left "
                    f"of the {self._needed_bytes} that its {len(self.source)} rows took"
                )
            rows = reader.gather(ids, out)
            if self.source.data_ptr() == address:
                return rows

    def write(self, ids: Tensor, rows: Tensor) -> None:
        """Overwrites rows ``ids`` of the source; see ``Store.write``."""
        if not self._options["writable"]:
            raise ReadOnlyError("this HostStore is read-only: make it with writable=True")
        self.source[check_ids(ids).long()] = rows.to(self.source.dtype)

    def with_dtype(self, dtype: torch.dtype) -> HostStore:
        """The same rows delivered as ``dtype``, and counted together with this store's."""
        other = HostStore(self.source, dtype=dtype, **self._options)
        other.counters = self.counters
        return other

    def whole(self) -> Tensor:
        """All rows: the source itself where the delivered dtype is the stored one."""
        return self.source.to(self.dtype)

    def close(self) -> None:
        """Nothing to let go of: the memory is the source's."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.source, self.dtype, self._options)

    def __repr__(self) -> str:
        return f"HostStore(shape={tuple(self.shape)}, dtype={self.dtype})"


@lru_cache
def _log_scattered_rows() -> None:
    _log.warning(
        "the elements of a source's rows are not dense: torch gathers them, slower than the C++ "
        "loop; source.contiguous() avoids it"
    )


def _rebuild(source: Tensor, dtype: torch.dtype, options: dict[str, Any]) -> HostStore:
    return HostStore(source, dtype=dtype, **options)


def _as_tensor(source: Tensor | NDArray[Any]) -> Tensor:
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

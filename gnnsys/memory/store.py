"""The ``Store`` protocol and what every store does with ids and outputs."""

from __future__ import annotations

import math
import os
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from gnnsys.counters import Counters
from gnnsys.errors import ArgumentError, DTypeError, RowIndexError
from gnnsys.system.extension import core

__all__ = ["SUPPORTED_DTYPES", "RowReader", "Store"]

SUPPORTED_DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.complex128,
    torch.complex64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)
"""Element types that a store can hold and deliver."""


@runtime_checkable
class Store(Protocol):
    """Rows of one feature matrix in one kind of memory.

    ``shape`` is (rows, …), ``dtype`` the delivered element type, ``row_bytes`` the size of a row
    as it is stored.
    """

    tier: str
    shape: torch.Size
    dtype: torch.dtype
    row_bytes: int
    counters: Counters

    def gather(self, ids: Tensor, out: Tensor | None = None, stream: Any = None) -> Tensor:
        """Rows ``ids`` in their order, ``features[ids]`` bit for bit.

        Args:
            ids: (n,) int32 or int64 on the CPU, each in ``[0, rows)``; duplicates are fine.
            out: (n, …) tensor of the delivered dtype to write to; without it a pooled one is
                returned whose memory is used again once it is let go.
            stream: for stores whose rows a device reads; CPU stores take None.

        Raises:
            RowIndexError: an id is outside the rows.
            DTypeError, ArgumentError: ids or out of a wrong type or shape.
        """

    def write(self, ids: Tensor, rows: Tensor) -> None:
        """Overwrites rows ``ids``; raises ReadOnlyError where the store is not writable."""

    def close(self) -> None:
        """Lets go of memory and files; what was gathered stays valid."""


class RowReader:
    """Gathers rows of a table that lies in this process's address space, mapped or not.

    Args:
        address: of the first row.
        shape: (rows, …) of the table.
        stored: element type in memory.
        delivered: element type of what is gathered.
        stride: bytes from a row to the next.
        threads: that gather; 0 for all cores this process may use.
        isa: "auto", or an instruction set of ``gnnsys._core.isas()``.
    """

    cast_block_bytes = 256 << 10
    """Rows that are cast at a time: they are still in the L2 cache when they are."""

    def __init__(
        self,
        address: int,
        shape: torch.Size,
        stored: torch.dtype,
        delivered: torch.dtype,
        stride: int,
        threads: int = 0,
        isa: str = "auto",
    ) -> None:
        if threads < 0:
            raise ArgumentError(f"threads: {threads} < 0; give 0 for all cores or a number")
        self.address = address
        self.shape = shape
        self.stored = stored
        self.delivered = delivered
        self.stride = stride
        self.row_bytes = math.prod(shape[1:]) * stored.itemsize
        self._gatherer = core.Gatherer(threads or len(os.sched_getaffinity(0)), isa)

    def gather(self, ids: Tensor, out: Tensor | None = None) -> Tensor:
        """See ``Store.gather``."""
        if out is not None:
            check_out(out, len(ids), self.shape, self.delivered)
        if self.delivered != self.stored:
            return self._gather_cast(ids, out)
        if out is None or not is_dense(out):
            rows = self._empty(len(ids))
            self._copy_rows(ids, rows)
            return rows if out is None else out.copy_(rows)
        self._copy_rows(ids, out)
        return out

    def _empty(self, rows: int) -> Tensor:
        nbytes = rows * self.row_bytes
        if nbytes == 0:
            return torch.empty((rows, *self.shape[1:]), dtype=self.stored)
        buffer = torch.from_numpy(self._gatherer.empty(nbytes))
        return buffer.view(self.stored).view(rows, *self.shape[1:])

    def _copy_rows(self, ids: Tensor, out: Tensor) -> None:
        """Writes rows ``ids`` as they are stored to ``out``, dense memory of as many rows."""
        bad = self._gatherer.gather(
            self.address,
            self.shape[0],
            self.row_bytes,
            self.stride,
            ids.data_ptr(),
            ids.element_size(),
            len(ids),
            out.data_ptr(),
        )
        if bad >= 0:
            raise row_index_error(ids, bad, self.shape[0])

    def copy_at(self, address: int, offsets: Tensor, out: Tensor) -> None:
        """Copies rows from places that the caller answers for.

        Args:
            address: of the memory they lie in.
            offsets: (n,) int64 bytes from there to each row, none below 0.
            out: dense memory of n rows as they are stored.
        """
        self._gatherer.gather(
            address,
            torch.iinfo(torch.int64).max,
            self.row_bytes,
            1,
            offsets.data_ptr(),
            8,
            len(offsets),
            out.data_ptr(),
        )

    def _gather_cast(self, ids: Tensor, out: Tensor | None) -> Tensor:
        if out is None:
            out = torch.empty((len(ids), *self.shape[1:]), dtype=self.delivered)
        step = max(1, self.cast_block_bytes // max(1, self.row_bytes))
        block = self._empty(min(step, len(ids)))
        for start in range(0, len(ids), step):
            some = ids[start : start + step]
            self._copy_rows(some, block)
            out[start : start + step] = block[: len(some)]
        return out


def is_dense(out: Tensor) -> bool:
    """Whether the elements lie in memory one after another, as they are."""
    return out.is_contiguous() and not (out.is_conj() or out.is_neg())


def row_index_error(ids: Tensor, position: int, rows: int) -> RowIndexError:
    """The error for the id at ``position`` of ``ids``."""
    return RowIndexError(
        f"ids: id {int(ids[position])} at position {position} is outside the rows [0, {rows})"
    )


def check_bounds(ids: Tensor, rows: int) -> None:
    """Raises RowIndexError for the first id that is outside the rows."""
    outside = torch.nonzero((ids < 0) | (ids >= rows))
    if len(outside):
        raise row_index_error(ids, int(outside[0]), rows)


def gather_by_torch(
    source: Tensor, delivered: torch.dtype, ids: Tensor, out: Tensor | None
) -> Tensor:
    """Gathers rows that no C++ loop reads; see ``Store.gather``."""
    if out is not None:
        check_out(out, len(ids), source.shape, delivered)
    check_bounds(ids, len(source))
    rows = source.index_select(0, ids).to(delivered)
    return rows if out is None else out.copy_(rows)


def check_out(out: Tensor, rows: int, table: torch.Size, dtype: torch.dtype) -> None:
    """Raises unless ``out`` takes ``rows`` rows of a table of that shape as ``dtype``."""
    expected = (rows, *table[1:])
    if tuple(out.shape) != expected:
        raise ArgumentError(f"out: shape {tuple(out.shape)} != {expected}, the rows asked for")
    if out.dtype != dtype:
        raise DTypeError(f"out: dtype {out.dtype} != {dtype}, that of the store")
    if out.device.type != "cpu":
        raise ArgumentError(f"out: is on {out.device}; rows of this store arrive on the CPU")


def check_ids(ids: Tensor) -> Tensor:
    """Row ids as the C++ loops take them: one dimension, int32 or int64, dense, on the CPU."""
    if not isinstance(ids, Tensor):
        raise DTypeError(f"ids: a {type(ids).__name__}, expected a tensor")
    if ids.dim() != 1:
        raise ArgumentError(f"ids: {ids.dim()} dimensions, expected 1")
    if ids.dtype not in (torch.int32, torch.int64):
        raise DTypeError(f"ids: dtype {ids.dtype}, expected torch.int64 or torch.int32")
    return ids.cpu().contiguous()


def check_dtype(dtype: torch.dtype, what: str) -> None:
    """Raises DTypeError for an element type that no store holds."""
    if dtype not in SUPPORTED_DTYPES:
        names = ", ".join(str(d).removeprefix("torch.") for d in SUPPORTED_DTYPES)
        raise DTypeError(f"{what}: dtype {dtype} is not one of {names}")

"""Encodings: how the rows of a table are stored, and what is made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from gnnsys.errors import DTypeError
from gnnsys.system.extension import core
from gnnsys.system.threads import num_threads

__all__ = ["SUPPORTED_DTYPES", "Encoding", "Quantised", "bytes_of", "check_dtype"]

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


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a dense tensor of any shape and type on the CPU, row after row.

    >>> bytes_of(torch.tensor([[1, 2]], dtype=torch.int16)).tolist()
    [1, 0, 2, 0]
    """
    flat = tensor.detach().contiguous().view(-1)
    if flat.stride(0) != 1:  # one element, or none, is contiguous with any stride
        flat = flat.as_strided(flat.shape, (1,))
    return flat.view(torch.uint8).numpy().data


_HALVES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
_SCALE_BYTES = 4


@dataclass(frozen=True, slots=True)
class Quantised:
    """Rows that are stored as whole numbers of few bits: a value is its code times a scale.

    Codes are in [-127, 127] of int8, or [-7, 7] of int4, two a byte, the lower half first. A scale
    is the greatest magnitude of its row or column divided by the greatest code, so that a value
    changes by half a scale at most. A stored row is bytes: its scale, a float32, where each row has
    its own, then its codes.

    >>> rows = Quantised("int8", (3,))
    >>> stored = rows.encode(torch.tensor([[1.0, 0.5, -0.25]]))
    >>> stored.shape, rows.decode(stored)
    (torch.Size([1, 7]), tensor([[ 1.0000,  0.5039, -0.2520]]))
    """

    dtype: Literal["int8", "int4"]
    """Of the codes."""

    row_shape: tuple[int, ...]
    """Of a delivered row."""

    scales: tuple[float, ...] = ()
    """(columns,) one for each element of a row; empty where each row begins with its own."""

    @property
    def row_bytes(self) -> int:
        """Bytes of a stored row."""
        return _coding(self.dtype, math.prod(self.row_shape), self.scales).row_bytes

    def encode(self, rows: Tensor) -> Tensor:
        """(n, row_bytes) uint8 that stand for (n, …) rows on the CPU.

        Raises:
            DTypeError: a value that is NaN or infinite, which codes cannot say.
        """
        flat = rows.to(torch.float32).reshape(len(rows), math.prod(self.row_shape)).contiguous()
        stored, bad = _coding(self.dtype, flat.shape[1], self.scales).encode(flat.numpy())
        if bad >= 0:
            row, column = divmod(bad, flat.shape[1])
            raise DTypeError(
                f"rows: {flat[row, column].item()} at position {row}, column {column}, which codes "
                f"of {self.dtype} cannot say; replace it"
            )
        return torch.from_numpy(stored).view(len(rows), self.row_bytes)

    def decode(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """(n, …) float32 that (n, row_bytes) stored rows stand for, on their device.

        Args:
            rows: uint8.
            out: dense memory for it; None for new.
        """
        if out is None:
            shape = (len(rows), *self.row_shape)
            out = torch.empty(shape, dtype=torch.float32, device=rows.device)
        if rows.device.type == "cpu":
            rows = rows.contiguous()
            coding = _coding(self.dtype, math.prod(self.row_shape), self.scales)
            coding.decode(rows.data_ptr(), len(rows), out.data_ptr(), num_threads(0))
            return out
        return out.copy_(self._decode_by_torch(rows).view(out.shape))

    def _decode_by_torch(self, rows: Tensor) -> Tensor:
        columns = math.prod(self.row_shape)
        if self.scales:
            scale = _column_scales(self.scales, rows.device)
            codes = rows
        else:
            scale = rows[:, :_SCALE_BYTES].contiguous().view(torch.float32)
            codes = rows[:, _SCALE_BYTES:]
        signed = codes.view(torch.int8)
        if self.dtype == "int4":
            low = (codes << 4).view(torch.int8) >> 4
            signed = torch.stack([low, signed >> 4], 2).flatten(1)[:, :columns]
        return signed.to(torch.float32) * scale


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a table's elements are stored, and as what they are delivered.

    Raises:
        DTypeError: an element type that no store holds.

    >>> half = Encoding(torch.float16, torch.float32)
    >>> half.row_bytes((10, 3))
    6
    >>> half.decode(torch.ones(1, 2, dtype=torch.float16))
    tensor([[1., 1.]])
    """

    stored: torch.dtype
    """uint8 where rows are quantised."""

    delivered: torch.dtype

    codes: Quantised | None = None
    """What the stored bytes stand for, where they are no elements of a type."""

    def __post_init__(self) -> None:
        check_dtype(self.delivered, "dtype")

    def row_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of a stored row of a table that delivers ``shape`` (rows, …)."""
        if self.codes is not None:
            return self.codes.row_bytes
        return math.prod(shape[1:]) * self.stored.itemsize

    def delivered_shape(self, stored: Sequence[int]) -> torch.Size:
        """(rows, …) that a table delivers which stores that shape of ``self.stored``."""
        row_shape = stored[1:] if self.codes is None else self.codes.row_shape
        return torch.Size((stored[0], *row_shape))

    def stored_shape(self, shape: Sequence[int]) -> torch.Size:
        """(rows, …) of ``self.stored`` that a table stores which delivers that shape."""
        row_shape = shape[1:] if self.codes is None else (self.codes.row_bytes,)
        return torch.Size((shape[0], *row_shape))

    @property
    def landed(self) -> torch.dtype:
        """The element type that the C++ loops deliver, in the pass that gathers: float32 of what
        they decode, else the stored one."""
        return torch.float32 if self._is_decoded else self.stored

    @property
    def _is_decoded(self) -> bool:
        is_widened = self.stored in _HALVES and self.delivered == torch.float32
        return self.codes is not None or is_widened

    def coding(self, shape: Sequence[int]) -> core.RowCoding | None:
        """How they decode rows of a table that delivers ``shape``; None where they copy them."""
        if self.codes is not None:
            return _coding(self.codes.dtype, math.prod(shape[1:]), self.codes.scales)
        return _coding(_HALVES[self.stored], math.prod(shape[1:])) if self._is_decoded else None

    def target(self, out: Tensor | None, *, decodes: bool = True) -> Tensor | None:
        """``out`` where a gather may write rows there; else None.

        Args:
            decodes: whether who gathers makes ``landed`` of the rows, or copies them as they are.
        """
        made = self.landed if decodes else None if self.codes is not None else self.stored
        if out is None or made != self.delivered or not out.is_contiguous():
            return None
        return None if out.is_conj() or out.is_neg() else out

    def cast(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """``landed`` rows as they are delivered.

        Args:
            rows: (n, …)
            out: (n, …) to write to; where it is ``rows``, nothing is left to be done. None for new
                memory, or ``rows`` itself where nothing is cast.
        """
        if out is None:
            return rows if rows.dtype == self.delivered else rows.to(self.delivered)
        return out if out is rows else out.copy_(rows)

    def decode(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """Stored rows as they are delivered; ``out`` as of ``cast``."""
        if self.codes is not None:
            rows = self.codes.decode(rows, self.target(out))
        return self.cast(rows, out)

    def encode(self, rows: Tensor) -> Tensor:
        """Rows on the CPU as they are stored, dense.

        Raises:
            DTypeError: quantised rows of which a value is not finite.
        """
        if self.codes is not None:
            return self.codes.encode(rows)
        return rows.to(self.stored).resolve_conj().resolve_neg().contiguous()


def check_dtype(dtype: torch.dtype, what: str) -> None:
    """Raises DTypeError for an element type that no store holds."""
    if dtype not in SUPPORTED_DTYPES:
        names = ", ".join(str(d).removeprefix("torch.") for d in SUPPORTED_DTYPES)
        raise DTypeError(f"{what}: dtype {dtype} is not one of {names}")


@lru_cache
def _column_scales(scales: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(scales, dtype=torch.float32, device=device)


@lru_cache
def _coding(dtype: str, columns: int, scales: tuple[float, ...] = ()) -> core.RowCoding:
    return core.RowCoding(dtype, columns, scales)

"""Encodings: how the rows of a table are stored, and what is made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gnnsys.errors import DTypeError

__all__ = ["SUPPORTED_DTYPES", "Encoding", "check_dtype"]

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


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a table's elements are stored, and as what they are delivered: by a cast.

    Raises:
        DTypeError: an element type that no store holds.

    >>> half = Encoding(torch.float16, torch.float32)
    >>> half.row_bytes((10, 3))
    6
    >>> half.decode(torch.ones(1, 2, dtype=torch.float16))
    tensor([[1., 1.]])
    """

    stored: torch.dtype
    delivered: torch.dtype

    def __post_init__(self) -> None:
        check_dtype(self.delivered, "dtype")

    def row_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of a stored row of a table of ``shape`` (rows, …)."""
        return math.prod(shape[1:]) * self.stored.itemsize

    def target(self, out: Tensor | None) -> Tensor | None:
        """``out`` where stored rows may be copied there as they are, byte by byte; else None."""
        if out is None or self.stored != self.delivered or not out.is_contiguous():
            return None
        return None if out.is_conj() or out.is_neg() else out

    def decode(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """Stored rows as they are delivered.

        Args:
            rows: (n, …) of the stored element type.
            out: (n, …) to write to; where it is ``rows``, nothing is left to be done. None for new
                memory, or ``rows`` itself where nothing is cast.
        """
        if out is None:
            return rows if self.stored == self.delivered else rows.to(self.delivered)
        return out if out is rows else out.copy_(rows)


def check_dtype(dtype: torch.dtype, what: str) -> None:
    """Raises DTypeError for an element type that no store holds."""
    if dtype not in SUPPORTED_DTYPES:
        names = ", ".join(str(d).removeprefix("torch.") for d in SUPPORTED_DTYPES)
        raise DTypeError(f"{what}: dtype {dtype} is not one of {names}")

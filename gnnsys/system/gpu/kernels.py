"""The kernels as functions: arguments are checked, then a specialisation is chosen and launched.

Tensors are those that the device reaches; no function waits for its kernel.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gnnsys.errors import ArgumentError, DTypeError, RowIndexError
from gnnsys.system.gpu.device import Device, Launch

__all__ = ["Faults", "Rows", "can_cast", "gather_rows"]

_THREADS = 256
_FLIGHT = 4  # rows that a thread of gather_short_rows has under way
_WARP = 32
_WORDS = {1: "u8", 2: "u16", 4: "u32", 8: "uint2", 16: "uint4"}
_IDS = {torch.int64: "i64", torch.int32: "i32"}
_ELEMENTS = {
    torch.float64: "double",
    torch.float32: "float",
    torch.float16: "Half",
    torch.bfloat16: "BFloat",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
}
_CASTS = {torch.float32, torch.float64}
_NARROWED = {(torch.float32, torch.float16), (torch.float32, torch.bfloat16)}


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a table that a device reads where they lie.

    >>> Rows.of(torch.zeros(3, 5)).row_bytes
    20
    """

    address: int
    """Of the first row, as the device sees it."""
    count: int
    columns: int
    """Elements of a row."""
    stride: int
    """Bytes from row to row."""
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.columns * self.dtype.itemsize

    @staticmethod
    def of(table: Tensor) -> Rows:
        """Those of a tensor (rows, columns) whose rows are contiguous."""
        if table.dim() != 2 or (table.shape[1] > 1 and table.stride(1) != 1):
            raise ArgumentError(
                f"table: {tuple(table.shape)} with strides {table.stride()}, expected (rows, "
                "columns) with contiguous rows"
            )
        stride = table.stride(0) * table.itemsize
        return Rows(table.data_ptr(), table.shape[0], table.shape[1], stride, table.dtype)


class Faults:
    """What kernels find wrong, in memory of the device; the first fault stays until it is raised.

    Args:
        device: of torch.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._words = torch.zeros(3, dtype=torch.int32, device=device)

    @property
    def address(self) -> int:
        """Where the device writes them."""
        return self._words.data_ptr()

    def raise_found(self) -> None:
        """Raises what was found since the last call; waits for the device.

        Raises:
            RowIndexError: an id of no row.
        """
        what, low, high = self._words.tolist()
        if what == 0:
            return
        self._words.zero_()
        raise RowIndexError(f"ids: {(high << 32) | (low & 0xFFFFFFFF)} is no row of the table")


def gather_rows(
    device: Device, rows: Rows, ids: Tensor, out: Tensor, faults: Faults, *, most_blocks: int
) -> None:
    """Copies rows by id to ``out``, cast to its type; rows that are not there become zeros.

    Kernels: ``cuda/rows/gather_rows.cuh`` (PyTorch-Direct; Min et al., VLDB 2021).

    Args:
        device: that launches.
        rows: what is read.
        ids: (n,) int64 or int32, contiguous.
        out: (n, columns), contiguous.
        faults: told of an id of no row.
        most_blocks: of 256 threads: few of them saturate a bus, and leave the rest to training.

    Raises:
        ArgumentError: a shape or a layout that does not fit.
        DTypeError: an element type that is not cast on a device.
    """
    _check_contiguous("ids", ids, 1)
    _check_contiguous("out", out, 2)
    if ids.dtype not in _IDS:
        raise DTypeError(f"ids: {ids.dtype}, expected torch.int64 or torch.int32")
    if tuple(out.shape) != (len(ids), rows.columns):
        raise ArgumentError(f"out: {tuple(out.shape)}, expected {(len(ids), rows.columns)}")
    if most_blocks < 1:
        raise ArgumentError(f"most_blocks: {most_blocks}, expected at least 1")
    if out.numel() == 0:
        return
    width, put = _choose_word(rows, out)
    words, id_type = rows.row_bytes // width, _IDS[ids.dtype]
    if words <= _WARP:
        lanes = 1 << (words - 1).bit_length()
        instance = f"gather_short_rows<{_WORDS[width]}, {lanes}, {put}, {id_type}>"
        at_a_time = _THREADS // lanes * _FLIGHT
    else:
        instance = f"gather_long_rows<{_WORDS[width]}, {put}, {id_type}>"
        at_a_time = _THREADS // _WARP
    blocks = min(most_blocks, -(-len(ids) // at_a_time))
    device.launch(
        device.kernel("cuda/rows/gather_rows.cuh", instance),
        Launch(blocks, _THREADS),
        [
            ctypes.c_void_p(rows.address),
            *(ctypes.c_int64(number) for number in (rows.count, rows.stride, words)),
            ctypes.c_void_p(ids.data_ptr()),
            ctypes.c_int64(len(ids)),
            ctypes.c_void_p(out.data_ptr()),
            ctypes.c_void_p(faults.address),
        ],
    )


def can_cast(stored: torch.dtype, delivered: torch.dtype) -> bool:
    """Whether kernels deliver elements of one type as another."""
    return stored in _ELEMENTS and (delivered in _CASTS or (stored, delivered) in _NARROWED)


def _choose_word(rows: Rows, out: Tensor) -> tuple[int, str]:
    """Bytes of a word of the rows, the widest that all addresses allow, and what becomes of it."""
    width = math.gcd(16, rows.address, rows.row_bytes, rows.stride if rows.count > 1 else 0)
    stored, delivered = rows.dtype, out.dtype
    if stored == delivered:
        width = math.gcd(width, out.data_ptr())
        return width, f"Copy<{_WORDS[width]}>"
    if not can_cast(stored, delivered):
        raise DTypeError(f"out: rows of {stored} are not cast to {delivered} on a device")
    # The elements of a word are stored by at most 16 bytes at a time.
    while out.data_ptr() % min(16, width // stored.itemsize * delivered.itemsize):
        width //= 2
    word, kinds = _WORDS[width], (_ELEMENTS[stored], _ELEMENTS[delivered])
    return width, f"Decode<{word}, {kinds[0]}, {kinds[1]}>"


def _check_contiguous(name: str, tensor: Tensor, dims: int) -> None:
    if tensor.dim() != dims or not tensor.is_contiguous():
        raise ArgumentError(
            f"{name}: {tuple(tensor.shape)} with strides {tensor.stride()}, expected {dims} "
            "dimensions, contiguous"
        )

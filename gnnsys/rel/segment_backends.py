"""What computes products of rows with the matrix of their type, and sums of outer products."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gnnsys.errors import RowIndexError, UnsupportedError
from gnnsys.system.extension import core

__all__ = ["BACKENDS", "SegmentCode", "available_backends", "code_of"]

# R rows of x, M rows of the result, T types, B blocks; K columns of x, N of the result.

BACKENDS = ("auto", "native", "grouped_mm", "pyg_lib", "ref")


@dataclass(frozen=True, slots=True)
class SegmentCode:
    """Two functions of x (R, B, K), another tensor, ptr (T + 1,) and index (M,) or None."""

    matmul: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    """With weight (T, B, K, N), in any strides: (M, B, N)."""

    outer: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    """With grad (M, B, N): of each type the sum of outer products, (T, B, K, N)."""


def available_backends() -> tuple[str, ...]:
    """Those of ``BACKENDS`` that this installation has.

    >>> {"auto", "native", "ref"} <= set(available_backends())
    True
    """
    missing = set()
    if not hasattr(F, "grouped_mm"):
        missing.add("grouped_mm")
    if importlib.util.find_spec("pyg_lib") is None:
        missing.add("pyg_lib")
    return tuple(name for name in BACKENDS if name not in missing)


def code_of(backend: str, x: Tensor) -> SegmentCode:
    """What computes with ``x``.

    Raises:
        UnsupportedError: a backend that is not installed, or not for such rows.
    """
    if backend not in available_backends():
        raise UnsupportedError(f"backend: {backend!r} is not installed; use 'auto'")
    if backend in ("auto", "native") and x.device.type != "cpu":
        raise UnsupportedError(f"x: there is no native code for {x.device}; move it to the CPU")
    if backend == "grouped_mm" and x.dtype == torch.float64:
        raise UnsupportedError("backend: 'grouped_mm' has no float64; use 'auto'")
    return _CODE[backend]


def _gathered(x: Tensor, index: Tensor | None) -> Tensor:
    if index is None:
        return x
    if len(index) > 0:
        for end in index.aminmax():
            _check_row(end, x)
    return x.index_select(0, index)


def _check_row(row: Tensor, x: Tensor) -> None:
    if not 0 <= row < len(x):
        raise RowIndexError(f"index: {int(row)}, expected from 0 to {len(x) - 1}, the rows of x")


# native ---------------------------------------------------------------------------------------


def _multiply_natively(x: Tensor, weight: Tensor, ptr: Tensor, index: Tensor | None) -> Tensor:
    x, segments = x.contiguous(), _Segments(ptr, index)
    out = x.new_empty(len(x) if index is None else len(index), x.size(1), weight.size(3))
    products, rows = _products(torch.get_num_threads()), _rows(x, weight.size(3))
    address, strides = weight.data_ptr(), weight.stride()
    segments.check(products.matmul(segments.arrays, rows, address, strides, out.data_ptr()), x)
    return out


def _sum_outer_natively(x: Tensor, grad: Tensor, ptr: Tensor, index: Tensor | None) -> Tensor:
    x, grad, segments = x.contiguous(), grad.contiguous(), _Segments(ptr, index)
    out = x.new_empty(len(ptr) - 1, x.size(1), x.size(2), grad.size(2))
    products, rows = _products(torch.get_num_threads()), _rows(x, grad.size(2))
    segments.check(products.outer(segments.arrays, rows, grad.data_ptr(), out.data_ptr()), x)
    return out


class _Segments:
    """Where the rows of each type are, in arrays that live as long as this."""

    def __init__(self, ptr: Tensor, index: Tensor | None) -> None:
        self._ptr = ptr.contiguous()
        self._index = None if index is None else index.contiguous()
        address = 0 if self._index is None else self._index.data_ptr()
        self.arrays = core.SegmentArrays(self._ptr.data_ptr(), len(ptr) - 1, address)

    def check(self, bad: int, x: Tensor) -> None:
        """Raises for what core returned."""
        if bad >= 0 and self._index is not None:
            _check_row(self._index[bad], x)


def _rows(x: Tensor, columns: int) -> core.SegmentRows:
    dtype = str(x.dtype).removeprefix("torch.")
    return core.SegmentRows(dtype, x.data_ptr(), x.size(0), x.size(1), x.size(2), columns)


@functools.lru_cache
def _products(threads: int) -> core.SegmentProducts:
    return core.SegmentProducts(threads)


# torch and pyg_lib ----------------------------------------------------------------------------


def _multiply_grouped(x: Tensor, weight: Tensor, ptr: Tensor, index: Tensor | None) -> Tensor:
    rows, wide = _padded(_gathered(x, index)), _padded(F.pad(weight, (0, 0, 0, _missing(x))))
    out = x.new_zeros(len(rows), x.size(1), weight.size(3))
    if rows.numel() == 0 or weight.numel() == 0:  # no strides that it would take
        return out
    for b in range(x.size(1)):
        product = F.grouped_mm(rows[:, b].contiguous(), wide[:, b].contiguous(), offs=_ends(ptr, x))
        out[:, b] = product[:, : weight.size(3)]
    return out


def _sum_outer_grouped(x: Tensor, grad: Tensor, ptr: Tensor, index: Tensor | None) -> Tensor:
    rows, wide = _padded(_gathered(x, index)), _padded(grad)
    out = x.new_zeros(len(ptr) - 1, x.size(1), x.size(2), grad.size(2))
    if rows.numel() == 0 or grad.numel() == 0:
        return out
    for b in range(x.size(1)):
        left = rows[:, b].contiguous().t()
        product = F.grouped_mm(left, wide[:, b].contiguous(), offs=_ends(ptr, x))
        out[:, b] = product[:, : x.size(2), : grad.size(2)]
    return out


def _padded(x: Tensor) -> Tensor:
    """With rows of whole 16 bytes, which ``grouped_mm`` asks for."""
    return F.pad(x, (0, _missing(x)))


def _missing(x: Tensor) -> int:
    return -x.size(-1) % (16 // x.element_size())


def _ends(ptr: Tensor, x: Tensor) -> Tensor:
    return ptr[1:].to(x.device, torch.int32)


def _multiply_by_pyg_lib(x: Tensor, weight: Tensor, ptr: Tensor, index: Tensor | None) -> Tensor:
    ops, rows = importlib.import_module("pyg_lib").ops, _gathered(x, index)
    out = x.new_empty(len(rows), x.size(1), weight.size(3))
    for b in range(x.size(1) if out.numel() > 0 else 0):
        out[:, b] = ops.segment_matmul(
            rows[:, b].contiguous(), ptr.to(x.device), weight[:, b].contiguous()
        )
    return out


def _sum_outer_by_pyg_lib(x: Tensor, grad: Tensor, ptr: Tensor, index: Tensor | None) -> Tensor:
    ops, rows = importlib.import_module("pyg_lib").ops, _gathered(x, index)
    out = x.new_zeros(len(ptr) - 1, x.size(1), x.size(2), grad.size(2))
    segments = list(_segments(ptr))
    for b in range(x.size(1) if segments else 0):
        left = [rows[of_type, b].t().contiguous() for _, of_type in segments]
        right = [grad[of_type, b].contiguous() for _, of_type in segments]
        for (kind, _), product in zip(segments, ops.grouped_matmul(left, right), strict=True):
            out[kind, b] = product
    return out


# ref ------------------------------------------------------------------------------------------


def _multiply_by_loop(x: Tensor, weight: Tensor, ptr: Tensor, index: Tensor | None) -> Tensor:
    rows = _gathered(x, index)
    out = x.new_empty(len(rows), x.size(1), weight.size(3))
    for kind, of_type in _segments(ptr):
        product = torch.einsum("mbk,bkn->mbn", rows[of_type].double(), weight[kind].double())
        out[of_type] = product.to(x.dtype)
    return out


def _sum_outer_by_loop(x: Tensor, grad: Tensor, ptr: Tensor, index: Tensor | None) -> Tensor:
    rows = _gathered(x, index)
    out = x.new_zeros(len(ptr) - 1, x.size(1), x.size(2), grad.size(2))
    for kind, of_type in _segments(ptr):
        product = torch.einsum("mbk,mbn->bkn", rows[of_type].double(), grad[of_type].double())
        out[kind] = product.to(x.dtype)
    return out


def _segments(ptr: Tensor) -> Iterator[tuple[int, slice]]:
    """The types that have rows, and which."""
    for kind, (first, last) in enumerate(itertools.pairwise(ptr.tolist())):
        if first < last:
            yield kind, slice(first, last)


_NATIVE = SegmentCode(_multiply_natively, _sum_outer_natively)

_CODE = {
    "auto": _NATIVE,
    "native": _NATIVE,
    "grouped_mm": SegmentCode(_multiply_grouped, _sum_outer_grouped),
    "pyg_lib": SegmentCode(_multiply_by_pyg_lib, _sum_outer_by_pyg_lib),
    "ref": SegmentCode(_multiply_by_loop, _sum_outer_by_loop),
}

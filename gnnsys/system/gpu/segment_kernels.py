"""The launches of products with matrices by segment (``csrc/cuda/graph/segment_matmul.cuh``).

R rows of x, M of the result, T types; B blocks, of K columns of x and N of the result.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gnnsys.errors import DTypeError
from gnnsys.system.gpu.device import Argument, Device, Launch
from gnnsys.system.gpu.graph_kernels import (
    VALUES,
    EdgeLaunches,
    check_array,
    choose_vector,
    faults_of,
    structure,
)
from gnnsys.system.gpu.kernels import IDS, Faults

__all__ = ["SegmentLaunches"]

_SIDE = 64  # kSide: rows of a tile
_OUTPUTS = 16  # kMicro^2: of a tile, those of one thread
_MOST_COLUMNS, _LEAST_COLUMNS = 64, 16  # of a tile
_LEAST_STRETCH = 512  # rows whose outer products are summed by themselves
_MOST_BLOCKS = 1 << 16
_Rows = structure(
    x=ctypes.c_void_p, count=ctypes.c_int64, index=ctypes.c_void_p, blocks=ctypes.c_int64,
    columns=ctypes.c_int64,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Stretches:
    """Rows of one type each, in their order."""

    bounds: Tensor
    """(n, 3) int64: type, first row, the row after the last."""

    of_types: EdgeLaunches
    """Sums over those of each type."""

    def __len__(self) -> int:
        return len(self.bounds)


class SegmentLaunches:
    """Products for one division of rows into types; no function waits for its kernel.

    An index outside the rows is told of by the first call after its kernel has met it.

    Args:
        device: that launches.
        ptr: (T + 1,) int64 on the CPU, ascending from 0 to M: the rows of type t are
            ptr[t] … ptr[t + 1] - 1.
        where: the arrays lie.

    >>> from gnnsys.system.gpu import HostExecutorDevice
    >>> products = SegmentLaunches(HostExecutorDevice(), torch.tensor([0, 1, 2]))
    >>> x, weight = torch.ones(2, 1, 1), torch.tensor([2.0, 3.0]).view(2, 1, 1, 1)
    >>> products.multiply(x, weight, None, out := torch.empty(2, 1, 1))
    >>> out.flatten().tolist()
    [2.0, 3.0]
    """

    def __init__(self, device: Device, ptr: Tensor, where: torch.device | str = "cpu") -> None:
        self.device, self.where = device, torch.device(where)
        self._ptr = ptr.clone()
        self._types, self._count = len(ptr) - 1, int(ptr[-1])
        self._stretches: dict[int, _Stretches] = {}
        self._faults = faults_of(self.where) if self.where.type == "cuda" else Faults()

    def multiply(self, x: Tensor, weight: Tensor, index: Tensor | None, out: Tensor) -> None:
        """Writes ``x[index[p]] @ weight[type of p]`` for each row p: one launch.

        Args:
            x: (R, B, K) float32, float64 or bfloat16, contiguous, as all others are.
            weight: (T, B, K, N).
            index: (M,) int32 or int64; None for the rows themselves.
            out: (M, B, N).

        Raises:
            DTypeError, ArgumentError: arrays that do not fit.
            RowIndexError: an index of no row, here or in a call before.
        """
        (_, blocks, depth), columns = x.shape, weight.size(-1)
        self._check(x, index, weight, (self._types, blocks, depth, columns), "weight")
        check_array("out", out, (self._count, blocks, columns), x.dtype, self.where)
        if out.numel() == 0 or depth == 0:
            out.zero_()
            return
        tiles = self._divide(_SIDE)
        self._launch("segment_matmul", tiles, x, index, weight, out, _SIDE)

    def sum_outer(self, x: Tensor, grad: Tensor, index: Tensor | None, out: Tensor) -> None:
        """Writes for each type the sum of ``x[index[p]]^T grad[p]`` over its rows p, in an order
        that depends on K, N and the type's rows alone: a launch for sums of stretches of rows, and
        those of ``EdgeLaunches.sum_segments`` for sums of these.

        Args:
            x, index: as of ``multiply``.
            grad: (M, B, N) as ``x``.
            out: (T, B, K, N).

        Raises:
            DTypeError, ArgumentError, RowIndexError: as ``multiply``.
        """
        (_, blocks, depth), columns = x.shape, grad.size(-1)
        self._check(x, index, grad, (self._count, blocks, columns), "grad")
        check_array("out", out, (self._types, blocks, depth, columns), x.dtype, self.where)
        if out.numel() == 0 or self._count == 0:
            out.zero_()
            return
        stretches = self._divide(_stretch_for(depth, columns))
        kind = torch.promote_types(x.dtype, torch.float32)
        sums = torch.empty(len(stretches), *out.shape[1:], dtype=kind, device=self.where)
        self._launch("sum_outer_products", stretches, x, index, grad, sums, depth)
        total = out.to(kind)  # `out`, or of a wider type
        stretches.of_types.sum_segments(sums, total)
        if total is not out:
            out.copy_(total)

    def _check(
        self, x: Tensor, index: Tensor | None, other: Tensor, shape: tuple[int, ...], name: str
    ) -> None:
        if x.dtype not in VALUES:
            raise DTypeError(f"x: {x.dtype}, expected float32, float64 or bfloat16")
        check_array("x", x, x.shape if index is not None else (self._count, *x.shape[1:]), x.dtype,
                    self.where)  # fmt: skip
        check_array(name, other, shape, x.dtype, self.where)
        if index is None:
            return
        if index.dtype not in IDS:
            raise DTypeError(f"index: {index.dtype}, expected torch.int32 or torch.int64")
        check_array("index", index, (self._count,), index.dtype, self.where)

    def _divide(self, most: int) -> _Stretches:
        """The rows of each type, `most` at a time; remembered."""
        made = self._stretches.get(most)
        if made is None:
            each = (self._ptr.diff() + most - 1) // most
            kind = torch.arange(self._types).repeat_interleave(each)
            indptr = torch.cat([torch.zeros(1, dtype=torch.int64), each.cumsum(0)])
            first = self._ptr[kind] + most * (torch.arange(len(kind)) - indptr[kind])
            last = torch.minimum(first + most, self._ptr[kind + 1])
            bounds = torch.stack([kind, first, last], 1).to(self.where)
            types = kind.to(self.where, torch.int32)
            of_types = EdgeLaunches(self.device, indptr.to(self.where), types)
            self._stretches[most] = made = _Stretches(bounds, of_types)
        return made

    def _launch(
        self, kernel: str, stretches: _Stretches, x: Tensor, index: Tensor | None, other: Tensor,
        out: Tensor, height: int,
    ) -> None:  # fmt: skip
        """height: rows of the result that a stretch has in each block."""
        (rows, blocks, depth), columns = x.shape, other.size(-1)
        whole = 16 // x.itemsize
        widest = choose_vector(math.gcd(depth, columns), x, other, out)
        vector = whole if widest == whole else 1
        width = max(_LEAST_COLUMNS, min(_MOST_COLUMNS, 1 << (columns - 1).bit_length()))
        id_type = "i64" if index is None else IDS[index.dtype]
        address = None if index is None else index.data_ptr()
        arguments: list[Argument] = [
            _Rows(x.data_ptr(), rows, address, blocks, depth), stretches.bounds.data_ptr(),
            len(stretches), other.data_ptr(), columns, out.data_ptr(), self._faults.address,
        ]  # fmt: skip
        instance = f"{kernel}<{VALUES[x.dtype]}, {id_type}, {vector}, {width}>"
        tiles = len(stretches) * blocks * -(-height // _SIDE) * -(-columns // width)
        self.device.launch(
            self.device.kernel("cuda/graph/segment_matmul.cuh", instance),
            Launch(min(_MOST_BLOCKS, tiles), _SIDE * width // _OUTPUTS),
            arguments,
        )
        self._faults.raise_earlier()


def _stretch_for(depth: int, columns: int) -> int:
    """Rows, of which inputs are 4 times as large as the sums of their outer products."""
    return max(_LEAST_STRETCH, 1 << (4 * depth * columns // (depth + columns)).bit_length())

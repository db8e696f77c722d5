"""Products of rows with the matrix of their type, as operators of torch.

``gnnsys::segment_matmul``, ``segment_matmul_sum`` and ``segment_outer`` have derivatives made of
each other, so that they can be differentiated any number of times; torch.compile traces them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gnnsys.errors import ArgumentError, DTypeError
from gnnsys.message_passing.sums import SUMMED_DTYPES
from gnnsys.rel.dtypes import as_autocast
from gnnsys.rel.segment_backends import BACKENDS, available_backends, code_of
from gnnsys.system.extension import core
from gnnsys.system.gpu.placement import device_of_cpu_tensors, kernels_of_cpu_tensors

__all__ = ["BACKENDS", "available_backends", "segment_matmul"]

# R rows of x, M rows of the result, T types, B blocks; K columns of x, N of the result. Inside, all
# is in blocks: x (R, B, K), weight (T, B, K, N), grad (M, B, N).

_DEVICES = ("cpu", "cuda")


def segment_matmul(
    x: Tensor, weight: Tensor, ptr: Tensor, index: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """Multiplies rows that lie in the order of their types with the matrix of their type.

    ``result[p] = x[index[p]] @ weight[t]`` for ``ptr[t] <= p < ptr[t + 1]``. Can be differentiated
    any number of times by ``x`` and ``weight``; results do not depend on the number of threads
    (that of torch). bfloat16 is summed in float32. Under torch.autocast it computes as
    ``torch.nn.functional.linear`` does, in autocast's element type.

    Args:
        x: (R, K), or (R, B, K) for matrices of B blocks; float32, float64 or bfloat16.
        weight: (T, K, N) or (T, B, K, N) of the dtype of ``x``; need not be contiguous.
        ptr: (T + 1,) int64 on the CPU: where the rows of each type begin in the result, and M.
        index: (M,) int64: the row of ``x`` of each row of the result; None for all in their order.
            The derivative by ``x`` takes no memory for M rows where it ascends within each type.
        backend: one of ``available_backends()``: "native" reads rows where they lie, "grouped_mm"
            (``torch.nn.functional.grouped_mm``; no float64) and "pyg_lib" gather them first, "ref"
            multiplies type by type in float64; "auto" takes the first of them.

    Returns:
        (M, N) or (M, B, N).

    Raises:
        ArgumentError: shapes that do not fit each other, a ``ptr`` that does not ascend from 0 to
            M, an unknown backend.
        DTypeError: other element types, that of autocast among them.
        RowIndexError: an index of a row that is not there.
        UnsupportedError: a backend that is not there, or not for this element type or device.

    >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> weight = torch.stack([torch.eye(2), 10 * torch.eye(2)])
    >>> index = torch.tensor([1, 0, 1])
    >>> segment_matmul(x, weight, torch.tensor([0, 1, 3]), index).tolist()
    [[3.0, 4.0], [10.0, 20.0], [30.0, 40.0]]
    """
    _check_shapes(x, weight, ptr, index)
    _check_places(x, weight, ptr, index)
    x, weight = as_autocast(x), as_autocast(weight)
    if x.dtype != weight.dtype or x.dtype not in SUMMED_DTYPES:
        raise DTypeError(
            f"x of {x.dtype} and weight of {weight.dtype}, expected both of float32, float64 or "
            "bfloat16"
        )
    if backend not in BACKENDS:
        raise ArgumentError(f"backend: {backend!r}, expected one of {', '.join(BACKENDS)}")
    if x.dim() == 3:
        return _matmul(x, weight, ptr, index, backend)
    return _matmul(x.unsqueeze(1), weight.unsqueeze(1), ptr, index, backend).squeeze(1)


def _check_shapes(x: Tensor, weight: Tensor, ptr: Tensor, index: Tensor | None) -> None:
    fits = x.dim() in (2, 3) and weight.dim() == x.dim() + 1 and weight.shape[1:-2] == x.shape[1:-1]
    if not fits or weight.size(-2) != x.size(-1):
        raise ArgumentError(
            f"x of {tuple(x.shape)} and weight of {tuple(weight.shape)}, expected (R, K) and "
            "(T, K, N), or (R, B, K) and (T, B, K, N)"
        )
    for name, ids in (("ptr", ptr), ("index", index)):
        if ids is not None and (ids.dtype != torch.int64 or ids.dim() != 1):
            raise DTypeError(
                f"{name}: {ids.dtype} of {tuple(ids.shape)}, expected int64 in one dimension"
            )
    if len(ptr) != len(weight) + 1:
        raise ArgumentError(f"ptr: of {len(ptr)}, expected {len(weight) + 1}, one more than types")


def _check_places(x: Tensor, weight: Tensor, ptr: Tensor, index: Tensor | None) -> None:
    for name, other in (("weight", weight), ("index", index)):
        if other is not None and other.device != x.device:
            raise ArgumentError(f"{name}: is on {other.device}, but x is on {x.device}")
    if ptr.device.type != "cpu":
        raise ArgumentError(f"ptr: on {ptr.device}, expected on the CPU; use ptr.cpu()")


# Operators ------------------------------------------------------------------------------------


@torch.library.custom_op("gnnsys::segment_matmul", mutates_args=(), device_types=_DEVICES)
def _matmul(x: Tensor, weight: Tensor, ptr: Tensor, index: Tensor | None, backend: str) -> Tensor:
    """(M, B, N)."""
    code = code_of(backend, x)
    _check_ptr(x, ptr, index)
    return code.matmul(x, weight, ptr, index)


@torch.library.custom_op("gnnsys::segment_outer", mutates_args=(), device_types=_DEVICES)
def _outer(x: Tensor, grad: Tensor, ptr: Tensor, index: Tensor | None, backend: str) -> Tensor:
    """(T, B, K, N): of each type the sum of the outer products of its rows of x and of grad."""
    code = code_of(backend, x)
    _check_ptr(x, ptr, index)
    _check_rows("grad", grad, x if index is None else index)
    return code.outer(x, grad, ptr, index)


@torch.library.custom_op("gnnsys::segment_matmul_sum", mutates_args=(), device_types=_DEVICES)
def _matmul_sum(
    x: Tensor, weight: Tensor, ptr: Tensor, index: Tensor, num_rows: int, backend: str
) -> Tensor:
    """(num_rows, B, N): the products of the rows of x (M, B, K), summed by index."""
    code = code_of(backend, x)
    _check_ptr(x, ptr, None)
    _check_rows("index", index, x)
    return code.matmul_sum(x, weight, ptr, index, num_rows)


def _check_ptr(x: Tensor, ptr: Tensor, index: Tensor | None) -> None:
    rows = len(x) if index is None else len(index)
    if core.find_indptr_fault(ptr.numpy(), rows) >= 0 or ptr[0] != 0 or ptr[-1] != rows:
        raise ArgumentError(f"ptr: expected to ascend from 0 to {rows}, the rows of the result")


def _check_rows(name: str, given: Tensor, other: Tensor) -> None:
    if len(given) != len(other):
        raise ArgumentError(f"{name}: {len(given)} rows, expected {len(other)}, one a product")


@_matmul.register_fake
def _(x: Tensor, weight: Tensor, ptr: Tensor, index: Tensor | None, backend: str) -> Tensor:
    rows = x.size(0) if index is None else index.size(0)
    return x.new_empty(rows, x.size(1), weight.size(3))


@_outer.register_fake
def _(x: Tensor, grad: Tensor, ptr: Tensor, index: Tensor | None, backend: str) -> Tensor:
    return x.new_empty(ptr.size(0) - 1, x.size(1), x.size(2), grad.size(2))


@_matmul_sum.register_fake
def _(x: Tensor, weight: Tensor, ptr: Tensor, index: Tensor, num_rows: int, backend: str) -> Tensor:
    return x.new_empty(num_rows, x.size(1), weight.size(3))


def _set_up(ctx: Any, inputs: Any, output: Tensor) -> None:
    """Of a product of x by weights, or of outer products of x and a gradient."""
    x, other, ptr, index, ctx.backend = inputs
    needs_x, needs_other = ctx.needs_input_grad[:2]
    ctx.save_for_backward(x if needs_other else None, other if needs_x else None, ptr, index)
    ctx.num_rows = x.size(0)
    ctx.device = device_of_cpu_tensors()


def _differentiate_matmul(ctx: Any, grad: Tensor) -> Any:
    x, weight, ptr, index = ctx.saved_tensors
    needs_x, needs_weight = ctx.needs_input_grad[:2]
    with kernels_of_cpu_tensors(ctx.device):
        by_x = _by_rows(grad, weight, ptr, index, ctx) if needs_x else None
        by_weight = _outer(x, grad, ptr, index, ctx.backend) if needs_weight else None
    return by_x, by_weight, None, None, None


def _differentiate_outer(ctx: Any, by_outer: Tensor) -> Any:
    x, grad, ptr, index = ctx.saved_tensors
    needs_x, needs_grad = ctx.needs_input_grad[:2]
    with kernels_of_cpu_tensors(ctx.device):
        by_x = _by_rows(grad, by_outer, ptr, index, ctx) if needs_x else None
        by_grad = _matmul(x, by_outer, ptr, index, ctx.backend) if needs_grad else None
    return by_x, by_grad, None, None, None


def _by_rows(grad: Tensor, weight: Tensor, ptr: Tensor, index: Tensor | None, ctx: Any) -> Tensor:
    """The derivative by x, of which a row may have been read more than once."""
    turned = weight.transpose(2, 3)
    if index is None:
        return _matmul(grad, turned, ptr, None, ctx.backend)
    return _matmul_sum(grad, turned, ptr, index, ctx.num_rows, ctx.backend)


def _set_up_matmul_sum(ctx: Any, inputs: Any, output: Tensor) -> None:
    x, weight, ptr, index, _, ctx.backend = inputs
    needs_x, needs_weight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None, ptr, index)
    ctx.device = device_of_cpu_tensors()


def _differentiate_matmul_sum(ctx: Any, grad: Tensor) -> Any:
    x, weight, ptr, index = ctx.saved_tensors
    needs_x, needs_weight = ctx.needs_input_grad[:2]
    by_x = by_weight = None
    with kernels_of_cpu_tensors(ctx.device):
        if needs_x:
            by_x = _matmul(grad, weight.transpose(2, 3), ptr, index, ctx.backend)
        if needs_weight:
            by_weight = _outer(grad, x, ptr, index, ctx.backend).transpose(2, 3)
    return by_x, by_weight, None, None, None, None


_matmul.register_autograd(_differentiate_matmul, setup_context=_set_up)
_matmul_sum.register_autograd(_differentiate_matmul_sum, setup_context=_set_up_matmul_sum)
_outer.register_autograd(_differentiate_outer, setup_context=_set_up)

"""Sums over neighbours as operators of torch: with derivatives, traced by torch.compile.

``gnnsys::sum_neighbors`` and ``gnnsys::dot_neighbors`` are each other's derivatives, so that they
can be differentiated any number of times. Rows are read where they lie, in the order of the edges.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from gnnsys.errors import ArgumentError, DTypeError, RowIndexError, UnsupportedError
from gnnsys.message_passing.neighbors import Neighbors, neighbors_of
from gnnsys.system.extension import core
from gnnsys.system.gpu import Device
from gnnsys.system.gpu.graph_kernels import WeightedRows
from gnnsys.system.gpu.placement import device_of, device_of_cpu_tensors, kernels_of_cpu_tensors

__all__ = ["DEVICES", "SUMMED_DTYPES", "can_sum", "dot_neighbors", "sum_neighbors"]

# E edges, H heads, C channels of a head. Of the two ends of an edge (0: its source, 1: its target)
# `to` is the one whose node receives the sum; the row of the other one's node is added. R rows of
# x, N rows of the result.

SUMMED_DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16})
"""Of rows that can be summed; sums of bfloat16 are held in float32."""

NO_END = -1
"""For ``over``: sums, not means."""

DEVICES = ("cpu", "cuda")
"""Types of devices that operators are for."""


def sum_neighbors(
    x: Tensor,
    edge_index: Tensor,
    weight: Tensor | None = None,
    *,
    num_nodes: int,
    to: int = 1,
    mean: bool = False,
) -> Tensor:
    """For each node the sum of its neighbours' rows, times their edges' weights.

    ``result[t, h] = sum(weight[e, h] * x[source[e], h] for the edges e of t)``, in the order of the
    edges, so that it depends neither on the number of threads (that of torch) nor on the
    instruction set, nor on whether kernels compute it: those of a CUDA tensor's device, or of
    ``gnnsys.system.gpu.placement.kernels_of_cpu_tensors``. Can be differentiated any number of
    times by ``x`` and ``weight``.

    Args:
        x: (R, C) or (R, H, C), float32, float64 or bfloat16, on the CPU or a CUDA device.
        edge_index: (2, E) int64 there, too, sources above targets.
        weight: of the edges, (E, 1) or (E, H), of the dtype of ``x``; None for 1.
        num_nodes: N, rows of the result.
        to: the end of an edge that receives the sum: 1 for its target, 0 for its source.
        mean: divides by the number of the node's edges.

    Returns:
        (N, C) or (N, H, C).

    Raises:
        RowIndexError: a node outside these rows.
        ArgumentError: edges or weights that lie elsewhere than ``x``.
        DTypeError: weights of another element type.
        UnsupportedError: a device for which there are no kernels.

    >>> edge_index = torch.tensor([[2, 0, 1], [0, 0, 2]])
    >>> sum_neighbors(torch.tensor([[1.0], [2.0], [4.0]]), edge_index, num_nodes=3).tolist()
    [[5.0], [0.0], [2.0]]
    """
    result: Tensor = _sum(x, edge_index, weight, to, to if mean else NO_END, num_nodes)
    return result


def dot_neighbors(x: Tensor, y: Tensor, edge_index: Tensor, heads: int = 1) -> Tensor:
    """For each edge and head the dot product of its source's row and its target's.

    Can be differentiated any number of times by ``x`` and ``y``.

    Args:
        x: of the sources, (S, C) or (S, H, C), as for ``sum_neighbors``.
        y: of the targets, (T, C) or (T, H, C), of its dtype.
        edge_index: (2, E) int64 there, too, sources above targets.
        heads: H, among which rows (S, C) are divided evenly.

    Returns:
        (E, H), in the order of the edges.

    Raises:
        RowIndexError: a node outside these rows.
        ArgumentError: rows or edges that lie elsewhere than ``x``.
        DTypeError: rows of two element types.

    >>> x, y = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 10.0]])
    >>> dot_neighbors(x, y, torch.tensor([[1, 0], [0, 0]])).tolist()
    [[43.0], [21.0]]
    """
    result: Tensor = _dot(x, y, edge_index, 1, NO_END, heads)
    return result


def can_sum(x: Any) -> bool:
    """Whether this is a plain tensor, and there is code that sums rows where it lies."""
    if type(x) not in (Tensor, Parameter) or x.layout != torch.strided:
        return False
    return x.device.type == "cpu" or device_of(x) is not None


@torch.library.custom_op("gnnsys::sum_neighbors", mutates_args=(), device_types=DEVICES)
def _sum(
    x: Tensor, edge_index: Tensor, weight: Tensor | None, to: int, over: int, num_nodes: int
) -> Tensor:
    """Divided by the number of edges that the node at the end ``over`` has, if that is an end."""
    _check_dtype(x, weight=weight)
    device = _device_for(x, edge_index=edge_index, weight=weight)
    neighbors = neighbors_of(edge_index)
    _check_rows(neighbors, to, num_nodes, x.size(0))
    heads = 1 if weight is None else weight.size(1)
    weight = None if weight is None else weight.contiguous()
    rows = _weighted_rows(x.contiguous(), weight, neighbors, to, over, heads)
    out = x.new_empty(num_nodes, *x.shape[1:])
    out[neighbors.counts[to] :].zero_()
    if device is not None:
        neighbors.launches(to, device).sum(rows, out[: neighbors.counts[to]])
    else:
        arrays = neighbors.groups(to).arrays()
        _check(_aggregator(torch.get_num_threads()).sum(arrays, _arrays(rows), out.data_ptr()))
    return out


@torch.library.custom_op("gnnsys::dot_neighbors", mutates_args=(), device_types=DEVICES)
def _dot(x: Tensor, y: Tensor, edge_index: Tensor, to: int, over: int, heads: int) -> Tensor:
    """(E, H) of each edge and head the dot product of its rows, divided as the sums are.

    ``y``, (N, …), has the rows of the end ``to``, ``x``, (R, …), those of the other.
    """
    _check_dtype(x, y=y)
    device = _device_for(x, edge_index=edge_index, y=y)
    neighbors = neighbors_of(edge_index)
    _check_rows(neighbors, to, y.size(0), x.size(0))
    rows = _weighted_rows(x.contiguous(), None, neighbors, to, over, heads)
    y = y.contiguous()
    out = x.new_empty(len(neighbors), heads)
    if device is not None:
        neighbors.launches(to, device).dot(rows, y[: neighbors.counts[to]], out)
    else:
        arrays = neighbors.groups(to).arrays()
        aggregator = _aggregator(torch.get_num_threads())
        _check(aggregator.dot(arrays, _arrays(rows), y.data_ptr(), out.data_ptr()))
    return out


def _check_dtype(x: Tensor, **others: Tensor | None) -> None:
    for name, other in others.items():
        if other is not None and other.dtype != x.dtype:
            raise DTypeError(f"{name}: {other.dtype}, but x is {x.dtype}; convert either")


def _device_for(x: Tensor, **others: Tensor | None) -> Device | None:
    """Whose kernels compute with ``x``; None for native code."""
    for name, other in others.items():
        if other is not None and other.device != x.device:
            raise ArgumentError(f"{name}: is on {other.device}, but x is on {x.device}")
    device = device_of(x)
    if device is None and x.device.type != "cpu":
        raise UnsupportedError(f"x: there are no kernels for {x.device}; move it to the CPU")
    return device


def _weighted_rows(
    x: Tensor, weight: Tensor | None, neighbors: Neighbors, to: int, over: int, heads: int
) -> WeightedRows:
    """Of the rows up to the last that an edge reads."""
    scale = _reciprocal_degrees(neighbors, over, x) if over == 1 - to else None
    return WeightedRows(x[: neighbors.counts[1 - to]], heads, weight, scale, mean=over == to)


def _arrays(rows: WeightedRows) -> core.RowArrays:
    """What core reads, for as long as the rows are there."""
    return core.RowArrays(
        str(rows.x.dtype).removeprefix("torch."),
        rows.x.data_ptr(),
        rows.x.size(0),
        rows.heads,
        rows.channels,
        0 if rows.weight is None else rows.weight.data_ptr(),
        0 if rows.scale is None else rows.scale.data_ptr(),
        rows.mean,
    )


def _reciprocal_degrees(neighbors: Neighbors, end: int, like: Tensor) -> Tensor:
    exact = neighbors.degrees(end).to(torch.promote_types(like.dtype, torch.float32))
    return exact.reciprocal_().to(like.dtype)


def _check_rows(neighbors: Neighbors, to: int, received: int, read: int) -> None:
    if neighbors.counts[to] > received or neighbors.counts[1 - to] > read:
        last = (neighbors.counts[0] - 1, neighbors.counts[1] - 1)
        rows = (read, received) if to else (received, read)
        raise RowIndexError(
            f"edge_index: sources up to {last[0]} and targets up to {last[1]}, expected below "
            f"{rows[0]} and {rows[1]}, the rows that there are"
        )


def _check(bad: int) -> None:
    """Raises for what core returned; edges were checked before, and may change in between."""
    if bad >= 0:
        raise RowIndexError(f"edge_index: edge {bad} changed: its node has no row any more")


@functools.lru_cache
def _aggregator(threads: int) -> Any:
    return core.Aggregator(threads)


# Shapes and derivatives -----------------------------------------------------------------------


@_sum.register_fake
def _(x: Tensor, edge_index: Tensor, weight: Any, to: int, over: int, num_nodes: int) -> Tensor:
    return x.new_empty(num_nodes, *x.shape[1:])


@_dot.register_fake
def _(x: Tensor, y: Tensor, edge_index: Tensor, to: int, over: int, heads: int) -> Tensor:
    return x.new_empty(edge_index.size(1), heads)


def _set_up_sum(ctx: Any, inputs: Any, output: Tensor) -> None:
    x, edge_index, weight, ctx.to, ctx.over, _ = inputs
    needs_x, _, needs_weight = ctx.needs_input_grad[:3]
    ctx.save_for_backward(edge_index, x if needs_weight else None, weight if needs_x else None)
    ctx.num_rows = x.size(0)
    ctx.device = device_of_cpu_tensors()
    ctx.heads = 1 if weight is None else weight.size(1)


def _differentiate_sum(ctx: Any, grad: Tensor) -> Any:
    edge_index, x, weight = ctx.saved_tensors
    to, over = ctx.to, ctx.over
    needs_x, _, needs_weight = ctx.needs_input_grad[:3]
    with kernels_of_cpu_tensors(ctx.device):
        grad_x = _sum(grad, edge_index, weight, 1 - to, over, ctx.num_rows) if needs_x else None
        grad_weight = _dot(x, grad, edge_index, to, over, ctx.heads) if needs_weight else None
    return grad_x, None, grad_weight, None, None, None


def _set_up_dot(ctx: Any, inputs: Any, output: Tensor) -> None:
    x, y, edge_index, ctx.to, ctx.over, _ = inputs
    needs_x, needs_y = ctx.needs_input_grad[:2]
    ctx.save_for_backward(edge_index, x if needs_y else None, y if needs_x else None)
    ctx.num_rows = x.size(0), y.size(0)
    ctx.device = device_of_cpu_tensors()


def _differentiate_dot(ctx: Any, grad: Tensor) -> Any:
    edge_index, x, y = ctx.saved_tensors
    to, over = ctx.to, ctx.over
    of_x, of_y = ctx.num_rows
    needs_x, needs_y = ctx.needs_input_grad[:2]
    with kernels_of_cpu_tensors(ctx.device):
        grad_x = _sum(y, edge_index, grad, 1 - to, over, of_x) if needs_x else None
        grad_y = _sum(x, edge_index, grad, to, over, of_y) if needs_y else None
    return grad_x, grad_y, None, None, None, None


_sum.register_autograd(_differentiate_sum, setup_context=_set_up_sum)
_dot.register_autograd(_differentiate_dot, setup_context=_set_up_dot)

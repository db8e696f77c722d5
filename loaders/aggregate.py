"""Sums over the neighbours of nodes, with derivatives: the arithmetic of message passing on CPUs.

Rows are read where they lie, in the order of the edges, and never written out edge by edge.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from gnnsys._extension import core
from gnnsys.errors import RowIndexError

__all__ = ["AGGREGATED_DTYPES", "Neighbors", "sum_neighbors"]

# E edges, S rows of x (sources), T targets, H heads, C channels of a head.

AGGREGATED_DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16})
"""Of rows that can be summed; sums of bfloat16 are held in float32."""

_INT32 = 1 << 31


class Neighbors:
    """The edges of a graph, grouped by target, and by source once a derivative needs it.

    Args:
        source: (E,) int64 on the CPU, contiguous.
        target: (E,) int64 on the CPU, contiguous; need not be sorted.
        num_targets: T.

    Raises:
        RowIndexError: a target outside [0, T).

    >>> Neighbors(torch.tensor([2, 0, 1]), torch.tensor([0, 0, 2]), 3).indptr.tolist()
    [0, 2, 2, 3]
    """

    def __init__(self, source: Tensor, target: Tensor, num_targets: int) -> None:
        self.source = source
        self.target = target
        self.num_targets = num_targets
        self.indptr = torch.empty(num_targets + 1, dtype=torch.int64)
        self.is_sorted, self.min_source, self.max_source = core.scan_edges(
            source.numpy(), target.numpy(), self.indptr.numpy()
        )
        if self.is_sorted:
            self.by_target = _Groups(self.indptr, source, None)
        else:
            self.by_target = _group("target", target, source, num_targets)
            self.indptr = self.by_target.indptr
        self._by_source: _Groups | None = None

    def by_source(self, num_sources: int) -> _Groups:
        """The edges grouped by source, of which there are ``num_sources``."""
        if self._by_source is None or len(self._by_source.indptr) != num_sources + 1:
            self._by_source = _group("source", self.source, self.target, num_sources)
        return self._by_source

    def reads_rows_of(self, num_sources: int) -> bool:
        """Whether all sources lie in [0, num_sources)."""
        return self.min_source >= 0 and self.max_source < num_sources


class _Groups:
    """Edges in groups: those of group g are indptr[g] … indptr[g + 1] - 1."""

    __slots__ = ("arrays", "indptr", "order", "other")

    def __init__(self, indptr: Tensor, other: Tensor, order: Tensor | None) -> None:
        self.indptr = indptr  # (groups + 1,) int64
        self.other = other  # (E,) int32 or int64: each edge's node at the other end
        self.order = order  # (E,) as other: each edge's number; None where that is its position
        self.arrays = core.EdgeArrays(
            indptr.data_ptr(),
            len(indptr) - 1,
            other.data_ptr(),
            0 if order is None else order.data_ptr(),
            other.element_size(),
        )


def _group(what: str, key: Tensor, value: Tensor, num_keys: int) -> _Groups:
    narrow = max(num_keys, len(key), int(value.max()) + 1 if len(value) else 0) < _INT32
    indptr = torch.empty(num_keys + 1, dtype=torch.int64)
    other = torch.empty(len(key), dtype=torch.int32 if narrow else torch.int64)
    order = torch.empty_like(other)
    bad = core.group_edges(key.numpy(), value.numpy(), indptr.numpy(), other.numpy(), order.numpy())
    if bad >= 0:
        raise RowIndexError(
            f"edge_index: the {what} of edge {bad} is {int(key[bad])}, expected one in "
            f"[0, {num_keys})"
        )
    return _Groups(indptr, other, order)


def sum_neighbors(
    x: Tensor,
    neighbors: Neighbors,
    weight: Tensor | None = None,
    *,
    mean: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """For each target the sum of its neighbours' rows, times their edges' weights.

    ``out[t, h] = sum(weight[e, h] * x[source[e], h] for the edges e of t)``, in the order of the
    edges, so that the result depends neither on the number of threads (that of torch) nor on the
    instruction set. Can be differentiated any number of times by ``x`` and ``weight``.

    Args:
        x: (S, C) or (S, H, C), float32, float64 or bfloat16, on the CPU.
        neighbors: whose sources are rows of ``x``.
        weight: of the edges, (E, 1) or (E, H), of the dtype of ``x``; None for 1.
        mean: divides by the number of the target's edges.
        out: is added to, in place: contiguous, of at least T rows; None for a new tensor.

    Returns:
        ``out``, or (T, C) or (T, H, C).

    Raises:
        RowIndexError: a source that is not a row of ``x``.

    >>> neighbors = Neighbors(torch.tensor([2, 0, 1]), torch.tensor([0, 0, 2]), 3)
    >>> sum_neighbors(torch.tensor([[1.0], [2.0], [4.0]]), neighbors, mean=True).tolist()
    [[2.5], [0.0], [2.0]]
    """
    sums = _Sums(neighbors, x.size(0), mean=mean, transposed=False)
    result: Tensor = _Sum.apply(out, x, weight, sums)
    return result


@dataclass(frozen=True, slots=True)
class _Sums:
    """The linear map from sources to targets, or its transpose."""

    neighbors: Neighbors
    num_sources: int
    mean: bool
    transposed: bool

    def transpose(self) -> _Sums:
        return _Sums(self.neighbors, self.num_sources, self.mean, not self.transposed)

    def groups(self) -> _Groups:
        if self.transposed:
            return self.neighbors.by_source(self.num_sources)
        return self.neighbors.by_target

    def arrays(self, x: Tensor, weight: Tensor | None, heads: int) -> tuple[Any, list[Any]]:
        """What core needs to know of x and weight, and the tensors that this points to."""
        kept = [x, weight, self._scale(x.dtype)]
        weight_at, scale_at = (0 if t is None else t.data_ptr() for t in kept[1:])
        arrays = core.RowArrays(
            str(x.dtype).removeprefix("torch."),
            x.data_ptr(),
            x.size(0),
            heads,
            math.prod(x.shape[1:]) // heads,
            weight_at,
            scale_at,
            self.mean and not self.transposed,
        )
        return arrays, kept

    def _scale(self, dtype: torch.dtype) -> Tensor | None:
        """Of a target's row where rows of targets are summed: 1 / its edges, for the mean."""
        if not (self.mean and self.transposed):
            return None
        degree = self.neighbors.indptr.diff().clamp_(min=1)
        return degree.to(torch.promote_types(dtype, torch.float32)).reciprocal_().to(dtype)

    def check(self, bad: int) -> None:
        if bad >= 0:
            raise RowIndexError(
                f"edge_index: a source outside the {self.num_sources} rows of x (edge {bad})"
            )


class _Sum(Function):
    @staticmethod
    def forward(
        ctx: Any, out: Tensor | None, x: Tensor, weight: Tensor | None, sums: _Sums
    ) -> Tensor:
        _, needs_x, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)
        ctx.heads = 1 if weight is None else weight.size(1)
        ctx.sums = sums
        groups = sums.groups()
        arrays, kept = sums.arrays(
            x.contiguous(), None if weight is None else weight.contiguous(), ctx.heads
        )
        add = out is not None
        if out is None:
            out = x.new_empty(len(groups.indptr) - 1, *x.shape[1:])
        else:
            ctx.mark_dirty(out)
        aggregator = _aggregator(torch.get_num_threads())
        sums.check(aggregator.sum(groups.arrays, arrays, add, out.data_ptr()))
        del kept
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        needs_out, needs_x, needs_weight, _ = ctx.needs_input_grad
        x, weight = ctx.saved_tensors
        sums: _Sums = ctx.sums
        grad_x = grad_weight = None
        if not sums.transposed:  # the rows that were added to may be more than the targets
            rows = grad[: sums.neighbors.num_targets]
        else:
            rows = grad
        if needs_x:
            grad_x = _Sum.apply(None, rows, weight, sums.transpose())
        if needs_weight:
            grad_weight = _Dot.apply(x, rows, ctx.heads, sums)
        return grad if needs_out else None, grad_x, grad_weight, None


class _Dot(Function):
    """Of each edge and head the dot product of its two rows: the derivative by the weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, heads: int, sums: _Sums) -> Tensor:
        needs_x, needs_y, _, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_y else None, y if needs_x else None)
        ctx.sums = sums
        y = y.contiguous()
        arrays, kept = sums.arrays(x.contiguous(), None, heads)
        out = x.new_empty(len(sums.neighbors.source), heads)
        aggregator = _aggregator(torch.get_num_threads())
        sums.check(aggregator.dot(sums.groups().arrays, arrays, y.data_ptr(), out.data_ptr()))
        del kept
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        needs_x, needs_y, _, _ = ctx.needs_input_grad
        x, y = ctx.saved_tensors
        grad_x = _Sum.apply(None, y, grad, ctx.sums.transpose()) if needs_x else None
        grad_y = _Sum.apply(None, x, grad, ctx.sums) if needs_y else None
        return grad_x, grad_y, None, None


@functools.lru_cache
def _aggregator(threads: int) -> Any:
    return core.Aggregator(threads)

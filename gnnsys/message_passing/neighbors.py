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

# E edges, S rows of x (sources), T rows of the result (targets), H heads, C channels of a head.

AGGREGATED_DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16})
"""Of rows that can be summed; sums of bfloat16 are held in float32."""

_INT32 = 1 << 31


class Neighbors:
    """The edges of a graph, grouped by target, and by source once a derivative needs it.

    Args:
        source: (E,) int64 on the CPU, contiguous.
        target: (E,) likewise; need not be sorted.

    Raises:
        RowIndexError: a negative node.

    >>> Neighbors(torch.tensor([2, 0, 1]), torch.tensor([0, 0, 2])).indptr.tolist()
    [0, 2, 2, 3]
    """

    def __init__(self, source: Tensor, target: Tensor) -> None:
        self.source = source
        self.target = target
        self.is_sorted, least_source, most_source, least_target, most_target = core.scan_edges(
            source.numpy(), target.numpy()
        )
        if min(least_source, least_target) < 0:
            raise RowIndexError(
                f"edge_index: the least source is {least_source}, the least target {least_target}; "
                "expected none below 0"
            )
        self.num_sources = most_source + 1
        """Up to the last node that an edge comes from."""
        self.num_targets = most_target + 1
        """Up to the last node that an edge leads to."""
        if self.is_sorted:
            self.indptr = torch.empty(self.num_targets + 1, dtype=torch.int64)
            core.count_sorted(target.numpy(), self.indptr.numpy())
            self.by_target = _Groups(self.indptr, source, None)
        else:
            self.by_target = _group(target, source, self.num_targets, self.num_sources)
            self.indptr = self.by_target.indptr
        self._by_source: _Groups | None = None

    @property
    def by_source(self) -> _Groups:
        """The edges grouped by source."""
        if self._by_source is None:
            self._by_source = _group(self.source, self.target, self.num_sources, self.num_targets)
        return self._by_source

    def degrees(self) -> Tensor:
        """(num_targets,) int64: each target's edges, 1 where it has none."""
        return self.indptr.diff().clamp_(min=1)


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

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def __reduce__(self) -> Any:
        return _Groups, (self.indptr, self.other, self.order)


def _group(key: Tensor, value: Tensor, num_keys: int, num_values: int) -> _Groups:
    narrow = max(num_values, len(key)) < _INT32
    indptr = torch.empty(num_keys + 1, dtype=torch.int64)
    other = torch.empty(len(key), dtype=torch.int32 if narrow else torch.int64)
    order = torch.empty_like(other)
    core.group_edges(key.numpy(), value.numpy(), indptr.numpy(), other.numpy(), order.numpy())
    return _Groups(indptr, other, order)


def sum_neighbors(
    x: Tensor,
    neighbors: Neighbors,
    weight: Tensor | None = None,
    *,
    num_targets: int | None = None,
    mean: bool = False,
) -> Tensor:
    """For each target the sum of its neighbours' rows, times their edges' weights.

    ``result[t, h] = sum(weight[e, h] * x[source[e], h] for the edges e of t)``, in the order of the
    edges, so that it depends neither on the number of threads (that of torch) nor on the
    instruction set. Can be differentiated any number of times by ``x`` and ``weight``.

    Args:
        x: (S, C) or (S, H, C), float32, float64 or bfloat16, on the CPU.
        neighbors: whose sources are rows of ``x``.
        weight: of the edges, (E, 1) or (E, H), of the dtype of ``x``; None for 1.
        num_targets: T, at least ``neighbors.num_targets``, which None stands for.
        mean: divides by the number of the target's edges.

    Returns:
        (T, C) or (T, H, C).

    Raises:
        RowIndexError: a source or a target outside these rows.

    >>> neighbors = Neighbors(torch.tensor([2, 0, 1]), torch.tensor([0, 0, 2]))
    >>> sum_neighbors(torch.tensor([[1.0], [2.0], [4.0]]), neighbors, mean=True).tolist()
    [[2.5], [0.0], [2.0]]
    """
    if num_targets is None:
        num_targets = neighbors.num_targets
    if x.size(0) < neighbors.num_sources or num_targets < neighbors.num_targets:
        raise RowIndexError(
            f"edge_index: nodes up to {neighbors.num_sources - 1} and {neighbors.num_targets - 1}, "
            f"expected below {x.size(0)} and {num_targets}, the rows of x and of the result"
        )
    sums = _Sums(neighbors, num_targets, x.size(0), mean=mean, transposed=False)
    result: Tensor = _Sum.apply(x, weight, sums)
    return result


@dataclass(frozen=True, slots=True)
class _Sums:
    """The linear map from the rows of sources to those of targets, or its transpose."""

    neighbors: Neighbors
    num_out: int
    num_in: int
    mean: bool
    transposed: bool

    def transpose(self) -> _Sums:
        return _Sums(self.neighbors, self.num_in, self.num_out, self.mean, not self.transposed)

    @property
    def groups(self) -> _Groups:
        return self.neighbors.by_source if self.transposed else self.neighbors.by_target

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
        """Of the rows of targets, where these are summed: 1 / their edges, for the mean."""
        if not (self.mean and self.transposed):
            return None
        exact = self.neighbors.degrees().to(torch.promote_types(dtype, torch.float32))
        return exact.reciprocal_().to(dtype)

    def check(self, bad: int) -> None:
        """Raises for what core returned; sources are checked before, and may change in between."""
        if bad >= 0:
            raise RowIndexError(f"edge_index: edge {bad} changed: its node has no row any more")


class _Sum(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, sums: _Sums) -> Tensor:
        needs_x, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)
        ctx.heads = heads = 1 if weight is None else weight.size(1)
        ctx.sums = sums
        groups = sums.groups
        arrays, kept = sums.arrays(
            x.contiguous(), None if weight is None else weight.contiguous(), heads
        )
        out = x.new_empty(sums.num_out, *x.shape[1:])
        out[len(groups) :].zero_()
        aggregator = _aggregator(torch.get_num_threads())
        sums.check(aggregator.sum(groups.arrays, arrays, out.data_ptr()))
        del kept
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        needs_x, needs_weight, _ = ctx.needs_input_grad
        x, weight = ctx.saved_tensors
        grad_x = _Sum.apply(grad, weight, ctx.sums.transpose()) if needs_x else None
        grad_weight = _Dot.apply(x, grad, ctx.heads, ctx.sums) if needs_weight else None
        return grad_x, grad_weight, None


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
        sums.check(aggregator.dot(sums.groups.arrays, arrays, y.data_ptr(), out.data_ptr()))
        del kept
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        needs_x, needs_y, _, _ = ctx.needs_input_grad
        x, y = ctx.saved_tensors
        grad_x = _Sum.apply(y, grad, ctx.sums.transpose()) if needs_x else None
        grad_y = _Sum.apply(x, grad, ctx.sums) if needs_y else None
        return grad_x, grad_y, None, None


@functools.lru_cache
def _aggregator(threads: int) -> Any:
    return core.Aggregator(threads)

"""The logits of additive attention as an operator of torch.

On the CPU no rows are written edge by edge. There is no kernel for a GPU: operations of torch
write (E, H, C) there.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gnnsys.errors import ArgumentError, DTypeError, RowIndexError
from gnnsys.message_passing.neighbors import Neighbors, neighbors_of
from gnnsys.message_passing.softmax import sum_over_edges
from gnnsys.message_passing.sums import DEVICES, SUMMED_DTYPES
from gnnsys.system.extension import core

__all__ = ["additive_logits"]

# E edges, H heads, C channels of a head; S rows of sources, T of targets.

_Grads = tuple[Tensor, Tensor, Tensor, Tensor]


def additive_logits(
    source: Tensor,
    target: Tensor,
    att: Tensor,
    edge_index: Tensor,
    *,
    negative_slope: float,
    edge: Tensor | None = None,
) -> Tensor:
    """For each edge and head ``(att * leaky_relu(source[s] + target[t] + edge[e])).sum(-1)``.

    Equation 7 of Brody et al., "How Attentive are Graph Attention Networks?", 2022, before the
    softmax. Can be differentiated any number of times by all rows and ``att``; results do not
    depend on the number of threads.

    Args:
        source: (S, H, C) of the nodes above in ``edge_index``, float32, float64 or bfloat16.
        target: (T, H, C) of those below, of its dtype.
        att: (H, C), of its dtype.
        edge_index: (2, E) int64 on the same device.
        negative_slope: of leaky_relu.
        edge: (E, H, C), of its dtype, in the order of the edges; None for none.

    Returns:
        (E, H), in the order of the edges.

    Raises:
        ArgumentError: shapes or devices that do not fit each other.
        DTypeError: other types of numbers, or several.
        RowIndexError: a node outside these rows.

    >>> source, target = torch.tensor([[[1.0, -3.0]]]), torch.tensor([[[1.0, 1.0]]])
    >>> edge_index = torch.tensor([[0], [0]])
    >>> additive_logits(source, target, torch.ones(1, 2), edge_index, negative_slope=0.5).tolist()
    [[1.0]]
    """
    _check_terms(edge_index, att, source=source, target=target, edge=edge)
    result: Tensor = _logits(source, target, edge, att, edge_index, negative_slope)
    return result


def _check_terms(edge_index: Tensor, att: Tensor, **terms: Tensor | None) -> None:
    if att.dim() != 2:
        raise ArgumentError(f"att: of shape {tuple(att.shape)}, expected (heads, channels)")
    for name, term in (("att", att), *terms.items()):
        if term is None:
            continue
        if term.dtype not in SUMMED_DTYPES or term.dtype != att.dtype:
            raise DTypeError(
                f"{name}: {term.dtype}, expected float32, float64 or bfloat16, that of att"
            )
        if term.device != edge_index.device:
            raise ArgumentError(
                f"{name}: is on {term.device}, but edge_index is on {edge_index.device}"
            )
        rows = edge_index.shape[-1:] if name == "edge" else term.shape[:1]
        if name != "att" and term.shape != (*rows, *att.shape):
            raise ArgumentError(
                f"{name}: of shape {tuple(term.shape)}, expected (rows, heads, channels) of "
                f"{rows.numel() if name == 'edge' else 'all'} rows, "
                f"{att.size(0)} heads and {att.size(1)} channels, those of att"
            )


@torch.library.custom_op("gnnsys::additive_logits", mutates_args=(), device_types=DEVICES)
def _logits(
    source: Tensor,
    target: Tensor,
    edge: Tensor | None,
    att: Tensor,
    edge_index: Tensor,
    slope: float,
) -> Tensor:
    neighbors = neighbors_of(edge_index)
    _check_rows(neighbors, source, target)
    if source.device.type != "cpu":
        return _by_torch(source, target, edge, att, edge_index, slope)
    rows = _Rows(source, target, edge, att, slope)
    out = source.new_empty(len(neighbors), source.size(1))
    attention = _attention(torch.get_num_threads())
    _check(attention.additive(neighbors.groups(1).arrays(), rows.arrays(1), out.data_ptr()))
    return out


@torch.library.custom_op("gnnsys::additive_logits_backward", mutates_args=(), device_types=DEVICES)
def _derive(
    grad: Tensor,
    source: Tensor,
    target: Tensor,
    edge: Tensor | None,
    att: Tensor,
    edge_index: Tensor,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """By source, target, edge (of no rows where there is none) and att."""
    if source.device.type != "cpu":
        return _derive_by_torch(grad, source, target, edge, att, edge_index, slope)
    neighbors, grad = neighbors_of(edge_index), grad.contiguous()
    rows = _Rows(source, target, edge, att, slope)
    of_ends = [x.new_empty(x.shape) for x in (source, target)]
    of_edges = (
        source.new_empty(0, *source.shape[1:]) if edge is None else edge.new_empty(edge.shape)
    )
    of_att = att.new_empty(att.shape)
    attention = _attention(torch.get_num_threads())
    for end, out in enumerate(of_ends):
        out[neighbors.counts[end] :].zero_()
        bad = attention.derive_additive(
            neighbors.groups(end).arrays(),
            rows.arrays(end),
            grad.data_ptr(),
            out.data_ptr(),
            of_edges.data_ptr() if end and edge is not None else 0,
            of_att.data_ptr() if end else 0,
        )
        _check(bad)
    return of_ends[0], of_ends[1], of_edges, of_att


class _Rows:
    """What core reads, for as long as this is there."""

    def __init__(
        self, source: Tensor, target: Tensor, edge: Tensor | None, att: Tensor, slope: float
    ) -> None:
        self._ends = source.contiguous(), target.contiguous()
        self._edge = None if edge is None else edge.contiguous()
        self._att, self._slope = att.contiguous(), slope

    def arrays(self, end: int) -> core.AdditiveRows:
        """For edges that are grouped by an end."""
        other, own = self._ends[1 - end], self._ends[end]
        return core.AdditiveRows(
            str(own.dtype).removeprefix("torch."),
            own.size(1),
            own.size(2),
            other.data_ptr(),
            other.size(0),
            own.data_ptr(),
            0 if self._edge is None else self._edge.data_ptr(),
            self._att.data_ptr(),
            self._slope,
        )


def _check_rows(neighbors: Neighbors, source: Tensor, target: Tensor) -> None:
    counts, rows = neighbors.counts, (source.size(0), target.size(0))
    if counts[0] > rows[0] or counts[1] > rows[1]:
        raise RowIndexError(
            f"edge_index: sources up to {counts[0] - 1} and targets up to {counts[1] - 1}, "
            f"expected below {rows[0]} and {rows[1]}, the rows that there are"
        )


def _check(bad: int) -> None:
    """Raises for what core returned; edges were checked before, and may change in between."""
    if bad >= 0:
        raise RowIndexError(f"edge_index: edge {bad} changed: its node has no row any more")


@functools.lru_cache
def _attention(threads: int) -> Any:
    return core.EdgeSoftmax(threads)


# By operations of torch: on devices without code of ours, and for derivatives of derivatives ------


def _sum_of_rows(source: Tensor, target: Tensor, edge: Tensor | None, edge_index: Tensor) -> Tensor:
    u = source.index_select(0, edge_index[0]) + target.index_select(0, edge_index[1])
    return u if edge is None else u + edge


def _by_torch(
    source: Tensor,
    target: Tensor,
    edge: Tensor | None,
    att: Tensor,
    edge_index: Tensor,
    slope: float,
) -> Tensor:
    u = _sum_of_rows(source, target, edge, edge_index)
    return (F.leaky_relu(u, slope) * att).sum(-1)


def _derive_by_torch(
    grad: Tensor,
    source: Tensor,
    target: Tensor,
    edge: Tensor | None,
    att: Tensor,
    edge_index: Tensor,
    slope: float,
) -> _Grads:
    """What ``_derive`` gives, by operations that can be differentiated."""
    u = _sum_of_rows(source, target, edge, edge_index)
    grad = grad.unsqueeze(-1)
    slopes = torch.where(u > 0, grad, grad * slope)
    of_rows = slopes * att
    of_ends = [
        sum_over_edges(of_rows.flatten(1), edge_index, end, len(x)).view(x.shape)
        for end, x in enumerate((source, target))
    ]
    of_edges = of_rows[:0] if edge is None else of_rows
    return of_ends[0], of_ends[1], of_edges, (slopes * u).sum(0)


# Shapes and derivatives ---------------------------------------------------------------------------


@_logits.register_fake
def _(source: Tensor, target: Any, edge: Any, att: Any, edge_index: Tensor, slope: Any) -> Tensor:
    return source.new_empty(edge_index.size(1), source.size(1))


@_derive.register_fake
def _(
    grad: Any, source: Tensor, target: Tensor, edge: Any, att: Tensor, edge_index: Any, slope: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    edge_like = source.new_empty(0, *source.shape[1:]) if edge is None else edge
    first, second, third, fourth = (x.new_empty(x.shape) for x in (source, target, edge_like, att))
    return first, second, third, fourth


def _set_up(ctx: Any, inputs: Any, output: Tensor) -> None:
    *tensors, ctx.slope = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad: Tensor) -> Any:
    derive: Any = _derive_by_torch if torch.is_grad_enabled() else _derive
    grads = derive(grad, *ctx.saved_tensors, ctx.slope)
    needed = [x if needs else None for x, needs in zip(grads, ctx.needs_input_grad, strict=False)]
    return *needed, None, None


_logits.register_autograd(_differentiate, setup_context=_set_up)

"""Softmax over the edges of each target as an operator of torch, the attention of graph networks.

The logits of an edge are a sum of its own and of both its nodes', so that those of nodes are
computed once for each node and never written out edge by edge.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gnnsys.errors import ArgumentError, DTypeError, RowIndexError
from gnnsys.message_passing.neighbors import Neighbors, neighbors_of
from gnnsys.message_passing.sums import DEVICES, SUMMED_DTYPES, sum_neighbors
from gnnsys.system.extension import core
from gnnsys.system.gpu.graph_kernels import AttentionScores
from gnnsys.system.gpu.placement import device_of, device_of_cpu_tensors, kernels_of_cpu_tensors

__all__ = ["edge_softmax", "sum_over_edges"]

# E edges, H heads. Of the two ends of an edge `to` is that whose node's edges share 1: its target.
# S rows of the nodes at the other end, T of the targets.


def edge_softmax(
    edge_index: Tensor,
    *,
    num_targets: int,
    logits: Tensor | None = None,
    source: Tensor | None = None,
    target: Tensor | None = None,
    negative_slope: float | None = None,
    to: int = 1,
) -> Tensor:
    """For each target the softmax of the logits of its edges, one for each head.

    ``z[e] = logits[e] + source[s] + target[t]`` for an edge e from s to t, of those that are given,
    ``leaky_relu(z, negative_slope)`` where a slope is. The greatest is subtracted before exp: any
    finite logits give finite shares. These are the attention coefficients of Velickovic et al.,
    "Graph Attention Networks", 2018, equation 3. Sums are made in the order of the edges; results
    do not depend on the number of threads. Can be differentiated any number of times by all three.

    Args:
        edge_index: (2, E) int64, sources above targets; need not be sorted.
        num_targets: T.
        logits: (E, H), float32, float64 or bfloat16, in the order of the edges.
        source: (S, H) of the nodes at the other end, of the dtype of the others.
        target: (T, H) of the targets.
        negative_slope: multiplies what is negative; None for 1.
        to: the end of an edge that its target is at: 1, or 0 where messages flow to sources.

    Returns:
        (E, H), in the order of the edges.

    Raises:
        ArgumentError: none of the three, or edges, shapes or devices that do not fit each other.
        DTypeError: other types of numbers, or several.
        RowIndexError: a node outside these rows.

    >>> edge_index = torch.tensor([[0, 1, 2], [0, 0, 1]])
    >>> source = torch.tensor([[1e4], [1e4], [-1e4]])
    >>> edge_softmax(edge_index, num_targets=2, source=source).tolist()
    [[0.5], [0.5], [1.0]]
    """
    _check_terms(edge_index, num_targets, to, logits=logits, source=source, target=target)
    result: Tensor = _softmax(logits, source, target, edge_index, negative_slope, to, num_targets)
    return result


def _check_terms(edge_index: Tensor, num_targets: int, to: int, **terms: Tensor | None) -> None:
    given = {name: term for name, term in terms.items() if term is not None}
    if not given:
        raise ArgumentError("edge_softmax: give logits, source or target; got none of them")
    if to not in (0, 1):
        raise ArgumentError(f"to: {to}, expected 1 for targets or 0 for sources")
    first = next(iter(given.values()))
    rows = {"logits": edge_index.shape[-1:].numel(), "target": num_targets}
    for name, term in given.items():
        if term.dtype not in SUMMED_DTYPES or term.dtype != first.dtype:
            raise DTypeError(
                f"{name}: {term.dtype}, expected float32, float64 or bfloat16, one for all terms"
            )
        if term.device != edge_index.device:
            raise ArgumentError(
                f"{name}: is on {term.device}, but edge_index is on {edge_index.device}"
            )
        expected = (rows.get(name, term.size(0)) if term.dim() == 2 else 0, *first.shape[-1:])
        if term.shape != expected:
            raise ArgumentError(
                f"{name}: of shape {tuple(term.shape)}, expected (rows, heads) of "
                f"{rows.get(name, 'all nodes')} rows, and as many heads as the others"
            )


@torch.library.custom_op("gnnsys::edge_softmax", mutates_args=(), device_types=DEVICES)
def _softmax(
    logits: Tensor | None,
    source: Tensor | None,
    target: Tensor | None,
    edge_index: Tensor,
    slope: float | None,
    to: int,
    num_targets: int,
) -> Tensor:
    neighbors = neighbors_of(edge_index)
    _check_rows(neighbors, to, num_targets, source)
    device = device_of(edge_index)
    if device is None and edge_index.device.type != "cpu":
        return _by_torch(_sum_of_terms(logits, source, target, edge_index, to), edge_index, slope,
                         to, num_targets)  # fmt: skip
    terms = _Terms(logits, source, target, slope)
    out = terms.like.new_empty(len(neighbors), terms.like.size(1))
    if device is not None:
        neighbors.launches(to, device).softmax(terms.scores(neighbors.counts[to]), out)
        return out
    arrays = neighbors.groups(to).arrays()
    _check(_softmaxer(torch.get_num_threads()).softmax(arrays, terms.arrays(), out.data_ptr()))
    return out


@torch.library.custom_op("gnnsys::edge_softmax_backward", mutates_args=(), device_types=DEVICES)
def _derive(
    alpha: Tensor,
    grad: Tensor,
    logits: Tensor | None,
    source: Tensor | None,
    target: Tensor | None,
    edge_index: Tensor,
    slope: float | None,
    to: int,
    num_sources: int,
    num_targets: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(E, H) by the logits of the edges, and their sums (S, H) over the edges of each source and
    (T, H) of each target; none where there are no such rows.

    The terms give the signs that a slope asks for; without one they need not be there.
    """
    device = device_of(edge_index)
    if device is None and edge_index.device.type != "cpu":
        return _derive_by_torch(alpha, grad, logits, source, target, edge_index, slope, to,
                                num_sources, num_targets)  # fmt: skip
    neighbors = neighbors_of(edge_index)
    heads = alpha.size(1)
    alpha, grad = alpha.contiguous(), grad.contiguous()
    out = torch.empty_like(alpha)
    of_targets = alpha.new_empty(num_targets, heads)
    of_targets[neighbors.counts[to] :].zero_()
    terms = _Terms(logits, source, target, slope, like=alpha)
    of_sources = alpha.new_empty(num_sources, heads)
    of_sources[neighbors.counts[1 - to] :].zero_()
    if device is not None:
        count, by_target = neighbors.counts[to], of_targets if num_targets else None
        neighbors.launches(to, device).differentiate_softmax(
            terms.scores(count), alpha, grad, out, None if by_target is None else by_target[:count]
        )
        if num_sources:
            found = of_sources[: neighbors.counts[1 - to]]
            neighbors.launches(1 - to, device).sum_segments(out, found)
        return out, of_sources, of_targets
    softmaxer = _softmaxer(torch.get_num_threads())
    bad = softmaxer.derive(
        neighbors.groups(to).arrays(),
        terms.arrays(),
        alpha.data_ptr(),
        grad.data_ptr(),
        out.data_ptr(),
        of_targets.data_ptr() if num_targets else 0,
    )
    _check(bad)
    if num_sources:
        arrays = neighbors.groups(1 - to).arrays()
        softmaxer.sum(arrays, terms.dtype, heads, out.data_ptr(), of_sources.data_ptr())
    return out, of_sources, of_targets


class _Terms:
    """What core reads of the logits, for as long as this is there."""

    def __init__(
        self,
        logits: Tensor | None,
        source: Tensor | None,
        target: Tensor | None,
        slope: float | None,
        like: Tensor | None = None,
    ) -> None:
        given = [None if x is None else x.contiguous() for x in (logits, source, target)]
        self._rows, self._slope = given, slope
        self.like: Tensor = next(x for x in (*given, like) if x is not None)
        self.dtype = str(self.like.dtype).removeprefix("torch.")

    def arrays(self) -> core.EdgeLogits:
        edge, source, target = (0 if x is None else x.data_ptr() for x in self._rows)
        sources = 0 if self._rows[1] is None else self._rows[1].size(0)
        leaky, slope = self._slope is not None, self._slope or 0.0
        heads = self.like.size(1)
        return core.EdgeLogits(self.dtype, heads, edge, source, sources, target, leaky, slope)

    def scores(self, targets: int) -> AttentionScores:
        """What kernels read, of so many targets."""
        logits, source, target = self._rows
        target = None if target is None else target[:targets]
        return AttentionScores(logits, source, target, 1.0 if self._slope is None else self._slope)


def _check_rows(neighbors: Neighbors, to: int, num_targets: int, source: Tensor | None) -> None:
    ends = [neighbors.counts[0] - 1, neighbors.counts[1] - 1]
    sources = neighbors.counts[1 - to] if source is None else source.size(0)
    if ends[to] >= num_targets or ends[1 - to] >= sources:
        rows = (sources, num_targets) if to else (num_targets, sources)
        raise RowIndexError(
            f"edge_index: sources up to {ends[0]} and targets up to {ends[1]}, expected below "
            f"{rows[0]} and {rows[1]}, the rows that there are"
        )


def _check(bad: int) -> None:
    """Raises for what core returned; edges were checked before, and may change in between."""
    if bad >= 0:
        raise RowIndexError(f"edge_index: edge {bad} changed: its node has no row any more")


@functools.lru_cache
def _softmaxer(threads: int) -> Any:
    return core.EdgeSoftmax(threads)


# By operations of torch: on devices without code of ours, and for derivatives of derivatives ------


def _sum_of_terms(
    logits: Tensor | None,
    source: Tensor | None,
    target: Tensor | None,
    edge_index: Tensor,
    to: int,
) -> Tensor:
    terms = [] if logits is None else [logits]
    for rows, end in ((source, 1 - to), (target, to)):
        if rows is not None:
            terms.append(rows.index_select(0, edge_index[end]))
    return functools.reduce(torch.add, terms)


def _by_torch(
    z: Tensor, edge_index: Tensor, slope: float | None, to: int, num_targets: int
) -> Tensor:
    if slope is not None:
        z = F.leaky_relu(z, slope)
    index = edge_index[to]
    most = z.new_full((num_targets, z.size(1)), -torch.inf)
    most = most.scatter_reduce(0, index.unsqueeze(-1).expand_as(z), z, "amax")
    exponential = (z - most.index_select(0, index)).exp()
    total = sum_over_edges(exponential, edge_index, to, num_targets)
    return exponential / total.index_select(0, index)


def _derive_by_torch(
    alpha: Tensor,
    grad: Tensor,
    logits: Tensor | None,
    source: Tensor | None,
    target: Tensor | None,
    edge_index: Tensor,
    slope: float | None,
    to: int,
    num_sources: int,
    num_targets: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``_derive`` gives, by operations that can be differentiated."""
    mean = sum_over_edges(alpha * grad, edge_index, to, num_targets or None)
    out = alpha * (grad - mean.index_select(0, edge_index[to]))
    if slope is not None:
        z = _sum_of_terms(logits, source, target, edge_index, to)
        out = torch.where(z > 0, out, out * slope)
    of_sources, of_targets = (
        sum_over_edges(out, edge_index, end, nodes) if nodes else out.new_empty(0, out.size(1))
        for end, nodes in ((1 - to, num_sources), (to, num_targets))
    )
    return out, of_sources, of_targets


def sum_over_edges(x: Tensor, edge_index: Tensor, end: int, num_nodes: int | None) -> Tensor:
    """(num_nodes, H) of each node at an end the sum of (E, H) over its edges."""
    counts = neighbors_of(edge_index).counts
    ones = x.new_ones(counts[1 - end], x.size(1), 1)
    nodes = counts[end] if num_nodes is None else num_nodes
    return sum_neighbors(ones, edge_index, x, num_nodes=nodes, to=end).squeeze(-1)


# Shapes and derivatives ---------------------------------------------------------------------------


@_softmax.register_fake
def _(
    logits: Any, source: Any, target: Any, edge_index: Tensor, slope: Any, to: int, num_targets: int
) -> Tensor:
    like: Tensor = next(x for x in (logits, source, target) if x is not None)
    return like.new_empty(edge_index.size(1), like.size(1))


@_derive.register_fake
def _(
    alpha: Tensor, grad: Tensor, logits: Any, source: Any, target: Any, edge_index: Tensor,
    slope: Any, to: int, num_sources: int, num_targets: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    rows = (alpha.size(0), num_sources, num_targets)
    first, second, third = (alpha.new_empty(n, alpha.size(1)) for n in rows)
    return first, second, third


def _set_up(ctx: Any, inputs: Any, output: Tensor) -> None:
    logits, source, target, edge_index, ctx.slope, ctx.to, ctx.num_targets = inputs
    ctx.num_sources = 0 if source is None else source.size(0)
    terms = (None, None, None) if ctx.slope is None else (logits, source, target)
    ctx.save_for_backward(edge_index, output, *terms)
    ctx.device = device_of_cpu_tensors()


def _differentiate(ctx: Any, grad: Tensor) -> Any:
    edge_index, alpha, *terms = ctx.saved_tensors
    needs_logits, needs_source, needs_target = ctx.needs_input_grad[:3]
    num_sources = ctx.num_sources if needs_source else 0
    num_targets = ctx.num_targets if needs_target else 0
    derive: Any = _derive_by_torch if torch.is_grad_enabled() else _derive
    with kernels_of_cpu_tensors(ctx.device):
        out, of_sources, of_targets = derive(
            alpha, grad, *terms, edge_index, ctx.slope, ctx.to, num_sources, num_targets
        )
    grads = (
        out if needs_logits else None,
        of_sources if needs_source else None,
        of_targets if needs_target else None,
    )
    return *grads, None, None, None, None


_softmax.register_autograd(_differentiate, setup_context=_set_up)

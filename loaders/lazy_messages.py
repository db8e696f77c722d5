"""Messages that are not written out: what ``x[edge_index[0]]`` is until something looks at it.

PyG's message passing gathers the rows of the source nodes, scales them by edge weights and sums
them for each target. Here the gathered rows only remember ``x`` and the edges, and the sums only
remember the messages, until the first other operation; then ``x`` is read once, along the edges.
Whatever is done with messages in between gathers them first and goes on with a plain tensor: it has
the numbers and the cost that it always had.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from gnnsys.loaders.aggregate import AGGREGATED_DTYPES, Neighbors, sum_neighbors
from gnnsys.loaders.lazy_tensor import LazyTensor

__all__ = ["LazyMessages", "gather_lazily", "is_traced"]

# E edges, S rows of x (sources), T targets, H heads, C channels of a head.


def gather_lazily(x: Any, dim: int, neighbors: Neighbors) -> LazyMessages | None:
    """``x.index_select(dim, neighbors.source)``, not written out.

    Args:
        x: (S, C) or (S, H, C).
        dim: of the rows.
        neighbors: the edges.

    Returns:
        None where that must be done at once: another dimension, type or device, or a source
        outside.
    """
    if not _is_plain(x) or x.dim() not in (2, 3) or dim not in (0, -x.dim()):
        return None
    if neighbors.num_sources > x.size(0):
        return None
    return LazyMessages.make(x, None, neighbors)


def _is_plain(x: Any) -> bool:
    return (
        type(x) in (Tensor, Parameter)
        and x.dtype in AGGREGATED_DTYPES
        and x.device.type == "cpu"
        and x.layout == torch.strided
    )


def is_traced() -> bool:
    """Whether torch traces, compiles or transforms functions, which see plain tensors only."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


class LazyMessages(LazyTensor):
    """``weight * x[source]``, (E, C) or (E, H, C)."""

    neighbors: Neighbors
    are_counted: bool = False
    """Whether ones were asked for, to count the messages by: their sum may become a mean."""

    @classmethod
    def make(cls, x: Tensor, weight: Tensor | None, neighbors: Neighbors) -> LazyMessages:
        """Messages of the rows ``x``; weights are None, (E, 1), (E, 1, 1) or (E, H, 1)."""

        def gather(x: Tensor, weight: Tensor | None) -> Tensor:
            rows = x.index_select(0, neighbors.source)
            return rows if weight is None else weight * rows

        messages = cls.of((len(neighbors.source), *x.shape[1:]), gather, x, weight)
        messages.neighbors = neighbors
        return messages

    def sum_by_target(self, num_targets: int, *, mean: bool = False) -> LazySums:
        """The sums or means (T, …) of each target's messages."""
        return LazySums.make(self, num_targets, mean)


class LazySums(LazyTensor):
    """The sums or means of each target's messages, (T, C) or (T, H, C); zeros before these."""

    messages: LazyMessages | None = None
    is_mean: bool = False

    @classmethod
    def make(cls, messages: LazyMessages, num_targets: int, mean: bool) -> LazySums:
        """See ``LazyMessages.sum_by_target``."""
        x, weight = messages.inputs()
        assert x is not None

        def compute(x: Tensor, weight: Tensor | None) -> Tensor:
            if weight is not None:
                weight = weight.reshape(weight.size(0), -1)
            return sum_neighbors(x, messages.neighbors, weight, num_targets=num_targets, mean=mean)

        sums = cls.of((num_targets, *x.shape[1:]), compute, x, weight)
        sums.messages, sums.is_mean = messages, mean
        return sums

    @classmethod
    def zeros(cls, shape: tuple[int, ...], like: Tensor) -> LazySums:
        """Before anything is added."""
        return cls.of(shape, lambda like: like.new_zeros(shape), like.detach())

    @property
    def is_zeros(self) -> bool:
        """Whether nothing was added, and nobody looked."""
        return self.messages is None and not self.is_settled


# What keeps them lazy: each takes the function and its arguments; NotImplemented declines --------


def _new_zeros(func: Any, messages: LazyMessages, *size: Any, **kwargs: Any) -> Any:
    """Zeros to which the messages can be added."""
    shape = tuple(size[0]) if len(size) == 1 and isinstance(size[0], tuple | list) else size
    if kwargs or len(shape) != messages.dim() or shape[1:] != messages.shape[1:]:
        return _new(func, messages, *size, **kwargs)
    return LazySums.zeros(shape, _like(messages))


def _new(func: Any, lazy: LazyTensor, *args: Any, **kwargs: Any) -> Any:
    """A tensor of the type and on the device of another, not of its elements."""
    return func(_like(lazy), *args, **kwargs)


def _new_ones(func: Any, messages: LazyMessages, *args: Any, **kwargs: Any) -> Any:
    messages.are_counted = True
    return _new(func, messages, *args, **kwargs)


def _like(lazy: LazyTensor) -> Tensor:
    """The rows, where the lazy tensor stands for messages."""
    like = lazy._inputs[0]
    assert like is not None
    return like


def _expand_as(func: Any, index: Tensor, other: Tensor) -> Any:
    return NotImplemented if isinstance(index, LazyTensor) else index.expand(other.shape)


def _multiply(func: Any, first: Any, second: Any) -> Any:
    """Edge weights times messages."""
    messages, weight = (first, second) if isinstance(first, LazyMessages) else (second, first)
    if messages.is_settled or not _is_plain(weight):
        return NotImplemented
    x, known = messages.inputs()
    assert x is not None
    shape = messages.shape
    fits = weight.dim() == len(shape) and weight.size(0) == shape[0] and weight.size(-1) == 1
    if known is not None or not fits or weight.shape[1:-1] not in (shape[1:-1], shape[:0], (1,)):
        return NotImplemented
    dtype = torch.promote_types(weight.dtype, messages.dtype)
    return LazyMessages.make(x.to(dtype), weight.to(dtype), messages.neighbors)


def _scatter_add_(func: Any, out: Any, dim: int, index: Tensor, src: Any) -> Any:
    """Adds the messages of each target to zeros."""
    if not (isinstance(out, LazySums) and isinstance(src, LazyMessages)):
        return NotImplemented
    target = src.neighbors.target
    is_target = (
        type(index) is Tensor
        and index.shape == src.shape
        and index.data_ptr() == target.data_ptr()
        and _repeats_a_column(index)
    )
    fits = (
        out.dtype == src.dtype
        and out.shape[1:] == src.shape[1:]
        and out.size(0) >= src.neighbors.num_targets
    )
    if src.is_settled or not (out.is_zeros and is_target and fits and dim in (0, -out.dim())):
        return NotImplemented
    sums = src.sum_by_target(out.size(0))
    out.become(sums)
    # Nothing but a division is worth waiting for: a layer may hand on what it summed.
    return sums if src.are_counted else sums.value()


def _repeats_a_column(x: Tensor) -> bool:
    strides = zip(x.shape[1:], x.stride()[1:], strict=True)
    return all(stride == 0 or size == 1 for size, stride in strides)


def _divide(func: Any, sums: Any, count: Any) -> Any:
    """Sums by the number of edges, which makes them means."""
    if not isinstance(sums, LazySums) or sums.is_settled or sums.messages is None or sums.is_mean:
        return NotImplemented
    if not _is_plain(count) or count.shape != sums.shape or not _repeats_a_column(count):
        return NotImplemented
    if count.dtype != sums.dtype or count.requires_grad:
        return NotImplemented
    degrees = sums.messages.neighbors.degrees()
    column = count[(slice(None), *(0,) * (count.dim() - 1))]
    if bool((column[len(degrees) :] != 1).any()) or not torch.equal(
        column[: len(degrees)], degrees.to(count.dtype)
    ):
        return NotImplemented
    return sums.messages.sum_by_target(sums.size(0), mean=True)


def _linear(func: Any, sums: Any, weight: Tensor, bias: Tensor | None = None) -> Any:
    """Of the last targets, which have no edges in a sampled batch, only the bias is left."""
    if not isinstance(sums, LazySums) or sums.is_settled or sums.messages is None:
        return NotImplemented
    reached = sums.messages.neighbors.num_targets
    if sums.dim() != 2 or reached == sums.size(0):
        return NotImplemented
    top = func(sums.messages.sum_by_target(reached, mean=sums.is_mean).value(), weight, bias)
    rest = sums.size(0) - reached
    if bias is None:
        return F.pad(top, (0, 0, 0, rest))
    return torch.cat([top, bias.to(top.dtype).expand(rest, -1)])


_MULTIPLY = (Tensor.mul, Tensor.__mul__, Tensor.__rmul__, Tensor.multiply, torch.mul)
_DIVIDE = (Tensor.div, Tensor.__truediv__, Tensor.true_divide, torch.div, torch.true_divide)
_NEW = (Tensor.new_empty, Tensor.new_full)

LazyMessages.stays_lazy = {
    Tensor.expand_as: _expand_as,
    Tensor.new_zeros: _new_zeros,
    Tensor.new_ones: _new_ones,
    **dict.fromkeys(_NEW, _new),
    **dict.fromkeys(_MULTIPLY, _multiply),
}
LazySums.stays_lazy = {
    Tensor.expand_as: _expand_as,
    Tensor.scatter_add_: _scatter_add_,
    F.linear: _linear,
    **dict.fromkeys((*_NEW, Tensor.new_ones, Tensor.new_zeros), _new),
    **dict.fromkeys(_DIVIDE, _divide),
}

"""Messages that are not written out: what ``x[edge_index[0]]`` is until something looks at it.

PyG's message passing gathers the rows of the source nodes, scales them by edge weights and sums
them for each target. Here the gathered rows are a tensor that only remembers ``x`` and the edges;
the sum then reads ``x`` itself. Whatever else is done with such a tensor gathers it first and goes
on with a plain one, so that every other use has the numbers and the cost that it always had.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.nn import Parameter
from torch.utils import _pytree as pytree

from gnnsys.errors import UnsupportedError
from gnnsys.loaders.aggregate import AGGREGATED_DTYPES, Neighbors, sum_neighbors

__all__ = ["LazyMessages", "gather_lazily"]


def gather_lazily(x: Any, dim: int, neighbors: Neighbors) -> Tensor | None:
    """``x.index_select(dim, neighbors.source)``, not yet written out.

    Args:
        x: (S, C) or (S, H, C).
        dim: of the rows.
        neighbors: the edges.

    Returns:
        None where that must be done at once: another dimension, type or device, a source outside,
        or while torch traces, compiles or transforms functions.
    """
    if not _is_plain(x) or x.dim() not in (2, 3) or dim not in (0, -x.dim()):
        return None
    if _is_traced() or not neighbors.reads_rows_of(x.size(0)):
        return None
    return _make(x, None, neighbors)


def _is_plain(x: Any) -> bool:
    return (
        type(x) in (Tensor, Parameter)
        and x.dtype in AGGREGATED_DTYPES
        and x.device.type == "cpu"
        and x.layout == torch.strided
    )


def _is_traced() -> bool:
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


class LazyMessages(Tensor):
    """Stands for ``weight * x[source]``, (E, C) or (E, H, C), as a part of autograd's graph."""

    _x: Tensor
    _weight: Tensor | None  # (E, 1), (E, 1, 1) or (E, H, 1)
    _neighbors: Neighbors
    _value: Tensor | None = None  # what it stands for, once something looked at it

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _KNOWN_UNSEEN:
            return torch._C._disabled_torch_function_impl(func, types, args, kwargs)
        if func in _STAYS_LAZY:
            result = _STAYS_LAZY[func](func, *args, **kwargs)
            if result is not NotImplemented:
                return result
        args, kwargs = pytree.tree_map_only(LazyMessages, _value_of, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # Reached only past __torch_function__, as by autograd functions of others.
        if func._schema.is_mutable and isinstance(args[0], LazyMessages):
            raise UnsupportedError(
                f"{func} would change messages in place that were not gathered yet: clone() first"
            )
        args, kwargs = pytree.tree_map_only(LazyMessages, _gather, (args, kwargs or {}))
        return func(*args, **kwargs)

    def sum_by_target(self, *, mean: bool = False, out: Tensor | None = None) -> Tensor:
        """See ``sum_neighbors``."""
        weight = self._weight
        if weight is not None:
            weight = weight.reshape(weight.size(0), -1)
        return sum_neighbors(self._x, self._neighbors, weight, mean=mean, out=out)


class _Make(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, neighbors: Neighbors) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.neighbors = neighbors
        shape = (len(neighbors.source), *x.shape[1:])
        messages = Tensor._make_wrapper_subclass(
            LazyMessages, shape, dtype=x.dtype, device=x.device
        )
        messages._x, messages._weight, messages._neighbors = x.detach(), weight, neighbors
        return messages

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        source = ctx.neighbors.source
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            rows = grad if weight is None else weight * grad
            grad_x = torch.zeros_like(x).index_add(0, source, rows)
        if ctx.needs_input_grad[1]:
            grad_weight = (x.index_select(0, source) * grad).sum_to_size(weight.shape)
        return grad_x, grad_weight, None


def _make(x: Tensor, weight: Tensor | None, neighbors: Neighbors) -> LazyMessages:
    messages: LazyMessages = _Make.apply(x, weight, neighbors)
    messages._x, messages._weight = x, weight  # those of the graph that x is a part of
    return messages


def _gather(messages: LazyMessages) -> Tensor:
    rows = messages._x.index_select(0, messages._neighbors.source)
    return rows if messages._weight is None else messages._weight * rows


def _value_of(messages: LazyMessages) -> Tensor:
    if messages._value is None:
        messages._value = _gather(messages)
    return messages._value


# What keeps messages lazy: each takes the arguments of the function, NotImplemented says no -------


def _new(func: Any, messages: LazyMessages, *args: Any, **kwargs: Any) -> Any:
    """A tensor of the type and the device of messages, not of their elements."""
    return func(messages._x, *args, **kwargs)


def _expand_as(func: Any, index: Tensor, other: Tensor) -> Any:
    if isinstance(index, LazyMessages):
        return NotImplemented
    return index.expand(other.shape)


def _multiply(func: Any, first: Any, second: Any) -> Any:
    """Edge weights times messages."""
    messages, weight = (first, second) if isinstance(first, LazyMessages) else (second, first)
    if messages._value is not None or messages._weight is not None or not _is_plain(weight):
        return NotImplemented
    shape = messages.shape
    fits = weight.dim() == len(shape) and weight.size(0) == shape[0] and weight.size(-1) == 1
    if not fits or weight.shape[1:-1] not in (shape[1:-1], (1,) * (len(shape) - 2)):
        return NotImplemented
    dtype = torch.promote_types(weight.dtype, messages.dtype)
    return _make(messages._x.to(dtype), weight.to(dtype), messages._neighbors)


def _scatter_add_(func: Any, out: Tensor, dim: int, index: Tensor, src: Any) -> Any:
    """Sums the messages of each target."""
    if not isinstance(src, LazyMessages) or src._value is not None:
        return NotImplemented
    neighbors = src._neighbors
    fits = (
        type(out) is Tensor
        and out.dtype == src.dtype
        and out.is_contiguous()
        and dim in (0, -out.dim())
        and out.shape[1:] == src.shape[1:]
        and out.size(0) >= neighbors.num_targets
        and type(index) is Tensor
        and index.shape == src.shape
        and index.data_ptr() == neighbors.target.data_ptr()
        and index.stride() == (1,) + (0,) * (index.dim() - 1)
    )
    if not fits:
        return NotImplemented
    return src.sum_by_target(out=out)


_STAYS_LAZY: dict[Any, Callable[..., Any]] = {
    Tensor.expand_as: _expand_as,
    Tensor.scatter_add_: _scatter_add_,
    **dict.fromkeys((Tensor.new_zeros, Tensor.new_ones, Tensor.new_empty, Tensor.new_full), _new),
    **dict.fromkeys(
        (Tensor.mul, Tensor.__mul__, Tensor.__rmul__, Tensor.multiply, torch.mul, torch.multiply),
        _multiply,
    ),
}

_KNOWN_UNSEEN = {
    *(Tensor.size, Tensor.dim, Tensor.ndimension, Tensor.numel, Tensor.nelement, Tensor.__len__),
    *(Tensor.is_floating_point, torch.is_floating_point, Tensor.is_complex, torch.is_complex),
    *(
        getattr(Tensor, name).__get__
        for name in ("shape", "ndim", "dtype", "device", "layout", "requires_grad", "grad_fn",
                     "is_leaf", "is_cuda", "is_cpu", "is_sparse", "is_sparse_csr", "is_quantized",
                     "is_meta", "is_nested", "is_mkldnn", "_version")
    ),
}  # fmt: skip
"""What needs no elements."""

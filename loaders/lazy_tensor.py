"""Tensors that are computed when something looks at them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils import _pytree as pytree

from gnnsys.errors import UnsupportedError

__all__ = ["LazyTensor"]


class LazyTensor(Tensor):
    """Stands for ``compute(*inputs)``, as a part of autograd's graph.

    Functions of ``stays_lazy`` may make use of what the tensor stands for. Any other function
    computes the value first, once, and goes on with it, a plain tensor.
    """

    stays_lazy: ClassVar[dict[Any, Callable[..., Any]]] = {}
    """By function of torch: takes its arguments, answers ``NotImplemented`` to decline them."""

    _inputs: tuple[Tensor | None, ...]
    _versions: list[int]
    _compute: Callable[..., Tensor]
    _value: Tensor | None
    _became: LazyTensor | None

    @classmethod
    def of(
        cls, shape: tuple[int, ...], compute: Callable[..., Tensor], *inputs: Tensor | None
    ) -> Self:
        """A tensor of a shape, and of the type of the first input."""
        differentiable = [t for t in inputs if t is not None and t.requires_grad]
        lazy: Self
        if differentiable and torch.is_grad_enabled():
            lazy = _Link.apply(cls, shape, compute, *inputs)
        else:
            lazy = _wrap(cls, shape, inputs[0])
        lazy._inputs, lazy._compute, lazy._versions = inputs, compute, _versions(inputs)
        lazy._value = lazy._became = None
        return lazy

    def inputs(self) -> tuple[Tensor | None, ...]:
        """What it is computed from, as it was when the tensor was made.

        Raises:
            UnsupportedError: one of them was changed in place since.
        """
        if _versions(self._inputs) != self._versions:
            raise UnsupportedError(
                "features or edge weights changed in place after edges read them and before the "
                "result was used: change a clone() of them"
            )
        return self._inputs

    def value(self) -> Tensor:
        """What it stands for: always the same tensor, so that changing that in place shows."""
        if self._became is not None:
            return self._became.value()
        if self._value is None:
            # As at the time it was made, whoever looks first.
            with (
                torch.inference_mode(self.is_inference()),
                torch.set_grad_enabled(self.requires_grad),
            ):
                self._value = self._compute(*self.inputs())
        return self._value

    def become(self, other: LazyTensor) -> None:
        """Stands for what the other does, as after an operation in place."""
        self._became = other

    @property
    def is_settled(self) -> bool:
        """Whether others may have seen the value, and changed it."""
        return self._value is not None or self._became is not None

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _NEEDS_NO_ELEMENTS:
            return torch._C._disabled_torch_function_impl(func, types, args, kwargs)
        for lazy_type in types:
            handler = getattr(lazy_type, "stays_lazy", {}).get(func)
            result = NotImplemented if handler is None else handler(func, *args, **kwargs)
            if result is not NotImplemented:
                return result
        args, kwargs = pytree.tree_map_only(LazyTensor, LazyTensor.value, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # Reached only past __torch_function__, as from within other autograd functions.
        if func._schema.is_mutable:
            raise UnsupportedError(
                f"{func} on a tensor that is not computed yet: give it a clone() of that tensor"
            )
        with torch.no_grad():  # autograd has seen the operation, its record starts at _Link
            args, kwargs = pytree.tree_map_only(LazyTensor, _compute_unseen, (args, kwargs or {}))
            return func(*args, **kwargs)


def _versions(tensors: tuple[Tensor | None, ...]) -> list[int]:
    return [t._version for t in tensors if t is not None and not t.is_inference()]


def _compute_unseen(lazy: LazyTensor) -> Tensor:
    if lazy._became is not None:
        if lazy._became.requires_grad:
            raise UnsupportedError("a tensor that was added to: use what scatter_add_ returned")
        return lazy._became.value()
    return lazy._value if lazy._value is not None else lazy._compute(*lazy.inputs())


def _wrap(cls: Any, shape: tuple[int, ...], like: Tensor | None) -> Any:
    assert like is not None
    return Tensor._make_wrapper_subclass(cls, shape, dtype=like.dtype, device=like.device)


class _Link(Function):
    """Ties a lazy tensor into the graph, for users that see nothing but the graph."""

    @staticmethod
    def forward(ctx: Any, cls: Any, shape: Any, compute: Any, *inputs: Tensor | None) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.compute = compute
        return _wrap(cls, shape, inputs[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        needed = ctx.needs_input_grad[3:]
        inputs = [
            t if t is None else t.detach().requires_grad_(needs)
            for t, needs in zip(ctx.saved_tensors, needed, strict=True)
        ]
        leaves = [t for t in inputs if t is not None and t.requires_grad]
        with torch.enable_grad():
            out = ctx.compute(*inputs)
        found = iter(torch.autograd.grad(out, leaves, grad))
        return None, None, None, *(next(found) if needs else None for needs in needed)


_NEEDS_NO_ELEMENTS = {
    *(Tensor.size, Tensor.dim, Tensor.ndimension, Tensor.numel, Tensor.nelement, Tensor.__len__),
    *(Tensor.is_floating_point, torch.is_floating_point, Tensor.is_complex, torch.is_complex),
    *(
        getattr(Tensor, name).__get__
        for name in ("shape", "ndim", "dtype", "device", "layout", "requires_grad", "is_leaf",
                     "is_cpu", "is_cuda", "is_sparse", "is_sparse_csr", "is_quantized", "is_meta",
                     "is_nested", "is_mkldnn")
    ),
    Tensor.is_inference,
}  # fmt: skip

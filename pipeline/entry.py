"""Where tensors enter and leave a piece of autograd's graph, without being kept for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

__all__ = ["Entry", "Exit", "run_backward"]


class Entry:
    """Receives the gradients of a tensor, as a leaf does, but does not keep the tensor.

    >>> entry = Entry()
    >>> (2 * entry.take(torch.ones(2))).sum().backward()
    >>> entry.gradient
    tensor([2., 2.])
    """

    def __init__(self) -> None:
        self._gradient: Tensor | None = None
        self._like = torch.empty(0)
        self._shape = self._like.shape

    def take(self, x: Tensor) -> Tensor:
        """``x``, to be used in the graph; to be called once."""
        self._like, self._shape = x.new_empty(0), x.shape
        return _Enter.apply(self._like.detach().requires_grad_(), x, self)

    def add(self, gradient: Tensor) -> None:
        """Adds to the gradient."""
        self._gradient = gradient if self._gradient is None else self._gradient + gradient

    @property
    def gradient(self) -> Tensor:
        """The sum of all gradients, by all backward passes; of the tensor's shape."""
        return self._like.new_zeros(self._shape) if self._gradient is None else self._gradient


class Exit:
    """Stands for a tensor of the graph whose gradient will come from elsewhere.

    >>> x = torch.ones(2, requires_grad=True)
    >>> exit = Exit(2 * x)
    >>> run_backward([(exit, torch.tensor([1.0, 3.0]))])
    >>> x.grad
    tensor([2., 6.])
    """

    def __init__(self, x: Tensor) -> None:
        self.gradients: list[Tensor] = []
        """Of the backward to come, one. Apart from ``self``, which autograd's graph would otherwise
        keep alive, and be kept by, until garbage is collected."""
        self.token: Tensor = _Leave.apply(x, self.gradients)


def run_backward(gradients: Sequence[tuple[Exit, Tensor]]) -> None:
    """Runs autograd from several exits at once; those are left out that depend on nothing."""
    tokens = []
    for leaving, gradient in gradients:
        if leaving.token.requires_grad:
            leaving.gradients.append(gradient)
            tokens.append(leaving.token)
    if tokens:
        torch.autograd.backward(tokens)


class _Leave(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gradients: list[Tensor]) -> Tensor:
        ctx.gradients = gradients
        return x.new_zeros(())

    @staticmethod
    def backward(ctx: Any, one: Tensor) -> Any:
        return ctx.gradients.pop(), None


class _Enter(Function):
    @staticmethod
    def forward(ctx: Any, token: Tensor, x: Tensor, entry: Entry) -> Tensor:
        ctx.entry = entry
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> Any:
        ctx.entry.add(gradients)
        return None, None, None

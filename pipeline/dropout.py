"""Dropout that depends on what is dropped, not on when or where it is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from gnnsys.errors import ArgumentError
from gnnsys.rng import dropout_key
from gnnsys.system.extension import core
from gnnsys.system.recomputed import recomputed

__all__ = ["DropoutContext", "KeyedDropout", "set_dropout_context"]

_WORD = 1 << 32


@dataclass(slots=True)
class DropoutContext:
    """What layers cannot know by themselves of the rows that pass them."""

    seed: int = 0
    epoch: int = 0

    vertices: Tensor | None = None
    """(n,) int64: whose rows they are. None: those of vertices 0 to n - 1."""


class KeyedDropout(nn.Module):
    """Dropout keyed by (seed, epoch, layer, vertex, column).

    A value is kept with probability ``1 - p`` and then divided by it, as by ``torch.nn.Dropout``,
    but whether it is kept is a pure function of its key (see ``gnnsys.rng``): the same in whatever
    chunk, rank, order or number of threads the row is computed. Nothing is kept for backward.

    Args:
        p: probability of an element to be zeroed, in [0, 1).
        layer: number of this dropout in the model; ``as_layers`` counts them.

    Raises:
        ArgumentError: p outside [0, 1).

    >>> dropout = KeyedDropout(0.5)
    >>> dropout.context.vertices = torch.tensor([3, 4])
    >>> x = dropout(torch.ones(2, 6))
    >>> dropout.context.vertices = torch.tensor([4, 3])
    >>> torch.equal(dropout(torch.ones(2, 6)), x.flip(0))
    True
    """

    def __init__(self, p: float = 0.5, layer: int = 0) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ArgumentError(f"p({p}): expected a probability in [0, 1)")
        self.p, self.layer = p, layer
        self.context = DropoutContext()

    def forward(self, x: Tensor) -> Tensor:
        """(n, C) to (n, C)."""
        if not self.training or self.p == 0:
            return x
        context = self.context
        key = dropout_key(context.seed, context.epoch, self.layer)
        return _keyed_dropout(x, key, self.p, context.vertices)

    def extra_repr(self) -> str:
        return f"p={self.p}, layer={self.layer}"


def set_dropout_context(module: nn.Module, context: DropoutContext) -> None:
    """Lets all keyed dropout inside a module share a context."""
    for part in module.modules():
        if isinstance(part, KeyedDropout):
            part.context = context


@recomputed
def _keyed_dropout(x: Tensor, key: int, p: float, vertices: Tensor | None) -> Tensor:
    if vertices is None:
        vertices = torch.arange(len(x), device=x.device)
    return _Drop.apply(x, key, p, vertices)


class _Drop(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, key: int, p: float, vertices: Tensor) -> Tensor:
        ctx.arguments = key, p, vertices
        return _drop(x, key, p, vertices)

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> Any:
        return _drop(gradients, *ctx.arguments), None, None, None


def _drop(x: Tensor, key: int, p: float, vertices: Tensor) -> Tensor:
    least, scale = min(round(p * _WORD), _WORD - 1), 1 / (1 - p)
    if x.device.type != "cpu":
        return torch.where(_keeps(key, vertices, x.shape[1], least), x * scale, 0)
    wide = x.to(torch.promote_types(x.dtype, torch.float32)).contiguous()
    out = torch.empty_like(wide)
    core.keyed_dropout(key, least, scale, vertices.numpy(), wide.detach().numpy(), out.numpy())
    return out.to(x.dtype)


def _keeps(key: int, vertices: Tensor, width: int, least: int) -> Tensor:
    """``core.keyed_dropout``'s mask in torch's integers, for the devices that have no kernel.

    32-bit words are in the low halves of 64-bit ones. A product of two may overflow into the sign,
    which the masks remove.
    """
    low = _WORD - 1
    c0, c1 = vertices[:, None] & low, vertices[:, None] >> 32 & low
    c2 = torch.zeros_like(c0)
    c3 = torch.arange((width + 3) // 4, device=vertices.device)[None]
    k0, k1 = key & low, key >> 32 & low
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1 = (p1 >> 32 & low) ^ c1 ^ k0, p1 & low
        c2, c3 = (p0 >> 32 & low) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    words = torch.stack(torch.broadcast_tensors(c0, c1, c2, c3), dim=2)
    return words.view(len(vertices), -1)[:, :width] >= least

"""Models and steps that are trained with and without ``ActivationOffload``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NODES, WIDTH, DEPTH = 1000, 32, 6
STORAGE = NODES * WIDTH * 4
"""Bytes of one layer's output, above the threshold by default."""

GENERATOR = torch.Generator().manual_seed(5)
X = torch.randn(NODES, 8, generator=GENERATOR)
Y = torch.randint(4, (NODES,), generator=GENERATOR)
EDGE_INDEX = torch.randint(NODES, (2, 4 * NODES), generator=GENERATOR)
ADJACENCY = torch.sparse_coo_tensor(EDGE_INDEX, torch.ones(4 * NODES), (NODES, NODES)).coalesce()


class Residual(nn.Module):
    """GCNII's shape: a sum over neighbours, the first layer's output beside it, dropout, ReLU."""

    def __init__(self, activation: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 4)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = first = self.activation(self.first(x))
        for layer in self.layers:
            x = F.dropout(x, 0.3, self.training)
            x = self.activation(layer(0.9 * (ADJACENCY @ x) + 0.1 * first))
        return self.last(x)


def losses_and_state(
    make: Callable[[], nn.Module],
    saving: AbstractContextManager[object] | None,
    *,
    steps: int = 4,
    inside: bool = False,
) -> list[Tensor]:
    """Losses of steps with Adam, then the last gradients and the weights.

    Args:
        make: the model.
        saving: around each forward.
        inside: whether backward runs within it, too.
    """
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        with saving or contextlib.nullcontext():
            loss = F.cross_entropy(model(X), Y)
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        losses.append(loss.detach())
        del loss
        optimizer.step()
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    return [*losses, *gradients, *(each.detach() for each in model.parameters())]


def same_bits(ours: list[Tensor], plain: list[Tensor]) -> bool:
    """Whether all are equal, to the bit."""
    return len(ours) == len(plain) and all(map(torch.equal, ours, plain))

"""What embeds nodes, and what reconstructs their features to start it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn
from torch_geometric.nn.models import GCN, GraphSAGE

__all__ = ["Encoder", "MlpEncoder", "make_decoder", "make_encoder"]

Encoder = nn.Module
"""Called with (n, features) and (2, edges): (n, dim)."""


class MlpEncoder(nn.Module):
    """A multilayer perceptron with ReLU between layers; takes no notice of edges.

    >>> import torch
    >>> MlpEncoder([3, 8, 2])(torch.ones(5, 3)).shape
    torch.Size([5, 2])
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = _perceptron(widths)

    def forward(self, x: Tensor, edge_index: Tensor | None = None) -> Tensor:
        """(n, widths[0]) to (n, widths[-1])."""
        rows: Tensor = self.layers(x)
        return rows


def make_encoder(kind: str, in_channels: int, hidden: Sequence[int], dim: int) -> Encoder:
    """An encoder of features of so many columns to ``dim``: mlp, sage or gcn."""
    if kind == "mlp":
        return MlpEncoder([in_channels, *hidden, dim])
    model = GraphSAGE if kind == "sage" else GCN
    return model(in_channels, hidden[0], num_layers=2, out_channels=dim)


def make_decoder(kind: str, in_channels: int, hidden: Sequence[int], dim: int) -> nn.Module:
    """The way back from embeddings to features, a perceptron."""
    widths = hidden if kind == "mlp" else hidden[:1]
    return _perceptron([dim, *reversed(widths), in_channels])


def _perceptron(widths: Sequence[int]) -> nn.Sequential:
    parts: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        parts += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*parts[:-1])

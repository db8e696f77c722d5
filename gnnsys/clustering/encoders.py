"""What embeds nodes, and what reconstructs their features to start it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn.models import GCN, GraphSAGE

from gnnsys.message_passing import fuse

__all__ = ["Encoder", "MlpEncoder", "make_decoder", "make_encoder", "normalize_rows"]

Encoder = nn.Module
"""Called with (n, features) and (2, edges): (n, dim)."""


class MlpEncoder(nn.Module):
    """A multilayer perceptron with ReLU between layers; takes no notice of edges.

    Args:
        normalize: rows of features, first: "none", "l1" or "l2".
        scale: of what comes out, kept with the weights.

    >>> MlpEncoder([3, 8, 2])(torch.ones(5, 3)).shape
    torch.Size([5, 2])
    """

    scale: Tensor

    def __init__(self, widths: Sequence[int], normalize: str = "none", scale: float = 1.0) -> None:
        super().__init__()
        self.normalize = normalize
        self.register_buffer("scale", torch.tensor(scale))
        self.layers = _perceptron(widths)

    def forward(self, x: Tensor, edge_index: Tensor | None = None) -> Tensor:
        """(n, widths[0]) to (n, widths[-1])."""
        rows: Tensor = self.layers(self.prepare(x))
        return rows

    def prepare(self, x: Tensor) -> Tensor:
        """(n, widths[0]): what the first layer sees of features."""
        return normalize_rows(x, self.normalize) * self.scale


def normalize_rows(x: Tensor, kind: str) -> Tensor:
    """Rows (n, d) divided by their l1 or l2 norm, or, with "none", as they are."""
    return x if kind == "none" else F.normalize(x, p={"l1": 1.0, "l2": 2.0}[kind], dim=1)


def make_encoder(
    kind: str,
    in_channels: int,
    hidden: Sequence[int],
    dim: int,
    normalize: str = "none",
    scale: float = 1.0,
) -> Encoder:
    """An encoder of features of so many columns to ``dim``: mlp, sage or gcn.

    Args:
        normalize, scale: as ``MlpEncoder`` has them; mlp alone.
    """
    if kind == "mlp":
        return MlpEncoder([in_channels, *hidden, dim], normalize, scale)
    model = GraphSAGE if kind == "sage" else GCN
    return fuse(model(in_channels, hidden[0], num_layers=2, out_channels=dim))


def make_decoder(kind: str, in_channels: int, hidden: Sequence[int], dim: int) -> nn.Module:
    """The way back from embeddings to features, a perceptron."""
    widths = hidden if kind == "mlp" else hidden[:1]
    return _perceptron([dim, *reversed(widths), in_channels])


def _perceptron(widths: Sequence[int]) -> nn.Sequential:
    parts: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        parts += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*parts[:-1])

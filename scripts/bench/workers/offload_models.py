"""Deep models as blocks, so that each block can be run in one way or another."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GCN2Conv

import gnnsys
from gnnsys.pipeline import DeepModel, deep_layers
from gnnsys.pipeline.layers import GraphLayer, Share, Shared

__all__ = ["MODELS", "Block", "BlockModel", "RunBlock"]

Block = Callable[[Tensor], Tensor]
RunBlock = Callable[[Block, Tensor], Tensor]
"""Calls a block with its input."""

_DROPOUT, _ALPHA, _THETA = 0.5, 0.1, 0.5


class BlockModel(nn.Module):
    """A model that lets its caller run its graph layers, on one graph."""

    def begin(self, step: int) -> None:
        """Dropout is that of this step from now on."""
        torch.manual_seed(step)

    def forward(self, x: Tensor, run: RunBlock) -> Tensor:
        """(n, features) to (n, outputs)."""
        raise NotImplementedError


class _Listed(BlockModel):
    """What ``gnnsys train --model gcnii`` trains, whose dropout is keyed."""

    def __init__(
        self, edge_index: Tensor, nodes: int, features: int, hidden: int, outputs: int, depth: int
    ) -> None:
        super().__init__()
        layers = deep_layers(
            "gcnii",
            in_channels=features,
            hidden=hidden,
            out_channels=outputs,
            layers=depth,
            dropout=_DROPOUT,
            alpha=_ALPHA,
            theta=_THETA,
        )
        self.model = DeepModel(layers)
        self._edges = self.model.make_edges(edge_index, nodes)

    def begin(self, step: int) -> None:
        self.model.context.epoch = step

    def forward(self, x: Tensor, run: RunBlock) -> Tensor:
        shared: Shared = {}
        first, *blocks = self._blocks()
        x = self._through(first, shared, x)
        for block in blocks:
            x = run(partial(self._through, block, shared), x)
        return x

    def _blocks(self) -> list[list[nn.Module]]:
        """Each graph layer with the pointwise ones up to the next; those before the first."""
        blocks: list[list[nn.Module]] = [[]]
        for layer in self.model.layers:
            if isinstance(layer, GraphLayer):
                blocks.append([])
            blocks[-1].append(layer)
        return blocks

    def _through(self, block: list[nn.Module], shared: Shared, x: Tensor) -> Tensor:
        for layer in block:
            if isinstance(layer, GraphLayer):
                x = layer(x, self._edges[layer.kind], shared)
            else:
                x = layer(x)
            if isinstance(layer, Share):
                shared[layer.name] = x
        return x


class _Written(BlockModel):
    """GCNII as PyG's users write it, with PyG's layers and torch's dropout, after gnnsys.fuse."""

    def __init__(
        self, edge_index: Tensor, nodes: int, features: int, hidden: int, outputs: int, depth: int
    ) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(features, hidden), nn.Linear(hidden, outputs)
        self.convs = nn.ModuleList(
            GCN2Conv(hidden, _ALPHA, _THETA, layer=number + 1, cached=True)
            for number in range(depth)
        )
        self._edge_index = edge_index

    def forward(self, x: Tensor, run: RunBlock) -> Tensor:
        x = x_0 = self.first(x).relu()
        for conv in self.convs:
            x = run(partial(self._layer, conv, x_0), x)
        return self.last(F.dropout(x, _DROPOUT, self.training))

    def _layer(self, conv: nn.Module, x_0: Tensor, x: Tensor) -> Tensor:
        return conv(F.dropout(x, _DROPOUT, self.training), x_0, self._edge_index).relu()


MODELS: dict[str, Callable[..., BlockModel]] = {
    "deep": _Listed,
    "pyg": lambda *sizes: gnnsys.fuse(_Written(*sizes)),
}
"""Makes a model of (edge_index, vertices, columns of features, hidden columns, outputs, graph
layers)."""

"""Stacks of relational layers of PyG and of gnnsys.

Shared by their worker and ``relational.py``, which imports it into its own process.
"""

from __future__ import annotations

from typing import Any

import torch
import torch_geometric.nn as pyg
from torch import Tensor

from gnnsys import rel

__all__ = ["CLASSES", "RelationalStack", "make_layers"]

CLASSES: dict[str, dict[str, str]] = {
    "rgcn": {"gnnsys": "RGCNConv", "PyG": "RGCNConv", "PyG fast": "FastRGCNConv"},
    "rgat": {"gnnsys": "RGATConv", "PyG": "RGATConv"},
    "hgt": {"gnnsys": "HGTConv", "PyG": "HGTConv"},
}
"""The class of each side's layer, by kind of layer and side."""


class RelationalStack(torch.nn.Module):
    """Layers with relu between them, on one graph whose features are one tensor for all types.

    Args:
        convs: the layers.
        graph: a ``RelationGraph``.
        typed: layers take dictionaries by type.
        renew: let the layers see each time another tensor with the same edges, as in mini-batches.
    """

    def __init__(self, convs: list[torch.nn.Module], graph: Any, typed: bool, renew: bool) -> None:
        super().__init__()
        self.convs = torch.nn.ModuleList(convs)
        self._renew, self._typed = renew, typed
        if typed:
            self._types = graph.metadata()[0]
            self._counts = graph.node_ptr.diff().tolist()
            self._edges = graph.relations()
        else:
            self._edge_index, self._edge_type = graph.edge_index, graph.edge_type

    def forward(self, x: Tensor) -> Tensor:
        """(nodes, channels) of ``x`` (nodes, channels)."""
        return self._run_typed(x) if self._typed else self._run_plain(x)

    def _run_plain(self, x: Tensor) -> Tensor:
        edge_index, edge_type = self._edge_index, self._edge_type
        if self._renew:
            edge_index, edge_type = edge_index.clone(), edge_type.clone()
        for number, conv in enumerate(self.convs):
            x = conv(x if number == 0 else x.relu(), edge_index, edge_type)
        return x

    def _run_typed(self, x: Tensor) -> Tensor:
        edges = self._edges
        if self._renew:
            edges = {kind: each.clone() for kind, each in edges.items()}
        x_dict = dict(zip(self._types, x.split(self._counts), strict=True))
        for number, conv in enumerate(self.convs):
            if number:
                x_dict = {name: each.relu() for name, each in x_dict.items()}
            x_dict = conv(x_dict, edges)
        return torch.cat([x_dict[name] for name in self._types])


def make_layers(
    kind: str, side: str, graph: Any, *, width: int, heads: int, depth: int, renew: bool = False
) -> RelationalStack:
    """Layers of a side, with the same weights each time.

    Args:
        kind: rgcn, rgat or hgt.
        side: of ``CLASSES``.
        graph: a ``RelationGraph``.
        width: channels of inputs and outputs, those of all heads together.
        heads: of attention.
        depth: number of layers.
        renew: see ``RelationalStack``.
    """
    module: Any = rel if side == "gnnsys" else pyg
    conv = getattr(module, CLASSES[kind][side])
    torch.manual_seed(0)
    convs = []
    for _ in range(depth):
        if kind == "rgcn":
            convs.append(conv(width, width, graph.num_relations))
        elif kind == "rgat":
            convs.append(conv(width, width // heads, graph.num_relations, heads=heads))
        else:
            convs.append(conv(width, width, graph.metadata(), heads=heads))
    return RelationalStack(convs, graph, kind == "hgt", renew)

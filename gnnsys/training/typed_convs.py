"""Graph layers that take the rows and edges of all node types at once: dicts in, dicts out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import HGTConv

from gnnsys.dataset.format import EdgeType
from gnnsys.rel import RelationalGraph, RGATConv, RGCNConv
from gnnsys.rel.layer import run_uncompiled

__all__ = ["ATTENDING", "TYPED_CONVS", "RelationAttention", "RelationMeans"]


class _OverTypes:
    """Stands before a layer of ``gnnsys.rel``: an edge type is a relation of it."""

    edge_types: list[EdgeType]

    dst_node_types: set[str]
    """Types that get messages, as of PyG's HGTConv."""

    _why_not: Callable[..., str]
    """Of the layer: why PyG's own forward takes rows and edges."""

    def _take_types(self, edge_types: Sequence[EdgeType]) -> None:
        self.edge_types = [*edge_types]
        self.dst_node_types = {target for *_, target in edge_types}

    def forward(
        self, x_dict: Mapping[str, Tensor], edge_index_dict: Mapping[EdgeType, Tensor]
    ) -> dict[str, Tensor]:
        """(nodes, channels) of each node type that edges may lead to.

        Args:
            x_dict: (nodes, channels) of each node type.
            edge_index_dict: (2, edges) of edge types.
        """
        if torch.compiler.is_compiling():
            compiled: dict[str, Tensor] = run_uncompiled(
                _OverTypes.forward, self, x_dict, edge_index_dict
            )
            return compiled
        num_nodes = {kind: rows.size(0) for kind, rows in x_dict.items()}
        x = torch.cat([*x_dict.values()])
        edges: tuple[Any, ...]
        if self._why_not(x, *edge_index_dict.values()):
            edges = _joined(edge_index_dict, num_nodes, self.edge_types, x.device)
        else:
            edges = (
                RelationalGraph.from_hetero(
                    edge_index_dict, num_nodes, self.edge_types, device=x.device
                ),
            )
        layer: Any = super()
        out: Tensor = layer.forward(x, *edges)
        parts = zip(x_dict, out.split([*num_nodes.values()]), strict=True)
        return {kind: rows for kind, rows in parts if kind in self.dst_node_types}


def _joined(
    edge_index_dict: Mapping[EdgeType, Tensor],
    num_nodes: Mapping[str, int],
    edge_types: Sequence[EdgeType],
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """(2, edges) and (edges,) types of all edges, by operations that torch can transform."""
    first = dict(zip(num_nodes, accumulate(num_nodes.values(), initial=0), strict=False))
    none = torch.empty(3, 0, dtype=torch.int64, device=device)
    ends, types = [none[:2]], [none[2]]
    for number, kind in enumerate(edge_types):
        if kind in edge_index_dict:
            edge_index = edge_index_dict[kind]
            rows = edge_index[0] + first[kind[0]], edge_index[1] + first[kind[2]]
            ends.append(torch.stack(rows))
            types.append(torch.full_like(rows[0], number))
    return torch.cat(ends, 1), torch.cat(types)


class RelationMeans(_OverTypes, RGCNConv):  # type: ignore[misc]
    """The sum over relations r of the mean over r's neighbours j of each node of ``W_r x_j``
    (Schlichtkrull et al., ESWC 2018).

    Args:
        channels: of inputs and outputs.
        edge_types: the relations.

    >>> conv = RelationMeans(4, [("a", "to", "b")])
    >>> x = {"a": torch.ones(3, 4), "b": torch.ones(2, 4)}
    >>> conv(x, {("a", "to", "b"): torch.tensor([[0, 2], [1, 1]])})["b"].shape
    torch.Size([2, 4])
    """

    def __init__(self, channels: int, edge_types: Sequence[EdgeType]) -> None:
        super().__init__(channels, channels, len(edge_types), root_weight=False, bias=False)
        self._take_types(edge_types)


class RelationAttention(_OverTypes, RGATConv):  # type: ignore[misc]
    """The sum over neighbours j by all relations r of ``W_r x_j``, weighted by attention across
    relations (Busbridge et al., "Relational Graph Attention Networks", 2019, ARGAT, additive).

    Args:
        channels: of inputs and outputs, those of all heads together.
        edge_types: the relations.
        heads: of the attention; they divide the channels.

    >>> conv = RelationAttention(4, [("a", "to", "b")], heads=2)
    >>> x = {"a": torch.ones(3, 4), "b": torch.ones(2, 4)}
    >>> conv(x, {("a", "to", "b"): torch.tensor([[0, 2], [1, 1]])})["b"].shape
    torch.Size([2, 4])
    """

    def __init__(self, channels: int, edge_types: Sequence[EdgeType], heads: int) -> None:
        super().__init__(channels, channels // heads, len(edge_types), heads=heads, bias=False)
        self._take_types(edge_types)


TYPED_CONVS = (HGTConv, RelationMeans, RelationAttention)
"""Layers that are called with dicts of rows and edges, and return one of rows."""

ATTENDING = (HGTConv, RelationAttention)
"""Those among them that weigh neighbours."""

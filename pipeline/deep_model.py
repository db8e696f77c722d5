"""The layers of a pipeline as one module in one process."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gnnsys.pipeline.dropout import DropoutContext, set_dropout_context
from gnnsys.pipeline.edges import Edges, full_edges
from gnnsys.pipeline.layers import GraphLayer, Share, Shared, as_layers

__all__ = ["DeepModel"]


class DeepModel(nn.Module):
    """Runs a list of layers over the whole graph: what ``GNNPipe`` computes, in one process.

    Its ``state_dict`` has the names that ``GNNPipe.state_dict`` has.

    Args:
        modules: as for ``GNNPipe``.

    >>> from torch_geometric.nn import GCNConv
    >>> model = DeepModel([GCNConv(4, 8), nn.ReLU(), nn.Dropout(), GCNConv(8, 2)])
    >>> model(torch.ones(3, 4), torch.tensor([[0, 1], [1, 2]])).shape
    torch.Size([3, 2])
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = as_layers(modules)
        self.context = DropoutContext()
        """Seed and epoch of dropout; whoever trains sets them."""
        set_dropout_context(self, self.context)

    def make_edges(
        self, edge_index: Tensor, num_nodes: int, edge_weight: Tensor | None = None
    ) -> dict[str, Edges]:
        """The edges as the layers aggregate over them, to be made once for many calls.

        Args:
            edge_index: (2, E) int64.
            edge_weight: (E,).
        """
        kinds = {layer.kind for layer in self.layers if isinstance(layer, GraphLayer)}
        parameter = next(self.parameters(), torch.empty(0))
        return {
            kind: full_edges(edge_index.cpu(), num_nodes, kind, edge_weight, parameter.dtype).to(
                parameter.device
            )
            for kind in kinds
        }

    def forward(self, x: Tensor, edges: Tensor | dict[str, Edges]) -> Tensor:
        """Scores of all vertices.

        Args:
            x: (V, features).
            edges: edge_index (2, E), or what ``make_edges`` gave.

        Returns:
            (V, out).
        """
        if isinstance(edges, Tensor):
            edges = self.make_edges(edges, len(x))
        shared: Shared = {}
        for layer in self.layers:
            x = layer(x, edges[layer.kind], shared) if isinstance(layer, GraphLayer) else layer(x)
            if isinstance(layer, Share):
                shared[layer.name] = x
        return x

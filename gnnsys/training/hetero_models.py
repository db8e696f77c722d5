"""Models of graphs with several node or edge types, built from PyG's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import to_hetero
from torch_geometric.nn.models import GAT, GraphSAGE
from torch_geometric.nn.module_dict import ModuleDict
from torch_geometric.utils import trim_to_layer

from gnnsys.config.heterogeneous import HETERO_MODELS
from gnnsys.dataset.format import EdgeType
from gnnsys.errors import ArgumentError
from gnnsys.rel import HGTConv
from gnnsys.training.typed_convs import RelationAttention, RelationMeans

__all__ = [
    "HeteroClassifier",
    "HeteroEncoder",
    "HeteroModel",
    "MakeEmbedding",
    "RelationalConv",
    "embeddings_in_memory",
]

MakeEmbedding = Callable[[str, int], nn.Module]
"""Gives the module of a node type with so many nodes, which is called with (n,) ids."""

_HEADS = 8


class RelationalConv(nn.Module):
    """The layer of an RGCN (Schlichtkrull et al., ESWC 2018, eq. 2, without its nonlinearity).

    ``x_i' = W_0 x_i + sum over relations r of the mean over r's neighbours j of i of W_r x_j``,
    where an edge type is a relation, and each node type has a ``W_0``. With attention, the layer of
    an RGAT: the neighbours' ``W_r x_j`` are weighted by attention in the place of means.

    Args:
        channels: of inputs and outputs.
        node_types: names.
        edge_types: source, relation and target of each.
        heads: of attention, which divide the channels; 0 for means.

    >>> import torch
    >>> conv = RelationalConv(4, ["a", "b"], [("a", "to", "b")])
    >>> x = {"a": torch.ones(3, 4), "b": torch.ones(2, 4)}
    >>> out = conv(x, {("a", "to", "b"): torch.tensor([[0, 2], [1, 1]])})
    >>> {kind: rows.shape for kind, rows in out.items()}
    {'a': torch.Size([3, 4]), 'b': torch.Size([2, 4])}
    """

    def __init__(
        self,
        channels: int,
        node_types: Sequence[str],
        edge_types: Sequence[EdgeType],
        heads: int = 0,
    ) -> None:
        super().__init__()
        self.root = ModuleDict({kind: nn.Linear(channels, channels) for kind in node_types})
        self.relations = (
            RelationAttention(channels, edge_types, heads)
            if heads
            else RelationMeans(channels, edge_types)
        )

    def forward(
        self, x: dict[str, Tensor], edge_index: dict[EdgeType, Tensor]
    ) -> dict[str, Tensor]:
        """(nodes, channels) of each node type.

        Args:
            x: (nodes, channels) of each node type.
            edge_index: (2, edges) of each edge type.
        """
        summed = self.relations(x, edge_index)
        own = {kind: self.root[kind](rows) for kind, rows in x.items()}
        return {kind: rows + summed[kind] if kind in summed else rows for kind, rows in own.items()}


def embeddings_in_memory(width: int) -> MakeEmbedding:
    """Embeddings of torch, with sparse gradients.

    >>> embeddings_in_memory(4)("user", 3)
    Embedding(3, 4, sparse=True)
    """
    return lambda kind, count: nn.Embedding(count, width, sparse=True)


class HeteroModel(nn.Module, ABC):
    """A model of a heterogeneous graph, with an embedding for each node of the types without
    features.

    It is called with x, edge_index, and where they are known ``n_id``, ``num_sampled_nodes`` and
    ``num_sampled_edges``, as of ``HeteroEncoder.rows_of``.
    """

    inputs: ModuleDict
    """By node type: the embeddings of those without features, and what else makes rows of inputs,
    as linear layers."""

    def embeddings(self) -> dict[str, Tensor]:
        """(nodes, hidden) embeddings of each node type without features."""
        layers = self.inputs.items()
        bare = {kind: each for kind, each in layers if not isinstance(each, nn.Linear)}
        return {
            kind: each.rows if hasattr(each, "rows") else each.weight for kind, each in bare.items()
        }

    @abstractmethod
    def results(
        self, x: Mapping[str, Tensor], edge_index: Mapping[EdgeType, Tensor]
    ) -> dict[str, Tensor]:
        """What is to be known of all nodes, by name: the ``logits`` (nodes, classes) of the target
        type and, where that is known, the ``rows`` (nodes, hidden) that the last layer makes them
        of; or the rows (nodes, hidden) of node types.

        Args:
            x: (nodes, channels) of each node type, embeddings among them.
            edge_index: (2, edges) of each edge type.
        """


class HeteroEncoder(HeteroModel):
    """Makes rows of the nodes of a heterogeneous graph.

    The features of each node type go through a linear layer of its own; a type without features has
    an embedding for each node, which gets sparse gradients. Graph convolutions of one width follow.

    rgcn: ``RelationalConv``; rgat: the same with attention. hgt: ``gnnsys.rel.HGTConv`` (Hu et al.,
    WWW 2020), where a type that gets no messages keeps its rows. sage, gat: PyG's
    ``GraphSAGE`` and ``GAT`` by ``to_hetero``, whose results of several edge types are summed. All
    attention has 8 heads where they divide the width, else 1.

    Args:
        model: rgcn, rgat, hgt, sage or gat.
        in_channels: features of a node, of each node type that has some.
        num_nodes: of each node type.
        edge_types: source, relation and target of each.
        hidden: width of the graph convolutions.
        layers: graph convolutions.
        dropout: probability with which each layer's inputs are dropped in training.
        embedding: gives the (nodes, hidden) embedding of a type without features that has so many
            nodes; None for one of torch, with sparse gradients.

    Raises:
        ArgumentError: an unknown model, or types that PyG's part of it cannot take.
    """

    def __init__(
        self,
        model: str,
        *,
        in_channels: Mapping[str, int],
        num_nodes: Mapping[str, int],
        edge_types: Sequence[EdgeType],
        hidden: int,
        layers: int,
        dropout: float = 0.5,
        embedding: MakeEmbedding | None = None,
    ) -> None:
        super().__init__()
        if model not in HETERO_MODELS:
            raise ArgumentError(f"model {model!r}: expected one of {', '.join(HETERO_MODELS)}")
        self.dropout = dropout
        make = embedding or embeddings_in_memory(hidden)
        self.inputs = ModuleDict(
            {
                kind: nn.Linear(in_channels[kind], hidden)
                if kind in in_channels
                else make(kind, count)
                for kind, count in num_nodes.items()
            }
        )
        types = [*num_nodes], [*edge_types]
        self.gnn: nn.Module
        if model not in ("rgcn", "rgat"):
            _check_types(model, *types)
        if model in ("rgcn", "rgat", "hgt"):
            self.gnn = _Layers(model, types, hidden, layers, dropout)
        else:
            self.gnn = _to_hetero(model, types, hidden, layers, dropout)
        # An HGTConv has its nonlinearity inside, and adds its inputs after it.
        self.activation = nn.Identity() if model == "hgt" else nn.ReLU()

    def rows_of(
        self,
        kinds: Sequence[str],
        x: Mapping[str, Tensor],
        edge_index: Mapping[EdgeType, Tensor],
        n_id: Mapping[str, Tensor] | None = None,
        num_sampled_nodes: Mapping[str, list[int]] | None = None,
        num_sampled_edges: Mapping[EdgeType, list[int]] | None = None,
    ) -> dict[str, Tensor]:
        """(nodes, hidden) of some node types; at least those of the seeds where layers trim.

        Args:
            kinds: names.
            x: (nodes, in_channels) of each node type that has features; and (nodes, hidden) rows of
                the embeddings of the others, unless ``n_id`` is given.
            edge_index: (2, edges) of each edge type.
            n_id: (nodes,) ids of each node type, by which embeddings are taken; None where they
                are in ``x``.
            num_sampled_nodes: per hop, that of the seeds first, of each node type.
            num_sampled_edges: per hop, in the order of the edges, of each edge type. With both,
                layers of rgcn, rgat and hgt compute only what later ones need; the seeds' rows are
                the same.
        """
        rows = {}
        for kind, layer in self.inputs.items():
            if isinstance(layer, nn.Linear):
                rows[kind] = F.relu(layer(x[kind]))
            else:
                rows[kind] = x[kind] if n_id is None else layer(n_id[kind])
        rows = {kind: F.dropout(each, self.dropout, self.training) for kind, each in rows.items()}
        if isinstance(self.gnn, _Layers):
            out = self.gnn(rows, dict(edge_index), num_sampled_nodes, num_sampled_edges)
        else:
            out = self.gnn(rows, dict(edge_index))
        made = {kind: self.activation(out[kind]) for kind in kinds}
        return {kind: F.dropout(own, self.dropout, self.training) for kind, own in made.items()}


class HeteroClassifier(HeteroEncoder):
    """Classifies the nodes of one type of a heterogeneous graph: a linear layer on its rows.

    Args:
        model: rgcn, rgat, hgt, sage or gat.
        target: node type to classify.
        out_channels: classes.
        **shape: the other arguments of ``HeteroEncoder``.

    Raises:
        ArgumentError: an unknown model, or types that PyG's part of it cannot take.

    >>> import torch
    >>> net = HeteroClassifier(
    ...     "rgcn", in_channels={"a": 3}, num_nodes={"a": 2, "b": 5}, edge_types=[("b", "to", "a")],
    ...     target="a", hidden=4, out_channels=2, layers=1,
    ... )
    >>> edges = {("b", "to", "a"): torch.tensor([[0, 1], [1, 1]])}
    >>> ids = {"a": torch.tensor([0, 1]), "b": torch.tensor([4, 2])}
    >>> net({"a": torch.ones(2, 3)}, edges, ids).shape
    torch.Size([2, 2])
    """

    def __init__(self, model: str, *, target: str, out_channels: int, **shape: Any) -> None:
        super().__init__(model, **shape)
        self.target = target
        self.head = nn.Linear(shape["hidden"], out_channels)

    def forward(
        self,
        x: Mapping[str, Tensor],
        edge_index: Mapping[EdgeType, Tensor],
        n_id: Mapping[str, Tensor] | None = None,
        num_sampled_nodes: Mapping[str, list[int]] | None = None,
        num_sampled_edges: Mapping[EdgeType, list[int]] | None = None,
    ) -> Tensor:
        """Logits (nodes, classes) of the target type; arguments as of ``rows_of``."""
        rows = self.last_rows(x, edge_index, n_id, num_sampled_nodes, num_sampled_edges)
        logits: Tensor = self.head(rows)
        return logits

    def results(
        self, x: Mapping[str, Tensor], edge_index: Mapping[EdgeType, Tensor]
    ) -> dict[str, Tensor]:
        """See ``HeteroModel.results``."""
        rows = self.last_rows(x, edge_index)
        return {"logits": self.head(rows), "rows": rows}

    def last_rows(
        self,
        x: Mapping[str, Tensor],
        edge_index: Mapping[EdgeType, Tensor],
        n_id: Mapping[str, Tensor] | None = None,
        num_sampled_nodes: Mapping[str, list[int]] | None = None,
        num_sampled_edges: Mapping[EdgeType, list[int]] | None = None,
    ) -> Tensor:
        """(nodes, hidden) what the last linear layer makes logits of; see ``rows_of``."""
        sizes = num_sampled_nodes, num_sampled_edges
        return self.rows_of([self.target], x, edge_index, n_id, *sizes)[self.target]


_Types = tuple[list[str], list[EdgeType]]


class _Layers(nn.Module):
    """Graph convolutions of rgcn, rgat or hgt, one after the other."""

    def __init__(self, model: str, types: _Types, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.dropout, self.is_relational = dropout, model != "hgt"
        heads = _heads(hidden)
        self.convs = nn.ModuleList(
            RelationalConv(hidden, *types, heads=heads if model == "rgat" else 0)
            if self.is_relational
            else HGTConv(hidden, hidden, types, heads=heads)
            for _ in range(layers)
        )

    def forward(
        self,
        x: dict[str, Tensor],
        edge_index: dict[EdgeType, Tensor],
        num_sampled_nodes: Mapping[str, list[int]] | None,
        num_sampled_edges: Mapping[EdgeType, list[int]] | None,
    ) -> dict[str, Tensor]:
        for number, conv in enumerate(self.convs):
            if number > 0:
                x = {kind: self._between(rows) for kind, rows in x.items()}
            if num_sampled_nodes is not None and num_sampled_edges is not None:
                x, edge_index, _ = trim_to_layer(
                    number, dict(num_sampled_nodes), dict(num_sampled_edges), x, edge_index
                )
            x = {**x, **conv(x, edge_index)}
        return x

    def _between(self, rows: Tensor) -> Tensor:
        rows = F.relu(rows) if self.is_relational else rows
        return F.dropout(rows, self.dropout, self.training)


def _heads(hidden: int) -> int:
    return _HEADS if hidden % _HEADS == 0 else 1


def _check_types(model: str, node_types: Sequence[str], edge_types: Sequence[EdgeType]) -> None:
    """Raises ArgumentError for types that PyG's HGTConv, or its to_hetero, cannot take."""
    part, way_out = "HGTConv", "give --model rgcn or rgat"
    names = [*node_types]
    if model != "hgt":
        part, way_out = "to_hetero", "give --model rgcn, rgat or hgt"
        names += [relation for _, relation, _ in edge_types]
        silent = [kind for kind in node_types if all(kind != target for *_, target in edge_types)]
        if silent:
            raise ArgumentError(
                f"--model {model}: nodes of type {', '.join(silent)} are the target of no edges, "
                f"and PyG's to_hetero needs messages to all types; {way_out}, or convert the graph "
                "with reverse edges"
            )
    taken = nn.ModuleDict()  # whose attributes are no names of modules
    for name in names:
        if "." in name or hasattr(taken, name) or (model != "hgt" and not name.isidentifier()):
            raise ArgumentError(
                f"--model {model}: PyG's {part} cannot have a type of the name {name!r}; "
                f"{way_out}, or rename the type"
            )


def _to_hetero(model: str, types: _Types, hidden: int, layers: int, dropout: float) -> nn.Module:
    """A model of PyG for graphs without types, one of each layer for each edge type."""
    sizes = hidden, hidden
    gnn: nn.Module
    if model == "sage":
        gnn = GraphSAGE(sizes, hidden, layers, dropout=dropout)
    else:
        gnn = GAT(
            sizes, hidden, layers, dropout=dropout, heads=_heads(hidden), add_self_loops=False
        )
    return to_hetero(gnn, types)

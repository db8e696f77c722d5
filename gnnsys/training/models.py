"""Models of the training command, built from PyG's."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn import GCNConv, MessagePassing
from torch_geometric.nn.models import GAT, GCN, GIN, GraphSAGE
from torch_geometric.nn.models.basic_gnn import BasicGNN

from gnnsys.config.heterogeneous import check_homogeneous
from gnnsys.config.links import link_training
from gnnsys.config.resolve import Run
from gnnsys.config.user_model import is_user_model
from gnnsys.errors import ArgumentError
from gnnsys.loaders.cooperative import JointBatch
from gnnsys.message_passing import fuse
from gnnsys.pipeline import DeepModel, deep_layers
from gnnsys.training.datasets import NodeDataset
from gnnsys.training.embedding_tables import make_embeddings
from gnnsys.training.hetero_models import HeteroClassifier, HeteroModel, MakeEmbedding
from gnnsys.training.link_models import HeteroEmbedder, LinkModel
from gnnsys.training.link_task import LinkTask
from gnnsys.training.user_models import make_user_embedder, make_user_hetero_model, make_user_model

__all__ = ["Model", "NodeClassifier", "make_model"]

_MODELS: dict[str, type[BasicGNN]] = {"sage": GraphSAGE, "gcn": GCN, "gat": GAT, "gin": GIN}
_GAT_HEADS = 8


class NodeClassifier(torch.nn.Module):
    """A GNN of PyG with dropout on its input, too.

    GCN: Kipf and Welling, ICLR 2017. GraphSAGE: Hamilton et al., NeurIPS 2017. GAT: Veličković et
    al., ICLR 2018 (8 heads where they divide the width, else 1). GIN: Xu et al., ICLR 2019.

    Args:
        model: sage, gcn, gat or gin.
        in_channels: features of a node.
        hidden: width of the hidden layers.
        out_channels: classes.
        layers: graph convolutions.
        dropout: probability with which each layer's inputs are dropped in training.

    Raises:
        ArgumentError: an unknown model.

    >>> net = NodeClassifier("gcn", in_channels=3, hidden=4, out_channels=2, layers=2)
    >>> net(torch.ones(2, 3), torch.tensor([[0, 1], [1, 0]])).shape
    torch.Size([2, 2])
    """

    def __init__(
        self,
        model: str,
        *,
        in_channels: int,
        hidden: int,
        out_channels: int,
        layers: int,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if model not in _MODELS:
            raise ArgumentError(f"model {model!r}: expected one of {', '.join(_MODELS)}")
        more: dict[str, Any] = {}
        if model == "gat":
            more["heads"] = _GAT_HEADS if hidden % _GAT_HEADS == 0 else 1
        self.dropout = dropout
        # A GCN scales an edge by its source's degree, too, which trimming would change.
        self.can_trim = model != "gcn"
        # Layers whose result depends on edges one hop further out than their number.
        self.extra_hops = 0 if self.can_trim else 1
        self.gnn = fuse(
            _MODELS[model](in_channels, hidden, layers, out_channels, dropout=dropout, **more)
        )

    @classmethod
    def around(cls, net: torch.nn.Module) -> NodeClassifier:
        """A module of any kind in its place: ``net(x, edge_index)`` gives the logits of all nodes.
        No inputs are dropped and no layers trimmed."""
        made = cls.__new__(cls)
        torch.nn.Module.__init__(made)
        made.dropout, made.can_trim, made.extra_hops = 0.0, False, 0
        made.gnn = cast(BasicGNN, net)  # whatever needs its layers asks whether it is one
        return made

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        num_sampled_nodes: list[int] | None = None,
        num_sampled_edges: list[int] | None = None,
        degrees: Tensor | None = None,
    ) -> Tensor:
        """Logits (nodes, classes); those of the seeds alone where models trim.

        Args:
            x: (nodes, in_channels).
            edge_index: (2, edges).
            num_sampled_nodes: per hop, that of the seeds first.
            num_sampled_edges: per hop, in the order of the edges. With both, each layer computes
                only the nodes that later layers need; the seeds' logits are the same.
            degrees: (nodes,) in-degrees in the whole graph, for a gin on sampled neighbours. A sum
                over k sampled ones of d is then scaled by d / k, which is an unbiased estimate of
                the sum over all where they are drawn uniformly without replacement.
        """
        x = F.dropout(x, self.dropout, self.training)
        if not self.can_trim or num_sampled_nodes is None or num_sampled_edges is None:
            return self.gnn(x, edge_index)
        for number, conv in enumerate(self.gnn.convs):
            # A layer computes what lies at most this many hops away from the seeds.
            hops = self.gnn.num_layers - 1 - number
            sources = sum(num_sampled_nodes[: hops + 2])
            targets = sum(num_sampled_nodes[: hops + 1])
            edges = sum(num_sampled_edges[: hops + 1])
            if edges < edge_index.size(1):
                edge_index = edge_index[:, :edges]
            x = _convolve(conv, (x[:sources], x[:targets]), edge_index, degrees)
            if hops > 0:
                x = self.gnn.dropout(torch.relu_(x))  # no layer keeps its output for backward
        return x

    def forward_jointly(
        self, x: Tensor, batch: JointBatch, degrees: Tensor | None = None
    ) -> Tensor:
        """Logits (own seeds, classes) of a rank's part of a joint batch.

        Args:
            x: (own nodes, in_channels).
            batch: whose ranks compute it together; each hop is a layer's.
            degrees: (own nodes,), see ``forward``.
        """
        x = F.dropout(x, self.dropout, self.training)
        own = None if self.can_trim else _symmetric_scale(batch).to(x)
        for number, conv in enumerate(self.gnn.convs):
            if number > 0:
                x = self.gnn.dropout(torch.relu_(x))
            if own is None:
                x = _convolve(conv, *batch.exchange(x, number), degrees)
            else:
                x = _convolve_symmetric(conv, *batch.exchange(x * own[: len(x)], number))
                x = x * own[: len(x)] + conv.bias
        return x


def _convolve(
    conv: MessagePassing, ends: tuple[Tensor, Tensor], edge_index: Tensor, degrees: Tensor | None
) -> Tensor:
    if degrees is not None:
        return _convolve_scaled(conv, ends, edge_index, degrees[: len(ends[1])])
    out: Tensor = conv(ends, edge_index)
    return out


def _symmetric_scale(batch: JointBatch) -> Tensor:
    """(own nodes, 1) 1 / sqrt(degree), each node's loop counted once, as a GCN scales rows."""
    targets = _without_loops(batch.edge_index)[1]
    degrees = 1 + torch.bincount(targets, minlength=len(batch.n_id))
    return degrees.double().rsqrt()[:, None]


def _convolve_symmetric(conv: GCNConv, ends: tuple[Tensor, Tensor], edge_index: Tensor) -> Tensor:
    """A GCN's layer (Kipf and Welling, ICLR 2017, eq. 2) of rows that are scaled by their owners;
    its results are to be, too. A layer of PyG does not know the degrees of sources that other ranks
    draw for."""
    sources, own = ends
    edges = _without_loops(edge_index)
    summed = conv.propagate(edges, x=sources, edge_weight=None, size=(len(sources), len(own)))
    out: Tensor = conv.lin(summed + own)
    return out


def _without_loops(edge_index: Tensor) -> Tensor:
    """Targets are the first of the sources."""
    return edge_index[:, edge_index[0] != edge_index[1]]


def _convolve_scaled(
    conv: Any, ends: tuple[Tensor, Tensor], edge_index: Tensor, degrees: Tensor
) -> Tensor:
    """A GIN's layer (Xu et al., ICLR 2019, eq. 4.1), its sums scaled by degree / sampled edges."""
    own = ends[1]
    sampled = torch.bincount(edge_index[1], minlength=len(own))
    summed = conv.propagate(edge_index, x=ends, size=(len(ends[0]), len(own)))
    summed = summed * (degrees / sampled.clamp(min=1)).to(summed)[:, None]
    out: Tensor = conv.nn(summed + (1 + conv.eps) * own)
    return out


Model = NodeClassifier | HeteroModel | DeepModel | LinkModel
"""Of any run."""


def make_model(run: Run, dataset: NodeDataset, embedding: MakeEmbedding | None = None) -> Model:
    """The model of a run, in one process.

    Args:
        run: what to do.
        dataset: what on.
        embedding: gives that of a node type without features; None for those that are trained.

    Raises:
        ArgumentError: a model that does not fit the types of the graph, or that it has none.
        ArgumentError, UnsupportedError: see ``make_user_model``.
    """
    task = dataset.task
    net: NodeClassifier | DeepModel | HeteroModel
    if not dataset.heterogeneous:
        net = _make_model(run, dataset)
    else:
        make = _make_embedder if isinstance(task, LinkTask) else _make_hetero
        net = make(run, dataset, embedding or make_embeddings(run, dataset))
    if isinstance(task, LinkTask):
        return LinkModel(net, task.width, link_training(run.config).decoder)
    return net


def _make_embedder(run: Run, dataset: NodeDataset, embedding: MakeEmbedding) -> HeteroModel:
    """Of a graph with types whose links are to be predicted."""
    task = dataset.task
    assert isinstance(task, LinkTask)
    if is_user_model(run.config.model):
        return make_user_embedder(run, dataset, task, embedding)
    return HeteroEmbedder(run.config.model, task.ends, **_shape(run, dataset, embedding))


def _make_hetero(run: Run, dataset: NodeDataset, embedding: MakeEmbedding) -> HeteroModel:
    if is_user_model(run.config.model):
        return make_user_hetero_model(run, dataset, embedding)
    return HeteroClassifier(
        run.config.model,
        target=dataset.target,
        out_channels=dataset.task.outputs,
        **_shape(run, dataset, embedding),
    )


def _shape(run: Run, dataset: NodeDataset, embedding: MakeEmbedding) -> dict[str, Any]:
    """Arguments of a ``HeteroEncoder``."""
    return {
        "in_channels": {kind: table.shape[1] for kind, table in dataset.tables.items()},
        "num_nodes": dataset.num_nodes,
        "edge_types": [*dataset.graphs],
        "hidden": run.config.hidden or 0,
        "layers": run.config.layers,
        "dropout": run.config.dropout,
        "embedding": embedding,
    }


def _make_model(run: Run, dataset: NodeDataset) -> NodeClassifier | DeepModel:
    """Of a graph without types."""
    config = run.config
    check_homogeneous(config)
    if is_user_model(config.model):
        return NodeClassifier.around(make_user_model(run, dataset))
    shape = {
        "in_channels": dataset.features.shape[1],
        "hidden": config.hidden or 0,
        "out_channels": dataset.task.outputs,
        "layers": config.layers,
    }
    if run.deep:
        return DeepModel(deep_layers(config.model, **shape, dropout=config.dropout))
    return NodeClassifier(config.model, **shape, dropout=config.dropout)

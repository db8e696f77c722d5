"""Which models can be computed layer by layer, block by block, as on the whole graph.

Owns what is known of PyG's layers in this respect. Whatever is not known to need a node and its
in-neighbours alone is refused, in one error that says which part it is and what to do instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch_geometric.nn import (
    EdgeConv,
    GATConv,
    GATv2Conv,
    GCNConv,
    GINConv,
    GraphConv,
    HGTConv,
    MessagePassing,
    PNAConv,
    ResGatedGraphConv,
    SAGEConv,
    TransformerConv,
    aggr,
)
from torch_geometric.nn.models.basic_gnn import BasicGNN

from gnnsys.compat import (
    cached_edges,
    has_own_propagate,
    is_explained,
    is_of_library,
    uncompiled,
)
from gnnsys.dataset.folder import Dataset
from gnnsys.dataset.format import EDGE_TYPE
from gnnsys.errors import UnsupportedError
from gnnsys.loaders import CSC
from gnnsys.message_passing.derived import class_before
from gnnsys.training.models import NodeClassifier

__all__ = [
    "BIPARTITE",
    "TYPED_LAYERS",
    "aggregations_of",
    "check_cached",
    "check_edge_values",
    "check_hooks",
    "check_parts",
    "edge_chunks",
    "find_gnn",
    "flow_of",
    "in_evaluation",
    "orient",
    "problem_of",
    "same_rows",
    "told",
    "unwrap",
]

_CHUNK_EDGES = 1 << 22  # of the whole graph that are looked at at a time

BIPARTITE = (
    SAGEConv, GATConv, GATv2Conv, GINConv, EdgeConv, GraphConv, TransformerConv, ResGatedGraphConv,
)  # fmt: skip
"""Layers whose result at a node depends on it and its in-neighbours; take (sources, targets)."""

_LAYERS = (*BIPARTITE, GCNConv, PNAConv)
"""These and those that take all nodes of a block as both."""

TYPED_LAYERS = (*_LAYERS, HGTConv)
"""These and those that take rows and edges of several types."""

_METHODS = ("forward", "message", "aggregate", "update", "edge_update", "message_and_aggregate")
"""Of a layer; a subclass with others may be anything."""

_AGGREGATIONS = (
    aggr.SumAggregation, aggr.MeanAggregation, aggr.MaxAggregation, aggr.MinAggregation,
    aggr.MulAggregation, aggr.VarAggregation, aggr.StdAggregation, aggr.SoftmaxAggregation,
    aggr.PowerMeanAggregation, aggr.QuantileAggregation, aggr.MedianAggregation,
    aggr.VariancePreservingAggregation,
)  # fmt: skip
"""Of messages to one node. An LSTM's result depends on the largest degree of all nodes."""


@contextmanager
def in_evaluation(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode for all parts of a model; each then has the mode again that it had."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def find_gnn(model: torch.nn.Module) -> BasicGNN:
    inner = unwrap(model)
    gnn = inner.gnn if isinstance(inner, NodeClassifier) else inner
    if not isinstance(gnn, BasicGNN) or gnn.jk_mode not in (None, "last"):
        raise UnsupportedError(
            f"model: a {type(gnn).__name__} cannot be taken apart; expected a GraphSAGE, GCN, "
            "GAT, GIN, … of torch_geometric.nn.models without jumping knowledge, or give layers="
        )
    for part, kind in ((inner, NodeClassifier), (gnn, BasicGNN)):
        if isinstance(part, kind) and not _keeps(part, kind, ("forward",)):
            raise UnsupportedError(
                f"model: {type(part).__name__} has a forward of its own, not that of "
                f"{kind.__name__}, and may do more than its layers; give layers="
            )
    return gnn


def unwrap(model: torch.nn.Module) -> torch.nn.Module:
    """The model that ``torch.compile`` or a data-parallel wrapper stands before."""
    while True:
        if isinstance(model, (DataParallel, DistributedDataParallel)):
            model = model.module
        elif (inner := uncompiled(model)) is not None:
            model = inner
        else:
            return model


def _keeps(part: torch.nn.Module, kind: type, methods: Sequence[str]) -> bool:
    """Whether an object of a class derived from ``kind`` has none of these in another form.

    What ``fuse`` gave it computes the same.
    """
    own = class_before(part)
    return all(
        method not in part.__dict__ and getattr(own, method) is getattr(kind, method)
        for method in methods
    )


def flow_of(gnn: BasicGNN) -> str:
    flows = {conv.flow for conv in gnn.convs}
    if len(flows) > 1:
        raise UnsupportedError(
            "model: messages flow from source to target in some layers and from target to source "
            "in others; expected one flow, or give layers="
        )
    return str(flows.pop()) if flows else "source_to_target"


def check_parts(model: torch.nn.Module, gnn: BasicGNN) -> None:
    """Raises UnsupportedError for a part of a model that blocks of nodes may not compute alike.

    Args:
        model: as the user gave it.
        gnn: of ``find_gnn``.
    """
    check_hooks(model)
    for number, conv in enumerate(gnn.convs):
        _check_conv(conv, f"convs.{number}")
    with in_evaluation(gnn):
        _check_row_parts(gnn)


def check_edge_values(gnn: BasicGNN, data: Any) -> None:
    """Refuses edges with what the model has a use for: only edge_index is given to it."""
    if isinstance(data, Dataset):
        has_weight, attr = data.has("edge_weight", EDGE_TYPE), None
        has_attr = data.has("edge_features", EDGE_TYPE)
    else:
        attr = getattr(data, "edge_attr", None)
        has_weight, has_attr = getattr(data, "edge_weight", None) is not None, attr is not None
    found = []
    if gnn.supports_edge_weight:
        found += ["edge_weight"] * has_weight
        # PyG's transforms leave weights there: one number an edge.
        found += ["edge_attr"] * (isinstance(attr, Tensor) and attr.dim() == 1)
    if gnn.supports_edge_attr and any(getattr(c, "edge_dim", None) for c in gnn.convs):
        found += ["edge_attr" if attr is not None else "edge_features"] * has_attr
    if found:
        raise UnsupportedError(
            f"data: has {found[0]}, which {type(gnn).__name__} takes and inference does not; for "
            "outputs without it give Data(x=…, edge_index=…) alone, else layers= that take it"
        )


def check_hooks(model: torch.nn.Module) -> None:
    """Raises UnsupportedError for a forward hook of the user's on some part of a model."""
    for name, part in model.named_modules():
        for kind, hooks in vars(part).items():
            if "forward" not in kind or not kind.endswith("_hooks"):
                continue
            for hook in hooks.values():
                if not is_of_library(hook):
                    raise UnsupportedError(
                        f"model: {name or type(model).__name__} has a forward hook, {hook}, which "
                        "would see blocks of nodes; remove it for the call, or give layers="
                    )


def _check_conv(conv: torch.nn.Module, name: str) -> None:
    problem = problem_of(conv)
    if problem:
        raise UnsupportedError(f"model: {name}, {told(conv)}, {problem}; or give layers=")


def problem_of(conv: torch.nn.Module, known: Sequence[type] = _LAYERS) -> str:
    """Why blocks of nodes may not compute a layer as the whole graph does; "" where they do."""
    kind = next((each for each in known if isinstance(conv, each)), None)
    if kind is None or not _keeps(conv, kind, _METHODS) or has_own_propagate(conv):
        return f"is not known to need a node's neighbours alone, as {_names(known)} do"
    if is_explained(conv):
        return "is being explained: end that first"
    if getattr(conv, "edge_dim", None) is not None and not isinstance(conv, (GATConv, GATv2Conv)):
        return "needs edge_attr, which inference does not give it: use one without edge_dim"
    for each in aggregations_of(conv.aggr_module):
        if type(each) not in _AGGREGATIONS:
            return f"aggregates by {told(each)}: expected one of {_names(_AGGREGATIONS)}"
    return ""


def aggregations_of(module: Any) -> list[Any]:
    """Those that an aggregation is made of, or itself."""
    if type(module) is aggr.MultiAggregation:
        return [part for each in module.aggrs for part in aggregations_of(each)]
    if type(module) is aggr.DegreeScalerAggregation:
        return aggregations_of(module.aggr)
    return [module]


def _names(kinds: Sequence[type]) -> str:
    return ", ".join(kind.__name__ for kind in kinds)


def told(part: Any) -> str:
    """A module as it describes itself, in one line."""
    return " ".join(str(part).split())


def _check_row_parts(gnn: BasicGNN) -> None:
    """Refuses what stands between layers, or in them, and mixes rows, in evaluation."""
    parts = [(f"norms.{number}", norm) for number, norm in enumerate(gnn.norms)]
    parts += [("act", gnn.act)] if gnn.act is not None else []
    sized = [(name, part, gnn.hidden_channels) for name, part in parts]
    for number, conv in enumerate(gnn.convs):
        if isinstance(conv, (GINConv, EdgeConv)):
            sized.append((f"convs.{number}.nn", conv.nn, _width_of(conv.nn, f"convs.{number}.nn")))
    like = next(gnn.parameters(), torch.empty(0))
    for name, part, width in sized:
        if not _keeps_rows_apart(part, width, like):
            raise UnsupportedError(
                f"model: {name}, {told(part)}, makes a row of those of all nodes at once, which "
                "blocks of nodes do not have; use batch_norm, a LayerNorm of mode='node' or the "
                "like, or give layers="
            )


def _width_of(network: torch.nn.Module, name: str) -> int:
    """Columns that a network takes, by the first layer that has a number of them."""
    if any(map(is_lazy, network.parameters())):
        raise UnsupportedError(f"model: {name} has no weights yet; call the model once before")
    for part in network.modules():
        width = getattr(part, "in_features", getattr(part, "in_channels", None))
        if isinstance(width, int) and width > 0:
            return width
    raise UnsupportedError(
        f"model: {name}, {told(network)}, has no linear layer that tells how many columns it "
        "takes; give layers="
    )


def _keeps_rows_apart(part: Callable[[Tensor], Tensor], width: int, like: Tensor) -> bool:
    """Whether some rows come out of a module, or of any function, as they do beside others."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(8, width, generator=draw, dtype=torch.float64).to(like)
    with torch.no_grad():  # parts may work in place
        whole = part(rows.clone())
        apart = torch.cat([part(rows[:3].clone()), part(rows[3:].clone())])
    return same_rows(whole, apart)


def same_rows(whole: Tensor, apart: Tensor) -> bool:
    """Whether rows that were computed together and in parts are the same, up to rounding."""
    if whole.shape != apart.shape or whole.dtype != apart.dtype:
        return False
    if not whole.is_floating_point():
        return torch.equal(whole, apart)
    tolerance = torch.finfo(whole.dtype).eps ** 0.5
    finite = whole.isfinite()  # rounding may make inf of one and NaN of the other
    if not torch.equal(finite, apart.isfinite()):
        return False
    whole, apart = whole[finite], apart[finite]
    scale = float(whole.abs().max()) if whole.numel() else 0.0
    return torch.allclose(whole, apart, rtol=tolerance, atol=tolerance * scale)


def check_cached(conv: GCNConv, name: str, graph: CSC, scale: Tensor) -> None:
    """Refuses a layer with ``cached=True`` that holds other edges, which the model would use.

    Two lists of weighted edges are the same, up to rounding, if they give the same sums of random
    rows: the order of edges may differ.
    """
    kept_edges = cached_edges(conv)
    if kept_edges is None:
        return
    edge_index, weight = (part.cpu() for part in kept_edges)
    draw = torch.Generator().manual_seed(0)
    rows = torch.rand(graph.num_nodes, generator=draw, dtype=torch.float64)
    expected = scale * rows if conv.add_self_loops else torch.zeros_like(rows)
    for source, target in edge_chunks(graph):
        kept = (source != target) | (not conv.add_self_loops)
        expected.index_add_(0, target[kept], (scale * rows)[source[kept]])
    expected *= scale
    fits = edge_index.numel() == 0 or int(edge_index.max()) < graph.num_nodes
    found = torch.zeros_like(rows)
    if fits:
        source, target = orient(conv, edge_index)
        found.index_add_(0, target, weight.double() * rows[source])
    tolerance = 16 * torch.finfo(weight.dtype).eps
    if not fits or not torch.allclose(found, expected, rtol=tolerance, atol=0):
        raise UnsupportedError(
            f"model: {name} has cached=True and holds edges, or weights, of an earlier call that "
            "are not those of data; load the state_dict into a model with cached=False"
        )


def orient(conv: MessagePassing, edge_index: Tensor) -> Tensor:
    """Edges as a layer takes them, of edges that lead to the nodes that gather."""
    return edge_index.flip(0) if conv.flow == "target_to_source" else edge_index


def edge_chunks(graph: CSC) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, graph.num_edges, _CHUNK_EDGES):
        source = graph.indices[start : start + _CHUNK_EDGES].long()
        place = torch.arange(start, start + len(source))
        yield source, torch.searchsorted(graph.indptr, place, right=True) - 1

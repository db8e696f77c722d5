"""The forward of PyG's attention layers by operators that write no rows edge by edge.

``GATConv``, ``GATv2Conv`` and ``TransformerConv`` give each edge logits, take their softmax over
the edges of each target and sum the sources' rows, weighted by it. Here logits are computed from
rows of nodes where they lie, each target's self loop stands among its edges, which leaves these
sorted, and edges with loops are made once for all layers of a batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter
from torch_geometric.nn import GATConv, GATv2Conv, TransformerConv
from torch_geometric.nn.aggr import MeanAggregation, SumAggregation
from torch_geometric.utils import add_self_loops, remove_self_loops

from gnnsys.compat import (
    has_hooks,
    is_transformed,
    is_written_by_pyg,
    shows_edge_updates,
    shows_messages,
)
from gnnsys.errors import RowIndexError
from gnnsys.message_passing.additive import additive_logits
from gnnsys.message_passing.linear import can_fold, gives_summed_rows, product
from gnnsys.message_passing.neighbors import neighbors_of
from gnnsys.message_passing.self_loops import LoopedEdges, with_self_loops
from gnnsys.message_passing.softmax import edge_softmax
from gnnsys.message_passing.sums import SUMMED_DTYPES, can_sum, dot_neighbors, sum_neighbors

__all__ = ["attention_forward", "can_attend"]

# S sources, T targets, E edges, E' of them with their loops, H heads, C channels of a head.


def attention_forward(kind: Any) -> Callable[..., Any] | None:
    """The forward for a class of layers; None for one that does not compute literally as PyG's do.

    Calls that it does not take go to the forward of ``kind``: under torch.compile, whose graphs
    break at what is looked up by the edges, and under other transforms of torch; explanations and
    hooks on messages or updates of edges; edges that are no plain tensor, and edges or rows that
    PyG refuses; edge features in ``TransformerConv``. Dropout of coefficients draws for the edges
    in another order, since loops stand elsewhere; returned coefficients are in the order of PyG.
    """
    for base, (attend, functions) in _ATTEND.items():
        if (
            issubclass(kind, base)
            and all(getattr(kind, name) is getattr(base, name) for name in functions)
            and is_written_by_pyg(kind, "edge_updater")
        ):
            return _forward(kind, attend)
    return None


def can_attend(layer: Any) -> bool:
    """Whether ``attention_forward`` is for calls of this layer."""
    adds_features = isinstance(layer, TransformerConv) and layer.lin_edge is not None
    return attention_forward(type(layer)) is not None and not adds_features


def _forward(kind: Any, attend: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(kind.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = attend(self, *args, **kwargs) if _is_attended(self) else None
        return kind.forward(self, *args, **kwargs) if found is None else found

    return forward


def _is_attended(layer: Any) -> bool:
    """Whether nobody sees what is computed within the layer."""
    if torch.compiler.is_compiling() or is_transformed():
        return False
    if type(layer.aggr_module) not in (SumAggregation, MeanAggregation):
        return False
    return not (shows_messages(layer) or shows_edge_updates(layer))


class _Edges:
    """The edges of a call, with a loop at each node where the layer adds them."""

    def __init__(self, layer: Any, edge_index: Tensor, num_loops: int | None) -> None:
        self.given = edge_index
        self.looped: LoopedEdges | None = None
        if num_loops is not None:
            self.looped = with_self_loops(edge_index, num_loops)
        self._num_loops = num_loops
        self._fill_value = layer.fill_value if num_loops is not None else None
        self.index = edge_index if self.looped is None else self.looped.edge_index

    def in_order_of_pyg(self, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Edges and their coefficients, (E', H), loops behind the others."""
        if self.looped is None:
            return self.given, alpha
        order = self.looped.given_order
        return self.index[:, order], alpha[order]

    def features(self, edge_attr: Tensor) -> Tensor:
        """(E', D), with those of loops that PyG gives them."""
        if self.looped is None:
            return edge_attr
        kept, edge_attr = remove_self_loops(self.given, edge_attr)
        _, filled = add_self_loops(
            kept, edge_attr, fill_value=self._fill_value, num_nodes=self._num_loops
        )
        assert filled is not None
        return filled[self.looped.place]


def _edges_of(
    layer: Any, edge_index: Any, rows: tuple[Tensor, Tensor | None], shared: bool, size: Any = None
) -> _Edges | None:
    """None for edges, rows and sizes of which PyG has to tell.

    ``shared`` says that nothing is gathered from a pair whose two differ.
    """
    source, target = rows
    num_rows = (source.size(0), source.size(0) if target is None else target.size(0))
    if size is not None and (target is None or tuple(size) != num_rows):
        return None
    if layer.flow != "source_to_target" and not shared:
        return None  # PyG itself has two opinions on which of a pair is gathered
    if type(edge_index) is not Tensor or edge_index.dtype != torch.int64:
        return None
    if edge_index.dim() != 2 or len(edge_index) != 2 or edge_index.device != source.device:
        return None
    try:
        counts = neighbors_of(edge_index).counts
    except RowIndexError:
        return None
    if counts[0] > num_rows[0] or counts[1] > num_rows[1]:
        return None
    add_loops = getattr(layer, "add_self_loops", False)
    return _Edges(layer, edge_index, min(num_rows) if add_loops else None)


def _is_plain(x: Any) -> bool:
    """Whether this is a matrix that is computed with here."""
    return can_sum(x) and x.dim() == 2 and x.dtype in SUMMED_DTYPES and gives_summed_rows(x)


def _pair(x: Any) -> tuple[Any, Any] | None:
    """Rows of sources and targets, these perhaps None; None for what is not taken."""
    if not isinstance(x, (tuple, list)):
        return (x, x) if _is_plain(x) else None
    if len(x) != 2 or not _is_plain(x[0]) or not (x[1] is None or _is_plain(x[1])):
        return None
    return x[0], x[1]


def _edge_features(edges: _Edges, edge_attr: Any, x: Tensor) -> Tensor | None:
    """(E, D); None for features of which PyG has to tell."""
    if type(edge_attr) not in (Tensor, Parameter) or edge_attr.dim() not in (1, 2):
        return None
    columns = edge_attr.unsqueeze(-1) if edge_attr.dim() == 1 else edge_attr
    fits = _is_plain(columns) and columns.dtype == x.dtype and columns.device == x.device
    return columns if fits and len(columns) == edges.given.size(1) else None


# The layers ---------------------------------------------------------------------------------------


def _attend_gat(
    layer: Any,
    x: Any,
    edge_index: Any,
    edge_attr: Any = None,
    size: Any = None,
    return_attention_weights: Any = None,
) -> Any:
    """See ``GATConv.forward``; None for a call that is not taken."""
    pair = _pair(x)
    if pair is None:
        return None
    edges = _edges_of(layer, edge_index, pair, False, size)
    if edges is None:
        return None
    shared = layer.lin is not None and pair[1] is pair[0]
    if edge_attr is not None and layer.lin_edge is not None:
        edge_attr = _edge_features(edges, edge_attr, pair[0])
        if edge_attr is None:
            return None
    elif edge_attr is not None and edge_attr.shape[:1] != edge_index.shape[1:]:
        return None
    res = layer.res(pair[1]) if layer.res is not None and pair[1] is not None else None
    lins = (layer.lin_src, layer.lin_dst) if layer.lin is None else (layer.lin, layer.lin)
    source = lins[0](pair[0])
    target = source if shared else None if pair[1] is None else lins[1](pair[1])
    of_source, of_target = _gat_logits(layer, lins, pair, (source, target))
    alpha = _softmax(
        layer,
        edges,
        num_targets=len(source if target is None else target),
        slope=layer.negative_slope,
        logits=_logits_of_edges(layer, edges, edge_attr),
        source=of_source,
        target=of_target,
    )
    source = _by_heads(layer, source)
    target = source if shared else None if target is None else _by_heads(layer, target)
    out = layer.propagate(edges.index, x=(source, target), alpha=alpha, size=size)
    out = _finish(layer, out, res)
    return (out, edges.in_order_of_pyg(alpha)) if return_attention_weights else out


def _attend_gatv2(
    layer: Any,
    x: Any,
    edge_index: Any,
    edge_attr: Any = None,
    return_attention_weights: Any = None,
) -> Any:
    """See ``GATv2Conv.forward``; None for a call that is not taken."""
    pair = _pair(x)
    if pair is None or pair[1] is None:
        return None
    shared = layer.lin_r is layer.lin_l and pair[1] is pair[0]
    edges = _edges_of(layer, edge_index, pair, shared)
    if edges is None or (edge_attr is not None and layer.lin_edge is None):
        return None
    if edge_attr is not None:
        edge_attr = _edge_features(edges, edge_attr, pair[0])
        if edge_attr is None:
            return None
    res = None if layer.res is None else layer.res(pair[1])
    source = _by_heads(layer, layer.lin_l(pair[0]))
    target = source if shared else _by_heads(layer, layer.lin_r(pair[1]))
    edge = None
    if edge_attr is not None:
        edge = _by_heads(layer, layer.lin_edge(edges.features(edge_attr)))
    dtype = torch.promote_types(source.dtype, layer.att.dtype)
    logits = additive_logits(
        source.to(dtype),
        target.to(dtype),
        layer.att.squeeze(0).to(dtype),
        edges.index,
        negative_slope=layer.negative_slope,
        edge=None if edge is None else edge.to(dtype),
    )
    alpha = _softmax(layer, edges, num_targets=len(target), logits=logits)
    out = layer.propagate(edges.index, x=(source, target), alpha=alpha)
    out = _finish(layer, out, res)
    return (out, edges.in_order_of_pyg(alpha)) if return_attention_weights else out


def _attend_transformer(
    layer: Any,
    x: Any,
    edge_index: Any,
    edge_attr: Any = None,
    return_attention_weights: Any = None,
) -> Any:
    """See ``TransformerConv.forward``; None for a call that is not taken."""
    pair = _pair(x)
    if pair is None or pair[1] is None or edge_attr is not None or layer.lin_edge is not None:
        return None
    edges = _edges_of(layer, edge_index, pair, pair[1] is pair[0])
    if edges is None:
        return None
    to = _target_of(layer)
    query = pair[1]
    if not has_hooks(layer.lin_query):  # nobody sees those of nodes without edges
        query = query[: neighbors_of(edge_index).counts[to]]
    query = _by_heads(layer, layer.lin_query(query))
    key, value = (_by_heads(layer, lin(pair[0])) for lin in (layer.lin_key, layer.lin_value))
    ends = (key, query) if to else (query, key)
    logits = dot_neighbors(*ends, edge_index, layer.heads) / math.sqrt(layer.out_channels)
    alpha = edge_softmax(edge_index, num_targets=len(query), logits=logits, to=to)
    dropped = F.dropout(alpha, p=layer.dropout, training=layer.training)
    mean = type(layer.aggr_module) is MeanAggregation
    out = sum_neighbors(value, edge_index, dropped, num_nodes=len(pair[1]), to=to, mean=mean)
    out = out.flatten(1) if layer.concat else out.mean(dim=1)
    if layer.root_weight:
        root = layer.lin_skip(pair[1])
        if layer.lin_beta is None:
            out = out + root
        else:
            beta = layer.lin_beta(torch.cat([out, root, out - root], dim=-1)).sigmoid()
            out = beta * root + (1 - beta) * out
    return (out, (edge_index, alpha)) if isinstance(return_attention_weights, bool) else out


def _by_heads(layer: Any, x: Tensor) -> Tensor:
    """(N, H, C)."""
    return x.view(-1, layer.heads, layer.out_channels)


def _target_of(layer: Any) -> int:
    return 1 if layer.flow == "source_to_target" else 0


def _gat_logits(
    layer: Any,
    lins: tuple[Any, Any],
    x: tuple[Tensor, Tensor | None],
    rows: tuple[Tensor, Tensor | None],
) -> tuple[Tensor, Tensor | None]:
    """(S, H) and (T, H) the dot products of transformed rows with att_src and att_dst.

    Of rows ``x W^T`` that is ``x (att W)^T``, a product of as many columns as there are heads.
    """
    atts = (layer.att_src, layer.att_dst)
    if rows[1] is rows[0] and can_fold(lins[0]):
        folded = torch.cat([_fold(lins[0].weight, att) for att in atts])
        source, target = product(x[0], folded).split(layer.heads, dim=1)
        return source, target
    (of_source, of_target) = (
        None if row is None else _dot_heads(layer, lin, given, row, att)
        for lin, given, row, att in zip(lins, x, rows, atts, strict=True)
    )
    assert of_source is not None
    return of_source, of_target


def _dot_heads(layer: Any, lin: Any, x: Any, row: Tensor, att: Tensor) -> Tensor:
    """(N, H) the dot products of ``row``, which is ``lin(x)``, with att."""
    if can_fold(lin):
        return product(x, _fold(lin.weight, att))
    return (_by_heads(layer, row) * att).sum(-1)


def _fold(weight: Tensor, att: Tensor) -> Tensor:
    """(H, F) of a weight (H C, F) and (1, H, C)."""
    return (weight.view(*att.shape[1:], -1) * att.squeeze(0).unsqueeze(-1)).sum(1)


def _logits_of_edges(layer: Any, edges: _Edges, edge_attr: Tensor | None) -> Tensor | None:
    """(E', H); None where edges have no features that count."""
    if edge_attr is None or layer.lin_edge is None:
        return None
    features = edges.features(edge_attr)
    if can_fold(layer.lin_edge):
        return product(features, _fold(layer.lin_edge.weight, layer.att_edge))
    return (_by_heads(layer, layer.lin_edge(features)) * layer.att_edge).sum(-1)


def _softmax(
    layer: Any,
    edges: _Edges,
    *,
    num_targets: int,
    slope: float | None = None,
    logits: Tensor | None = None,
    source: Tensor | None = None,
    target: Tensor | None = None,
) -> Tensor:
    alpha = edge_softmax(
        edges.index,
        num_targets=num_targets,
        logits=logits,
        source=source,
        target=target,
        negative_slope=slope,
        to=_target_of(layer),
    )
    return F.dropout(alpha, p=layer.dropout, training=layer.training)


def _finish(layer: Any, out: Tensor, res: Tensor | None) -> Tensor:
    out = out.flatten(1) if layer.concat else out.mean(dim=1)
    if res is not None:
        out = out + res
    return out if layer.bias is None else out + layer.bias


_ATTEND: dict[Any, tuple[Callable[..., Any], tuple[str, ...]]] = {
    GATConv: (_attend_gat, ("forward", "edge_update", "message")),
    GATv2Conv: (_attend_gatv2, ("forward", "edge_update", "message")),
    TransformerConv: (_attend_transformer, ("forward", "message")),
}

for _base, (_attend, _) in _ATTEND.items():
    _attend.__qualname__ = _base.forward.__qualname__  # which errors name

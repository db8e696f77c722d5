"""Reads what users hold (``Data``, ``HeteroData``, stores, a ``CSC``) as a ``TypedGraph``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import Data
from torch_geometric.sampler.base import DataType
from torch_geometric.typing import EdgeType, NodeType

from gnnsys.compat import coo_indices
from gnnsys.errors import ArgumentError, DTypeError, UnsupportedError
from gnnsys.loaders.graph_stores import read_stores
from gnnsys.loaders.topology import CSC
from gnnsys.loaders.typed_graph import Relation, TypedGraph
from gnnsys.loaders.user_graph import (
    UserEdges,
    UserGraph,
    as_weights,
    named,
)

__all__ = ["read_graph"]


def read_graph(
    data: Any,
    *,
    time_attr: str | None = None,
    weight_attr: str | None = None,
    is_sorted: bool = False,
    backward: bool = False,
) -> tuple[DataType, TypedGraph]:
    """The graph that a sampler is given, each relation sorted by the nodes it samples for.

    Args:
        data: ``Data``, ``HeteroData``, ``(FeatureStore, GraphStore)`` or ``CSC``.
        time_attr: name of the integer times of nodes or of edges.
        weight_attr: name of the edges' weights.
        is_sorted: edge lists are sorted by target, and by time within a target, already.
        backward: edges are followed from source to target instead.

    Raises:
        ArgumentError, DTypeError: an attribute that does not exist or fit, or a bad graph.
        UnsupportedError: weights of edges in a store.
    """
    for name, value in (("time_attr", time_attr), ("weight_attr", weight_attr)):
        if value is not None and not isinstance(value, str):
            raise DTypeError(
                f"{name}: a {type(value).__name__}, expected the name of an attribute, the same "
                "for all types"
            )
    if isinstance(data, CSC):
        for name, value in (("time_attr", time_attr), ("weight_attr", weight_attr)):
            if value is not None:
                raise ArgumentError(f"{name}: {value!r}, but a CSC has no attributes; give Data")
        relation = Relation(
            edge_type=None, source=0, target=0, graph=data.reversed() if backward else data
        )
        return DataType.homogeneous, TypedGraph(
            node_types=[None], num_nodes=[data.num_nodes], node_time=[None], relations=[relation]
        )
    try:
        kind = DataType.from_data(data)
    except ValueError as error:
        raise ArgumentError(
            f"data: a {type(data).__name__}; expected Data, HeteroData, CSC or "
            f"(FeatureStore, GraphStore): {error}"
        ) from error
    if kind == DataType.homogeneous:
        held = _read_data({None: data}, {None: data}, time_attr, weight_attr, is_sorted)
    elif kind == DataType.heterogeneous:
        nodes, edges = dict(data.node_items()), dict(data.edge_items())
        held = _read_data(nodes, edges, time_attr, weight_attr, is_sorted)
    else:
        if weight_attr is not None:
            raise UnsupportedError(
                "weight_attr: 'weight_attr' argument not yet supported within 'NeighborSampler' "
                "for '(FeatureStore, GraphStore)' inputs; give Data or HeteroData"
            )
        held = read_stores(data[0], data[1], time_attr, backward)
    return kind, held.build(backward)


def _read_data(
    nodes: Mapping[NodeType | None, Any],
    edges: Mapping[EdgeType | None, Any],
    time_attr: str | None,
    weight_attr: str | None,
    is_sorted: bool,
) -> UserGraph:
    """The graph in the stores of ``HeteroData`` by type, or in a ``Data``, whose type is None."""
    held = UserGraph(num_nodes={kind: _count(kind, store) for kind, store in nodes.items()})
    for kind, store in edges.items():
        _check_ends(kind, held.num_nodes)
        held.edges.append(_read_edges(store, kind, is_sorted))
    if weight_attr is not None:
        weighted = [part for part in held.edges if weight_attr in edges[part.edge_type]]
        if not weighted:
            who = "data has no" if None in nodes else "no edge type has"
            raise ArgumentError(f"weight_attr: {who} {weight_attr!r}")
        for part in weighted:
            value, name = edges[part.edge_type][weight_attr], named(weight_attr, part.edge_type)
            part.weight = as_weights(name, value, part.count)
    if time_attr is not None:
        held.put_times(
            time_attr,
            {kind: each[time_attr] for kind, each in nodes.items() if _of(each, time_attr, "node")},
            {kind: each[time_attr] for kind, each in edges.items() if _of(each, time_attr, "edge")},
        )
    return held


def _count(kind: NodeType | None, store: Any) -> int:
    if store.num_nodes is None:
        what, where = ("", "data") if kind is None else (f"{kind!r} ", f"data[{kind!r}]")
        raise ArgumentError(f"data: the number of {what}nodes is not known; set {where}.num_nodes")
    return int(store.num_nodes)


def _of(store: Any, name: str, what: str) -> bool:
    """Whether a store has an attribute of its nodes or edges; ``Data`` holds both."""
    if not isinstance(store, Data):
        return name in store
    return name in store and (
        store.is_node_attr(name) if what == "node" else store.is_edge_attr(name)
    )


def _read_edges(store: Any, edge_type: EdgeType | None, is_sorted: bool) -> UserEdges:
    """The edges in a ``Data`` or an edge store, which may hold them in three forms."""
    for name in ("adj", "adj_t"):
        if name in store:
            return _read_matrix(store[name], name, edge_type)
    if "edge_index" not in store or store["edge_index"] is None:
        none = torch.empty(0, dtype=torch.int64)
        return UserEdges(edge_type=edge_type, source=none, target=none)
    edge_index = store["edge_index"]
    if isinstance(edge_index, EdgeIndex):
        edge_index = edge_index.as_tensor()
    if edge_index.dim() != 2 or edge_index.shape[0] != 2:
        raise ArgumentError(f"edge_index: shape {tuple(edge_index.shape)}, expected (2, edges)")
    source, target = edge_index
    return UserEdges(edge_type=edge_type, source=source, target=target, is_sorted=is_sorted)


def _read_matrix(matrix: Any, name: str, edge_type: EdgeType | None) -> UserEdges:
    """An adjacency matrix of torch, or one of torch-sparse, whose methods give its parts."""
    transposed = name == "adj_t"
    if not isinstance(matrix, Tensor):
        if transposed:
            indptr, indices, _ = matrix.csr()
            return UserEdges(edge_type=edge_type, source=indices, target=indptr, compressed=True)
        source, target, _ = matrix.coo()
        return UserEdges(edge_type=edge_type, source=source, target=target)
    if matrix.layout == torch.strided:
        raise ArgumentError(f"{name}: a dense tensor, expected a sparse one")
    if matrix.layout == torch.sparse_csr and transposed:
        return UserEdges(
            edge_type=edge_type,
            source=matrix.col_indices(),
            target=matrix.crow_indices(),
            compressed=True,
        )
    rows, columns = coo_indices(matrix.to_sparse_coo())
    source, target = (columns, rows) if transposed else (rows, columns)
    return UserEdges(edge_type=edge_type, source=source, target=target)


def _check_ends(edge_type: EdgeType | None, node_types: Iterable[NodeType | None]) -> None:
    for end in edge_type[::2] if edge_type else ():
        if end not in node_types:
            raise ArgumentError(
                f"{edge_type}: there are no {end!r} nodes; set data[{end!r}].num_nodes"
            )

"""Reads what users hold (``Data``, ``HeteroData``, stores, a ``CSC``) as a ``TypedGraph``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import Data, HeteroData
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
    as_times,
    as_weights,
    check_one_kind_of_time,
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
        held = _read_data(data, time_attr, weight_attr, is_sorted)
    elif kind == DataType.heterogeneous:
        held = _read_hetero_data(data, time_attr, weight_attr, is_sorted)
    else:
        if weight_attr is not None:
            raise UnsupportedError(
                "weight_attr: 'weight_attr' argument not yet supported within 'NeighborSampler' "
                "for '(FeatureStore, GraphStore)' inputs; give Data or HeteroData"
            )
        held = read_stores(data[0], data[1], time_attr, backward)
    return kind, held.build(backward)


def _read_data(
    data: Data, time_attr: str | None, weight_attr: str | None, is_sorted: bool
) -> UserGraph:
    num_nodes = data.num_nodes
    if num_nodes is None:
        raise ArgumentError("data: the number of nodes is not known; set data.num_nodes")
    edges = _read_edges(data, None, is_sorted)
    held = UserGraph(num_nodes={None: int(num_nodes)}, node_time={}, edges=[edges])
    if weight_attr is not None:
        if weight_attr not in data:
            raise ArgumentError(f"weight_attr: data has no {weight_attr!r}")
        edges.weight = as_weights(weight_attr, data[weight_attr], edges.count)
    if time_attr is not None:
        if time_attr in data and data.is_node_attr(time_attr):
            held.node_time[None] = as_times(time_attr, data[time_attr], num_nodes)
        elif time_attr in data and data.is_edge_attr(time_attr):
            edges.time = as_times(time_attr, data[time_attr], edges.count)
        else:
            raise ArgumentError(
                f"time_attr: The time attribute '{time_attr}' is neither a node-level or "
                f"edge-level attribute: data has no {time_attr!r} with one time for each of its "
                f"{num_nodes} nodes or {edges.count} edges"
            )
    return held


def _read_hetero_data(
    data: HeteroData, time_attr: str | None, weight_attr: str | None, is_sorted: bool
) -> UserGraph:
    num_nodes: dict[NodeType | None, int] = {}
    for node_type in data.node_types:
        count = data[node_type].num_nodes
        if count is None:
            raise ArgumentError(
                f"data: the number of {node_type!r} nodes is not known; set "
                f"data[{node_type!r}].num_nodes"
            )
        num_nodes[node_type] = int(count)
    for edge_type in data.edge_types:
        _check_ends(edge_type, num_nodes)
    held = UserGraph(
        num_nodes=num_nodes,
        node_time={},
        edges=[_read_edges(data[kind], kind, is_sorted) for kind in data.edge_types],
    )
    if weight_attr is not None:
        weighted = [edges for edges in held.edges if weight_attr in data[edges.edge_type]]
        if not weighted:
            raise ArgumentError(f"weight_attr: no edge type has {weight_attr!r}")
        for edges in weighted:
            value = data[edges.edge_type][weight_attr]
            edges.weight = as_weights(f"{weight_attr} of {edges.edge_type}", value, edges.count)
    if time_attr is not None:
        timed_nodes = [kind for kind in num_nodes if time_attr in data[kind]]
        timed_edges = [edges for edges in held.edges if time_attr in data[edges.edge_type]]
        check_one_kind_of_time(time_attr, timed_nodes, [edges.edge_type for edges in timed_edges])
        for kind in timed_nodes:
            name = f"{time_attr} of {kind!r}"
            held.node_time[kind] = as_times(name, data[kind][time_attr], num_nodes[kind])
        for edges in timed_edges:
            name = f"{time_attr} of {edges.edge_type}"
            edges.time = as_times(name, data[edges.edge_type][time_attr], edges.count)
    return held


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


def _check_ends(edge_type: EdgeType, node_types: Iterable[NodeType | None]) -> None:
    for end in (edge_type[0], edge_type[-1]):
        if end not in node_types:
            raise ArgumentError(
                f"{edge_type}: there are no {end!r} nodes; set data[{end!r}].num_nodes"
            )

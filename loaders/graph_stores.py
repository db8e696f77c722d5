"""Reads PyG's ``(FeatureStore, GraphStore)`` as a sampler's graph."""

from __future__ import annotations

import copy
from typing import Any

from torch_geometric.data import EdgeAttr, FeatureStore, GraphStore, remote_backend_utils
from torch_geometric.data.graph_store import EdgeLayout
from torch_geometric.index import ptr2index
from torch_geometric.typing import EdgeType, NodeType

from gnnsys.errors import ArgumentError
from gnnsys.loaders.user_graph import UserEdges, UserGraph, as_times

__all__ = ["read_stores"]


def read_stores(
    features: FeatureStore, graphs: GraphStore, time_attr: str | None, backward: bool
) -> UserGraph:
    """The graph and times in a pair of stores, without types where the edges have none.

    Raises:
        ArgumentError, DTypeError: stores whose size is unknown, or times that are missing or
            ambiguous or not in the order that temporal sampling needs.
    """
    by_type: dict[EdgeType | None, list[EdgeAttr]] = {}
    for attr in graphs.get_all_edge_attrs():
        if time_attr is not None:
            _check_time_order(attr)
        by_type.setdefault(attr.edge_type, []).append(attr)
    if not by_type:
        raise ArgumentError("GraphStore: has no edges")
    if None in by_type and len(by_type) > 1:
        raise ArgumentError("GraphStore: has edges with and without a type")
    edges = [_read_stored_edges(graphs, attrs, backward) for attrs in by_type.values()]
    num_nodes: dict[NodeType | None, int]
    if None in by_type:
        num_nodes = {None: _count_stored_nodes(features, by_type[None])}
    else:
        names = [attr.group_name for attr in features.get_all_tensor_attrs()]
        ends = [end for part in edges for end in part.ends]
        node_types = dict.fromkeys([name for name in names if isinstance(name, str)] + ends)
        num_nodes = {kind: _count_typed_nodes(features, graphs, kind) for kind in node_types}
    held = UserGraph(num_nodes=num_nodes, edges=edges)
    if time_attr is not None:
        _read_stored_times(features, held, time_attr)
    return held


def _check_time_order(attr: EdgeAttr) -> None:
    if attr.layout == EdgeLayout.CSR:
        raise ArgumentError(
            f"GraphStore: the edges {attr.edge_type} are stored in CSR layout: Temporal sampling "
            "requires that edges are stored in either COO or CSC layout"
        )
    if not attr.is_sorted:
        raise ArgumentError(
            f"GraphStore: the edges {attr.edge_type} are not sorted (is_sorted=False): Temporal "
            "sampling requires that edges are sorted by destination, and by source time within "
            "local neighborhoods"
        )


def _read_stored_edges(graphs: GraphStore, attrs: list[EdgeAttr], backward: bool) -> UserEdges:
    """The edges of a type in the stored layout that costs least to convert, as PyG chooses."""
    layouts = [EdgeLayout.CSC, EdgeLayout.COO, EdgeLayout.CSR]
    attr = min(attrs, key=lambda attr: (layouts[::-1] if backward else layouts).index(attr.layout))
    row, col = graphs.get_edge_index(attr)
    if attr.layout == EdgeLayout.CSC:
        return UserEdges(
            edge_type=attr.edge_type, source=row, target=col, compressed=True, is_sorted=True
        )
    if attr.layout == EdgeLayout.CSR:
        row = ptr2index(row)
    # Edges that are sorted by target are not sorted for those who walk them backwards.
    is_sorted = attr.is_sorted and not backward
    return UserEdges(edge_type=attr.edge_type, source=row, target=col, is_sorted=is_sorted)


def _count_stored_nodes(features: FeatureStore, attrs: list[EdgeAttr]) -> int:
    sizes = [size for attr in attrs for size in attr.size or () if size is not None]
    if sizes:
        return max(sizes)
    for attr in features.get_all_tensor_attrs():
        size = features.get_tensor_size(attr)
        if size is not None:
            return int(size[0])
    raise ArgumentError(
        "GraphStore: the number of nodes is not known; put the edges with size=(nodes, nodes), or "
        "a feature"
    )


def _count_typed_nodes(features: FeatureStore, graphs: GraphStore, node_type: NodeType) -> int:
    try:
        return int(remote_backend_utils.num_nodes(features, graphs, node_type))
    except ValueError as error:
        raise ArgumentError(
            f"GraphStore: the number of {node_type!r} nodes is not known; put their edges with "
            "size=(sources, targets), or a feature"
        ) from error


def _read_stored_times(features: FeatureStore, held: UserGraph, time_attr: str) -> None:
    attrs = [
        copy.copy(attr) for attr in features.get_all_tensor_attrs() if attr.attr_name == time_attr
    ]
    if not attrs:
        raise ArgumentError(
            "time_attr: Temporal sampling specified but did not find any temporal data: "
            f"FeatureStore has no {time_attr!r}"
        )
    times: dict[Any, Any] = {}
    for attr in attrs:
        attr.index = None  # all rows
        times[attr.group_name] = features.get_tensor(attr)
    if held.edges[0].edge_type is None:
        _assign_homogeneous_time(held, held.edges[0], time_attr, next(iter(times.values())))
        return
    held.put_times(
        time_attr,
        {kind: value for kind, value in times.items() if isinstance(kind, str)},
        {kind: value for kind, value in times.items() if isinstance(kind, tuple)},
    )


def _assign_homogeneous_time(held: UserGraph, edges: UserEdges, time_attr: str, value: Any) -> None:
    """A store without types does not say whose times these are: their number does, else, as in
    PyG, the name: ``time`` is that of nodes."""
    time = as_times(time_attr, value)
    fits_nodes, fits_edges = len(time) == held.num_nodes[None], len(time) == edges.count
    if not fits_nodes and not fits_edges:
        raise ArgumentError(
            f"time_attr: {time_attr!r} has {len(time)} times for {held.num_nodes[None]} nodes and "
            f"{edges.count} edges"
        )
    if fits_nodes and (time_attr == "time" or not fits_edges):
        held.node_time[None] = time
    else:
        edges.time = time

"""Nodes and edges as a user holds them, and the step from there to a ``TypedGraph``.

Attributes are in the user's order here and in that of the CSC there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch_geometric.index import ptr2index
from torch_geometric.typing import EdgeType, NodeType

from gnnsys.errors import ArgumentError, DTypeError
from gnnsys.loaders.topology import CSC, check_ends, check_times_ascend
from gnnsys.loaders.typed_graph import Relation, TypedGraph

__all__ = [
    "UserEdges",
    "UserGraph",
    "as_times",
    "as_weights",
    "check_ids_dtype",
    "named",
]


@dataclass(kw_only=True, slots=True)
class UserEdges:
    """The edges of one type, with attributes in the user's order."""

    edge_type: EdgeType | None
    """None in a homogeneous graph."""
    source: Tensor
    """(edges,) node ids."""
    target: Tensor
    """(edges,) node ids or, if ``compressed``, (targets + 1,) where each target's edges begin."""
    compressed: bool = False
    is_sorted: bool = False
    """By target, and by time within a target; the user says so."""
    time: Tensor | None = None
    """(edges,) int64 times of the edges themselves."""
    weight: Tensor | None = None
    """(edges,) float64."""

    @property
    def count(self) -> int:
        """Number of edges."""
        return len(self.source)

    @property
    def ends(self) -> tuple[NodeType | None, NodeType | None]:
        """Types of the source and the target."""
        return (None, None) if self.edge_type is None else (self.edge_type[0], self.edge_type[-1])


@dataclass(kw_only=True, slots=True)
class UserGraph:
    """All node and edge types; a homogeneous graph has one node type, ``None``."""

    num_nodes: dict[NodeType | None, int]
    node_time: dict[NodeType | None, Tensor] = field(default_factory=dict)
    """(nodes,) int64, of the types that have times."""
    edges: list[UserEdges] = field(default_factory=list)

    def put_times(
        self, name: str, nodes: Mapping[NodeType | None, Any], edges: Mapping[EdgeType | None, Any]
    ) -> None:
        """Takes the times that attributes called ``name`` hold, by type.

        Raises:
            ArgumentError, DTypeError: node types and edge types have some, or neither; or these are
                no times of that many.
        """
        if nodes and edges:
            node, edge = next(iter(nodes)), next(iter(edges))
            raise ArgumentError(
                f"time_attr: The time attribute '{name}' holds both node-level and edge-level "
                f"information: it is an attribute of the nodes {node!r} and of the edges {edge}; "
                "rename one, times are those of nodes or of edges"
            )
        if not nodes and not edges:
            found = f"no node type and no edge type has {name!r}"
            if None in self.num_nodes:
                found = (
                    f"data has no {name!r} with one time for each of its {self.num_nodes[None]} "
                    f"nodes or {self.edges[0].count} edges"
                )
            raise ArgumentError(
                f"time_attr: The time attribute '{name}' is neither a node-level or edge-level "
                f"attribute: {found}"
            )
        for kind, value in nodes.items():
            self.node_time[kind] = as_times(named(name, kind), value, self.num_nodes[kind])
        by_type = {part.edge_type: part for part in self.edges}
        for edge_type, value in edges.items():
            if edge_type not in by_type:
                raise ArgumentError(f"{named(name, edge_type)}: GraphStore has no such edges")
            part = by_type[edge_type]
            part.time = as_times(named(name, edge_type), value, part.count)

    def build(self, backward: bool) -> TypedGraph:
        """Sorts every relation by the nodes it samples for, which are its sources if ``backward``.

        Raises:
            ArgumentError: an edge outside the nodes, or edges that are not sorted as claimed.
        """
        return TypedGraph(
            node_types=list(self.num_nodes),
            num_nodes=list(self.num_nodes.values()),
            node_time=[_own(self.node_time.get(node_type)) for node_type in self.num_nodes],
            relations=[self._relation(edges, backward) for edges in self.edges],
        )

    def _relation(self, edges: UserEdges, backward: bool) -> Relation:
        try:
            edges.source = check_ids_dtype("edge_index", edges.source, "node ids")
            edges.target = check_ids_dtype("edge_index", edges.target, "node ids")
            graph = self._csc(edges, backward)
        except (ArgumentError, DTypeError) as error:
            if edges.edge_type is None:
                raise
            raise type(error)(f"{edges.edge_type}: {error}") from error
        first, last = edges.ends[::-1] if backward else edges.ends
        order = list(self.num_nodes)
        return Relation(
            edge_type=edges.edge_type,
            source=order.index(first),
            target=order.index(last),
            graph=graph,
            time=_permute(edges.time, graph.perm),
            weight=_permute(edges.weight, graph.perm),
        )

    def _csc(self, edges: UserEdges, backward: bool) -> CSC:
        sources, targets = (self.num_nodes[end] for end in edges.ends)
        time = edges.time
        if time is None and edges.ends[0] in self.node_time:
            source = edges.source.to("cpu", torch.int64)
            check_ends("source", source, sources)
            time = self.node_time[edges.ends[0]][source]
        if edges.compressed and (time is None or edges.is_sorted):
            indptr = _pad(edges.target.to(torch.int64), targets)
            indices = edges.source
            if indices.dtype not in (torch.int32, torch.int64):
                indices = indices.to(torch.int64)
            graph = CSC(indptr.contiguous(), indices.contiguous(), None, sources)
            if time is not None:
                check_times_ascend(graph, time)
            return graph.reversed() if backward else graph
        source, target = edges.source, edges.target
        if edges.compressed:
            target = ptr2index(target)
        if backward:
            check_ends("source", source, sources)
            check_ends("target", target, targets)
            source, target, sources, targets = target, source, targets, sources
        return CSC.from_edges(source, target, sources, targets, edges.is_sorted, time)


def as_times(name: str, value: Any, count: int | None = None) -> Tensor:
    """Times as (count,) int64.

    Raises:
        DTypeError: times that are not integers: rounding could make two of them equal.
        ArgumentError: another shape.
    """
    time = torch.as_tensor(value)
    if time.is_floating_point() or time.is_complex() or time.dtype == torch.bool:
        raise DTypeError(
            f"{name}: dtype {time.dtype}, expected integers; scale the times and round them, for "
            "instance to milliseconds"
        )
    return _check_shape(name, time, count).to("cpu", torch.int64).contiguous()


def check_ids_dtype(name: str, ids: Tensor, expected: str) -> Tensor:
    """The ids; where there are none, whose type may be any, of int64.

    Raises:
        DTypeError: ids that are not integers.
    """
    if ids.numel() == 0:
        return ids.to(torch.int64)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise DTypeError(f"{name}: dtype {ids.dtype}, expected {expected} (integers)")
    return ids


def as_weights(name: str, value: Any, count: int) -> Tensor:
    """Weights as (count,) float64.

    Raises:
        ArgumentError: another shape, or a weight that is negative, infinite or not a number.
    """
    weight = _check_shape(f"weight_attr: {name}", torch.as_tensor(value), count)
    weight = weight.to("cpu", torch.float64)
    wrong = (~(weight.isfinite() & (weight >= 0))).nonzero()
    if len(wrong):
        edge = int(wrong[0])
        raise ArgumentError(
            f"weight_attr: {name} of edge {edge} is {float(weight[edge])}; weights are finite and "
            "not negative"
        )
    return weight.contiguous()


def named(attribute: str, kind: NodeType | EdgeType | None) -> str:
    """How errors call an attribute of a type."""
    if kind is None:
        return attribute
    return f"{attribute} of {kind!r}"


def _permute(value: Tensor | None, perm: Tensor | None) -> Tensor | None:
    return _own(value) if value is None or perm is None else value[perm]


def _own(value: Tensor | None) -> Tensor | None:
    """A copy, which neither moves nor changes when the user's tensor does."""
    return None if value is None else value.clone()


def _pad(indptr: Tensor, num_nodes: int) -> Tensor:
    """Nodes beyond the last that the pointers know have no edges."""
    missing = num_nodes + 1 - len(indptr)
    if missing < 0:
        raise ArgumentError(
            f"the column pointers are those of {len(indptr) - 1} nodes, but there are {num_nodes}"
        )
    return indptr if missing == 0 else torch.cat([indptr, indptr[-1:].expand(missing)])


def _check_shape(name: str, value: Tensor, count: int | None) -> Tensor:
    if value.dim() != 1 or (count is not None and len(value) != count):
        expected = "one dimension" if count is None else f"({count},)"
        raise ArgumentError(f"{name}: shape {tuple(value.shape)}, expected {expected}")
    return value

"""Which row of one domain each row of another reads, for the graph at hand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gnnsys.errors import ArgumentError
from gnnsys.rel.graph import RelationalGraph
from gnnsys.rel.program import Domain

__all__ = [
    "Find",
    "edges_between",
    "reciprocal_degrees",
    "reciprocal_degrees_of_edges",
    "row_map",
    "rows_of",
    "types_of_nodes",
]

# E edges, T types, M rows of a domain.

Find = Callable[[RelationalGraph], Tensor]


def rows_of(graph: RelationalGraph, domain: Domain) -> int:
    """How many rows a value on this domain has.

    Raises:
        ArgumentError: a program over one set of nodes for a graph between two.
    """
    if domain is Domain.NODE and graph.num_sources != graph.num_targets:
        raise ArgumentError(
            f"the program reads nodes at both ends of the edges, but the graph leads from "
            f"{graph.num_sources} sources to {graph.num_targets} targets; write the program with "
            "sources(...) and targets(...)"
        )
    return _ROWS[domain](graph)


def row_map(read: Domain, domain: Domain) -> Find | None:
    """Finds the (M,) int64 row of ``read`` for each row of ``domain``; None for the same rows."""
    return None if domain is read or (read, domain) in _SAME else _MAPS[read, domain]


def edges_between(read: Domain, to: Domain) -> Find:
    """Finds the (2, E) int64 rows of two domains that each edge has, for sums over neighbours."""
    known = _EDGES.get((read, to))
    if known is not None:
        return known
    first, second = (row_map(each, Domain.EDGE) or _numbers for each in (read, to))
    return lambda graph: _kept(
        graph, f"{read.value} to {to.value}", lambda: torch.stack([first(graph), second(graph)])
    )


def types_of_nodes(pairs: Domain) -> Find:
    """Finds the (2, M) int64 edges from the type to the node of each pair."""
    end = Domain.SRC if pairs is Domain.SRC_ETYPE else Domain.DST
    types, nodes = _MAPS[Domain.ETYPE, pairs], _MAPS[end, pairs]
    return lambda graph: _kept(
        graph, f"types of {pairs.value}", lambda: torch.stack([types(graph), nodes(graph)])
    )


def reciprocal_degrees(graph: RelationalGraph, like: Tensor) -> Tensor:
    """(M,) of the dtype of ``like``: 1 / the edges of each target of one type."""
    return _kept(
        graph,
        f"reciprocal degrees of {like.dtype}",
        lambda: (
            graph.degree_of_pairs.to(torch.promote_types(like.dtype, torch.float32))
            .reciprocal()
            .to(like.dtype)
        ),
    )


def reciprocal_degrees_of_edges(graph: RelationalGraph, like: Tensor) -> Tensor:
    """(E,) of the dtype of ``like``: those of each edge's target and type."""
    return _kept(
        graph,
        f"reciprocal degrees of edges of {like.dtype}",
        lambda: reciprocal_degrees(graph, like)[graph.targets_of_types.of_edge],
    )


def _kept(graph: RelationalGraph, name: str, make: Callable[[], Tensor]) -> Tensor:
    found = graph.kept.get(name)
    if found is None:
        with torch.inference_mode(False):  # the graph outlives a block of inference mode
            found = graph.kept[name] = make()
    return found


def _numbers(graph: RelationalGraph) -> Tensor:
    return torch.arange(len(graph), device=graph.source.device)


def _types_of(find: Find, name: str) -> Find:
    """The type of each row, of rows that lie in the order of their types."""

    def types(graph: RelationalGraph) -> Tensor:
        sizes = find(graph).diff()
        return torch.arange(len(sizes)).repeat_interleave(sizes).to(graph.source.device)

    return lambda graph: _kept(graph, name, lambda: types(graph))


_TYPES_OF_NODES = _types_of(lambda graph: graph.node_ptr, "types of nodes")

_ROWS: dict[Domain, Callable[[RelationalGraph], int]] = {
    Domain.NODE: lambda graph: graph.num_sources,
    Domain.SRC: lambda graph: graph.num_sources,
    Domain.DST: lambda graph: graph.num_targets,
    Domain.EDGE: len,
    Domain.SRC_ETYPE: lambda graph: len(graph.sources_of_types),
    Domain.DST_ETYPE: lambda graph: len(graph.targets_of_types),
    Domain.ETYPE: lambda graph: graph.num_relations,
    Domain.NTYPE: lambda graph: len(graph.node_ptr) - 1,
}

_SAME = {(Domain.NODE, Domain.SRC), (Domain.NODE, Domain.DST)}

_MAPS: dict[tuple[Domain, Domain], Find] = {
    (Domain.SRC, Domain.EDGE): lambda graph: graph.source,
    (Domain.DST, Domain.EDGE): lambda graph: graph.target,
    (Domain.SRC_ETYPE, Domain.EDGE): lambda graph: graph.sources_of_types.of_edge,
    (Domain.DST_ETYPE, Domain.EDGE): lambda graph: graph.targets_of_types.of_edge,
    (Domain.ETYPE, Domain.EDGE): lambda graph: graph.edge_type,
    (Domain.SRC, Domain.SRC_ETYPE): lambda graph: graph.sources_of_types.node,
    (Domain.DST, Domain.DST_ETYPE): lambda graph: graph.targets_of_types.node,
    (Domain.ETYPE, Domain.SRC_ETYPE): _types_of(
        lambda graph: graph.sources_of_types.ptr, "types of source pairs"
    ),
    (Domain.ETYPE, Domain.DST_ETYPE): _types_of(
        lambda graph: graph.targets_of_types.ptr, "types of target pairs"
    ),
    (Domain.NTYPE, Domain.NODE): _TYPES_OF_NODES,
    (Domain.NTYPE, Domain.DST): _TYPES_OF_NODES,
}

_EDGES: dict[tuple[Domain, Domain], Find] = {
    (Domain.SRC, Domain.DST): lambda graph: graph.edge_index,
    (Domain.SRC_ETYPE, Domain.DST): lambda graph: graph.sources_of_types.edges,
    (Domain.SRC, Domain.DST_ETYPE): lambda graph: graph.targets_of_types.edges,
}

"""Which of the neighbours that are old enough may be sampled: of a window, of the newest ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch_geometric.typing import EdgeType

from gnnsys.errors import ArgumentError
from gnnsys.loaders.typed_graph import TypedGraph
from gnnsys.system.whole import check_whole

__all__ = ["TimeLimit", "limits_by_relation"]

TimeLimit = int | Mapping[EdgeType, int] | None
"""For all edge types that have times, or for those that are named; None for no limit."""


def limits_by_relation(name: str, given: TimeLimit, graph: TypedGraph, least: int) -> list[int]:
    """The limit of every relation, -1 for none, as the native sampler takes them.

    Args:
        name: of the argument, for errors.
        given: what the user asked for.
        graph: the sampler's.
        least: the smallest limit.

    Returns:
        One entry for each relation; no entries where there is no limit at all.

    Raises:
        ArgumentError: a limit that is no whole number from ``least`` on, an edge type that is
            unknown or without times.
    """
    if given is None:
        return []
    timed = {
        part.edge_type: part.time is not None or graph.node_time[part.source] is not None
        for part in graph.relations
    }
    if not any(timed.values()):
        raise ArgumentError(
            f"{name}: {given!r}, but no edges of the graph have times; name the attribute of edges "
            "or of their source nodes that has them (time_attr)"
        )
    if not isinstance(given, Mapping):
        limit = _as_limit(name, given, least)
        return [limit if is_timed else -1 for is_timed in timed.values()]
    if None in timed:
        raise ArgumentError(
            f"{name}: a dict of edge types, but the graph is homogeneous; give a number"
        )
    for kind in given:
        if kind not in timed:
            raise ArgumentError(
                f"{name}: {kind!r} is no edge type of the graph, which has {list(timed)}"
            )
        if not timed[kind]:
            raise ArgumentError(
                f"{name}: neither edges {kind} nor nodes {kind[0]!r} have times (time_attr); leave "
                "this edge type out"
            )
    return [_as_limit(name, given[kind], least) if kind in given else -1 for kind in timed]


def _as_limit(name: str, value: Any, least: int) -> int:
    return check_whole(name, value, least, 2**63 - 1, otherwise="or None for no limit")

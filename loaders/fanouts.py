"""How many neighbours are sampled for each relation and hop."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch_geometric.sampler.base import NumNeighbors
from torch_geometric.typing import EdgeType, EdgeTypeStr

from gnnsys.errors import ArgumentError

__all__ = ["fanouts_by_relation"]


def fanouts_by_relation(
    num_neighbors: NumNeighbors, edge_types: Sequence[EdgeType | None]
) -> list[list[int]]:
    """The fanouts of every edge type, nearest the seeds first, for the same number of hops.

    Args:
        num_neighbors: of PyG, whose list holds for all edge types and whose dict for those named.
        edge_types: of the graph in order; ``[None]`` where it is homogeneous.

    Raises:
        ArgumentError: an edge type without fanouts or unknown, or numbers of hops that differ.

    >>> fanouts_by_relation(NumNeighbors({("a", "to", "b"): [5]}, default=[0]),
    ...                     [("a", "to", "b"), ("b", "to", "a")])
    [[5], [0]]
    """
    values, default = num_neighbors.values, num_neighbors.default
    if not isinstance(values, dict):
        return [_check_fanouts(values) for _ in edge_types]
    if list(edge_types) == [None]:
        raise ArgumentError(
            "num_neighbors: a dict of edge types, but the graph is homogeneous; give a list"
        )
    known = {EdgeTypeStr(edge_type): edge_type for edge_type in edge_types}
    unknown = [key.to_tuple() for key in values if key not in known]
    if unknown:
        raise ArgumentError(
            "num_neighbors: Not all edge types specified in 'num_neighbors' exist in the graph: "
            f"{unknown[0]} is no edge type of the graph, which has {list(known.values())}"
        )
    missing = [edge_type for key, edge_type in known.items() if key not in values]
    if missing and default is None:
        raise ArgumentError(
            f"num_neighbors: Missing number of neighbors for edge type '{missing[0]}': no entry "
            f"for the edge type {missing[0]}; add one ([0, ...] samples none), or give "
            "NumNeighbors(values, default=[...])"
        )
    fanouts = [_check_fanouts(values.get(key, default)) for key in known]
    hops = sorted({len(part) for part in fanouts})
    if len(hops) > 1:
        raise ArgumentError(
            "num_neighbors: Number of hops must be the same across all edge types, but it is "
            f"{hops[0]} hops for one edge type, {hops[-1]} for another; give 0 where a hop samples "
            "none"
        )
    return fanouts


def _check_fanouts(values: Any) -> list[int]:
    try:
        fanouts = [operator.index(fanout) for fanout in values]
    except TypeError as error:
        raise ArgumentError(
            f"num_neighbors: {values!r}, expected a list with one whole number for a hop"
        ) from error
    if not fanouts:
        raise ArgumentError(
            f"num_neighbors: {values!r} has no hop; give one number for each, such as [10, 5]"
        )
    if any(fanout < -1 for fanout in fanouts):
        raise ArgumentError(f"num_neighbors: {fanouts}; each is -1 (all neighbours) or at least 0")
    return fanouts

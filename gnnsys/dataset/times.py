"""Times of a folder's nodes and edges, as samplers take them.

A sampler asks for the times of nodes or of edges, and for the in-edges of each node to ascend by
them. Where only nodes have times and the edges stand in their order (in folders of relational
databases they do), nothing is copied; else the edges are sorted in memory, with times of their own:
the later of the edge's and of its source's, if both have one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gnnsys.dataset.folder import CscStore, Dataset
from gnnsys.dataset.format import EdgeType
from gnnsys.dataset.tables import check_nodes
from gnnsys.loaders.topology import CSC

__all__ = ["timed_bytes", "timed_types", "with_times"]

_EDGES = 1 << 22  # that are looked at in a step


def timed_types(dataset: Dataset) -> list[str | EdgeType]:
    """The node types, then the edge types, that have times; nothing of others is ever later."""
    nodes = [kind for kind in dataset.node_types if dataset.has("time", kind)]
    return [*nodes, *(kind for kind in dataset.edge_types if dataset.has("edge_time", kind))]


def timed_bytes(dataset: Dataset) -> int:
    """What a sampler of ``with_times`` holds in memory: times, and edges that were sorted.

    Raises:
        FileFormatError: a source outside the nodes.
    """
    of_nodes, of_edges = _node_times(dataset), _has_edge_times(dataset)
    total = sum(each.nbytes for each in of_nodes.values())
    for kind in dataset.edge_types:
        timed = kind[0] in of_nodes or dataset.has("edge_time", kind)
        if timed and (of_edges or not _ascends(_graph(dataset, kind), of_nodes[kind[0]])):
            total += dataset.edge_table("indices", kind).nbytes
            total += 2 * 8 * dataset.num_edges(kind) if of_edges else 0  # in batches, too
    return total


def with_times(dataset: Dataset, source: tuple[Any, Any]) -> tuple[tuple[Any, Any], str]:
    """What a sampler takes, and the name of the times in it (its ``time_attr``).

    Args:
        dataset: of which some types have times.
        source: its ``stores``.

    Raises:
        FileFormatError: a source outside the nodes.
    """
    features, graphs = source
    typed = dataset.heterogeneous
    times, of_edges = _node_times(dataset), _has_edge_times(dataset)
    made, changed = CscStore(), of_edges
    for kind in dataset.edge_types:
        graph = _graph(dataset, kind)
        found = _edge_times(dataset, kind, graph, times) if of_edges else None
        if of_edges and found is not None:
            graph, found = _sorted(graph, found)
            features[kind if typed else None, "edge_time", None] = found
        elif not of_edges and kind[0] in times and not _ascends(graph, times[kind[0]]):
            graph, _ = _sorted(graph, torch.from_numpy(times[kind[0]][graph.indices.numpy()]))
            changed = True
        made.put_csc(kind if typed else None, graph, dataset.num_nodes(kind[0]))
    return (features, made if changed else graphs), "edge_time" if of_edges else "time"


def _graph(dataset: Dataset, kind: EdgeType) -> CSC:
    """The edges of a type, whose sources are nodes that there are."""
    graph = dataset.graph(kind)
    what = f"{dataset.path}: sources of {kind}"
    check_nodes(graph.indices.numpy(), dataset.num_nodes(kind[0]), what)
    return graph


def _node_times(dataset: Dataset) -> dict[str, Any]:
    """(nodes,) of each node type that has some, mapped."""
    types = [kind for kind in dataset.node_types if dataset.has("time", kind)]
    return {kind: dataset.node_table("time", kind) for kind in types}


def _has_edge_times(dataset: Dataset) -> bool:
    return any(dataset.has("edge_time", kind) for kind in dataset.edge_types)


def _edge_times(
    dataset: Dataset, kind: EdgeType, graph: CSC, node_times: dict[str, Any]
) -> Tensor | None:
    """(edges,) since when each is known; None where neither edges nor their sources have times."""
    found = []
    if dataset.has("edge_time", kind):
        found.append(dataset.edge_table("edge_time", kind))
    if kind[0] in node_times:
        found.append(node_times[kind[0]][graph.indices.numpy()])
    return torch.from_numpy(np.maximum.reduce(found).copy()) if found else None


def _ascends(graph: CSC, time: Any) -> bool:
    """Whether the in-edges of every node ascend by the times of their sources."""
    indptr, indices = graph.indptr.numpy(), graph.indices.numpy()
    for first in range(0, len(indices), _EDGES):
        some = time[indices[first : first + _EDGES + 1]]  # and the first of the next
        falls = np.flatnonzero(some[1:] < some[:-1]) + first + 1
        if not np.isin(falls, indptr).all():
            return False
    return True


def _sorted(graph: CSC, time: Tensor) -> tuple[CSC, Tensor]:
    """The same edges and their times, ascending by time for each node."""
    order = torch.from_numpy(np.lexsort((time.numpy(), graph.targets().numpy())))
    return CSC(graph.indptr, graph.indices[order], num_sources=graph.num_sources), time[order]

"""Times of a folder's nodes and edges, as samplers take them.

A sampler asks for the times of nodes or of edges, and for the in-edges of each node to ascend by
them. Where only nodes have times and the edges stand in their order (in folders of relational
databases they do), nothing is copied; else the edges are sorted in memory, with times of their own:
the later of the edge's and of its source's, if both have one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.dataset.folder import CscStore, Dataset
from gnnsys.dataset.format import EdgeType
from gnnsys.dataset.tables import check_nodes
from gnnsys.errors import ArgumentError
from gnnsys.loaders.topology import CSC
from gnnsys.system.budget import process_budget

__all__ = ["TIMES", "check_whole_times", "timed_bytes", "timed_types", "with_times"]

TIMES = "times and edges sorted by them"
"""What samplers hold of times, in the process's budget."""

_EDGES = 1 << 20  # that are looked at, or sorted, in a step
_SORTING = 64
"""Bytes of an edge while it is sorted: its time, target and place, with their copies."""

_TimesOf = Callable[[slice], NDArray[Any]]
"""Since when the edges at some positions are known."""


def timed_types(dataset: Dataset) -> list[str | EdgeType]:
    """The node types, then the edge types, that have times; nothing of others is ever later."""
    nodes = [kind for kind in dataset.node_types if dataset.has("time", kind)]
    return [*nodes, *(kind for kind in dataset.edge_types if dataset.has("edge_time", kind))]


def check_whole_times(dataset: Dataset) -> None:
    """Raises ArgumentError for times that are no whole numbers, such as a column with gaps has."""
    for kind in timed_types(dataset):
        if isinstance(kind, str):
            what, table = f"nodes {kind}", dataset.node_table("time", kind)
        else:
            what, table = f"edges {','.join(kind)}", dataset.edge_table("edge_time", kind)
        if table.dtype.kind not in "iu":
            raise ArgumentError(
                f"{dataset.path}: the times of {what} are {table.dtype}, expected whole numbers; "
                "convert it again with such, or give --ignore-times"
            )


def timed_bytes(dataset: Dataset) -> int:
    """What a sampler of ``with_times`` holds in memory: times, and edges that were sorted; and what
    sorting takes.

    Raises:
        FileFormatError: a source outside the nodes.
    """
    nodes, of_edges = _node_times(dataset), _has_edge_times(dataset)
    total = sum(each.nbytes for each in nodes.values())
    sorting = 0
    for kind in dataset.edge_types:
        graph = _graph(dataset, kind)
        times = _edge_times(dataset, kind, graph, nodes)
        if times is not None and (of_edges or not _ascends(graph, times)):
            total += graph.indices.nbytes
            total += 2 * 8 * graph.num_edges if of_edges else 0  # in batches, too
            ends = graph.indptr.numpy()
            most = max((ends[last] - ends[first] for first, last in _blocks(ends)), default=0)
            sorting = max(sorting, _SORTING * int(most))
    return total + sorting


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
    nodes, of_edges = _node_times(dataset), _has_edge_times(dataset)
    made, changed = CscStore(), False
    for kind in dataset.edge_types:
        graph = _graph(dataset, kind)
        times = _edge_times(dataset, kind, graph, nodes)
        if times is not None and (of_edges or not _ascends(graph, times)):
            graph, found = _sorted(graph, times, of_edges)
            changed = True
            if found is not None:
                features[kind if typed else None, "edge_time", None] = found
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
    dataset: Dataset, kind: EdgeType, graph: CSC, nodes: dict[str, Any]
) -> _TimesOf | None:
    """None where neither edges nor their sources have times."""
    sources, of_sources = graph.indices.numpy(), nodes.get(kind[0])
    own = dataset.edge_table("edge_time", kind) if dataset.has("edge_time", kind) else None
    if own is None and of_sources is None:
        return None

    def times(some: slice) -> NDArray[Any]:
        of_edges = [] if own is None else [own[some]]
        return np.maximum.reduce(
            of_edges if of_sources is None else [*of_edges, of_sources[sources[some]]]
        )

    return times


def _ascends(graph: CSC, times: _TimesOf) -> bool:
    """Whether the in-edges of every node ascend by time."""
    ends = graph.indptr.numpy()
    for first in range(0, graph.num_edges, _EDGES):
        some = times(slice(first, first + _EDGES + 1))  # and the first of the next
        falls = np.flatnonzero(some[1:] < some[:-1]) + first + 1
        if not np.array_equal(ends[np.searchsorted(ends, falls)], falls):
            return False
    return True


def _blocks(ends: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """The first target, and that after the last, of each step: of one target, or of few edges."""
    first = 0
    while first < len(ends) - 1:
        last = int(np.searchsorted(ends, ends[first] + _EDGES, side="right")) - 1
        last = max(first + 1, min(last, first + _EDGES))
        yield first, last
        first = last


def _sorted(graph: CSC, times: _TimesOf, keep: bool) -> tuple[CSC, Tensor | None]:
    """The same edges, ascending by time for each node, and their times, if these are kept."""
    ends, sources = graph.indptr.numpy(), graph.indices.numpy()
    found = np.empty_like(sources)
    since = np.empty(len(sources) if keep else 0, np.int64)
    for first, last in _blocks(ends):
        some = slice(int(ends[first]), int(ends[last]))
        target = np.repeat(np.arange(last - first), np.diff(ends[first : last + 1]))
        time = times(some)
        order = np.lexsort((time, target))
        found[some] = sources[some][order]
        if keep:
            since[some] = time[order]
    made = CSC(graph.indptr, torch.from_numpy(found), num_sources=graph.num_sources)
    process_budget().hold(TIMES, found.nbytes + since.nbytes, made)
    return made, torch.from_numpy(since) if keep else None

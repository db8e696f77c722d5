"""Sampled subgraphs in which every edge runs both ways.

Which edge types are each other's reverses is what PyG decides: ``rel`` and ``rev_rel``, a type with
both ends of one kind and itself, or the only type that leads back. An edge has the number that it
has in the graph, whichever way it was sampled.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch_geometric.sampler import HeteroSamplerOutput
from torch_geometric.typing import EdgeType, NodeType

from gnnsys.loaders.native_sampler import NativeSampler
from gnnsys.loaders.reverse_types import types_back
from gnnsys.loaders.typed_graph import TypedGraph

__all__ = ["GraphEdges", "make_bidirectional"]


class GraphEdges:
    """Finds the edges of the graph between the nodes of a batch.

    Args:
        graph: of the sampler.
        native: the sampler over it.
        backward: whether the graph's relations run from target to source.
        seed_time: (trees,) int64; edges that are newer than their tree are none. Used where edges
            have times.
    """

    def __init__(
        self, graph: TypedGraph, native: NativeSampler, backward: bool, seed_time: Tensor | None
    ) -> None:
        self._graph = graph
        self._native = native
        self._backward = backward
        self._seed_time = seed_time
        self._among: dict[EdgeType | None, tuple[Tensor, Tensor]] | None = None

    def find(
        self, out: HeteroSamplerOutput, kind: EdgeType | None, row: Tensor, col: Tensor
    ) -> Tensor:
        """(edges,) positions in the graph of edges between places in the batch; -1 where none is.

        Of several edges it is the first one, which is the oldest where edges have times.
        """
        if len(row) == 0:
            return row
        if self._among is None:
            self._among = self._edges_among(out)
        keys, edge = self._among[kind]
        wanted = self._key(kind, out.node[_ends(kind)[0]][row], out.node[_ends(kind)[1]][col])
        place = torch.searchsorted(keys, wanted)
        exists = place < len(keys)
        place[~exists] = 0
        if len(keys) == 0:
            return torch.full_like(row, -1)
        exists &= keys[place] == wanted
        found = edge[place]
        time = self._graph.relations[self._graph.edge_types.index(kind)].time
        if time is not None and self._seed_time is not None:
            exists &= time[found] <= self._seed_time[out.batch[_ends(kind)[1]][col]]
        return torch.where(exists, found, -1)

    def _edges_among(
        self, out: HeteroSamplerOutput
    ) -> dict[EdgeType | None, tuple[Tensor, Tensor]]:
        """Sorted keys and positions of all edges between the batch's nodes."""
        nodes = [out.node[kind].unique() for kind in self._graph.node_types]
        edge_index, edge = self._native.get().induce([ids.numpy() for ids in nodes])
        among = {}
        for number, part in enumerate(self._graph.relations):
            source, target = (torch.from_numpy(ends) for ends in edge_index[number])
            source, target = nodes[part.source][source], nodes[part.target][target]
            row, col = (target, source) if self._backward else (source, target)
            keys, order = self._key(part.edge_type, row, col).sort(stable=True)
            among[part.edge_type] = keys, torch.from_numpy(edge[number])[order]
        return among

    def _key(self, kind: EdgeType | None, source: Tensor, target: Tensor) -> Tensor:
        width = self._graph.num_nodes[self._graph.node_types.index(_ends(kind)[0])]
        return target * width + source


def make_bidirectional(
    out: HeteroSamplerOutput, edges: GraphEdges, keep_orig_edges: bool
) -> HeteroSamplerOutput:
    """A sampler's output with the reverses of its edges; each pair of nodes has one edge.

    An edge that was sampled, or is in the graph, has its own number. Without types, one that the
    graph lacks has the number of the edge whose reverse it is; with types, that would be the number
    of an edge of another type, so that the edges of this type get none (``edge`` is None).

    Args:
        out: as it was sampled; the type is None where there are none.
        edges: finds reverses in the graph.
        keep_orig_edges: whether to keep the sampled edges as ``orig_row`` and ``orig_col``, and
            the numbers of nodes and edges in each hop.
    """
    made = copy.copy(out)
    made.row, made.col, made.edge = dict(out.row), dict(out.col), dict(out.edge)
    for kind in out.row:
        for reverse in _reverses(kind, list(out.row)):
            made.row[kind], made.col[kind], made.edge[kind] = _join(out, edges, kind, reverse)
    if keep_orig_edges:
        made.orig_row, made.orig_col = dict(out.row), dict(out.col)
    else:
        made.num_sampled_nodes = made.num_sampled_edges = None
    return made


def _reverses(kind: EdgeType | None, kinds: Sequence[EdgeType | None]) -> list[EdgeType | None]:
    """The type whose edges are the reverses of this type's; none where that cannot be told."""
    if kind is None:
        return [None]
    found = types_back(kind, kinds)
    if kind in found:
        return [kind]
    if len(found) != 1:
        warnings.warn(
            f"Cannot convert to bidirectional graph since the edge type {kind} does not seem to "
            f"have a reverse edge type: {len(found)} lead from {kind[-1]!r} to {kind[0]!r}",
            stacklevel=2,
        )
        return []
    return [*found]


def _join(
    out: HeteroSamplerOutput, edges: GraphEdges, kind: EdgeType | None, reverse: EdgeType | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The edges of a type and the reverses of another's, by target and then by source."""
    row = torch.cat([out.row[kind], out.col[reverse]])
    col = torch.cat([out.col[kind], out.row[reverse]])
    edge = torch.cat([out.edge[kind], out.edge[reverse]])
    # The first of equal pairs, so that what was sampled of this type comes before reverses.
    pairs = (col * len(out.node[_ends(kind)[0]]) + row).numpy()
    first = torch.from_numpy(np.unique(pairs, return_index=True)[1])
    row, col, edge = row[first], col[first], edge[first]
    added = first >= len(out.row[kind])
    found = edges.find(out, kind, row[added], col[added])
    if kind is not None and bool((found < 0).any()):
        return row, col, None
    edge[added] = torch.where(found < 0, edge[added], found)
    return row, col, edge


def _ends(kind: EdgeType | None) -> tuple[NodeType | None, NodeType | None]:
    return (None, None) if kind is None else (kind[0], kind[-1])

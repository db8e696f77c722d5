"""The part of a graph that one way works on: its vertices, and the edges into each of its chunks.

Local rows are the way's own vertices, chunk after chunk, then its halo: vertices of other ways that
have an edge into its chunks, in the order of the partition. At slot j a way works on the j-th of
its chunks, all ways at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gnnsys.errors import ArgumentError
from gnnsys.pipeline.edges import Edges, edges_of_kind, sort_edges
from gnnsys.pipeline.partition import Partition, check_edges

__all__ = ["Block", "WayGraph", "check_ways", "halo_sizes", "make_way_graph"]


@dataclass(frozen=True, slots=True)
class Block:
    """One chunk of a way, N vertices that read M sources."""

    rows: slice
    """The chunk's own rows among the local ones."""

    sources: Tensor
    """(M,) local rows: the chunk's own in order, then other in-neighbours, ascending."""

    source_chunk: Tensor
    """(M,) the slot in which each source is worked on, by whatever way."""

    edges: dict[str, Edges]
    """Of each kind, from positions in ``sources`` to rows of the chunk."""


@dataclass(frozen=True, slots=True)
class WayGraph:
    """What one way has of the graph."""

    vertices: Tensor
    """(own rows,) the caller's numbers."""

    halo: Tensor
    """(halo rows,) the caller's numbers."""

    blocks: list[Block]

    outgoing: list[dict[int, Tensor]]
    """For each slot and other way, the own rows that it reads, ascending."""

    incoming: list[dict[int, slice]]
    """For each slot and other way, the halo rows that it makes, as local rows."""

    @property
    def num_own(self) -> int:
        """Vertices of the way."""
        return len(self.vertices)

    @property
    def num_halo(self) -> int:
        """Vertices of other ways that it reads."""
        return len(self.halo)

    def to(self, device: torch.device) -> WayGraph:
        """The same part on a device; itself where it is there."""
        if self.vertices.device == device:
            return self
        blocks = [
            Block(
                block.rows,
                block.sources.to(device),
                block.source_chunk.to(device),
                {kind: edges.to(device) for kind, edges in block.edges.items()},
            )
            for block in self.blocks
        ]
        outgoing = [{way: own.to(device) for way, own in slot.items()} for slot in self.outgoing]
        return WayGraph(
            self.vertices.to(device), self.halo.to(device), blocks, outgoing, self.incoming
        )


def halo_sizes(edge_index: Tensor, num_nodes: int, partition: Partition, ways: int) -> list[int]:
    """Vertices of other ways that each way reads; their sum is M_W of the byte formulas.

    >>> partition = Partition(torch.arange(4), (0, 2, 4))
    >>> halo_sizes(torch.tensor([[0, 0, 1], [2, 3, 0]]), 4, partition, ways=2)
    [0, 1]
    """
    check_ways(partition.num_chunks, ways)
    place = np.empty(num_nodes, np.int64)
    place[partition.order.numpy()] = np.arange(num_nodes)
    starts = np.asarray(partition.starts[:: partition.num_chunks // ways])
    source, target = place[edge_index.numpy()]
    way = np.searchsorted(starts, target, side="right") - 1
    remote = np.searchsorted(starts, source, side="right") - 1 != way
    pairs = np.unique(way[remote] * num_nodes + source[remote])
    return np.bincount(pairs // num_nodes, minlength=ways).tolist()


def check_ways(chunks: int, ways: int) -> None:
    """Raises ArgumentError where the ways cannot share the chunks evenly."""
    if chunks % ways:
        raise ArgumentError(
            f"chunks({chunks}) % ways({ways}) != 0: each way takes as many chunks; use "
            f"chunks={chunks // ways * ways or ways}"
        )


def make_way_graph(
    edge_index: Tensor,
    num_nodes: int,
    partition: Partition,
    *,
    ways: int = 1,
    way: int = 0,
    kinds: Sequence[str] = ("plain",),
    edge_weight: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> WayGraph:
    """Cuts a way's part out of the whole graph.

    Args:
        edge_index: (2, E) int64, source to target.
        partition: into K chunks; way w has chunks w K / W to (w + 1) K / W - 1.
        kinds: of edges that the layers aggregate over; see ``edges_of_kind``.
        edge_weight: (E,).
        dtype: of the weights.

    Raises:
        ArgumentError: K is no multiple of the ways.
        RowIndexError: an edge to a vertex that is not there.

    >>> partition = Partition(torch.arange(3), (0, 1, 3))
    >>> graph = make_way_graph(torch.tensor([[0, 1], [1, 2]]), 3, partition, ways=2, way=1)
    >>> graph.vertices.tolist(), graph.halo.tolist(), graph.incoming
    ([1, 2], [0], [{0: slice(2, 3, None)}])
    """
    check_ways(partition.num_chunks, ways)
    check_edges(edge_index, num_nodes)
    place = torch.empty(num_nodes, dtype=torch.int64)
    place[partition.order] = torch.arange(num_nodes)
    starts = torch.tensor(partition.starts)
    slots = partition.num_chunks // ways
    first, last = (int(starts[slots * each]) for each in (way, way + 1))
    local = _Numbers(place[edge_index], starts, slots, first, last)
    outgoing = local.read_elsewhere(way, ways)
    own = place.new_empty(num_nodes).fill_(-1)
    own[first:last] = torch.arange(last - first)
    own[local.halo] = torch.arange(len(local.halo)) + (last - first)
    blocks = _make_blocks(edge_index, edge_weight, kinds, dtype, place, own, local, way)
    return WayGraph(
        vertices=partition.order[first:last],
        halo=partition.order[local.halo],
        blocks=blocks,
        outgoing=outgoing,
        incoming=local.halo_slices(way, ways),
    )


class _Numbers:
    """Who has and who reads the vertices of the partition's numbering, seen from one way."""

    def __init__(self, edges: Tensor, starts: Tensor, slots: int, first: int, last: int) -> None:
        self.starts, self.slots = starts, slots
        self.first, self.last = first, last
        into = (edges[1] >= first) & (edges[1] < last)
        beyond = (edges[0] < first) | (edges[0] >= last)
        self.halo = edges[0][into & beyond].unique()
        self._out = edges[:, ~into & ~beyond]

    def chunk_of(self, vertices: Tensor) -> Tensor:
        """The chunk of each vertex."""
        return torch.searchsorted(self.starts, vertices, right=True) - 1

    def read_elsewhere(self, way: int, ways: int) -> list[dict[int, Tensor]]:
        """For each slot and other way, local rows of this way that it reads."""
        found: list[dict[int, Tensor]] = [{} for _ in range(self.slots)]
        readers = self.chunk_of(self._out[1]) // self.slots
        for other in range(ways):
            rows = self._out[0][readers == other].unique()
            slots = self.chunk_of(rows) - way * self.slots
            for slot, part in zip(*_split_by(slots, rows - self.first), strict=True):
                found[slot][other] = part
        return found

    def halo_slices(self, way: int, ways: int) -> list[dict[int, slice]]:
        """For each slot and other way, where its vertices lie among the local rows."""
        found: list[dict[int, slice]] = [{} for _ in range(self.slots)]
        bounds = torch.searchsorted(self.halo, self.starts) + (self.last - self.first)
        for chunk in range(ways * self.slots):
            begin, end = int(bounds[chunk]), int(bounds[chunk + 1])
            if begin < end and chunk // self.slots != way:
                found[chunk % self.slots][chunk // self.slots] = slice(begin, end)
        return found


def _make_blocks(
    edge_index: Tensor,
    edge_weight: Tensor | None,
    kinds: Sequence[str],
    dtype: torch.dtype,
    place: Tensor,  # (V,) the partition's number of each vertex of the caller
    local: Tensor,  # (V,) the local row of each vertex in the partition's numbering; -1: none
    numbers: _Numbers,
    way: int,
) -> list[Block]:
    first, slots = numbers.first, numbers.slots
    bounds = (numbers.starts[way * slots : (way + 1) * slots + 1] - first).tolist()
    length = numbers.last - first + len(numbers.halo)
    slot_of = numbers.chunk_of(torch.cat([torch.arange(first, numbers.last), numbers.halo])) % slots
    by_kind = {}
    for kind in kinds:
        pairs, weight = edges_of_kind(edge_index, len(place), kind, edge_weight, dtype)
        source, target = place[pairs]
        here = torch.nonzero((target >= first) & (target < numbers.last)).view(-1)
        weight = None if weight is None else weight[here]
        sizes = length, numbers.last - first
        made = sort_edges(local[source[here]], target[here] - first, weight, sizes)
        by_kind[kind] = made.index, made.weight
    blocks = []
    position = torch.empty(length, dtype=torch.int64)
    for begin, end in itertools.pairwise(bounds):
        cut = {}
        for kind, (index, weight) in by_kind.items():
            low, high = torch.searchsorted(index[1], torch.tensor([begin, end])).tolist()
            cut[kind] = index[:, low:high], None if weight is None else weight[low:high]
        others = torch.cat([index[0] for index, _ in cut.values()]).unique()
        others = others[(others < begin) | (others >= end)]
        sources = torch.cat([torch.arange(begin, end), others])
        position[sources] = torch.arange(len(sources))
        sizes = (len(sources), end - begin)
        edges = {
            kind: Edges(torch.stack([position[index[0]], index[1] - begin]), weight, sizes)
            for kind, (index, weight) in cut.items()
        }
        blocks.append(Block(slice(begin, end), sources, slot_of[sources], edges))
    return blocks


def _split_by(keys: Tensor, values: Tensor) -> tuple[list[int], list[Tensor]]:
    """Values cut into runs of equal keys, which ascend."""
    found, counts = keys.unique_consecutive(return_counts=True)
    return found.tolist(), list(values.split(counts.tolist()))

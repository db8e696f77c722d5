"""Chunks of a graph's vertices with few edges between them, by METIS.

METIS: Karypis and Kumar, "A fast and high quality multilevel scheme for partitioning irregular
graphs", SIAM J. Sci. Comput. 1998, through pymetis.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.errors import ArgumentError, RowIndexError
from gnnsys.pipeline.metis import part_graph
from gnnsys.rng import permutation

__all__ = ["Partition", "check_chunks", "check_edges", "check_partition", "partition_graph"]

_SHUFFLED_BASE_WEIGHT = 50
"""Of a vertex without neighbours, where chunks are shuffled: weights are this plus the degree."""


@dataclass(frozen=True, slots=True)
class Partition:
    """Vertices in an order in which those of a chunk follow one another.

    >>> Partition(torch.tensor([2, 0, 1]), (0, 1, 3)).chunk_sizes
    (1, 2)
    """

    order: Tensor
    """(V,) int64: the new vertex i is the caller's vertex order[i]."""

    starts: tuple[int, ...]
    """(K + 1,): chunk c has the new vertices starts[c] to starts[c + 1] - 1."""

    @property
    def num_chunks(self) -> int:
        """K."""
        return len(self.starts) - 1

    @property
    def chunk_sizes(self) -> tuple[int, ...]:
        """(K,) vertices of each chunk."""
        return tuple(last - first for first, last in itertools.pairwise(self.starts))


def check_edges(edge_index: Tensor, num_nodes: int) -> None:
    """Raises for an ``edge_index`` that is none of a graph of ``num_nodes`` vertices."""
    if edge_index.dim() != 2 or len(edge_index) != 2 or edge_index.dtype != torch.int64:
        raise ArgumentError(
            f"edge_index: shape {tuple(edge_index.shape)} of {edge_index.dtype}, expected (2, E) "
            "of torch.int64"
        )
    wrong = torch.nonzero(((edge_index < 0) | (edge_index >= num_nodes)).any(0)).view(-1)
    if len(wrong):
        raise RowIndexError(
            f"edge_index: edge {int(wrong[0])} joins {edge_index[:, wrong[0]].tolist()}, but the "
            f"graph has {num_nodes} vertices"
        )


def check_partition(partition: Partition, num_nodes: int) -> None:
    """Raises ArgumentError for a partition that is none of ``num_nodes`` vertices."""
    order, starts = partition.order, partition.starts
    if order.shape != (num_nodes,) or not torch.equal(order.sort().values, torch.arange(num_nodes)):
        raise ArgumentError(
            f"partition.order: {len(order)} entries, expected each of the {num_nodes} vertices once"
        )
    if len(starts) < 2 or starts[0] != 0 or starts[-1] != num_nodes:
        raise ArgumentError(
            f"partition.starts: expected 0 at first and {num_nodes} at last, found {starts}"
        )
    for chunk, size in enumerate(partition.chunk_sizes):
        if size < 1:
            raise ArgumentError(
                f"partition: chunk {chunk} is empty; every chunk holds one vertex at least"
            )


def check_chunks(chunks: int, num_nodes: int) -> None:
    """Raises ArgumentError where there are too few vertices for the chunks."""
    if chunks > num_nodes:
        raise ArgumentError(
            f"chunks({chunks}) > vertices({num_nodes}): a chunk holds one vertex at least; use "
            "fewer chunks"
        )


def partition_graph(
    edge_index: Tensor, num_nodes: int, chunks: int, *, shuffle_factor: int = 1, seed: int = 0
) -> Partition:
    """Cuts a graph into chunks of about the same size, with few edges between them.

    Edges count without their direction, self loops not at all, and duplicates once. Within a chunk,
    vertices keep their order. The same arguments give the same partition.

    Args:
        edge_index: (2, E) int64.
        num_nodes: V; vertices without edges are spread as METIS likes.
        chunks: K; no chunk is empty.
        shuffle_factor: if more than 1, so many parts are made for each chunk, of vertices weighted
            by 50 + degree, shuffled and merged: chunks then cut more edges but are more alike
            (GNNPipe, arXiv 2308.10087).
        seed: of METIS and of the shuffle.

    Raises:
        ArgumentError: more chunks than vertices.
        RowIndexError: an edge to a vertex that is not there.

    >>> edges = torch.tensor([[0, 1, 2, 3, 1, 2], [1, 0, 3, 2, 2, 1]])
    >>> partition = partition_graph(edges, num_nodes=4, chunks=2)
    >>> sorted(sorted(part.tolist()) for part in partition.order.split([2, 2]))
    [[0, 1], [2, 3]]
    """
    check_edges(edge_index, num_nodes)
    if chunks < 1 or shuffle_factor < 1:
        raise ArgumentError(
            f"chunks({chunks}), shuffle_factor({shuffle_factor}): expected at least 1"
        )
    check_chunks(chunks, num_nodes)
    parts = min(chunks * shuffle_factor, num_nodes)
    found = _metis(edge_index.numpy(), num_nodes, parts, seed, weighted=shuffle_factor > 1)
    if shuffle_factor > 1:
        found = permutation(parts, seed, 0)[found] % chunks
    _fill_empty(found, chunks)
    order = np.argsort(found, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(found, minlength=chunks))])
    return Partition(torch.from_numpy(order), tuple(starts.tolist()))


def _metis(
    edges: NDArray[np.int64], num_nodes: int, parts: int, seed: int, weighted: bool
) -> NDArray[np.int64]:
    """(V,) the part of each vertex."""
    if parts == 1:
        return np.zeros(num_nodes, np.int64)
    first, second = edges[:, edges[0] != edges[1]]
    pairs = np.unique(np.concatenate([first * num_nodes + second, second * num_nodes + first]))
    degrees = np.bincount(pairs // num_nodes, minlength=num_nodes)
    starts = np.concatenate([[0], np.cumsum(degrees)])
    weights = _SHUFFLED_BASE_WEIGHT + degrees if weighted else np.ones_like(degrees)
    return part_graph(parts, starts, pairs % num_nodes, weights, seed)


def _fill_empty(found: NDArray[np.int64], chunks: int) -> None:
    """Gives every empty chunk a vertex of the largest one."""
    sizes = np.bincount(found, minlength=chunks)
    for chunk in np.flatnonzero(sizes == 0):
        largest = int(sizes.argmax())
        found[np.flatnonzero(found == largest)[-1]] = chunk
        sizes[largest] -= 1
        sizes[chunk] += 1

"""Batches whose shapes are all the same: each hop is padded to a size that was measured before.

Owns ``StaticShapes``, which knows nothing of loaders. Invariants: a batch without its padding is
the batch that it was made from, in its order, bit for bit; no edge leads from padding to a sampled
node or back; where edges were sorted by target, they still are.

Hop h of a padded batch holds the nodes sampled in it, then padding, of which there is always a
node: its last one. The padding among the edges of hop h runs from the last node of hop h to the
last one of hop h - 1. Such an edge is no self loop, which layers would take out, and is cut off
together with the hop's sampled edges where a model trims.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.sampler.base import SubgraphType

from gnnsys.errors import UnsupportedError
from gnnsys.loaders.neighbor_sampler import NeighborSampler

__all__ = ["Padding", "Sizes", "StaticShapes", "static_shapes_of"]

_log = logging.getLogger(__name__)

_MULTIPLE = 64
_HEADROOM = 0.05
"""What is added to the largest batch that was measured. With it at most 2 batches of 29 more epochs
exceeded the sizes, on Cora and on an R-MAT graph, by whichever fanouts."""
_IGNORED_LABEL = -100
"""What torch's ``cross_entropy`` leaves out."""

Sizes = tuple[list[int], list[int]]
"""Nodes of each hop, that of the seeds first, and edges of each hop."""


@dataclass(frozen=True, slots=True)
class Padding:
    """How much of all batches that were made so far is padding.

    >>> Padding(nodes=200, padding_nodes=50).node_share
    0.25
    """

    nodes: int = 0
    """Of all batches, padding included."""

    padding_nodes: int = 0

    edges: int = 0
    """Of all batches, padding included."""

    padding_edges: int = 0

    @property
    def node_share(self) -> float:
        """Share of the nodes that are padding."""
        return self.padding_nodes / max(1, self.nodes)

    @property
    def edge_share(self) -> float:
        """Share of the edges that are padding."""
        return self.padding_edges / max(1, self.edges)

    def __add__(self, other: Padding) -> Padding:
        mine, more = dataclasses.astuple(self), dataclasses.astuple(other)
        return Padding(*(a + b for a, b in zip(mine, more, strict=True)))


class StaticShapes:
    """Sizes that hold every batch, and the padding that brings a batch to them.

    A batch that does not fit enlarges the sizes for all that follow, which is logged.

    Args:
        batch_size: seeds of a batch.
        most_nodes: no hop has more.
        most_edges: of each hop, for every node of the hop before; None where there is no bound.

    >>> shapes = StaticShapes(batch_size=2, most_nodes=9, most_edges=[2])
    >>> shapes.measure([([2, 3], [4])])
    >>> shapes.sizes
    ([3, 5], [4])
    >>> edges, ids = torch.tensor([[1, 2], [0, 0]]), torch.tensor([7, 8, 9])
    >>> batch = Data(
    ...     edge_index=edges, n_id=ids, num_sampled_nodes=[1, 2], num_sampled_edges=[2], num_nodes=3
    ... )
    >>> padded = shapes.pad(batch, of_nodes={"n_id"}, of_edges=set())
    >>> padded.n_id.tolist(), padded.edge_index.tolist(), padded.num_sampled_nodes
    ([7, 0, 0, 8, 9, 0, 0, 0], [[3, 4, 7, 7], [0, 0, 2, 2]], [3, 5])
    """

    def __init__(self, batch_size: int, most_nodes: int, most_edges: Sequence[int | None]) -> None:
        self.sizes: Sizes | None = None
        self.padding = Padding()
        self._batch_size = batch_size
        self._most_nodes = most_nodes
        self._most_edges = most_edges
        self._lock = threading.Lock()

    def measure(self, sizes: Iterable[Sizes]) -> None:
        """Sets the sizes, from those that batches have without padding."""
        nodes = [self._batch_size] + [0] * len(self._most_edges)
        edges = [0] * len(self._most_edges)
        for some_nodes, some_edges in sizes:
            nodes, edges = _largest(nodes, some_nodes), _largest(edges, some_edges)
        self.sizes = self._with_headroom(nodes, edges)

    def _with_headroom(self, nodes: list[int], edges: list[int]) -> Sizes:
        """For the largest batch so far: with room for larger ones, and for a node of padding."""
        wide_nodes, wide_edges = nodes[:1], []
        for found_nodes, found_edges, fanout in zip(
            nodes[1:], edges, self._most_edges, strict=True
        ):
            most = wide_nodes[-1] * fanout if fanout is not None else None
            wide_edges.append(_widen(found_edges, most))
            wide_nodes.append(_widen(found_nodes, min(self._most_nodes, wide_edges[-1])))
        return [count + 1 for count in wide_nodes], wide_edges

    def pad(self, batch: Data, of_nodes: set[str], of_edges: set[str]) -> Data:
        """Pads a batch to the sizes, in place, and returns it.

        It gets ``pad_node_mask`` and ``pad_edge_mask``, False at the padding, as PyG's transform
        ``Pad`` names them. Padding has node 0 in ``n_id``, edge 0 in ``e_id``, -100 in a ``y`` of
        integers, and zeros elsewhere.

        Args:
            batch: with ``num_sampled_nodes`` and ``num_sampled_edges``.
            of_nodes, of_edges: names of the attributes with a row for each node or edge.

        Raises:
            UnsupportedError: one of these attributes is no tensor.
        """
        counts = batch.num_sampled_nodes, batch.num_sampled_edges
        with self._lock:
            nodes, edges = self._sizes_for(*counts)
            self.padding += Padding(
                nodes=sum(nodes),
                padding_nodes=sum(nodes) - sum(counts[0]),
                edges=sum(edges),
                padding_edges=sum(edges) - sum(counts[1]),
            )
        node_places, edge_places = _Places(counts[0], nodes), _Places(counts[1], edges)
        for names, places in ((of_nodes, node_places), (of_edges, edge_places)):
            for name in names & set(batch.keys()):
                dim = batch.__cat_dim__(name, batch[name])
                batch[name] = places.spread(name, batch[name], dim)
        batch.edge_index = self._pad_edges(batch.edge_index, node_places, edge_places)
        if "num_nodes" in batch:
            batch.num_nodes = node_places.total
        batch.pad_node_mask, batch.pad_edge_mask = node_places.mask(), edge_places.mask()
        batch.num_sampled_nodes, batch.num_sampled_edges = list(nodes), list(edges)
        return batch

    def _sizes_for(self, nodes: list[int], edges: list[int]) -> Sizes:
        if self.sizes is None:
            self.measure([])
        assert self.sizes is not None
        known = self.sizes
        if all(map(int.__gt__, known[0], nodes)) and all(map(int.__ge__, known[1], edges)):
            return known
        wide = self._with_headroom(nodes, edges)
        self.sizes = _largest(known[0], wide[0]), _largest(known[1], wide[1])
        _log.warning(
            "static_shapes: a batch of %s nodes and %s edges a hop exceeds %s and %s: from here on "
            "batches have %s and %s", nodes, edges, *known, *self.sizes
        )  # fmt: skip
        return self.sizes

    @staticmethod
    def _pad_edges(edge_index: Tensor, nodes: _Places, edges: _Places) -> Tensor:
        padded = np.empty((2, edges.total), dtype=np.int64)
        moved = nodes.positions()[edge_index.cpu().numpy()]
        for hop, (begin, start, end, stop) in enumerate(edges.parts()):
            padded[:, start:end] = moved[:, begin : begin + end - start]
            padded[0, end:stop] = nodes.stops[hop + 2] - 1
            padded[1, end:stop] = nodes.stops[hop + 1] - 1
        return torch.from_numpy(padded).to(edge_index.device)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


def static_shapes_of(given: Mapping[str, Any], sampler: Any) -> StaticShapes:
    """Those of a loader, not yet measured.

    Args:
        given: the arguments of the loader and of its ``DataLoader``.
        sampler: that draws its batches.

    Raises:
        UnsupportedError: batches that cannot be padded.
    """
    data = given["data"]
    is_ours = isinstance(sampler, NeighborSampler)
    refused = {
        "a sampler of another kind than gnnsys.NeighborSampler": not is_ours,
        "a graph with types": is_ours and sampler.is_hetero,
        "disjoint or temporal sampling": is_ours and (sampler.disjoint or sampler.is_temporal),
        "bidirectional and induced subgraphs": is_ours
        and sampler.subgraph_type != SubgraphType.directional,
        "transform_sampler_output": given["transform_sampler_output"] is not None,
        "batch_sampler": given.get("batch_sampler") is not None,
        "edges as adj_t": isinstance(data, Data) and "adj_t" in data,
    }
    for what, is_given in refused.items():
        if is_given:
            raise UnsupportedError(f"static_shapes: not offered with {what}; leave one of them out")
    is_bounded = sampler.sampling == "uniform"
    return StaticShapes(
        given.get("batch_size", 1),
        sampler.num_nodes,
        [n if n >= 0 and is_bounded else None for n in sampler.num_neighbors.values],
    )


class _Places:
    """Where the rows of each hop go: those that there are first, padding after them."""

    def __init__(self, counts: Sequence[int], sizes: Sequence[int]) -> None:
        self.counts = counts
        self.begins = [0, *accumulate(counts)]
        self.stops = [0, *accumulate(sizes)]
        self.total = self.stops[-1]

    def parts(self) -> Iterable[tuple[int, int, int, int]]:
        """Of each hop: where its rows begin without padding; with it, where they begin and end, and
        where their padding ends."""
        for begin, count, (start, stop) in zip(
            self.begins, self.counts, pairwise(self.stops), strict=False
        ):
            yield begin, start, start + count, stop

    def positions(self) -> NDArray[np.int64]:
        """(rows without padding,): where each goes."""
        return np.concatenate([np.arange(start, end) for _, start, end, _ in self.parts()])

    def mask(self) -> Tensor:
        """(rows,) False at the padding."""
        mask = np.zeros(self.total, dtype=np.bool_)
        for _, start, end, _ in self.parts():
            mask[start:end] = True
        return torch.from_numpy(mask)

    def spread(self, name: str, value: Any, dim: int) -> Tensor:
        """An attribute of the rows, with padding."""
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            raise UnsupportedError(
                f"static_shapes: {name} is a {type(value).__name__}, expected a dense tensor; "
                "leave it out of the data"
            )
        signed = not (value.is_floating_point() or value.is_complex()) and value.dtype.is_signed
        fill = _IGNORED_LABEL if name == "y" and signed else 0
        shape = list(value.shape)
        shape[dim] = self.total
        padded = value.new_empty(shape)
        source, target = (_in_one_thread(rows.movedim(dim, 0)) for rows in (value, padded))
        for begin, start, end, stop in self.parts():
            target[start:end] = source[begin : begin + end - start]
            target[end:stop] = fill
        return padded


def _in_one_thread(rows: Tensor) -> Any:
    """The same memory as an array of numpy, where it is the CPU's: torch would write it by a team
    of threads beside the one that trains."""
    if rows.device.type != "cpu":
        return rows
    if rows.dtype.itemsize <= 2:  # numpy lacks some of these types
        rows = rows.view({1: torch.int8, 2: torch.int16}[rows.dtype.itemsize])
    return rows.numpy()


def _largest(one: Sequence[int], other: Sequence[int]) -> list[int]:
    return list(map(max, one, other))


def _widen(count: int, most: int | None) -> int:
    wide = -(-int(count * (1 + _HEADROOM)) // _MULTIPLE) * _MULTIPLE
    return wide if most is None else max(count, min(wide, most))

"""A graph whose nodes and edges have types, as the native sampler reads it.

A homogeneous graph is the case of one node type and one relation, both named ``None``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.typing import EdgeType, NodeType

from gnnsys.errors import ArgumentError
from gnnsys.loaders.neighbor_file import NeighborFile
from gnnsys.loaders.topology import CSC, reduce_shared, share
from gnnsys.system.extension import core

__all__ = ["Relation", "TypedGraph"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Relation:
    """The edges of one type in the direction in which they are sampled."""

    edge_type: EdgeType | None
    """The user's name of it."""
    source: int
    """Number of the node type that neighbours belong to."""
    target: int
    """Number of the node type that neighbours are sampled for."""
    graph: CSC
    time: Tensor | None = None
    """(edges,) int64 times of the edges themselves, in the order of the CSC."""
    weight: Tensor | None = None
    """(edges,) float64, at least 0, in the order of the CSC."""


@dataclass(kw_only=True, slots=True)
class TypedGraph:
    """Nodes and relations by number; the lists of nodes are parallel."""

    node_types: list[NodeType | None]
    num_nodes: list[int]
    node_time: list[Tensor | None]
    """(nodes,) int64 times for each type, or None."""
    relations: list[Relation]

    @property
    def edge_types(self) -> list[EdgeType | None]:
        """The user's names of the relations."""
        return [relation.edge_type for relation in self.relations]

    @property
    def is_temporal(self) -> bool:
        """Whether any node or edge has a time."""
        return self.has_node_times or self.has_edge_times

    @property
    def has_node_times(self) -> bool:
        """Whether any node has a time."""
        return any(time is not None for time in self.node_time)

    @property
    def has_edge_times(self) -> bool:
        """Whether any edge has a time of its own."""
        return any(relation.time is not None for relation in self.relations)

    @property
    def is_weighted(self) -> bool:
        """Whether any edge has a weight."""
        return any(relation.weight is not None for relation in self.relations)

    def arrays(self) -> list[Tensor]:
        """All that a native sampler reads."""
        found: list[Tensor | None] = list(self.node_time)
        for part in self.relations:
            found += [part.graph.indptr, part.graph.indices, part.time, part.weight]
        return [array for array in found if array is not None]

    def files(self) -> list[NeighborFile]:
        """That the relations' neighbours lie in."""
        found = (part.graph.file for part in self.relations)
        return [file for file in found if file is not None]

    def check_files(self) -> None:
        """Raises FileFormatError where one of them became shorter."""
        for file in self.files():
            file.check_size()

    def share_memory(self) -> None:
        """Takes copies in memory that processes share in the place of arrays that are not there."""
        self.node_time = [None if time is None else share(time) for time in self.node_time]
        for number, part in enumerate(self.relations):
            part.graph.share_memory()
            time, weight = (None if x is None else share(x) for x in (part.time, part.weight))
            self.relations[number] = replace(part, time=time, weight=weight)

    def native(self, threads: int, isa: str) -> core.Sampler:
        """The sampler over this graph; it holds on to the arrays and files.

        Raises:
            ArgumentError: weights whose sum overflows, or arrays that do not fit together.
        """
        relations = [
            (part.source, part.target, part.graph.indptr.numpy(), part.graph.indices.numpy())
            for part in self.relations
        ]
        files = [part.graph.file for part in self.relations]
        try:
            return core.Sampler(
                self.num_nodes,
                relations,
                [_array(time) for time in self.node_time],
                [_array(part.time) for part in self.relations],
                [_array(part.weight) for part in self.relations],
                threads,
                isa,
                [None if file is None else file.native for file in files],
            )
        except (IndexError, ValueError, RuntimeError) as error:
            raise ArgumentError(str(error)) from error


ForkingPickler.register(TypedGraph, reduce_shared)


def _array(value: Tensor | None) -> NDArray[Any] | None:
    return None if value is None else np.ascontiguousarray(value.numpy())

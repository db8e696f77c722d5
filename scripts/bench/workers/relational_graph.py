"""A graph whose edges have relations and whose nodes have types, as all sides get it.

Imported by the entry and by workers of every environment: numpy and torch only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["RelationGraph"]


@dataclass(frozen=True, slots=True)
class RelationGraph:
    """Nodes are numbered type by type."""

    edge_index: Tensor  # (2, edges) int64, sources and targets
    edge_type: Tensor  # (edges,) int64, the relation of each
    ends: Tensor  # (relations, 2) int64, the type of its sources and of its targets
    node_ptr: Tensor  # (node types + 1,) int64, where the nodes of each type begin

    @property
    def num_nodes(self) -> int:
        """Of all types."""
        return int(self.node_ptr[-1])

    @property
    def num_edges(self) -> int:
        """Of all relations."""
        return len(self.edge_type)

    @property
    def num_relations(self) -> int:
        """Those without edges too."""
        return len(self.ends)

    def part(self, edges: int) -> RelationGraph:
        """Some of the edges, drawn at random, and the nodes that they touch."""
        drawn = torch.from_numpy(np.random.default_rng(0).permutation(self.num_edges)[:edges])
        nodes, ends = self.edge_index[:, drawn].unique(return_inverse=True)
        node_ptr = torch.searchsorted(nodes, self.node_ptr)
        return RelationGraph(ends, self.edge_type[drawn], self.ends, node_ptr)

    def relations(self) -> dict[tuple[str, str, str], Tensor]:
        """The edges of each relation that has any, in PyG's form: nodes are numbered within their
        types."""
        order = self.edge_type.argsort(stable=True)
        counts = self.edge_type.bincount(minlength=self.num_relations).tolist()
        found = {}
        for number, edges in enumerate(self.edge_index[:, order].split(counts, 1)):
            ends = self.ends[number]
            if edges.shape[1]:
                found[self.name_of(number)] = edges - self.node_ptr[ends].view(2, 1)
        return found

    def metadata(self) -> tuple[list[str], list[tuple[str, str, str]]]:
        """Names of the types of nodes and of the relations, in PyG's form."""
        types = [f"type{number}" for number in range(len(self.node_ptr) - 1)]
        return types, [self.name_of(number) for number in range(self.num_relations)]

    def name_of(self, relation: int) -> tuple[str, str, str]:
        """Of a relation, in PyG's form."""
        source, target = self.ends[relation].tolist()
        return f"type{source}", f"relation{relation}", f"type{target}"

    def save(self, file: Path) -> None:
        """Writes an .npz file."""
        np.savez(file, **{name: getattr(self, name).numpy() for name in self.__slots__})

    @classmethod
    def load(cls, file: Path) -> RelationGraph:
        """Reads what ``save`` wrote."""
        with np.load(file) as arrays:
            return cls(**{name: torch.from_numpy(arrays[name]) for name in cls.__slots__})

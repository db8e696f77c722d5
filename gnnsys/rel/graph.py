"""What relational layers ask of a graph, computed once: edges by type, pairs of node and type."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gnnsys.errors import ArgumentError, DeviceError, DTypeError, RowIndexError
from gnnsys.message_passing.known import KnownOf

__all__ = ["Pairs", "RelationalGraph"]

# E edges, T relations (edge types), M distinct pairs of a node and the type of one of its edges.

EdgeType = tuple[str, str, str]

_ENDS = ("source", "target")


@dataclass(frozen=True)
class Pairs:
    """The distinct pairs (node, edge type) of one end of the edges, by type, then node."""

    node: Tensor
    """(M,) int64: of each pair."""

    ptr: Tensor
    """(T + 1,) int64 on the CPU: the pairs of type t are ptr[t] … ptr[t + 1] - 1."""

    of_edge: Tensor
    """(E,) int64: the pair of each edge."""

    edges: Tensor
    """(2, E) int64: the edges with pairs in place of the nodes of this end."""

    def __len__(self) -> int:
        return len(self.node)

    @property
    def ratio(self) -> float:
        """M / E: what remains of work that is done for pairs, not edges; 1 without edges."""
        return len(self.node) / len(self.of_edge) if len(self.of_edge) else 1.0


class RelationalGraph:
    """A graph with typed edges, and what layers over it need, each computed when first asked for.

    Nothing of it may be changed. All per-edge tensors have the edges sorted by type, in the given
    order within a type, unless they are said to be in the given order.

    Args:
        edge_index: (2, E) int64, sources above targets.
        edge_type: (E,) int64 there, too: from 0 to ``num_relations`` - 1.
        num_relations: T; types may have no edges.
        num_sources: nodes that edges may come from.
        num_targets: nodes that they may lead to; None where those are the same nodes.
        node_ptr: (node types + 1,) int64: nodes of type t are node_ptr[t] … node_ptr[t + 1] - 1;
            None for nodes of one type.

    Raises:
        ArgumentError: shapes that do not fit each other, or a ``node_ptr`` that is none.
        DTypeError: ids that are not int64.
        DeviceError: types that lie elsewhere than the edges.
        RowIndexError: a type or a node outside its range.

    >>> edge_index = torch.tensor([[0, 0, 2, 0], [1, 2, 1, 0]])
    >>> edge_type = torch.tensor([1, 0, 1, 1])
    >>> graph = RelationalGraph(edge_index, edge_type, num_relations=2, num_sources=3)
    >>> graph.order.tolist(), graph.edge_ptr.tolist()
    ([1, 0, 2, 3], [0, 1, 4])
    >>> pairs = graph.sources_of_types
    >>> pairs.node.tolist(), pairs.ptr.tolist(), pairs.of_edge.tolist()
    ([0, 0, 2], [0, 1, 3], [0, 1, 2, 1])
    """

    edge_index: Tensor
    """(2, E) int64: sources above targets."""

    edge_type: Tensor
    """(E,) int64, ascending."""

    edge_ptr: Tensor
    """(T + 1,) int64 on the CPU: the edges of type t are edge_ptr[t] … edge_ptr[t + 1] - 1."""

    def __init__(
        self,
        edge_index: Tensor,
        edge_type: Tensor,
        *,
        num_relations: int,
        num_sources: int,
        num_targets: int | None = None,
        node_ptr: Tensor | None = None,
    ) -> None:
        _check_edges(edge_index, edge_type)
        self.num_relations = num_relations
        self.num_sources = num_sources
        self.num_targets = num_sources if num_targets is None else num_targets
        self.node_ptr = _check_node_ptr(node_ptr, self.num_sources, self.num_targets)
        _check_range("edge_type", edge_type, num_relations, "relations")
        for end, count in enumerate((self.num_sources, self.num_targets)):
            _check_range(f"edge_index[{end}]", edge_index[end], count, f"{_ENDS[end]}s")
        self.edge_type, self.order = edge_type.sort(stable=True)
        self.edge_index = edge_index[:, self.order]
        counts = torch.bincount(edge_type, minlength=num_relations)
        self.edge_ptr = torch.zeros(num_relations + 1, dtype=torch.int64)
        self.edge_ptr[1:] = counts.cumsum(0)
        self.source, self.target = self.edge_index
        self.kept: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return self.edge_index.size(1)

    @classmethod
    def of(cls, edge_index: Tensor, edge_type: Tensor, **options: Any) -> RelationalGraph:
        """The graph of these tensors, as it was made before while they live and do not change."""
        key = tuple(
            (name, _token(value) if isinstance(value, Tensor) else value)
            for name, value in sorted(options.items())
        )
        return _remembered(
            (edge_index, edge_type), key, lambda: cls(edge_index, edge_type, **options)
        )

    @classmethod
    def from_hetero(
        cls,
        edge_index_dict: Mapping[EdgeType, Tensor],
        num_nodes: Mapping[str, int],
        edge_types: Sequence[EdgeType],
    ) -> RelationalGraph:
        """One graph out of a dict of PyG, remembered as ``of`` does.

        Args:
            edge_index_dict: of each edge type (2, edges) int64; a type may be absent.
            num_nodes: of each node type, whose nodes stand one type after the other.
            edge_types: their order, which numbers the relations.

        Raises:
            ArgumentError: edges of a type that is none of ``edge_types``, or between nodes of none.
            RowIndexError: a node that its type does not have.

        >>> edges = {("a", "to", "b"): torch.tensor([[1], [0]])}
        >>> graph = RelationalGraph.from_hetero(edges, {"a": 2, "b": 1}, list(edges))
        >>> graph.edge_index.tolist(), graph.node_ptr.tolist()
        ([[1], [2]], [0, 2, 3])
        """
        first = {name: sum([*num_nodes.values()][:i]) for i, name in enumerate(num_nodes)}
        node_ptr = torch.tensor([*first.values(), sum(num_nodes.values())])
        unknown = [each for each in edge_index_dict if each not in edge_types]
        if unknown:
            raise ArgumentError(f"edge_index_dict: {unknown[0]} is not among edge_types")
        given = [(each, edge_index_dict[each]) for each in edge_types if each in edge_index_dict]

        def make() -> RelationalGraph:
            ends, types = [], []
            for kind, edge_index in given:
                source, _, target = kind
                for end, node in enumerate((source, target)):
                    if node not in first:
                        raise ArgumentError(f"edge_index_dict: {kind} has no nodes in num_nodes")
                    _check_range(f"{kind}[{end}]", edge_index[end], num_nodes[node], "nodes")
                offsets = torch.tensor([[first[source]], [first[target]]], device=edge_index.device)
                ends.append(edge_index + offsets)
                types.append(
                    edge_index.new_full((edge_index.size(1),), list(edge_types).index(kind))
                )
            return cls(
                torch.cat(ends, 1) if ends else torch.empty(2, 0, dtype=torch.int64),
                torch.cat(types) if ends else torch.empty(0, dtype=torch.int64),
                num_relations=len(edge_types),
                num_sources=int(node_ptr[-1]),
                node_ptr=node_ptr,
            )

        tensors = tuple(edge_index for _, edge_index in given)
        key = (tuple(kind for kind, _ in given), tuple(num_nodes.items()), tuple(edge_types))
        return _remembered(tensors, key, make)

    def to_given(self, x: Tensor) -> Tensor:
        """(E, …) values of edges in the order in which the edges were given."""
        return torch.empty_like(x).index_copy(0, self.order, x)

    def from_given(self, x: Tensor) -> Tensor:
        """(E, …) values of edges in the given order, in that of this graph."""
        return x[self.order]

    @cached_property
    def sources_of_types(self) -> Pairs:
        """The distinct (source, edge type)."""
        return self._pairs(0, self.num_sources)

    @cached_property
    def targets_of_types(self) -> Pairs:
        """The distinct (target, edge type)."""
        return self._pairs(1, self.num_targets)

    @cached_property
    def pair_nodes(self) -> Tensor:
        """(2, M) int64: edges from each of ``targets_of_types`` to its node."""
        node = self.targets_of_types.node
        return torch.stack([torch.arange(len(node), device=node.device), node])

    @cached_property
    def degree_of_pairs(self) -> Tensor:
        """(M,) int64: the edges of each of ``targets_of_types``."""
        pairs = self.targets_of_types
        return torch.bincount(pairs.of_edge, minlength=len(pairs))

    def _pairs(self, end: int, num_nodes: int) -> Pairs:
        key, of_edge = torch.unique(
            self.edge_type * num_nodes + self.edge_index[end], return_inverse=True
        )
        kind = key // max(num_nodes, 1)
        ptr = torch.zeros(self.num_relations + 1, dtype=torch.int64)
        ptr[1:] = torch.bincount(kind, minlength=self.num_relations).cumsum(0)
        ends = list(self.edge_index)
        ends[end] = of_edge
        edges = torch.stack(ends)
        return Pairs(key - kind * num_nodes, ptr, edges[end], edges)


def _check_edges(edge_index: Tensor, edge_type: Tensor) -> None:
    if edge_index.dim() != 2 or edge_index.size(0) != 2:
        raise ArgumentError(f"edge_index: of shape {tuple(edge_index.shape)}, expected (2, edges)")
    if edge_type.shape != edge_index.shape[1:]:
        raise ArgumentError(
            f"edge_type: of shape {tuple(edge_type.shape)}, expected ({edge_index.size(1)},), a "
            "type for each edge of edge_index"
        )
    for name, ids in (("edge_index", edge_index), ("edge_type", edge_type)):
        if ids.dtype != torch.int64:
            raise DTypeError(f"{name}: holds {ids.dtype}, expected torch.int64; call .long()")
    if edge_index.device != edge_type.device:
        raise DeviceError(
            f"edge_type: is on {edge_type.device}, but edge_index is on {edge_index.device}"
        )


def _check_node_ptr(node_ptr: Tensor | None, num_sources: int, num_targets: int) -> Tensor:
    if node_ptr is None:
        return torch.tensor([0, num_sources])
    node_ptr = node_ptr.cpu()
    ends = (node_ptr[0].item(), node_ptr[-1].item()) if node_ptr.numel() else None
    if ends != (0, num_sources) or num_targets != num_sources or (node_ptr.diff() < 0).any():
        raise ArgumentError(
            f"node_ptr: {node_ptr.tolist()}, expected to ascend from 0 to {num_sources}, the nodes "
            "at both ends of the edges"
        )
    return node_ptr


def _check_range(name: str, ids: Tensor, end: int, what: str) -> None:
    outside = ((ids < 0) | (ids >= end)).nonzero()
    if len(outside):
        at = int(outside[0])
        raise RowIndexError(
            f"{name}: {int(ids[at])} at position {at}, expected 0 to {end - 1}: there are {end} "
            f"{what}"
        )


# Graphs remembered by their tensors ------------------------------------------------------------


class _Token:
    """Stands for a tensor in its present state, and does not keep it alive."""


_tokens: KnownOf[_Token] = KnownOf()
_graphs: KnownOf[tuple[Any, RelationalGraph]] = KnownOf()


def _remembered(
    tensors: Sequence[Tensor], options: Any, make: Callable[[], RelationalGraph]
) -> RelationalGraph:
    """The last graph made of the first tensor, if all tensors and options are the same again."""
    if not tensors:
        return make()
    key = (tuple(map(_token, tensors)), options)
    found = _graphs.of(tensors[0])
    if found is not None and found[0] == key:
        return found[1]
    graph = make()
    _graphs.remember(tensors[0], (key, graph))
    return graph


def _token(tensor: Tensor) -> _Token:
    token = _tokens.of(tensor)
    if token is None:
        token = _Token()
        _tokens.remember(tensor, token)
    return token

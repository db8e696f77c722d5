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
from gnnsys.rel.pairing import number_pairs, sort_by_type
from gnnsys.rel.program import Counts

__all__ = ["Pairs", "RelationalGraph"]

# E edges, T relations (edge types), M distinct pairs of a node and the type of one of its edges.

EdgeType = tuple[str, str, str]

# What is remembered outlives a block of inference mode, whose tensors are of no use after it.
_normally = torch.inference_mode(False)


@dataclass(frozen=True)
class Pairs:
    """The distinct pairs (node, edge type) of one end of the edges, sorted by type."""

    node: Tensor
    """(M,) int64: of each pair."""

    ptr: Tensor
    """(T + 1,) int64 on the CPU: the pairs of type t are ptr[t] … ptr[t + 1] - 1."""

    of_edge: Tensor
    """(E,) int64: the pair of each edge."""

    edges: Tensor
    """(2, E) int64: the edges, with pairs in place of the nodes of this end."""

    def __len__(self) -> int:
        return len(self.node)

    @property
    def ratio(self) -> float:
        """M / E: what is left of work that is done for each pair, not for each edge."""
        return len(self) / max(len(self.of_edge), 1)


class RelationalGraph:
    """A graph with typed edges, and what layers over it need, each computed when first asked for.

    Nothing of it may be changed. Its edges are sorted by type, those of one type in the order in
    which they were given.

    Args:
        edge_index: (2, E) int64, sources above targets.
        edge_type: (E,) int64 there, too: from 0 to ``num_relations`` - 1.
        num_relations: T; some may have no edges.
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

    @_normally
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
        num_targets = num_sources if num_targets is None else num_targets
        _check_edge_index("edge_index", edge_index)
        _check_edge_type(edge_type, edge_index)
        _check_counts(num_relations=num_relations, num_sources=num_sources, num_targets=num_targets)
        if node_ptr is None:
            node_ptr = _starts([num_sources])
        else:
            _check_node_ptr(node_ptr, num_sources, num_targets)
        ptr = torch.empty(num_relations + 1, dtype=torch.int64, device="cpu")
        rows, order = edge_index.new_empty(4, len(edge_type)), torch.empty_like(edge_type)
        sizes = (num_sources, num_targets)
        is_sorted = sort_by_type(edge_index, edge_type, sizes, ptr, (rows[0], rows[2], order))
        if is_sorted is None:
            _check_ids("edge_type", edge_type, num_relations, "relations")
            _check_ids("edge_index: source", edge_index[0], num_sources, "sources")
            _check_ids("edge_index: target", edge_index[1], num_targets, "targets")
        self._keep(rows, ptr, node_ptr.to("cpu", copy=True), sizes, None if is_sorted else order)

    def _keep(
        self,
        rows: Tensor,
        edge_ptr: Tensor,
        node_ptr: Tensor,
        num_nodes: tuple[int, int],
        order: Tensor | None,
    ) -> None:
        # (4, E): of each edge the source, its pair with the type, the target, its pair. So each two
        # rows that layers read as a list of edges are one view; those of pairs are filled later.
        self._rows = rows
        self._order = order
        self.num_relations = len(edge_ptr) - 1
        self.num_sources, self.num_targets = num_nodes
        self.edge_index = rows[0::2]
        """(2, E) int64: sources above targets."""
        self.source, self.target = rows[0], rows[2]
        self.edge_ptr = edge_ptr
        """(T + 1,) int64 on the CPU: edges of type t are edge_ptr[t] … edge_ptr[t + 1] - 1."""
        self.node_ptr = node_ptr
        """(node types + 1,) int64 on the CPU."""
        self.kept: dict[str, Tensor] = {}
        """What executors have worked out of it."""

    def __len__(self) -> int:
        return self._rows.size(1)

    # Ways to one --------------------------------------------------------------------------------

    @classmethod
    def of(cls, edge_index: Tensor, edge_type: Tensor, **options: Any) -> RelationalGraph:
        """The graph of these tensors, made once while they live and do not change.

        >>> edge_index, edge_type = torch.tensor([[0], [1]]), torch.tensor([0])
        >>> options = {"num_relations": 1, "num_sources": 2}
        >>> graph = RelationalGraph.of(edge_index, edge_type, **options)
        >>> graph is RelationalGraph.of(edge_index, edge_type, **options)
        True
        """
        tensors = {name: each for name, each in options.items() if isinstance(each, Tensor)}
        others = {name: each for name, each in options.items() if name not in tensors}
        return _remembered(
            (edge_index, edge_type, *tensors.values()),
            (*tensors, others),
            lambda: cls(edge_index, edge_type, **options),
        )

    @classmethod
    def from_hetero(
        cls,
        edge_index_dict: Mapping[EdgeType, Tensor],
        num_nodes: Mapping[str, int],
        edge_types: Sequence[EdgeType],
        *,
        device: torch.device | None = None,
    ) -> RelationalGraph:
        """One graph out of PyG's dict of edges, made once while its tensors live and do not change.

        Args:
            edge_index_dict: of each edge type (2, edges) int64; a type may be absent.
            num_nodes: of each node type, whose nodes stand one type after the other.
            edge_types: in their order, which numbers the relations.
            device: of a graph for which no edges are given at all; None for the CPU.

        Raises:
            ArgumentError: edges of a type that is none of ``edge_types``, or between nodes of a
                type that is not in ``num_nodes``; edges of another shape.
            DTypeError: ids that are not int64.
            DeviceError: edges on several devices.
            RowIndexError: a node that its type does not have.

        >>> edges = {("a", "to", "b"): torch.tensor([[1], [0]])}
        >>> graph = RelationalGraph.from_hetero(edges, {"a": 2, "b": 1}, list(edges))
        >>> graph.edge_index.tolist(), graph.node_ptr.tolist()
        ([[1], [2]], [0, 2, 3])
        """
        present = [each for each in edge_types if each in edge_index_dict]
        if len(present) < len(edge_index_dict):
            unknown = next(each for each in edge_index_dict if each not in edge_types)
            raise ArgumentError(f"edge_index_dict: {unknown} is not among edge_types")
        return _remembered(
            tuple(edge_index_dict[each] for each in present),
            (present, [*num_nodes.items()], [*edge_types]),
            lambda: cls._joined(edge_index_dict, num_nodes, edge_types, device),
        )

    @classmethod
    @_normally
    def _joined(
        cls,
        edge_index_dict: Mapping[EdgeType, Tensor],
        num_nodes: Mapping[str, int],
        edge_types: Sequence[EdgeType],
        device: torch.device | None,
    ) -> RelationalGraph:
        _check_hetero(edge_index_dict, num_nodes)
        node_ptr = _starts([*num_nodes.values()])
        first = dict(zip(num_nodes, node_ptr.tolist(), strict=False))
        given = [edge_index_dict.get(each) for each in edge_types]
        edge_ptr = _starts([0 if each is None else each.size(1) for each in given])
        like = next((each for each in given if each is not None), edge_ptr.to(device or "cpu"))
        rows = like.new_empty(4, int(edge_ptr[-1]))
        borders = edge_ptr.tolist()
        for t, edge_index in enumerate(given):
            if edge_index is not None:
                for end, row in enumerate(rows[0::2, borders[t] : borders[t + 1]]):
                    torch.add(edge_index[end], first[edge_types[t][2 * end]], out=row)
        graph = cls.__new__(cls)
        graph._keep(rows, edge_ptr, node_ptr, (int(node_ptr[-1]),) * 2, None)
        return graph

    # Of each edge -------------------------------------------------------------------------------

    @cached_property
    @_normally
    def edge_type(self) -> Tensor:
        """(E,) int64, ascending."""
        types = torch.arange(self.num_relations, device=self._rows.device)
        counts = self.edge_ptr.diff().to(types.device)
        return types.repeat_interleave(counts, output_size=len(self))

    @cached_property
    @_normally
    def order(self) -> Tensor:
        """(E,) int64: the place of each edge among those given."""
        if self._order is not None:
            return self._order
        return torch.arange(len(self), device=self._rows.device)

    def to_given(self, x: Tensor) -> Tensor:
        """(E, …) values of edges in the order in which the edges were given."""
        return x if self._order is None else torch.empty_like(x).index_copy(0, self._order, x)

    def from_given(self, x: Tensor) -> Tensor:
        """(E, …) values of edges as they were given, in the order of this graph."""
        return x if self._order is None else x.index_select(0, self._order)

    # Of each pair -------------------------------------------------------------------------------

    @cached_property
    @_normally
    def sources_of_types(self) -> Pairs:
        """The distinct (source, edge type); their ``edges`` lead from pairs to targets."""
        return self._pairs(0, self.num_sources, self._rows[1:3])

    @cached_property
    @_normally
    def targets_of_types(self) -> Pairs:
        """The distinct (target, edge type); their ``edges`` lead from sources to pairs."""
        return self._pairs(1, self.num_targets, self._rows[0::3])

    def _pairs(self, end: int, num_nodes: int, edges: Tensor) -> Pairs:
        # Data: that rows are filled which nothing has read is no change of those beside them.
        node, ptr = number_pairs(self.edge_index[end], self.edge_ptr, num_nodes, edges.data[end])
        return Pairs(node, ptr, edges[end], edges)

    @cached_property
    @_normally
    def pair_nodes(self) -> Tensor:
        """(2, M) int64: edges from each of ``targets_of_types`` to its node."""
        node = self.targets_of_types.node
        return torch.stack([torch.arange(len(node), device=node.device), node])

    @cached_property
    @_normally
    def degree_of_pairs(self) -> Tensor:
        """(M,) int64: how many edges each of ``targets_of_types`` has."""
        pairs = self.targets_of_types
        return torch.bincount(pairs.of_edge, minlength=len(pairs))

    def counts(self) -> Counts:
        """How many rows the values of programs have."""
        return Counts(
            sources=self.num_sources,
            targets=self.num_targets,
            edges=len(self),
            source_pairs=len(self.sources_of_types),
            target_pairs=len(self.targets_of_types),
            edge_types=self.num_relations,
            node_types=len(self.node_ptr) - 1,
        )


def _starts(sizes: Sequence[int]) -> Tensor:
    return torch.tensor([0, *sizes], device="cpu").cumsum(0)


# Checks ------------------------------------------------------------------------------------------


def _check_edge_index(name: str, edge_index: Tensor) -> None:
    if edge_index.dim() != 2 or edge_index.size(0) != 2:
        raise ArgumentError(f"{name}: of shape {tuple(edge_index.shape)}, expected (2, edges)")
    _check_dtype(name, edge_index)


def _check_edge_type(edge_type: Tensor, edge_index: Tensor) -> None:
    if edge_type.shape != edge_index.shape[1:]:
        raise ArgumentError(
            f"edge_type: of shape {tuple(edge_type.shape)}, expected ({edge_index.size(1)},): a "
            "type for each edge of edge_index"
        )
    _check_dtype("edge_type", edge_type)
    if edge_type.device != edge_index.device:
        raise DeviceError(
            f"edge_type: is on {edge_type.device}, but edge_index is on {edge_index.device}"
        )


def _check_dtype(name: str, ids: Tensor) -> None:
    if ids.dtype != torch.int64:
        raise DTypeError(f"{name}: holds {ids.dtype}, expected torch.int64; call .long()")


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 0:
            raise ArgumentError(f"{name}: {count}, expected at least 0")


def _check_node_ptr(node_ptr: Tensor, num_sources: int, num_targets: int) -> None:
    _check_dtype("node_ptr", node_ptr)
    starts = node_ptr.tolist() if node_ptr.dim() == 1 else []
    if num_targets != num_sources:
        raise ArgumentError(
            f"node_ptr: needs one set of nodes, got {num_sources} sources and {num_targets} targets"
        )
    if starts != sorted(starts) or len(starts) < 2 or (starts[0], starts[-1]) != (0, num_sources):
        raise ArgumentError(
            f"node_ptr: {node_ptr.tolist()}, expected to ascend from 0 to {num_sources}, the nodes"
        )


def _check_ids(name: str, ids: Tensor, end: int, what: str) -> None:
    outside = ((ids < 0) | (ids >= end)).nonzero()
    if len(outside):
        at = int(outside[0])
        raise RowIndexError(
            f"{name} {int(ids[at])} at position {at}; expected 0 to {end - 1}, as there are {end} "
            f"{what}"
        )


def _check_hetero(edge_index_dict: Mapping[EdgeType, Tensor], num_nodes: Mapping[str, int]) -> None:
    """By one look at all edges, where they fit."""
    _check_counts(**{f"num_nodes[{name!r}]": count for name, count in num_nodes.items()})
    devices = {each.device for each in edge_index_dict.values()}
    if len(devices) > 1:
        raise DeviceError(f"edge_index_dict: edges are on {sorted(map(str, devices))}; move them")
    kinds: list[EdgeType] = []
    bounds: list[Tensor] = []
    for kind, edge_index in edge_index_dict.items():
        name = f"edge_index_dict[{kind}]"
        _check_edge_index(name, edge_index)
        missing = {kind[0], kind[2]} - num_nodes.keys()
        if missing:
            raise ArgumentError(f"{name}: num_nodes has no {min(missing)!r}")
        if edge_index.size(1):
            kinds.append(kind)
            bounds += edge_index.aminmax(dim=1)
    found = torch.stack(bounds).tolist() if bounds else []
    for kind, least, most in zip(kinds, found[::2], found[1::2], strict=True):
        for end, node in enumerate((kind[0], kind[2])):
            if least[end] < 0 or most[end] >= num_nodes[node]:
                name = f"edge_index_dict[{kind}]: {('source', 'target')[end]}"
                ids = edge_index_dict[kind][end]
                _check_ids(name, ids, num_nodes[node], f"nodes of {node!r}")


# Graphs remembered by their tensors --------------------------------------------------------------


class _Token:
    """Stands for a tensor in its present state, and does not keep it alive."""


_tokens: KnownOf[_Token] = KnownOf()
_graphs: KnownOf[tuple[Any, RelationalGraph]] = KnownOf()


def _remembered(
    tensors: Sequence[Tensor], options: Any, make: Callable[[], RelationalGraph]
) -> RelationalGraph:
    """The last graph of the first tensor, if all tensors and options are the same again."""
    if not tensors:
        return make()
    key = ([*map(_token, tensors)], options)
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

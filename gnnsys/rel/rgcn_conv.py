"""``RGCNConv`` of PyG as a program: sums over neighbours with a matrix for each edge type."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar, TypeGuard

import torch
import torch_geometric.nn
from torch import Tensor
from torch_geometric.nn.aggr import MeanAggregation, SumAggregation
from torch_geometric.typing import OptTensor

from gnnsys.errors import ArgumentError, RowIndexError
from gnnsys.message_passing import sum_neighbors
from gnnsys.message_passing.known import KnownOf
from gnnsys.rel.graph import RelationalGraph
from gnnsys.rel.layer import Call, RelationalLayer, run_uncompiled, typed_graph
from gnnsys.rel.program import Builder, Program, Value
from gnnsys.rel.rows import reciprocal_degrees

__all__ = ["RGCNConv"]

# S sources, D targets, E edges, T relations; K columns of x, C of the result; B blocks or bases.

_READ = 8
"""Multiplications of a matrix product that take as long as an element that is read or written."""


class RGCNConv(RelationalLayer, torch_geometric.nn.RGCNConv):
    """A drop-in for PyG's ``RGCNConv``: its parameters, options and results, without its loop.

    ``out[t] = x[t] @ root + bias`` and for each relation r the mean (or sum) over its edges from s
    to t of ``x[s] @ weight[r]`` (Schlichtkrull et al., "Modeling Relational Data with Graph
    Convolutional Networks", ESWC 2018). The passes decide by the graph whether rows are multiplied
    once for each distinct (source, r) or, after the sum, once for each distinct (target, r).

    ``edge_index`` may also be a ``RelationalGraph``, without ``edge_type``. Results have the
    element type of the rows and parameters: float32, float64 or bfloat16. Under torch.compile the
    layer runs uncompiled, between two graphs. Other aggregations than "mean" and "add",
    ``flow="target_to_source"``, sparse matrices of edges, hooks on messages and explainers get
    PyG's own forward, which a warning says once.

    Args:
        args, kwargs: those of ``torch_geometric.nn.RGCNConv``.
        passes: of ``gnnsys.rel.passes.PASSES``, those by which the program is made cheaper.
        backend: of ``gnnsys.rel.segments.BACKENDS``, what multiplies by ``weight``.

    Raises:
        ArgumentError: an unknown pass or backend; in a call, types that are missing, rows of
            another width.
        DTypeError: in a call, rows of another element type than the parameters.
        RowIndexError: in a call, a type, a node or an id of a row outside its range.

    >>> conv = RGCNConv(4, 8, num_relations=2)
    >>> edge_index, edge_type = torch.tensor([[0, 1, 2], [1, 2, 0]]), torch.tensor([0, 1, 0])
    >>> conv(torch.ones(3, 4), edge_index, edge_type).shape
    torch.Size([3, 8])
    """

    _pyg = torch_geometric.nn.RGCNConv

    propagate_type: ClassVar = {"x": Tensor, "edge_type_ptr": OptTensor}
    """As PyG's own forward calls ``propagate``, which PyG reads in the source of the class else."""

    def forward(self, x: Any, edge_index: Any, edge_type: Tensor | None = None) -> Tensor:
        """See ``torch_geometric.nn.RGCNConv.forward``."""
        if torch.compiler.is_compiling():
            compiled: Tensor = run_uncompiled(RGCNConv.forward, self, x, edge_index, edge_type)
            return compiled
        reason = self._why_not(x, edge_index, edge_type)
        if reason:
            self._say(reason, edge_index)
            result: Tensor = super().forward(x, edge_index, edge_type)
            return result
        source, target = self._ends(x)
        graph = self._graph(source, target, edge_index, edge_type)
        if _are_rows(source):
            out = self._run(self._call_of(source, target, graph))
            if out.dim() == 3:
                out = out.flatten(1) if self.num_bases is None else out.sum(1)
        else:
            out = self._sum_of_ids(source, graph)
        return self._add_root(out, target)

    def _call(self, x: Any, edge_index: Any, edge_type: Tensor | None = None) -> Call | str:
        reason = self._why_not(x, edge_index, edge_type)
        if reason:
            return reason
        source, target = self._ends(x)
        if not _are_rows(source):
            return "rows of the weights are summed, nothing is multiplied"
        graph = self._graph(source, target, edge_index, edge_type)
        return self._call_of(source, target, graph)

    # What is given --------------------------------------------------------------------------------

    def _why_not(self, x: Any, *edges: Any) -> str:
        if type(self.aggr_module) not in (MeanAggregation, SumAggregation):
            return f"aggr={self.aggr!r} is neither mean nor add"
        ends = x if isinstance(x, tuple) else (x,)
        return self._why_not_these([each for each in ends if each is not None], edges)

    def _ends(self, x: Any) -> tuple[Tensor | None, Tensor | None]:
        """Rows or ids of the sources and of the targets; None for the ids of all rows."""
        source, target = x if isinstance(x, tuple) else (x, x)
        if _are_rows(source) != _are_rows(target):
            raise ArgumentError("x: rows of one end of the edges and ids of the other")
        if _are_rows(source):
            self._check_rows("x", source, self.in_channels_l, self.weight.dtype)
            if self.root is not None:
                self._check_rows("x", target, self.root.size(0), self.weight.dtype)
        elif self.num_blocks is not None:
            raise ArgumentError("x: ids of rows, expected rows: num_blocks are of rows alone")
        elif target is not None and target is not source and self.root is not None:
            _check_ids(target, self.root.size(0))
        return source, target

    def _graph(
        self, source: Tensor | None, target: Tensor | None, edge_index: Tensor, edge_type: Any
    ) -> RelationalGraph:
        rows = [self.in_channels_l if each is None else each.size(0) for each in (source, target)]
        one = source is target
        return typed_graph(edge_index, edge_type, self.num_relations, *rows, one=one)

    # What is computed -----------------------------------------------------------------------------

    def _call_of(self, source: Any, target: Any, graph: RelationalGraph) -> Call:
        layer = (self.in_channels_l, self.out_channels, self._is_mean(), target is not source)
        values = {"x": source, "weight": self.weight}
        if self.num_blocks is not None:
            values["x"] = source.unflatten(1, (self.num_blocks, -1))
            return Call(_program_of_blocks(*layer, self.num_blocks), graph, values)
        if self.num_bases is None:
            return Call(_program(*layer), graph, values)
        if self._composes_first(graph):
            values["weight"] = self._composed()
            return Call(_program(*layer), graph, values)
        values["weight"] = self.weight.transpose(0, 1).flatten(1)  # (K, B * C)
        values["comp"] = self.comp
        return Call(_program_of_bases(*layer, self.num_bases), graph, values)

    def _is_mean(self) -> bool:
        return type(self.aggr_module) is MeanAggregation

    def _composed(self) -> Tensor:
        """(T, K, C): the matrices of the relations out of bases."""
        composed: Tensor = self.comp @ self.weight.flatten(1)
        return composed.view(-1, *self.weight.shape[1:])

    def _composes_first(self, graph: RelationalGraph) -> bool:
        """Whether matrices of relations are less work than sums of the products with all bases."""
        counts = graph.counts()
        pairs = min(counts.source_pairs, counts.target_pairs)
        of_type = self.num_bases + _READ
        by_matrices = (counts.edge_types * of_type + pairs) * self.in_channels_l
        by_bases = (counts.sources * self.in_channels_l + _READ * counts.edges) * self.num_bases
        return bool(by_matrices <= by_bases)

    def _sum_of_ids(self, ids: Tensor | None, graph: RelationalGraph) -> Tensor:
        """Sums of rows of the weights, as if ``x`` were rows of an identity matrix."""
        edges = _edges_of_ids(graph, ids, self.in_channels_l)
        weight: Tensor = self.weight
        if self._is_mean():
            scale = reciprocal_degrees(graph, weight)[graph.targets_of_types.of_edge].unsqueeze(1)
        else:
            scale = torch.ones(len(graph), 1, dtype=weight.dtype, device=weight.device)
        if self.num_bases is None or self.num_relations * self.in_channels_l < len(graph):
            rows = (weight if self.num_bases is None else self._composed()).flatten(0, 1)
            return sum_neighbors(rows, edges.of_types, scale, num_nodes=graph.num_targets)
        scale = scale * self.comp.index_select(0, graph.edge_type)
        of_bases = weight.transpose(0, 1)  # (K, B, C)
        return sum_neighbors(of_bases, edges.of_ids, scale, num_nodes=graph.num_targets).sum(1)

    def _add_root(self, out: Tensor, target: Tensor | None) -> Tensor:
        if self.root is not None:
            if _are_rows(target):
                out = torch.addmm(out, target, self.root)
            else:
                out = out + (self.root if target is None else self.root[target])
        return out if self.bias is None else out + self.bias


def _are_rows(x: Tensor | None) -> TypeGuard[Tensor]:
    return x is not None and x.is_floating_point()


# Programs -----------------------------------------------------------------------------------------


def _begin(mean: bool, pair: bool, *shape: int) -> tuple[Builder, Value, Value | None]:
    """A builder, the rows of each edge's source and the weights of the sum."""
    build = Builder()
    x = build.sources("x", *shape) if pair else build.nodes("x", *shape)
    return build, build.at_source(x), build.reciprocal_degree() if mean else None


@functools.cache
def _program(width: int, channels: int, mean: bool, pair: bool) -> Program:
    build, x, scale = _begin(mean, pair, width)
    message = build.linear(x, build.weight("weight", width, channels))
    return build.build(build.sum(message, scale))


@functools.cache
def _program_of_blocks(width: int, channels: int, mean: bool, pair: bool, blocks: int) -> Program:
    build, x, scale = _begin(mean, pair, blocks, width // blocks)
    weight = build.weight("weight", blocks, width // blocks, channels // blocks)
    return build.build(build.sum(build.linear(x, weight), scale))


@functools.cache
def _program_of_bases(width: int, channels: int, mean: bool, pair: bool, bases: int) -> Program:
    """Its result is (B, C), to be summed over the bases."""
    build, x, scale = _begin(mean, pair, width)
    weight = build.weight("weight", width, bases * channels, by=None)
    message = build.reshape(build.linear(x, weight), bases, channels)
    comp = build.weight("comp", bases)
    return build.build(build.sum(message, comp if scale is None else build.mul(comp, scale)))


# Edges from rows of weights -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Edges:
    """(2, E) each, to the targets: from ids, and from rows of (T * K) that have type and id."""

    of_ids: Tensor
    of_types: Tensor


_known: KnownOf[tuple[RelationalGraph, int, _Edges]] = KnownOf()
"""Of a tensor of ids: the edges that it was last read along."""


def _edges_of_ids(graph: RelationalGraph, ids: Tensor | None, num_ids: int) -> _Edges:
    if ids is None:
        name = f"rows of {num_ids} ids"
        if name not in graph.kept:
            graph.kept[name] = _make_edges(graph, None, num_ids).of_types
        return _Edges(graph.edge_index, graph.kept[name])
    found = _known.of(ids)
    if found is None or found[0] is not graph or found[1] != num_ids:
        _check_ids(ids, num_ids)
        found = (graph, num_ids, _make_edges(graph, ids, num_ids))
        _known.remember(ids, found)
    return found[2]


@torch.inference_mode(False)  # what is remembered outlives a block of inference mode
def _make_edges(graph: RelationalGraph, ids: Tensor | None, num_ids: int) -> _Edges:
    source = graph.source if ids is None else ids[graph.source]
    rows = graph.edge_type * num_ids + source
    return _Edges(torch.stack([source, graph.target]), torch.stack([rows, graph.target]))


def _check_ids(ids: Tensor, num_ids: int) -> None:
    outside = ((ids < 0) | (ids >= num_ids)).nonzero()
    if len(outside):
        raise RowIndexError(
            f"x: {int(ids[outside[0]])} at position {int(outside[0])}, expected ids from 0 to "
            f"{num_ids - 1}: in_channels is {num_ids}"
        )

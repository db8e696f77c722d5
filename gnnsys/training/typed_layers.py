"""Steps of exact inference over node types, and whether a model may be computed by them.

A step computes what a model makes of one node type's rows once the graph layers below are done.
Invariant: a model is computed by steps only if, on a few random rows and edges of its types, these
give what the model gives, and blocks of nodes give what all nodes give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch_geometric.data import HeteroData
from torch_geometric.nn import GCNConv
from torch_geometric.sampler.base import NumNeighbors
from torch_geometric.typing import EdgeType, NodeType

from gnnsys.errors import ArgumentError, UnsupportedError
from gnnsys.loaders import NeighborSampler
from gnnsys.training.layer_checks import check_hooks, same_rows
from gnnsys.training.model_layers import Block, degree_scale, make_convolution
from gnnsys.training.typed_convs import TYPED_CONVS
from gnnsys.training.typed_trace import TracedModel, TypedConvolution

__all__ = ["Step", "TypedLayers", "plan_steps", "trace_model"]

_TRIED = 8
"""Nodes of each type that a model is tried on."""
_TRIED_EDGES = 12
"""Edges of each type, likewise."""
_PARTS = ((0, 3), (3, _TRIED))

Read = Callable[[Node, Tensor, int], Tensor]
"""Rows of a value at some ids, of which so many from the first on are a range."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What is computed of the nodes of one type together."""

    depth: int
    """Graph layers below its results."""

    kind: NodeType
    """Of the nodes."""

    values: tuple[Node, ...]
    """That it computes, in order."""

    relations: tuple[EdgeType, ...]
    """Whose edges its graph layers follow."""

    gathered: tuple[Node, ...]
    """Earlier values that it takes of neighbours."""

    own: tuple[Node, ...]
    """Earlier values that it takes of the nodes alone."""

    stored: tuple[Node, ...]
    """Of its values, those that later steps take, or the user."""


def plan_steps(traced: TracedModel) -> list[Step]:
    """The steps of a model, each after those whose results it takes."""
    kinds = dict.fromkeys(traced.kinds.values())
    steps = [
        _plan_step(traced, depth, kind)
        for depth in range(1 + max(traced.depths.values()))
        for kind in kinds
    ]
    return [step for step in steps if step.values]


def _plan_step(traced: TracedModel, depth: int, kind: NodeType) -> Step:
    values = tuple(
        value
        for value, its_kind in traced.kinds.items()
        if its_kind == kind and traced.depths[value] == depth and value not in traced.inputs
    )
    calls = [traced.convolutions[value] for value in values if value in traced.convolutions]
    gathered = dict.fromkeys(value for call in calls for value in call.sources.values())
    taken = [call.own for call in calls]
    for value in values:
        if value not in traced.convolutions:
            taken += [each for each in value.all_input_nodes if each in traced.kinds]
    own = dict.fromkeys(value for value in taken if value not in {*gathered, *values})
    return Step(
        depth=depth,
        kind=kind,
        values=values,
        relations=tuple(dict.fromkeys(each for call in calls for each in call.relations)),
        gathered=tuple(gathered),
        own=tuple(own),
        stored=tuple(value for value in values if traced.last_use(value) > depth),
    )


class TypedLayers:
    """Computes steps on blocks of nodes.

    Args:
        traced: the model.
        sampler: of the graph; steps set its fanouts.
        device: where the model computes.
    """

    def __init__(self, traced: TracedModel, sampler: NeighborSampler, device: torch.device) -> None:
        self.traced, self.sampler, self._device = traced, sampler, device
        self._scales = {
            value: degree_scale(call.conv, call.name, sampler.graphs[call.relations[0]])
            for value, call in traced.convolutions.items()
            if isinstance(call.conv, GCNConv) and call.conv.normalize
        }

    def compute(self, step: Step, first: int, last: int, read: Read) -> dict[Node, Any]:
        """All values of a step for the nodes [first, last) of its type."""
        targets = torch.arange(first, last)
        nodes, edges = {step.kind: targets}, {}
        if step.relations:
            taken = {kind: [-1] for kind in step.relations}
            self.sampler.num_neighbors = NumNeighbors(taken, default=[0])
            batch = self.sampler.sample({step.kind: targets}, group=0)
            nodes = batch.node
            edges = {
                kind: torch.stack([batch.row[kind], batch.col[kind]]).to(self._device)
                for kind in step.relations
            }
        rows, values = {}, dict(self.traced.constants)
        for value in (*step.gathered, *step.own):
            kind = self.traced.kinds[value]
            ids = nodes[kind] if value in step.gathered else targets
            in_order = len(targets) if kind == step.kind else 0
            rows[value] = read(value, ids, in_order).to(self._device)
            if kind == step.kind:
                values[value] = rows[value][: len(targets)]
        for value in step.values:
            if value in self.traced.convolutions:
                values[value] = self._convolve(value, rows, edges, nodes[step.kind], len(targets))
            else:
                values[value] = self.traced.compute(value, values)
        return {value: values[value] for value in step.values}

    def _convolve(
        self,
        value: Node,
        rows: Mapping[Node, Tensor],  # those of targets first
        edges: Mapping[EdgeType, Tensor],
        nodes: Tensor,  # of the targets' type
        targets: int,
    ) -> Tensor:
        call = self.traced.convolutions[value]
        if isinstance(call.conv, TYPED_CONVS):
            return _convolve_by_type(call, rows, edges)[:targets]
        (kind,) = call.relations
        source = rows[call.sources[kind[0]]]
        if call.sources.get(call.target) is call.own:
            convolve = make_convolution(call.conv, self._scales.get(value))
            return convolve(
                Block(inputs=source, edge_index=edges[kind], nodes=nodes, targets=targets)
            )
        out: Tensor = call.conv((source, rows[call.own][:targets]), edges[kind])
        return out


def _convolve_by_type(
    call: TypedConvolution, rows: Mapping[Node, Tensor], edges: Mapping[EdgeType, Tensor]
) -> Tensor:
    own = {call.target: rows[call.own]}
    sources = {kind: rows[value] for kind, value in call.sources.items()}
    outputs = call.conv(own | sources, {kind: edges[kind] for kind in call.relations})
    out: Tensor = outputs[call.target]
    return out


def trace_model(
    model: torch.nn.Module,
    x: Mapping[NodeType, Tensor],
    node_types: Sequence[NodeType],
    edge_types: Sequence[EdgeType],
    device: torch.device,
) -> tuple[TracedModel, list[Step], dict[Node, Tensor]]:
    """A model that steps may compute, found out on a few rows and edges of its types.

    Args:
        model: in evaluation mode; weights that it lacks yet, of lazy layers, are made.
        x: rows of each type that has some, which the rows that it is tried on are like.
        node_types: of the graph.
        edge_types: of the graph.
        device: where the model computes.

    Returns:
        The model, its steps, and a few rows like those of each value that they store.

    Raises:
        ArgumentError: a model that fails on such rows and edges.
        UnsupportedError: one that steps may not compute as the model does.
    """
    check_hooks(model)
    draw = torch.Generator().manual_seed(0)
    rows = {kind: _rows_like(each, draw, device) for kind, each in x.items()}
    graph = _random_graph(node_types, edge_types, draw)
    edges = {kind: graph[kind].edge_index.to(device) for kind in edge_types}
    expected = _call(model, {kind: each.clone() for kind, each in rows.items()}, edges)
    traced = TracedModel(model, list(x), edge_types)
    steps = plan_steps(traced)
    layers = TypedLayers(traced, NeighborSampler(graph, [-1], threads=1), device)
    found = {value: rows[kind] for value, kind in traced.inputs.items()}

    def read(value: Node, ids: Tensor, in_order: int) -> Tensor:
        return found[value][ids.to(device)]

    for step in steps:
        whole = layers.compute(step, 0, _TRIED, read)
        parts = [layers.compute(step, first, last, read) for first, last in _PARTS]
        _check_rows(traced, step, whole, parts)
        found |= {value: whole[value] for value in step.stored}
    for key, value in traced.outputs.items():
        one = expected[key] if traced.returns_dict else expected
        if not same_rows(one, found[value]):
            raise UnsupportedError(
                f"model: {type(model).__name__} does not compute its outputs for {key!r} as "
                "torch.fx followed it; operations in place, and decisions by the number of nodes "
                "or the values of rows, are not seen"
            )
    return traced, steps, found


def _rows_like(rows: Tensor, draw: torch.Generator, device: torch.device) -> Tensor:
    """(tried, …) random rows of the same kind, or some of the rows where these are no reals."""
    shape = (_TRIED, *rows.shape[1:])
    if rows.dtype.is_floating_point:
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(device, rows.dtype)
    if len(rows) == 0:
        return torch.zeros(shape, dtype=rows.dtype, device=device)
    return rows[torch.arange(_TRIED) % len(rows)].to(device)


def _random_graph(
    node_types: Sequence[NodeType], edge_types: Sequence[EdgeType], draw: torch.Generator
) -> HeteroData:
    graph = HeteroData()
    for kind in node_types:
        graph[kind].num_nodes = _TRIED
    for edge_type in edge_types:
        edge_index = torch.randint(_TRIED, (2, _TRIED_EDGES), generator=draw)
        graph[edge_type].edge_index = edge_index
    return graph


def _call(model: torch.nn.Module, x: dict[str, Tensor], edges: dict[EdgeType, Tensor]) -> Any:
    try:
        return model(x, edges)
    except Exception as error:  # whatever a user's model raises
        raise ArgumentError(
            f"model: called as model(x_dict, edge_index_dict) with rows of {[*x]} and edges of "
            f"{[*edges]}, it fails: {type(error).__name__}: {error}; types without features need "
            "x={type: rows}"
        ) from error


def _check_rows(
    traced: TracedModel, step: Step, whole: Mapping[Node, Any], parts: Sequence[Mapping[Node, Any]]
) -> None:
    """Refuses a step with results whose rows depend on which others are computed with them."""
    for value in step.stored:
        if not isinstance(whole[value], Tensor):
            raise UnsupportedError(
                f"model: {traced.name_of(value)} is no tensor of rows, and is used behind a later "
                "graph layer"
            )
    wrong = [value for value in step.values if not _is_same(value, whole, parts)]
    if not {*wrong} & {*step.stored}:
        return
    first = next(value for value in wrong if value in step.stored or _is_rows(whole[value]))
    raise UnsupportedError(
        f"model: {traced.name_of(first)}, makes a row of those of all nodes at once, which blocks "
        "of nodes do not have; use batch_norm, a LayerNorm of mode='node' or the like"
    )


def _is_same(value: Node, whole: Mapping[Node, Any], parts: Sequence[Mapping[Node, Any]]) -> bool:
    if not _is_rows(whole[value]):
        return False
    apart = [part[value] for part in parts]
    return all(part.dim() for part in apart) and same_rows(whole[value], torch.cat(apart))


def _is_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.shape[:1] == (_TRIED,)

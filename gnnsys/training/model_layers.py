"""Models of PyG taken apart: a function of blocks of nodes for each of their layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch_geometric.nn import GCNConv, MessagePassing, aggr
from torch_geometric.nn.models.basic_gnn import BasicGNN

from gnnsys.loaders import CSC
from gnnsys.message_passing.self_loops import with_self_loops
from gnnsys.training.layer_checks import (
    BIPARTITE,
    aggregations_of,
    check_cached,
    check_parts,
    edge_chunks,
    find_gnn,
    orient,
)
from gnnsys.training.split_layers import SplitLayer, split_convolution

__all__ = [
    "QUANTILES",
    "Block",
    "Layer",
    "ModelLayer",
    "degree_scale",
    "make_convolution",
    "model_layers",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Some target nodes with all their in-neighbours: what a layer is computed on at a time."""

    inputs: Tensor
    """(nodes, …) inputs of the layer, those of the targets first."""

    edge_index: Tensor
    """(2, edges) from positions in ``inputs`` to those of targets."""

    nodes: Tensor
    """(nodes,) int64 ids in the graph."""

    targets: int
    """How many of the nodes are targets."""


Layer = Callable[[Block], Tensor]
"""Computes the outputs (targets, …) of a block."""


@dataclass(frozen=True, slots=True)
class ModelLayer:
    """A graph convolution, with what follows it; a ``Layer``."""

    convolve: Layer

    after: Callable[[Tensor], Tensor]
    """(n, channels) outputs of the convolution to those of the layer."""

    split: Callable[[], SplitLayer]
    """Takes the layer apart where it sums; raises UnsupportedError where that cannot be."""

    def __call__(self, block: Block) -> Tensor:
        return self.after(self.convolve(block))


QUANTILES = (aggr.QuantileAggregation, aggr.MedianAggregation)


def model_layers(model: torch.nn.Module, graph: CSC) -> list[ModelLayer]:
    """One function for each graph convolution, with what follows it.

    Args:
        model: see ``gnnsys.inference``.
        graph: that the blocks will be of; with its edges reversed where the model's messages flow
            from target to source.

    Raises:
        UnsupportedError: a model of another family, one that joins its layers' outputs, or one with
            a part that blocks of nodes may not compute as the whole graph does.
    """
    gnn = find_gnn(model)
    check_parts(model, gnn)
    return [_make_layer(gnn, number, graph) for number in range(len(gnn.convs))]


def _make_layer(gnn: BasicGNN, number: int, graph: CSC) -> ModelLayer:
    conv, name, scale = gnn.convs[number], f"convs.{number}", None
    if isinstance(conv, GCNConv) and conv.normalize:
        scale = degree_scale(conv, name, graph)
    after = partial(_finish, gnn, number)
    split = partial(split_convolution, conv, name, after, scale)
    return ModelLayer(make_convolution(conv, scale), after, split)


def _finish(gnn: BasicGNN, number: int, x: Tensor) -> Tensor:
    """What ``BasicGNN.forward`` does behind a convolution, in evaluation."""
    is_last = number == gnn.num_layers - 1
    if not is_last or gnn.jk_mode is not None:
        if gnn.act is not None and gnn.act_first:
            x = gnn.act(x)
        x = gnn.norms[number](x)
        if gnn.act is not None and not gnn.act_first:
            x = gnn.act(x)
    return gnn.lin(x) if is_last and hasattr(gnn, "lin") else x


def make_convolution(conv: MessagePassing, scale: Tensor | None) -> Layer:
    """A layer of PyG as a function of blocks.

    Args:
        conv: that ``layer_checks.problem_of`` finds no fault with.
        scale: of ``degree_scale``, of a ``GCNConv`` that weighs edges by degrees.
    """
    convolve = partial(_convolve, conv) if scale is None else _make_gcn(conv, scale)
    kinds = {type(each) for each in aggregations_of(conv.aggr_module)}
    return partial(_convolve_led, convolve) if kinds & {*QUANTILES} else convolve


def _convolve(conv: MessagePassing, block: Block) -> Tensor:
    edge_index = orient(conv, block.edge_index)
    if isinstance(conv, BIPARTITE) and conv.flow == "source_to_target":
        out: Tensor = conv((block.inputs, block.inputs[: block.targets]), edge_index)
        return out
    # The other way round, PyG has roles for the two of a pair that differ from layer to layer.
    return conv(block.inputs, edge_index)[: block.targets]


def _convolve_led(convolve: Layer, block: Block) -> Tensor:
    """With one more target, the first and with two edges.

    PyG's quantiles of a node without edges look at the message before its place, of which there has
    to be one.
    """
    first = torch.zeros((2, 2), dtype=torch.int64, device=block.edge_index.device)
    led = Block(
        inputs=torch.cat([block.inputs[:1], block.inputs]),
        edge_index=torch.cat([first, block.edge_index + 1], 1),
        nodes=torch.cat([block.nodes[:1], block.nodes]),
        targets=block.targets + 1,
    )
    return convolve(led)[1:]


def degree_scale(conv: GCNConv, name: str, graph: CSC) -> Tensor:
    """(nodes,) factors of both ends of an edge (Kipf and Welling, ICLR 2017, eq. 2).

    A block knows the degrees of its targets only: they are counted over the whole graph before.
    Each node has one self loop, whatever loops the graph has.
    """
    degree = graph.indptr.diff().to(torch.float64)
    if conv.add_self_loops:
        degree += 1 - _count_loops(graph)
    scale = torch.where(degree > 0, degree.rsqrt(), 0.0)
    if conv.cached:
        check_cached(conv, name, graph, scale)
    return scale


def _make_gcn(conv: GCNConv, scale: Tensor) -> Layer:
    weighted = object.__new__(type(conv))  # the same layer, but for one option
    weighted.__dict__ = {**conv.__dict__, "normalize": False}

    def run(block: Block) -> Tensor:
        ends = scale[block.nodes.cpu()].to(block.inputs)
        edges = block.edge_index
        if conv.add_self_loops:
            edges = with_self_loops(edges, block.targets).edge_index
        weight = ends[edges[0]] * ends[edges[1]]
        out: Tensor = weighted(block.inputs, orient(conv, edges), weight)[: block.targets]
        return out

    return run


def _count_loops(graph: CSC) -> Tensor:
    """(nodes,) int64 number of self loops at each node."""
    loops = torch.zeros(graph.num_nodes, dtype=torch.int64)
    for source, target in edge_chunks(graph):
        loops += torch.bincount(target[source == target], minlength=graph.num_nodes)
    return loops

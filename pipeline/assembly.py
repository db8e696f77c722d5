"""Puts a rank together: its layers, its part of the graph, its features, and the loss."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data

from gnnsys.errors import ArgumentError
from gnnsys.pipeline.dropout import DropoutContext, set_dropout_context
from gnnsys.pipeline.layer_info import LayerInfo
from gnnsys.pipeline.rank import PipelineRank
from gnnsys.pipeline.stage import Stage
from gnnsys.pipeline.stages import boundary_before
from gnnsys.pipeline.way_graph import WayGraph, check_ways
from gnnsys.ranks.transport import Transport

__all__ = ["build_rank", "check_data", "check_options"]

Loss = Callable[[int, Tensor], Tensor]


def check_options(
    stages: int, ways: int, chunks: int, snapshot_period: int, gamma: float, history: str
) -> None:
    """Raises ArgumentError for options of ``GNNPipe`` that are wrong whatever the graph."""
    counts = {"stages": stages, "ways": ways, "chunks": chunks, "snapshot_period": snapshot_period}
    for name, count in counts.items():
        if count < 1:
            raise ArgumentError(f"{name}({count}): expected at least 1")
    if not math.isfinite(gamma):
        raise ArgumentError(f"boundary_gradient_scale({gamma}): expected a finite number")
    if history not in ("exact", "zeros"):
        raise ArgumentError(f"history({history!r}): expected 'exact' or 'zeros'")
    check_ways(chunks, ways)


def check_data(data: Data) -> None:
    """Raises ArgumentError for data that a full graph cannot be trained with."""
    for name in ("x", "edge_index", "y", "train_mask"):
        if data.get(name) is None:
            raise ArgumentError(f"data: has no {name}; expected x, edge_index, y and train_mask")
    nodes = len(data.x)
    if data.train_mask.shape != (nodes,) or data.train_mask.dtype != torch.bool:
        raise ArgumentError(
            f"data.train_mask: shape {tuple(data.train_mask.shape)} of {data.train_mask.dtype}, "
            f"expected ({nodes},) of torch.bool; choose one split, as in train_mask[:, 0]"
        )
    if len(data.y) != nodes:
        raise ArgumentError(f"data.y: {len(data.y)} labels != {nodes} vertices")
    if not data.train_mask.any():
        raise ArgumentError("data.train_mask: no vertex to train on")


def build_rank(
    modules: nn.ModuleList,
    infos: Sequence[LayerInfo],
    data: Data,
    graph: WayGraph,
    stage_layers: Sequence[range],
    transport: Transport,
    *,
    seed: int,
    gamma: float,
    device: torch.device,
) -> PipelineRank:
    """The rank of a transport, with copies of its layers.

    Args:
        modules: all layers, and ``infos`` of them.
        graph: of the rank's way, on the CPU, with the edges that its layers read.
        stage_layers: of each stage.
        seed: of dropout.
        gamma: factor of gradients to rows of earlier slots.
    """
    stages = len(stage_layers)
    ways = transport.world // stages
    number = transport.rank // ways
    held, last = stage_layers[number], number == stages - 1
    like = data.x.new_empty(0, device=device)
    layers = [copy.deepcopy(modules[i]).to(device) for i in held]
    context = DropoutContext(seed=seed)
    for layer in layers:
        set_dropout_context(layer, context)
    stage = Stage(
        layers,
        [infos[i].aggregated for i in held if infos[i].is_graph],
        graph.to(device),
        context,
        transport,
        peers=[ways * number + each for each in range(ways)],
        like=like,
        gamma=gamma,
    )
    return PipelineRank(
        stage,
        number,
        stages,
        transport,
        before=boundary_before(infos, held.start) if number else None,
        after=None if last else boundary_before(infos, held.stop),
        features=None if number else data.x[graph.vertices].to(device),
        loss=_make_loss(data, graph, device) if last else None,
        like=like,
    )


def _make_loss(data: Data, graph: WayGraph, device: torch.device) -> Loss:
    """Of a chunk's logits: its part of the mean over all labels of training nodes."""
    count = int(_known(data.y[data.train_mask]).sum())
    labels = data.y[graph.vertices].to(device)
    nodes = [
        torch.nonzero(data.train_mask[graph.vertices[block.rows]]).view(-1).to(device)
        for block in graph.blocks
    ]

    def loss(chunk: int, logits: Tensor) -> Tensor:
        rows = nodes[chunk]
        logits, wanted = logits[rows], labels[graph.blocks[chunk].rows][rows]
        if wanted.dim() == 1:
            return F.cross_entropy(logits, wanted, reduction="sum") / count
        known = _known(wanted)
        wanted = wanted[known].to(logits.dtype)
        total = F.binary_cross_entropy_with_logits(logits[known], wanted, reduction="sum")
        return total / count

    return loss


def _known(labels: Tensor) -> Tensor:
    return torch.ones_like(labels, dtype=torch.bool) if labels.dim() == 1 else ~labels.isnan()

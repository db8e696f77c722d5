"""Exact inference layer by layer: every node once a layer, whatever the depth of the network.

A layer's input and output lie in stores, in memory or in files, so that neither the graph nor a
layer's activations need to fit in memory. Targets are taken in blocks of bounded edges; the same
blocks are computed wherever the rows lie, so results do not depend on that.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import (
    BatchNorm,
    EdgeConv,
    GATConv,
    GATv2Conv,
    GCNConv,
    GINConv,
    LayerNorm,
    SAGEConv,
)
from torch_geometric.nn.models.basic_gnn import BasicGNN

from gnnsys.dataset_folder import Dataset
from gnnsys.errors import ArgumentError, UnsupportedError
from gnnsys.folder_writer import Progress
from gnnsys.loaders import CSC, NeighborSampler
from gnnsys.memory import FileStore, HostStore, empty
from gnnsys.models import NodeClassifier
from gnnsys.unified_tensor import UnifiedTensor, unified

__all__ = ["Block", "Layer", "inference", "model_layers", "run_layers"]


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

_BIPARTITE = (SAGEConv, GATConv, GATv2Conv, GINConv, EdgeConv)  # take (sources, targets)
_BLOCK_BYTES = 64 << 20
_LOOP_EDGES = 1 << 22  # looked at at a time for self loops


def inference(
    model: torch.nn.Module,
    data: Any,
    *,
    out: str | os.PathLike[str] | None = None,
    layers: Sequence[Layer] | None = None,
    block_bytes: int = _BLOCK_BYTES,
    threads: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> Tensor:
    """The model's outputs for all nodes, exactly, layer by layer.

    Args:
        model: of PyG's BasicGNN family (GraphSAGE, GCN, GAT, GIN, …) or of ``gnnsys train``; put
            into evaluation mode for the call. Its device is where layers are computed.
        data: PyG ``Data`` with x and edge_index, or a homogeneous ``Dataset``; x may be unified.
        out: a .npy file for the result; the layers in between then lie in files beside it, too,
            and are removed. None keeps all in memory.
        layers: the model taken apart, for other models than the above.
        block_bytes: of inputs and messages that are in memory at a time, roughly; a single node's
            neighbours are never divided.
        threads: that gather; 0 for all cores.
        progress: is told how far the work is, in nodes.

    Returns:
        (nodes, channels): an ordinary tensor, or a unified one over ``out``.

    Raises:
        UnsupportedError: a model that cannot be taken apart, or a heterogeneous graph.
        StorageError: ``out`` cannot be written.

    >>> from torch_geometric.data import Data
    >>> from torch_geometric.nn import GraphSAGE
    >>> data = Data(x=torch.eye(3), edge_index=torch.tensor([[0, 1, 2], [1, 2, 0]]))
    >>> net = GraphSAGE(3, 4, num_layers=2, out_channels=2).eval()
    >>> torch.allclose(inference(net, data), net(data.x, data.edge_index), atol=1e-6)
    True
    """
    x, graph = _take_apart(data, threads)
    was_training = model.training
    model.eval()
    try:
        chain = list(layers) if layers is not None else model_layers(model, graph)
        if not chain:
            raise ArgumentError("layers: empty, expected at least one")
        *_, result = run_layers(
            chain, x, graph, device=_device_of(model), out=out, block_bytes=block_bytes,
            threads=threads, progress=progress,
        )  # fmt: skip
        return result
    finally:
        model.train(was_training)


def _take_apart(data: Any, threads: int) -> tuple[Tensor, CSC]:
    if isinstance(data, Dataset):
        if data.heterogeneous:
            raise UnsupportedError(f"{data.path}: heterogeneous; inference takes one node type")
        return data.features(threads=threads, device="cpu"), data.graph()
    if getattr(data, "x", None) is None or getattr(data, "edge_index", None) is None:
        raise ArgumentError(
            f"data: a {type(data).__name__} without x and edge_index; give PyG Data or a Dataset"
        )
    return data.x, CSC.from_edge_index(data.edge_index, data.num_nodes)


def _device_of(model: torch.nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


@torch.no_grad()
def run_layers(
    layers: Sequence[Layer],
    x: Tensor,
    graph: CSC,
    *,
    device: torch.device,
    out: str | os.PathLike[str] | None = None,
    block_bytes: int = _BLOCK_BYTES,
    threads: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> Iterator[Tensor]:
    """Yields the outputs of one layer after another; see ``inference``.

    With ``out``, a layer's file is removed when the next but one is asked for.
    """
    if len(x) != graph.num_nodes:
        raise ArgumentError(f"x: {len(x)} rows != {graph.num_nodes} nodes of the graph")
    sampler = NeighborSampler(graph, [-1], threads=threads)
    rows = _as_unified(x, threads)
    older: Path | None = None
    for number, layer in enumerate(layers):
        place = _place(out, number, len(layers))
        what = f"layer {number + 1} of {len(layers)}"
        try:
            result = _run_layer(
                layer, rows, sampler, device, place, block_bytes, threads, partial(progress, what)
            )
        except BaseException:
            _remove(place, older)
            raise
        yield result
        _remove(older)
        older = place if number + 1 < len(layers) else None
        rows = _as_unified(result, threads)
    _remove(older)


def _as_unified(rows: Tensor, threads: int) -> UnifiedTensor:
    if isinstance(rows, UnifiedTensor):
        return rows
    return unified(rows.cpu(), threads=threads, device="cpu")


def _place(out: str | os.PathLike[str] | None, number: int, layers: int) -> Path | None:
    if out is None:
        return None
    path = Path(out)
    return path if number + 1 == layers else path.with_name(f"{path.name}.layer{number + 1}")


def _remove(*paths: Path | None) -> None:
    for path in paths:
        if path is not None:
            path.unlink(missing_ok=True)


def _run_layer(
    layer: Layer,
    rows: UnifiedTensor,
    sampler: NeighborSampler,
    device: torch.device,
    place: Path | None,
    block_bytes: int,
    threads: int,
    progress: Callable[[int, int], None],
) -> Tensor:
    graph = sampler.graph
    store: HostStore | FileStore | None = None
    temporary = place.with_name(place.name + ".new") if place else None
    try:
        for first, last in _blocks(graph, rows, block_bytes):
            batch = sampler.sample(torch.arange(first, last), group=0)
            block = Block(
                inputs=_read_inputs(rows, batch.node, first, last).to(device),
                edge_index=torch.stack([batch.row, batch.col]).to(device),
                nodes=batch.node.to(device),
                targets=last - first,
            )
            outputs = layer(block).cpu()
            if store is None:
                shape = (graph.num_nodes, *outputs.shape[1:])
                store = _make_store(temporary, shape, outputs.dtype, threads)
            store.write(torch.arange(first, last), outputs)
            progress(last, graph.num_nodes)
    except BaseException:
        _remove(temporary)
        raise
    if store is None:
        raise ArgumentError("data: a graph without nodes")
    if place is None or temporary is None:
        assert isinstance(store, HostStore)
        return store.source
    os.replace(temporary, place)
    encoding = torch.bfloat16 if store.dtype == torch.bfloat16 else None
    return unified(place, threads=threads, encoding=encoding, device="cpu")


def _read_inputs(rows: UnifiedTensor, node: Tensor, first: int, last: int) -> Tensor:
    """Rows ``node``, which begin with ``first`` to ``last``: of a file those in one pass."""
    store = rows.store
    if isinstance(store, HostStore):
        return rows[node]
    inputs = torch.empty((len(node), *store.shape[1:]), dtype=store.dtype)
    targets = last - first
    store.read_range(first, last, inputs[:targets])
    store.gather(node[targets:], inputs[targets:])
    return inputs


def _make_store(
    path: Path | None, shape: tuple[int, ...], dtype: torch.dtype, threads: int
) -> HostStore | FileStore:
    if path is None:
        return HostStore(empty(shape, dtype), writable=True)
    return FileStore.create(path, shape, dtype, threads=threads)


def _blocks(graph: CSC, rows: Tensor, block_bytes: int) -> Iterator[tuple[int, int]]:
    """Ranges of targets whose inputs and messages take about ``block_bytes``."""
    row_bytes = max(1, math.prod(rows.shape[1:]) * rows.element_size())
    room = max(1, block_bytes // (2 * row_bytes))
    # A target counts as a row of its own beside those of its neighbours.
    cost = graph.indptr + torch.arange(len(graph.indptr))
    first = 0
    while first < graph.num_nodes:
        last = int(torch.searchsorted(cost, cost[first] + room, right=True)) - 1
        last = min(graph.num_nodes, max(last, first + 1))
        yield first, last
        first = last


# Models taken apart -------------------------------------------------------------------------------


def model_layers(model: torch.nn.Module, graph: CSC) -> list[Layer]:
    """One function for each graph convolution, with what follows it.

    Raises:
        UnsupportedError: a model of another family, or one that joins its layers' outputs.
    """
    gnn = model.gnn if isinstance(model, NodeClassifier) else model
    if not isinstance(gnn, BasicGNN) or gnn.jk_mode not in (None, "last"):
        raise UnsupportedError(
            f"model: a {type(model).__name__} cannot be taken apart; expected a GraphSAGE, GCN, "
            "GAT, GIN, … of torch_geometric.nn.models without jumping knowledge, or give layers="
        )
    for norm in gnn.norms or ():
        if not _is_nodewise(norm):
            raise UnsupportedError(
                f"model: {norm} normalises over all nodes at once, which blocks of nodes cannot; "
                "use batch_norm or a LayerNorm of mode='node', or give layers="
            )
    return [_make_layer(gnn, number, graph) for number in range(gnn.num_layers)]


def _is_nodewise(norm: torch.nn.Module) -> bool:
    """Whether a normalisation of PyG, in evaluation, treats each node by itself."""
    if isinstance(norm, LayerNorm):
        return bool(norm.mode == "node")
    return isinstance(norm, (BatchNorm, torch.nn.Identity, torch.nn.LayerNorm))


def _make_layer(gnn: BasicGNN, number: int, graph: CSC) -> Layer:
    conv = gnn.convs[number]
    if isinstance(conv, GCNConv) and conv.normalize:
        return _make_gcn_layer(gnn, number, conv, graph)
    if not isinstance(conv, _BIPARTITE):
        return lambda block: gnn.inference_per_layer(
            number, block.inputs, block.edge_index, block.targets
        )

    def run(block: Block) -> Tensor:
        pair = (block.inputs, block.inputs[: block.targets])
        return gnn.inference_per_layer(number, pair, block.edge_index, block.targets)

    return run


class _WeightedGCN(torch.nn.Module):
    """A GCNConv whose normalised edge weights are set from outside."""

    def __init__(self, conv: GCNConv) -> None:
        super().__init__()
        self.conv = copy.copy(conv)
        self.conv.normalize = False
        self.weight: Tensor | None = None

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv(x, edge_index, self.weight)


def _make_gcn_layer(gnn: BasicGNN, number: int, conv: GCNConv, graph: CSC) -> Layer:
    """A GCN weighs an edge by the degrees of both ends (Kipf and Welling, ICLR 2017, eq. 2).

    A block knows those of its targets only: they are counted over the whole graph before. Each node
    has one self loop, whatever loops the graph has.
    """
    degree = graph.indptr.diff().to(torch.float64)
    if conv.add_self_loops:
        degree += 1 - _count_loops(graph)
    scale = torch.where(degree > 0, degree.rsqrt(), 0.0)
    weighted = _WeightedGCN(conv)
    view = copy.copy(gnn)
    view.__dict__["_modules"] = dict(gnn._modules)
    view.convs = torch.nn.ModuleList(
        weighted if place == number else other for place, other in enumerate(gnn.convs)
    )

    def run(block: Block) -> Tensor:
        ends = scale[block.nodes.cpu()].to(block.inputs)
        source, target = block.edge_index
        weights = [ends[source] * ends[target]]
        if conv.add_self_loops:
            kept = source != target
            own = torch.arange(block.targets, device=source.device)
            source, target = torch.cat([source[kept], own]), torch.cat([target[kept], own])
            weights = [weights[0][kept], ends[: block.targets].square()]
        weighted.weight = torch.cat(weights)
        edge_index = torch.stack([source, target])
        return view.inference_per_layer(number, block.inputs, edge_index, block.targets)

    return run


def _count_loops(graph: CSC) -> Tensor:
    """(nodes,) int64 number of self loops at each node."""
    loops = torch.zeros(graph.num_nodes, dtype=torch.int64)
    for start in range(0, graph.num_edges, _LOOP_EDGES):
        source = graph.indices[start : start + _LOOP_EDGES].long()
        place = torch.arange(start, start + len(source))
        target = torch.searchsorted(graph.indptr, place, right=True) - 1
        loops += torch.bincount(target[source == target], minlength=graph.num_nodes)
    return loops

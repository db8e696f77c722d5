"""Exact inference layer by layer: every node once a layer, whatever the depth of the network.

A layer's input and output lie in stores, in memory or in files, so that neither the graph nor a
layer's activations need to fit in memory. Targets are taken in blocks of bounded edges; the same
blocks are computed wherever the rows lie, so results do not depend on that.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.nn import GCNConv, MessagePassing, aggr
from torch_geometric.nn.models.basic_gnn import BasicGNN

from gnnsys.dataset.folder import Dataset
from gnnsys.errors import ArgumentError, UnsupportedError
from gnnsys.loaders import CSC, NeighborSampler
from gnnsys.memory import Store
from gnnsys.system.names import naming_keywords
from gnnsys.system.progress import Progress
from gnnsys.training.divided_layers import DividedLayers, as_rows, create_store
from gnnsys.training.layer_checks import (
    BIPARTITE,
    aggregations_of,
    check_cached,
    check_edge_values,
    check_parts,
    edge_chunks,
    find_gnn,
    flow_of,
    in_evaluation,
    orient,
    unwrap,
)
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

_BLOCK_BYTES = 64 << 20


@naming_keywords()
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
    """The model's outputs for all nodes, ``model(x, edge_index)``, exactly, layer by layer.

    Args:
        model: of PyG's BasicGNN family (GraphSAGE, GCN, GAT, GIN, …) or of ``gnnsys train``, also
            behind ``torch.compile`` or a data-parallel wrapper; put into evaluation mode for the
            call. Its device is where layers are computed.
        data: PyG ``Data`` with x and edge_index, or a homogeneous ``Dataset``; x may be unified.
            For messages that flow from target to source, edges are reversed in memory.
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
        UnsupportedError: a model with a part that blocks of nodes may not compute as the whole
            graph does, edges with weights or features that the model would take, or a
            heterogeneous graph.
        ArgumentError: data or options that cannot be used.
        StorageError: ``out`` cannot be written.

    >>> from torch_geometric.data import Data
    >>> from torch_geometric.nn import GraphSAGE
    >>> data = Data(x=torch.eye(3), edge_index=torch.tensor([[0, 1, 2], [1, 2, 0]]))
    >>> net = GraphSAGE(3, 4, num_layers=2, out_channels=2).eval()
    >>> torch.allclose(inference(net, data), net(data.x, data.edge_index), atol=1e-6)
    True
    """
    x, graph = _take_apart(data, threads)
    with in_evaluation(model):
        if layers is not None:
            chain = list(layers)
        else:
            gnn = find_gnn(model)
            if unwrap(model) is gnn:  # that of gnnsys train never takes values of edges
                check_edge_values(gnn, data)
            if flow_of(gnn) == "target_to_source":
                graph = graph.reversed()
            chain = model_layers(model, graph)
        if not chain:
            raise ArgumentError("layers: empty, expected at least one")
        outputs = run_layers(
            chain, x, graph, device=_device_of(model), out=out, block_bytes=block_bytes,
            threads=threads, progress=progress,
        )  # fmt: skip
        return deque(outputs, maxlen=1).pop()  # two are there at a time


def _take_apart(data: Any, threads: int) -> tuple[Tensor, CSC]:
    if isinstance(data, Dataset):
        if data.heterogeneous:
            raise UnsupportedError(f"{data.path}: heterogeneous; inference takes one node type")
        return data.features(threads=threads, device="cpu"), data.graph()
    if isinstance(data, HeteroData):
        raise UnsupportedError(
            "data: a HeteroData; inference takes one node type: Data, or data.to_homogeneous()"
        )
    edge_index = getattr(data, "edge_index", None)
    if getattr(data, "x", None) is None or not isinstance(edge_index, Tensor):
        raise ArgumentError(
            f"data: a {type(data).__name__} without x and edge_index; give PyG Data or a Dataset "
            "(torch_geometric.utils.to_edge_index makes an edge_index of adj_t.t())"
        )
    if edge_index.layout != torch.strided:
        raise ArgumentError(
            f"edge_index: a {edge_index.layout} tensor, expected (2, edges) node ids; "
            "torch_geometric.utils.to_edge_index makes these of it"
        )
    return data.x, CSC.from_edge_index(edge_index, data.num_nodes)


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
    only: Sequence[Tensor] | None = None,
    ranks: DividedLayers | None = None,
) -> Iterator[Tensor]:
    """Yields the outputs of one layer after another; see ``inference``.

    With ``out``, a layer's file is removed when the next but one is asked for.

    Args:
        only: (n,) int64 ascending ids for each layer, which computes these alone: its output has n
            rows. Those of a layer and their in-neighbours are among those of the layer before.
        ranks: that compute the layers together, all of them with the same arguments but for
            ``out``, which the first of a machine has.
    """
    if len(x) != graph.num_nodes:
        raise ArgumentError(f"x: {len(x)} rows != {graph.num_nodes} nodes of the graph")
    sampler = NeighborSampler(graph, [-1], threads=threads)
    rows = _as_unified(x, threads)
    older: Path | None = None
    for number, layer in enumerate(layers):
        place = _place(out, number, len(layers))
        had = only[number - 1] if only and number else None
        what = f"layer {number + 1} of {len(layers)}"
        try:
            result = _run_layer(
                layer, rows, had, sampler, only[number] if only else None, device, place,
                block_bytes, threads, partial(progress, what), ranks,
            )  # fmt: skip
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
    had: Tensor | None,  # whose rows these are; None: of all nodes
    sampler: NeighborSampler,
    ids: Tensor | None,  # to compute; None: all nodes
    device: torch.device,
    place: Path | None,
    block_bytes: int,
    threads: int,
    progress: Callable[[int, int], None],
    ranks: DividedLayers | None,
) -> Tensor:
    graph = sampler.graph
    blocks = [*_blocks(graph, ids, rows, block_bytes)]
    if not blocks:
        raise ArgumentError("data: a graph without nodes")

    def compute(first: int, last: int) -> Tensor:
        targets = torch.arange(first, last) if ids is None else ids[first:last]
        batch = sampler.sample(targets, group=0)
        places = batch.node if had is None else torch.searchsorted(had, batch.node)
        in_order = last - first if ids is None else 0
        block = Block(
            inputs=_read_inputs(rows, places, in_order).to(device),
            edge_index=torch.stack([batch.row, batch.col]).to(device),
            nodes=batch.node.to(device),
            targets=last - first,
        )
        return layer(block).cpu()

    if ranks is not None:
        return ranks.run(compute, blocks, place, threads, progress)
    return _compute_all(compute, blocks, place, threads, progress)


def _compute_all(
    compute: Callable[[int, int], Tensor],
    blocks: Sequence[tuple[int, int]],
    place: Path | None,
    threads: int,
    progress: Callable[[int, int], None],
) -> Tensor:
    """All outputs of a layer, by this process."""
    count = blocks[-1][1]
    store: Store | None = None
    temporary = place.with_name(place.name + ".new") if place else None
    try:
        for first, last in blocks:
            outputs = compute(first, last)
            if store is None:
                shape = (count, *outputs.shape[1:])
                store = create_store(temporary, shape, outputs.dtype, threads)
            store.write(torch.arange(first, last), outputs)
            progress(last, count)
    except BaseException:
        _remove(temporary)
        raise
    assert store is not None
    if place is not None and temporary is not None:
        os.replace(temporary, place)
    return as_rows(store, place, threads)


def _read_inputs(rows: UnifiedTensor, places: Tensor, in_order: int) -> Tensor:
    """Rows at ``places``; the first ``in_order`` are a range, which a file reads in one pass."""
    store = rows.store
    if store.resident is not None:
        return rows[places]
    inputs = torch.empty((len(places), *store.shape[1:]), dtype=store.dtype)
    if in_order:
        first = int(places[0])
        store.read_range(first, first + in_order, inputs[:in_order])
    rest = inputs[in_order:]
    if store.device == rest.device:
        store.gather(places[in_order:], rest)
    else:  # a cache in the memory of a GPU
        rest.copy_(store.gather(places[in_order:]))
    return inputs


def _blocks(
    graph: CSC, ids: Tensor | None, rows: Tensor, block_bytes: int
) -> Iterator[tuple[int, int]]:
    """Ranges of targets whose inputs and messages take about ``block_bytes``."""
    row_bytes = max(1, math.prod(rows.shape[1:]) * rows.element_size())
    room = max(1, block_bytes // (2 * row_bytes))
    # A target counts as a row of its own beside those of its neighbours.
    if ids is None:
        cost = graph.indptr + torch.arange(len(graph.indptr))
    else:
        cost = torch.zeros(len(ids) + 1, dtype=torch.int64)
        torch.cumsum(graph.indptr[ids + 1] - graph.indptr[ids] + 1, 0, out=cost[1:])
    first, count = 0, len(cost) - 1
    while first < count:
        last = int(torch.searchsorted(cost, cost[first] + room, right=True)) - 1
        last = min(count, max(last, first + 1))
        yield first, last
        first = last


# Models taken apart -------------------------------------------------------------------------------

_QUANTILES = (aggr.QuantileAggregation, aggr.MedianAggregation)


def model_layers(model: torch.nn.Module, graph: CSC) -> list[Layer]:
    """One function for each graph convolution, with what follows it.

    Args:
        model: see ``inference``.
        graph: that the blocks will be of; with its edges reversed where the model's messages flow
            from target to source.

    Raises:
        UnsupportedError: a model of another family, one that joins its layers' outputs, or one with
            a part that blocks of nodes may not compute as the whole graph does.
    """
    gnn = find_gnn(model)
    check_parts(model, gnn)
    return [_make_layer(gnn, number, graph) for number in range(len(gnn.convs))]


def _make_layer(gnn: BasicGNN, number: int, graph: CSC) -> Layer:
    convolve = _make_convolution(gnn.convs[number], f"convs.{number}", graph)
    return lambda block: _finish(gnn, number, convolve(block))


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


def _make_convolution(conv: MessagePassing, name: str, graph: CSC) -> Layer:
    if isinstance(conv, GCNConv) and conv.normalize:
        convolve = _make_gcn(conv, name, graph)
    else:
        convolve = partial(_convolve, conv)
    kinds = {type(each) for each in aggregations_of(conv.aggr_module)}
    return partial(_convolve_led, convolve) if kinds & {*_QUANTILES} else convolve


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


def _make_gcn(conv: GCNConv, name: str, graph: CSC) -> Layer:
    """A GCN weighs an edge by the degrees of both ends (Kipf and Welling, ICLR 2017, eq. 2).

    A block knows those of its targets only: they are counted over the whole graph before. Each node
    has one self loop, whatever loops the graph has.
    """
    degree = graph.indptr.diff().to(torch.float64)
    if conv.add_self_loops:
        degree += 1 - _count_loops(graph)
    scale = torch.where(degree > 0, degree.rsqrt(), 0.0)
    if conv.cached:
        check_cached(conv, name, graph, scale)
    weighted = object.__new__(type(conv))  # the same layer, but for one option
    weighted.__dict__ = {**conv.__dict__, "normalize": False}

    def run(block: Block) -> Tensor:
        ends = scale[block.nodes.cpu()].to(block.inputs)
        source, target = block.edge_index
        weights = [ends[source] * ends[target]]
        if conv.add_self_loops:
            kept = source != target
            own = torch.arange(block.targets, device=source.device)
            source, target = torch.cat([source[kept], own]), torch.cat([target[kept], own])
            weights = [weights[0][kept], ends[: block.targets].square()]
        edge_index = orient(conv, torch.stack([source, target]))
        out: Tensor = weighted(block.inputs, edge_index, torch.cat(weights))[: block.targets]
        return out

    return run


def _count_loops(graph: CSC) -> Tensor:
    """(nodes,) int64 number of self loops at each node."""
    loops = torch.zeros(graph.num_nodes, dtype=torch.int64)
    for source, target in edge_chunks(graph):
        loops += torch.bincount(target[source == target], minlength=graph.num_nodes)
    return loops

"""Exact inference layer by layer: every node once a layer, whatever the depth of the network.

A layer's input and output lie in stores, in memory or in files, so that neither the graph nor a
layer's activations need to fit in memory. Targets are taken in blocks of bounded edges; the same
blocks are computed wherever the rows lie, so results do not depend on that.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from gnnsys.choices import EvalReads
from gnnsys.dataset.folder import Dataset
from gnnsys.errors import ArgumentError, UnsupportedError
from gnnsys.loaders import CSC, NeighborSampler
from gnnsys.memory import Store
from gnnsys.system.budget import process_budget
from gnnsys.system.names import naming_keywords
from gnnsys.system.progress import Progress
from gnnsys.training.divided_layers import DividedLayers, as_rows, create_store
from gnnsys.training.inference_reads import choose_reads, piece_of
from gnnsys.training.layer_blocks import as_unified, cut_blocks, device_of, read_rows, row_bytes
from gnnsys.training.layer_checks import check_edge_values, find_gnn, flow_of, in_evaluation, unwrap
from gnnsys.training.layer_reads import LayerReads
from gnnsys.training.model_layers import Block, Layer, ModelLayer, model_layers
from gnnsys.training.sequential_inference import (
    SequentialBlocks,
    delivered_bytes,
    message_like,
    with_ascending_neighbors,
)
from gnnsys.training.split_layers import SplitLayer
from gnnsys.unified_tensor import UnifiedTensor

__all__ = ["inference", "run_layers"]

_BLOCK_BYTES = 64 << 20
_BESIDE = 64 << 20
"""Bytes beside the sums of sequential reading, measured: what layers compute with, allocators."""


@naming_keywords()
def inference(
    model: torch.nn.Module,
    data: Any,
    *,
    out: str | os.PathLike[str] | None = None,
    layers: Sequence[Layer] | None = None,
    block_bytes: int = _BLOCK_BYTES,
    mode: EvalReads = "auto",
    memory: int | None = None,
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
        block_bytes: of inputs and messages that are in memory at a time, roughly, where rows are
            gathered; a single node's neighbours are never divided.
        mode: how a layer's inputs are read. "gather": the rows of a block's neighbours, wherever
            they lie; "sequential": all rows, in passes, each for as many nodes as have their sums
            in memory; for layers that sum, average or take the maximum or minimum of rows, as those
            of a GraphSAGE, GCN or GIN; "auto": for each layer the way that reads fewer bytes from
            the disk. Both give the same up to rounding.
        memory: bytes for the sums and rows of sequential reading; None for half of what is left, at
            most. Layers take up to 64 MiB beside it while they compute.
        threads: that gather; 0 for all cores.
        progress: is told how far the work is, in nodes.

    Returns:
        (nodes, channels): an ordinary tensor, or a unified one over ``out``.

    Raises:
        UnsupportedError: a model with a part that blocks of nodes may not compute as the whole
            graph does, or not from rows in sequence where ``mode`` asks for that; edges with
            weights or features that the model would take, or a heterogeneous graph.
        ArgumentError: data or options that cannot be used.
        StorageError: ``out`` cannot be written.

    >>> from torch_geometric.data import Data
    >>> from torch_geometric.nn import GraphSAGE
    >>> data = Data(x=torch.eye(3), edge_index=torch.tensor([[0, 1, 2], [1, 2, 0]]))
    >>> net = GraphSAGE(3, 4, num_layers=2, out_channels=2).eval()
    >>> torch.allclose(inference(net, data), net(data.x, data.edge_index), atol=1e-6)
    True
    """
    if mode not in get_args(EvalReads):
        raise ArgumentError(f"mode: {mode!r}, expected one of {', '.join(get_args(EvalReads))}")
    if memory is not None and memory < 1:
        raise ArgumentError(f"memory: {memory}, expected bytes above 0, or None")
    x, graph = _take_apart(data, threads)
    with in_evaluation(model):
        chain: list[Layer]
        if layers is not None:
            chain = list(layers)
        else:
            gnn = find_gnn(model)
            if unwrap(model) is gnn:  # that of gnnsys train never takes values of edges
                check_edge_values(gnn, data)
            if flow_of(gnn) == "target_to_source":
                graph = graph.reversed()
            chain = [*model_layers(model, graph)]
        if not chain:
            raise ArgumentError("layers: empty, expected at least one")
        outputs = run_layers(
            chain, x, graph, device=device_of(model), out=out, block_bytes=block_bytes,
            reads=LayerReads((mode,) * len(chain), memory), threads=threads, progress=progress,
        )  # fmt: skip
        return deque(outputs, maxlen=1).pop()  # two are there at a time


def _take_apart(data: Any, threads: int) -> tuple[Tensor, CSC]:
    if isinstance(data, Dataset):
        if data.heterogeneous:
            raise UnsupportedError(
                f"{data.path}: heterogeneous; inference takes one node type: use hetero_inference"
            )
        return data.features(threads=threads, device="cpu"), data.graph()
    if isinstance(data, HeteroData):
        raise UnsupportedError(
            "data: a HeteroData; inference takes one node type: use hetero_inference, or give "
            "data.to_homogeneous()"
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


@torch.no_grad()
def run_layers(
    layers: Sequence[Layer],
    x: Tensor,
    graph: CSC,
    *,
    device: torch.device,
    out: str | os.PathLike[str] | None = None,
    block_bytes: int = _BLOCK_BYTES,
    reads: LayerReads | None = None,
    threads: int = 0,
    progress: Progress = lambda what, done, total: None,
    only: Sequence[Tensor] | None = None,
    ranks: DividedLayers | None = None,
) -> Iterator[Tensor]:
    """Yields the outputs of one layer after another; see ``inference``.

    With ``out``, a layer's file is removed when the next but one is asked for.

    Args:
        reads: how each layer reads its inputs; None for gathering them.
        only: (n,) int64 ascending ids for each layer, which computes these alone: its output has n
            rows. Those of a layer and their in-neighbours are among those of the layer before, and
            are gathered.
        ranks: that compute the layers together, all of them with the same arguments but for
            ``out``, which the first of a machine has.
    """
    if len(x) != graph.num_nodes:
        raise ArgumentError(f"x: {len(x)} rows != {graph.num_nodes} nodes of the graph")
    if graph.num_nodes == 0 or (only and not len(only[-1])):
        raise ArgumentError("data: a graph without nodes")
    sampler = NeighborSampler(graph, [-1], threads=threads)
    rows = as_unified(x, threads)
    older: Path | None = None
    ascending: CSC | None = None
    for number, layer in enumerate(layers):
        place = _place(out, number, len(layers))
        told = partial(progress, f"layer {number + 1} of {len(layers)}")
        mode: EvalReads = reads.modes[number] if reads and not only else "gather"
        try:
            memory = reads.memory if reads else None
            split = _split_where_cheaper(mode, layer, rows, graph, device, memory)
            if split is not None:
                ascending = ascending or with_ascending_neighbors(graph)
                blocks, compute = _sequential_blocks(
                    *split, rows, ascending, device, threads, told, ranks
                )
            else:
                had = only[number - 1] if only and number else None
                ids = only[number] if only else None
                blocks, compute = _gathered_blocks(
                    layer, rows, had, sampler, ids, device, block_bytes
                )
            if ranks is not None:
                result = ranks.run(compute, blocks, place, threads, told)
            else:
                result = _compute_all(compute, blocks, place, threads, told)
            del compute  # with its sums, before the next layer has its own
        except BaseException:
            _remove(place, older)
            raise
        yield result
        _remove(older)
        older = place if number + 1 < len(layers) else None
        rows = as_unified(result, threads)
    _remove(older)


def _place(out: str | os.PathLike[str] | None, number: int, layers: int) -> Path | None:
    if out is None:
        return None
    path = Path(out)
    return path if number + 1 == layers else path.with_name(f"{path.name}.layer{number + 1}")


def _remove(*paths: Path | None) -> None:
    for path in paths:
        if path is not None:
            path.unlink(missing_ok=True)


Compute = Callable[[int, int], Tensor]
"""Outputs of a range of targets."""


def _gathered_blocks(
    layer: Layer,
    rows: UnifiedTensor,
    had: Tensor | None,  # whose rows these are; None: of all nodes
    sampler: NeighborSampler,
    ids: Tensor | None,  # to compute; None: all nodes
    device: torch.device,
    block_bytes: int,
) -> tuple[list[tuple[int, int]], Compute]:
    """Ranges of targets, and what computes them from the rows of their neighbours."""

    def compute(first: int, last: int) -> Tensor:
        targets = torch.arange(first, last) if ids is None else ids[first:last]
        batch = sampler.sample(targets, group=0)
        places = batch.node if had is None else torch.searchsorted(had, batch.node)
        in_order = last - first if ids is None else 0
        block = Block(
            inputs=read_rows(rows, places, in_order).to(device),
            edge_index=torch.stack([batch.row, batch.col]).to(device),
            nodes=batch.node.to(device),
            targets=last - first,
        )
        return layer(block).cpu()

    room = block_bytes // (2 * max(1, row_bytes(rows)))  # inputs, and messages
    return [*cut_blocks(_costs(sampler.graph, ids), room)], compute


def _split_where_cheaper(
    mode: EvalReads,
    layer: Layer,
    rows: UnifiedTensor,
    graph: CSC,
    device: torch.device,
    memory: int | None,
) -> tuple[SplitLayer, int] | None:
    """A layer taken apart, and bytes for it, if its inputs are to be read in sequence."""
    if mode == "gather":
        return None
    if not isinstance(layer, ModelLayer):
        if mode == "auto":
            return None
        raise UnsupportedError(
            "layers: functions of blocks, which need their neighbours' rows together; leave "
            "layers= out, or give mode='gather'"
        )
    try:
        if len(rows.shape) != 2:
            raise UnsupportedError(
                f"x: shape {tuple(rows.shape)}; only (nodes, columns) can be read in sequence: "
                "give mode='gather'"
            )
        split = layer.split()
    except UnsupportedError:
        if mode == "auto":
            return None
        raise
    left = process_budget().left()
    room = max(1, min(left // 2, left - _BESIDE)) if memory is None else memory
    chosen = choose_reads(
        mode,
        nodes=graph.num_nodes,
        edges=graph.num_edges,
        row_bytes=rows.store.row_bytes,
        delivered_bytes=delivered_bytes(rows.store),
        message_bytes=message_like(split, rows, device).nbytes,
        memory=room,
        kept=left,
        resident=rows.store.resident is not None,
    )
    return (split, room) if chosen.way == "sequential" else None


def _sequential_blocks(
    split: SplitLayer,
    memory: int,
    rows: UnifiedTensor,
    graph: CSC,  # neighbours ascend
    device: torch.device,
    threads: int,
    progress: Callable[[int, int], None],
    ranks: DividedLayers | None,
) -> tuple[list[tuple[int, int]], Compute]:
    """Ranges of targets, and what computes them from passes over the inputs."""
    count, piece = graph.num_nodes, piece_of(rows.store.row_bytes)
    pieces = [(first, min(count, first + piece)) for first in range(0, count, piece)]
    shares = [pieces] if ranks is None else ranks.shares(pieces)
    blocks = SequentialBlocks(
        split,
        rows=rows,
        graph=graph,
        device=device,
        memory=memory,
        shares=[(each[0][0], each[-1][1]) for each in shares if each],
        threads=threads,
        heard=lambda first: progress(first, count),
    )
    return pieces, blocks.compute


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


def _costs(graph: CSC, ids: Tensor | None) -> Tensor:
    """(targets + 1,) rows that targets and their neighbours have, summed up."""
    # A target counts as a row of its own beside those of its neighbours.
    if ids is None:
        return graph.indptr + torch.arange(len(graph.indptr))
    costs = torch.zeros(len(ids) + 1, dtype=torch.int64)
    torch.cumsum(graph.indptr[ids + 1] - graph.indptr[ids] + 1, 0, out=costs[1:])
    return costs

"""What an epoch of a pipeline will cost, before anything runs."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gnnsys.errors import ArgumentError
from gnnsys.pipeline.layer_info import LayerInfo
from gnnsys.pipeline.schedule import bubble, num_slots
from gnnsys.pipeline.stages import boundary_before, split_layers

__all__ = ["Costs", "Memory", "Split", "estimate_costs"]

_INDEX_BYTES = 8
_SIZE_BYTES = 8  # of what all_gather_objects sends before an object
_EDGE_COPIES = 2  # the matrix and its transpose


@dataclass(frozen=True, slots=True)
class Split:
    """How ranks divide the layers and the vertices."""

    stages: int
    ways: int
    chunks: int

    @property
    def mode(self) -> str:
        """pipeline: one way; graph: one stage, and a chunk for each way; else hybrid."""
        if self.ways == 1:
            return "pipeline"
        return "graph" if self.stages == 1 else "hybrid"

    @property
    def slots(self) -> int:
        """Chunks of each way."""
        return self.chunks // self.ways


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one rank at the end of a forward."""

    history: int
    """Rows that neighbours read: current ones or gradients, and the snapshot; none where a way has
    one chunk."""

    activations: int
    """What autograd keeps."""

    features: int
    """Of the first stage."""

    parameters: int
    """Weights, their gradients, and Adam's two moments."""

    edges: int
    """Of all kinds, with the transposed ones."""

    buffers: int
    """What is on its way to the next stage, which may be slower; a chunk of what comes in, and of
    what is aggregated."""

    @property
    def total(self) -> int:
        """Of all."""
        return sum(dataclasses.astuple(self))


@dataclass(frozen=True, slots=True)
class Costs:
    """Of one epoch."""

    split: Split
    layer_bytes: int
    """Rows and gradients between stages, sent by all ranks."""

    graph_bytes: int
    """Between ways."""

    weight_bytes: int
    """To add up the gradients of the parameters."""

    control_bytes: int
    """Each rank's loss and staleness, told to all others; nothing where ranks share a process."""

    memory: list[Memory]
    """Of each rank."""

    @property
    def total_bytes(self) -> int:
        """Sent by all ranks."""
        return self.layer_bytes + self.graph_bytes + self.weight_bytes + self.control_bytes

    @property
    def bubble(self) -> float:
        """Share of time in which a stage has nothing to do, if all take the same time."""
        return bubble(self.split.slots, self.split.stages)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        split = self.split
        greatest = max(self.memory, key=lambda memory: memory.total)
        return {
            "mode": split.mode,
            "stages": split.stages,
            "ways": split.ways,
            "chunks": split.chunks,
            "bytes": {
                "layer": self.layer_bytes,
                "graph": self.graph_bytes,
                "weight": self.weight_bytes,
                "control": self.control_bytes,
                "total": self.total_bytes,
            },
            "slots": num_slots(split.slots, split.stages),
            "bubble": self.bubble,
            "memory": {**dataclasses.asdict(greatest), "total": greatest.total},
        }


def estimate_costs(
    infos: Sequence[LayerInfo],
    split: Split,
    *,
    num_nodes: int,
    num_edges: int,
    chunk_sizes: Sequence[int],
    halo: Sequence[int],
    element_size: int = 4,
) -> Costs:
    """The bytes that the ledger will count, and the memory that the ranks will need.

    With V vertices of which the ways read M of others, rows of the same width H in all of A
    aggregations, and P parameters, an epoch sends 2 (S - 1) V H numbers between the stages, 2 A M H
    between the ways, and 2 (W - 1) P for the parameters: Chen, Chen, Qian: "GNNPipe",
    arXiv 2308.10087. Widths may differ here, and shared tensors (GCNII's x_0) pass the stages, too.

    Args:
        infos: of all layers.
        num_edges: of the graph.
        chunk_sizes: (K,) vertices.
        halo: (W,) vertices of other ways that each way reads, as ``halo_sizes`` has them.
        element_size: bytes of a number.

    Raises:
        ArgumentError: sizes that do not fit the split, or more stages than graph layers.

    >>> from gnnsys.pipeline.layer_info import describe_layers
    >>> from gnnsys.pipeline.layers import as_layers
    >>> from gnnsys.pipeline.models import deep_layers
    >>> layers = deep_layers("gcn", in_channels=8, hidden=16, out_channels=2, layers=4)
    >>> costs = estimate_costs(
    ...     describe_layers(as_layers(layers), 8), Split(stages=2, ways=1, chunks=4),
    ...     num_nodes=100, num_edges=500, chunk_sizes=[25] * 4, halo=[0],
    ... )
    >>> costs.layer_bytes == 2 * (2 - 1) * 100 * 16 * 4
    True
    """
    if len(chunk_sizes) != split.chunks or len(halo) != split.ways or split.chunks % split.ways:
        raise ArgumentError(
            f"{len(chunk_sizes)} chunk sizes and {len(halo)} halos do not fit "
            f"chunks={split.chunks}, ways={split.ways}"
        )
    held = split_layers(infos, num_nodes, num_edges, split.stages)
    crossing = sum(boundary_before(infos, run.start).columns for run in held[1:])
    read = sum(info.aggregated * (1 + info.has_gradient) for info in infos)
    learned = sum(info.parameters for info in infos)
    memory = [
        _memory(infos, held, stage, split, way, num_edges, chunk_sizes, halo[way], element_size)
        for stage in range(split.stages)
        for way in range(split.ways)
    ]
    return Costs(
        split,
        layer_bytes=2 * num_nodes * crossing * element_size,
        graph_bytes=read * sum(halo) * element_size,
        weight_bytes=2 * (split.ways - 1) * learned * element_size,
        control_bytes=_control_bytes(infos, held, split),
        memory=memory,
    )


def _control_bytes(infos: Sequence[LayerInfo], held: Sequence[range], split: Split) -> int:
    """What ``GNNPipe.train_epoch`` gathers: of each rank its size, then the object itself."""
    to = split.stages * split.ways - 1
    sent = 0
    for layers in held:
        norms = [(float(i), 0.5) for i in layers if infos[i].is_graph]
        sent += split.ways * to * (_SIZE_BYTES + len(pickle.dumps((0.5, norms))))
    return sent


def _memory(
    infos: Sequence[LayerInfo],
    held: Sequence[range],
    stage: int,
    split: Split,
    way: int,
    num_edges: int,
    chunk_sizes: Sequence[int],
    halo: int,
    size: int,
) -> Memory:
    chunks = chunk_sizes[way * split.slots : (way + 1) * split.slots]
    rows, largest = sum(chunks), max(chunks)
    here = [infos[i] for i in held[stage]]
    before = boundary_before(infos, held[stage].start).columns if stage else 0
    last = stage == split.stages - 1
    after = 0 if last else boundary_before(infos, held[stage].stop).columns
    kinds = {info.kind for info in here if info.kind}
    edges = num_edges // split.ways
    entry = _INDEX_BYTES * 2 + _EDGE_COPIES * (_INDEX_BYTES + size)
    widest = max(info.aggregated for info in here)
    columns = sum(info.aggregated for info in here) if split.slots > 1 else 0
    return Memory(
        history=2 * (rows + halo) * columns * size,
        activations=int(rows * _kept_bytes(here, size)),
        features=0 if stage else rows * infos[0].in_width * size,
        parameters=4 * sum(info.parameters for info in here) * size,
        edges=len(kinds) * edges * entry,
        buffers=(rows * after + largest * before + (largest + halo) * widest) * size,
    )


def _kept_bytes(layers: Sequence[LayerInfo], size: int) -> float:
    """Bytes for each vertex; what one layer gives and the next takes is kept once."""
    kept = sum(layer.kept.inside for layer in layers)
    for number, layer in enumerate(layers):
        above = number + 1 < len(layers) and layers[number + 1].kept.input
        kept += (layer.kept.output or above) * layer.out_width * size
    return kept + (layers[0].kept.input * layers[0].in_width * size)

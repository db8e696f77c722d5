"""How long the parts of a pipeline's epoch take on machines that are described by their speeds."""

from __future__ import annotations

from collections.abc import Sequence

from gnnsys.pipeline.costs import Split
from gnnsys.pipeline.layer_info import LayerInfo
from gnnsys.pipeline.partition import Partition
from gnnsys.pipeline.schedule import Action, Kind
from gnnsys.pipeline.stages import boundary_before
from gnnsys.plan.hardware import Cluster

__all__ = ["SplitTimes"]

_FLOAT = 4
_EDGE = 12  # bytes of an edge's column and weight


class SplitTimes:
    """Seconds of the actions of each stage; those of the way with the most to do.

    Dense layers are bound by arithmetic, aggregations by memory: each edge reads a row, and each
    vertex writes one. Nothing of a rank overlaps but what passes between stages.

    Args:
        cluster: speeds of a rank.
        infos: of all layers, and ``held`` those of each stage.
        halo: vertices that a way reads of others.
        num_edges: of the graph.
    """

    def __init__(
        self,
        cluster: Cluster,
        infos: Sequence[LayerInfo],
        held: Sequence[range],
        split: Split,
        partition: Partition,
        halo: int,
        num_edges: int,
    ) -> None:
        self._cluster, self._split = cluster, split
        self._layers = [[infos[i] for i in run] for run in held]
        self._crossing = [boundary_before(infos, run.start).columns for run in held[1:]]
        self._sizes = partition.chunk_sizes
        self._rows = max(self._sizes)
        self._edges = num_edges / split.chunks
        self._halo = halo / split.slots

    def seconds(self, stage: int, action: Action) -> float:
        """Of an action; nothing for what only waits."""
        if action.kind is Kind.FORWARD:
            return self.computing(stage)[0] + self.halo(stage)
        if action.kind is Kind.BACKWARD:
            return self.computing(stage)[1] + self.halo(stage)
        return self.weights(stage) if action.kind is Kind.SYNC else 0.0

    def computing(self, stage: int) -> tuple[float, float]:
        """Of a chunk's forward and backward; dense layers multiply twice in the latter."""
        layers = self._layers[stage]
        dense = 2 * self._rows * sum(layer.parameters for layer in layers)
        moved = sum(
            self._edges * (layer.aggregated * _FLOAT + _EDGE)
            + self._rows * layer.aggregated * _FLOAT
            for layer in layers
        )
        multiply, aggregate = (
            dense / self._cluster.compute_flops,
            moved / self._cluster.memory_bandwidth,
        )
        return multiply + aggregate, 2 * multiply + aggregate

    def halo(self, stage: int) -> float:
        """Of what the ways exchange of a chunk in one direction."""
        if self._split.ways == 1:
            return 0.0
        return sum(
            self._send(self._halo * layer.aggregated) for layer in self._layers[stage] if layer.kind
        )

    def weights(self, stage: int) -> float:
        """Of the ring over the ways."""
        ways = self._split.ways
        learned = sum(layer.parameters for layer in self._layers[stage])
        return 2 * (ways - 1) * self._send(learned / ways) if ways > 1 else 0.0

    def transfer(self, chunk: int) -> float:
        """Of a chunk from one stage to the next."""
        return self._send(self._sizes[chunk] * max(self._crossing, default=0))

    def _send(self, numbers: float) -> float:
        cluster = self._cluster
        return cluster.network_latency + numbers * _FLOAT / cluster.network_bandwidth

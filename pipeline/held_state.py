"""What the ranks of a pipeline hold, put together and handed out again, by names that do not depend
on stages and ways."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gnnsys.errors import ArgumentError
from gnnsys.pipeline.group import RankGroup
from gnnsys.pipeline.layer_info import LayerInfo
from gnnsys.pipeline.partition import Partition
from gnnsys.pipeline.rank import PipelineRank

__all__ = ["HeldState"]


class HeldState:
    """The part of ``GNNPipe`` that gathers and loads weights, moments and snapshots. What begins
    with ``held`` sends nothing; all else is done by all ranks together."""

    stages: int
    ways: int
    chunks: int
    infos: list[LayerInfo]
    stage_layers: list[range]
    partition: Partition
    _num_nodes: int
    _group: RankGroup

    @property
    def reads_snapshots(self) -> bool:
        """Whether chunks read rows of earlier epochs: where a way has several."""
        return self.chunks > self.ways

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those that this process trains."""
        return (parameter for _, parameter in self.named_parameters())

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """With the names that ``DeepModel`` gives them; ways in one process have the same ones."""
        return self._named(self._group.ranks)

    def _named(self, ranks: Sequence[PipelineRank]) -> Iterator[tuple[str, nn.Parameter]]:
        for rank in ranks:
            for number, layer in self._numbered(rank):
                yield from ((f"layers.{number}.{n}", p) for n, p in layer.named_parameters())

    def _numbered(self, rank: PipelineRank) -> Iterator[tuple[int, nn.Module]]:
        return zip(self.stage_layers[rank.number], rank.stage.layers, strict=True)

    def state_dict(self) -> dict[str, Tensor]:
        """All weights, on the CPU, on every rank, as ``DeepModel.state_dict`` names them."""
        return self._group.merge(self.held_state_dict())

    def held_state_dict(self) -> dict[str, Tensor]:
        """The entries of ``state_dict`` of this process's stages; none where it is another way of a
        stage than the first. Those of all processes make it whole."""
        return {
            f"layers.{number}.{name}": value.cpu()
            for rank in self._group.first_ways
            for number, layer in self._numbered(rank)
            for name, value in layer.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes weights of a ``DeepModel`` or of another pipeline.

        Raises:
            ArgumentError: weights that are missing.
        """
        for rank in self._group.ranks:
            for number, layer in self._numbered(rank):
                own = {name: f"layers.{number}.{name}" for name in layer.state_dict()}
                missing = [name for name in own.values() if name not in state]
                if missing:
                    raise ArgumentError(f"state: has no {missing[0]}; is it of another model?")
                layer.load_state_dict({name: state[full] for name, full in own.items()})

    def optimizer_state_dict(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """An optimizer's state by the names of the parameters, on the CPU, on every rank."""
        return self._group.merge(self.held_optimizer_state_dict(optimizer))

    def held_optimizer_state_dict(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The entries of ``optimizer_state_dict`` of this process, as of ``held_state_dict``."""
        return {
            name: _to_cpu(optimizer.state[parameter])
            for name, parameter in self._named(self._group.first_ways)
            if parameter in optimizer.state
        }

    def load_optimizer_state_dict(
        self, optimizer: torch.optim.Optimizer, state: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Takes what ``optimizer_state_dict`` gave, of any number of stages and ways."""
        for name, parameter in self.named_parameters():
            if name in state:
                optimizer.state[parameter] = {
                    key: value.clone().to(parameter.device if value.dim() else "cpu")
                    if isinstance(value, Tensor)
                    else value
                    for key, value in state[name].items()
                }

    def history_shards(self) -> dict[int, dict[str, Tensor]]:
        """The snapshots as the ranks of this process hold them, by the number of the rank: nothing
        is sent.

        Returns:
            Of each rank ``nodes`` (N,), those that it works on, by their numbers in ``data``, and
            of each of its graph layers ``layers.L`` (N, width), on the CPU; of no layer where no
            snapshot is read.
        """
        return {
            rank.transport.rank: {
                "nodes": rank.stage.graph.vertices.cpu(),
                **dict(zip(self._graph_layers(rank), rank.stage.snapshots(), strict=True)),
            }
            for rank in self._group.ranks
        }

    def load_history_shards(self, shards: Iterable[Mapping[str, Tensor]]) -> None:
        """Takes the snapshots of a pipeline with any stages, ways and chunks; nothing where none is
        read.

        Args:
            shards: of all its ranks, as ``history_shards`` gives them; one without ``nodes`` has
                the rows of all, in the order of ``data``. Each is asked for no tensors but those
                of the layers that this process holds, one at a time.

        Raises:
            ArgumentError: rows that no shard has.
        """
        missing = {
            (rank.transport.rank, name): rank.stage.graph.num_own + rank.stage.graph.num_halo
            for rank in self._group.ranks
            for name in self._graph_layers(rank)
        }
        for shard in shards:
            for rank in self._group.ranks:
                names = [*enumerate(self._graph_layers(rank))]
                held = [(number, name) for number, name in names if name in shard]
                if not held:
                    continue
                nodes = shard["nodes"] if "nodes" in shard else torch.arange(self._num_nodes)
                rows, places = rank.stage.rows_of(nodes)
                for number, name in held:
                    rank.stage.load_snapshot(number, rows, shard[name][places])
                    missing[rank.transport.rank, name] -= len(rows)
        for (number, name), count in missing.items():
            if count:
                raise ArgumentError(
                    f"shards: lack {count} rows of {name}, which rank {number} reads; give those "
                    "of all ranks, of a pipeline with more chunks than ways"
                )

    def _graph_layers(self, rank: PipelineRank) -> list[str]:
        """Names of the graph layers of a rank whose snapshots are read."""
        if not self.reads_snapshots:
            return []
        held = self.stage_layers[rank.number]
        return [f"layers.{i}" for i in held if self.infos[i].is_graph]


def _to_cpu(state: dict[str, Any]) -> dict[str, Any]:
    return {key: v.detach().cpu() if isinstance(v, Tensor) else v for key, v in state.items()}

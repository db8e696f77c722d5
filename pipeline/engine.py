"""``GNNPipe``: full-graph training of a deep GNN by layer pipelines, graph parallelism or both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from gnnsys.errors import ArgumentError
from gnnsys.pipeline.assembly import build_rank, check_data, check_options
from gnnsys.pipeline.group import RankGroup
from gnnsys.pipeline.held_state import HeldState
from gnnsys.pipeline.layer_info import LayerInfo, describe_layers
from gnnsys.pipeline.layers import as_layers
from gnnsys.pipeline.partition import Partition, check_chunks, check_partition, partition_graph
from gnnsys.pipeline.schedule import Event, default_chunks, slot_order
from gnnsys.pipeline.stages import split_layers
from gnnsys.pipeline.way_graph import WayGraph, make_way_graph

__all__ = ["GNNPipe"]


class GNNPipe(HeldState):
    """Trains a deep GNN on the full graph, with its layers spread over ranks.

    Layers are cut into ``stages``, vertices into ``chunks`` that pass the stages one after another,
    and the chunks of a stage are shared by ``ways``. A chunk reads the rows of those before it in
    the epoch, and a snapshot of the others: Chen, Chen, Qian: "GNNPipe: Scaling Deep GNN Training
    with Pipelined Model Parallelism", arXiv 2308.10087. ``ways=1`` is the pipeline; ``stages=1,
    chunks=ways`` plain graph parallelism, which is exact; all else is the hybrid.

    In a process group of torch.distributed, each process is one rank: rank = ways * stage + way.
    Without one, all ranks take turns in this process, with the same results.

    Args:
        layers: as for ``gnnsys.pipeline.DeepModel``: the same list on every rank.
        data: x (V, features), edge_index (2, E), y (V,) classes or (V, labels) of 0, 1 and NaN,
            train_mask (V,); edge_weight (E,) if there is one. The same on every rank.
        stages: S; each holds a run of layers, split by their estimated cost.
        ways: W; ranks that share a stage.
        chunks: K, a multiple of the ways. Default: 4 * stages * ways; ways for a single stage.
        snapshot_period: R; epochs between two snapshots.
        boundary_gradient_scale: gamma; by what gradients to rows of earlier slots are multiplied.
            1: as autograd has them; 2, as published, makes up for those that snapshots do not get.
        shuffle: whether slots come in another order each epoch.
        shuffle_factor: parts that METIS makes for each chunk, which are shuffled and merged.
        seed: of the partition, the order and dropout.
        history: first snapshot. exact: all layers by the initial weights; zeros.
        partition: instead of that by METIS.
        device: of the ranks of this process. Default: that of ``data.x``.
        saving: a context that decides how autograd keeps tensors:
            ``gnnsys.offload.ActivationOffload``, ``torch.autograd.graph.saved_tensors_hooks``. It
            is entered anew each epoch, in the thread that calls ``train_epoch``: once around all
            forwards and backwards of all chunks and of all ranks of this process, not around
            evaluation and the step of the optimizer. What it is given to keep is needed before it
            is left, mostly in reverse: forwards of the chunks come first, but losses are computed
            between backwards. A rank that is a process of its own needs a context, with a budget,
            of its own.

    Raises:
        ArgumentError: stages, ways or chunks that do not fit each other, the number of ranks, the
            layers or the graph; layers that cannot be run chunk by chunk.

    >>> from gnnsys.pipeline import GNNPipe, deep_layers
    >>> edges = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])
    >>> data = Data(x=torch.eye(4), edge_index=edges, y=torch.tensor([0, 0, 1, 1]))
    >>> data.train_mask = torch.tensor([True, False, False, True])
    >>> layers = deep_layers("gcnii", in_channels=4, hidden=8, out_channels=2, layers=4)
    >>> pipe = GNNPipe(layers, data, stages=2, chunks=2)
    >>> optimizer = torch.optim.Adam(pipe.parameters(), lr=0.01)
    >>> losses = [pipe.train_epoch(optimizer) for _ in range(3)]
    >>> pipe.evaluate().shape
    torch.Size([4, 2])
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        data: Data,
        *,
        stages: int = 1,
        ways: int = 1,
        chunks: int | None = None,
        snapshot_period: int = 23,
        boundary_gradient_scale: float = 2.0,
        shuffle: bool = True,
        shuffle_factor: int = 1,
        seed: int = 0,
        history: Literal["exact", "zeros"] = "exact",
        partition: Partition | None = None,
        device: torch.device | str | None = None,
        saving: AbstractContextManager[object] | None = None,
    ) -> None:
        self.stages, self.ways = stages, ways
        if chunks is None:
            chunks = default_chunks(stages, ways)
        self.chunks = chunks
        self.snapshot_period, self.shuffle, self.seed = snapshot_period, shuffle, seed
        self._saving = nullcontext() if saving is None else saving
        self.epoch = 0
        """Epochs that were trained."""
        check_options(stages, ways, chunks, snapshot_period, boundary_gradient_scale, history)
        check_data(data)
        self._data, self._num_nodes = data, len(data.x)
        self._group = RankGroup(stages, ways)
        modules = as_layers(layers)
        self.infos: list[LayerInfo] = describe_layers(modules, data.x.shape[1], data.x.dtype)
        self.stage_layers: list[range] = split_layers(
            self.infos, self._num_nodes, data.edge_index.shape[1], stages
        )
        self.partition = self._agree_on_partition(partition, shuffle_factor)
        graphs = self._make_graphs()
        self._group.ranks = [
            build_rank(
                modules,
                self.infos,
                data,
                graphs[transport.rank % ways],
                self.stage_layers,
                transport,
                seed=seed,
                gamma=boundary_gradient_scale,
                device=torch.device(device) if device is not None else data.x.device,
            )
            for transport in self._group.transports
        ]
        if self._group.is_distributed:  # each rank may have drawn weights of its own
            mine = {f"layers.{name}": value.cpu() for name, value in modules.state_dict().items()}
            self.load_state_dict(self._group.from_rank_0(lambda: mine))
        if history == "exact":
            self.refresh_history()
        self._staleness = [0.0] * sum(info.is_graph for info in self.infos)
        self.reset_ledger()

    @property
    def is_distributed(self) -> bool:
        """Whether each rank is a process of its own."""
        return self._group.is_distributed

    @property
    def rank(self) -> int:
        """Of this process; 0 where all ranks run in it."""
        return self._group.transports[0].rank

    # Setting up -----------------------------------------------------------------------------------

    def _agree_on_partition(self, partition: Partition | None, shuffle_factor: int) -> Partition:
        """That given, else one by METIS, which rank 0 makes for all."""
        nodes = self._num_nodes
        if partition is not None:
            check_partition(partition, nodes)
            if partition.num_chunks != self.chunks:
                raise ArgumentError(
                    f"partition: has {partition.num_chunks} chunks, but chunks={self.chunks}"
                )
            return partition
        check_chunks(self.chunks, nodes)  # on all ranks, not on that alone which makes it

        def make() -> tuple[Tensor, tuple[int, ...]]:
            edges = self._data.edge_index.cpu()
            made = partition_graph(
                edges, nodes, self.chunks, shuffle_factor=shuffle_factor, seed=self.seed
            )
            return made.order, made.starts

        return Partition(*self._group.from_rank_0(make))

    def _make_graphs(self) -> dict[int, WayGraph]:
        """The parts of the graph of this process's ways, with the edges that its layers read."""
        held = [self.stage_layers[each.rank // self.ways] for each in self._group.transports]
        kinds = {kind for layers in held for i in layers if (kind := self.infos[i].kind)}
        data = self._data
        return {
            way: make_way_graph(
                data.edge_index.cpu(),
                self._num_nodes,
                self.partition,
                ways=self.ways,
                way=way,
                kinds=sorted(kinds),
                edge_weight=data.get("edge_weight"),
                dtype=data.x.dtype,
            )
            for way in {each.rank % self.ways for each in self._group.transports}
        }

    # Training -------------------------------------------------------------------------------------

    def train_epoch(self, optimizer: torch.optim.Optimizer) -> float:
        """One pass of all chunks through all stages and back, and one step of the optimizer.

        Args:
            optimizer: of ``parameters()``.

        Returns:
            The loss before the step, over all training nodes, on every rank.

        Raises:
            RankFailedError: another rank is gone; its number is in the message.
        """
        optimizer.zero_grad(set_to_none=True)
        order = slot_order(self.chunks // self.ways, self.seed, self.epoch, self.shuffle)
        refresh = (self.epoch + 1) % self.snapshot_period == 0
        self._set_mode(training=True)
        with self._saving:
            losses = self._group.run(lambda rank: rank.run_epoch(order, refresh))
        optimizer.step()
        self.epoch += 1
        told = self._group.gather(
            [
                (loss, rank.stage.staleness())
                for loss, rank in zip(losses, self._group.ranks, strict=True)
            ]
        )
        self._staleness = self._sum_staleness([norms for _, norms in told])
        return math.fsum(loss for loss, _ in told)

    def _set_mode(self, training: bool) -> None:
        for rank in self._group.ranks:
            rank.stage.set_mode(training, self.epoch)

    @torch.no_grad()
    def evaluate(self) -> Tensor:
        """Exact logits of all vertices by the weights as they are, as the one-process model's.

        Returns:
            (V, out) in the order of ``data``, on the CPU, on every rank.
        """
        self._set_mode(training=False)
        outputs = self._group.run(lambda rank: rank.run_exactly(keep=False))
        last = [
            torch.cat(parts).cpu() if rank.number == self.stages - 1 else None
            for rank, parts in zip(self._group.ranks, outputs, strict=True)
        ]
        found = [part for part in self._group.gather(last, "evaluation") if part is not None]
        logits = torch.empty(self._num_nodes, found[0].shape[1], dtype=found[0].dtype)
        logits[self.partition.order] = torch.cat(found)
        return logits

    def refresh_history(self) -> None:
        """Makes the snapshot that of the weights as they are, with the dropout of the next epoch.

        All ranks together; its bytes count as control. Nothing is done where none is read.
        """
        if not self.reads_snapshots:
            return
        self._set_mode(training=True)
        with torch.no_grad():
            self._group.run(lambda rank: rank.run_exactly(keep=True, kind="control"))

    # What is told ---------------------------------------------------------------------------------

    def staleness(self) -> list[float]:
        """Of each graph layer, how far the rows that it read were from their snapshot in the last
        epoch: the Frobenius norm of the difference over that of the rows; 0 where no snapshot is
        read."""
        return list(self._staleness)

    def _sum_staleness(self, told: list[list[tuple[float, float]]]) -> list[float]:
        """Of ranks' sums of squares, in the order of the ranks."""
        found = []
        for stage in range(self.stages):
            ways = told[stage * self.ways : (stage + 1) * self.ways]
            for layer in zip(*ways, strict=True):
                change, size = (math.fsum(part) for part in zip(*layer, strict=True))
                found.append(math.sqrt(change / size) if size else 0.0)
        return found

    def gather(self, value: Any) -> list[Any]:
        """A value of each process, in the order of the ranks, on all: for what they must agree on.

        Args:
            value: whatever can be pickled.
        """
        return self._group.gather([value])

    def events(self) -> list[Event]:
        """What all ranks did in the last epoch, on every rank; times since its first action, right
        where all ranks run on one machine."""
        told = self._group.gather([rank.events for rank in self._group.ranks])
        begun = min((event.start for events in told for event in events), default=0.0)
        return [
            replace(event, start=event.start - begun, end=event.end - begun)
            for events in told
            for event in events
        ]

    def ledgers(self) -> list[dict[str, dict[str, float]]]:
        """Of each rank, bytes and messages sent and seconds waited, by kind, since
        ``reset_ledger``; on every rank."""
        return self._group.gather([rank.transport.ledger.as_dict() for rank in self._group.ranks])

    def ledger(self) -> dict[str, int]:
        """Bytes sent by all ranks, by kind: layer, graph, weight, evaluation, control."""
        total: dict[str, int] = {}
        for ledger in self.ledgers():
            for kind, count in ledger["bytes"].items():
                total[kind] = total.get(kind, 0) + int(count)
        return total

    def reset_ledger(self) -> None:
        """Sets the counts of this process's ranks to zero."""
        for rank in self._group.ranks:
            rank.transport.ledger.reset()

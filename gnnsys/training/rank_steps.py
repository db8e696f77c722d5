"""Training on mini-batches by several ranks, each of which takes one batch of a step.

Owns what makes their steps one: torch's ``DistributedDataParallel``, whose gradients are summed as
all messages between ranks are sent, so that one that is gone ends the others. Invariants: all ranks
have the same weights, losses and metrics; the batches, and what a batch draws, do not depend on the
number of ranks.
"""

# Annotations are objects in this module: DDP looks at those of its hook.

import dataclasses
import platform
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch_geometric.data import Data

from gnnsys.config.resolve import Run
from gnnsys.counters import Counters
from gnnsys.features.statistics import counts_of_ranks
from gnnsys.loaders.static_shapes import Padding
from gnnsys.ranks.distributed import DistributedTransport
from gnnsys.ranks.group import (
    gather_objects,
    group_transport,
    on_all_ranks,
    told_by_first_rank,
)
from gnnsys.ranks.ring import ring_all_reduce
from gnnsys.rng import dropout_key
from gnnsys.system.budget import own_memory, resident_memory
from gnnsys.system.scratch import ScratchFolder
from gnnsys.training.datasets import NodeDataset
from gnnsys.training.divided_layers import DividedLayers
from gnnsys.training.evaluation import Evaluation
from gnnsys.training.metrics import measure
from gnnsys.training.mini_batch import MiniBatch
from gnnsys.training.models import NodeClassifier
from gnnsys.training.steps import AskedToEndError
from gnnsys.training.task import Part

__all__ = ["RankSteps"]


class RankSteps(MiniBatch):
    """One rank's part of every step; arguments as of ``MiniBatch``."""

    def __init__(
        self,
        run: Run,
        dataset: NodeDataset,
        model: NodeClassifier,
        evaluation: Evaluation | None,
    ) -> None:
        transport = group_transport()
        assert transport is not None
        self._rank, self._world = transport.rank, transport.world
        super().__init__(run, dataset, model, evaluation)
        self.batches_a_step = self._world
        if self._evaluation is not None:
            self._divided = DividedLayers()
            reads = gather_objects(self._evaluation.reads.settled())[0]  # one choice for all
            self._evaluation = dataclasses.replace(self._evaluation, reads=reads)
        self._own = Counters()  # of which ``served`` was made
        self._own_reads = dataset.reads()
        self.reads = self._own_reads
        self._epoch = self._first = 0  # of the step in hand: its epoch and its first batch
        self._begin_together(transport, model)

    def _begin_together(self, transport: DistributedTransport, model: NodeClassifier) -> None:
        """Gives all ranks the same weights, and the steps what sums their gradients."""
        gather_objects(None)  # DDP, which does not look who is alive, begins when all are there
        with warnings.catch_warnings():  # a new torch has another word for this, an old one none
            warnings.simplefilter("ignore", FutureWarning)
            together = DistributedDataParallel(
                _ForBatches(model, self._trained), broadcast_buffers=False
            )
        together.register_comm_hook(transport, _sum_over_ranks)
        self._trained = together
        # DDP orders its sums by the first two steps: a run that goes on begins with the same ones.
        for _ in range(2):
            self._loss_of_nothing().backward()

    def batches(self, epoch: int, first: int) -> Iterator[Any]:
        """A batch for each step; None where other ranks alone have one, at the end."""
        own = super().batches(epoch, first)
        for number in range(first, self.num_batches(), self._world):
            self._epoch, self._first = epoch, number
            yield next(own, None)

    def train(self, batch: Any) -> tuple[float, int]:
        size, total = self._config.batch_size, self._dataset.task.num_seeds("train")
        seeds = min(self._world * size, total - self._first * size)  # of all ranks
        number = self._first + self._rank
        torch.manual_seed(dropout_key(self._config.seed, self._epoch, batch=number))
        self._begin_step()
        own = 0 if batch is None else batch.batch_size
        loss = self._own_loss(batch)
        (loss * (own / seeds)).backward()
        self._sum_gradients()
        self.optimizer.step()
        return sum(self._exchange(loss.item() * own)) / seeds, seeds

    def _own_loss(self, batch: Any) -> Tensor:
        """The mean over this rank's seeds; without any, whatever takes part in the sums."""
        if batch is not None:
            return self._loss(batch)
        self.served = self._dataset.served()
        return self._loss_of_nothing()

    def _sum_gradients(self) -> None:
        """Nothing to do: DDP has done so, going backward."""

    def inputs(self, batch: Any) -> Any:
        """Rows that are not finite, of the first rank that has some; else None."""
        bad = None
        if batch is not None:
            rows = ~torch.isfinite(batch.x.float()).all(1)
            bad = Data(x=batch.x[rows].cpu(), n_id=batch.n_id[rows].cpu())
        found = gather_objects(bad)
        return next((each for each in found if each is not None and len(each.x)), None)

    def _loss_of_nothing(self) -> Tensor:
        """What a rank without a batch computes, to take part in the sums: of a node of zeros."""
        features = self._dataset.features
        x = torch.zeros(1, features.shape[1], dtype=features.dtype, device=self._device)
        no_edges = torch.empty(2, 0, dtype=torch.int64, device=self._device)
        hops = [0] * self._config.layers
        with self._autocast:
            return self._trained(x, no_edges, [1, *hops], hops).sum()

    def evaluate(self, metrics: Iterable[str], part: Part) -> dict[str, float]:
        """By logits that all ranks compute together; exact ones are measured by rank 0, which
        tells the others."""
        if self._evaluation is None:
            found = super().evaluate(metrics, part)
        else:
            task = self._dataset.node_task
            nodes = task.nodes(part)
            kept = self._kept(nodes, *self._exact(nodes, self._evaluation))
            found = told_by_first_rank(lambda: measure(metrics, kept, task.labels, nodes))
        self.served = self._dataset.served()
        self._exchange(0.0)
        return found

    def _make_folder(self, rows: Sequence[int]) -> ScratchFolder | None:
        leads = self._divided is not None and self._divided.leads
        make = super()._make_folder
        return on_all_ranks(lambda: make(rows) if leads else None)

    def logits(self, nodes: Tensor) -> Iterator[Tensor]:
        if self._evaluation is not None:
            yield from super().logits(nodes)
            return
        own = super().logits(nodes)
        blocks = -(-len(nodes) // self._config.batch_size)
        for _ in range(0, blocks, self._world):
            block, asked = None, False
            try:
                block = next(own, None)
            except AskedToEndError:
                asked = True
            found = gather_objects((block, asked), "evaluation")
            if any(asked for _, asked in found):
                raise AskedToEndError
            yield from (block for block, _ in found if block is not None)

    def any_rank(self, wish: bool) -> bool:
        return any(gather_objects(wish))

    def _exchange(self, loss: float) -> list[float]:
        """The losses of all ranks; ``served`` and ``reads`` become those of all of them."""
        self._own, self._own_reads = self.served, self._dataset.reads()
        told = gather_objects((loss, self.served.tiers(), self._own_reads, self._sizes))
        self.served = Counters()
        for _, tiers, _, _ in told:
            for tier, served in tiers.items():
                self.served.add(tier, served.rows, served.bytes)
        self.reads = counts_of_ranks([reads for _, _, reads, _ in told])
        self.padded_sizes = [sizes for *_, sizes in told]
        return [loss for loss, *_ in told]

    def _padding(self) -> Padding | None:
        if not self._config.static_shapes:
            return None
        return sum(filter(None, gather_objects(self._loader.padding)), start=Padding())

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "ranks": self.ranks()}

    def ranks(self) -> list[dict[str, Any]]:
        transport, resident = group_transport(), resident_memory()
        assert transport is not None
        memory = {"peak": resident.peak, "resident": resident.now, "own": own_memory()}
        sent = transport.ledger.as_dict()
        if nbytes := self._own_reads.get("bytes_sent"):
            sent["bytes"]["cache"] = nbytes
        return gather_objects(
            {
                "machine": platform.node(),
                **self._own.as_dict(),
                "reads": self._own_reads,
                "load_seconds": self.load_seconds,
                "sent": sent,
                "memory": memory,
            }
        )


class _ForBatches(nn.Module):
    """A model, compiled where it is to be; what a rank without a batch computes is too small to
    compile for."""

    def __init__(self, model: NodeClassifier, compiled: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model = model
        self._compiled = (compiled,)  # has the same weights, which a module would name twice

    def forward(self, x: Tensor, edge_index: Tensor, *sizes: Any) -> Tensor:
        """Outputs of all nodes."""
        run = self._compiled[0] if edge_index.shape[1] else self.model
        out: Tensor = run(x, edge_index, *sizes)
        return out


def _sum_over_ranks(
    transport: DistributedTransport,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[Tensor]:
    """DDP's hook for the gradients of some parameters, which may be called in the backward pass."""
    gradients = bucket.buffer()
    transport.drive(ring_all_reduce(transport, gradients, range(transport.world)))
    devices = [gradients.device] if gradients.is_cuda else None
    summed: torch.futures.Future[Tensor] = torch.futures.Future(devices=devices)
    summed.set_result(gradients)
    return summed

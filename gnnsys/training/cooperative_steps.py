"""Training on mini-batches that several ranks draw and compute together, one a step.

Owns what ``CooperativeSampler`` leaves to those who train: seeds and labels of a step, its loss,
and the sum of the weights' gradients. Invariant: a step is that of one process on the joint batch,
but for dropout's draws.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from gnnsys.loaders.cooperative import CooperativeSampler, JointBatch
from gnnsys.loaders.seed_batches import Epochs, ShuffledSeeds
from gnnsys.ranks.distributed import DistributedTransport
from gnnsys.ranks.group import gather_objects, told_by_first_rank, transport_for_thread
from gnnsys.ranks.ring import ring_all_reduce
from gnnsys.training.models import NodeClassifier
from gnnsys.training.rank_steps import RankSteps

__all__ = ["CooperativeSteps"]


class CooperativeSteps(RankSteps):
    """One rank's part of every step; arguments as of ``MiniBatch``."""

    def _begin_together(self, transport: DistributedTransport, model: NodeClassifier) -> None:
        model.load_state_dict(told_by_first_rank(model.state_dict))
        self._transport, self._classifier = transport, model
        self._drawing = transport_for_thread()
        self._joint = CooperativeSampler(
            self._sampler, self._dataset.features, transport=transport, drawing=self._drawing
        )
        self._rows = self._rows_received = self._sent_before = 0  # in the epoch

    def batches(self, epoch: int, first: int) -> Iterator[Any]:
        """This rank's part of a joint batch for each step, drawn while those before are trained
        on: by all ranks, also where a run is broken off in between."""
        config, train = self._config, self._dataset.node_task.train
        size = config.batch_size
        samples = self._samples.begin(epoch, first)
        shuffled = ShuffledSeeds(len(train), Epochs(), config.seed, config.seed_block, train)
        order = shuffled.order(samples)
        self._rows = self._rows_received = 0
        self._sent_before = self._sent()
        numbers = range(first, self.num_batches(), self._world)
        seeds = (train[order[each * size : (each + self._world) * size]] for each in numbers)
        joint = self._joint.batches(seeds, samples, first // self._world, self._make_batch)
        with closing(joint):
            for number in numbers:
                began = time.perf_counter()
                batch = next(joint)
                self.load_seconds += time.perf_counter() - began
                self._epoch, self._first = epoch, number
                self._rows += len(batch.n_id)
                self._rows_received += batch.joint.num_received
                yield batch

    def _make_batch(self, joint: JointBatch) -> Data:
        own = joint.n_id[: joint.batch_size]
        return Data(
            x=joint.x,
            y=self._dataset.node_task.labels[own],
            n_id=joint.n_id,
            batch_size=len(own),
            joint=joint,
            served=self._dataset.served(),
        )

    def _own_loss(self, batch: Any) -> Tensor:
        self.served = batch.served
        x, y = batch.x.to(self._device), batch.y.to(self._device)
        with self._autocast:
            out = self._classifier.forward_jointly(x, batch.joint, self._degrees(batch.n_id))
        if self._config.precision == "bf16":
            out = out.float()
        return self._loss_of(out, y) if len(out) else out.sum()

    def _sum_gradients(self) -> None:
        found = [each.grad for each in self._model.parameters() if each.grad is not None]
        flat = torch.cat([each.flatten() for each in found])
        transport = self._transport
        transport.drive(ring_all_reduce(transport, flat, range(transport.world)))
        parts = flat.split([each.numel() for each in found])
        for each, summed in zip(found, parts, strict=True):
            each.copy_(summed.view_as(each))

    def facts(self) -> dict[str, Any]:
        """Of all ranks: input rows, each once; those of them that were sent to another rank,
        counted for each; and bytes sent for joint batches."""
        told = gather_objects((self._rows, self._rows_received, self._sent() - self._sent_before))
        names = "rows", "rows_received", "bytes_sent"
        return {"joint": dict(zip(names, map(sum, zip(*told, strict=True)), strict=True))}

    def _sent(self) -> int:
        return sum(each.ledger.bytes["joint"] for each in (self._transport, self._drawing))

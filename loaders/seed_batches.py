"""Which seeds make up which batch of which epoch.

Owns the order of seeds and the numbers of batches. Imports ``rng``, ``system`` and torch.
Invariant: without a sampler or a generator of the user, the order is a function of (seed, epoch)
alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler

from gnnsys import rng
from gnnsys.system.budget import SEEDS, process_budget

__all__ = [
    "Epochs",
    "GeneratedSeeds",
    "SeedBatch",
    "SequentialSeeds",
    "ShuffledSeeds",
    "number_batches",
]


@dataclass(frozen=True, slots=True)
class SeedBatch:
    """The seeds of one batch."""

    epoch: int

    number: int
    """In its epoch, from 0."""

    positions: Tensor
    """(batch,) int64 into the loader's input nodes or links."""

    def __str__(self) -> str:
        return f"batch {self.number} of epoch {self.epoch}"


@dataclass(slots=True)
class Epochs:
    """Counts the epochs of a loader; the loader and its order of seeds share one."""

    next: int = 0
    """The epoch that the next iteration is."""

    first_batch: int = 0
    """The batch that it begins with, by its number among those of all ranks."""

    def begin(self) -> tuple[int, int]:
        """The epoch and the first batch of an iteration that begins."""
        begun = self.next, self.first_batch
        self.next, self.first_batch = self.next + 1, 0
        return begun


class SequentialSeeds(SequentialSampler):
    """The seeds as they are given. PyTorch Lightning tells loaders apart by this base class."""

    def __init__(self, num_seeds: int, epochs: Epochs) -> None:
        super().__init__(range(num_seeds))
        self.epochs = epochs

    def set_epoch(self, epoch: int) -> None:
        """Makes ``epoch`` the next one; ``DistributedSampler`` has this method too."""
        self.epochs.next = epoch

    def order(self, epoch: int) -> range:
        """(seeds,) positions of the seeds in an epoch."""
        del epoch
        return range(len(self))


class ShuffledSeeds(RandomSampler):
    """The seeds in an order of their own each epoch, from (seed, epoch).

    With a ``block`` above 1, so many of them stay together, by ``ids`` where those are given: they
    are sorted and cut into blocks, the first of which ends, in each epoch, anywhere in the first
    ``block`` seeds; the blocks are shuffled instead of the seeds.

    >>> ShuffledSeeds(9, Epochs(), seed=0, block=3).order(epoch=1).tolist()
    [1, 2, 3, 4, 5, 6, 0, 7, 8]
    """

    def __init__(
        self, num_seeds: int, epochs: Epochs, seed: int, block: int = 1, ids: Tensor | None = None
    ) -> None:
        super().__init__(range(num_seeds))
        self.epochs = epochs
        self.seed = seed
        self.block = block
        self._sorted = None if ids is None or block == 1 else ids.argsort(stable=True)
        if self._sorted is not None:
            process_budget().hold(SEEDS, self._sorted.nbytes, self._sorted)

    @staticmethod
    def most_bytes(num_seeds: int, block: int) -> int:
        """The most that the order of an epoch takes while it is made, with what it is made of.

        >>> ShuffledSeeds.most_bytes(1000, 1), ShuffledSeeds.most_bytes(1000, 100)
        (8000, 24480)
        """
        if block == 1:
            return 8 * num_seeds
        return 24 * num_seeds + 40 * (num_seeds // block + 2)  # with the sorted ones; five a block

    def set_epoch(self, epoch: int) -> None:
        """Makes ``epoch`` the next one; ``DistributedSampler`` has this method too."""
        self.epochs.next = epoch

    def order(self, epoch: int, first: int | None = None) -> Tensor:
        """(seeds,) positions of the seeds in an epoch, or of its ``first`` ones."""
        count, block = len(self), self.block
        if block == 1:
            return torch.from_numpy(rng.permutation(count, self.seed, epoch, first))
        (offset,) = rng.permutation(block, self.seed, epoch, 1)
        starts = np.arange(offset - block, count, block)
        starts = starts[rng.permutation(len(starts), self.seed, epoch)]
        lengths = (starts + block).clip(max=count) - starts.clip(0)
        before = np.cumsum(lengths) - lengths
        order = np.repeat(starts.clip(0) - before, lengths)
        order += np.arange(count)
        places = torch.from_numpy(order[:first])
        return places if self._sorted is None else self._sorted[places]

    def __iter__(self) -> Iterator[int]:
        yield from self.order(self.epochs.next).tolist()


class GeneratedSeeds(RandomSampler):
    """The seeds in the orders that torch's ``DataLoader`` takes from a generator."""

    def __init__(self, num_seeds: int, generator: torch.Generator) -> None:
        super().__init__(range(num_seeds), generator=generator)

    def __iter__(self) -> Iterator[int]:
        # DataLoader draws a seed for its workers first, whether it has any or not.
        torch.empty((), dtype=torch.int64).random_(generator=self.generator)
        yield from super().__iter__()


def number_batches(
    batches: Iterable[list[int]], epochs: Epochs, rank: int = 0, world_size: int = 1
) -> Iterator[SeedBatch]:
    """The batches of the next epoch, which begins with this call.

    Args:
        batches: of all ranks together, the same ones on each.
        epochs: has the epoch and the first batch; step t of a rank is batch
            ``first + t * world_size + rank``.
        rank: which of ``world_size`` ranks this is.

    >>> batches = BatchSampler(SequentialSeeds(3, epochs := Epochs()), 2, drop_last=False)
    >>> [(str(batch), batch.positions.tolist()) for batch in number_batches(batches, epochs)]
    [('batch 0 of epoch 0', [0, 1]), ('batch 1 of epoch 0', [2])]
    """
    epoch, first = epochs.begin()
    if type(batches) is BatchSampler and isinstance(
        batches.sampler, (SequentialSeeds, ShuffledSeeds)
    ):
        numbers = range(first + rank, len(batches), world_size)
        order = batches.sampler.order(epoch)
        if isinstance(order, Tensor):
            process_budget().hold(SEEDS, order.nbytes, order)
        return _slices(order, batches.batch_size, epoch, numbers)
    return _listed(islice(enumerate(batches), first + rank, None, world_size), epoch)


def _slices(
    order: Tensor | range, size: int, epoch: int, numbers: Iterable[int]
) -> Iterator[SeedBatch]:
    for number in numbers:
        part = order[number * size : (number + 1) * size]
        if isinstance(part, range):
            part = torch.arange(part.start, part.stop)
        yield SeedBatch(epoch, number, part)


def _listed(batches: Iterable[tuple[int, list[int]]], epoch: int) -> Iterator[SeedBatch]:
    for number, positions in batches:
        yield SeedBatch(epoch, number, torch.as_tensor(positions, dtype=torch.int64))

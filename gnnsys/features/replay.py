"""The node ids of the batches that training samples, without training.

Owns ``sampled_ids``, ``epoch_ids`` and ``training_seeds``. Invariant: batch by batch these are the
ids, in the order, that ``gnnsys.NeighborLoader`` gives for the same graph, seeds, fanouts, batch
size and seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.dataset.folder import Dataset
from gnnsys.errors import ArgumentError
from gnnsys.loaders import CSC, NeighborSampler
from gnnsys.loaders.seed_batches import Epochs, ShuffledSeeds

__all__ = ["epoch_ids", "sampled_ids", "training_seeds"]


def sampled_ids(
    graph: CSC,
    seeds: Tensor,
    fanouts: Sequence[int],
    *,
    batch_size: int = 1024,
    batches: int = 200,
    seed: int = 0,
    seed_block: int = 1,
    threads: int = 0,
) -> Iterator[NDArray[np.int64]]:
    """Samples the first batches of a training run, epoch after epoch.

    Args:
        graph: in-neighbours of each node.
        seeds: (n,) int64 training nodes.
        fanouts: neighbours of a node for each hop, nearest the seeds first; -1 takes all.
        batch_size: seeds of a batch; the last one of an epoch may have fewer.
        batches: how many, over as many epochs as it takes.
        seed: of the order of seeds and of the draws.
        seed_block: seeds with neighbouring ids that are shuffled as one.
        threads: that sample; 0 for all cores.

    Yields:
        (m,) distinct ids of each batch, the seeds first.

    Raises:
        ArgumentError: no seeds, or an option that cannot be used.

    >>> import torch
    >>> ring = CSC(torch.arange(5), torch.tensor([3, 0, 1, 2]))
    >>> batches = sampled_ids(ring, torch.tensor([0, 2]), [1], batch_size=1, batches=3)
    >>> [sorted(ids.tolist()) for ids in batches]
    [[0, 3], [1, 2], [1, 2]]
    """
    if len(seeds) == 0:
        raise ArgumentError("seeds: none; name training nodes when the dataset is converted")
    if batch_size < 1 or batches < 0 or seed_block < 1:
        raise ArgumentError(
            f"batch_size {batch_size}, batches {batches}, seed_block {seed_block}: expected at "
            "least 1, 0 and 1"
        )
    sampler = NeighborSampler(graph, list(fanouts), seed=seed, threads=threads)
    per_epoch = -(-len(seeds) // batch_size)
    for epoch in range(-(-batches // per_epoch)):
        most = min(len(seeds), (batches - epoch * per_epoch) * batch_size)
        yield from epoch_ids(
            sampler,
            seeds,
            epoch,
            batch_size=batch_size,
            seed=seed,
            seed_block=seed_block,
            most=most,
        )


def epoch_ids(
    sampler: NeighborSampler,
    seeds: Tensor,
    epoch: int,
    *,
    batch_size: int,
    seed: int,
    seed_block: int = 1,
    most: int | None = None,
) -> Iterator[NDArray[np.int64]]:
    """Samples the batches of one epoch, in their order.

    Args:
        sampler: of training, which may go on to be used.
        seeds: (n,) int64 training nodes.
        epoch: its number, from 0.
        batch_size: seeds of a batch; the last one may have fewer.
        seed: of the order of seeds.
        seed_block: seeds that stay together in it.
        most: seeds to take; None for all.

    Yields:
        (m,) distinct ids of each batch, the seeds first.
    """
    order = ShuffledSeeds(len(seeds), Epochs(), seed, seed_block, seeds).order(epoch, most)
    for group, positions in enumerate(order.split(batch_size)):
        yield sampler.sample(seeds[positions], group, epoch).node.cpu().numpy()


def training_seeds(dataset: Dataset) -> tuple[Tensor, str]:
    """(n,) ids of the training nodes, or of all nodes where none are named, and which these are."""
    train = dataset.split("train")
    if len(train):
        return train, "training nodes"
    return torch.arange(dataset.num_nodes()), "all nodes, for no training nodes are named"

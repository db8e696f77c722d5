"""The node ids of the batches that training samples, without training.

Owns ``sampled_ids``, ``sampled_ids_of_types``, ``epoch_ids``, and what they draw around and from:
``target_of``, ``training_seeds`` and ``source_to_sample``. Invariant: batch by batch these are the
ids, in the order, that ``gnnsys.NeighborLoader`` gives for the same graph, seeds, fanouts, batch
size and seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.sampler import HeteroSamplerOutput, SamplerOutput

from gnnsys.dataset.folder import Dataset
from gnnsys.dataset.format import NODE_TYPE
from gnnsys.errors import ArgumentError
from gnnsys.loaders import CSC, NeighborSampler
from gnnsys.loaders.seed_batches import Epochs, ShuffledSeeds

__all__ = [
    "epoch_ids",
    "first_batches",
    "nodes_by_type",
    "sampled_ids",
    "sampled_ids_of_types",
    "source_to_sample",
    "target_of",
    "training_seeds",
]


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
    options: dict[str, Any] = {
        "batch_size": batch_size, "batches": batches, "seed": seed, "seed_block": seed_block,
        "threads": threads,
    }  # fmt: skip
    for found in sampled_ids_of_types(graph, NODE_TYPE, seeds, fanouts, **options):
        yield found[NODE_TYPE]


def sampled_ids_of_types(
    source: Any,
    target: str,
    seeds: Tensor,
    fanouts: Sequence[int],
    *,
    batch_size: int = 1024,
    batches: int = 200,
    seed: int = 0,
    seed_block: int = 1,
    threads: int = 0,
) -> Iterator[dict[str, NDArray[np.int64]]]:
    """``sampled_ids`` of a graph with types.

    Args:
        source: the graph as ``NeighborSampler`` takes it; nodes of one without types are of
            ``NODE_TYPE``.
        target: node type of the seeds.
        seeds, fanouts, batch_size, batches, seed, seed_block, threads: as there.

    Yields:
        (m,) distinct ids of each node type in a batch.

    Raises:
        ArgumentError: no seeds, or an option that cannot be used.

    >>> import torch
    >>> from torch_geometric.data import HeteroData
    >>> data = HeteroData(a={"num_nodes": 3}, b={"num_nodes": 2})
    >>> data["a", "to", "b"].edge_index = torch.tensor([[2, 0], [0, 1]])
    >>> (batch,) = sampled_ids_of_types(data, "b", torch.tensor([0]), [1], batches=1)
    >>> {kind: ids.tolist() for kind, ids in batch.items()}
    {'a': [2], 'b': [0]}
    """
    if len(seeds) == 0:
        raise ArgumentError("seeds: none; name training nodes when the dataset is converted")
    if batch_size < 1 or batches < 0 or seed_block < 1:
        raise ArgumentError(
            f"batch_size {batch_size}, batches {batches}, seed_block {seed_block}: expected at "
            "least 1, 0 and 1"
        )
    sampler = NeighborSampler(source, list(fanouts), seed=seed, threads=threads)
    shuffled = ShuffledSeeds(len(seeds), Epochs(), seed, seed_block, seeds)
    for epoch, group, positions in first_batches(shuffled, batch_size, batches):
        part = seeds[positions]
        out = sampler.sample({target: part} if sampler.is_hetero else part, group, epoch)
        yield nodes_by_type(out)


def first_batches(
    shuffled: ShuffledSeeds, batch_size: int, batches: int
) -> Iterator[tuple[int, int, Tensor]]:
    """The epoch, the number in it, and the positions of the seeds, of the first batches of a run.

    >>> [*first_batches(ShuffledSeeds(3, Epochs(), seed=0), 2, 3)]
    [(0, 0, tensor([0, 1])), (0, 1, tensor([2])), (1, 0, tensor([1, 2]))]
    """
    count = len(shuffled)
    per_epoch = -(-count // batch_size)
    for epoch in range(-(-batches // per_epoch)):
        most = min(count, (batches - epoch * per_epoch) * batch_size)
        for group, positions in enumerate(shuffled.order(epoch, most).split(batch_size)):
            yield epoch, group, positions


def nodes_by_type(out: SamplerOutput | HeteroSamplerOutput) -> dict[str, NDArray[np.int64]]:
    """The ids of each node type that were sampled; ``NODE_TYPE`` of a graph without types."""
    nodes = out.node if isinstance(out, HeteroSamplerOutput) else {NODE_TYPE: out.node}
    return {kind: ids.cpu().numpy() for kind, ids in nodes.items()}


def epoch_ids(
    sampler: NeighborSampler,
    seeds: Tensor,
    epoch: int,
    *,
    batch_size: int,
    seed: int,
    seed_block: int = 1,
) -> Iterator[NDArray[np.int64]]:
    """Samples the batches of one epoch, in their order.

    Args:
        sampler: of training, which may go on to be used.
        seeds: (n,) int64 training nodes.
        epoch: its number, from 0.
        batch_size: seeds of a batch; the last one may have fewer.
        seed: of the order of seeds.
        seed_block: seeds that stay together in it.

    Yields:
        (m,) distinct ids of each batch, the seeds first.
    """
    order = ShuffledSeeds(len(seeds), Epochs(), seed, seed_block, seeds).order(epoch)
    for group, positions in enumerate(order.split(batch_size)):
        yield sampler.sample(seeds[positions], group, epoch).node.cpu().numpy()


def source_to_sample(dataset: Dataset) -> Any:
    """The stores of a dataset as ``NeighborSampler`` takes them; no feature is read."""
    return dataset.stores(edge_features=False, device="cpu", storage="mmap")


def target_of(dataset: Dataset, target: str | None = None) -> str:
    """The node type that batches are drawn around.

    Args:
        dataset: that is open.
        target: as the user named it; None for the one that the folder's task is of.

    Raises:
        ArgumentError: there is no such type, or several and neither names one.
    """
    if target is not None:
        if target not in dataset.node_types:
            hint = "; an edge type goes with gnnsys train --task link" if "," in target else ""
            raise ArgumentError(
                f"--target {target}: {dataset.path} has no such node type; expected one of "
                f"{', '.join(dataset.node_types)}{hint}"
            )
        return target
    if dataset.task is not None:
        return dataset.task.node_type
    if dataset.heterogeneous:
        tasks = dataset.manifest.source.get("tasks", {})
        given = f"--task, one of {', '.join(tasks)}, or " if tasks else ""
        raise ArgumentError(
            f"{dataset.path}: names no task, so that it is not known which nodes batches are of; "
            f"give {given}--target, one of {', '.join(dataset.node_types)}"
        )
    return NODE_TYPE


def training_seeds(dataset: Dataset, target: str = NODE_TYPE) -> Tensor:
    """(n,) ids of the training nodes of a type, or of all its nodes where none are named."""
    train = dataset.split("train", target)
    return train if len(train) else torch.arange(dataset.num_nodes(target))

"""What draws batches of links, and the nodes of those that training would draw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.sampler import EdgeSamplerInput

from gnnsys.config.links import link_training
from gnnsys.config.train import TrainConfig
from gnnsys.dataset.folder import Dataset
from gnnsys.errors import ArgumentError
from gnnsys.features.replay import first_batches, nodes_by_type, source_to_sample
from gnnsys.loaders import LinkNegatives, NeighborSampler, degree_weights
from gnnsys.loaders.seed_batches import Epochs, ShuffledSeeds
from gnnsys.training.link_task import LinkTask, stacked
from gnnsys.training.step_parts import make_sampler

__all__ = ["link_ids", "link_negatives", "link_sampler"]


def link_sampler(
    config: TrainConfig,
    task: LinkTask,
    source: Any,
    time_attr: str | None = None,
    *,
    hide_links: bool,
) -> NeighborSampler:
    """What draws the neighbourhoods of both ends.

    Args:
        config: filled in.
        task: whose links are predicted.
        source: a graph as ``NeighborSampler`` takes it.
        time_attr: name of the times in it; None to sample all.
        hide_links: whether no edge joins the ends of a link of the batch.
    """
    return make_sampler(
        config,
        source,
        device="cpu",
        hide_links=hide_links,
        reverse_types=task.reverse_types if hide_links else None,
        time_attr=time_attr,
    )


def link_negatives(
    config: TrainConfig, task: LinkTask, links: Tensor, num_nodes: Mapping[str, int], name: str
) -> LinkNegatives | None:
    """The negatives of a run; hard ones are found later, and uniform until then.

    Args:
        config: with the options about links.
        task: whose links are predicted.
        links: (2, n) int64 sources above targets, those to train on, none of which is a negative.
        num_nodes: of each node type.
        name: of the dataset, for errors.

    Raises:
        ArgumentError: a source that has all targets.
    """
    options, num_targets = link_training(config), num_nodes[task.edge_type[2]]
    if options.sampling == "in-batch":
        return None
    weight = hard = None
    if options.sampling == "degree":
        weight = degree_weights(links[1], num_targets)
    drawable = num_targets if weight is None else int((weight > 0).sum())
    _check_drawable(task, links, drawable, num_targets, name)
    if options.sampling == "hard":
        hard = torch.full((num_nodes[task.edge_type[0]], 1), -1, dtype=torch.int32)
    return LinkNegatives(
        "triplet",
        options.negatives,
        dst_weight=weight,
        known=links,
        hard=hard,
        num_hard=None if hard is None else -(-options.negatives // 2),
    )


def _check_drawable(
    task: LinkTask, links: Tensor, drawable: int, num_targets: int, name: str
) -> None:
    if int(torch.bincount(links[0]).max()) < drawable:
        return
    pairs = (links[0] * num_targets + links[1]).unique()  # parallel links count once
    full = (torch.bincount(pairs // num_targets) >= drawable).nonzero()[:, 0]
    if len(full):
        raise ArgumentError(
            f"--task link: node {int(full[0])} of type {task.edge_type[0]!r} of {name} has links "
            f"to all {drawable} nodes of type {task.edge_type[2]!r} that can be drawn, so that "
            "none is a negative; give --negative-sampling in-batch, or leave such links out of the "
            "graph"
        )


def link_ids(
    config: TrainConfig, dataset: Dataset, task: LinkTask, batches: int
) -> Iterator[dict[str, NDArray[np.int64]]]:
    """Samples the first batches of a training run on links, epoch after epoch, without training.

    They are those of ``gnnsys train`` without times; with hard negatives, those of its first epoch
    alone.

    Args:
        config: filled in.
        dataset: that is open.
        task: of its links.
        batches: how many.

    Yields:
        (m,) distinct ids of each node type in a batch.

    Raises:
        ArgumentError: see ``link_negatives``.
    """
    pairs = stacked(task.links("train"))
    source = source_to_sample(dataset) if dataset.heterogeneous else dataset.graph()
    sampler = link_sampler(config, task, source, hide_links=task.is_edge)
    num_nodes = {kind: dataset.num_nodes(kind) for kind in task.ends}
    negatives = link_negatives(config, task, pairs, num_nodes, dataset.name)
    shuffled = ShuffledSeeds(pairs.shape[1], Epochs(), config.seed, config.seed_block)
    for epoch, group, some in first_batches(shuffled, config.batch_size, batches):
        inputs = EdgeSamplerInput(
            input_id=some,
            row=pairs[0, some],
            col=pairs[1, some],
            input_type=task.edge_type if dataset.heterogeneous else None,
        )
        out = sampler.sample_from_edges(inputs, negatives, group=group, epoch=epoch)
        yield nodes_by_type(out)

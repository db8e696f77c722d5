"""What a run on a heterogeneous dataset folder takes in memory, by name, beforehand.

Owns ``plan_types``: as ``memory.plan_memory`` it reserves all but the rows of features, which
``gnnsys.features.setup`` divides what is left for. Nothing is trained; a batch is sampled.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch_geometric.sampler import HeteroSamplerOutput

from gnnsys.config.train import TrainConfig
from gnnsys.dataset.folder import Dataset
from gnnsys.dataset.format import Task
from gnnsys.features.options import FeatureOptions
from gnnsys.features.replay import source_to_sample, training_seeds
from gnnsys.features.setup import feature_tables, reserve_ranking
from gnnsys.features.topology import NEIGHBOURS, OFFSETS
from gnnsys.loaders.seed_batches import ShuffledSeeds
from gnnsys.system.budget import SEEDS, SPLITS, process_budget
from gnnsys.system.extension import core
from gnnsys.training.batch_memory import (
    SAMPLER,
    BatchSize,
    answer_bytes,
    reserve_batches,
    reserve_libraries,
)
from gnnsys.training.step_parts import make_sampler, spread_seeds

__all__ = ["plan_types"]

_EMBEDDINGS = "embeddings of nodes"
_LOOKED_AT = 2
"""Copies that looking for weights which are not finite makes, about."""
_TOO_SMALL = "give more memory, fewer --fanouts, a smaller --batch-size or --hidden"


def plan_types(
    config: TrainConfig,
    dataset: Dataset,
    task: Task,
    options: FeatureOptions,
    *,
    trains: bool = True,
) -> int:
    """Reserves what a run takes beside its features, in the budget of this process.

    A folder that cannot be trained on is left to ``load_dataset``, which says so.

    Args:
        config: filled in; of mini-batches.
        dataset: heterogeneous.
        task: with the node type that is trained on, or would be, if it had labels.
        options: of its features.
        trains: whether it is trained on, or only evaluated.

    Returns:
        Classes, or labels of a node; 0 where the folder does not say.

    Raises:
        TooLargeError: what is known before a batch was sampled does not fit.
    """
    budget, target = process_budget(), task.node_type
    reserve_libraries()
    targets = [dataset.num_nodes(kind[2]) for kind in dataset.edge_types]
    budget.reserve(OFFSETS, 8 * sum(1 + count for count in targets), mapped=True)
    neighbours = (each.tables["indices"].data_bytes for each in dataset.manifest.edges.values())
    budget.reserve(NEIGHBOURS, sum(neighbours), mapped=True)
    labels = dataset.manifest.nodes[target].tables.get("labels")
    if labels is not None:
        task = _counted(task, labels.shape)
        budget.reserve("labels, mapped", labels.data_bytes, mapped=True)
    parts = {name: dataset.split_size(name, target) for name in ("train", "val", "test")}
    budget.reserve(SPLITS, 8 * sum(parts.values()), mapped=True)
    seeds, _ = training_seeds(dataset, target)
    if trains:
        budget.reserve(SEEDS, ShuffledSeeds.most_bytes(len(seeds), config.seed_block))
    tables = feature_tables(dataset)
    bare = sum(dataset.num_nodes(kind) for kind in dataset.node_types if kind not in tables)
    hidden = config.hidden or 0
    budget.reserve(_EMBEDDINGS, 4 * (_copies(config) if trains else 1) * bare * hidden)
    budget.check(_TOO_SMALL)
    if len(seeds) == 0:
        return task.num_classes
    batch = _draw(config, dataset, target, seeds)
    drawn = {kind: len(ids) for kind, ids in batch.node.items()}
    maps = (core.Sampler.map_bytes(dataset.num_nodes(kind), count) for kind, count in drawn.items())
    budget.reserve(SAMPLER, sum(maps))
    edges = {kind: len(ids) for kind, ids in batch.row.items()}
    rows = [(drawn.get(kind, 0), table) for kind, table in tables.items()]
    size = BatchSize(
        nodes=sum(drawn.values()),
        sampled_bytes=8 * (sum(drawn.values()) + 3 * sum(edges.values())),
        row_bytes=sum(4 * count * math.prod(table.shape[1:]) for count, table in rows),
        stored_bytes=sum(count * table.encoding.row_stride for count, table in rows),
    )
    step = size.row_bytes + _layer_bytes(config, size.nodes, drawn, edges)
    reserve_batches(config, options, size, step, trains=trains)
    judged = max(parts["val"], parts["test"]) * answer_bytes(config, task)
    budget.reserve("what evaluation predicts", judged)
    reserve_ranking(dataset, options)
    return task.num_classes


def _copies(config: TrainConfig) -> int:
    """Tensors of the size of the embeddings that there are at a time, at most."""
    kept = 3  # the weights, their gradient, the best weights so far
    decays = config.weight_decay > 0 and config.optimizer != "adamw"  # a gradient of its own
    if config.optimizer == "sgd":
        return kept + (config.momentum != 0) + max(decays, _LOOKED_AT)
    # Two moments; a step makes the root of the second, and its quotient.
    return kept + 2 + max(2 + decays, _LOOKED_AT)


def _counted(task: Task, shape: tuple[int, ...]) -> Task:
    """With the number of labels of a node, where it has several."""
    if not task.multi_label or task.num_classes:
        return task
    return Task(node_type=task.node_type, num_classes=shape[1], multi_label=True)


def _draw(config: TrainConfig, dataset: Dataset, target: str, train: Tensor) -> HeteroSamplerOutput:
    """A batch of seeds from all over the training nodes."""
    seeds = spread_seeds(train, config.batch_size)
    sampler = make_sampler(config, source_to_sample(dataset), device="cpu")
    out: HeteroSamplerOutput = sampler.sample({target: seeds}, 0)
    return out


def _layer_bytes(
    config: TrainConfig, nodes: int, drawn: dict[str, int], edges: dict[tuple[str, str, str], int]
) -> int:
    """Of what autograd keeps and makes for a batch behind its inputs."""
    width = 4 * (config.hidden or 0)
    sources = sum(drawn.get(kind[0], 0) for kind in edges)  # once for each edge type
    messages = sum(edges.values()) * (3 if config.model in ("hgt", "gat") else 1)
    return width * (2 * nodes + config.layers * (8 * nodes + 2 * sources + messages))

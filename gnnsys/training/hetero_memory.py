"""What a run on a heterogeneous dataset folder takes in memory, by name, beforehand.

Owns ``plan_types``: as ``memory.plan_memory`` it reserves all but the rows of features, which
``gnnsys.features.setup`` divides what is left for. Nothing is trained; a batch is sampled.
"""

from __future__ import annotations

import math

import torch
from torch_geometric.sampler import HeteroSamplerOutput

from gnnsys.config.train import TrainConfig
from gnnsys.dataset.folder import Dataset
from gnnsys.dataset.format import Task
from gnnsys.features.options import FeatureOptions
from gnnsys.features.setup import feature_tables, reserve_ranking
from gnnsys.features.topology import NEIGHBOURS, OFFSETS
from gnnsys.loaders.seed_batches import ShuffledSeeds
from gnnsys.system.budget import SEEDS, process_budget
from gnnsys.system.extension import core
from gnnsys.training.batch_memory import (
    SAMPLER,
    BatchSize,
    answer_bytes,
    reserve_batches,
    reserve_libraries,
)
from gnnsys.training.seed_tasks import NODE, reserve_seeds, task_of
from gnnsys.training.seed_times import draw_timed, reserve_times
from gnnsys.training.step_parts import make_sampler, spread_seeds

__all__ = ["plan_types"]

_EMBEDDINGS = "embeddings of nodes"
_LOOKED_AT = 2
"""Copies that looking for weights which are not finite makes, about."""
_TOO_SMALL = "give more memory, fewer --fanouts, a smaller --batch-size or --hidden"


def plan_types(
    config: TrainConfig,
    dataset: Dataset,
    options: FeatureOptions,
    *,
    trains: bool = True,
    timed: bool = False,
) -> int:
    """Reserves what a run takes beside its features, in the budget of this process.

    A folder that cannot be trained on is left to ``load_dataset``, which says so.

    Args:
        config: filled in; of mini-batches.
        dataset: heterogeneous.
        options: of its features.
        trains: whether it is trained on, or only evaluated.
        timed: whether the seeds have times.

    Returns:
        Classes, or labels of a node; 0 where the folder does not say.

    Raises:
        ArgumentError: a target that there is not, or has no labels.
        TooLargeError: what is known before a batch was sampled does not fit.
    """
    task = task_of(dataset, config.target, config.task)
    budget = process_budget()
    reserve_libraries()
    targets = [dataset.num_nodes(kind[2]) for kind in dataset.edge_types]
    budget.reserve(OFFSETS, 8 * sum(1 + count for count in targets), mapped=True)
    neighbours = (each.tables["indices"].data_bytes for each in dataset.manifest.edges.values())
    budget.reserve(NEIGHBOURS, sum(neighbours), mapped=True)
    parts = reserve_seeds(dataset, task, config.task)
    task = _counted(task, dataset, config.task)
    if timed:
        reserve_times(dataset)
    if trains:
        budget.reserve(SEEDS, ShuffledSeeds.most_bytes(parts["train"], config.seed_block))
    tables = feature_tables(dataset)
    bare = sum(dataset.num_nodes(kind) for kind in dataset.node_types if kind not in tables)
    hidden = config.hidden or 0
    budget.reserve(_EMBEDDINGS, 4 * (_copies(config) if trains else 1) * bare * hidden)
    budget.check(_TOO_SMALL)
    if parts["train"] == 0:
        return task.num_classes
    batch = draw_timed(config, dataset) if timed else _draw(config, dataset, task)
    assert isinstance(batch, HeteroSamplerOutput)
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


def _counted(task: Task, dataset: Dataset, name: str) -> Task:
    """With the number of labels of a node, where it has several."""
    if not task.multi_label or task.num_classes:
        return task
    labels = dataset.manifest.nodes[task.node_type].tables["labels"]
    return Task(node_type=task.node_type, num_classes=labels.shape[1], multi_label=True)


def _draw(config: TrainConfig, dataset: Dataset, task: Task) -> HeteroSamplerOutput:
    """A batch of seeds from all over those of training."""
    table = "train" if config.task == NODE else f"train.{config.task}.nodes"
    seeds = torch.from_numpy(dataset.node_table(table, task.node_type).copy())
    seeds = spread_seeds(seeds, config.batch_size)
    source = dataset.stores(edge_features=False, device="cpu", storage="mmap")
    sampler = make_sampler(config, source, device="cpu")
    out: HeteroSamplerOutput = sampler.sample({task.node_type: seeds}, 0)
    return out


def _layer_bytes(
    config: TrainConfig, nodes: int, drawn: dict[str, int], edges: dict[tuple[str, str, str], int]
) -> int:
    """Of what autograd keeps and makes for a batch behind its inputs."""
    width = 4 * (config.hidden or 0)
    sources = sum(drawn.get(kind[0], 0) for kind in edges)  # once for each edge type
    messages = sum(edges.values()) * (3 if config.model in ("hgt", "gat") else 1)
    return width * (2 * nodes + config.layers * (8 * nodes + 2 * sources + messages))

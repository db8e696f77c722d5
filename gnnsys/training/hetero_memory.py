"""What a run on a heterogeneous dataset folder takes in memory, by name, beforehand.

Owns ``plan_types``: as ``memory.plan_memory`` it reserves all but the rows of features, which
``gnnsys.features.setup`` divides what is left for. Nothing is trained; a batch is sampled.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Mapping

import torch
from torch import Tensor
from torch_geometric.sampler import HeteroSamplerOutput

from gnnsys.cache.embedding.directory import RowDirectory
from gnnsys.cache.engine import PAGE_BYTES
from gnnsys.choices import NO_FOLDERS
from gnnsys.config.train import TrainConfig
from gnnsys.config.user_model import is_user_model
from gnnsys.dataset.folder import Dataset
from gnnsys.dataset.format import Task
from gnnsys.errors import ArgumentError
from gnnsys.features.options import FeatureOptions
from gnnsys.features.replay import source_to_sample, training_seeds
from gnnsys.features.setup import cache_bytes, feature_tables, reserve_ranking
from gnnsys.features.topology import NEIGHBOURS, OFFSETS
from gnnsys.loaders.seed_batches import ShuffledSeeds
from gnnsys.nn.embedding import STATE_OF
from gnnsys.system.budget import (
    BATCHES,
    EMBEDDING_READS,
    EMBEDDINGS,
    EMBEDDINGS_IN_MEMORY,
    SEEDS,
    process_budget,
)
from gnnsys.system.extension import core
from gnnsys.training.batch_memory import (
    SAMPLER,
    BatchSize,
    answer_bytes,
    reserve_batches,
    reserve_libraries,
)
from gnnsys.training.embedding_tables import given_place, record_bytes
from gnnsys.training.seed_tasks import NODE, reserve_seeds
from gnnsys.training.seed_times import draw_timed, reserve_times
from gnnsys.training.step_parts import make_sampler, spread_seeds

__all__ = [
    "layer_bytes",
    "plan_types",
    "reserve_embeddings",
    "reserve_open_embeddings",
    "reserve_sampler",
]

_log = logging.getLogger(__name__)
_LOOKED_AT = 2
"""Copies that looking for weights which are not finite makes, about."""
_IN_MEMORY = 0.75
"""Share of the memory left that embeddings may take by ``--embeddings auto``."""
_SHARE = 0.9
"""Of it that a cache of embeddings and one of features have together."""
_READ_AHEAD = 2
"""Batches whose embeddings are read ahead."""
_TOO_SMALL = (
    "give more memory, fewer --fanouts, a smaller --batch-size or --hidden, or --embeddings FOLDER "
    "where there are embeddings of nodes"
)


def plan_types(
    config: TrainConfig,
    dataset: Dataset,
    task: Task,
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
        task: with the node type that is trained on, or would be, if it had labels.
        options: of its features.
        trains: whether it is trained on, or only evaluated.
        timed: whether the seeds have times.

    Returns:
        Classes, or labels of a node; 0 where the folder does not say.

    Raises:
        TooLargeError: what is known before a batch was sampled does not fit.
    """
    budget = process_budget()
    reserve_libraries()
    targets = [dataset.num_nodes(kind[2]) for kind in dataset.edge_types]
    budget.reserve(OFFSETS, 8 * sum(1 + count for count in targets), mapped=True)
    neighbours = (each.tables["indices"].data_bytes for each in dataset.manifest.edges.values())
    budget.reserve(NEIGHBOURS, sum(neighbours), mapped=True)
    parts = reserve_seeds(dataset, task, config.task, timed=timed)
    task = _counted(task, dataset)
    seeds = _train_seeds(config, dataset, task)
    if timed:
        reserve_times(dataset)
    if trains:
        budget.reserve(SEEDS, ShuffledSeeds.most_bytes(len(seeds), config.seed_block))
    is_open = reserve_embeddings(config, dataset, trains=trains)
    budget.check(_TOO_SMALL)
    if len(seeds) == 0:
        return task.num_classes
    batch = draw_timed(config, dataset) if timed else _draw(config, dataset, task, seeds)
    assert isinstance(batch, HeteroSamplerOutput)
    drawn = {kind: len(ids) for kind, ids in batch.node.items()}
    edges = {kind: len(ids) for kind, ids in batch.row.items()}
    size = reserve_sampler(dataset, drawn, sum(edges.values()))
    step = size.row_bytes + layer_bytes(config, size.nodes, drawn, edges)
    reserve_batches(config, options, size, step, trains=trains)
    judged = max(parts["val"], parts["test"]) * answer_bytes(config, task)
    budget.reserve("what evaluation predicts", judged)
    if is_open:
        reserve_open_embeddings(config, dataset, options, drawn, size.stored_bytes)
    reserve_ranking(dataset, options)
    return task.num_classes


def reserve_sampler(dataset: Dataset, drawn: Mapping[str, int], edges: int) -> BatchSize:
    """Reserves the places of nodes in a batch, and says what that has.

    Args:
        dataset: that it is of.
        drawn: nodes of each type in it.
        edges: of all types in it.
    """
    maps = (core.Sampler.map_bytes(dataset.num_nodes(kind), count) for kind, count in drawn.items())
    process_budget().reserve(SAMPLER, sum(maps))
    rows = [(drawn.get(kind, 0), table) for kind, table in feature_tables(dataset).items()]
    nodes = sum(drawn.values())
    return BatchSize(
        nodes=nodes,
        sampled_bytes=8 * (nodes + 3 * edges),
        row_bytes=sum(4 * count * math.prod(table.shape[1:]) for count, table in rows),
        stored_bytes=sum(count * table.encoding.row_stride for count, table in rows),
    )


def reserve_embeddings(config: TrainConfig, dataset: Dataset, *, trains: bool) -> bool:
    """Reserves the embeddings that lie in memory, whatever else there is.

    Args:
        config: filled in.
        dataset: heterogeneous.
        trains: whether they are trained, or only read.

    Returns:
        Whether some lie in files, or may, for ``reserve_open_embeddings``.

    Raises:
        ArgumentError: a folder for embeddings, where there are none.
    """
    place, in_memory = given_place(config), _in_memory(config, dataset, trains)
    if place not in NO_FOLDERS and trains and not in_memory:
        raise ArgumentError(
            f"--embeddings {place}: all node types of {dataset.path} have features; leave it out"
        )
    if place == "ram" or (place == "auto" and not trains):
        process_budget().reserve(EMBEDDINGS_IN_MEMORY, in_memory)
        return False
    return trains and in_memory > 0


def reserve_open_embeddings(
    config: TrainConfig,
    dataset: Dataset,
    options: FeatureOptions,
    drawn: dict[str, int],
    traffic: int,
) -> None:
    """Reserves embeddings that are trained, in memory or the cache of their files, of what all else
    but features leaves.

    Args:
        config: filled in; of other embeddings than ``--embeddings ram``.
        dataset: heterogeneous.
        options: of its features.
        drawn: nodes of each type in a batch.
        traffic: bytes of features that a batch reads.
    """
    budget, place = process_budget(), given_place(config)
    in_memory = _in_memory(config, dataset, trains=True)
    if place == "auto" and in_memory <= _IN_MEMORY * budget.left():
        budget.reserve(EMBEDDINGS_IN_MEMORY, in_memory)
        return
    _reserve_tables(config, _bare(dataset), drawn, traffic, cache_bytes(dataset, options))
    if place == "auto":
        _log.warning(
            "--embeddings auto: %d bytes in memory, more than %d %% of what is left; they "
            "lie in files in %s, %d bytes of memory are for a cache of them", in_memory,
            100 * _IN_MEMORY, config.out or tempfile.gettempdir(), budget.planned(EMBEDDINGS),
        )  # fmt: skip


def _bare(dataset: Dataset) -> dict[str, int]:
    """Nodes of each type without features."""
    tables = feature_tables(dataset)
    return {kind: dataset.num_nodes(kind) for kind in dataset.node_types if kind not in tables}


def _in_memory(config: TrainConfig, dataset: Dataset, trains: bool) -> int:
    """Bytes of the embeddings and what is made of them."""
    copies = 1
    if trains:  # with the weights, their optimizer's state, and the best so far
        copies = 2 + len(STATE_OF[config.embedding_optimizer]) + _LOOKED_AT
    return 4 * copies * sum(_bare(dataset).values()) * (config.hidden or 0)


def _reserve_tables(
    config: TrainConfig,
    bare: dict[str, int],
    drawn: dict[str, int],
    traffic: int,
    of_features: int,
) -> None:
    """Reserves the cache of embeddings in files. Features that want all that is left have as much
    of it as a batch takes of their bytes, or what all embeddings leave.

    Args:
        config: filled in.
        bare: nodes of each type without features.
        drawn: nodes of each type in a batch.
        traffic: bytes of features that a batch reads.
        of_features: bytes that their cache asks for.
    """
    budget, rows = process_budget(), sum(bare.values())
    in_batch = sum(drawn.get(kind, 0) for kind in bare)
    record = record_bytes(config)
    budget.reserve(
        EMBEDDING_READS, _READ_AHEAD * in_batch * PAGE_BYTES * (1 + record // PAGE_BYTES)
    )
    budget.reserve(BATCHES, budget.planned(BATCHES) * 4 // 3)  # one more waits for its rows
    directory, of_a_row = RowDirectory.bytes_of(rows, 0), record + RowDirectory.bytes_of(0, 1)
    room = int(_SHARE * budget.left()) - directory
    share = in_batch * record / max(1, in_batch * record + traffic)
    wanted = max(room - of_features, int(share * room) if config.cache == "auto" else 0)
    least = in_batch * of_a_row  # else a batch does not fit
    budget.reserve(EMBEDDINGS, directory + min(rows * of_a_row, max(least, wanted)))
    budget.check(_TOO_SMALL)


def _counted(task: Task, dataset: Dataset) -> Task:
    """With the number of labels of a node, where it has several."""
    if not task.multi_label or task.num_classes:
        return task
    labels = dataset.manifest.nodes[task.node_type].tables["labels"]
    return Task(node_type=task.node_type, num_classes=labels.shape[1], multi_label=True)


def _train_seeds(config: TrainConfig, dataset: Dataset, task: Task) -> Tensor:
    """(n,) nodes of those of training."""
    if config.task == NODE:
        return training_seeds(dataset, task.node_type)
    rows = dataset.node_table(f"train.{config.task}.nodes", task.node_type)
    return torch.from_numpy(rows.copy())


def _draw(config: TrainConfig, dataset: Dataset, task: Task, train: Tensor) -> HeteroSamplerOutput:
    """A batch of seeds from all over those of training."""
    seeds = spread_seeds(train, config.batch_size)
    sampler = make_sampler(config, source_to_sample(dataset), device="cpu")
    out: HeteroSamplerOutput = sampler.sample({task.node_type: seeds}, 0)
    return out


def layer_bytes(
    config: TrainConfig, nodes: int, drawn: dict[str, int], edges: dict[tuple[str, str, str], int]
) -> int:
    """Of what autograd keeps and makes for a batch behind its inputs."""
    width = 4 * (config.hidden or 0)
    sources = sum(drawn.get(kind[0], 0) for kind in edges)  # once for each edge type
    attends = config.model in ("rgat", "hgt", "gat") or is_user_model(config.model)
    messages = sum(edges.values()) * (3 if attends else 1)
    return width * (2 * nodes + config.layers * (8 * nodes + 2 * sources + messages))

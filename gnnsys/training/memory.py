"""What a run on sampled mini-batches of a dataset folder takes in memory, by name, beforehand.

Owns ``plan_memory``: it reserves in the process's budget all but the rows of features, which
``gnnsys.features.setup`` divides what is left for. Nothing is trained; a batch or two are sampled.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gnnsys.cache.making import LEAST_STAGING
from gnnsys.choices import NO_FOLDERS
from gnnsys.config.checks import check_bytes
from gnnsys.config.heterogeneous import check_heterogeneous
from gnnsys.config.links import check_link_run
from gnnsys.config.resolve import Run
from gnnsys.config.train import TrainConfig
from gnnsys.config.user_model import is_user_model
from gnnsys.dataset.folder import Dataset, open_dataset
from gnnsys.dataset.format import MANIFEST, NODE_TYPE, Task
from gnnsys.errors import StorageError, UnsupportedError
from gnnsys.features.importance import needs_importance
from gnnsys.features.options import FeatureOptions, TopologyOptions
from gnnsys.features.packing import planner_bytes
from gnnsys.features.replay import training_seeds
from gnnsys.features.setup import reserve_ranking
from gnnsys.features.topology import OFFSETS, graph_to_sample, plan_topology
from gnnsys.loaders import CSC
from gnnsys.loaders.seed_batches import ShuffledSeeds
from gnnsys.system.budget import (
    ACTIVATIONS,
    BLOCKS,
    SEEDS,
    process_budget,
    resident_memory,
)
from gnnsys.system.extension import core
from gnnsys.system.once import warn_once
from gnnsys.system.scratch import ScratchFolder, reclaim_scratch
from gnnsys.training.batch_memory import (
    SAMPLER,
    BatchSize,
    answer_bytes,
    reserve_batches,
    reserve_libraries,
)
from gnnsys.training.datasets import NodeDataset
from gnnsys.training.evaluation import Evaluation, plan_evaluation
from gnnsys.training.hetero_memory import plan_types
from gnnsys.training.inference_reads import SUMS
from gnnsys.training.layer_reads import plan_reads
from gnnsys.training.link_memory import plan_links
from gnnsys.training.link_task import is_link_task
from gnnsys.training.seed_tasks import NODE, reserve_seeds, task_of
from gnnsys.training.seed_times import draw_timed, reserve_times
from gnnsys.training.step_parts import make_sampler, spread_seeds
from gnnsys.training.task import PARTS

__all__ = [
    "activation_bytes",
    "activation_folder",
    "evaluation_of",
    "memory_facts",
    "plan_memory",
    "plan_memory_of_types",
    "plan_run",
    "planned_names",
    "reclaim_activations",
]

_log = logging.getLogger(__name__)
EVALUATED = "activations of evaluation"
SCOPE = "nodes that evaluation computes"
_TOO_SMALL = (
    "give more memory, fewer --ranks if there are several, fewer --fanouts, a smaller --batch-size "
    "or --hidden, or --eval sampled"
)
_LAYERS = "gnnsys-layers-"
"""How folders of activations begin."""
_IN_MEMORY = 0.25
"""Share of the memory left that activations may take."""
_BLOCKS = 2 * (64 << 20)
"""Bytes of a block of layerwise evaluation, measured: inputs and messages, and what is made of
them. What training had stays in pools meanwhile."""
_LAYER_NODES = 1 << 22
"""Of a block whose neighbours exact evaluation reads, about."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """The size of a batch, as drawn."""

    nodes: Sequence[int]
    """New ones of each hop, the seeds first."""
    edges: int

    @property
    def sampled_bytes(self) -> int:
        return 8 * (sum(self.nodes) + 3 * self.edges)


def plan_run(run: Run, *, trains: bool = True) -> Evaluation | None:
    """``plan_memory`` for a run of ``gnnsys train``, or for predictions by it; of others than on a
    folder nothing is known.

    A folder that cannot be trained on is left to ``load_dataset``, which says so.
    """
    budget = check_bytes("activation-budget", run.config.activation_budget)
    if trains and budget is not None and run.config.offload != "none" and run.device.type == "cpu":
        process_budget().reserve(ACTIVATIONS, budget)
    folder = Path(run.config.dataset)
    dataset = open_dataset(folder) if (folder / MANIFEST).is_file() else None
    if dataset is not None and is_link_task(dataset, run.config.task):
        _plan_links(run, dataset, trains)
        return None
    if dataset is not None and dataset.heterogeneous:
        check_heterogeneous(run.config)
        task = task_of(dataset, run.config.target, run.config.task)
        plan_memory_of_types(
            run.config, dataset, task, run.features, trains=trains, timed=run.timed
        )
        return None
    if run.config.full_batch or dataset is None:
        reserve_libraries()
        return None
    if dataset.task is None:
        return None
    if not dataset.has("features") or dataset.split_size("train") == 0:
        return None
    return plan_memory(
        run.config, dataset, run.features, run.topology, trains=trains, timed=run.timed
    )


def memory_facts() -> dict[str, Any]:
    """For JSON: ``names``, each with its bytes ``planned`` and ``held`` by all ``ranks`` of this
    machine, which hold the same; ``total``, if one was set; and what of this process is resident:
    ``anonymous`` and ``file`` now, ``peak`` of both."""
    budget, resident = process_budget(), resident_memory()
    return {
        "names": {
            entry.name: {"planned": entry.planned, "held": entry.held}
            for entry in budget.table_of_all()
        },
        "total": budget.total,
        "ranks": budget.ranks,
        **dataclasses.asdict(resident),
    }


def planned_names() -> dict[str, dict[str, int]]:
    """``names`` of ``memory_facts``, before anything is held."""
    table = process_budget().table_of_all()
    return {entry.name: {"planned": entry.planned, "held": 0} for entry in table if entry.planned}


def plan_memory(
    config: TrainConfig,
    dataset: Dataset,
    options: FeatureOptions,
    topology: TopologyOptions,
    *,
    trains: bool = True,
    timed: bool = False,
) -> Evaluation | None:
    """Reserves what a run takes beside its features, in the budget of this process.

    Returns how it is evaluated; None where that is not exact.

    Args:
        config: filled in; of mini-batches.
        dataset: homogeneous, with features and a task.
        options: of its features.
        topology: how its neighbours are read.
        trains: whether it is trained on, or only evaluated.
        timed: whether the seeds have times.

    Raises:
        TooLargeError: what is known before a batch was sampled does not fit.
    """
    budget = process_budget()
    nodes = dataset.num_nodes()
    tables = dataset.manifest.nodes[NODE_TYPE].tables
    reserve_libraries()
    budget.reserve(OFFSETS, 8 * (nodes + 1), mapped=True)
    seeds = training_seeds(dataset)
    exact = config.eval != "sampled"
    task = dataset.task or Task(node_type=NODE_TYPE, num_classes=0)
    parts = PARTS if exact else ("train", "val")  # test last, in parts
    reserve_seeds(dataset, task, NODE, parts, timed=timed)
    if timed:
        reserve_times(dataset)
    if trains:
        budget.reserve(SEEDS, ShuffledSeeds.most_bytes(len(seeds), config.seed_block))
    of_layers = core.Sampler.map_bytes(nodes, min(nodes, _LAYER_NODES)) if exact else 0
    budget.reserve(SAMPLER, of_layers + core.Sampler.map_bytes(nodes, config.batch_size))
    budget.check(_TOO_SMALL)
    graph = graph_to_sample(dataset, options.storage)
    if timed:
        out = draw_timed(config, dataset)
        batch = _Batch(out.num_sampled_nodes, len(out.row))
    else:
        batch = _draw(config, graph, seeds)
    budget.reserve(SAMPLER, of_layers + core.Sampler.map_bytes(nodes, sum(batch.nodes)))
    columns = math.prod(tables["features"].shape[1:])
    evaluation = None
    if exact:
        judged_by = dataset.split("val"), dataset.split("test")
        gathered = _epoch_bytes(config, batch, columns, len(seeds))
        evaluation = plan_evaluation(config, graph, *judged_by, columns, gathered)
        budget.reserve(SCOPE, sum(ids.nbytes for ids in evaluation.scope.layers or ()))
    training = 0
    if trains or not exact:
        stored = sum(batch.nodes) * tables["features"].encoding.row_stride
        size = BatchSize(
            nodes=sum(batch.nodes),
            sampled_bytes=batch.sampled_bytes,
            row_bytes=4 * sum(batch.nodes) * columns,
            stored_bytes=stored,  # read piece by piece, before it is moved
        )
        step = _step_bytes(config, batch, columns)
        training = reserve_batches(config, options, size, step, trains=trains)
    # Evaluation comes after training, in the same memory.
    if exact:
        evaluating = _BLOCKS + 24 * nodes - (LEAST_STAGING if options.cache != "none" else 0)
        budget.reserve(BLOCKS, max(0, evaluating - training))
    if config.pack:
        budget.reserve("planner of --pack", planner_bytes(options, tables["features"]))
    reserve_ranking(dataset, options)
    if dataset.task is not None:
        judged = max(
            (tables[name].shape[0] for name in ("val", "test") if name in tables), default=0
        )
        budget.reserve("what evaluation predicts", judged * answer_bytes(config, dataset.task))
    if evaluation is not None and dataset.task is not None:
        sizes = [evaluation.scope.sizes(nodes, config.layers)]
        if evaluation.test_at_end:
            sizes.append([nodes] * config.layers)  # at most
        needed = [_activation_share(config, rows, dataset.task.num_classes) for rows in sizes]
        in_files = not all(_fits(config, n) for n in needed)
        budget.reserve(EVALUATED, max((n for n in needed if _fits(config, n)), default=0))
        widths = [columns, *[config.hidden or 0] * (config.layers - 1), dataset.task.num_classes]
        reads = plan_reads(
            config,
            nodes=nodes,
            edges=graph.num_edges,
            widths=widths,
            feature_bytes=tables["features"].encoding.row_stride,
            left=budget.left(),
            in_files=in_files,
        )
        evaluation = dataclasses.replace(evaluation, reads=reads)
        if evaluation.test_at_end or evaluation.scope.layers is None:
            budget.reserve(SUMS, reads.memory or 0)
    if config.sampler == "gpu":  # whose kernels map all neighbours
        topology = TopologyOptions(topology="mmap")
    plan_topology(dataset, topology, options, config.ranks or 1)
    if evaluation is not None:
        evaluation.tell()
    return evaluation


def _plan_links(run: Run, dataset: Dataset, trains: bool) -> None:
    config = run.config
    check_link_run(config)
    if config.score == "presample" and needs_importance(dataset, run.features):
        raise UnsupportedError(
            "--score presample: samples around training nodes, not links; give degree, or store it "
            "by gnnsys score"
        )
    if dataset.heterogeneous:
        check_heterogeneous(config)
    if plan_links(run, dataset, trains=trains):
        _reserve_types(config, dataset, config.hidden or 0)


def plan_memory_of_types(
    config: TrainConfig,
    dataset: Dataset,
    task: Task,
    options: FeatureOptions,
    *,
    trains: bool = True,
    timed: bool = False,
) -> None:
    """``plan_memory`` for a heterogeneous dataset, whose evaluation has no other ways to choose
    from: see ``plan_types``."""
    num_classes = plan_types(config, dataset, task, options, trains=trains, timed=timed)
    if config.eval == "layerwise":
        _reserve_types(config, dataset, num_classes)


def _reserve_types(config: TrainConfig, dataset: Dataset, num_classes: int) -> None:
    """Reserves what an exact evaluation over types takes."""
    budget = process_budget()
    counts = [dataset.num_nodes(kind) for kind in dataset.node_types]
    budget.reserve(BLOCKS, _BLOCKS + 24 * max(counts))
    needed = _activation_share(config, [sum(counts)] * (config.layers + 1), num_classes)
    budget.reserve(EVALUATED, needed if _fits(config, needed) else 0)


def activation_bytes(config: TrainConfig, rows: Sequence[int], num_classes: int) -> int:
    """Of two layers, the most that exact evaluation has at a time.

    Args:
        config: filled in.
        rows: of each layer's outputs.
        num_classes: of the last layer's.
    """
    hidden = config.hidden or 0
    widths = [hidden] * (len(rows) - 2) + [max(hidden, num_classes)]
    pairs = zip(rows, rows[1:], widths, strict=False)
    return 4 * max(
        (first * hidden + second * width for first, second, width in pairs),
        default=rows[-1] * num_classes,
    )


def _activation_share(config: TrainConfig, rows: Sequence[int], num_classes: int) -> int:
    """Of ``activation_bytes``, which the ranks of a machine have together, this one's part."""
    return -(-activation_bytes(config, rows, num_classes) // process_budget().ranks)


def _keeps_activations(config: TrainConfig, needed: int) -> bool:
    """Whether evaluation keeps so many bytes in memory, as was planned or as is possible now."""
    planned = [each.planned for each in process_budget().table() if each.name == EVALUATED]
    return needed <= planned[0] if planned else _fits(config, needed)


def _fits(config: TrainConfig, needed: int) -> bool:
    if config.eval_store == "auto":
        return needed <= _IN_MEMORY * process_budget().left()
    return config.eval_store == "ram"


def activation_folder(
    config: TrainConfig, num_classes: int, rows: Sequence[int]
) -> ScratchFolder | None:
    """Where layers of so many rows are to be written; None for memory, as ``--eval-store`` says."""
    if config.eval_store == "ram":
        return None
    if config.eval_store == "auto":
        if _keeps_activations(config, _activation_share(config, rows, num_classes)):
            return None
        needed = activation_bytes(config, rows, num_classes)
        left = process_budget().left() * process_budget().ranks
        warn_once(
            _log, "two layers' activations take %d bytes, %d are left: they are written to files "
            "in %s; --eval-store chooses another place", needed, left, tempfile.gettempdir()
        )  # fmt: skip
    try:
        return ScratchFolder(_LAYERS, _store_place(config))
    except OSError as error:
        raise StorageError(
            f"--eval-store {config.eval_store}: cannot be written ({error.strerror}); name another "
            "folder, or ram"
        ) from error


def reclaim_activations(config: TrainConfig) -> None:
    """Removes what killed processes left where layers would be written."""
    reclaim_scratch(_LAYERS, _store_place(config))


def _store_place(config: TrainConfig) -> str | None:
    return None if config.eval_store in NO_FOLDERS else config.eval_store


def evaluation_of(config: TrainConfig, dataset: NodeDataset) -> Evaluation:
    """How a run on a dataset in hand is evaluated, for which no memory was planned."""
    columns = dataset.features.shape[1]
    task = dataset.node_task
    batch = _draw(config, dataset.graph, task.train)
    gathered = _epoch_bytes(config, batch, columns, len(task.train))
    found = plan_evaluation(config, dataset.graph, task.val, task.test, columns, gathered)
    found.tell()
    return found


def _epoch_bytes(config: TrainConfig, batch: _Batch, columns: int, seeds: int) -> int:
    """Of the rows that the first layers gather in an epoch of batches of this size, counted as
    those of evaluation."""
    return 4 * columns * (batch.edges + sum(batch.nodes)) * seeds // max(1, batch.nodes[0])


def _draw(config: TrainConfig, graph: CSC, train: Tensor) -> _Batch:
    """A batch of seeds from all over the training nodes."""
    seeds = spread_seeds(train, config.batch_size)
    out = make_sampler(config, graph, device="cpu").sample(seeds, 0)
    return _Batch(out.num_sampled_nodes, len(out.row))


def _step_bytes(config: TrainConfig, batch: _Batch, columns: int) -> int:
    """Of what autograd keeps and makes for a batch."""
    hidden = config.hidden or 0
    nodes = sum(batch.nodes)
    rows = nodes * columns * 4
    total = rows + rows // 4  # inputs after dropout, and its mask
    width = columns
    for hops in range(config.layers - 1, -1, -1):
        targets = sum(batch.nodes[: hops + 1])
        messages = 0
        # Untrimmed, or a value for each edge and head.
        if config.model in ("gat", "gcn") or is_user_model(config.model):
            targets = nodes
            messages = batch.edges * 4 * 16
        total += targets * 4 * (2 * width + 5 * hidden) + messages
        width = hidden
    return total

"""``gnnsys plan``: samples or replays batches, simulates caches and tells what to expect."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from gnnsys.cache.trace import Trace, TraceWriter, read_trace
from gnnsys.choices import DATASET_NAMES
from gnnsys.config.checks import check_bytes
from gnnsys.config.plan import PlanConfig
from gnnsys.config.train import TrainConfig
from gnnsys.convert.pyg import convert_pyg_name
from gnnsys.convert.spec import ConvertOptions
from gnnsys.dataset.folder import Dataset, open_dataset
from gnnsys.dataset.format import NODE_TYPE
from gnnsys.errors import ArgumentError, UnsupportedError
from gnnsys.features.importance import importance_for_cache
from gnnsys.features.options import FeatureOptions, TopologyOptions
from gnnsys.features.replay import sampled_ids, training_seeds
from gnnsys.features.setup import plan_features
from gnnsys.features.topology import graph_to_sample
from gnnsys.generate import generate_community
from gnnsys.plan.caches import Workload, count_touched, plan_budgets, run_cases
from gnnsys.plan.hardware import Hardware, measure_hardware, read_hardware
from gnnsys.plan.packing import packing_facts
from gnnsys.plan.text import case_facts, notes_on, print_plan
from gnnsys.system.budget import process_budget
from gnnsys.system.files import check_folder_of
from gnnsys.system.progress import Progress, work_progress
from gnnsys.system.records import json_text
from gnnsys.system.scratch import ScratchFolder
from gnnsys.system.sizes import parse_bytes
from gnnsys.system.threads import num_threads
from gnnsys.training.memory import plan_memory, planned_names
from gnnsys.training.task import DEMO_NODES

__all__ = ["make_plan", "run_command"]

_BATCHES = 200


def run_command(config: PlanConfig) -> int:
    """Plans and tells."""
    if config.picture is not None:
        check_folder_of(Path(config.picture), f"--picture {config.picture}")
    if config.parallel is not None:
        return _plan_splits(config)
    with work_progress() as progress:
        plan = make_plan(config, progress)
    if config.picture is not None:
        from gnnsys.plan.picture import write_picture

        write_picture(plan, Path(config.picture))
    if config.json:
        print(json_text(plan))
    else:
        print_plan(plan, Console())
    return 0


def _plan_splits(config: PlanConfig) -> int:
    """``--parallel``: plans how ranks share layers and vertices, and tells."""
    from gnnsys.plan.splits import make_parallel_plan
    from gnnsys.plan.splits_text import describe_plan, print_parallel_plan, split_cells
    from gnnsys.training.timeline import write_timelines

    with work_progress() as progress:
        plan, schedules = make_parallel_plan(config, progress)
    if config.picture is not None:
        names = [f"{row['mode']}, {row['stages']} x {row['ways']}" for row in plan["splits"]]
        write_timelines(
            Path(config.picture),
            f"Parallel plan of {Path(plan['dataset']).name}",
            describe_plan(plan),
            list(zip(names, schedules, strict=True)),
            "seconds" if plan["hardware"] else "forwards of a chunk",
            "stage",
            split_cells(plan),
            plan["notes"],
        )
    if config.json:
        print(json_text(plan))
    else:
        print_parallel_plan(plan, Console())
    return 0


def make_plan(
    config: PlanConfig, progress: Progress = lambda what, done, total: None
) -> dict[str, Any]:
    """What ``gnnsys plan --json`` prints.

    Raises:
        MissingFileError, FileFormatError: a dataset, trace or description that cannot be read.
        ArgumentError: a budget below a row, or a trace of another dataset.
        UnsupportedError: the graph is heterogeneous.
    """
    with _opened(config) as dataset:
        return _make_plan(config, dataset, progress)


def _make_plan(config: PlanConfig, dataset: Dataset, progress: Progress) -> dict[str, Any]:
    memory, evaluation = _memory(config, dataset)
    threads = num_threads(config.threads)
    victim_bytes = parse_bytes(config.victim_buffer, "--victim-buffer")
    hardware = _hardware(config, dataset)
    seeds, seeds_are = training_seeds(dataset)
    with _trace(config, dataset, seeds, progress) as trace:
        kind, importance = importance_for_cache(
            dataset,
            config.score,
            seeds=seeds,
            fanouts=config.fanouts,
            batch_size=config.batch_size,
            batches=len(trace),
            seed=config.seed + 1,  # not the batches that are planned: those are yet to come
            threads=config.threads,
            progress=progress,
        )
        epoch_batches = -(-len(seeds) // config.batch_size)
        epoch = epoch_batches if config.trace is None else None
        workload = _workload(
            config, dataset, trace, epoch, importance[NODE_TYPE] if importance else None
        )
        budgets = plan_budgets(workload, config.budget, victim_bytes)
        cases = [case for budget in budgets for case in budget.cases]
        results = run_cases(
            workload, cases, threads, lambda done, total: progress("simulate", done, total)
        )
        touched = count_touched(trace)
    found = iter(results)
    plan: dict[str, Any] = {
        "dataset": config.dataset if config.dataset in DATASET_NAMES else str(dataset.path),
        "rows": workload.rows,
        "row_bytes": workload.row_bytes,
        "dtype": workload.dtype,
        "feature_bytes": workload.bytes,
        "rows_touched": touched,
        "trace": config.trace,
        "seeds": seeds_are,
        "fanouts": None if config.trace else list(config.fanouts),
        "batch_size": config.batch_size,
        "batches": len(trace),
        "ranks": config.ranks,
        "ids": trace.num_ids,
        "epoch_batches": epoch_batches,
        "policy": config.policy,
        "window": config.window,
        "score": kind,
        "victim_bytes": victim_bytes,
        "hardware": dataclasses.asdict(hardware),
        "step_time_ms": config.step_time,
        "memory": memory,
        "evaluation": evaluation,
        "budgets": [
            {
                "budget": budget.text,
                "bytes": budget.bytes,
                "cases": {
                    case.role: case_facts(
                        case, next(found), hardware, epoch_batches, config.step_time / 1000
                    )
                    for case in budget.cases
                },
            }
            for budget in budgets
        ],
    }
    step_seconds = config.step_time / 1000
    for each in plan["budgets"]:
        each["packing"] = packing_facts(
            each["cases"]["belady"], workload.bytes, hardware, epoch_batches, step_seconds
        )
    plan["notes"] = notes_on(plan)
    return plan


def _memory(config: PlanConfig, dataset: Dataset) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What a training run with these options takes by name, with ``--cache auto`` and all ranks on
    one machine; and how it is evaluated, where that is exact."""
    fanouts, ranks = config.fanouts, config.ranks or 1
    run = TrainConfig(
        dataset=config.dataset,
        layers=len(fanouts),
        fanouts=fanouts,
        hidden=config.hidden,
        batch_size=config.batch_size,
        eval=config.eval,
        seed=config.seed,
        ranks=config.ranks,
    )
    features = FeatureOptions(score="auto" if config.score == "none" else config.score)
    with process_budget().run(check_bytes("memory", config.memory), ranks) as budget:
        evaluation = plan_memory(run, dataset, features, TopologyOptions.of(config))
        plan_features(dataset, features, ranks)
        if config.memory is not None:
            budget.check("give more --memory")
        facts = evaluation.facts() if evaluation is not None and evaluation.nodes else None
        return {"names": planned_names(), "total": budget.total, "ranks": ranks}, facts


@contextmanager
def _opened(config: PlanConfig) -> Iterator[Dataset]:
    """The dataset; one that has only a name lies in a temporary folder meanwhile."""
    if config.dataset not in DATASET_NAMES:
        yield _open(Path(config.dataset))
        return
    with closing(ScratchFolder("gnnsys-plan-")) as folder:
        path = folder.path / config.dataset
        if config.dataset == "demo":
            generate_community(path, nodes=DEMO_NODES, seed=config.seed)
        else:
            convert_pyg_name(config.dataset, Path(config.root), path, ConvertOptions())
        yield _open(path)


def _open(folder: Path) -> Dataset:
    dataset = open_dataset(folder)
    if dataset.heterogeneous:
        raise UnsupportedError(
            f"{folder}: heterogeneous; gnnsys plan takes homogeneous graphs so far"
        )
    if not dataset.has("features"):
        raise ArgumentError(
            f"{folder}: has no features to cache; convert it again with --features FILE"
        )
    return dataset


def _hardware(config: PlanConfig, dataset: Dataset) -> Hardware:
    if config.hardware != "this":
        return read_hardware(config.hardware)
    shard = dataset.manifest.nodes[NODE_TYPE].tables["features"].shards[0]
    return measure_hardware(dataset.path / shard.path)


@contextmanager
def _trace(
    config: PlanConfig, dataset: Dataset, seeds: Tensor, progress: Progress
) -> Iterator[Trace]:
    """The batches to plan; sampled ones lie in a temporary file meanwhile."""
    rows = dataset.num_nodes()
    if config.trace is not None:
        trace = read_trace(config.trace)
        if trace.num_rows != rows:
            raise ArgumentError(
                f"--trace {config.trace}: of a table of {trace.num_rows} rows, but {dataset.path} "
                f"has {rows} nodes; give a trace that was recorded with this dataset"
            )
        if len(trace) == 0:
            raise ArgumentError(f"--trace {config.trace}: holds no batch; record it again")
        yield trace[: config.batches]
        return
    batches = config.batches or _BATCHES
    run = sampled_ids(
        graph_to_sample(dataset),
        seeds,
        config.fanouts,
        batch_size=config.batch_size,
        batches=batches,
        seed=config.seed,
        seed_block=config.seed_block,
        threads=config.threads,
    )
    with closing(ScratchFolder("gnnsys-plan-")) as folder:
        path = folder.path / "trace"
        with TraceWriter(path, rows) as writer:
            for number, ids in enumerate(run, 1):
                writer.add(ids)
                progress("sample: batches", number, batches)
        yield read_trace(path)


def _workload(
    config: PlanConfig,
    dataset: Dataset,
    trace: Trace,
    epoch: int | None,
    importance: NDArray[np.uint16] | None,
) -> Workload:
    table = dataset.manifest.nodes[NODE_TYPE].tables["features"]
    return Workload(
        trace=trace,
        rows=table.shape[0],
        columns=int(np.prod(table.shape[1:], dtype=np.int64)),
        dtype=table.encoding.dtype,
        row_bytes=table.encoding.row_stride,
        offset=table.shards[0].bytes - table.shards[0].rows * table.encoding.row_stride,
        importance=importance,
        window=config.window,
        policy=config.policy,
        ranks=config.ranks,
        epoch=epoch,
    )

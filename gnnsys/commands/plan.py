"""``gnnsys plan``: samples or replays batches, simulates caches and tells what to expect."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from gnnsys.choices import DATASET_NAMES
from gnnsys.config.checks import check_bytes
from gnnsys.config.heterogeneous import check_heterogeneous
from gnnsys.config.plan import DEFAULT_BUDGETS, PlanConfig
from gnnsys.config.resolve import resolve
from gnnsys.config.times import check_timed
from gnnsys.config.train import TrainConfig
from gnnsys.convert.pyg import convert_pyg_name
from gnnsys.convert.spec import ConvertOptions
from gnnsys.dataset.folder import Dataset, open_dataset
from gnnsys.dataset.format import NODE_TYPE, Task
from gnnsys.dataset.times import timed_types
from gnnsys.errors import ArgumentError
from gnnsys.features.importance import importance_for_cache
from gnnsys.features.options import FeatureOptions, TopologyOptions
from gnnsys.features.setup import feature_tables, plan_features
from gnnsys.generate import generate_community
from gnnsys.memory.alloc import suit_freed_memory
from gnnsys.plan.batches import open_traces, planned_batches, workload_of
from gnnsys.plan.caches import Workload, count_touched, plan_budgets, run_cases
from gnnsys.plan.facts import case_facts, total_facts
from gnnsys.plan.hardware import Hardware, measure_hardware, read_hardware
from gnnsys.plan.packing import packing_facts
from gnnsys.plan.text import notes_on, print_plan
from gnnsys.system.budget import process_budget
from gnnsys.system.files import check_folder_of
from gnnsys.system.once import warn_once
from gnnsys.system.progress import Progress, work_progress
from gnnsys.system.records import json_text
from gnnsys.system.scratch import ScratchFolder
from gnnsys.system.sizes import parse_bytes
from gnnsys.system.threads import num_threads
from gnnsys.training.datasets import DEMO_NODES, check_one_type
from gnnsys.training.link_task import is_link_task
from gnnsys.training.memory import plan_memory, plan_memory_of_types, plan_run, planned_names
from gnnsys.training.seed_tasks import NODE, seeds_have_times, task_of
from gnnsys.training.seed_times import settle_times

__all__ = ["make_plan", "run_command"]

_log = logging.getLogger(__name__)


def run_command(config: PlanConfig) -> int:
    """Plans and tells."""
    if config.picture is not None:
        check_folder_of(Path(config.picture), f"--picture {config.picture}")
    if config.parallel is not None:
        return _plan_splits(config)
    if config.offload is not None:
        return _plan_activations(config)
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


def _plan_activations(config: PlanConfig) -> int:
    """``--offload``: plans which activations leave memory, and tells."""
    from gnnsys.plan.activations import make_activation_plan, print_activation_plan

    suit_freed_memory(0)  # as gnnsys train --offload does
    with work_progress() as progress:
        plan = make_activation_plan(config, progress)
    if config.json:
        print(json_text(plan))
    else:
        print_activation_plan(plan, Console())
    return 0


def make_plan(
    config: PlanConfig, progress: Progress = lambda what, done, total: None
) -> dict[str, Any]:
    """What ``gnnsys plan --json`` prints.

    Raises:
        MissingFileError, FileFormatError: a dataset, trace or description that cannot be read.
        ArgumentError: a budget below a row, a trace of another dataset, or no such target.
        UnsupportedError: an option that heterogeneous graphs cannot have.
    """
    with _opened(config) as dataset:
        return _make_plan(config, dataset, progress)


def _make_plan(config: PlanConfig, dataset: Dataset, progress: Progress) -> dict[str, Any]:
    planned = planned_batches(config, _run(config), dataset)
    target, seeds = planned.target, planned.seeds
    memory, evaluation = _memory(config, dataset, target)
    threads = num_threads(config.threads)
    victim_bytes = parse_bytes(config.victim_buffer, "--victim-buffer")
    hardware = _hardware(config, dataset)
    with open_traces(config, dataset, planned, progress) as traces:
        batches = len(next(iter(traces.values())))
        kind, importance = importance_for_cache(
            dataset,
            config.score,
            target=target,
            seeds=seeds,
            fanouts=config.fanouts,
            batch_size=config.batch_size,
            batches=batches,
            seed=config.seed + 1,  # not the batches that are planned: those are yet to come
            threads=config.threads,
            progress=progress,
        )
        epoch_batches = -(-planned.count // config.batch_size)
        epoch = epoch_batches if config.trace is None else None
        workloads = [
            workload_of(config, dataset, of, trace, epoch, importance[of] if importance else None)
            for of, trace in traces.items()
        ]
        is_default = config.budget == DEFAULT_BUDGETS
        budgets = plan_budgets(workloads, config.budget, victim_bytes, skips_small=is_default)
        cases = [case for budget in budgets for case in budget.cases]
        results = run_cases(
            workloads, cases, threads, lambda done, total: progress("simulate", done, total)
        )
        sizes = _sizes(dataset, target, workloads)
    step_seconds = config.step_time / 1000
    facts = iter(
        case_facts(case, result, hardware, epoch_batches, step_seconds)
        for case, result in zip(cases, results, strict=True)
    )
    plan: dict[str, Any] = {
        "dataset": config.dataset if config.dataset in DATASET_NAMES else str(dataset.path),
        **sizes,
        "trace": config.trace,
        "seeds": planned.told,
        "fanouts": None if config.trace else list(config.fanouts),
        "batch_size": config.batch_size,
        "batches": batches,
        "ranks": config.ranks,
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
                "cases": _by_role(islice(facts, len(budget.cases)), dataset.heterogeneous),
            }
            for budget in budgets
        ],
    }
    for each in plan["budgets"] if not dataset.heterogeneous else ():
        each["packing"] = packing_facts(
            each["cases"]["belady"], sizes["feature_bytes"], hardware, epoch_batches, step_seconds
        )
    plan["notes"] = notes_on(plan)
    taken = [budget.text for budget in budgets]
    if skipped := [text for text in config.budget if text.strip() not in taken]:
        plan["notes"].append(
            f"Left out, for less than a row of each table of features: {', '.join(skipped)}."
        )
    return plan


def _sizes(dataset: Dataset, target: str, workloads: Sequence[Workload]) -> dict[str, Any]:
    """Of the graph, of each table of features, and of all of them together."""
    tables = {
        each.table: {
            "rows": each.rows,
            "row_bytes": each.row_bytes,
            "dtype": each.dtype,
            "feature_bytes": each.bytes,
            "rows_touched": count_touched(each.trace),
            "ids": each.trace.num_ids,
        }
        for each in workloads
    }
    if not dataset.heterogeneous:
        return tables[NODE_TYPE]
    summed = ("rows", "feature_bytes", "rows_touched", "ids")
    return {
        "target": target,
        "node_types": {kind: dataset.num_nodes(kind) for kind in dataset.node_types},
        "edge_types": {",".join(kind): dataset.num_edges(kind) for kind in dataset.edge_types},
        "tables": tables,
        **{name: sum(each[name] for each in tables.values()) for name in summed},
    }


def _by_role(facts: Iterable[dict[str, Any]], heterogeneous: bool) -> dict[str, Any]:
    """The facts of a budget's caches, of several tables together with each."""
    roles: dict[str, list[dict[str, Any]]] = {}
    for each in facts:
        roles.setdefault(each["role"], []).append(each)
    return {
        role: total_facts(tables) if heterogeneous else tables[0] for role, tables in roles.items()
    }


def _memory(
    config: PlanConfig, dataset: Dataset, target: str
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What a training run with these options takes by name, with ``--cache auto`` and all ranks on
    one machine; and how it is evaluated, where that is exact."""
    ranks, topology = config.ranks or 1, TopologyOptions.of(config)
    features = FeatureOptions(score="auto" if config.score == "none" else config.score)
    evaluation = None
    of_links = is_link_task(dataset, config.task)
    is_known = config.task != NODE or dataset.has("labels", target)
    run = _run(config) if of_links else dataclasses.replace(_run(config), target=target)
    timed = is_known and not of_links and seeds_have_times(dataset, run)
    if timed:
        check_timed(run)
        run, topology = dataclasses.replace(run, eval="sampled"), TopologyOptions(topology="mmap")
    with process_budget().run(check_bytes("memory", config.memory), ranks) as budget:
        if of_links:
            plan_run(settle_times(resolve(run)))
        elif dataset.heterogeneous:
            unlabelled = Task(node_type=target, num_classes=0)
            task = task_of(dataset, target, config.task) if is_known else unlabelled
            plan_memory_of_types(run, dataset, task, features, timed=timed)
        else:
            evaluation = plan_memory(run, dataset, features, topology, timed=timed)
        plan_features(dataset, features, ranks)
        if config.memory is not None:
            budget.check("give more --memory")
        facts = evaluation.facts() if evaluation is not None and evaluation.nodes else None
        return {"names": planned_names(), "total": budget.total, "ranks": ranks}, facts


def _run(config: PlanConfig) -> TrainConfig:
    """The training run that is planned."""
    return TrainConfig(
        dataset=config.dataset,
        task=config.task,
        target=config.target,
        ignore_times=config.ignore_times,
        negatives=config.negatives,
        layers=len(config.fanouts),
        fanouts=config.fanouts,
        hidden=config.hidden,
        batch_size=config.batch_size,
        seed_block=config.seed_block,
        eval=config.eval,
        seed=config.seed,
        ranks=config.ranks,
        topology=config.topology,
        topology_memory=config.topology_memory,
        victim_buffer=config.victim_buffer,
        trace=config.trace,
    )


@contextmanager
def _opened(config: PlanConfig) -> Iterator[Dataset]:
    """The dataset; one that has only a name lies in a temporary folder meanwhile."""
    if config.dataset not in DATASET_NAMES:
        yield _open(Path(config.dataset), config)
        return
    check_one_type(config.dataset, config.target, config.task)
    with closing(ScratchFolder("gnnsys-plan-")) as folder:
        path = folder.path / config.dataset
        if config.dataset == "demo":
            generate_community(path, nodes=DEMO_NODES, seed=config.seed)
        else:
            convert_pyg_name(config.dataset, Path(config.root), path, ConvertOptions())
        yield _open(path, config)


def _open(folder: Path, config: PlanConfig) -> Dataset:
    dataset = open_dataset(folder)
    _check_links(config, dataset)
    if dataset.heterogeneous:
        check_heterogeneous(_run(config))
    if not (tables := feature_tables(dataset)):
        raise ArgumentError(
            f"{folder}: has no features to cache; convert it again with --features FILE"
        )
    if not any(table.shape[0] for table in tables.values()):
        raise ArgumentError(f"{folder}: its features have no rows to cache; add nodes to it")
    if timed_types(dataset) and not config.ignore_times:
        warn_once(
            _log, "%s: its batches are planned as gnnsys train --ignore-times draws them", folder
        )
    return dataset


def _check_links(config: PlanConfig, dataset: Dataset) -> None:
    """Raises ArgumentError for options that do not fit a task of links, or of nodes."""
    if not is_link_task(dataset, config.task):
        if config.negatives is not None:
            raise ArgumentError(f"--negatives {config.negatives}: goes with a task of links")
        return
    for name in ("trace", "ranks"):
        if getattr(config, name) not in (None, 1):
            raise ArgumentError(
                f"--{name} {getattr(config, name)}: does not go with --task {config.task}, whose "
                "batches are sampled for one process; leave it out"
            )
    if config.score == "presample":
        raise ArgumentError(
            "--score presample: samples around training nodes, not links; give degree"
        )


def _hardware(config: PlanConfig, dataset: Dataset) -> Hardware:
    if config.hardware != "this":
        return read_hardware(config.hardware)
    largest = max(feature_tables(dataset).values(), key=lambda table: table.data_bytes)
    return measure_hardware(dataset.path / largest.shards[0].path)

"""``gnnsys plan --offload``: which activations of a full-graph step leave memory, and what for."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from typing import Any

import torch
from rich.console import Console

from gnnsys.config.checks import check_bytes
from gnnsys.config.plan import PlanConfig
from gnnsys.config.resolve import Run, resolve
from gnnsys.config.train import TrainConfig
from gnnsys.errors import TooLargeError
from gnnsys.offload import StepProfile, StepStats, plan_step
from gnnsys.offload.spill_file import SpillFile
from gnnsys.pages import numbers
from gnnsys.pages.tables import TextTable, on_terminal
from gnnsys.system.budget import process_budget
from gnnsys.system.progress import Progress
from gnnsys.training.datasets import load_run_dataset
from gnnsys.training.models import make_model
from gnnsys.training.offloading import made_folder
from gnnsys.training.pipeline_steps import make_steps

__all__ = ["make_activation_plan", "print_activation_plan"]

_SHARES = (1.0, 0.5, 0.25, 0.125)
"""Of what autograd would keep, that budgets are by default."""

_STEPS = 3
"""The first is slower than those that follow."""

_MEASURED, _EXTENTS = 16 << 20, 8
"""Bytes that the disk is measured with, and how often."""


def make_activation_plan(
    config: PlanConfig, progress: Progress = lambda what, done, total: None
) -> dict[str, Any]:
    """What ``gnnsys plan --offload --json`` prints: bytes, seconds, bytes a second.

    Raises:
        MissingFileError, FileFormatError: a dataset that cannot be read.
        StorageError: a folder in which no file can be made.
        TooLargeError: ``activation_budget`` is less than a step needs.
    """
    run = TrainConfig(
        dataset=config.dataset,
        root=config.root,
        full_batch=True,
        model=config.model,
        layers=config.layers,
        hidden=config.hidden,
        seed=config.seed,
        device="cpu",
        offload=config.offload or "auto",
    )
    profile, stats = _profile_step(resolve(run), progress)
    progress("plan: disk", 0, 1)
    write_bandwidth, read_bandwidth = _measure_disk(config.offload or "auto")
    progress("plan: disk", 1, 1)
    profile = dataclasses.replace(
        profile, write_bandwidth=write_bandwidth, read_bandwidth=read_bandwidth
    )
    given = check_bytes("activation-budget", config.activation_budget)
    if given is not None:
        plan_step(profile, given)  # raises where it is too small
    budgets = [given] if given is not None else [int(stats.plain * share) for share in _SHARES]
    return {
        "dataset": config.dataset,
        "model": config.model,
        "layers": config.layers,
        "hidden": config.hidden,
        "plain": stats.plain,
        "masked": stats.masked,
        "recomputed": stats.recomputed,
        "kept": profile.plain,
        "least": profile.least,
        "step_seconds": profile.computing,
        "write_bandwidth": write_bandwidth,
        "read_bandwidth": read_bandwidth,
        "budgets": [_planned(profile, budget) for budget in budgets],
    }


def _planned(profile: StepProfile, budget: int) -> dict[str, Any]:
    """What a budget comes to; without a plan where it is too small."""
    try:
        plan = plan_step(profile, budget)
    except TooLargeError:
        return {"budget": budget, "plan": None}
    told = {
        "written": plan.written,
        "peak": plan.peak,
        "stall": plan.stall,
        "seconds": plan.seconds,
    }
    return {"budget": budget, "plan": told}


def print_activation_plan(plan: dict[str, Any], console: Console) -> None:
    """Shows a plan to people."""
    title = (
        f"{plan['dataset']}: {plan['model']}, {plan['layers']} layers of {plan['hidden']}, full "
        "batch"
    )
    told = [each["plan"] for each in plan["budgets"]]
    rows = [
        ["moved to the disk", *_cells(told, "written", numbers.memory)],
        ["in memory at most", *_cells(told, "peak", numbers.memory)],
        ["waits", *_cells(told, "stall", numbers.duration)],
        ["step", *_cells(told, "seconds", numbers.duration)],
    ]
    head = ["budget", *(numbers.memory(each["budget"]) for each in plan["budgets"])]
    console.print(on_terminal(TextTable(title, head, rows), "activations of a step"))
    plain, kept = numbers.memory(plan["plain"]), numbers.memory(plan["kept"])
    console.print(
        f"- autograd would keep {plain}; {kept} are left after bit masks and what is computed again"
    )
    console.print(
        f"- a step computes for {numbers.duration(plan['step_seconds'])}; the disk writes "
        f"{numbers.memory(plan['write_bandwidth'])} and reads "
        f"{numbers.memory(plan['read_bandwidth'])} a second"
    )
    if None in told:
        console.print(f"- a step needs at least {numbers.memory(plan['least'])}")


def _cells(told: list[dict[str, Any] | None], key: str, text: Any) -> list[str]:
    return ["too small" if each is None else text(each[key]) for each in told]


def _profile_step(run: Run, progress: Progress) -> tuple[StepProfile, StepStats]:
    """Trains a full-graph model for a few steps, to see what a step saves and how long it takes.

    Args:
        run: with ``full_batch`` and ``offload``.
        progress: told of each step.

    Returns:
        of the last step, without what moving takes where it all fits into memory.
    """
    with (
        process_budget().run(run.memory, run.local_ranks),
        torch.random.fork_rng(),
        closing(load_run_dataset(run)) as dataset,
    ):
        torch.manual_seed(run.config.seed)
        model = make_model(run, dataset).to(run.device)
        steps = make_steps(run, dataset, model, None)
        assert steps.offload is not None
        for number in range(_STEPS):
            progress("plan: steps", number, _STEPS)
            steps.step(None)
        progress("plan: steps", _STEPS, _STEPS)
        profile, stats = steps.offload.profile(), steps.offload.stats
        steps.end_offload()
        return profile, stats


def _measure_disk(offload: str) -> tuple[float, float]:
    """Bytes a second that a file of activations is written and read with, past the page cache
    where the file system permits that.

    Args:
        offload: as of ``--offload``.
    """
    with closing(SpillFile(made_folder(offload), _MEASURED * _EXTENTS)) as file:
        data = torch.full((_MEASURED,), 7, dtype=torch.uint8)
        extents = [file.allocate(_MEASURED) for _ in range(_EXTENTS)]
        for extent in extents:
            file.write(extent, data)
        for extent in extents:
            file.read(extent, file.room_for(_MEASURED))
        return file.written / file.write_seconds, file.read_bytes / file.read_seconds

"""``gnnsys plan --parallel``: tells what ``parallel_plan`` found."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from gnnsys.config.plan import PlanConfig
from gnnsys.plan.splits import make_parallel_plan
from gnnsys.plan.splits_text import describe_plan, print_parallel_plan, split_cells
from gnnsys.system.files import check_folder_of
from gnnsys.system.progress import work_progress
from gnnsys.training.timeline import write_timelines

__all__ = ["run_parallel_plan"]


def run_parallel_plan(config: PlanConfig) -> int:
    """Plans and tells."""
    if config.picture is not None:
        check_folder_of(Path(config.picture), f"--picture {config.picture}")
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
        print(json.dumps(plan))
    else:
        print_parallel_plan(plan, Console())
    return 0

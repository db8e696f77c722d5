"""``gnnsys cluster``: progress on standard error, the result on standard output."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from rich.console import Console

from gnnsys.clustering.assign import write_clusters
from gnnsys.clustering.metrics import METRICS
from gnnsys.clustering.runs import finished_result, run_clustering
from gnnsys.config.cluster import ClusterConfig
from gnnsys.config.file import check_unchanged
from gnnsys.memory.alloc import suit_freed_memory
from gnnsys.pages.tables import TextTable, on_terminal
from gnnsys.system.budget import process_budget
from gnnsys.system.interrupts import INTERRUPTED
from gnnsys.system.progress import work_progress
from gnnsys.system.records import json_text

__all__ = ["run_command"]

_WHICH = ("selected", "last")


def run_command(config: ClusterConfig) -> int:
    """Clusters, and tells how well; the exit code is 130 where the run was interrupted."""
    if config.assign is not None:
        return _assign(config)
    finished = finished_result(config)
    if finished is not None:
        check_unchanged(config)
        told = (
            f"{config.resume}: has ended, nothing is left to do; see gnnsys report {config.resume}"
        )
        print(json_text(finished) if config.json else told)
        return 0
    if config.batch_size is not None:
        suit_freed_memory(process_budget().left())  # as gnnsys train does
    with work_progress() as progress:
        result = run_clustering(config, progress)
    folder, interrupted = config.resume or config.out, result["reason"] == "interrupted"
    if config.json:
        print(json_text(result))
    else:
        console = Console()
        if result["seeds"]:
            console.print(on_terminal(_table(result)))
        for name in () if interrupted else (folder, config.plot):
            if name is not None:
                console.print(f"wrote {name}", highlight=False)
    if not interrupted:
        return 0
    place = result["place"]
    way_on = (
        f"; go on with gnnsys cluster --resume {folder}" if folder else ", without a checkpoint"
    )
    print(
        f"gnnsys: interrupted in epoch {place['epoch']} of seed {place['seed']} "
        f"({place['phase']}){way_on}",
        file=sys.stderr,
    )
    return INTERRUPTED


def _assign(config: ClusterConfig) -> int:
    out = str(config.out)
    found = write_clusters(Path(str(config.run)), Path(str(config.assign)), Path(out))
    counts = np.bincount(found).tolist()
    if config.json:
        print(json_text({"path": out, "nodes": len(found), "counts": counts}))
    else:
        print(f"{out}  {len(found)} nodes in {len(counts)} clusters: {counts}")
    return 0


def _table(result: dict[str, Any]) -> TextTable:
    seeds, summary = result["seeds"], result["summary"]
    title = f"{result['clusters']} clusters of {result['dataset']}"
    title += f", mean of {len(seeds)} seeds" if len(seeds) > 1 else ""
    rows = [
        [name.upper(), *(_percent(summary[which][name]) for which in _WHICH)]
        for name in METRICS
        if name in summary["last"]
    ]
    for name, form in (("loss", "{:.4f}"), ("epoch", "{:.0f}")):
        means = [fmean(seed[which][name] for seed in seeds) for which in _WHICH]
        rows.append([name, *map(form.format, means)])
    rows.append(["seconds of a seed", "", f"{fmean(seed['seconds'] for seed in seeds):.1f}"])
    return TextTable(title, ("", f"epoch by {result['options']['select']}", "last epoch"), rows)


def _percent(metric: dict[str, float | None]) -> str:
    mean, deviation = metric["mean"], metric["std"]
    assert mean is not None
    return f"{100 * mean:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")

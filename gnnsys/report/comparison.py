"""What several runs have in common and where they differ: numbers for JSON. Reads no file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gnnsys.config.file import OF_THE_CALL
from gnnsys.errors import ArgumentError
from gnnsys.pages import numbers
from gnnsys.report.run import Epoch, RecordedRun, as_object

__all__ = ["Runs", "axes_of", "compare", "group_runs", "run_names", "split_options"]

_SIZES = ("nodes", "edges", "features", "classes")

Runs = Mapping[str, RecordedRun]
"""By names that differ, in the order they were asked for."""


def run_names(folders: Sequence[Path]) -> list[str]:
    """A name for each folder: its own, with as many of the folders above as tell it from others.

    Raises:
        ArgumentError: a folder stands there twice.

    >>> run_names([Path("/a/run"), Path("/b/run"), Path("/b/other")])
    ['a/run', 'b/run', 'b/other']
    """
    whole = [folder.resolve() for folder in folders]
    for place, folder in enumerate(whole):
        if folder in whole[:place]:
            raise ArgumentError(f"{folders[place]}: named twice; name each run once")
    names = [str(folder) for folder in whole]
    for depth in range(max((len(folder.parts) for folder in whole), default=0), 0, -1):
        shorter = ["/".join(folder.parts[-depth:]) for folder in whole]
        if len(set(shorter)) == len(names):
            names = shorter
    return names


def compare(runs: Runs) -> dict[str, Any]:
    """What ``gnnsys report --json`` prints; what is not known is NaN.

    Returns:
        ``runs``, with the scores, times in seconds, bytes and epochs of each; ``options``, with
        those that ``differ``, each with a value by run, and the ``same``; ``notes``.
    """
    differ, same = split_options(runs)
    return {
        "runs": [_numbers(name, run) for name, run in runs.items()],
        "options": {"differ": differ, "same": same},
        "notes": _notes(runs),
    }


def axes_of(runs: Runs) -> list[str]:
    """What curves of the runs can be drawn over."""
    known = any(epoch.step is not None for run in runs.values() for epoch in run.epochs)
    return ["epoch", "step", "time"] if known else ["epoch", "time"]


def group_runs(runs: Runs) -> dict[str, Runs]:
    """The runs whose scores can be compared, by what they are scores of: one metric, one dataset.

    Datasets of one name and different sizes are told apart by those.
    """
    groups: dict[tuple[str, str, tuple[str, ...]], dict[str, RecordedRun]] = {}
    for name, run in runs.items():
        dataset = as_object(run.start.get("dataset"))
        sizes = tuple(numbers.plain(dataset.get(kind)) for kind in _SIZES)
        groups.setdefault((run.metric, _dataset_name(run), sizes), {})[name] = run
    names = [(metric, data) for metric, data, _ in groups]
    named: dict[str, Runs] = {}
    for (metric, data, sizes), members in groups.items():
        apart = names.count((metric, data)) > 1
        named[f"{metric} on {data}{_sizes(sizes) if apart else ''}"] = members
    return named


def _sizes(sizes: Sequence[str]) -> str:
    told = (f"{size} {kind}" for kind, size in zip(_SIZES, sizes, strict=True))
    return f" ({', '.join(told)})"


def _dataset_name(run: RecordedRun) -> str:
    """As the run says it."""
    name = as_object(run.start.get("dataset")).get("name")
    return str(name or run.options.get("dataset", "an unnamed dataset"))


def split_options(runs: Runs) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Options that differ, each by run, and those that do not; without those of a call, as --out.

    An option that a run does not know, as it is of another version, is None there.
    """
    names = dict.fromkeys(name for run in runs.values() for name in run.options)
    values = {
        option: {name: run.options.get(option) for name, run in runs.items()}
        for option in names
        if option not in OF_THE_CALL
    }
    differ = {
        option: each
        for option, each in values.items()
        if any(_as_list(value) != _as_list(_first(each)) for value in each.values())
    }
    return differ, {option: _first(each) for option, each in values.items() if option not in differ}


def _first(values: Mapping[str, Any]) -> Any:
    return next(iter(values.values()))


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _numbers(name: str, run: RecordedRun) -> dict[str, Any]:
    epochs, metric = run.epochs, run.metric
    val, test = run.best_metric()
    scored = [epoch for epoch in epochs if epoch.val is not None]
    rates = [rate for _, rate in run.epoch_rates() if math.isfinite(rate)]
    return {
        "run": name,
        "state": run.state,
        "dataset": _dataset_name(run),
        "metric": metric,
        "epochs": len(epochs),
        "best_epoch": run.best.epoch if run.best else None,
        "best_val": val,
        "best_test": test,
        "last_val": (scored[-1].val or {}).get(metric) if scored else None,
        "last_loss": epochs[-1].loss if epochs else None,
        "seconds": run.seconds,
        "seconds_of": run.times(),
        "seeds_per_second": sum(rates) / len(rates) if rates else None,
        "peak_rss": run.peak_rss,
        "rows": dict(run.tiers("rows")),
        "bytes": dict(run.tiers("bytes")),
        "parameters": run.start.get("parameters"),
        "curve": [_point(epoch, metric) for epoch in epochs],
    }


def _point(epoch: Epoch, metric: str) -> dict[str, Any]:
    return {
        "epoch": epoch.epoch,
        "step": epoch.step,
        "seconds": epoch.seconds,
        "loss": epoch.loss,
        "val": (epoch.val or {}).get(metric),
        "test": (epoch.test or {}).get(metric),
    }


def _notes(runs: Runs) -> list[str]:
    notes = []
    groups = group_runs(runs)
    if len(groups) > 1:
        told = "; ".join(f"{title}: {', '.join(members)}" for title, members in groups.items())
        notes.append(
            f"These runs have different metrics or datasets, whose scores cannot be compared. "
            f"They are shown apart: {told}."
        )
    by_step = "step" in axes_of(runs)
    for name, run in runs.items():
        if by_step and any(epoch.step is None for epoch in run.epochs):
            notes.append(f"{name}: its steps were not recorded; curves over steps leave it out.")
        if run.reason is None:
            notes.append(f"{name}: {run.state}; shown is what was written so far.")
        if not run.epochs:
            notes.append(f"{name}: has no epochs yet, so no scores and no curves.")
        lost = run.first_lost()
        if lost is not None:
            notes.append(
                f"{name}: its loss is not finite in epoch {lost.epoch}; a line has a gap where a "
                "value is not finite."
            )
    return notes

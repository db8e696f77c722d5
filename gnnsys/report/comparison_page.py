"""The HTML page of several runs: the texts that its template shows."""

from __future__ import annotations

import math
from typing import Any

from gnnsys.choices import LOWER_IS_BETTER
from gnnsys.pages import numbers
from gnnsys.pages.tables import TextTable
from gnnsys.pages.templates import render
from gnnsys.report.comparison import Runs, axes_of, compare, group_runs
from gnnsys.report.comparison_charts import draw_curves
from gnnsys.report.page import facts

__all__ = ["make_comparison", "render_comparison"]


def make_comparison(runs: Runs) -> str:
    """The whole page, which needs no other file."""
    found = compare(runs)
    by_name = {each["run"]: each for each in found["runs"]}
    groups, axes = group_runs(runs), axes_of(runs)
    scores = [
        _scores(title, [by_name[name] for name in members]) for title, members in groups.items()
    ]
    charts = [
        {"title": title, "charts": draw_curves(members, number, axes)}
        for number, (title, members) in enumerate(groups.items())
    ]
    return render_comparison(f"{len(runs)} runs compared", runs, found, scores, axes, charts)


def render_comparison(
    title: str,
    runs: Runs,
    found: dict[str, Any],
    scores: list[TextTable],
    axes: list[str],
    groups: list[dict[str, Any]],
) -> str:
    """The page of runs of any kind.

    Args:
        title: of the page.
        runs: by name.
        found: ``notes`` and ``options``, as ``comparison.compare`` has them.
        scores: tables of them.
        axes: what curves can be drawn over.
        groups: the ``title`` of each, and ``charts`` by axis.
    """
    differ = found["options"]["differ"]
    options = [
        [option, *(numbers.plain(values[name]) for name in runs)]
        for option, values in differ.items()
    ]
    return render(
        "comparison",
        title=title,
        about=", ".join(runs),
        notes=found["notes"],
        scores=scores,
        axes=axes,
        groups=groups,
        differ=TextTable("Options that differ", ["option", *runs], options),
        same=facts(found["options"]["same"]),
    )


def _scores(title: str, runs: list[dict[str, Any]]) -> TextTable:
    """A row for each run; the best validation score is marked where there are several."""
    scores = [run["best_val"] for run in runs if run["best_val"] is not None]
    choose = min if any(run["metric"] in LOWER_IS_BETTER for run in runs) else max
    best = choose(scores) if len(scores) > 1 else math.nan
    rows = [
        [
            run["run"],
            run["state"],
            numbers.metric(run["best_val"]) + (" (best)" if run["best_val"] == best else ""),
            numbers.metric(run["best_test"]),
            numbers.metric(run["last_val"]),
            numbers.metric(run["last_loss"]),
            f"{run['best_epoch']} of {run['epochs']}" if run["best_epoch"] else numbers.NOTHING,
            _seconds(run["seconds"]),
            _seconds(run["seconds_of"].get("loading")),
            _seconds(run["seconds_of"]["training"]),
            _seconds(run["seconds_of"]["evaluation"]),
            numbers.rate(run["seeds_per_second"]) if run["seeds_per_second"] else numbers.NOTHING,
            numbers.memory(run["peak_rss"]) if run["peak_rss"] else numbers.NOTHING,
        ]
        for run in runs
    ]
    head = (
        "run",
        "state",
        "best validation",
        "test there",
        "last validation",
        "last loss",
        "best epoch",
        "time",
        "loading",
        "training",
        "evaluation",
        "seeds/s",
        "peak memory",
    )
    return TextTable(title, head, rows)


def _seconds(value: float | None) -> str:
    return numbers.NOTHING if value is None else numbers.duration(value)

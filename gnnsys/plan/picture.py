"""The picture of a plan: a PNG of two charts, or a page with the charts and the tables."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from gnnsys.pages.drawing import Chart, inline_svg, label_unit, line_keys, png
from gnnsys.pages.style import page_looks, paper_looks
from gnnsys.pages.templates import render
from gnnsys.plan.estimate import PARTS
from gnnsys.plan.text import features_text, plan_tables, precisions, stored_as
from gnnsys.system.files import check_folder_of, replace_file

__all__ = ["write_picture"]

_INCHES = (6.4, 3.6)
_PAPER = {
    "axes.grid": True,
    "grid.alpha": 0.4,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def write_picture(plan: dict[str, Any], path: Path) -> None:
    """Draws a plan into a .png or .html file.

    Raises:
        StorageError: the file cannot be written.
    """
    check_folder_of(path)
    if path.suffix == ".png":
        replace_file(path, _png(plan))
    else:
        replace_file(path, _page(plan).encode())


def _png(plan: dict[str, Any]) -> bytes:
    with paper_looks(_PAPER):
        figure = Figure((2 * _INCHES[0], _INCHES[1]), layout="constrained")
        left, right = figure.subplots(1, 2)
        figure.suptitle(_title(plan))
        for axes, (_, title, unit, draw) in zip((left, right), _CHARTS, strict=True):
            draw(axes, plan)
            axes.set_title(title, loc="left", fontsize=11)
            label_unit(axes, unit)
            axes.legend(frameon=False, fontsize=9)
        return png(figure, dpi=150)


def _draw_hits(axes: Axes, plan: dict[str, Any]) -> None:
    """Draws hit ratios over budgets."""
    lines = [(role, role) for role in precisions(plan)]
    lines[0] = ("planned", f"{plan['policy']}, {stored_as(plan, 'planned')} as stored")
    lines[1:] = [(role, f"{plan['policy']}, {role}") for role, _ in lines[1:]]
    bounds = [("static", "static"), ("belady", "bound (Belady)")]
    for number, (role, label) in enumerate([lines[0], *bounds, *lines[1:]]):
        dashed = number > len(bounds)
        values = [100 * budget["cases"][role]["hit_ratio"] for budget in _ascending(plan)]
        axes.plot(
            _sizes(plan),
            values,
            "--o" if dashed else "-o",
            color=f"C{number}",
            label=label,
            markersize=4,
            linewidth=1.2 if dashed else 1.8,
            zorder=9 - number,  # the plan shows where it reaches the bound
        )
    axes.set_ylim(0, 102)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    _set_sizes(axes, plan)


def _draw_times(axes: Axes, plan: dict[str, Any]) -> None:
    """Draws what an epoch would take if one part alone took time; the highest line is the time."""
    for number, (part, label) in enumerate(PARTS.items()):
        values = [budget["cases"]["planned"]["estimate"][part] for budget in _ascending(plan)]
        if not any(values):
            continue
        axes.plot(
            _sizes(plan),
            [value or math.nan for value in values],
            "-o",
            color=f"C{number}",
            label=label,
            markersize=4,
            linewidth=1.8,
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} s"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    _set_sizes(axes, plan)


def _ascending(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(plan["budgets"], key=lambda budget: budget["bytes"])


def _sizes(plan: dict[str, Any]) -> list[int]:
    return [budget["bytes"] for budget in _ascending(plan)]


def _set_sizes(axes: Axes, plan: dict[str, Any]) -> None:
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(_sizes(plan), [budget["budget"] for budget in _ascending(plan)])
    axes.set_xlabel("memory of the cache")


_CHARTS = (
    ("hits", "Rows served without the disk", "share of rows", _draw_hits),
    ("times", "Time of an epoch", "seconds, if one part alone took time", _draw_times),
)


def _title(plan: dict[str, Any]) -> str:
    return f"Cache plan of {Path(plan['dataset']).name}"


def _page(plan: dict[str, Any]) -> str:
    about = (
        f"{features_text(plan)} · {plan['batches']:,} batches · "
        f"{plan['policy']}, window {plan['window']}, importance {plan['score']} · "
        f"{plan['hardware']['name']}"
    )
    return render(
        "plan",
        title=_title(plan),
        about=about,
        notes=plan["notes"],
        charts=_charts(plan),
        tables=plan_tables(plan),
    )


def _charts(plan: dict[str, Any]) -> list[Chart]:
    made = []
    with page_looks():
        for name, title, unit, draw in _CHARTS:
            figure = Figure(_INCHES, layout="constrained")
            axes = figure.add_subplot()
            draw(axes, plan)
            label_unit(axes, unit)
            svg = inline_svg(figure, name, f"{title}, {unit}")
            made.append(Chart(title, unit, svg, line_keys(axes)))
    return made

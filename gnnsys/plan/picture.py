"""The picture of a plan: a PNG of two charts, or a page with the charts and the tables."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from gnnsys.pages import numbers as text
from gnnsys.pages.drawing import inline_svg, style
from gnnsys.pages.style import html_page, numbers_table, page_header
from gnnsys.plan.text import precisions, reading
from gnnsys.system.files import check_folder_of, replace_file

__all__ = ["write_picture"]

_INCHES = (6.4, 3.6)
_Line = tuple[str, str, int]  # what it means, how it is drawn, and which colour it has
_PARTS = {
    "disk_reads": "disk reads",
    "disk_bytes": "disk bandwidth",
    "memory": "memory bandwidth",
    "compute": "computing",
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
    with _paper():
        figure = Figure((2 * _INCHES[0], _INCHES[1]), layout="constrained")
        left, right = figure.subplots(1, 2)
        _draw_hits(left, plan)
        _draw_times(right, plan)
        for axes, title in ((left, "rows served without the disk"), (right, "time of an epoch")):
            axes.set_title(title, loc="left")
            axes.legend(frameon=False, fontsize=9)
        target = io.BytesIO()
        figure.savefig(target, format="png", dpi=150)
    return target.getvalue()


@contextmanager
def _paper() -> Iterator[None]:
    """Dark on white, with matplotlib's own colours."""
    looks: dict[Any, Any] = {
        "axes.grid": True,
        "grid.alpha": 0.4,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(looks)
        yield


def _draw_hits(axes: Axes, plan: dict[str, Any]) -> list[_Line]:
    """Draws hit ratios over budgets; returns what each line means and how it is drawn."""
    lines = [(role, role) for role in precisions(plan)]
    lines[0] = ("planned", f"{plan['policy']}, {_stored(plan)}")
    lines[1:] = [(role, f"{plan['policy']}, {role}") for role, _ in lines[1:]]
    bounds = [("static", "static"), ("belady", "bound (Belady)")]
    keys = []
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
        keys.append((label, "dashed" if dashed else "line", number + 1))
    axes.set_ylim(0, 102)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    _set_sizes(axes, plan)
    return keys


def _draw_times(axes: Axes, plan: dict[str, Any]) -> list[_Line]:
    """Draws what an epoch would take if one part alone took time; the highest line is the time."""
    keys = []
    for number, (part, label) in enumerate(_PARTS.items()):
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
        keys.append((label, "line", number + 1))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} s"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    _set_sizes(axes, plan)
    return keys


def _ascending(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(plan["budgets"], key=lambda budget: budget["bytes"])


def _sizes(plan: dict[str, Any]) -> list[int]:
    return [budget["bytes"] for budget in _ascending(plan)]


def _set_sizes(axes: Axes, plan: dict[str, Any]) -> None:
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(_sizes(plan), [budget["budget"] for budget in _ascending(plan)])
    axes.set_xlabel("memory of the cache")


def _stored(plan: dict[str, Any]) -> str:
    return f"{plan['dtype']} as stored"


# The page -----------------------------------------------------------------------------------------

_FOOTER = (
    "Traffic: 1 kB is 1000 bytes. Memory: 1 KiB is 1024 bytes. Reads are of rows or of pages of "
    "4 KiB, whichever are fewer. An epoch takes as long as its slowest part, for all run at once."
)


def _page(plan: dict[str, Any]) -> str:
    title = f"Cache plan of {Path(plan['dataset']).name}"
    about = (
        f"{plan['rows']:,} rows of {plan['row_bytes']:,} bytes, "
        f"{text.memory(plan['feature_bytes'])} · {plan['batches']:,} batches · {plan['policy']}, "
        f"window {plan['window']}, score {plan['score']} · {plan['hardware']['name']}"
    )
    notes = "".join(f"<li>{escape(note)}</li>\n" for note in plan["notes"])
    with style():
        charts = _figures(plan)
    body = [
        page_header(title, about),
        f'<ul class="notices" aria-label="Notes on this plan">\n{notes}</ul>' if notes else "",
        f'<section>\n<h2>By the memory of the cache</h2>\n<div class="grid">\n{charts}</div>\n'
        f"</section>",
        _section("An epoch", _epoch_table(plan)),
    ]
    if len(precisions(plan)) > 1:
        body.append(_section("If features were stored in another precision", _what_if(plan)))
    return html_page(title, "\n".join(filter(None, body)), _FOOTER)


def _figures(plan: dict[str, Any]) -> str:
    charts = (
        ("hits", "Rows served without the disk", "share of rows", _draw_hits),
        ("times", "Time of an epoch", "seconds, if one part alone took time", _draw_times),
    )
    made = []
    for name, title, unit, draw in charts:
        figure = Figure(_INCHES, layout="constrained")
        keys = draw(figure.add_subplot(), plan)
        svg = inline_svg(figure, name).replace(
            "<svg ", f'<svg role="img" aria-label="{escape(f"{title}, {unit}")}" ', 1
        )
        swatches = "".join(
            f'<li><i class="{mark}" style="--color: var(--series-{number})"></i>'
            f"{escape(label)}</li>"
            for label, mark, number in keys
        )
        made.append(
            f'<figure class="card">\n<figcaption>\n<h3>{title} <small>{unit}</small></h3>\n'
            f'<ul class="keys">{swatches}</ul>\n</figcaption>\n{svg}\n</figure>\n'
        )
    return "".join(made)


def _epoch_table(plan: dict[str, Any]) -> str:
    head = ("budget", "rows cached", "hits", "static", "bound", "rows read", "reads", "bytes")
    body = []
    for budget in plan["budgets"]:
        cases = budget["cases"]
        planned = cases["planned"]
        hits = [f"{cases[role]['hit_ratio']:.1%}" for role in ("planned", "static", "belady")]
        body.append(
            [
                budget["budget"],
                text.count(planned["capacity"]),
                *hits,
                *reading(planned),
                planned["estimate"]["limit"],
            ]
        )
    return numbers_table([*head, "time", "limit"], body)


def _what_if(plan: dict[str, Any]) -> str:
    body = [
        [
            budget["budget"],
            case["dtype"],
            text.count(case["capacity"]),
            f"{case['hit_ratio']:.1%}",
            *reading(case),
        ]
        for budget in plan["budgets"]
        for case in (budget["cases"][role] for role in precisions(plan))
    ]
    head = ["budget", "stored", "rows cached", "hits", "rows read", "reads", "bytes", "time"]
    return numbers_table(head, body)


def _section(title: str, table: str) -> str:
    return f'<section>\n<h2>{escape(title)}</h2>\n<div class="card">{table}</div>\n</section>'

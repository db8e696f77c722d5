"""The curves of clustering runs over epochs, of seeds or of runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gnnsys.pages import numbers
from gnnsys.pages.drawing import Chart, Key, inline_svg, label_unit, line_keys
from gnnsys.pages.style import page_looks
from gnnsys.report.comparison_charts import plot_lines
from gnnsys.report.seeds import CURVES, Seed

__all__ = ["MOST_LINES", "draw_curves"]

MOST_LINES = 18
"""Of a chart: more cannot be told apart."""

_INCHES = (6.4, 3.2)


def draw_curves(groups: Mapping[str, Sequence[Seed]]) -> list[Chart]:
    """A chart of each of ``CURVES`` that there is.

    Args:
        groups: seeds by the name of a line, which shows their mean; that of a single seed is marked
            in the epoch that is selected. ``MOST_LINES`` of them are drawn.
    """
    drawn = dict([*groups.items()][:MOST_LINES])
    with page_looks():
        return [
            chart for place, curve in enumerate(CURVES) if (chart := _chart(place, curve, drawn))
        ]


def _chart(place: int, curve: str, groups: Mapping[str, Sequence[Seed]]) -> Chart | None:
    lines = {name: _means(curve, seeds) for name, seeds in groups.items()}
    lines = {name: line for name, line in lines.items() if line}
    known = [value for line in lines.values() for _, value in line if math.isfinite(value)]
    if not known:
        return None
    title = CURVES[curve]
    figure = Figure(_INCHES, layout="constrained")
    axes = figure.add_subplot()
    plot_lines(axes, lines)
    keys = line_keys(axes)
    for series, name in enumerate(lines):
        selected = groups[name][0].selected
        value = selected.value(curve)
        if len(groups[name]) > 1 or value is None:
            continue
        axes.plot(
            [selected.epoch],
            [value],
            "o",
            color=f"C{series % 6}",
            markersize=11,
            markerfacecolor="none",
            markeredgewidth=1.6,
            clip_on=False,
        )
        if keys[-1].mark != "ring":
            keys.append(Key("selected epoch", "ring", "--series-1"))
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
    label_unit(axes, title)
    ends = sorted(line[-1][1] for line in lines.values())
    summary = f"{numbers.metric(ends[0])} at the end"
    if ends[0] != ends[-1]:
        summary = f"from {numbers.metric(ends[0])} to {numbers.metric(ends[-1])} at the end"
    svg = inline_svg(figure, f"clusters{place}", f"{title} over epochs, of {', '.join(lines)}")
    return Chart(title, title, svg, keys, summary)


def _means(curve: str, seeds: Sequence[Seed]) -> list[tuple[float, float]]:
    """Epochs and the mean of those seeds that have it."""
    found: dict[int, list[float]] = {}
    for seed in seeds:
        for epoch in seed.epochs:
            value = epoch.value(curve)
            if value is not None:
                found.setdefault(epoch.epoch, []).append(value)
    return [(float(epoch), sum(each) / len(each)) for epoch, each in sorted(found.items())]

"""The curves of several runs, beside each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from gnnsys.pages import numbers
from gnnsys.pages.drawing import Chart, inline_svg, label_unit, line_keys, lone_points, time_unit
from gnnsys.pages.style import CARD, SERIES, page_looks
from gnnsys.report.charts import spans_decades, thinned
from gnnsys.report.comparison import Runs
from gnnsys.report.run import Epoch

__all__ = ["draw_curves", "plot_lines"]

_INCHES = (6.4, 3.2)
_STYLES = ("-", "--", ":")
_MARKED_POINTS = 40

_Points = list[tuple[float, float]]


def draw_curves(runs: Runs, number: int, axes: Iterable[str]) -> dict[str, list[Chart]]:
    """Loss and validation of runs whose scores can be compared, by what they are drawn over.

    Args:
        runs: of one metric and dataset.
        number: unique on the page.
        axes: of ``comparison.axes_of``.
    """
    metric = next(iter(runs.values())).metric
    losses = {run.loss_name for run in runs.values()}

    def score(epoch: Epoch) -> float | None:
        return None if epoch.val is None else epoch.val.get(metric)

    kinds: tuple[tuple[str, str, Callable[[Epoch], float | None]], ...] = (
        ("Loss", " or ".join(sorted(losses)), lambda epoch: epoch.loss),
        ("Validation", metric, score),
    )
    with page_looks():
        return {
            axis: [
                _curves(f"compare{number}{place}{axis}", *kind, axis, runs)
                for place, kind in enumerate(kinds)
            ]
            for axis in axes
        }


def _curves(
    name: str, title: str, unit: str, of: Callable[[Epoch], float | None], axis: str, runs: Runs
) -> Chart:
    lines = {
        label: [
            (place, value)
            for epoch in run.epochs
            if (place := _place(epoch, axis)) is not None and (value := of(epoch)) is not None
        ]
        for label, run in runs.items()
    }
    lines = {label: _drawable(points) for label, points in lines.items()}
    if not any(lines.values()):
        return Chart(title, "", "")
    axis_unit, scale = ("", 1.0)
    if axis == "time":
        axis_unit, scale = time_unit(max(at for points in lines.values() for at, _ in points))
    figure = Figure(_INCHES, layout="constrained")
    axes = figure.add_subplot()
    plot_lines(axes, lines, scale)
    if title == "Loss" and spans_decades(value for each in lines.values() for _, value in each):
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
        unit += ", log scale"
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=axis != "time", min_n_ticks=1))
    axes.set_xlabel(f"time ({axis_unit})" if axis_unit else axis)
    label_unit(axes, unit)
    return Chart(
        title,
        unit,
        inline_svg(figure, name, f"{title} over {axis}, in {unit}, of {', '.join(runs)}"),
        line_keys(axes),
        _span(lines),
    )


def plot_lines(axes: Axes, lines: Mapping[str, _Points], scale: float = 1.0) -> None:
    """Lines through points, in colours and styles that tell them apart.

    Args:
        scale: that the first number of each point is divided by.
    """
    for series, (label, points) in enumerate(lines.items()):
        means = thinned(points)
        at, values = [each / scale for each, _ in means], [value for _, value in means]
        axes.plot(
            at,
            values,
            _STYLES[series // len(SERIES) % len(_STYLES)],
            color=f"C{series % len(SERIES)}",
            label=label,
            linewidth=1.5,
            marker="o",
            markevery=None if len(means) <= _MARKED_POINTS else lone_points(values),
            markersize=4,
            markeredgecolor=CARD,
            markeredgewidth=0.8,
        )


def _place(epoch: Epoch, axis: str) -> float | None:
    return {"epoch": epoch.epoch, "step": epoch.step, "time": epoch.seconds}[axis]


def _drawable(points: Sequence[tuple[float, float]]) -> _Points:
    """With NaN for what is not finite; none where nothing is."""
    kept = [
        (at, value if math.isfinite(value) else math.nan)
        for at, value in points
        if math.isfinite(at)
    ]
    return kept if any(math.isfinite(value) for _, value in kept) else []


def _span(lines: dict[str, _Points]) -> str:
    ends = [points[-1][1] for points in lines.values() if points]
    known = sorted(filter(math.isfinite, ends))
    if not known:
        return ""
    if len(known) == 1 or known[0] == known[-1]:
        return f"{numbers.metric(known[0])} at the end"
    return f"from {numbers.metric(known[0])} to {numbers.metric(known[-1])} at the end"

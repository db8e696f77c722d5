"""Charts as inline SVG for pages, and figures as PNG.

matplotlib lays a chart out; its colours are then exchanged for variables of the page's style sheet,
which has a light and a dark set. Legends are left to the page, where they are text.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from gnnsys.pages.style import CARD, MUTED, SERIES, VARIABLES

__all__ = [
    "Chart",
    "Drawing",
    "Key",
    "inline_svg",
    "label_unit",
    "line_keys",
    "lone_points",
    "png",
    "time_unit",
]

_INCHES = (6.4, 3.2)
_MARKED_POINTS = 40
_EPOCH_TICKS = 8
_UNIT_LETTERS = 26
_ROOM = 1.015  # to the right of the last point, whose mark would be cut


@dataclass(frozen=True, slots=True)
class Key:
    """One entry of a legend."""

    label: str

    mark: str
    """A class of the style sheet: ``line``, ``faint``, ``band``, ``area``, ``ring``, ``dashed``,
    ``dotted``."""

    color: str
    """A variable of the style sheet, such as ``--series-1``."""


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart of the page."""

    title: str

    unit: str
    """Of the y axis; empty where there was nothing to draw, like the rest."""

    svg: str
    """An ``<svg>`` element, see ``inline_svg``."""

    keys: Sequence[Key] = ()

    summary: str = ""
    """The chart's message in a few words."""


class Drawing:
    """A chart over the time of training.

    Args:
        name: unique on the page: all ids in the SVG begin with it.
        seconds: where the time axis ends.
        epochs: numbers of epochs and when they ended in seconds, for the upper axis.
        resumes: when the run was resumed, in seconds.
        from_zero: let the y axis begin at 0.
    """

    def __init__(
        self,
        name: str,
        *,
        seconds: float,
        epochs: Sequence[tuple[int, float]],
        resumes: Sequence[float],
        from_zero: bool = False,
    ) -> None:
        self._figure = Figure(_INCHES, layout="constrained")
        self._axes = self._figure.add_subplot()
        self._name = name
        self._unit, self._second = time_unit(seconds)
        self._end = seconds / self._second
        self._epochs = [(number, at / self._second) for number, at in epochs]
        self._resumes = [at / self._second for at in resumes]
        self._from_zero = from_zero
        self._keys: list[Key] = []

    def line(
        self,
        points: Sequence[tuple[float, float]],
        label: str,
        *,
        series: int = 0,
        faint: bool = False,
        marked: bool = True,
    ) -> None:
        """A line through points (seconds, value), with a gap where a value is not finite.

        Points are marked where there are few, and those that gaps leave alone.
        """
        if not any(math.isfinite(value) for _, value in points):
            return
        at, values = self._columns(points)
        few = len(points) <= _MARKED_POINTS
        self._axes.plot(
            at,
            values,
            color=_color(series),
            alpha=0.5 if faint else 1,
            linewidth=1.1 if faint else 1.8 if few else 1.3,
            marker="o",
            markevery=None if few and marked and not faint else lone_points(values),
            markersize=4 if faint else 5,
            markeredgecolor=CARD,
            markeredgewidth=0.8,
        )
        self._key(label, "faint" if faint else "line", series)

    def band(self, points: Sequence[tuple[float, float, float]], label: str | None) -> None:
        """A light area between two values at each point (seconds, low, high)."""
        if not points:
            return
        at, low, high = self._columns(points)
        self._axes.fill_between(at, low, high, color=_color(0), alpha=0.16, linewidth=0)
        if label is not None:
            self._key(label, "band", 0)

    def stack(self, edges: Sequence[float], values: Mapping[str, Sequence[float]]) -> None:
        """Areas on top of each other, constant between one edge (seconds) and the next."""
        at = [edge / self._second for edge in edges]
        columns = [[*each, each[-1]] for each in values.values()]
        colors = [_color(series) for series in range(len(columns))]
        self._axes.stackplot(at, columns, colors=colors, step="post", alpha=0.85, linewidth=0)
        for series, label in enumerate(values):
            self._key(label, "area", series)

    def ring(self, seconds: float, value: float, label: str) -> None:
        """Marks one point."""
        if not math.isfinite(value):
            return
        self._axes.plot(
            [seconds / self._second],
            [value],
            "o",
            markersize=11,
            markerfacecolor="none",
            markeredgecolor=_color(0),
            markeredgewidth=1.6,
            clip_on=False,
        )
        self._key(label, "ring", 0)

    def use_log_scale(self) -> None:
        """Of values that are all above 0."""
        self._axes.set_yscale("log")
        self._axes.yaxis.set_minor_formatter(NullFormatter())

    def finish(self, title: str, unit: str, summary: str) -> Chart:
        """The chart; nothing more can be drawn."""
        if not self._keys:
            return Chart(title, "", "")
        for at in self._resumes:
            self._axes.axvline(at, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        if self._resumes:
            self._keys.append(Key("resumed", "dashed", "--muted"))
        self._set_axes()
        label_unit(self._axes, unit)
        label = f"{title} over time, in {unit}: {summary}"
        svg = inline_svg(self._figure, self._name, label)
        return Chart(title, unit, svg, self._keys, summary)

    def _set_axes(self) -> None:
        axes = self._axes
        axes.set_xlim(0, self._end * _ROOM or 1)
        axes.margins(y=0.1)
        axes.xaxis.set_major_locator(MaxNLocator(7))
        axes.set_xlabel(f"time ({self._unit})")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        if axes.get_yscale() == "linear":
            axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
            if self._from_zero:
                axes.set_ylim(0, axes.dataLim.y1 * 1.12 or 1)
        ticks = _epoch_ticks(self._epochs, self._end)
        if ticks:
            upper = axes.secondary_xaxis("top")
            labels = [f"epoch {ticks[0][0]}", *(str(number) for number, _ in ticks[1:])]
            upper.set_xticks([at for _, at in ticks], labels)

    def _columns(self, points: Sequence[tuple[float, ...]]) -> list[list[float]]:
        seconds, *rest = zip(*points, strict=True)
        return [[each / self._second for each in seconds], *map(list, rest)]

    def _key(self, label: str, mark: str, series: int) -> None:
        self._keys.append(Key(label, mark, VARIABLES[_color(series)]))


def inline_svg(figure: Figure, name: str, label: str) -> Markup:
    """The ``<svg>`` of a figure, with the page's colours, to be called inside ``page_looks``.

    Args:
        name: unique on the page: other names give other ids in the SVG.
        label: what a screen reader says.
    """
    target = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(target, format="svg", metadata={"Date": None})
    document = target.getvalue().decode()
    used = set(re.findall(r"(?:\"|url\()#([^\")]+)", document))

    def fit(tag: re.Match[str]) -> str:
        # HTML's parser knows namespaces by itself, and an id that nothing leads to may be repeated.
        text = re.sub(r' id="([^"]+)"', lambda id: id[0] if id[1] in used else "", tag[0])
        text = re.sub("#1234..", lambda color: f"var({VARIABLES[color[0]]})", text)
        return text.replace(" xlink:href=", " href=")

    inside = re.search("<svg[^>]*>(.*)</svg>", document, re.DOTALL)
    assert inside is not None
    drawn = re.sub(r"<(metadata|style)\b.*?</\1>", "", inside[1], flags=re.DOTALL)
    width, height = 72 * figure.get_size_inches()
    head = Markup('<svg role="img" aria-label="{}" viewBox="0 0 {:g} {:g}">')
    body = Markup(re.sub("<[^>]*>", fit, drawn))  # as matplotlib wrote it, texts escaped
    return head.format(label, width, height) + body + Markup("</svg>")


def lone_points(values: Sequence[float]) -> list[int]:
    """Places of values that no line would show, as what stands beside them is not finite.

    >>> lone_points([1.0, math.nan, 2.0, math.nan, 3.0, 4.0])
    [0, 2]
    """
    known = [False, *map(math.isfinite, values), False]
    return [
        place
        for place in range(len(values))
        if known[place + 1] and not known[place] and not known[place + 2]
    ]


def label_unit(axes: Axes, unit: str) -> None:
    """Names the y axis, in lines that are short enough for its height."""
    axes.set_ylabel(textwrap.fill(unit, _UNIT_LETTERS))


def line_keys(axes: Axes) -> list[Key]:
    """The legend of axes whose lines have the colours C0, C1, … and labels."""
    return [
        Key(
            str(line.get_label()),
            {"--": "dashed", ":": "dotted"}.get(str(line.get_linestyle()), "line"),
            f"--series-{int(str(line.get_color())[1:]) + 1}",
        )
        for line in axes.get_lines()
    ]


def png(figure: Figure, dpi: int) -> bytes:
    """A figure as the bytes of a PNG file, to be called inside ``paper_looks``."""
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=dpi)
    return target.getvalue()


def _color(series: int) -> str:
    return SERIES[series % len(SERIES)]


def time_unit(seconds: float) -> tuple[str, float]:
    """The unit for an axis that reaches to ``seconds``, and its length in seconds.

    >>> time_unit(600)
    ('min', 60)
    """
    if seconds < 180:
        return "s", 1
    return ("min", 60) if seconds < 3 * 3600 else ("h", 3600)


def _epoch_ticks(epochs: Sequence[tuple[int, float]], end: float) -> list[tuple[int, float]]:
    """A few epochs with round numbers, far enough apart for their labels.

    >>> _epoch_ticks([(number, number / 10) for number in range(1, 31)], 3.0)
    [(5, 0.5), (10, 1.0), (15, 1.5), (20, 2.0), (25, 2.5), (30, 3.0)]
    """
    step = next(
        size * 10**power
        for power in range(20)
        for size in (1, 2, 5)
        if len(epochs) <= _EPOCH_TICKS * size * 10**power
    )
    ticks: list[tuple[int, float]] = []
    for number, at in epochs:
        room = 0.12 if len(ticks) == 1 else 0.06  # the first label is the longest
        if number % step == 0 and (not ticks or at - ticks[-1][1] >= room * end):
            ticks.append((number, at))
    return ticks

"""The picture of a pipeline's schedule: what each rank does when, planned or as it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from gnnsys.config.train import TrainConfig
from gnnsys.pages.drawing import Chart, inline_svg, png
from gnnsys.pages.style import page_looks, paper_looks
from gnnsys.pages.tables import TextTable
from gnnsys.pages.templates import render
from gnnsys.pipeline.schedule import Event, Kind
from gnnsys.pipeline.timeline import idle_share
from gnnsys.system.files import replace_file
from gnnsys.training.trace_events import title_of

__all__ = ["timeline_chart", "write_run_timeline", "write_timelines"]

_WIDTH, _LANE, _HEAD = 12.0, 0.34, 0.9  # inches
_LOOKS = {
    Kind.FORWARD: ("forward", "C0"),
    Kind.BACKWARD: ("backward", "C1"),
    Kind.SYNC: ("sum of gradients", "C2"),
    Kind.RECEIVE_FORWARD: ("waiting", "0.82"),
    Kind.RECEIVE_BACKWARD: ("waiting", "0.82"),
}
_NARROW = 0.012  # of the width: narrower boxes have no number

Timeline = tuple[str, Sequence[Event]]


def write_timelines(
    path: Path,
    title: str,
    about: str,
    timelines: Sequence[Timeline],
    unit: str,
    lane: str = "rank",
    table: tuple[list[str], list[list[str]]] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Draws timelines, one under the other, into a .png or .html file.

    Args:
        title, about: of the page.
        timelines: each with a name.
        unit: of the events' times.
        lane: what a lane is.
        table: head and rows, for the page.
        notes: for the page.

    Raises:
        StorageError: the file cannot be written.
    """
    if path.suffix == ".png":
        replace_file(path, _png(title, timelines, unit, lane))
        return
    with page_looks():
        charts = [
            timeline_chart(number, *each, unit, lane) for number, each in enumerate(timelines)
        ]
    tables = [] if table is None else [TextTable("Costs", *table)]
    page = render("schedule", title=title, about=about, notes=notes, tables=tables, charts=charts)
    replace_file(path, page.encode())


def write_run_timeline(path: Path, config: TrainConfig, events: Sequence[Event]) -> None:
    """Draws the last epoch of a training run; raises as ``write_timelines``."""
    write_timelines(
        path,
        title_of(config),
        f"{config.layers} layers, {config.stages} stages x {config.ways} ways, "
        f"{config.chunks} chunks",
        [(f"{config.parallel}, {config.stages} x {config.ways}", events)],
        "seconds",
    )


def _heading(name: str, events: Sequence[Event]) -> str:
    return f"{name}: idle {idle_share(events):.1%}"


def _ranks(events: Sequence[Event]) -> int:
    return len({event.rank for event in events})


def _png(title: str, timelines: Sequence[Timeline], unit: str, lane: str) -> bytes:
    heights = [_LANE * _ranks(events) + _HEAD for _, events in timelines]
    with paper_looks():
        figure = Figure((_WIDTH, sum(heights) + 0.4), layout="constrained")
        axes = figure.subplots(len(timelines), 1, squeeze=False, height_ratios=heights)
        for each, timeline in zip(axes[:, 0], timelines, strict=True):
            _draw(each, timeline[1], unit, lane)
            each.set_title(_heading(*timeline), loc="left", fontsize=11)
        figure.suptitle(title, x=0.01, ha="left")
        figure.legend(handles=_legend(), loc="outside lower right", ncols=4, frameon=False)
        return png(figure, dpi=130)


def timeline_chart(
    number: int, name: str, events: Sequence[Event], unit: str, lane: str = "rank"
) -> Chart:
    """A timeline for a page, to be called inside ``page_looks``.

    Args:
        number: unique on the page.
        name: its title.
        unit: of the events' times.
        lane: what a lane is.
    """
    figure = Figure((_WIDTH, _LANE * _ranks(events) + _HEAD), layout="constrained")
    _draw(figure.add_subplot(), events, unit, lane)
    figure.legend(handles=_legend(), loc="outside upper right", ncols=4, frameon=False)
    heading = _heading(name, events)
    return Chart(heading, "", inline_svg(figure, f"timeline{number}", heading))


def _legend() -> list[Patch]:
    return [Patch(color=color, label=label) for label, color in dict.fromkeys(_LOOKS.values())]


def _draw(axes: Axes, events: Sequence[Event], unit: str, lane: str) -> None:
    lanes = {rank: lane for lane, rank in enumerate(sorted({event.rank for event in events}))}
    end = max((event.end for event in events), default=1.0)
    for event in events:
        kind = Kind(event.kind)
        if kind not in _LOOKS:
            continue
        _, color = _LOOKS[kind]
        length = event.end - event.start
        axes.barh(
            lanes[event.rank], length, left=event.start, height=0.8, color=color,
            edgecolor="white", linewidth=0.4,
        )  # fmt: skip
        if kind in (Kind.FORWARD, Kind.BACKWARD) and length > _NARROW * end:
            axes.text(
                event.start + length / 2, lanes[event.rank], str(event.chunk),
                ha="center", va="center", fontsize=7, color="white",
            )  # fmt: skip
    axes.set_yticks(list(lanes.values()), [f"{lane} {rank}" for rank in lanes])
    axes.invert_yaxis()
    axes.set_xlim(0, end)
    axes.set_xlabel(f"time ({unit})")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)

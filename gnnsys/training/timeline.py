"""The picture of a pipeline's schedule: what each rank does when, planned or as it was."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from gnnsys.config.train import TrainConfig
from gnnsys.pages.drawing import inline_svg, style
from gnnsys.pages.style import html_page, numbers_table, page_header
from gnnsys.pipeline.schedule import Event, Kind
from gnnsys.pipeline.timeline import idle_share
from gnnsys.system.files import replace_file

__all__ = ["write_run_timeline", "write_timelines"]

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
        replace_file(path, _png(timelines, unit, lane))
        return
    with style():
        cards = "".join(
            f'<figure class="card">\n<figcaption><h3>{escape(_heading(timeline))}</h3>'
            f"</figcaption>\n{_svg(number, timeline, unit, lane)}\n</figure>\n"
            for number, timeline in enumerate(timelines)
        )
    items = "".join(f"<li>{escape(note)}</li>\n" for note in notes)
    body = page_header(title, about) + "\n"
    body += f'<ul class="notices">\n{items}</ul>\n' if notes else ""
    if table is not None:
        body += f"<section>\n<h2>Costs</h2>\n{numbers_table(*table)}\n</section>\n"
    body += f"<section>\n<h2>Schedule</h2>\n{cards}</section>\n"
    replace_file(path, html_page(title, body).encode())


def write_run_timeline(path: Path, config: TrainConfig, events: Sequence[Event]) -> None:
    """Draws the last epoch of a training run; raises as ``write_timelines``."""
    write_timelines(
        path,
        f"Last epoch of {config.model} on {Path(config.dataset).name}",
        f"{config.layers} layers, {config.stages} stages x {config.ways} ways, "
        f"{config.chunks} chunks",
        [(f"{config.parallel}, {config.stages} x {config.ways}", events)],
        "seconds",
    )


def _heading(timeline: Timeline) -> str:
    name, events = timeline
    return f"{name}: idle {idle_share(events):.1%}"


def _ranks(events: Sequence[Event]) -> int:
    return len({event.rank for event in events})


def _png(timelines: Sequence[Timeline], unit: str, lane: str) -> bytes:
    heights = [_LANE * _ranks(events) + _HEAD for _, events in timelines]
    with mpl.rc_context():
        mpl.rcdefaults()
        figure = Figure((_WIDTH, sum(heights) + 0.4), layout="constrained")
        axes = figure.subplots(len(timelines), 1, squeeze=False, height_ratios=heights)
        for each, timeline in zip(axes[:, 0], timelines, strict=True):
            _draw(each, timeline[1], unit, lane)
            each.set_title(_heading(timeline), loc="left", fontsize=11)
        figure.legend(handles=_legend(), loc="outside upper right", ncols=4, frameon=False)
        target = io.BytesIO()
        figure.savefig(target, format="png", dpi=130)
    return target.getvalue()


def _svg(number: int, timeline: Timeline, unit: str, lane: str) -> str:
    figure = Figure((_WIDTH, _LANE * _ranks(timeline[1]) + _HEAD), layout="constrained")
    axes = figure.add_subplot()
    _draw(axes, timeline[1], unit, lane)
    figure.legend(handles=_legend(), loc="outside upper right", ncols=4, frameon=False)
    return inline_svg(figure, f"timeline{number}")


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
    axes.set_xlabel(unit)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)

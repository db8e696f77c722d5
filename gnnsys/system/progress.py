"""A progress bar on standard error for work that tells how far it is."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import rich.progress
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = [
    "BarWithLine",
    "Progress",
    "bar_on_demand",
    "is_quiet",
    "silence",
    "work_progress",
]

_quiet: ContextVar[bool] = ContextVar("gnnsys_quiet", default=False)


Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and the total."""


@contextmanager
def work_progress() -> Iterator[Progress]:
    """Gives a function ``(what, done, total)``; each ``what`` has a bar of its own.

    A ``total`` of 0 stands for one that is not known.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with bar_on_demand(columns) as bar:

        def report(what: str, done: int, total: int) -> None:
            bar.start()
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total or None)
            bar.update(tasks[what], completed=done, total=total or None)

        yield report


class BarWithLine(rich.progress.Progress):
    """A bar with a text below it, which is not shown while it is empty."""

    line: str = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """What rich draws."""
        yield from super().get_renderables()
        if self.line:
            yield Text(self.line)


@contextmanager
def bar_on_demand(columns: Sequence[ProgressColumn]) -> Iterator[BarWithLine]:
    """A bar on standard error that shows once it is started, so not before an early error."""
    bar = BarWithLine(*columns, console=Console(stderr=True), disable=is_quiet())
    try:
        yield bar
    finally:
        if bar.live.is_started:
            bar.stop()


@contextmanager
def silence() -> Iterator[None]:
    """Shows neither progress nor warnings meanwhile."""
    log = logging.getLogger("gnnsys")
    level, token = log.level, _quiet.set(True)
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
        _quiet.reset(token)


def is_quiet() -> bool:
    """Whether ``silence`` is in force."""
    return _quiet.get()

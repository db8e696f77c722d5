"""How far work is, on standard error: a bar on a terminal, else lines at intervals."""

from __future__ import annotations

import contextlib
import itertools
import logging
import sys
import threading
import time
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


_PAUSES = (5.0, 10.0, 15.0)
"""Seconds before each of the first lines; later ones are ``_PAUSE`` apart."""
_PAUSE = 30.0

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

    def milestone(self) -> None:
        """Says that a part of the work is done, which is worth a line where lines are told."""


class _Lines(BarWithLine):
    """Without a terminal (a job's log, a pipe): lines that are told at once, not a bar."""

    def __init__(self) -> None:
        super().__init__(disable=True)
        self._began = time.monotonic()
        self._last_milestone: float | None = None
        self._told: list[str] = []
        self._ended = threading.Event()

    def milestone(self) -> None:
        now = time.monotonic()
        if self._last_milestone is None or now - self._last_milestone >= _PAUSE:
            self._last_milestone = now
            self._tell(unfinished=False)

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tells where the work is from time to time, and at the end if it came to one."""
        teller = threading.Thread(target=self._tell_on, name="gnnsys progress", daemon=True)
        with contextlib.suppress(RuntimeError):  # no thread to be had: milestones and the end
            teller.start()
        try:
            yield
        finally:
            self._ended.set()
        if self.tasks and any(task.completed for task in self.tasks):
            self._tell(unfinished=False)

    def _tell_on(self) -> None:
        for pause in itertools.chain(_PAUSES, itertools.repeat(_PAUSE)):
            if self._ended.wait(pause):
                return
            self._tell(unfinished=True)

    def _tell(self, unfinished: bool) -> None:
        shown = [task for task in self.tasks if task.visible]
        if unfinished:
            shown = [task for task in shown if not task.finished] or shown
        told = [_words(task) for task in shown] or ["at work"]
        if told == self._told and not unfinished:
            return
        self._told = told
        seconds = int(time.monotonic() - self._began)
        clock = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        with contextlib.suppress(OSError, ValueError):  # a reader that went away ends no work
            print(f"[{clock}] {'; '.join([*told, self.line] if self.line else told)}",
                  file=sys.stderr, flush=True)  # fmt: skip


def _words(task: rich.progress.Task) -> str:
    total = f" of {task.total:,.0f}" if task.total else ""
    state = task.fields.get("state", "")
    return f"{task.description}: {task.completed:,.0f}{total}{', ' if state else ''}{state}"


@contextmanager
def bar_on_demand(columns: Sequence[ProgressColumn]) -> Iterator[BarWithLine]:
    """A bar on standard error that shows once it is started, so not before an early error.

    Where standard error is no terminal, lines say the same: the first after some seconds, and
    then each half a minute.
    """
    if not sys.stderr.isatty() and not is_quiet():
        lines = _Lines()
        with lines.telling():
            yield lines
        return
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

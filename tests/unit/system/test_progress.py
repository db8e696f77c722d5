"""Progress without a terminal: lines that a log has while the work goes on."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import time

import pytest

from gnnsys.system import progress


class Stream(io.StringIO):
    """Knows what was flushed, as a file another process reads does."""

    def __init__(self) -> None:
        super().__init__()
        self.flushed = ""

    def flush(self) -> None:
        self.flushed = self.getvalue()


def wait_for(text: str, stream: Stream) -> None:
    end = time.monotonic() + 30
    while text not in stream.flushed:
        assert time.monotonic() < end, stream.flushed
        time.sleep(0.01)


def test_lines_come_while_the_work_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream()
    monkeypatch.setattr(progress, "_PAUSES", (0.01,))
    monkeypatch.setattr(progress, "_PAUSE", 0.01)
    with contextlib.redirect_stderr(stream), progress.work_progress() as report:
        wait_for("] at work\n", stream)
        report("read: edges", 3_000, 12_000)
        wait_for("] read: edges: 3,000 of 12,000\n", stream)
        report("read: edges", 12_000, 12_000)
        report("sort", 5, 0)
        wait_for("] sort: 5\n", stream)
    assert stream.flushed.endswith("] read: edges: 12,000 of 12,000; sort: 5\n")


def test_short_work_tells_its_end_alone() -> None:
    stream = Stream()
    with contextlib.redirect_stderr(stream), progress.work_progress() as report:
        report("sort", 1, 2)
        report("sort", 2, 2)
    assert stream.flushed == "[0:00:00] sort: 2 of 2\n"


def test_an_error_tells_nothing_beside_itself() -> None:
    def fail() -> None:
        with progress.work_progress() as report:
            report("sort", 1, 2)
            raise KeyError

    stream = Stream()
    with contextlib.redirect_stderr(stream), pytest.raises(KeyError):
        fail()
    assert stream.getvalue() == ""


def test_the_first_milestone_is_told_at_once_and_the_next_ones_half_a_minute_later() -> None:
    stream = Stream()
    with contextlib.redirect_stderr(stream), progress.bar_on_demand(()) as bar:
        task = bar.add_task("train g", total=9, state="")
        for done in (1, 2, 3):
            bar.update(task, completed=done, state=f"loss {done}")
            bar.milestone()
        assert stream.flushed == "[0:00:00] train g: 1 of 9, loss 1\n"


def test_a_reader_that_went_away_ends_no_work() -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as gone:
        with contextlib.redirect_stderr(gone), progress.work_progress() as report:
            report("sort", 2, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)  # what is left in the buffer


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    with (
        open(theirs, "w") as terminal,
        contextlib.redirect_stderr(terminal),
        progress.work_progress() as report,
    ):
        report("sort", 2, 2)
    shown = ""
    with contextlib.suppress(OSError):  # which is the end of a terminal that was closed
        while part := os.read(ours, 100_000):
            shown += part.decode()
    os.close(ours)
    assert "\x1b[" in shown
    assert "sort" in shown
    assert "2/2" in shown

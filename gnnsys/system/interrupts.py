"""Signals that ask for an end while something runs that can end in good order. Standard library."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["INTERRUPTED", "on_signals", "signals"]

INTERRUPTED = 130
"""Exit status of a command that was interrupted."""

_INSISTING = (signal.SIGINT, signal.SIGTERM)
_ASKING = (signal.SIGHUP, signal.SIGUSR1)
"""Of a shell that was closed, which may send it twice, and of job systems as a warning."""


def signals() -> list[signal.Signals]:
    """Those that ask for an end; SIGHUP is not one under nohup."""
    under_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    known = (*_INSISTING, *_ASKING)
    return [number for number in known if not (number == signal.SIGHUP and under_nohup)]


@contextmanager
def on_signals(interrupt: Callable[[], None]) -> Iterator[None]:
    """Calls ``interrupt`` at the first SIGINT, SIGTERM, SIGHUP or SIGUSR1.

    A second SIGINT or SIGTERM has its usual effect, one of the others none. After SIGHUP nothing
    is written to a terminal, which is gone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in signals()}
    terminals = [file for file in (1, 2) if os.isatty(file)]

    def restore(numbers: Any) -> None:
        for number in numbers:
            signal.signal(number, before[number])

    def handle(number: int, frame: Any) -> None:
        if number == signal.SIGHUP:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for file in terminals:
                os.dup2(nowhere, file)
            os.close(nowhere)
        interrupt()
        restore(before.keys() & set(_INSISTING))

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore(before)

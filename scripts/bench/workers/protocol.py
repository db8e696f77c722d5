"""The worker's side of the line protocol. Runs in a peer's environment: standard library only."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

__all__ = ["Clock", "open_channel", "serve"]


def open_channel() -> TextIO:
    """Takes standard output for the protocol; what libraries print goes to standard error.

    Call it before the peer is imported: imports print too.
    """
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def serve(
    channel: TextIO,
    ready: dict[str, Any],
    jobs: dict[str, Callable[[dict[str, Any]], dict[str, Any]]],
) -> None:
    """Says ``ready``, then answers requests until there are no more.

    A request names its ``job``; an exception in it is an answer too.
    """
    _write(channel, {"result": ready})
    for line in sys.stdin:
        try:
            request = json.loads(line)
            answer = {"result": jobs[request["job"]](request)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        _write(channel, answer)


def _write(channel: TextIO, answer: dict[str, Any]) -> None:
    channel.write(json.dumps(answer) + "\n")
    channel.flush()


class Clock:
    """Wall and CPU seconds of a ``with`` block, those of child processes too."""

    def __enter__(self) -> Clock:
        self._cpu = _cpu_seconds()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        self.seconds = time.perf_counter() - self._start
        self.cpu_seconds = _cpu_seconds() - self._cpu


def _cpu_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)

"""How many threads a caller's number of threads stands for."""

from __future__ import annotations

import os

from gnnsys.errors import ArgumentError
from gnnsys.system.machine import usable_cores

__all__ = ["local_world_size", "num_threads"]

_MOST = 1 << 16


def num_threads(threads: int) -> int:
    """The number asked for; 0 stands for all cores that this process may use, divided among the
    ranks of its machine.

    Raises:
        ArgumentError: a number below 0, or absurdly high.

    >>> num_threads(3)
    3
    """
    if threads < 0:
        raise ArgumentError(f"threads: {threads} < 0; give 0 for all cores or a number")
    if threads > _MOST:
        raise ArgumentError(f"threads: {threads}; expected at most {_MOST}, or 0 for all cores")
    return threads or max(1, usable_cores() // local_world_size())


def local_world_size() -> int:
    """Ranks that torchrun or ``--ranks`` started on this machine; 1 without them."""
    text = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(text)) if text.isdecimal() else 1

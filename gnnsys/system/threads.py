"""How many threads a caller's number of threads stands for."""

from __future__ import annotations

from gnnsys.errors import ArgumentError
from gnnsys.system.machine import usable_cores

__all__ = ["num_threads"]

_MOST = 1 << 16


def num_threads(threads: int) -> int:
    """The number asked for; 0 stands for all cores that this process may use.

    Raises:
        ArgumentError: a number below 0, or absurdly high.

    >>> num_threads(3)
    3
    """
    if threads < 0:
        raise ArgumentError(f"threads: {threads} < 0; give 0 for all cores or a number")
    if threads > _MOST:
        raise ArgumentError(f"threads: {threads}; expected at most {_MOST}, or 0 for all cores")
    return threads or usable_cores()

"""Checks of what the generators are called with."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np

from gnnsys.choices import FloatType
from gnnsys.errors import ArgumentError

__all__ = [
    "INT32_NODES",
    "MAX_WIDTH",
    "check_share",
    "check_shared",
    "check_whole",
    "is_number",
]

MAX_WIDTH = 1 << 20
"""Features of a node."""

INT32_NODES = 1 << 31
"""Nodes from which on ids take 64 bits."""

_LEAST_MEMORY = 1 << 20


def is_number(value: object) -> bool:
    """Whether a value is a real number and not a truth value."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def check_whole(name: str, value: Any, low: int, high: int) -> None:
    """Raises ArgumentError unless ``value`` is a whole number in [low, high]."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or not low <= int(value) <= high:
        raise ArgumentError(f"{name} is {value!r}, expected a whole number from {low} to {high}")


def check_share(name: str, value: float) -> None:
    """Raises ArgumentError unless ``value`` lies in [0, 1]."""
    if not (is_number(value) and 0 <= value <= 1):
        raise ArgumentError(f"{name} is {value!r}, expected a share from 0 to 1")


def check_shared(
    seed: int, train: float, val: float, dtype: str, memory: int, threads: int
) -> None:
    """Checks the arguments that both generators take."""
    check_whole("seed", seed, 0, (1 << 64) - 1)
    check_share("train", train)
    check_share("val", val)
    if train + val > 1:
        raise ArgumentError(f"train + val is {train} + {val} = {train + val}, expected at most 1")
    if dtype not in get_args(FloatType):
        raise ArgumentError(f"dtype is {dtype!r}, expected {' or '.join(get_args(FloatType))}")
    check_whole("memory", memory, _LEAST_MEMORY, 1 << 62)
    check_whole("threads", threads, 0, 1 << 10)

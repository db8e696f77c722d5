"""What torchrun or ``--ranks`` told this process of its place among ranks. Imports no torch."""

from __future__ import annotations

import os

from gnnsys.errors import ArgumentError

__all__ = ["rank_of_process", "rank_on_machine", "world_around"]


def rank_of_process() -> int:
    """The number that torchrun or ``--ranks`` gave this process; 0 without them."""
    return _number("RANK", 0)


def world_around() -> int | None:
    """The number of ranks that torchrun or ``--ranks`` started; None for a process by itself."""
    return _number("WORLD_SIZE", 1) if "RANK" in os.environ else None


def rank_on_machine() -> int:
    """The number of this process among those of its machine; 0 without torchrun or ``--ranks``."""
    return _number("LOCAL_RANK", 0)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise ArgumentError(
            f"the environment says {name}={text!r}, expected a number from 0 on: start ranks by "
            "torchrun or --ranks, or unset it"
        )
    return int(text)

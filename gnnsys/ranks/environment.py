"""What torchrun or ``--ranks`` told this process of its place among ranks. Imports no torch."""

from __future__ import annotations

import os

__all__ = ["rank_of_process", "world_around"]


def rank_of_process() -> int:
    """The number that torchrun or ``--ranks`` gave this process; 0 without them."""
    return int(os.environ.get("RANK", "0"))


def world_around() -> int | None:
    """The number of ranks that torchrun or ``--ranks`` started; None for a process by itself."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else None

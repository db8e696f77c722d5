"""What torchrun or ``--ranks`` told this process of its place among ranks. Imports no torch."""

from __future__ import annotations

import os

from gnnsys.errors import ArgumentError

__all__ = [
    "held_by_launcher",
    "place_to_meet",
    "rank_of_process",
    "rank_on_machine",
    "restarts_so_far",
    "world_around",
]


def rank_of_process() -> int:
    """The number that torchrun or ``--ranks`` gave this process; 0 without them."""
    return _number("RANK", 0)


def world_around() -> int | None:
    """The number of ranks that torchrun or ``--ranks`` started; None for a process by itself."""
    return _number("WORLD_SIZE", 1) if "RANK" in os.environ else None


def rank_on_machine() -> int:
    """The number of this process among those of its machine; 0 without torchrun or ``--ranks``."""
    return _number("LOCAL_RANK", 0)


def restarts_so_far() -> int:
    """How often torchrun or ``--ranks`` has started all ranks again, after one that died."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0)


def place_to_meet() -> tuple[str, int]:
    """The host and port at which all ranks meet.

    Raises:
        ArgumentError: the environment does not say.
    """
    host, port = os.environ.get("MASTER_ADDR"), _number("MASTER_PORT", 0)
    if not host or not 0 < port < 2**16:
        raise ArgumentError(
            f"the environment says MASTER_ADDR={host} and MASTER_PORT={port}, expected the host of "
            "rank 0 and a port there: start ranks by torchrun or --ranks"
        )
    return host, port


def held_by_launcher() -> bool:
    """Whether torchrun or ``--ranks`` holds the store there; else rank 0 does."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise ArgumentError(
            f"the environment says {name}={text!r}, expected a number from 0 on: start ranks by "
            "torchrun or --ranks, or unset it"
        )
    return int(text)

"""What the options of several commands are checked for."""

from __future__ import annotations

from gnnsys.errors import ArgumentError

__all__ = ["check_least"]


def check_least(name: str, value: int | None, least: int) -> None:
    """Raises ArgumentError where an option that was given is below the least.

    >>> check_least("ranks", None, 1)
    """
    if value is not None and value < least:
        raise ArgumentError(f"--{name} {value}: expected at least {least}")

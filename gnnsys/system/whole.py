"""Whole numbers that a user gives. Imports the errors only."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from gnnsys.errors import ArgumentError

__all__ = ["check_whole"]


def check_whole(
    name: str, value: Any, least: int, most: int | None = None, *, otherwise: str = ""
) -> int:
    """The value as an ``int``.

    Args:
        name: of the argument, for the error.
        value: given.
        least: the smallest that can be used.
        most: the greatest; None for any.
        otherwise: what else can be given, such as "or None for no limit".

    Raises:
        ArgumentError: no whole number, a truth value, or one out of range.

    >>> check_whole("k", 3, least=1)
    3
    >>> check_whole("k", 0.5, least=1, most=9)
    Traceback (most recent call last):
        ...
    gnnsys.errors.ArgumentError: k: 0.5, expected a whole number from 1 to 9
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        words = f"whole number from {least} {'on' if most is None else f'to {most}'}"
        more = f", {otherwise}" if otherwise else ""
        raise ArgumentError(f"{name}: {value!r}, expected a {words}{more}")
    return int(value)

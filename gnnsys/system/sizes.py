"""Sizes in bytes as a user writes them. Imports the errors only."""

from __future__ import annotations

import re
from fractions import Fraction

from gnnsys.errors import ArgumentError

__all__ = ["parse_bytes", "size_text"]

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_bytes(text: str, option: str) -> int:
    """A number of bytes; KB, MB, GB and TB count in powers of 1024.

    >>> parse_bytes("1.5GB", "--memory")
    1610612736
    """
    found = re.fullmatch(r"\s*(\d{1,30}(?:\.\d{1,30})?)\s*([kmgt]?)i?b?\s*", text.lower())
    if found is None:
        raise ArgumentError(f"{option} {text}: expected a number of bytes, such as 500MB or 2GB")
    return int(Fraction(found.group(1)) * _UNITS[found.group(2)])


def size_text(count: float) -> str:
    """A number of bytes in words.

    >>> size_text(3 << 20)
    '3 MiB'
    """
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"

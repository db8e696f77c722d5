"""Sizes in bytes as a user writes them. Imports the errors only."""

from __future__ import annotations

import re
from fractions import Fraction

from gnnsys.errors import ArgumentError

__all__ = ["parse_bytes", "parse_bytes_or_share", "size_text"]

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


def parse_bytes_or_share(text: str, option: str) -> int | Fraction:
    """A number of bytes, or a share in per cent.

    >>> parse_bytes_or_share("2KB", "--budget"), parse_bytes_or_share("12.5%", "--budget")
    (2048, Fraction(1, 8))
    """
    found = re.fullmatch(r"\s*(\d{1,10}(?:\.\d{1,10})?)\s*%\s*", text)
    if found is None:
        return parse_bytes(text, option)
    share = Fraction(found.group(1)) / 100
    if share > 1:
        raise ArgumentError(f"{option} {text}: expected at most 100%")
    return share


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

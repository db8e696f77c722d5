"""The name that a mistyped one was meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["nearest"]


def nearest(name: str, known: Iterable[str]) -> str:
    """How an error goes on after a name that there is not; nothing where none is like it.

    >>> nearest("--epoch", ["--epochs", "--lr"]), nearest("xyz", ["--lr"])
    ('; did you mean --epochs?', '')
    """
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""

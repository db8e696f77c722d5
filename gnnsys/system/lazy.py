"""Packages that hand on public names without importing the modules these live in (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["hand_on"]


def hand_on(
    package: str, homes: Mapping[str, str], first: str = ""
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package whose names are imported when asked for.

    Args:
        package: its full name.
        homes: the module, by its full name, that has each public name.
        first: a module that is imported before any of them, for its errors.

    >>> __getattr__, __dir__ = hand_on("gnnsys.cache", {"simulate": "gnnsys.cache.simulator"})
    >>> __getattr__("simulate").__name__
    'simulate'
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if first and not name.startswith("__"):
            import_module(first)
        value = getattr(import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return find, lambda: sorted(homes)

"""Counts of what was served, by tier. Imports the standard library only."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Counters", "Served"]


@dataclass(frozen=True, slots=True)
class Served:
    """What one tier served."""

    rows: int = 0
    """Number of rows, each request counted, duplicates too."""

    bytes: int = 0
    """Their size in bytes as they are stored."""

    def __add__(self, other: Served) -> Served:
        return Served(self.rows + other.rows, self.bytes + other.bytes)


class Counters:
    """Rows and bytes served by each tier of one store; safe to use from several threads.

    A process counts what it served itself: rows that DataLoader worker processes gathered are
    counted in those processes.

    >>> counters = Counters()
    >>> counters.add("host", rows=3, nbytes=96)
    >>> counters.served("host")
    Served(rows=3, bytes=96)
    >>> counters.as_dict()
    {'rows': {'host': 3}, 'bytes': {'host': 96}}
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tiers: dict[str, Served] = {}

    def add(self, tier: str, rows: int, nbytes: int) -> None:
        """Counts ``rows`` rows of ``nbytes`` bytes together as served by ``tier``."""
        with self._lock:
            self._tiers[tier] = self._tiers.get(tier, Served()) + Served(rows, nbytes)

    def served(self, tier: str) -> Served:
        """What ``tier`` served so far."""
        with self._lock:
            return self._tiers.get(tier, Served())

    def tiers(self) -> dict[str, Served]:
        """A copy of all counts."""
        with self._lock:
            return dict(self._tiers)

    def reset(self) -> None:
        """Starts again from zero."""
        with self._lock:
            self._tiers.clear()

    def as_dict(self) -> dict[str, dict[str, int]]:
        """``{"rows": {tier: n}, "bytes": {tier: n}}``, for JSON."""
        tiers = self.tiers()
        return {
            "rows": {tier: served.rows for tier, served in tiers.items()},
            "bytes": {tier: served.bytes for tier, served in tiers.items()},
        }

    @classmethod
    def total(cls, parts: Iterable[Counters]) -> Counters:
        """The sum of several stores' counters."""
        result = cls()
        for part in parts:
            for tier, served in part.tiers().items():
                result.add(tier, served.rows, served.bytes)
        return result

    def __reduce__(self) -> tuple[type[Counters], tuple[()]]:
        return Counters, ()  # a copy in another process counts for itself

    def __repr__(self) -> str:
        return f"Counters({self.tiers()})"

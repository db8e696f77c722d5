"""What a cache did so far, as numbers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.cache.plan import BatchPlan

__all__ = ["CacheStats", "hit_ratio"]

_STATE = ("capacity", "victim_cells", "resident")  # how things stand, not counts


def hit_ratio(rows: int, copies: int, reads: int) -> float:
    """Share of the distinct rows of batches that nobody had to read: they came from the cache's
    slots or from the victim buffer. 0 without rows.

    Args:
        rows: asked for.
        copies: of them those asked for again in the same batch.
        reads: of them those that were read.
    """
    distinct = rows - copies
    return (distinct - reads) / distinct if distinct else 0.0


@dataclass(slots=True)
class CacheStats:
    """Counts of one cache; ``later - earlier`` is what happened in between.

    ``rows = hits + victim_hits + reads + copies``.

    >>> CacheStats(rows=10, hits=6, reads=3, copies=1).hit_ratio
    0.6666666666666666
    """

    batches: int = 0
    """Gathers served."""

    rows: int = 0
    """Rows asked for."""

    hits: int = 0
    """Rows that came from the cache's slots."""

    victim_hits: int = 0
    """Rows that came from the victim buffer."""

    reads: int = 0
    """Rows that were read from the file."""

    copies: int = 0
    """Rows asked for again in the same batch."""

    bypasses: int = 0
    """Rows that were read and not placed in the cache."""

    evictions: int = 0
    """Rows that left the cache."""

    drops: int = 0
    """Rows with a known next use for which the victim buffer had no room."""

    requests: int = 0
    """Reads asked of the disk for batches; 0 where the page cache decides (mmap)."""

    pages: int = 0
    """Pages of 4 KiB that they covered."""

    bytes_read: int = 0
    """Bytes that they brought."""

    bytes_sent: int = 0
    """To other ranks that share the cache: ids, where rows are, and rows."""

    io_wait_seconds: float = 0.0
    """Time that gathers waited for rows from the disk."""

    prefilled: int = 0
    """Rows brought into the cache before the first batch; not among ``reads``."""

    capacity: int = 0
    """Rows that the cache holds at most."""

    victim_cells: int = 0
    """Rows that the victim buffer holds at most."""

    resident: int = 0
    """Rows that are in the cache now."""

    @property
    def hit_ratio(self) -> float:
        """See ``gnnsys.cache.stats.hit_ratio``."""
        return hit_ratio(self.rows, self.copies, self.reads)

    def count(self, plan: BatchPlan, is_lost: NDArray[np.bool_] | None = None) -> None:
        """Adds what a plan does to the cache.

        Args:
            is_lost: (plan.rows,) which rows nobody holds, though the plan says so: they are read.
        """
        entered = int((plan.fills[:, 2] >= 0).sum() + (plan.victim_in[:, 2] >= 0).sum())
        self.rows += plan.rows
        self.hits += len(plan.hits)
        self.victim_hits += len(plan.victim_in)
        self.reads += len(plan.fills)
        self.copies += len(plan.copies)
        self.bypasses += plan.bypasses
        self.evictions += plan.evictions
        self.drops += plan.drops
        self.resident += entered - plan.evictions
        if is_lost is not None and is_lost.any():
            for name, entries in (
                ("hits", plan.hits), ("victim_hits", plan.victim_in), ("copies", plan.copies)
            ):  # fmt: skip
                lost = int(is_lost[entries[:, 0]].sum())
                setattr(self, name, getattr(self, name) - lost)
                self.reads += lost

    def as_dict(self) -> dict[str, Any]:
        """All fields and ``hit_ratio``, for JSON."""
        return {**dataclasses.asdict(self), "hit_ratio": self.hit_ratio}

    def __sub__(self, earlier: CacheStats) -> CacheStats:
        """The counts since ``earlier``, with the state of now."""
        return CacheStats(
            **{
                field.name: getattr(self, field.name)
                - (0 if field.name in _STATE else getattr(earlier, field.name))
                for field in dataclasses.fields(self)
            }
        )

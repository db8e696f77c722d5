"""What a batch will do, decided ahead: ``BatchPlan``, and the names of the policies.

This module owns the form of a plan, which planners write and executors carry out. It imports numpy
only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from gnnsys.choices import Policy

__all__ = ["POLICIES", "BatchPlan", "Policy", "plan_aside"]

POLICIES: tuple[str, ...] = get_args(Policy)


@dataclass(frozen=True, slots=True, eq=False)
class BatchPlan:
    """Where each position of a batch comes from and what enters and leaves the cache.

    Every position is in exactly one of ``hits``, ``victim_in``, ``fills`` and ``copies``. Arrays
    are int32 in C order unless said otherwise. An executor goes in this order:

    1. ``out[position]`` from its slot (hits), cell (victim_in) or staging row (fills).
    2. ``cells[cell]`` from its slot or staging row (victim_out); no cell that victim_in reads.
    3. ``slots[slot]`` from its cell (victim_in) or staging row (fills) where the slot is not -1.
    4. ``out[position]`` from ``out[first position]`` (copies).
    """

    batch: int
    """Absolute number; an epoch's end is not special."""
    rows: int
    """Positions of the batch."""
    hits: NDArray[np.int32]
    """(h, 2): position, slot; by position."""
    victim_in: NDArray[np.int32]
    """(v, 3): position, cell of the victim buffer, slot to fill or -1; by position."""
    fills: NDArray[np.int32]
    """(f, 3): position, staging row, slot to fill or -1 for a row that is bypassed; by position."""
    copies: NDArray[np.int32]
    """(c, 2): position, first position of the batch that holds the same id; by position."""
    reads: NDArray[np.int64]
    """(r,) int64, ascending: ids to be read. Staging row k holds the row ``reads[k]``; r = f."""
    victim_out: NDArray[np.int32]
    """(o, 2): slot, or -1 - staging row of a bypassed row; cell to fill. By cell."""
    drops: int
    """Rows with a known next use for which the victim buffer had no room; 0 without a buffer."""
    evictions: int
    """Rows that left the cache, whether or not the victim buffer took them."""
    tier: str = "file"
    """Where ``reads`` are read."""

    @property
    def bypasses(self) -> int:
        """Rows that are read and not placed in the cache."""
        return int((self.fills[:, 2] < 0).sum())


def plan_aside(ids: NDArray[Any], slots: NDArray[np.int32], batch: int = -1) -> BatchPlan:
    """A plan that changes nothing: from the slots as they are, the rest is bypassed.

    Args:
        ids: (n,) of a batch, which may repeat.
        slots: (n,) the slot of each, -1 where it has none.
        batch: its number.

    >>> plan = plan_aside(np.array([7, 5, 7]), np.array([-1, 0, -1], np.int32))
    >>> plan.hits.tolist(), plan.reads.tolist(), plan.copies.tolist()
    ([[1, 0]], [7], [[2, 0]])
    """
    unique, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    hit = slots[first] >= 0
    missed = first[~hit]
    again = np.flatnonzero(first[inverse] != np.arange(len(ids)))
    columns = [
        (first[hit], slots[first[hit]]),
        (missed, np.arange(len(missed)), np.full(len(missed), -1)),
        (again, first[inverse][again]),
    ]
    hits, fills, copies = (np.stack(each, 1).astype(np.int32) for each in columns)
    return BatchPlan(
        batch=batch,
        rows=len(ids),
        hits=hits,
        victim_in=np.empty((0, 3), np.int32),
        fills=fills,
        copies=copies,
        reads=unique[~hit].astype(np.int64),
        victim_out=np.empty((0, 2), np.int32),
        drops=0,
        evictions=0,
    )

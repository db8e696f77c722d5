"""What a batch will do, decided ahead: ``BatchPlan``, and the names of the policies.

This module owns the form of a plan, which planners write and executors carry out. It imports numpy
only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from gnnsys.choices import Policy

__all__ = ["POLICIES", "BatchPlan", "Policy"]

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

    @property
    def bypasses(self) -> int:
        """Rows that are read and not placed in the cache."""
        return int((self.fills[:, 2] < 0).sum())

"""What a batch will do, decided ahead: ``BatchPlan``, and the names of the policies.

This module owns the form of a plan, which planners write and executors carry out. It imports numpy
and the errors only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NoReturn, get_args

import numpy as np
from numpy.typing import NDArray

from gnnsys.choices import Policy
from gnnsys.errors import ArgumentError, DTypeError, RowIndexError

__all__ = [
    "POLICIES",
    "BatchPlan",
    "Policy",
    "check_batch_numbers",
    "check_id_array",
    "check_planner",
    "raise_row_index",
]

POLICIES: tuple[str, ...] = get_args(Policy)

MAX_ROWS = 2**31 - 2
"""Rows, slots and cells are numbered in int32."""


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


def check_planner(
    num_rows: int,
    capacity: int,
    policy: str,
    window: int,
    scores: NDArray[np.uint16] | None,
    victim_cells: int,
) -> None:
    """Raises ArgumentError or DTypeError for what no planner can use."""
    for name, value, way_out in [
        ("num_rows", num_rows, "read the table without a cache (leave cache= out)"),
        ("capacity", capacity, ""),
        ("window", window, ""),
        ("victim_cells", victim_cells, "give a smaller victim_buffer="),
    ]:
        if value < 0:
            raise ArgumentError(f"{name}={value}: expected at least 0")
        if way_out and value > MAX_ROWS:
            raise ArgumentError(
                f"{name}={value} > {MAX_ROWS}: plans number rows and cells in int32; {way_out}"
            )
    if policy not in POLICIES:
        raise ArgumentError(f"policy={policy!r}: expected one of {', '.join(POLICIES)}")
    if scores is None:
        return
    if scores.dtype != np.uint16:
        raise DTypeError(
            f"scores: dtype {scores.dtype}, expected uint16; "
            "gnnsys.cache.importance.rank_normalised makes them from any values"
        )
    if scores.shape != (num_rows,):
        raise ArgumentError(f"scores: shape {scores.shape}, expected one a row, ({num_rows},)")


def check_id_array(ids: NDArray[Any]) -> None:
    """Raises DTypeError or ArgumentError for what is no array of ids."""
    if ids.dtype not in (np.dtype(np.int32), np.dtype(np.int64)):
        raise DTypeError(f"ids: dtype {ids.dtype}, expected int64 or int32")
    if ids.ndim != 1:
        raise ArgumentError(f"ids: shape {ids.shape}, expected one dimension")
    if len(ids) > MAX_ROWS:
        raise ArgumentError(f"ids: {len(ids)} > {MAX_ROWS} positions in one batch; split it")


def raise_row_index(ids: NDArray[Any], position: int, num_rows: int) -> NoReturn:
    """Names the id that lies outside the table."""
    raise RowIndexError(f"id {ids[position]} at position {position} is outside [0, {num_rows})")


def check_batch_numbers(
    call: Literal["commit", "retract"], batch: int, committed: int, planned: int, announced: int
) -> None:
    """Raises ArgumentError unless the call makes sense for that batch."""
    if call == "commit" and not batch == committed < planned:
        raise ArgumentError(
            f"batch {batch} cannot be committed: {committed} is the next, and the batches below "
            f"{planned} are planned"
        )
    if call == "retract" and not committed <= batch <= announced:
        raise ArgumentError(
            f"batch {batch} cannot be retracted: expected {committed} (committed) to {announced} "
            "(announced)"
        )

"""What a policy would serve from where: plans of a recorded trace, made and not carried out.

This module owns ``simulate`` and the count of pages that a plan's reads touch. For several ranks
see ``shared.simulator``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gnnsys.cache.plan import BatchPlan, Policy
from gnnsys.cache.planner import Planner
from gnnsys.cache.stats import hit_ratio
from gnnsys.cache.trace import Trace, read_trace
from gnnsys.errors import ArgumentError

__all__ = ["SimulationResult", "pages_of_rows", "plans_of", "simulate"]

PAGE_BYTES = 4096
"""What a disk is read in."""


@dataclass(kw_only=True, slots=True)
class SimulationResult:
    """Counts of rows over the batches from ``measure_from`` on.

    ``hits + victim_hits + misses + copies == rows``.
    """

    policy: str
    capacity: int
    """Slots of the cache."""
    window: int
    """Batches looked ahead; of ``belady`` all."""
    batches: int = 0
    rows: int = 0
    """Positions of the batches: rows asked for."""
    copies: int = 0
    """Positions whose id occurs before in the same batch."""
    hits: int = 0
    victim_hits: int = 0
    """Rows served from the victim buffer."""
    misses: int = 0
    """Rows read."""
    bypasses: int = 0
    """Rows that were read and not placed in the cache."""
    evictions: int = 0
    victims_saved: int = 0
    """Rows that the victim buffer took."""
    drops: int = 0
    """Rows with a known next use for which the victim buffer had no room."""
    pages: int = 0
    """Distinct pages of ``PAGE_BYTES`` that each batch reads, summed up."""
    bytes_read: int = 0
    """Of these pages."""

    @property
    def hit_ratio(self) -> float:
        """See ``gnnsys.cache.stats.hit_ratio``."""
        return hit_ratio(self.rows, self.copies, self.misses)

    def as_dict(self) -> dict[str, Any]:
        """All counts, and the hit ratio, for JSON."""
        return {**asdict(self), "hit_ratio": self.hit_ratio}

    def add(self, plan: BatchPlan, pages: int) -> None:
        """Counts a batch."""
        self.batches += 1
        self.rows += plan.rows
        self.copies += len(plan.copies)
        self.hits += len(plan.hits)
        self.victim_hits += len(plan.victim_in)
        self.misses += len(plan.fills)
        self.bypasses += plan.bypasses
        self.evictions += plan.evictions
        self.victims_saved += len(plan.victim_out)
        self.drops += plan.drops
        self.pages += pages
        self.bytes_read += pages * PAGE_BYTES


def pages_of_rows(rows: NDArray[np.int64], row_bytes: int, offset: int = 0) -> int:
    """How many distinct pages hold these rows.

    Args:
        rows: (n,) numbers, ascending.
        row_bytes: bytes of a row; rows lie one after the other.
        offset: of row 0 in the file, in bytes.

    Example:
        >>> pages_of_rows(np.array([0, 1, 4]), row_bytes=1024), pages_of_rows(np.array([7]), 5000)
        (2, 2)
    """
    if len(rows) == 0 or row_bytes == 0:
        return 0
    start = offset + rows * row_bytes
    first, last = start // PAGE_BYTES, (start + row_bytes - 1) // PAGE_BYTES
    # The first page of a row may be the last one of the row before.
    return int((last - first + 1).sum()) - int((first[1:] == last[:-1]).sum())


def plans_of(planner: Planner, batches: Sequence[NDArray[Any]]) -> Iterator[BatchPlan]:
    """The plan of each batch, made with those of the window announced and taken as carried out.

    >>> plans = plans_of(Planner(9, capacity=2, window=1), [np.array([3, 4]), np.array([4, 5])])
    >>> [plan.reads.tolist() for plan in plans]
    [[3, 4], [5]]
    """
    for now in range(len(batches)):
        while planner.announced < min(len(batches), now + 1 + planner.window):
            planner.announce(batches[planner.announced])
        plan = planner.plan()
        planner.commit(now)
        yield plan


def simulate(
    trace: Sequence[NDArray[Any]] | str | os.PathLike[str],
    policy: Policy | Literal["belady"],
    capacity: int,
    window: int = 16,
    *,
    num_rows: int | None = None,
    scores: NDArray[np.uint16] | None = None,
    prefill: bool = True,
    victim_cells: int = 0,
    row_bytes: int = PAGE_BYTES,
    offset: int = 0,
    measure_from: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> SimulationResult:
    """Plans the batches of a trace and counts where their rows would come from.

    Args:
        trace: the ids of each batch, or the path of a recorded trace.
        policy: as of ``Planner``, or "belady", which knows the whole trace: no cache that takes
            its rows from the batches serves more of them (Belady: "A study of replacement
            algorithms for a virtual-storage computer", 1966; rows may bypass the cache).
        capacity: slots of the cache, in rows.
        window: batches looked ahead; "belady" does not ask for it.
        num_rows: of the table; a recorded trace knows it.
        scores: (num_rows,) uint16 importance, for prefilling and for the policies that use it.
        prefill: start with the most important rows.
        victim_cells: rows of the victim buffer.
        row_bytes, offset: where rows lie in the file, for the count of pages.
        measure_from: the first batch that is counted; those before warm the cache.
        progress: is told (batches done, batches) after each.

    Raises:
        ArgumentError, DTypeError, RowIndexError: as ``Planner``; ``num_rows`` is missing;
            ``measure_from`` or a size of the layout is negative.
        MissingFileError, FileFormatError: there is no such trace.

    Example:
        >>> trace = [np.array([0, 1, 2]), np.array([2, 3]), np.array([0, 3])]
        >>> simulate(trace, "belady", capacity=2, num_rows=4).hits
        3
    """
    batches: Sequence[NDArray[Any]]
    batches = (
        trace if isinstance(trace, Sequence) and not isinstance(trace, str) else read_trace(trace)
    )
    if num_rows is None:
        if not isinstance(batches, Trace):
            raise ArgumentError("num_rows is missing: a sequence of ids does not tell it")
        num_rows = batches.num_rows
    for name, value in [
        ("measure_from", measure_from),
        ("row_bytes", row_bytes),
        ("offset", offset),
    ]:
        if value < 0:
            raise ArgumentError(f"{name}={value}: expected at least 0")
    if policy == "belady":
        window = len(batches)
    planner = Planner(
        num_rows,
        capacity,
        policy="lookahead" if policy == "belady" else policy,
        window=window,
        scores=scores,
        victim_cells=victim_cells,
        prefill=prefill,
    )
    result = SimulationResult(policy=policy, capacity=planner.capacity, window=window)
    for plan in plans_of(planner, batches):
        if plan.batch >= measure_from:
            result.add(plan, pages_of_rows(plan.reads, row_bytes, offset))
        if progress is not None:
            progress(plan.batch + 1, len(batches))
    return result

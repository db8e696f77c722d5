"""The planner in plain Python: the definition of what a plan holds, slow and easy to read.

This module owns ``ReferencePlanner``. ``gnnsys.cache.planner.Planner`` makes identical plans in
C++; tests hold the two together.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.cache.plan import BatchPlan, Policy
from gnnsys.errors import ArgumentError

sys.path.insert(0, str(Path(__file__).parent))
from planner_queues import QUEUES, Queue

__all__ = ["ReferencePlanner"]


class ReferencePlanner:
    """Plans batches over a table of ``num_rows`` rows and a cache of ``capacity`` slots.

    Arguments, methods and plans are those of ``gnnsys.cache.planner.Planner``.
    """

    def __init__(
        self,
        num_rows: int,
        capacity: int,
        *,
        policy: Policy = "hybrid",
        window: int = 16,
        scores: NDArray[np.uint16] | None = None,
        victim_cells: int = 0,
        prefill: bool = True,
    ) -> None:
        self.num_rows = num_rows
        self.capacity = min(capacity, num_rows)
        self.policy, self.window, self.victim_cells = policy, window, victim_cells
        self._score = [0] * num_rows if scores is None else [int(score) for score in scores]
        worst_first = sorted(range(num_rows), key=lambda row: (self._score[row], -row))
        chosen = worst_first[num_rows - self.capacity :] if prefill and scores is not None else []
        self.prefilled = np.array(sorted(chosen), np.int64)
        self._slot = {row: slot for slot, row in enumerate(sorted(chosen))}  # of the residents
        self._queue: Queue | None = None
        if policy in QUEUES:
            self._queue = QUEUES[policy](self.capacity)
            self._queue.fill(chosen)
        self._cell: dict[int, int] = {}  # of the rows in the victim buffer
        self._batches: list[list[int]] = []
        self._before: dict[int, Any] = {}  # residents before each uncommitted plan
        self.planned = self.committed = 0

    @property
    def announced(self) -> int:
        """Batches announced so far."""
        return len(self._batches)

    def announce(self, ids: NDArray[Any]) -> int:
        """Takes the ids of the next batch; returns its number."""
        self._batches.append([int(row) for row in ids])
        return self.announced - 1

    def plan(self) -> BatchPlan:
        """Makes the plan of the next batch."""
        if self.planned == self.announced:
            raise ArgumentError(f"batch {self.planned} cannot be planned: announce it first")
        now = self.planned
        self._before[now] = copy.deepcopy((self._slot, self._queue))
        batch = self._batches[now]
        first = {row: batch.index(row) for row in batch}  # (position by id), in order of position
        old = dict(self._slot)
        hits, left, stay = self._serve(list(first))
        missed = [row for row in first if row not in hits]
        staging = {row: k for k, row in enumerate(sorted(r for r in missed if r not in self._cell))}

        unused = range(len(old), self.capacity)
        entering = [row for row in missed if row in stay]
        slots = [*sorted(old[row] for row in left), *unused]
        filled = dict(zip(entering, slots, strict=False))
        self._slot = {row: slot for row, slot in old.items() if row not in left} | filled

        victim_in = [
            (first[row], self._cell[row], filled.get(row, -1))
            for row in missed
            if row in self._cell
        ]
        sources = {row: old[row] for row in left if row not in stay}
        sources |= {row: -1 - staging[row] for row in staging if row not in stay}
        victim_out, drops = self._save_victims(sources, first)
        self.planned += 1
        return BatchPlan(
            batch=now,
            rows=len(batch),
            hits=_table([(first[row], old[row]) for row in first if row in hits], 2),
            victim_in=_table(victim_in, 3),
            fills=_table(
                [(first[r], staging[r], filled.get(r, -1)) for r in missed if r in staging], 3
            ),
            copies=_table([(p, first[r]) for p, r in enumerate(batch) if first[r] != p], 2),
            reads=np.array(sorted(staging), np.int64),
            victim_out=_table(victim_out, 2),
            drops=drops,
            evictions=len(left),
        )

    def commit(self, batch: int) -> None:
        """Says that a plan was carried out; in order."""
        assert batch == self.committed < self.planned
        del self._before[batch]
        self.committed += 1

    def retract(self, batch: int) -> None:
        """Takes back the announcements from ``batch`` on, and their plans."""
        assert self.committed <= batch <= self.announced
        if batch < self.planned:
            self._slot, self._queue = self._before[batch]
            self._before = {b: state for b, state in self._before.items() if b < batch}
            self.planned = batch
            self._cell = {}
        del self._batches[batch:]
        # A cell whose row has no use left among the announced batches is free.
        now = self.planned - 1
        self._cell = {r: c for r, c in self._cell.items() if self._next_use(r, now) is not None}

    def committed_slots(self, ids: NDArray[Any]) -> NDArray[np.int32]:
        """(n,) int32: the slot of each id by the committed plans, -1 where it has none."""
        slot = self._before[self.committed][0] if self._before else self._slot
        return np.array([slot.get(int(row), -1) for row in ids], np.int32)

    def _next_use(self, row: int, now: int) -> int | None:
        coming = range(now + 1, min(now + self.window, self.announced - 1) + 1)
        return next((b for b in coming if row in self._batches[b]), None)

    def _serve(self, rows: list[int]) -> tuple[set[int], set[int], set[int]]:
        """Who is hit, which old residents leave (for a moment at least), who is resident then."""
        old = set(self._slot)
        if self._queue is None:
            stay = set(sorted(old.union(rows), key=self._eviction_key)[: self.capacity])
            return old.intersection(rows), old - stay, stay
        hits, left = set(), set()
        for row in rows:
            if self._queue.access(row):
                hits.add(row)
            left |= old - self._queue.rows()
        return hits, left, self._queue.rows()

    def _eviction_key(self, row: int) -> tuple[int, int, int]:
        """The greatest leaves first."""
        now = self.planned
        use = self._next_use(row, now)
        score = 0 if self.policy == "lookahead" else self._score[row]
        if use is None or self.policy == "static":
            return (1, -score, row)
        pvp = self.policy == "hybrid-pvp" and self.victim_cells > 0
        return (2 if pvp and 8 * (use - now) > self.window else 0, use, row)

    def _save_victims(
        self, sources: dict[int, int], served: Iterable[int]
    ) -> tuple[list[tuple[int, int]], int]:
        """Puts rows with a known next use into the victim buffer: (source, cell) each, and drops.

        Cells that this batch reads keep their row where it is not placed in the cache and has a
        next use; they take no other row, because they are read when others are written.
        """
        if self.victim_cells == 0:
            return [], 0
        now = self.planned
        use = {row: self._next_use(row, now) for row in {*sources, *self._cell, *served}}
        read = {row: self._cell.pop(row) for row in served if row in self._cell}
        waiting = {*self._cell, *(row for row in sources if use[row] is not None)}
        by_use = sorted(waiting, key=lambda row: (use[row], row))
        kept = by_use[: self.victim_cells - len(read)]
        self._cell = {row: cell for row, cell in self._cell.items() if row in kept}
        taken = {*self._cell.values(), *read.values()}
        free = [cell for cell in range(self.victim_cells) if cell not in taken]
        new = [row for row in kept if row in sources]
        placed = dict(zip(new, free, strict=False))
        staying = {r: c for r, c in read.items() if use[r] is not None and r not in self._slot}
        self._cell |= placed | staying
        written = sorted((cell, sources[row]) for row, cell in placed.items())
        return [(source, cell) for cell, source in written], len(by_use) - len(kept)


def _table(rows: Sequence[tuple[int, ...]], columns: int) -> NDArray[np.int32]:
    return np.array(rows, np.int32).reshape(len(rows), columns)

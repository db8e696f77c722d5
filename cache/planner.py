"""The planner: who is read, cached and evicted at each batch, decided ahead.

This module owns the Python face of the compiled planner and its errors. It moves no rows: plans
are carried out by a store.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.cache.plan import (
    BatchPlan,
    Policy,
    check_batch_numbers,
    check_id_array,
    check_planner,
    raise_row_index,
)
from gnnsys.errors import ArgumentError
from gnnsys.system.extension import core

__all__ = ["Planner"]


class Planner:
    """Compiles announced batches into plans, one after the other.

    A pure function of its arguments and of the calls: plans depend on no clock, thread or device.
    Batches are numbered from 0 in the order announced, and ``committed <= planned <= announced``.
    Methods may be called from several threads, which take turns. A reference in plain Python beside
    the property tests says what is planned; the rule for ``hybrid`` is that of LSM-GNN (Park et
    al., 2024) where it combines static scores with known next uses.

    Example:
        >>> import numpy as np
        >>> planner = Planner(num_rows=100, capacity=2, window=1)
        >>> for ids in ([3, 4], [4, 5], [5]):
        ...     _ = planner.announce(np.array(ids))
        >>> planner.plan().reads.tolist(), planner.plan().reads.tolist()
        ([3, 4], [5])
        >>> planner.plan().hits.tolist()  # position 0 comes from slot 1, which row 4 has left
        [[0, 1]]
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
        """Starts without announcements.

        Args:
            num_rows: of the table; at most 2**31 - 2.
            capacity: slots of the cache, in rows; more than ``num_rows`` are not used.
            policy: who leaves first; see ``gnnsys.cache.plan.Policy``.
            window: how many batches after the one that is planned may be looked at.
            scores: (num_rows,) static importance, higher is better; kept, not to be changed
                meanwhile. Without scores all rows are equal.
            victim_cells: rows that the victim buffer holds; 0 for none.
            prefill: start with the rows of the highest scores in the cache (``prefilled``), the
                smallest ids among equals. Nothing is prefilled without scores.

        Raises:
            ArgumentError: a number is out of range, the policy is unknown, or ``scores`` has
                another shape.
            DTypeError: ``scores`` is not uint16.
            MemoryError: 8 bytes a row and some more a slot cannot be had.
        """
        check_planner(num_rows, capacity, policy, window, scores, victim_cells)
        self.num_rows = num_rows
        self.capacity = min(capacity, num_rows)
        self.policy, self.window, self.victim_cells = policy, window, victim_cells
        kept = None if scores is None else np.ascontiguousarray(scores)
        # Wider numbers than the planner's are as good as its largest.
        limit = np.iinfo(np.int64).max
        self._planner = core.CachePlanner(
            num_rows, min(capacity, limit), policy, min(window, limit), kept, victim_cells, prefill
        )

    @property
    def prefilled(self) -> NDArray[np.int64]:
        """(k,) int64, ascending: slot j is to hold the row ``prefilled[j]`` before batch 0."""
        return self._planner.prefilled

    @property
    def announced(self) -> int:
        """Batches announced, which is the number of the next one."""
        return self._planner.announced

    @property
    def planned(self) -> int:
        """Batches planned, which is the number of the next one."""
        return self._planner.planned

    @property
    def committed(self) -> int:
        """Batches committed, which is the number of the next one."""
        return self._planner.committed

    @property
    def state_bytes(self) -> int:
        """Bytes of memory that the planner takes, the scores left out."""
        return self._planner.state_bytes

    def announce(self, ids: NDArray[Any]) -> int:
        """Takes the ids of the next batch; returns its number.

        Args:
            ids: (n,) int64 or int32, in any order; an id may occur several times.

        Raises:
            RowIndexError: an id is outside the table; nothing is announced.
            ArgumentError, DTypeError: ``ids`` has another shape or type.
        """
        check_id_array(ids)
        wrong = self._planner.announce(np.ascontiguousarray(ids))
        if wrong >= 0:
            raise_row_index(ids, wrong, self.num_rows)
        return self._planner.announced - 1

    def plan(self) -> BatchPlan:
        """Makes the plan of batch ``planned`` from what is announced up to ``planned + window``.

        Raises:
            ArgumentError: that batch is not announced.
        """
        if self.planned == self.announced:
            raise ArgumentError(f"batch {self.planned} cannot be planned: announce it first")
        return BatchPlan(*self._planner.plan())

    def commit(self, batch: int) -> None:
        """Says that the plan of ``batch`` was carried out, so that it is never undone.

        Raises:
            ArgumentError: ``batch`` is not the next to be committed, or is not planned.
        """
        check_batch_numbers("commit", batch, self.committed, self.planned, self.announced)
        self._planner.commit(batch)

    def retract(self, batch: int) -> None:
        """Takes back the announcements from ``batch`` on and undoes their plans.

        Batch numbers start again from ``batch``. Rows whose next use is taken back have none then,
        and cells of the victim buffer that were held for it are free.

        Raises:
            ArgumentError: ``batch`` is committed or not announced.
        """
        check_batch_numbers("retract", batch, self.committed, self.planned, self.announced)
        self._planner.retract(batch)

    def committed_slots(self, ids: NDArray[Any]) -> NDArray[np.int32]:
        """(n,) int32: the slot of each id by the committed plans, -1 where it has none.

        Raises:
            RowIndexError, ArgumentError, DTypeError: as for ``announce``.
        """
        check_id_array(ids)
        slots = np.empty(len(ids), np.int32)
        wrong = self._planner.committed_slots(np.ascontiguousarray(ids), slots)
        if wrong >= 0:
            raise_row_index(ids, wrong, self.num_rows)
        return slots

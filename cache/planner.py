"""The planner: who is read, cached and evicted at each batch, decided ahead.

This module owns the Python face of the compiled planner and its errors. It moves no rows: plans
are carried out by a store.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.cache.plan import BatchPlan, Policy
from gnnsys.errors import ArgumentError, DTypeError
from gnnsys.system.extension import core

__all__ = ["Planner"]


class Planner(core.CachePlanner):
    """Compiles announced batches into plans, one after the other.

    A pure function of its arguments and of the calls: plans depend on no clock, thread or device.
    Batches are numbered from 0 in the order announced, and ``committed <= planned <= announced``.
    Methods may be called from several threads, which take turns. A reference in plain Python beside
    the property tests says what is planned; the rule for ``hybrid`` is that of LSM-GNN (Park et
    al., 2024) where it combines importance with known next uses.

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
            scores: (num_rows,) importance, higher is better; copied. Without it all rows are equal.
            victim_cells: rows that the victim buffer holds; 0 for none.
            prefill: start with the most important rows in the cache (``prefilled``), the smallest
                ids among equals. Nothing is prefilled without ``scores``.

        Raises:
            ArgumentError: a number is out of range, the policy is unknown, or ``scores`` has
                another shape.
            DTypeError: ``scores`` is not uint16.
            MemoryError: 4 bytes a row and some more a slot cannot be had.
        """
        if scores is not None and scores.dtype != np.uint16:
            raise DTypeError(
                f"scores: dtype {scores.dtype}, expected uint16; "
                "gnnsys.cache.importance.rank_normalised makes them from any values"
            )
        if scores is not None and scores.shape != (num_rows,):
            raise ArgumentError(f"scores: shape {scores.shape}, expected one a row, ({num_rows},)")
        kept = None if scores is None else np.ascontiguousarray(scores)
        # Wider numbers than the planner's are as good as its largest.
        limit = np.iinfo(np.int64).max
        super().__init__(
            num_rows, min(capacity, limit), policy, min(window, limit), kept, victim_cells, prefill
        )
        self.num_rows = num_rows
        self.capacity = min(capacity, num_rows)
        self.policy, self.window, self.victim_cells = policy, window, victim_cells
        self._num_prefilled = self.capacity if prefill and kept is not None else 0

    @property
    def prefilled_slots(self) -> NDArray[np.int64]:
        """(k,) the slots that hold ``prefilled`` before the first batch."""
        return np.arange(self._num_prefilled)

    def announce(self, ids: NDArray[Any]) -> int:
        """Takes the ids of the next batch; returns its number.

        Args:
            ids: (n,) int64 or int32, in any order; an id may occur several times.

        Raises:
            RowIndexError: an id is outside the table; nothing is announced.
            ArgumentError, DTypeError: ``ids`` has another shape or type.
        """
        if ids.dtype not in (np.dtype(np.int32), np.dtype(np.int64)):
            raise DTypeError(f"ids: dtype {ids.dtype}, expected int64 or int32")
        if ids.ndim != 1:
            raise ArgumentError(f"ids: shape {ids.shape}, expected one dimension")
        return super().announce(np.ascontiguousarray(ids))

    def plan(self) -> BatchPlan:
        """Makes the plan of batch ``planned`` from what is announced up to ``planned + window``.

        Raises:
            ArgumentError: that batch is not announced.
        """
        return BatchPlan(*self.plan_fields())

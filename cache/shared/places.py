"""Where the rows of a shared cache lie while ranks may still read them.

Owns ``Places``, which turns a plan's slots and cells into places that are not written to before
every rank is done with what they held. A pure function of the plans. Imports numpy alone.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from gnnsys.cache.plan import BatchPlan

__all__ = ["Places"]

Numbers = NDArray[np.int32]

_NONE = np.array([-1], np.int32)  # what an empty slot or cell holds


class Places:
    """Gives each row that is read a place of its own, and never moves a row.

    A slot or cell of a plan stands for the place whose row it holds: a row that goes to the victim
    buffer, or comes back, stays where it is. The place of a row that leaves in round n is given
    away again in round ``n + delay`` at the earliest. A row that finds no place free is not kept:
    it has none, -1, while it is in the cache.

    Args:
        capacity, cells: numbers of slots and of cells of the plans.
        delay: rounds after which nobody reads a place any more whose row has left.
        prefilled: places 0 to ``prefilled - 1`` are those of as many slots.
        limit: number of places, at least ``capacity``.

    >>> from gnnsys.cache.planner import Planner
    >>> planner, places = Planner(9, capacity=1, window=0), Places(1, 0, 2, prefilled=0, limit=2)
    >>> for ids in ([5], [7], [5, 7], [5, 7]):
    ...     _ = planner.announce(np.array(ids))
    ...     places.assign(planner.plan())[0].tolist()
    [0]
    [1]
    [0, -1]
    [0, 1]
    """

    def __init__(self, capacity: int, cells: int, delay: int, prefilled: int, limit: int) -> None:
        self._delay, self._limit = delay, limit
        self._of_slot = np.full(capacity, -1, np.int32)
        self._of_slot[:prefilled] = np.arange(prefilled)
        self._of_cell = np.full(cells, -1, np.int32)
        self.used = prefilled
        """Places that were given away so far: rows lie in ``[0, used)``."""
        self._left: deque[tuple[int, Numbers]] = deque()  # when rows left, and their places

    def assign(self, plan: BatchPlan) -> tuple[Numbers, Numbers]:
        """Carries a plan out in numbers.

        Returns:
            (plan.rows,) the place of each position, and (r,) of each row of ``plan.reads``, to
            which it is to be copied; -1 for rows that are not kept.
        """
        slots, cells = self._of_slot, self._of_cell
        kept = plan.fills[plan.fills[:, 2] >= 0]
        back = plan.victim_in[plan.victim_in[:, 2] >= 0]
        from_slot = plan.victim_out[plan.victim_out[:, 0] >= 0]
        from_read = plan.victim_out[plan.victim_out[:, 0] < 0]
        stays = np.zeros(len(plan.reads), bool)
        stays[kept[:, 1]] = stays[-1 - from_read[:, 0]] = True
        of_read = self._take(stays, plan.batch)
        places = np.empty(plan.rows, np.int32)
        places[plan.hits[:, 0]] = slots[plan.hits[:, 1]]
        places[plan.victim_in[:, 0]] = cells[plan.victim_in[:, 1]]
        places[plan.fills[:, 0]] = of_read[plan.fills[:, 1]]
        places[plan.copies[:, 0]] = places[plan.copies[:, 1]]

        some_slots = np.concatenate([kept[:, 2], back[:, 2], from_slot[:, 0]])
        some_cells = np.concatenate([plan.victim_out[:, 1], back[:, 1]])
        before = np.concatenate([of_read, slots[some_slots], cells[some_cells]])
        if not len(before):
            return places, of_read
        returned = cells[back[:, 1]]
        cells[back[:, 1]] = -1
        cells[from_slot[:, 1]] = slots[from_slot[:, 0]]
        cells[from_read[:, 1]] = of_read[-1 - from_read[:, 0]]
        slots[from_slot[:, 0]] = -1
        slots[back[:, 2]] = returned
        slots[kept[:, 2]] = of_read[kept[:, 1]]
        left = np.setdiff1d(before, np.concatenate([slots[some_slots], cells[some_cells], _NONE]))
        if len(left):
            self._left.append((plan.batch, left))
        return places, of_read

    def of_slots(self, slots: Numbers) -> Numbers:
        """(n,) the place of what each slot holds; -1 for slot -1, and for an empty one."""
        places = np.full(len(slots), -1, np.int32)
        some = slots >= 0
        places[some] = self._of_slot[slots[some]]
        return places

    def _take(self, stays: NDArray[np.bool_], number: int) -> Numbers:
        """Places for rows that are read, those that stay in the cache first."""
        taken, count = [], len(stays)
        while count and self._left and self._left[0][0] + self._delay <= number:
            since, places = self._left.popleft()
            taken.append(places[:count])
            if len(places) > count:
                self._left.appendleft((since, places[count:]))
            count -= len(taken[-1])
        new = min(count, self._limit - self.used)
        taken.append(np.arange(self.used, self.used + new, dtype=np.int32))
        self.used += new
        if new == count:
            return np.concatenate(taken)
        found = np.full(len(stays), -1, np.int32)
        found[np.argsort(~stays, kind="stable")[: len(stays) - count + new]] = np.concatenate(taken)
        return found

"""The planner of an engine that carries recorded plans out.

Owns ``RecordedPlanner``. Invariant: what it says is resident is what the engine's slots hold, if
the engine fills what is asked for and carries its plans out.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gnnsys.cache.packed.plans import RecordedPlans
from gnnsys.cache.plan import BatchPlan, plan_aside
from gnnsys.memory.ids import check_bounds

__all__ = ["RecordedPlanner"]

_NONE = -1


class RecordedPlanner:
    """Answers as ``Planner`` does, with plans that were made before.

    Batches are told from others by their ids: one that is not the next recorded batch is served
    from the slots as they are, and changes nothing.

    Args:
        plans: of an epoch.
        num_rows: of the table.
        held: (slots,) id that each slot holds now, -1 for none. A row stays in its slot.
        first: the batch of the epoch that comes next.
        packed: batches, from the epoch's first on, whose reads are packed.
    """

    def __init__(
        self,
        plans: RecordedPlans,
        num_rows: int,
        held: NDArray[np.int32],
        first: int = 0,
        packed: int = 0,
    ) -> None:
        self._plans, self._num_rows, self._packed = plans, num_rows, packed
        self._first_reads = plans.first_reads
        self._next = first
        self._waiting: deque[int | NDArray[Any]] = deque()  # places, or ids of other batches
        self._places: dict[int, int] = {}  # of the planned batches, by number
        self.announced = self.planned = self.committed = 0
        self._take_over(held, self._wanted(first, len(held)))

    def _wanted(self, first: int, capacity: int) -> NDArray[np.int32]:
        """(capacity,) id in each slot of the plans before batch ``first``."""
        wanted = np.full(capacity, _NONE, np.int32)
        wanted[: len(self._plans.residents)] = self._plans.residents
        for place in range(first):
            slots, ids = self._plans.entered(place)
            wanted[slots] = ids
        return wanted

    def _take_over(self, held: NDArray[np.int32], wanted: NDArray[np.int32]) -> None:
        """Finds for each slot of the plans the slot that stands for it."""
        self._slot_of = np.full(self._num_rows, _NONE, np.int32)
        there = np.flatnonzero(held >= 0)
        self._slot_of[held[there]] = there
        stays = np.zeros(len(held), bool)
        found = np.where(wanted >= 0, self._slot_of[wanted], _NONE)
        stays[found[found >= 0]] = True
        self._slot_of[held[~stays & (held >= 0)]] = _NONE
        missing = np.flatnonzero(found < 0)
        missing = missing[np.argsort(wanted[missing], kind="stable")]  # empty ones first
        found[missing] = np.flatnonzero(~stays)
        self._slots = found.astype(np.int32)
        missing = missing[wanted[missing] >= 0]
        self.prefilled: NDArray[np.int32] = wanted[missing]
        """(k,) ids that are to be brought in before the first batch, ascending."""
        self.prefilled_slots: NDArray[np.int32] = self._slots[missing]
        """(k,) the slots they are to be brought to."""
        self.kept = int(stays.sum())
        """Rows that are in their slots already."""
        self._slot_of[self.prefilled] = self.prefilled_slots
        self.held: NDArray[np.int32] = np.full(len(held), _NONE, np.int32)
        """(slots,) the id that each slot holds by the committed plans, -1 for none."""
        self.held[self._slots] = wanted

    @property
    def state_bytes(self) -> int:
        """Of what is as long as the table or the cache, once the cache is filled."""
        return self._slot_of.nbytes + self._slots.nbytes + self.held.nbytes

    def forget_prefilled(self) -> None:
        """Lets go of what was to be brought in, once it is."""
        self.prefilled = self.prefilled_slots = np.empty(0, np.int32)

    def announce(self, ids: NDArray[Any]) -> int:
        """See ``Planner.announce``."""
        if self._next < len(self._plans) and self._plans.is_of(self._next, ids):
            self._waiting.append(self._next)
            self._next += 1
        else:
            check_bounds(torch.from_numpy(ids), self._num_rows)
            self._waiting.append(ids)
        self.announced += 1
        return self.announced - 1

    def plan(self) -> BatchPlan:
        """See ``Planner.plan``."""
        number, self.planned = self.planned, self.planned + 1
        batch = self._waiting[number - self.committed]
        if not isinstance(batch, int):
            # Recorded plans that wait to be carried out will have changed the slots by then.
            before = islice(self._waiting, number - self.committed)
            changes = any(isinstance(each, int) for each in before)
            slots = np.full(len(batch), _NONE, np.int32) if changes else self._slot_of[batch]
            return plan_aside(batch, slots, number)
        self._places[number] = batch
        plan = self._plans.plan(batch)
        hits, fills = plan.hits.copy(), plan.fills.copy()
        hits[:, 1] = self._slots[hits[:, 1]]
        kept = fills[:, 2] >= 0
        fills[kept, 2] = self._slots[fills[kept, 2]]
        tier = "packed" if batch < self._packed else plan.tier
        return dataclasses.replace(plan, batch=number, hits=hits, fills=fills, tier=tier)

    def commit(self, batch: int) -> None:
        """See ``Planner.commit``."""
        assert batch == self.committed
        self.committed += 1
        place = self._waiting.popleft()
        if not isinstance(place, int):
            return
        del self._places[batch]
        slots, ids = self._plans.entered(place)
        slots = self._slots[slots]
        before = self.held[slots]
        self._slot_of[before[before >= 0]] = _NONE
        self.held[slots], self._slot_of[ids] = ids, slots

    def retract(self, batch: int) -> None:
        """See ``core.CachePlanner.retract``."""
        while self.announced > batch:
            self.announced -= 1
            self._places.pop(self.announced, None)
            dropped = self._waiting.pop()
            if isinstance(dropped, int):
                self._next = dropped
        self.planned = min(self.planned, batch)

    def committed_slots(self, ids: NDArray[np.int64]) -> NDArray[np.int32]:
        """See ``core.CachePlanner.committed_slots``."""
        return self._slot_of[ids]

    def packed_rows(self, batch: int) -> tuple[int, NDArray[np.int32]] | None:
        """Where the rows that a planned batch reads begin among those packed, and their ids,
        ascending; None where they are not packed.

        Args:
            batch: its number; -1 for none.
        """
        place = self._places.get(batch)
        if place is None or place >= self._packed:
            return None
        return int(self._first_reads[place]), self._plans.reads(place)

"""Batches that were announced and are not gathered: who announced them, in which order.

Owns ``Ticket`` and ``Tickets``. Imports the errors, no memory and no file. Not safe to use from
several threads: who owns it has a lock.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gnnsys.cache.plan import BatchPlan
from gnnsys.errors import ArgumentError

__all__ = ["Ticket", "Tickets"]


class _Anonymous:
    def __repr__(self) -> str:
        return "code that names no owner"


_ANONYMOUS = _Anonymous()


@dataclass(slots=True, eq=False)
class Ticket:
    """An announced batch; what ``CachedStore.announce`` returns."""

    ids: Tensor
    """(n,) ids as they were announced."""

    number: int
    """Of the batch, as the planner counts."""

    plan: BatchPlan | None = None
    """Once it is made."""

    pending: Any = None
    """The plan's reads (``PendingRows``), from when they are started to when they are there."""

    def cancel(self) -> None:
        """Lets go of the plan and of its reads."""
        if self.pending is not None:
            self.pending.cancel()
        self.plan = self.pending = None

    def __repr__(self) -> str:
        return f"Ticket(batch {self.number}, {len(self.ids)} rows)"


class Tickets:
    """The tickets that were given and not redeemed, in order, all of one owner."""

    def __init__(self, name: str) -> None:
        self._name = name  # of the store, in errors
        self._waiting: deque[Ticket] = deque()
        self._owner: Callable[[], Any] = lambda: _ANONYMOUS

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Any:
        return iter(self._waiting)

    def __getitem__(self, place: int) -> Ticket:
        return self._waiting[place]

    def is_abandoned(self) -> bool:
        """Whether there are tickets whose owner no longer exists."""
        return bool(self._waiting) and self._owner() is None

    def check_owner(self, owner: Any) -> None:
        """Raises ArgumentError while somebody else's tickets wait."""
        if owner is None:
            owner = _ANONYMOUS
        if self._waiting and self._owner() is not owner:
            raise ArgumentError(
                f"{self._name}: {len(self._waiting)} announced batches of {self._owner()!r} wait "
                f"to be gathered, and {owner!r} announces, too; one at a time can: end the other "
                "iteration first (`del batches`, or leave its loop), or give this one a cache of "
                "its own with another gnnsys.unified(path, cache=…)"
            )

    def add(self, ticket: Ticket, owner: Any) -> None:
        """Appends a ticket that ``check_owner`` let pass."""
        self._owner = _refer(owner)
        self._waiting.append(ticket)

    def check_turn(self, ticket: Any, ids: Tensor) -> None:
        """Raises ArgumentError unless ``ticket`` is the next, and ``ids`` are those announced."""
        if not self._waiting or self._waiting[0] is not ticket:
            due = f"the next is {self._waiting[0]!r}" if self._waiting else "none waits"
            raise ArgumentError(
                f"ticket: {ticket!r}, but {due} in {self._name}; tickets are gathered once, in the "
                "order they were given, unless they were retracted"
            )
        announced = self._waiting[0].ids
        same = ids.data_ptr() == announced.data_ptr() and len(ids) == len(announced)
        if not (same and ids.dtype == announced.dtype) and not _equal(ids, announced):
            raise ArgumentError(
                f"ids: {len(ids)} ids that are not the {len(announced)} that {ticket!r} was given "
                "for; gather what was announced"
            )

    def redeem(self) -> None:
        """Removes the next ticket."""
        self._waiting.popleft()

    def drop_from(self, ticket: Any) -> list[Ticket]:
        """Removes ``ticket`` and those after it; none where it does not wait."""
        place = next((i for i, other in enumerate(self._waiting) if other is ticket), None)
        if place is None:
            return []
        dropped = list(self._waiting)[place:]
        for _ in dropped:
            self._waiting.pop().cancel()
        return dropped


def _equal(ids: Tensor, announced: Tensor) -> bool:
    return ids.shape == announced.shape and bool((ids == announced).all())


def _refer(owner: Any) -> Callable[[], Any]:
    if owner is None:
        return lambda: _ANONYMOUS
    try:
        return weakref.ref(owner)
    except TypeError:  # of a type without room for it
        return lambda: owner

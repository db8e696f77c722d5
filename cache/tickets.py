"""Batches that were announced and are not gathered: who announced them, in which order.

Owns ``Ticket`` and ``Tickets``. Moves no row and reads no file. Not safe to use from
several threads: who owns it has a lock.
"""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gnnsys.cache.plan import BatchPlan
from gnnsys.errors import ArgumentError
from gnnsys.memory.ids import RowIds
from gnnsys.memory.reads import PendingRows

__all__ = ["ANYBODY", "Ticket", "Tickets", "is_aside", "refer"]

_log = logging.getLogger(__name__)


class _Anonymous:
    def __repr__(self) -> str:
        return "code that names no owner"


ANYBODY = _Anonymous()
"""Stands for who announces and names no owner."""


@dataclass(slots=True, eq=False)
class Ticket:
    """An announced batch; what ``CachedStore.announce`` returns."""

    ids: RowIds
    """Ids as they were announced."""

    number: int
    """Of the batch, as the planner counts; -1 for one that is not planned ahead."""

    plan: BatchPlan | None = None
    """Once it is made."""

    pending: PendingRows | None = None
    """The plan's reads, from when they are started to when they are there."""

    aside: Callable[[], Any] | None = None
    """Who announced a batch that is planned when it is gathered; None for one planned ahead."""

    def cancel(self) -> None:
        """Lets go of the plan and of its reads."""
        if self.pending is not None:
            self.pending.cancel()
        self.plan = self.pending = None

    def __repr__(self) -> str:
        return f"Ticket(batch {self.number}, {len(self.ids)} rows)"


class Tickets:
    """The tickets that were given and not redeemed, in order, all of one owner.

    Who announces while another owner's tickets wait gets tickets aside: they are in no order, and
    only who holds one knows of it.
    """

    def __init__(self, name: str) -> None:
        self._name = name  # of the store, in errors
        self._waiting: deque[Ticket] = deque()
        self._owner: Callable[[], Any] = lambda: ANYBODY
        self._told_aside = False

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Any:
        return iter(self._waiting)

    def __getitem__(self, place: int) -> Ticket:
        return self._waiting[place]

    def is_abandoned(self) -> bool:
        """Whether there are tickets whose owner no longer exists."""
        return bool(self._waiting) and self._owner() is None

    def admits(self, owner: Any) -> bool:
        """Whether nobody else's tickets wait."""
        return not self._waiting or self._owner() is (ANYBODY if owner is None else owner)

    def add(self, ticket: Ticket, owner: Any) -> None:
        """Appends a ticket of an owner whom ``admits`` let pass."""
        self._owner = refer(owner)
        self._waiting.append(ticket)

    def make_aside(self, ids: RowIds, owner: Any) -> Ticket:
        """A ticket for an owner whom ``admits`` did not let pass."""
        return Ticket(ids, -1, aside=refer(owner))

    def tell_aside(self) -> None:
        """Says once that somebody is served slowly, and why."""
        if not self._told_aside:
            self._told_aside = True
            _log.warning(
                "%s: batches of another loader wait to be gathered, or its iteration goes on; "
                "until it ends, those of the second are served without looking ahead, from the "
                "cache as it is or from the file, and leave the cache unchanged. For speed end the "
                "other iteration first (`del batches`, or leave its loop), or give the second a "
                "cache of its own with another gnnsys.unified(path, cache=…)",
                self._name,
            )

    def check_turn(self, ticket: Any, ids: RowIds) -> None:
        """Raises ArgumentError unless ``ticket`` is the next, and ``ids`` are those announced.

        It is always the turn of one that is aside.
        """
        if not is_aside(ticket) and (not self._waiting or self._waiting[0] is not ticket):
            due = f"the next is {self._waiting[0]!r}" if self._waiting else "none waits"
            raise ArgumentError(
                f"ticket: {ticket!r}, but {due} in {self._name}; tickets are gathered once, in the "
                "order they were given, unless they were retracted"
            )
        announced = ticket.ids
        same = ids.data_ptr() == announced.data_ptr() and len(ids) == len(announced)
        if not (same and ids.dtype == announced.dtype) and not _equal(ids, announced):
            raise ArgumentError(
                f"ids: {len(ids)} ids that are not the {len(announced)} that {ticket!r} was given "
                "for; gather what was announced"
            )

    def redeem(self, ticket: Ticket) -> None:
        """Removes a ticket whose turn it is."""
        if is_aside(ticket):
            ticket.aside = None
        else:
            self._waiting.popleft()

    def drop_of(self, owner: Any) -> list[Ticket]:
        """Removes all that wait of an owner."""
        return self.drop_from(self._waiting[0]) if self._waiting and self.admits(owner) else []

    def drop_from(self, ticket: Any) -> list[Ticket]:
        """Removes ``ticket`` and those that its owner was given after it; none where it is gone."""
        if is_aside(ticket):
            # Its owner had no ticket in the queue when it was given: those there are came later.
            owner, ticket.aside = ticket.aside(), None
            place = 0 if self._owner() is owner else len(self._waiting)
        else:
            places = (i for i, other in enumerate(self._waiting) if other is ticket)
            place = next(places, len(self._waiting))
        dropped = list(self._waiting)[place:]
        for _ in dropped:
            self._waiting.pop().cancel()
        return dropped


def is_aside(ticket: Any) -> bool:
    """Whether a ticket's batch is planned when it is gathered."""
    return isinstance(ticket, Ticket) and ticket.aside is not None


def _equal(ids: RowIds, announced: RowIds) -> bool:
    return ids.shape == announced.shape and bool((ids == announced).all())


def refer(owner: Any) -> Callable[[], Any]:
    """What gives an owner as long as it exists, else None; ``ANYBODY`` for None."""
    if owner is None:
        return lambda: ANYBODY
    try:
        return weakref.ref(owner)
    except TypeError:  # of a type without room for it
        return lambda: owner

"""A rank's part of a shared cache as one who asks for rows.

Owns ``SharedEngine``, whose calls are those of ``cache.engine.Engine``.
Invariants: ``announce`` waits for no disk and for no rank; rows that a gather reads stay until this
rank says that it is done with them; whatever another rank does, a gather ends.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.cache.planner import Planner
from gnnsys.cache.shared.asks import Asks
from gnnsys.cache.shared.memory import RowMemory
from gnnsys.cache.shared.messages import NOTHING, Kind, SharedTicket
from gnnsys.cache.shared.owner import Owner, ServedRound
from gnnsys.cache.stats import CacheStats
from gnnsys.cache.tickets import ANYBODY, Ticket, Tickets, is_aside, refer
from gnnsys.counters import Counters
from gnnsys.errors import ArgumentError, RankFailedError
from gnnsys.memory.encoding import Encoding
from gnnsys.memory.ids import CPU, RowIds, check_bounds
from gnnsys.ranks.mailbox import Mailbox
from gnnsys.ranks.owners import Owners
from gnnsys.system.background import run_outside

__all__ = ["SharedEngine"]

_log = logging.getLogger(__name__)

_LONG = 30.0  # seconds to wait for what ranks that are alive announce
_LOOK = 0.2  # seconds between two looks at who is alive
_DRAIN = 10.0
"""Seconds that a rank which closes waits for others that are still in the same epoch."""


class SharedEngine:
    """Serves rows of ``memory.source`` through a cache over the memory of all ranks.

    Args:
        name: of the store, in errors.
        mailbox: between the ranks.
        owners: who owns which row.
        planner: of this rank's rows; a batch of it is a round.
        memory: of all ranks' rows, by which this one reaches them.
        prefetch: rounds that are made ready ahead of the slowest rank.
        staging_bytes: up to which pages are read at once, about.
        counters: of rows by tier.
        failed: who is gone, and who that turns out to be when a connection has ended.
    """

    def __init__(
        self,
        name: str,
        mailbox: Mailbox,
        owners: Owners,
        planner: Planner,
        memory: RowMemory,
        *,
        prefetch: int,
        staging_bytes: int,
        counters: Counters,
        failed: Callable[[int | None], int | None],
    ) -> None:
        self._source, self._name, self._mailbox, self._owners = memory.source, name, mailbox, owners
        self._memory, self._counters, self._failed = memory, counters, failed
        self._window, self._prefetch = planner.window, prefetch
        self._rank, self._world = mailbox.rank, mailbox.world
        self._process = os.getpid()
        self._tickets = Tickets(name)
        self._awaited: dict[tuple[int, int], SharedTicket] = {}
        self._stream = self._next = 0  # where the next batch goes
        self._stream_owner: Callable[[], Any] | None = None
        self._finished = False  # whether others were told where the open stream ends
        self._ended: Callable[[], Any] = _nobody  # whose stream was the last to be ended
        self._stats = CacheStats()  # of this rank's gathers
        self._stalled = -1  # the stream whose batches are not waited for
        self._error: BaseException | None = None
        self._lost: set[int] = set()
        self._closed = False
        self._readers = 0  # threads that copy rows
        self._speaking = threading.RLock()  # messages leave in the order of what they tell
        # Both may be held by a thread in which an iteration is collected as garbage, and ends.
        self._gathering = threading.RLock()
        self._arrived = threading.Condition()
        self._asks = Asks(
            name,
            mailbox,
            owners,
            memory,
            patience=_LONG,
            counters=counters,
            look=self._look,
            reading=self._reading,
        )
        self._owner = Owner(
            self._rank,
            owners,
            planner,
            memory,
            prefetch=prefetch,
            staging_bytes=staging_bytes,
            tell=self._serve,
            answer=self._asks.answer,
            fail=self._fail,
        )
        try:
            mailbox.open(self)
            self._owner.start()
        except BaseException:
            self._shut(together=False)
            raise

    @property
    def device(self) -> torch.device:
        """Where gathered rows appear."""
        return self._memory.device

    @property
    def lookahead(self) -> int:
        """Batches that a loader should have announced ahead of the one it gathers."""
        return self._window + self._prefetch + 1

    @property
    def stats(self) -> CacheStats:
        """Of this rank's rows, whoever asked for them; batches and waiting are of its gathers."""
        stats = self._owner.stats
        stats.bytes_sent = self._mailbox.bytes_sent
        with self._arrived:
            stats.batches = self._stats.batches
            stats.io_wait_seconds = self._stats.io_wait_seconds
        return stats

    # Announcing ----------------------------------------------------------------------------------

    def announce(self, ids: RowIds, owner: Any) -> Ticket:
        """See ``CachedStore.announce``."""
        check_bounds(ids, self._source.shape[0])
        self._end_abandoned()
        with self._speaking:
            self._check()
            if not self._admits(owner):
                self._tickets.tell_aside()
                return self._tickets.make_aside(ids, owner)
            self._ended = _nobody
            ticket, numbers = self._new_ticket(ids)
            with self._arrived:
                self._tickets.add(ticket, owner)
                self._awaited[ticket.stream, ticket.number] = ticket
            self._next += 1
            for rank in range(self._world):
                place = ticket.stream, ticket.number, 0
                self._mailbox.send(rank, Kind.ANNOUNCE, place, numbers[rank])
            return ticket

    def _end_abandoned(self) -> None:
        """Ends the stream of an owner that no longer exists."""
        if _is_dead(self._stream_owner):
            with self._gathering, self._speaking:
                if _is_dead(self._stream_owner):
                    self._end_from(None)

    def _admits(self, owner: Any) -> bool:
        """Whether this owner's batches go into the open stream; begins one where none is open."""
        who = ANYBODY if owner is None else owner
        if self._stream_owner is not None:
            current = self._stream_owner()
            if current is who and not self._finished:
                return True
            # Ranks go on to another owner when they say so, not when the last batch was gathered,
            # which is at some place in what they do.
            if self._tickets or (current is not who and current is not ANYBODY):
                return False
            self._end_from(None)
        self._stream_owner = refer(who)
        return True

    def _new_ticket(self, ids: RowIds) -> tuple[SharedTicket, list[NDArray[np.int32]]]:
        """A ticket, and for each owner the numbers of its rows."""
        wanted = ids.numpy().astype(np.int64, copy=False)
        positions, numbers = self._owners.divide(wanted)
        ticket = SharedTicket(
            ids,
            self._next,
            stream=self._stream,
            positions=positions,
            addresses=np.empty(len(wanted), np.int64),
            reads=[-1] * self._world,
        )
        return ticket, [each.astype(np.int32) for each in numbers]

    def retract(self, ticket: Any) -> None:
        """See ``CachedStore.retract``."""
        if is_aside(ticket):
            ticket.aside = None
            return
        with self._gathering, self._speaking:
            self._end_from(ticket)

    def finish(self, owner: Any) -> None:
        """See ``AnnouncedStore.finish``."""
        self._end_abandoned()
        with self._speaking:
            if not self._finished and self._admits(owner):
                self._finished = True
                self._say_end(self._stream, self._next)

    def end(self, owner: Any) -> None:
        """See ``CachedStore.end``."""
        self._end_abandoned()
        with self._gathering, self._speaking:
            who = ANYBODY if owner is None else owner
            owns = self._stream_owner is not None and self._stream_owner() is who
            # One that announced nothing ends a stream, too: other ranks may have a part in it.
            if owns or (self._ended() is not who and self._admits(owner)):
                self._end_from(None)

    def _end_from(self, ticket: Any) -> None:
        """Takes back the batches from a ticket on, or all that wait, and ends their streams."""
        with self._arrived:
            first = ticket if ticket is not None or not self._tickets else self._tickets[0]
            dropped = [] if first is None else cast(Any, self._tickets.drop_from(first))
            if ticket is not None and not dropped:
                return
            counts = {self._stream: self._next}
            for each in reversed(dropped):
                counts[each.stream] = each.number
                del self._awaited[each.stream, each.number]
        self._ended = self._stream_owner or _nobody
        self._stream, self._next, self._stream_owner = self._stream + 1, 0, None
        self._finished = False
        for stream, count in sorted(counts.items()):
            self._say_end(stream, count)

    def _say_end(self, stream: int, count: int) -> None:
        self._say_all(Kind.END, stream, count)
        if not self._waits_in(stream):
            self._reach(stream, count)

    def _waits_in(self, stream: int) -> bool:
        """Whether a batch of this stream waits, or of one before it."""
        return bool(self._tickets) and cast(SharedTicket, self._tickets[0]).stream <= stream

    # Gathering -----------------------------------------------------------------------------------

    def gather(
        self, ids: RowIds, out: Tensor | None, ticket: Any, encoding: Encoding | None = None
    ) -> Tensor:
        """See ``Engine.gather``."""
        if encoding is None:
            return self._gather(ids, out, ticket)
        rows = self._gather(ids, encoding.target(out, decodes=False), ticket)
        return encoding.decode(rows, out)

    def _gather(self, ids: RowIds, out: Tensor | None, ticket: Any) -> Tensor:
        """Rows ``ids`` as they are stored, in ``out`` (dense, of the stored type) or pooled memory.

        Returns:
            (n, …) of the stored element type.
        """
        if ticket is None:
            return self._asks.gather(ids, out)
        if is_aside(ticket):
            self._tickets.check_turn(ticket, ids)
            rows = self._asks.gather(ids, out)
            self._tickets.redeem(ticket)
            return rows
        with self._gathering:
            self._tickets.check_turn(ticket, ids)
            # Where the rows are there, the next are asked for once these are copied: owners at work
            # meanwhile would take cores, and Python, from a CPU that copies.
            is_there = ticket.is_complete and self._memory.device == CPU
            if not is_there:
                self._say_reached(ticket)
            if is_there or self._await(ticket):
                with self._reading():
                    rows = self._memory.gather(ids, ticket.addresses, out)
                self._count(ticket)
            else:
                rows = self._asks.gather(ids, out)
            if is_there:
                self._say_reached(ticket)
            self._redeem(ticket)
        return rows

    def _say_reached(self, ticket: SharedTicket) -> None:
        with self._speaking:
            self._reach(ticket.stream, ticket.number)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Keeps the memory there in the body, also where this store is closed meanwhile."""
        with self._arrived:
            self._check()
            self._readers += 1
        try:
            yield
        finally:
            with self._arrived:
                self._readers -= 1
                self._arrived.notify_all()

    def _await(self, ticket: SharedTicket) -> bool:
        """Waits until all owners have told where the rows are; returns whether they have.

        Ranks that iterate different loaders would wait for each other for ever: who has waited long
        for one that is alive does without, for the rest of the stream but for what is there.
        """
        began = time.perf_counter()
        until = began + (0.0 if ticket.stream == self._stalled else _LONG)
        while not ticket.is_complete:
            self._look()
            if time.perf_counter() > until:
                self._tell_stalled(ticket.stream)
                break
            with self._arrived:
                self._arrived.wait_for(lambda: ticket.is_complete or self._error, _LOOK)
        with self._arrived:
            self._stats.io_wait_seconds += time.perf_counter() - began
            return ticket.is_complete

    def _tell_stalled(self, stream: int) -> None:
        if self._stalled != stream:
            self._stalled = stream
            _log.warning(
                "%s: rank %d has waited %.0f s for what other ranks announce, and takes its rows "
                "from the cache as it is, or the file: loaders over a cache that ranks share are "
                "iterated by all ranks, in the same order",
                self._name, self._rank, _LONG,
            )  # fmt: skip

    def _redeem(self, ticket: SharedTicket) -> None:
        with self._speaking:
            with self._arrived:
                self._tickets.redeem(ticket)
                del self._awaited[ticket.stream, ticket.number]
                ticket.release()
                self._stats.batches += 1
            is_told = ticket.stream < self._stream or self._finished
            if is_told and not self._waits_in(ticket.stream):
                self._reach(ticket.stream, ticket.number + 1)

    def _count(self, ticket: SharedTicket) -> None:
        held = [len(p) - r for p, r in zip(ticket.positions, ticket.reads, strict=True)]
        own = held[self._rank]
        for tier, rows in ("cache", own), ("peer", sum(held) - own), ("file", sum(ticket.reads)):
            if rows:
                self._counters.add(tier, rows, rows * self._source.row_bytes)

    # Messages ------------------------------------------------------------------------------------

    def _say_all(self, kind: int, stream: int, index: int) -> None:
        for rank in range(self._world):
            self._mailbox.send(rank, kind, (stream, index, 0), NOTHING)

    def _reach(self, stream: int, index: int) -> None:
        """Says that this rank is done with its batches before this one."""
        self._memory.finish()
        self._say_all(Kind.REACH, stream, index)

    def _serve(self, served: ServedRound) -> None:
        """Tells those who asked where the rows of a round are, or sends these."""
        for part, places, reads in zip(served.parts, served.places, served.reads, strict=True):
            told = self._memory.tell(part.rank, places)
            self._mailbox.send(part.rank, Kind.ROWS, (part.stream, part.index, reads), told)

    def handle(self, source: int, kind: int, numbers: Sequence[int], payload: bytearray) -> None:
        """See ``Handler.handle``."""
        stream, index, reads = numbers
        try:
            if kind == Kind.ANNOUNCE:
                self._owner.announce(source, stream, index, np.frombuffer(payload, np.int32))
            elif kind == Kind.END:
                self._owner.end(source, stream, index)
            elif kind == Kind.REACH:
                self._owner.reach(source, stream, index)
            elif kind == Kind.ROWS:
                self._take(source, stream, index, reads, payload)
            elif kind == Kind.ASK:
                wanted = np.frombuffer(payload, np.int32).astype(np.int64)
                self._owner.ask(source, stream, wanted)
            elif kind == Kind.ANSWER:
                self._asks.take(source, stream, payload)
            elif kind == Kind.RELEASE:
                self._owner.release(source, stream)
            elif kind == Kind.LEAVE:
                self._asks.leave(source)
            else:
                self._fail(
                    RankFailedError(f"rank {source}: {payload.decode()}", source), tell=False
                )
        except Exception as error:  # such as memory that the planner does not get
            self._fail(error)

    def _take(self, source: int, stream: int, index: int, reads: int, payload: bytearray) -> None:
        with self._arrived:
            ticket = self._awaited.get((stream, index))
            if ticket is None:
                return  # it was taken back
            positions = ticket.positions[source]
            ticket.addresses[positions] = self._memory.locate(source, payload, len(positions))
            ticket.kept.append(payload)
            ticket.reads[source] = reads
            if ticket.is_complete:
                self._arrived.notify_all()

    # Failing -------------------------------------------------------------------------------------

    def lose(self, rank: int) -> None:
        """See ``Handler.lose``."""
        with self._arrived:
            self._lost.add(rank)
            self._arrived.notify_all()

    def _look(self, left: Collection[int] = ()) -> None:
        """Raises what ends gathers: a failure, or that a rank that has not ``left`` is gone."""
        self._check()
        if gone := self._gone().difference(left):
            self._give_up(min(gone))
            self._check()

    def _gone(self) -> set[int]:
        failed = self._failed(None)
        return self._lost if failed is None else self._lost | {failed}

    def _give_up(self, suspect: int) -> None:
        """Finds out who is gone."""
        has_left = self._asks.has_left(suspect)
        rank = suspect if has_left else self._failed(suspect)
        if rank is not None:
            what = "has closed its store" if has_left else "is gone or no longer answers"
            told = f"rank {rank} of {self._world} {what}; this rank, {self._rank}, cannot go on "
            told += f"without its part of the cache of {self._name}"
            self._fail(RankFailedError(told, rank), tell=False)

    def _fail(self, error: BaseException, tell: bool = True) -> None:
        with self._arrived:
            first, self._error = self._error is None, self._error or error
            self._arrived.notify_all()
        if tell and first and not self._closed:
            text = np.frombuffer(str(error).encode(errors="replace"), np.uint8)
            for rank in range(self._world):
                if rank != self._rank:
                    self._mailbox.send(rank, Kind.FAIL, (0, 0, 0), text)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Ends this rank's part, once the others have ended the epoch that they are in."""
        if self._closed or self._process != os.getpid():
            return
        run_outside(self._close)

    def _close(self) -> None:
        # Who leaves by an exception does not wait for ranks that may be waiting for it.
        leaves = sys.exc_info()[0] is not None or (
            hasattr(sys, "last_value") and not hasattr(sys, "ps1")
        )
        if self._error is None and not leaves:
            with self._gathering, self._speaking:
                if self._stream_owner is not None:
                    self._end_from(None)
            self._drain()
            self._say_all(Kind.LEAVE, 0, 0)
            leaves = self._error is not None or bool(self._gone())
        self._shut(together=not leaves)

    def _shut(self, together: bool) -> None:
        with self._arrived:
            self._closed = True
            self._error = self._error or ArgumentError(f"{self._name}: this store was closed")
            self._arrived.notify_all()
        self._owner.stop()
        self._mailbox.close()
        self._owner.join()
        with self._arrived:
            self._arrived.wait_for(lambda: self._readers == 0)
        self._memory.close(together)

    def _drain(self) -> None:
        until = time.monotonic() + _DRAIN
        while time.monotonic() < until and not self._owner.await_end(self._stream, _LOOK):
            if self._error is not None or self._gone():
                return


def _nobody() -> None:
    return None


def _is_dead(owner: Callable[[], Any] | None) -> bool:
    """Whether there was one who does not exist any more."""
    return owner is not None and owner() is None

"""A rank's part of a shared cache as one who asks for rows.

Owns ``SharedEngine``, whose calls are those of ``cache.engine.Engine``, and the kinds of messages.
Invariants: ``announce`` waits for no disk and for no rank; rows that a gather reads stay until this
rank says that it is done with them; whatever another rank does, a gather ends.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.cache.planner import Planner
from gnnsys.cache.shared.owner import Owner, ServedRound
from gnnsys.cache.stats import CacheStats
from gnnsys.cache.tickets import ANYBODY, Ticket, Tickets, is_aside, refer
from gnnsys.counters import Counters
from gnnsys.errors import ArgumentError, RankFailedError
from gnnsys.memory.alloc import pooled
from gnnsys.memory.ids import RowIds, check_bounds
from gnnsys.memory.store import RowReader, Store
from gnnsys.ranks.mailbox import Mailbox
from gnnsys.ranks.owners import Owners

__all__ = ["SharedEngine"]

_log = logging.getLogger(__name__)

_ANNOUNCE, _END, _REACH, _ROWS, _FAIL = range(5)
_NOTHING = np.empty(0, np.uint8)
_NOWHERE = np.empty(0, np.int64)
_LONG = 30.0  # seconds to wait for what ranks that are alive announce
_LOOK = 0.2  # seconds between two looks at who is alive
_DRAIN = 10.0
"""Seconds that a rank which closes waits for others that are still in the same epoch."""


@dataclass(slots=True, eq=False)
class _SharedTicket(Ticket):
    """Of a batch that its rows' owners were told; ``number`` is its index in the stream."""

    stream: int = -1
    positions: Sequence[NDArray[np.int64]] = ()
    """For each owner those of its rows in the batch."""
    addresses: NDArray[np.int64] = field(default_factory=lambda: _NOWHERE)
    """(n,) of each row, as far as owners have told."""
    kept: list[Any] = field(default_factory=list)
    """Memory of rows that were sent."""
    reads: NDArray[np.int64] = field(default_factory=lambda: _NOWHERE)
    """(world,) rows that were read for this batch, by owner; -1 for who has not told."""

    @property
    def is_complete(self) -> bool:
        return bool((self.reads >= 0).all())

    def release(self) -> None:
        """Lets go of the memory: whoever keeps the ticket has no use for it."""
        self.positions, self.addresses, self.kept = (), _NOWHERE, []


class SharedEngine:
    """Serves rows of ``source`` through a cache over the memory of all ranks.

    Args:
        source: what is read; every rank has its own, of the same rows.
        name: of the store, in errors.
        mailbox: between the ranks.
        owners: who owns which row.
        planner: of this rank's rows; a batch of it is a round.
        memory: for each rank the (bytes,) of its places, where this process maps them; this rank's
            own among them. None: rows of that rank are sent.
        prefetch: rounds that are made ready ahead of the slowest rank.
        staging_bytes: up to which pages are read at once, about.
        threads: that move rows.
        counters: of rows by tier.
        failed: who is gone, and who that turns out to be when a connection has ended.
    """

    def __init__(
        self,
        source: Store,
        name: str,
        mailbox: Mailbox,
        owners: Owners,
        planner: Planner,
        memory: Sequence[NDArray[np.uint8] | None],
        *,
        prefetch: int,
        staging_bytes: int,
        threads: int,
        counters: Counters,
        failed: Callable[[int | None], int | None],
    ) -> None:
        self._source, self._name, self._mailbox, self._owners = source, name, mailbox, owners
        self._memory, self._counters, self._failed = memory, counters, failed
        self._window, self._prefetch = planner.window, prefetch
        self._rank, self._world = mailbox.rank, mailbox.world
        self._process = os.getpid()
        stored = source.encoding.stored
        self._reader = RowReader(0, source.shape, stored, source.row_bytes, threads)
        self._tickets = Tickets(name)
        self._awaited: dict[tuple[int, int], _SharedTicket] = {}
        self._stream = self._next = 0  # where the next batch goes
        self._stream_owner: Callable[[], Any] | None = None
        self._ended: Callable[[], Any] = lambda: None  # whose stream was the last to be ended
        self._sends_rows = any(each is None for each in memory)
        self._stats = CacheStats()  # of this rank's gathers
        self._stalled = -1  # the stream whose batches are not waited for
        self._error: BaseException | None = None
        self._lost: set[int] = set()
        self._closed = False
        self._speaking = threading.RLock()  # messages leave in the order of what they tell
        # Both may be held by a thread in which an iteration is collected as garbage, and ends.
        self._gathering = threading.RLock()
        self._arrived = threading.Condition()
        self._owner = Owner(
            self._rank,
            source,
            owners,
            planner,
            memory[self._rank],  # type: ignore[arg-type]
            prefetch=prefetch,
            staging_bytes=staging_bytes,
            threads=threads,
            tell=self._serve,
            fail=self._fail,
        )
        try:
            mailbox.open(self)
            self._owner.start()
        except BaseException:
            self._shut()
            raise

    @property
    def lookahead(self) -> int:
        """Batches that a loader should have announced ahead of the one it gathers."""
        return self._window + self._prefetch + 1

    @property
    def stats(self) -> CacheStats:
        """Of this rank's rows, whoever asked for them; batches and waiting are of its gathers."""
        stats = self._owner.stats
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
                return self._tickets.make_aside(ids, owner)
            self._ended = lambda: None
            ticket, numbers = self._new_ticket(ids)
            with self._arrived:
                self._tickets.add(ticket, owner)
                self._awaited[ticket.stream, ticket.number] = ticket
            self._next += 1
            for rank in range(self._world):
                place = ticket.stream, ticket.number, 0
                self._mailbox.send(rank, _ANNOUNCE, place, numbers[rank])
            return ticket

    def _end_abandoned(self) -> None:
        """Ends the stream of an owner that no longer exists."""
        if self._stream_owner is not None and self._stream_owner() is None:
            with self._gathering, self._speaking:
                if self._stream_owner is not None and self._stream_owner() is None:
                    self._end_from(None)

    def _admits(self, owner: Any) -> bool:
        """Whether this owner's batches go into the open stream; begins one where none is open."""
        who = ANYBODY if owner is None else owner
        if self._stream_owner is not None:
            current = self._stream_owner()
            if current is who:
                return True
            if current is not ANYBODY or self._tickets:
                return False
            self._end_from(None)
        self._stream_owner = refer(who)
        return True

    def _new_ticket(self, ids: RowIds) -> tuple[_SharedTicket, list[NDArray[np.int32]]]:
        """A ticket, and for each owner the numbers of its rows."""
        wanted = ids.numpy().astype(np.int64, copy=False)
        owner, number = self._owners.locate(wanted)
        # Sorts small numbers by counting.
        order = np.argsort(owner.astype(np.uint16), kind="stable")
        ends = np.cumsum(np.bincount(owner, minlength=self._world))[:-1]
        ticket = _SharedTicket(
            ids,
            self._next,
            stream=self._stream,
            positions=np.split(order, ends),
            addresses=np.empty(len(wanted), np.int64),
            reads=np.full(self._world, -1, np.int64),
        )
        return ticket, np.split(number[order].astype(np.int32), ends)

    def retract(self, ticket: Any) -> None:
        """See ``CachedStore.retract``."""
        with self._gathering, self._speaking:
            self._end_from(ticket)

    def end(self, owner: Any) -> None:
        """See ``CachedStore.end``."""
        with self._gathering, self._speaking:
            who = ANYBODY if owner is None else owner
            # One that announced nothing ends a stream, too: other ranks may have a part in it.
            if self._ended() is not who and self._admits(owner):
                self._end_from(None)
                self._ended = refer(who)

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
        self._stream, self._next, self._stream_owner = self._stream + 1, 0, None
        for stream, count in sorted(counts.items()):
            self._say_all(_END, stream, count)
            if not self._waits_in(stream):
                self._say_all(_REACH, stream, count)

    def _waits_in(self, stream: int) -> bool:
        """Whether a batch of this stream waits, or of one before it."""
        return bool(self._tickets) and cast(_SharedTicket, self._tickets[0]).stream <= stream

    # Gathering -----------------------------------------------------------------------------------

    def gather(self, ids: RowIds, out: Tensor | None, ticket: Any) -> Tensor:
        """Rows ``ids`` as they are stored, in ``out`` (dense, of the stored type) or pooled memory.

        Returns:
            (n, …) of the stored element type.
        """
        if ticket is None:
            return self._read(ids, out)
        if is_aside(ticket):
            self._tickets.check_turn(ticket, ids)
            rows = self._read(ids, out)
            self._tickets.redeem(ticket)
            return rows
        with self._gathering:
            self._tickets.check_turn(ticket, ids)
            with self._speaking:
                self._say_all(_REACH, ticket.stream, ticket.number)
            if self._await(ticket):
                rows = self._new_output(len(ids)) if out is None else out
                self._reader.copy_at(0, torch.from_numpy(ticket.addresses), rows)
                self._count(ticket)
            else:
                rows = self._read(ids, out)
            self._redeem(ticket)
        return rows

    def _read(self, ids: RowIds, out: Tensor | None) -> Tensor:
        """Rows that no plan is there for."""
        self._counters.add("file", len(ids), len(ids) * self._source.row_bytes)
        return self._source.gather(ids, out)

    def _new_output(self, rows: int) -> Tensor:
        return pooled((rows, *self._source.shape[1:]), self._source.encoding.stored)

    def _await(self, ticket: _SharedTicket) -> bool:
        """Waits until all owners have told where the rows are; returns whether they have.

        Ranks that iterate different loaders would wait for each other for ever: who has waited long
        for one that is alive does without, for the rest of the stream but for what is there.
        """
        began = time.perf_counter()
        until = began + (0.0 if ticket.stream == self._stalled else _LONG)
        with self._arrived:
            while not ticket.is_complete:
                self._check()
                if self._lost or self._failed(None) is not None:
                    self._give_up()
                    continue
                if time.perf_counter() > until:
                    self._tell_stalled(ticket.stream)
                    break
                self._arrived.wait(_LOOK)
            self._stats.io_wait_seconds += time.perf_counter() - began
            return ticket.is_complete

    def _tell_stalled(self, stream: int) -> None:
        if self._stalled != stream:
            self._stalled = stream
            _log.warning(
                "%s: rank %d has waited %.0f s for what other ranks announce, and reads its rows "
                "itself: loaders over a cache that ranks share are iterated by all ranks, in the "
                "same order",
                self._name, self._rank, _LONG,
            )  # fmt: skip

    def _redeem(self, ticket: _SharedTicket) -> None:
        with self._speaking:
            with self._arrived:
                self._tickets.redeem(ticket)
                del self._awaited[ticket.stream, ticket.number]
                ticket.release()
                self._stats.batches += 1
            if ticket.stream < self._stream and not self._waits_in(ticket.stream):
                self._say_all(_REACH, ticket.stream, ticket.number + 1)

    def _count(self, ticket: _SharedTicket) -> None:
        reads, asked = ticket.reads, np.array([len(each) for each in ticket.positions])
        held = asked - reads
        own = int(held[self._rank])
        served = (("cache", own), ("peer", int(held.sum()) - own), ("file", int(reads.sum())))
        for tier, rows in served:
            if rows:
                self._counters.add(tier, rows, rows * self._source.row_bytes)

    # Messages ------------------------------------------------------------------------------------

    def _say_all(self, kind: int, stream: int, index: int) -> None:
        for rank in range(self._world):
            self._mailbox.send(rank, kind, (stream, index, 0), _NOTHING)

    def _serve(self, served: ServedRound) -> None:
        """Tells those who asked where the rows of a round are, or sends these."""
        for part, places, reads in zip(served.parts, served.places, served.reads, strict=True):
            told: NDArray[Any] = places
            if part.rank != self._rank and self._sends_rows:
                memory, row_bytes = self._memory[self._rank], self._source.row_bytes
                assert memory is not None
                rows = self._new_output(len(places))
                addresses = memory.ctypes.data + places.astype(np.int64) * row_bytes
                self._reader.copy_at(0, torch.from_numpy(addresses), rows)
                told = rows.view(-1).view(torch.uint8).numpy()
            self._mailbox.send(part.rank, _ROWS, (part.stream, part.index, reads), told)

    def handle(self, source: int, kind: int, numbers: Sequence[int], payload: bytearray) -> None:
        """See ``Handler.handle``."""
        stream, index, reads = numbers
        try:
            if kind == _ANNOUNCE:
                self._owner.announce(source, stream, index, np.frombuffer(payload, np.int32))
            elif kind == _END:
                self._owner.end(source, stream, index)
            elif kind == _REACH:
                self._owner.reach(source, stream, index)
            elif kind == _ROWS:
                self._take(source, stream, index, reads, payload)
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
            memory, row_bytes = self._memory[source], self._source.row_bytes
            positions = ticket.positions[source]
            if memory is None:
                rows = np.frombuffer(payload, np.uint8)
                first, places = rows.ctypes.data, np.arange(len(positions))
                ticket.kept.append(rows)
            else:
                first, places = memory.ctypes.data, np.frombuffer(payload, np.int32)
            ticket.addresses[positions] = first + places.astype(np.int64) * row_bytes
            ticket.reads[source] = reads
            if ticket.is_complete:
                self._arrived.notify_all()

    # Failing -------------------------------------------------------------------------------------

    def lose(self, rank: int) -> None:
        """See ``Handler.lose``."""
        with self._arrived:
            self._lost.add(rank)
            self._arrived.notify_all()

    def _give_up(self) -> None:
        """Finds out who is gone; called with ``_arrived``, which is free meanwhile."""
        suspect = min(self._lost, default=None)
        self._arrived.release()
        try:
            rank = self._failed(suspect)
        finally:
            self._arrived.acquire()
        if rank is not None:
            told = f"rank {rank} of {self._world} is gone or no longer answers; this rank, "
            told += f"{self._rank}, cannot go on without its part of the cache of {self._name}"
            self._fail(RankFailedError(told, rank), tell=False)

    def _fail(self, error: BaseException, tell: bool = True) -> None:
        with self._arrived:
            first, self._error = self._error is None, self._error or error
            self._arrived.notify_all()
        if tell and first and not self._closed:
            text = np.frombuffer(str(error).encode(errors="replace"), np.uint8)
            for rank in range(self._world):
                if rank != self._rank:
                    self._mailbox.send(rank, _FAIL, (0, 0, 0), text)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Ends this rank's part, once the others have ended the epoch that they are in."""
        if self._closed or self._process != os.getpid():
            return
        if threading.current_thread().name.startswith("gnnsys-"):
            # The garbage collector may run in a thread of ours, which cannot wait for itself.
            threading.Thread(target=self.close).start()
            return
        # Who leaves by an exception does not wait for ranks that may be waiting for it.
        leaves = sys.exc_info()[0] is not None or (
            hasattr(sys, "last_value") and not hasattr(sys, "ps1")
        )
        if self._error is None and not leaves:
            with self._gathering, self._speaking:
                if self._stream_owner is not None:
                    self._end_from(None)
            self._drain()
        self._shut()

    def _shut(self) -> None:
        with self._arrived:
            self._closed = True
            self._error = self._error or ArgumentError(f"{self._name}: this store was closed")
            self._arrived.notify_all()
        self._owner.stop()
        self._mailbox.close()
        self._owner.join()
        self._memory = ()

    def _drain(self) -> None:
        until = time.monotonic() + _DRAIN
        while time.monotonic() < until and not self._owner.await_end(self._stream, _LOOK):
            if self._error is not None or self._lost or self._failed(None) is not None:
                return

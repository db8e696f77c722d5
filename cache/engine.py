"""A cache at work: announced batches are planned, read ahead and gathered in their order.

Owns ``Engine``: the planner, the executor, the tickets and the two locks. Invariants: slots and
cells change only while ``_executing`` is held, and only as committed plans say; ``_planning`` is
held for no longer than planning takes, never while rows are read, so that ``announce`` never waits
for a disk; whatever fails, what is resident stays what the planner believes it to be.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.cache.executor import Executor
from gnnsys.cache.packed.planner import RecordedPlanner
from gnnsys.cache.packed.plans import RecordedPlans
from gnnsys.cache.packed.store import PackedRows
from gnnsys.cache.plan import BatchPlan, plan_aside
from gnnsys.cache.stats import CacheStats
from gnnsys.cache.tickets import Ticket, Tickets, is_aside
from gnnsys.counters import Counters
from gnnsys.memory.alloc import pooled
from gnnsys.memory.encoding import Encoding
from gnnsys.memory.ids import RowIds, check_bounds
from gnnsys.memory.reads import PendingRows, Reads, RowsInPlace, StagedRows
from gnnsys.memory.store import Store
from gnnsys.system.budget import PLANNER, process_budget
from gnnsys.system.extension import core

__all__ = ["PAGE_BYTES", "PIECE_BYTES", "Engine"]

_log = logging.getLogger(__name__)

PAGE_BYTES = 4096  # a scattered row brings one with it
PIECE_BYTES = 16 << 20
"""What is read at once of rows whose pages do not fit into the staging memory."""
_PREFILL_LOG_SECONDS = 10.0


class Engine:
    """Serves rows of ``source`` through a cache.

    Args:
        source: what is read.
        name: of the store, in errors.
        make_planner: called with ``prefill``; makes a planner without any batch.
        executor: with as many slots and cells as the planner plans for.
        window: batches that a plan looks ahead.
        prefetch: batches whose reads are started ahead of the one that is gathered.
        staging_bytes: up to which pages are read at once, about: of batches ahead, or of a piece
            of one.
        counters: of rows by tier.
        record: is told the ids of each batch that was gathered.
    """

    def __init__(
        self,
        source: Store,
        name: str,
        make_planner: Callable[[bool], Any],
        executor: Executor,
        *,
        window: int,
        prefetch: int,
        staging_bytes: int,
        counters: Counters,
        record: Callable[[NDArray[Any]], None] = lambda ids: None,
    ) -> None:
        self._table = self._source = source
        self._make_planner, self._executor = make_planner, executor
        self._own_window = self._window = window
        self._prefetch, self._staging_bytes = prefetch, staging_bytes
        self._counters, self._record = counters, record
        self._planner: Any = make_planner(True)
        self._name = name
        self._tickets = Tickets(name)
        self._filled = False
        self._due = 0  # who announces plans the batches below, so that the next gather need not
        self._stats = CacheStats(capacity=executor.capacity, victim_cells=executor.cells)
        # The first is taken before the second. An iteration that is collected as garbage ends in
        # whichever thread that happens, and may hold them.
        self._executing = threading.RLock()
        self._planning = threading.RLock()
        self._counting = threading.Lock()

    @property
    def lookahead(self) -> int:
        """Batches that a loader should have announced ahead of the one it gathers."""
        # A plan is made when its window is announced, before the batch `prefetch` ahead of it is
        # gathered; the batch on its way through the sampler makes one more.
        return self._window + self._prefetch + 1

    @property
    def stats(self) -> CacheStats:
        """Counts so far."""
        return dataclasses.replace(self._stats)  # without the lock; see ``shared.Owner.stats``

    # Announcing ----------------------------------------------------------------------------------

    def announce(self, ids: RowIds, owner: Any) -> Ticket:
        """See ``CachedStore.announce``."""
        self._retract_abandoned()
        with self._planning:
            if not self._tickets.admits(owner):
                check_bounds(ids, self._source.shape[0])
                self._tickets.tell_aside()
                return self._tickets.make_aside(ids, owner)
            ticket = Ticket(ids, self._planner.announce(ids.numpy()))
            self._tickets.add(ticket, owner)
            while (
                self._planner.planned + self._window < self._planner.announced
                or self._planner.planned < self._due
            ):
                self._plan_next()
            return ticket

    def follow(self, plans: RecordedPlans, packed: Store | None, batches: int, first: int) -> None:
        """See ``CachedStore.follow``."""
        with self._executing, self._planning, self._whole_or_nothing():
            if self._tickets:
                self._retract(self._tickets[0])
            held = np.full(self._executor.capacity, -1, np.int32)
            if self._filled and isinstance(self._planner, RecordedPlanner):
                held = self._planner.held
            rows = self._table.shape[0]
            self._planner, self._source = None, self._table  # its memory is for the next one
            self._planner = planner = RecordedPlanner(plans, rows, held, first, batches)
            process_budget().hold(PLANNER, planner.state_bytes, planner)
            self._source = (
                self._table if packed is None else PackedRows(self._table, packed, planner)
            )
            self._window, self._filled, self._due = 0, False, 0
            self._stats.resident = planner.kept

    def unfollow(self) -> None:
        """See ``CachedStore.unfollow``."""
        with self._executing, self._planning:
            if isinstance(self._planner, RecordedPlanner):
                self._start_over()

    def retract(self, ticket: Any) -> None:
        """See ``CachedStore.retract``."""
        with self._executing, self._planning:
            self._retract(ticket)

    def finish(self, owner: Any) -> None:
        """See ``AnnouncedStore.finish``; nobody waits for it."""

    def end(self, owner: Any) -> None:
        """See ``CachedStore.end``."""
        with self._executing, self._planning:
            self._take_back(self._tickets.drop_of(owner))

    def _retract(self, ticket: Any) -> None:
        self._take_back(self._tickets.drop_from(ticket))

    def _take_back(self, dropped: list[Ticket]) -> None:
        if dropped:
            self._planner.retract(dropped[0].number)
            self._due = 0

    def _retract_abandoned(self) -> None:
        with self._planning:
            abandoned = self._tickets.is_abandoned()
        if abandoned:
            with self._executing, self._planning:
                if self._tickets.is_abandoned():
                    self._retract(self._tickets[0])

    def _plan_next(self) -> None:
        plan = self._planner.plan()
        self._tickets[plan.batch - self._tickets[0].number].plan = plan

    def close(self) -> None:
        """Lets go of the reads that were started ahead."""
        with self._executing, self._planning:
            for ticket in self._tickets:
                ticket.cancel()

    # Gathering -----------------------------------------------------------------------------------

    def gather(
        self, ids: RowIds, out: Tensor | None, ticket: Any, encoding: Encoding | None = None
    ) -> Tensor:
        """Rows ``ids`` in ``out``, or in pooled memory.

        Args:
            encoding: which says as what they are delivered; None for as they are stored.
        """
        encoding = encoding or self._source.encoding
        shape, decodes = encoding.delivered_shape(self._source.shape), self._executor.decodes
        coding = encoding.coding(shape) if decodes else None
        rows = encoding.target(out, decodes=decodes)
        if rows is None and coding is None:
            rows = self._new_output(len(ids))
        elif rows is None:
            rows = pooled((len(ids), *shape[1:]), encoding.landed)
        with self._executing:
            self._prefill()
            if ticket is None:
                self._gather_in_pieces(ids, rows, coding)
            elif is_aside(ticket):
                self._tickets.check_turn(ticket, ids)
                self._gather_in_pieces(ids, rows, coding)
                self._tickets.redeem(ticket)
            else:
                self._gather_announced(ids, rows, coding, ticket)
        with self._counting:
            self._stats.batches += 1
        return encoding.cast(rows, out) if decodes else encoding.decode(rows, out)

    def _new_output(self, rows: int) -> Tensor:
        flat, stored = self._executor.new_output(rows), self._source.encoding.stored
        if flat.numel() == 0:
            shape = (rows, *self._source.shape[1:])
            return torch.empty(shape, dtype=stored, device=flat.device)
        return flat.view(-1).view(stored).view(rows, *self._source.shape[1:])

    def _gather_announced(
        self, ids: RowIds, out: Tensor, coding: core.RowCoding | None, ticket: Any
    ) -> None:
        with self._planning:
            self._tickets.check_turn(ticket, ids)
            # What is announced has to do where the window is not full: at an epoch's ends.
            soon = min(len(self._tickets), 1 + self._prefetch)
            while self._planner.planned < ticket.number + soon:
                self._plan_next()
            due = [self._tickets[place] for place in range(soon)]
            self._due = ticket.number + soon + 1 if soon < len(self._tickets) else 0
        self._start_reads(due)
        staged = self._await(ticket)
        with self._whole_or_nothing():
            self._executor.execute(ticket.plan, staged, out, coding)
            self._record(ids.numpy())
            with self._planning:
                self._planner.commit(ticket.number)
                self._tickets.redeem(ticket)
        self._count(ticket.plan)

    def _gather_in_pieces(self, ids: RowIds, out: Tensor, coding: core.RowCoding | None) -> None:
        step = max(1, self._staging_bytes // (self._source.row_bytes + PAGE_BYTES))
        for first in range(0, max(1, len(ids)), step):
            piece = slice(first, first + step)
            self._gather_unannounced(RowIds(ids[piece]), out[piece], coding)

    def _gather_unannounced(self, ids: RowIds, out: Tensor, coding: core.RowCoding | None) -> None:
        with self._planning:
            own = None if self._tickets else Ticket(ids, self._planner.announce(ids.numpy()))
            if own is None:
                check_bounds(ids, self._source.shape[0])
                plan = plan_aside(ids.numpy(), self._planner.committed_slots(ids.long().numpy()))
            else:
                plan = self._planner.plan()
        reads = Ticket(ids, -1, plan)
        try:
            self._start_reads([reads])
            staged = self._await(reads)
        except BaseException:
            if own is not None:
                with self._planning:
                    self._planner.retract(own.number)
                    self._announce_again()
            raise
        if own is None:
            self._executor.execute(plan, staged, out, coding)
            self._record(ids.numpy())
        else:
            with self._whole_or_nothing():
                self._executor.execute(plan, staged, out, coding)
                self._record(ids.numpy())
                with self._planning:
                    self._planner.commit(own.number)
        self._count(plan)

    # Reading -------------------------------------------------------------------------------------

    def _staged_bytes(self, tier: str) -> int:
        """Of a row on its way; one that is packed shares its pages with the rows beside it."""
        return self._source.row_bytes + (0 if tier == "packed" else PAGE_BYTES)

    def _start_reads(self, due: list[Ticket]) -> None:
        """Starts the reads of planned batches, up to the first that does not fit."""
        staging = 0
        for ticket in due:
            assert ticket.plan is not None
            staging += len(ticket.plan.reads) * self._staged_bytes(ticket.plan.tier)
            if staging > self._staging_bytes:
                return
            if ticket.pending is None and len(ticket.plan.reads):
                reads = Reads(ticket.plan.reads, ticket.plan.batch)
                ticket.pending = self._source.start_reads(reads)

    def _await(self, ticket: Ticket) -> StagedRows | None:
        """The rows that a plan reads; after a failure they can be started again."""
        pending, ticket.pending = ticket.pending, None
        if pending is not None:
            return self._take(pending)
        assert ticket.plan is not None
        return self._read_in_pieces(ticket.plan) if len(ticket.plan.reads) else None

    def _take(self, pending: PendingRows, of_batch: bool = True) -> StagedRows:
        began = time.perf_counter()
        try:
            staged = pending.wait()
        except BaseException:
            pending.cancel()
            raise
        if not of_batch:
            return staged
        with self._counting:
            stats = self._stats
            stats.io_wait_seconds += time.perf_counter() - began
            stats.requests += staged.requests
            stats.pages += staged.pages
            stats.bytes_read += staged.bytes_read
        return staged

    def _read_in_pieces(self, plan: BatchPlan) -> StagedRows:
        """Rows whose pages are more than may be staged: of each page the rows alone are kept."""
        ids = plan.reads
        rows = self._executor.new_staging(len(ids))
        for piece, staged in self._read_pieces(ids, plan.batch, plan.tier):
            self._executor.collect(staged, rows[piece])
        offsets = np.arange(len(ids)) * self._source.row_bytes
        return RowsInPlace(rows.data_ptr(), offsets, rows)

    def _read_pieces(
        self, ids: NDArray[Any], batch: int | None = None, tier: str = "file"
    ) -> Iterator[tuple[slice, StagedRows]]:
        """Rows ``ids``, which ascend, piece by piece; the next one is read meanwhile.

        Args:
            batch: whose rows these are, by the planner's count; None for those of no batch.
            tier: where they are read.
        """
        of_batch = -1 if batch is None else batch
        step = max(1, PIECE_BYTES // self._staged_bytes(tier))
        starts = range(0, len(ids), step)
        pieces = [slice(first, min(first + step, len(ids))) for first in starts]
        ahead: list[PendingRows] = []
        try:
            for number, piece in enumerate(pieces):
                for each in pieces[number + len(ahead) : number + 2]:
                    reads = Reads(ids[each].astype(np.int64, copy=False), of_batch)
                    ahead.append(self._source.start_reads(reads))
                yield piece, self._take(ahead.pop(0), batch is not None)
        finally:
            for pending in ahead:
                pending.cancel()

    def _prefill(self) -> None:
        """Brings in the rows that the planner wants before the first batch, in ascending order."""
        if self._filled:
            return
        ids = np.asarray(self._planner.prefilled)
        said = began = time.monotonic()
        slots = self._planner.prefilled_slots
        for piece, staged in self._read_pieces(ids):
            self._executor.fill(slots[piece].astype(np.int64), staged)
            if time.monotonic() - said > _PREFILL_LOG_SECONDS:
                said = time.monotonic()
                _log.info("cache: %d of %d rows are filled in", piece.stop, len(ids))
        if len(ids):
            _log.info("cache: %d rows filled in %.1f s", len(ids), time.monotonic() - began)
        self._filled = True
        if isinstance(self._planner, RecordedPlanner):
            self._planner.forget_prefilled()
        self._stats.prefilled += len(ids)
        self._stats.resident += len(ids)

    # Failing -------------------------------------------------------------------------------------

    @contextmanager
    def _whole_or_nothing(self) -> Iterator[None]:
        """Between the first slot written and the commit: who is interrupted starts over, empty."""
        try:
            yield
        except BaseException:
            self._start_over()
            raise

    def _start_over(self) -> None:
        with self._planning:
            self._planner, self._due = self._make_planner(False), 0
            self._source, self._window = self._table, self._own_window
            self._filled, self._stats.resident = True, 0
            self._announce_again()

    def _announce_again(self) -> None:
        """Tells the planner the waiting batches anew; those that were planned are planned again."""
        for ticket in self._tickets:
            ticket.cancel()
            ticket.number = self._planner.announce(ticket.ids.numpy())

    # Counting ------------------------------------------------------------------------------------

    def _count(self, plan: BatchPlan) -> None:
        hits, victims, reads = len(plan.hits), len(plan.victim_in), len(plan.fills)
        with self._counting:
            self._stats.count(plan)
        served = np.array([hits, victims, reads]) + _copies_by_tier(plan)
        for tier, rows in zip(("cache", "victim", plan.tier), served.tolist(), strict=True):
            if rows:
                self._counters.add(tier, rows, rows * self._source.row_bytes)


def _copies_by_tier(plan: BatchPlan) -> NDArray[np.int64]:
    """(3,) repeated rows whose first is a hit, comes from a cell, is read."""
    if len(plan.copies) == 0:
        return np.zeros(3, np.int64)
    tier = np.empty(plan.rows, np.int8)
    for number, table in enumerate((plan.hits, plan.victim_in, plan.fills)):
        tier[table[:, 0]] = number
    return np.bincount(tier[plan.copies[:, 1]], minlength=3)

"""A rank's part of a shared cache as the owner of rows.

Owns ``Owner``: it plans what all ranks ask for of its rows, reads what is missing, in a thread of
its own, and tells who asked where rows lie. Invariants: a place is written to only when every rank
is done with the row it held; what was planned is carried out, though nobody may want it any more.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gnnsys.cache.engine import PAGE_BYTES, PIECE_BYTES
from gnnsys.cache.plan import BatchPlan
from gnnsys.cache.planner import Planner
from gnnsys.cache.shared.memory import RowMemory
from gnnsys.cache.shared.places import Places
from gnnsys.cache.shared.rounds import Part, Rounds
from gnnsys.cache.stats import CacheStats
from gnnsys.memory.reads import PendingRows, Reads
from gnnsys.ranks.owners import Owners
from gnnsys.system.background import start_thread
from gnnsys.system.once import warn_once

__all__ = ["Owner", "ServedRound"]

_log = logging.getLogger(__name__)

_PREFILL = -1
_NONE = 1 << 62  # of rounds: none was unmade


@dataclass(slots=True, eq=False)
class ServedRound:
    """A round whose rows are on their way to their places."""

    number: int
    parts: list[Part]
    places: list[NDArray[np.int32]]
    """For each part the places of its rows, in its order; -1 for one that is not kept."""
    reads: list[int]
    """For each part the rows of it that are read, by this owner or by who asked."""
    to_read: NDArray[np.int64]
    """(r,) ids, ascending."""
    of_read: NDArray[np.int32]
    """(r,) their places."""


@dataclass(slots=True, eq=False)
class _Piece:
    """Rows of a round that are read at once."""

    round: ServedRound
    rows: slice
    is_last: bool
    nbytes: int
    pending: PendingRows | None = field(default=None)


class Owner:
    """Serves the rows that this rank owns.

    Args:
        rank: of this process.
        owners: who owns which row.
        planner: of the numbers of this rank's rows; a batch of it is a round.
        memory: of the rows, which this rank's are read to.
        prefetch: rounds that are made ready ahead of the slowest rank.
        staging_bytes: up to which pages are read at once, about.
        tell: called, in this object's thread, for each round whose rows are in their places.
        answer: likewise, for each question: who asked, its number, and for each row its place, or
            -1 for one that is in none. Places stay what they are until ``release``.
        fail: called with what ends that thread.
    """

    def __init__(
        self,
        rank: int,
        owners: Owners,
        planner: Planner,
        memory: RowMemory,
        *,
        prefetch: int,
        staging_bytes: int,
        tell: Callable[[ServedRound], None],
        answer: Callable[[int, int, NDArray[np.int32]], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._rank, self._source, self._owners = rank, memory.source, owners
        self._planner, self._memory = planner, memory
        self._staging_bytes, self._prefetch = staging_bytes, prefetch
        self._tell, self._tell_places, self._fail = tell, answer, fail
        prefilled = np.asarray(planner.prefilled, np.int64)
        self._rounds = Rounds(owners.world, prefetch)
        self._places = Places(
            planner.capacity, planner.victim_cells, prefetch + 1, len(prefilled), memory.places
        )
        self._stats = CacheStats(
            capacity=planner.capacity,
            victim_cells=planner.victim_cells,
            prefilled=len(prefilled),
            resident=len(prefilled),
        )
        self._queue: deque[ServedRound] = deque()
        self._pieces: deque[_Piece] = deque()  # of rounds that are due
        self._started: deque[_Piece] = deque()
        self._coming: deque[ServedRound] = deque()  # of which not all rows are in their places
        self._asked: deque[tuple[int, int, NDArray[np.int64]]] = deque()
        self._held: dict[tuple[int, int], int] = {}
        """By rank and question, the round up to whose plan its places hold what was told."""
        self._closed = self._has_news = False
        self._unmade = _NONE  # the first round that was, and that the planner may know
        self._changed = threading.Condition()
        self._begun = time.monotonic()
        ids = owners.ids(rank, prefilled)
        self._enqueue(ServedRound(_PREFILL, [], [], [], ids, np.arange(len(ids), dtype=np.int32)))
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to read, and to tell.

        Raises:
            ResourceError: the system refuses a thread.
        """
        self._thread = start_thread(self._serve, "gnnsys-owner")

    @staticmethod
    def most_places(
        capacity: int, cells: int, prefetch: int, rows: int, spare: int | None = None
    ) -> int:
        """Rows that the memory has to have room for: those of slots and cells, and those of the
        rounds that ranks may still read.

        Args:
            rows: of this rank; a round may ask for all.
            spare: the most places for rounds; None for as many as they can ever take, where memory
                that is never touched takes none.
        """
        in_flight = (prefetch + 3) * rows
        return capacity + cells + (in_flight if spare is None else min(spare, in_flight))

    @property
    def stats(self) -> CacheStats:
        """Counts of this rank's rows so far, whoever asked for them."""
        # Without the lock: what is allocated may have the garbage collector end an iteration, which
        # waits for threads that wait for the lock.
        return dataclasses.replace(self._stats)

    # What ranks say ------------------------------------------------------------------------------

    def announce(self, rank: int, stream: int, index: int, numbers: NDArray[np.int32]) -> None:
        """A rank will ask for these rows of this owner."""
        with self._changed:
            if self._rounds.add(rank, stream, index, numbers):
                self._wake()

    def end(self, rank: int, stream: int, count: int) -> None:
        """See ``Rounds.end``."""
        with self._changed:
            made = self._rounds.made
            self._rounds.end(rank, stream, count)
            if self._rounds.made < made:
                self._unmade = min(self._unmade, self._rounds.made)
            self._wake()

    def reach(self, rank: int, stream: int, index: int) -> None:
        """See ``Rounds.reach``."""
        with self._changed:
            if self._rounds.reach(rank, stream, index):
                self._wake()

    def ask(self, rank: int, question: int, numbers: NDArray[np.int64]) -> None:
        """A rank asks where rows of this owner are that nobody announced."""
        with self._changed:
            self._asked.append((rank, question, numbers))
            self._changed.notify_all()

    def release(self, rank: int, question: int) -> None:
        """A rank has read the places that it was told."""
        with self._changed:
            del self._held[rank, question]
            self._wake()

    def _wake(self) -> None:
        """Lets the thread look for what there is to do. It plans, too: a rank that announces or
        gathers does not."""
        self._has_news = True
        self._changed.notify_all()

    def await_end(self, stream: int, seconds: float) -> bool:
        """Waits a while until all ranks are done with the streams before this one; returns whether
        they are."""
        with self._changed:
            return self._changed.wait_for(lambda: self._rounds.are_over(stream), seconds)

    def stop(self) -> None:
        """Ends the thread soon; ``join`` waits for it."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def join(self) -> None:
        """Waits for the end of the thread, which another one than itself calls."""
        if self._thread is not None:
            self._thread.join()

    # Planning ------------------------------------------------------------------------------------

    def _plan(self) -> None:
        """Plans what can be planned by now."""
        while (step := self._next_step()) is not None:
            step()

    def _next_step(self) -> Callable[[], object] | None:
        """What brings the planner on, to be done without the lock; None for nothing."""
        planner, rounds = self._planner, self._rounds
        with self._changed:
            self._has_news = False
            if self._unmade < planner.announced:
                first, self._unmade = self._unmade, _NONE
                return partial(planner.retract, first)
            self._unmade = _NONE
            if (parts := rounds.next_round()) is not None:
                return partial(planner.announce, np.concatenate([part.ids for part in parts]))
            number = planner.planned
            if number < planner.announced and (
                number + planner.window < planner.announced or rounds.is_due(number)
            ):
                return partial(self._plan_round, rounds.take(number))
            return None

    def _plan_round(self, parts: list[Part]) -> None:
        plan = self._planner.plan()
        self._planner.commit(plan.batch)
        places, of_read = self._places.assign(plan)
        ends = np.cumsum([len(part.ids) for part in parts])
        is_read = places < 0  # by who asked
        with self._changed:
            self._stats.count(plan, is_read)
        is_read[plan.fills[:, 0]] = True
        kept = of_read >= 0
        if not kept.all():
            warn_once(
                _log, "shared cache: beside it is no place for all rows on their way, of which "
                "ranks read some by themselves; smaller batches have fewer"
            )  # fmt: skip
        self._enqueue(
            ServedRound(
                plan.batch,
                parts,
                np.split(places, ends[:-1]),
                _reads_of_parts(plan, ends, is_read),
                self._owners.ids(self._rank, plan.reads[kept]),
                of_read[kept],
            )
        )

    def _enqueue(self, served: ServedRound) -> None:
        self._queue.append(served)
        self._coming.append(served)

    # Reading -------------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            while (piece := self._next_piece()) is not None:
                self._bring(piece)
        except BaseException as error:  # whatever it is, ranks wait for what does not come
            self._fail(error)
        finally:
            for piece in self._started:
                if piece.pending is not None:
                    piece.pending.cancel()

    def _next_piece(self) -> _Piece | None:
        """The piece whose turn it is; those after it are being read. None at the end."""
        while True:
            self._plan()
            with self._changed:
                while self._queue and self._may_begin(self._queue[0].number):
                    self._pieces.extend(self._cut(self._queue.popleft()))
                if self._closed:
                    return None
                if self._started or self._pieces:
                    break
                if self._has_news or not self._asked:
                    self._changed.wait_for(lambda: self._has_news or self._asked or self._closed)
                    continue
            self._answer()
        staged = sum(piece.nbytes for piece in self._started)
        while self._pieces and (
            not self._started or staged + self._pieces[0].nbytes <= self._staging_bytes
        ):
            piece = self._pieces.popleft()
            ids = piece.round.to_read[piece.rows]
            if len(ids):
                piece.pending = self._source.start_reads(Reads(ids, piece.round.number))
            staged += piece.nbytes
            self._started.append(piece)
        return self._started.popleft()

    def _may_begin(self, number: int) -> bool:
        """Whether nobody reads the places that the rows of a round are read into."""
        first = min(self._held.values(), default=number)
        return self._rounds.is_due(number) and number - self._prefetch <= first

    def _cut(self, served: ServedRound) -> list[_Piece]:
        of_row = self._source.row_bytes + PAGE_BYTES
        step, count = max(1, PIECE_BYTES // of_row), len(served.to_read)
        firsts = range(0, max(1, count), step)
        return [
            _Piece(
                served,
                slice(first, first + step),
                first + step >= count,
                min(step, count - first) * of_row,
            )
            for first in firsts
        ]

    def _bring(self, piece: _Piece) -> None:
        served = piece.round
        pending, piece.pending = piece.pending, None  # whose memory is let go at the end
        if pending is not None:
            try:
                staged = pending.wait()
            except BaseException:
                pending.cancel()
                raise
            self._memory.put(staged, served.of_read[piece.rows])
            if served.number != _PREFILL:
                with self._changed:
                    self._stats.requests += staged.requests
                    self._stats.pages += staged.pages
                    self._stats.bytes_read += staged.bytes_read
        if not piece.is_last:
            return
        if served.number == _PREFILL and len(served.to_read):
            seconds = time.monotonic() - self._begun
            _log.info("cache: %d rows filled in %.1f s", len(served.to_read), seconds)
        self._coming.popleft()
        self._tell(served)
        self._answer()

    def _answer(self) -> None:
        """Answers what was asked meanwhile: between two rounds, which come first."""
        while self._asked:
            rank, question, numbers = self._asked.popleft()
            places = self._places.of_slots(self._planner.committed_slots(numbers))
            for served in self._coming:
                places[np.isin(places, served.of_read)] = -1
            with self._changed:
                self._held[rank, question] = self._planner.planned
            self._tell_places(rank, question, places)


def _reads_of_parts(
    plan: BatchPlan, ends: NDArray[np.int64], is_read: NDArray[np.bool_]
) -> list[int]:
    """For each part of a round, which end there, its rows that are read for it; one that it asks
    for again counts again, as in a cache of one process."""
    of_part = partial(np.searchsorted, ends, side="right")
    again = plan.copies[of_part(plan.copies[:, 0]) == of_part(plan.copies[:, 1])]
    is_read[again[:, 0]] |= is_read[again[:, 1]]
    so_far = np.cumsum(is_read, dtype=np.int64)
    return np.diff(np.concatenate([[0], so_far])[ends], prepend=0).tolist()

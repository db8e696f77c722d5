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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gnnsys.cache.engine import PAGE_BYTES, PIECE_BYTES
from gnnsys.cache.plan import BatchPlan
from gnnsys.cache.planner import Planner
from gnnsys.cache.shared.places import Places
from gnnsys.cache.shared.rounds import Part, Rounds
from gnnsys.cache.stats import CacheStats
from gnnsys.errors import ResourceError
from gnnsys.memory.reads import PendingRows, Reads
from gnnsys.memory.store import Store
from gnnsys.ranks.owners import Owners
from gnnsys.system.extension import core
from gnnsys.system.threads import num_threads

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
    """For each part the places of its rows, in its order."""
    reads: list[int]
    """For each part the rows of it that are read."""
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
        source: that rows are read from.
        owners: who owns which row.
        planner: of the numbers of this rank's rows; a batch of it is a round.
        memory: (bytes,) for all places.
        prefetch: rounds that are made ready ahead of the slowest rank.
        staging_bytes: up to which pages are read at once, about.
        threads: that move rows.
        tell: called, in this object's thread, for each round whose rows are in their places.
        fail: called with what ends that thread.
    """

    def __init__(
        self,
        rank: int,
        source: Store,
        owners: Owners,
        planner: Planner,
        memory: NDArray[np.uint8],
        *,
        prefetch: int,
        staging_bytes: int,
        threads: int,
        tell: Callable[[ServedRound], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._rank, self._source, self._owners = rank, source, owners
        self._planner = planner
        self._address = memory.ctypes.data
        self._staging_bytes, self._tell, self._fail = staging_bytes, tell, fail
        self._mover = core.PlanExecutor(num_threads(threads))
        prefilled = np.asarray(planner.prefilled, np.int64)
        self._rounds = Rounds(owners.world, prefetch)
        self._places = Places(planner.capacity, planner.victim_cells, prefetch + 1, len(prefilled))
        self._stats = CacheStats(
            capacity=planner.capacity,
            victim_cells=planner.victim_cells,
            prefilled=len(prefilled),
            resident=len(prefilled),
        )
        self._queue: deque[ServedRound] = deque()
        self._pieces: deque[_Piece] = deque()  # of rounds that are due
        self._started: deque[_Piece] = deque()
        self._closed = self._has_news = False
        self._unmade = _NONE  # the first round that was, and that the planner may know
        self._changed = threading.Condition()
        self._begun = time.monotonic()
        ids = owners.ids(rank, prefilled)
        self._queue.append(
            ServedRound(_PREFILL, [], [], [], ids, np.arange(len(ids), dtype=np.int32))
        )
        self._thread = threading.Thread(target=self._serve, name="gnnsys-owner", daemon=True)

    def start(self) -> None:
        """Begins to read, and to tell.

        Raises:
            ResourceError: the system refuses a thread.
        """
        try:
            self._thread.start()
        except RuntimeError as error:
            raise ResourceError(0, f"the system refuses a thread for a cache: {error}") from error

    @staticmethod
    def most_places(capacity: int, cells: int, prefetch: int, rows: int) -> int:
        """Rows that the memory has to have room for, most of which is never touched: those of
        slots and cells, and those of the rounds that ranks may still read."""
        return capacity + cells + (prefetch + 3) * rows

    @property
    def stats(self) -> CacheStats:
        """Counts of this rank's rows so far, whoever asked for them."""
        with self._changed:
            return dataclasses.replace(self._stats)

    # What ranks say ------------------------------------------------------------------------------

    def announce(self, rank: int, stream: int, index: int, numbers: NDArray[np.int32]) -> None:
        """A rank will ask for these rows of this owner."""
        with self._heard() as rounds:
            rounds.add(rank, stream, index, numbers)

    def end(self, rank: int, stream: int, count: int) -> None:
        """See ``Rounds.end``."""
        with self._heard() as rounds:
            made = rounds.made
            rounds.end(rank, stream, count)
            if rounds.made < made:
                self._unmade = min(self._unmade, rounds.made)

    def reach(self, rank: int, stream: int, index: int) -> None:
        """See ``Rounds.reach``."""
        with self._heard() as rounds:
            rounds.reach(rank, stream, index)

    @contextmanager
    def _heard(self) -> Iterator[Rounds]:
        """Lets the thread look for what there is to do after the body. It plans, too: a rank that
        announces or gathers does not."""
        with self._changed:
            yield self._rounds
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
        if self._thread.ident is not None:
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
        self._queue.append(self._placed(parts, plan))
        with self._changed:
            self._stats.count(plan)

    def _placed(self, parts: list[Part], plan: BatchPlan) -> ServedRound:
        places, of_read = self._places.assign(plan)
        ends = np.cumsum([len(part.ids) for part in parts])
        fills = np.searchsorted(plan.fills[:, 0], ends)
        return ServedRound(
            plan.batch,
            parts,
            np.split(places, ends[:-1]),
            np.diff(fills, prepend=0).tolist(),
            self._owners.ids(self._rank, plan.reads),
            of_read,
        )

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
                while self._queue and self._rounds.is_due(self._queue[0].number):
                    self._pieces.extend(self._cut(self._queue.popleft()))
                if self._closed:
                    return None
                if self._started or self._pieces:
                    break
                self._changed.wait_for(lambda: self._has_news or self._closed)
        staged = sum(piece.nbytes for piece in self._started)
        while self._pieces and (not self._started or staged < self._staging_bytes):
            piece = self._pieces.popleft()
            ids = piece.round.to_read[piece.rows]
            if len(ids):
                piece.pending = self._source.start_reads(Reads(ids, piece.round.number))
            staged += piece.nbytes
            self._started.append(piece)
        return self._started.popleft()

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
        served, row_bytes = piece.round, self._source.row_bytes
        if piece.pending is not None:
            try:
                staged = piece.pending.wait()
            except BaseException:
                piece.pending.cancel()
                raise
            if row_bytes:
                targets = self._address + served.of_read[piece.rows].astype(np.int64) * row_bytes
                self._mover.move(staged.address + staged.offsets, targets, row_bytes)
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
        self._tell(served)

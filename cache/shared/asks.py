"""Gathers that nobody announced, through a cache that ranks share.

Owns ``Asks``: owners say which rows they have, and the rest is read from the source. Invariants:
no plan changes for it; a row in an owner's memory is copied between its answer and its release,
meanwhile the owner leaves it there; no lock is held while a rank waits.
"""

from __future__ import annotations

import itertools
import logging
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.cache.shared.memory import RowMemory
from gnnsys.cache.shared.messages import NOTHING, Kind
from gnnsys.counters import Counters
from gnnsys.memory.ids import RowIds, check_bounds
from gnnsys.ranks.mailbox import Mailbox
from gnnsys.ranks.owners import Owners

__all__ = ["Asks"]

_log = logging.getLogger(__name__)

_LOOK = 0.2  # seconds between two looks at who is alive

Numbers = NDArray[np.int64]
Answer = tuple[int, bytearray]  # an owner, and what it told


class Asks:
    """Asks the owners of rows for those that they have, from any number of threads.

    Args:
        name: of the store, in messages.
        mailbox: between the ranks.
        owners: who owns which row.
        memory: see ``SharedEngine``.
        patience: seconds to wait for owners that are alive.
        counters: of rows by tier.
        look: raises what ends a gather, such as a rank that is gone and not among those given.
        reading: keeps the memory there in the body.
    """

    def __init__(
        self,
        name: str,
        mailbox: Mailbox,
        owners: Owners,
        memory: RowMemory,
        *,
        patience: float,
        counters: Counters,
        look: Callable[[set[int]], None],
        reading: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._name, self._mailbox, self._owners = name, mailbox, owners
        self._memory, self._patience, self._counters = memory, patience, counters
        self._look, self._reading = look, reading
        self._numbers = itertools.count()
        self._open: dict[tuple[int, int], queue.SimpleQueue[Answer]] = {}
        """By question and owner, where its answer goes."""
        self._late: set[int] = set()  # owners that owe an answer, and are not asked meanwhile
        self._left: set[int] = set()

    # Asking --------------------------------------------------------------------------------------

    def gather(self, ids: RowIds, out: Tensor | None) -> Tensor:
        """See ``SharedEngine.gather``. A source that the page cache or memory serves is read alone:
        to ask takes longer than to copy what lies there.

        Raises:
            RowIndexError: an id is outside the rows.
            RankFailedError: an owner is gone.
        """
        memory = self._memory
        check_bounds(ids, memory.source.shape[0])
        if memory.source.depth == 0 or memory.source.row_bytes == 0:
            return self._read(ids, out)
        self._look(self._left)
        positions, numbers = self._owners.divide(ids.numpy().astype(np.int64, copy=False))
        addresses = np.full(len(ids), -1, np.int64)
        with self._answers(numbers) as answers:
            for owner, told in answers:
                places, is_found = _split(told, len(positions[owner]))
                found = positions[owner][is_found]
                addresses[found] = memory.locate(owner, places, len(found))
                self._count("cache" if owner == self._mailbox.rank else "peer", len(found))
            served, rest = np.flatnonzero(addresses >= 0), np.flatnonzero(addresses < 0)
            if len(served) == 0:
                return self._read(ids, out)
            with self._reading():
                some = memory.gather(
                    _of(ids, served), addresses[served], None if len(rest) else out
                )
                memory.finish()
        if len(rest) == 0:
            return some
        read = self._read(_of(ids, rest), None)
        rows = some.new_empty((len(ids), *some.shape[1:])) if out is None else out
        for positions_of, found_rows in (served, some), (rest, read):
            rows[torch.from_numpy(positions_of)] = found_rows
        return rows

    @contextmanager
    def _answers(self, numbers: Sequence[Numbers]) -> Iterator[list[Answer]]:
        """Asks each owner for its rows of these numbers; the answers are good in the body."""
        question, come = next(self._numbers), queue.SimpleQueue[Answer]()
        asked = {owner for owner, wanted in enumerate(numbers) if len(wanted)}
        asked -= self._late | self._left
        self._open.update({(question, owner): come for owner in asked})
        try:
            for owner in asked:
                self._mailbox.send(
                    owner, Kind.ASK, (question, 0, 0), numbers[owner].astype(np.int32)
                )
            yield self._await(question, asked, come)
        finally:
            for owner in asked:
                if self._open.pop((question, owner), None) is None:  # it has answered
                    self._release(owner, question)

    def _await(
        self, question: int, asked: set[int], come: queue.SimpleQueue[Answer]
    ) -> list[Answer]:
        until, owing = time.monotonic() + self._patience, set(asked)
        answers: list[Answer] = []
        while owing - self._left:
            try:
                answers.append(come.get(timeout=_LOOK))
                owing.discard(answers[-1][0])
            except queue.Empty:
                self._look(self._left)
                if time.monotonic() > until:
                    self._skip(question, owing - self._left)
                    break
        return answers

    def _skip(self, question: int, owners: set[int]) -> None:
        self._late |= owners
        # An answer that has come meanwhile is no longer awaited.
        self._late -= {owner for owner in owners if (question, owner) not in self._open}
        _log.warning(
            "%s: rank %d has waited %.0f s for ranks %s to say which rows they have, and reads "
            "their rows itself until they do",
            self._name, self._mailbox.rank, self._patience, ", ".join(map(str, sorted(owners))),
        )  # fmt: skip

    def _read(self, ids: RowIds, out: Tensor | None) -> Tensor:
        self._count("file", len(ids))
        return self._memory.read(ids, out)

    def _count(self, tier: str, rows: int) -> None:
        if rows:
            self._counters.add(tier, rows, rows * self._memory.source.row_bytes)

    def _release(self, owner: int, question: int) -> None:
        self._mailbox.send(owner, Kind.RELEASE, (question, 0, 0), NOTHING)

    # What comes ----------------------------------------------------------------------------------

    def answer(self, rank: int, question: int, places: NDArray[np.int32]) -> None:
        """Tells a rank where the rows that it asked this one for are, or sends those there are."""
        found = places >= 0
        told = self._memory.tell(rank, places[found]).view(np.uint8)
        payload = np.concatenate([told, np.packbits(found)])
        self._mailbox.send(rank, Kind.ANSWER, (question, 0, 0), payload)

    def take(self, owner: int, question: int, payload: bytearray) -> None:
        """An owner has answered."""
        come = self._open.pop((question, owner), None)
        self._late.discard(owner)
        if come is None:
            self._release(owner, question)
        else:
            come.put((owner, payload))

    def leave(self, rank: int) -> None:
        """A rank has closed its part: its rows are read from the source."""
        self._left.add(rank)

    def has_left(self, rank: int) -> bool:
        """Whether a rank has closed its part."""
        return rank in self._left


def _of(ids: RowIds, positions: Numbers) -> RowIds:
    return RowIds(ids[torch.from_numpy(positions)])


def _split(told: bytearray, asked: int) -> tuple[memoryview, NDArray[np.bool_]]:
    """What an owner tells of rows that it has, and (asked,) which these are, by the bits after."""
    end = len(told) - -(-asked // 8)
    bits = np.frombuffer(told, np.uint8)[end:]
    return memoryview(told)[:end], np.unpackbits(bits, count=asked).astype(bool)

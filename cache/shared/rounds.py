"""In which order what the ranks announce is planned.

Owns ``Rounds``. Invariant: every owner that hears the same from each rank makes the same rounds,
in whatever order it hears the ranks. Imports numpy alone; one call at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Part", "Rounds"]

Ids = NDArray[np.int32]


@dataclass(slots=True)
class Part:
    """What one rank asks for in a round."""

    rank: int
    stream: int
    index: int
    ids: Ids


@dataclass(slots=True)
class _Rank:
    """What is known of a rank."""

    announced: dict[tuple[int, int], Ids] = field(default_factory=dict)
    """Batches that are in no round that is planned, by stream and index."""

    count: dict[int, int] = field(default_factory=dict)
    """Of batches announced in a stream."""

    ended: set[int] = field(default_factory=set)
    """Streams that no batch is added to any more."""

    stream: int = 0
    index: int = 0
    """The batch in hand: it is done with all those before."""


class Rounds:
    """Makes rounds of the batches that ranks announce.

    A rank's batches come in streams, one after the other: the epochs of a loader, those of another.
    Batch i of the same stream of all ranks make a round; a rank whose stream ended before has no
    part in it. Rounds are numbered from 0, and a new stream's begin when all ranks have ended the
    one before.

    Args:
        world: number of ranks.
        prefetch: rounds that are made ready ahead of the slowest rank.

    >>> rounds = Rounds(world=2, prefetch=1)
    >>> rounds.add(0, 0, 0, np.array([4], np.int32)), rounds.next_round()
    (False, None)
    >>> rounds.end(1, 0, 0)
    >>> [part.rank for part in rounds.next_round()], rounds.is_due(0)
    ([0], True)
    """

    def __init__(self, world: int, prefetch: int) -> None:
        self._prefetch = prefetch
        self._ranks = [_Rank() for _ in range(world)]
        self._stream = 0  # whose rounds are made
        self._base = {0: 0}  # number of the first round of a stream
        self._made = 0
        self._parts: dict[int, list[Part]] = {}  # rounds that were made and not taken
        self._taken = 0

    @property
    def made(self) -> int:
        """Rounds that ``next_round`` made, and were not taken back."""
        return self._made

    # What ranks say -------------------------------------------------------------------------------

    def add(self, rank: int, stream: int, index: int, ids: Ids) -> bool:
        """A rank announces a batch; returns whether there is a next round by now."""
        state = self._ranks[rank]
        state.announced[stream, index] = ids
        state.count[stream] = index + 1
        return all(map(self._is_known, self._ranks))

    def end(self, rank: int, stream: int, count: int) -> None:
        """A rank adds no more batches to a stream, and takes back those from ``count`` on.

        Rounds with such a batch are unmade, but for those that were taken.
        """
        state = self._ranks[rank]
        for index in range(count, state.count.get(stream, 0)):
            state.announced.pop((stream, index), None)
        state.count[stream] = count
        state.ended.add(stream)
        if stream in self._base and self._taken < self._base.get(stream + 1, self._made):
            self._unmake(max(self._base[stream] + count, self._taken), stream)

    def _unmake(self, first: int, stream: int) -> None:
        """Goes back to a round of a stream, where those from there on were made."""
        if first >= self._made:
            return
        for number in range(first, self._made):
            del self._parts[number]
        self._made = first
        for later in range(stream + 1, self._stream + 1):
            del self._base[later]
        self._stream = stream

    def reach(self, rank: int, stream: int, index: int) -> bool:
        """A rank is done with its batches before this one; returns whether the slowest is now
        another, or farther."""
        state, before = self._ranks[rank], self._slowest()
        state.stream, state.index = stream, index
        return self._slowest() > before

    # What follows from it -------------------------------------------------------------------------

    def next_round(self) -> list[Part] | None:
        """The parts of round ``made``; None while a rank may still have a part in it."""
        while True:
            index, parts = self._made - self._base[self._stream], []
            if not all(map(self._is_known, self._ranks)):
                return None
            for number, rank in enumerate(self._ranks):
                if index < rank.count.get(self._stream, 0):
                    ids = rank.announced[self._stream, index]
                    parts.append(Part(number, self._stream, index, ids))
            if parts:
                self._parts[self._made] = parts
                self._made += 1
                return parts
            self._stream += 1
            self._base[self._stream] = self._made
            self._forget(min(self._stream, *(rank.stream for rank in self._ranks)))

    def are_over(self, stream: int) -> bool:
        """Whether all ranks are done with the streams before this one."""
        return self._slowest()[0] >= stream

    def is_due(self, number: int) -> bool:
        """Whether all ranks are within ``prefetch`` rounds of this one, which is made."""
        stream, index = self._slowest()
        # One that is in no round that is made is waited for by none.
        return stream > self._stream or self._base[stream] + index >= number - self._prefetch

    def take(self, number: int) -> list[Part]:
        """The parts of the next round that is planned, which is then never unmade."""
        parts = self._parts.pop(number)
        for part in parts:
            self._ranks[part.rank].announced.pop((part.stream, part.index), None)
        self._taken = number + 1
        return parts

    def _forget(self, stream: int) -> None:
        """Streams before this one, in which no rank is any more."""
        for old in [each for each in self._base if each < stream]:
            del self._base[old]
            for rank in self._ranks:
                rank.ended.discard(old)
                rank.count.pop(old, None)

    def _is_known(self, rank: _Rank) -> bool:
        """Whether it is certain which part a rank has in round ``made`` of the stream, if any."""
        index = self._made - self._base[self._stream]
        return index < rank.count.get(self._stream, 0) or self._stream in rank.ended

    def _slowest(self) -> tuple[int, int]:
        return min(map(self._position, self._ranks))

    def _position(self, rank: _Rank) -> tuple[int, int]:
        """The stream that a rank is in, and its batch there."""
        stream, index = rank.stream, rank.index
        while stream in rank.ended and index >= rank.count[stream]:
            stream, index = stream + 1, 0
        return stream, index

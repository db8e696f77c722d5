"""The caches that are fed row by row, in plain Python: LRU, LFU, SIEVE and S3-FIFO.

This module owns the definition of these baselines; ``planner_reference`` makes plans of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

__all__ = ["QUEUES", "Queue"]


class Queue(Protocol):
    """A cache that decides at each access."""

    def __init__(self, capacity: int) -> None: ...

    def fill(self, rows: Iterable[int]) -> None:
        """Starts with these rows, the least valuable first."""

    def access(self, row: int) -> bool:
        """Uses a row; returns whether it was there."""

    def rows(self) -> set[int]:
        """Who is resident."""


class Lru:
    """Least recently used."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._recent: list[int] = []  # least recent first

    def fill(self, rows: Iterable[int]) -> None:
        self._recent = list(rows)

    def access(self, row: int) -> bool:
        hit = row in self._recent
        if hit:
            self._recent.remove(row)
        self._recent = [*self._recent, row]
        while len(self._recent) > self._capacity:
            self._recent.pop(0)
        return hit

    def rows(self) -> set[int]:
        return set(self._recent)


class Lfu:
    """Least frequently used since it entered, ties by least recent use.

    The rule of Shah, Mitra, Matani: "An O(1) algorithm for implementing the LFU cache eviction
    scheme" (2010).
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._uses: dict[int, tuple[int, int]] = {}  # frequency, time of the last use
        self._time = 0

    def fill(self, rows: Iterable[int]) -> None:
        for row in rows:
            self.access(row)

    def access(self, row: int) -> bool:
        self._time += 1
        hit = row in self._uses
        if not hit and len(self._uses) == self._capacity:
            if self._capacity == 0:
                return False
            del self._uses[min(self._uses, key=lambda r: self._uses[r])]
        self._uses[row] = (self._uses[row][0] + 1 if hit else 1, self._time)
        return hit

    def rows(self) -> set[int]:
        return set(self._uses)


class Sieve:
    """SIEVE (Zhang et al.: "SIEVE is simpler than LRU", NSDI 2024, algorithm 1)."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._queue: list[int] = []  # the tail, which is the oldest, first
        self._visited: set[int] = set()
        self._hand = 0  # place in the queue; it moves from tail to head

    def fill(self, rows: Iterable[int]) -> None:
        self._queue = list(rows)

    def access(self, row: int) -> bool:
        if row in self._queue:
            self._visited.add(row)
            return True
        if self._capacity == 0:
            return False
        if len(self._queue) == self._capacity:
            self._evict()
        self._queue.append(row)
        return False

    def _evict(self) -> None:
        while self._queue[self._hand] in self._visited:
            self._visited.remove(self._queue[self._hand])
            self._hand = (self._hand + 1) % len(self._queue)
        at_head = self._hand == len(self._queue) - 1
        del self._queue[self._hand]
        if at_head:
            self._hand = 0

    def rows(self) -> set[int]:
        return set(self._queue)


class S3Fifo:
    """S3-FIFO (Yang et al.: "FIFO queues are all you need for cache eviction", SOSP 2023).

    A tenth of the slots is the small queue, and as many ids as the main queue has slots are
    remembered as ghosts. Where a row moves from the small to the main queue while that is full,
    the main queue evicts, and the small one does not as well.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._small_share = max(1, capacity // 10)
        self._ghosts = capacity - self._small_share
        self._small: list[int] = []  # oldest first, as the others
        self._main: list[int] = []
        self._ghost: list[int] = []
        self._uses: dict[int, int] = {}  # of the residents, at most 3

    def fill(self, rows: Iterable[int]) -> None:
        self._main = list(rows)
        self._uses = dict.fromkeys(self._main, 0)

    def access(self, row: int) -> bool:
        if row in self._uses:
            self._uses[row] = min(self._uses[row] + 1, 3)
            return True
        if self._capacity == 0:
            return False
        while len(self._uses) == self._capacity:
            self._evict()
        if row in self._ghost:
            self._ghost.remove(row)
            self._main.append(row)
        else:
            self._small.append(row)
        self._uses[row] = 0
        return False

    def _evict(self) -> None:
        if len(self._small) >= self._small_share:
            row = self._small.pop(0)
            if self._uses[row] > 1:
                self._main.append(row)
                self._uses[row] = 0
            else:
                del self._uses[row]
                self._ghost.append(row)
                self._ghost = self._ghost[max(0, len(self._ghost) - self._ghosts) :]
        else:
            row = self._main.pop(0)
            if self._uses[row] > 0:
                self._main.append(row)
                self._uses[row] -= 1
            else:
                del self._uses[row]

    def rows(self) -> set[int]:
        return set(self._uses)


QUEUES: dict[str, type[Queue]] = {"lru": Lru, "lfu": Lfu, "sieve": Sieve, "s3fifo": S3Fifo}

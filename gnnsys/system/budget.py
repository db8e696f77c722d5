"""How much memory this process may take, and who has how much of it.

Owns ``Budget``, of which a process has one: ``process_budget()``. Every allocation above 1 MiB that
lives longer than a batch is entered under a name, when it is planned (``reserve``) or when it is
made (``hold``). Whatever decides by free memory asks ``left()``.
"""

from __future__ import annotations

import os
import re
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gnnsys.errors import TooLargeError
from gnnsys.system.extension import core
from gnnsys.system.machine import available_memory, memory_limit, read_text
from gnnsys.system.sizes import size_text

__all__ = [
    "ACTIVATIONS",
    "AHEAD",
    "BATCHES",
    "BLOCKS",
    "CACHE_ROWS",
    "EMBEDDINGS",
    "EMBEDDINGS_IN_MEMORY",
    "EMBEDDING_READS",
    "PLANNER",
    "PLANS_AHEAD",
    "RANKING",
    "SEEDS",
    "SPLITS",
    "STAGING",
    "STEPS",
    "Budget",
    "Entry",
    "Resident",
    "own_memory",
    "process_budget",
    "resident_memory",
    "table_lines",
]

ACTIVATIONS = "activations of training"
CACHE_ROWS = "cache rows"
EMBEDDINGS = "cache of embeddings"
EMBEDDINGS_IN_MEMORY = "embeddings of nodes"
EMBEDDING_READS = "reads of embeddings ahead"
BATCHES = "batches under way"
AHEAD = "batches sampled ahead"
PLANS_AHEAD = "plans ahead"
PLANNER = "planner of the cache"
RANKING = "ranking of the rows"
SEEDS = "order of the seeds"
SPLITS = "ids of the splits, mapped"
STAGING = "reads under way"
STEPS = "training steps"
BLOCKS = "blocks of evaluation"
_POOLED = (BATCHES, AHEAD, STAGING, BLOCKS)
"""What lives in the memory that the process pools: so much of it is kept, unused, for the next."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One name of the table."""

    name: str

    planned: int
    """Bytes that were reserved beforehand."""

    held: int
    """Bytes of the allocations that were entered under the name and are not released."""

    mapped: bool
    """Pages of files: resident like others, but the kernel may take them back."""

    @property
    def nbytes(self) -> int:
        """What the name counts: the greater of both."""
        return max(self.planned, self.held)


@dataclass(frozen=True, slots=True)
class Resident:
    """The memory of this process that is in RAM, in bytes, as the kernel counts it."""

    anonymous: int
    """Heaps, stacks and areas without a file, shared ones included."""

    file: int
    """Pages of mapped files: programs, libraries, topology and features."""

    peak: int
    """The most of both together so far."""

    @property
    def now(self) -> int:
        """Both together."""
        return self.anonymous + self.file


class Budget:
    """Memory that is divided by name. Safe for threads; a forked child starts with an empty table.

    Args:
        total: bytes; None for what the control group or the machine leaves at any time.

    >>> budget = Budget(1 << 30)
    >>> budget.reserve("cache rows", 600 << 20)
    >>> rows = bytearray(100 << 20)
    >>> budget.left() >> 20
    424
    """

    def __init__(self, total: int | None = None) -> None:
        self._lock = threading.RLock()  # a finalizer may run at any place
        self._process = os.getpid()
        self.total = total
        self.ranks = 1
        """Of this machine that plan the same."""
        self._planned: dict[str, int] = {}
        self._there: dict[str, int] = {}
        self._held: dict[str, int] = {}
        self._mapped: set[str] = set()

    @contextmanager
    def run(self, total: int | None, ranks: int = 1) -> Iterator[Budget]:
        """For a run: the total is set, and at the end it and what was planned are taken back.

        Args:
            total: bytes of all ranks together; None for what there is.
            ranks: processes of this machine that plan and hold the same. Pages of files, which
                they share, count once.
        """
        before = self.total
        self.total, self.ranks, self._planned, self._there = total, ranks, {}, {}
        try:
            yield self
        finally:
            self.total, self.ranks, self._planned, self._there = before, 1, {}, {}
            if self is _process:
                core.set_retention()

    def reserve(self, name: str, nbytes: int, *, there: int = 0, mapped: bool = False) -> None:
        """Plans ``nbytes`` for a name, in place of what was planned for it.

        The process's pool keeps as much unused memory as is planned for what lives in it.

        Args:
            name: what for.
            nbytes: in all.
            there: so many of them are resident already, without an owner: libraries.
            mapped: pages of files.
        """
        with self._lock:
            self._planned[name], self._there[name] = int(nbytes), there
            if mapped:
                self._mapped.add(name)
            if self is _process and name in _POOLED:
                core.set_retention(sum(self._planned.get(each, 0) for each in _POOLED))

    def planned(self, name: str) -> int:
        """Bytes that were reserved for a name; 0 for none."""
        with self._lock:
            return self._planned.get(name, 0)

    def hold(self, name: str, nbytes: int, owner: Any, *, mapped: bool = False) -> None:
        """Enters an allocation that lives as long as ``owner``, which takes weak references."""
        with self._lock:
            self._held[name] = self._held.get(name, 0) + int(nbytes)
            if mapped:
                self._mapped.add(name)
        weakref.finalize(owner, self._release, name, int(nbytes), os.getpid()).atexit = False

    def _release(self, name: str, nbytes: int, process: int) -> None:
        if process == self._process:  # a forked child has not entered what it inherits
            with self._lock:
                self._held[name] -= nbytes

    def table(self) -> list[Entry]:
        """All names, those planned first, in the order in which they came."""
        with self._lock:
            names = dict.fromkeys([*self._planned, *self._held])
            return [
                Entry(
                    name,
                    self._planned.get(name, 0),
                    self._held.get(name, 0) + self._there.get(name, 0),
                    name in self._mapped,
                )
                for name in names
            ]

    def table_of_all(self) -> list[Entry]:
        """``table`` of all ranks of the machine together, without the names that count nothing."""
        return [
            entry
            if entry.mapped
            else replace(entry, planned=self.ranks * entry.planned, held=self.ranks * entry.held)
            for entry in self.table()
            if entry.nbytes
        ]

    def left(self, of: str = "", *, mapped: bool = True) -> int:
        """Bytes that nobody has and nobody planned for but the name ``of``, at least 0; of several
        ranks, this one's part of them.

        Args:
            of: what this name was planned and does not hold yet is left, too; of pages of files,
                what it holds as well.
            mapped: whether the planned pages of files are to stay resident. The kernel could take
                them back: False for the most that can be had. A total that was set counts them
                always.
        """
        table = [
            replace(entry, planned=min(entry.planned, entry.held)) if entry.name == of else entry
            for entry in self.table()
            if not (entry.mapped and entry.name == of)
        ]
        rest = available_memory()  # with the mapped pages that are resident
        for entry in table:
            if not entry.mapped:
                rest -= self.ranks * max(0, entry.planned - entry.held)
            elif mapped:
                rest -= entry.planned
        if self.total is not None:
            rest = min(rest, self.total - self._sum(table))
        return max(0, rest) // self.ranks

    def _sum(self, table: Iterable[Entry]) -> int:
        """Bytes of all ranks."""
        return sum(entry.nbytes * (1 if entry.mapped else self.ranks) for entry in table)

    def check(self, way_out: str) -> None:
        """Raises TooLargeError, with the table, where what is planned cannot fit.

        A total that was set counts all; a control group or a machine only what the kernel cannot
        take back, beside what the process has already.
        """
        counted = self.table_of_all()
        needed = sum(entry.nbytes for entry in counted)
        if self.total is not None and needed > self.total:
            limit, most = f"--memory {size_text(self.total)}", self.total
        else:
            counted = [entry for entry in counted if not entry.mapped]
            needed = sum(entry.nbytes for entry in counted)
            most = available_memory() + self.ranks * resident_memory().anonymous
            group = memory_limit()
            limit = f"{size_text(most)} that the machine leaves"
            if group is not None and group < most * 2:
                limit = f"{size_text(most)} that the control group ({size_text(group)}) leaves"
        if needed > most:
            lines = "\n".join(table_lines(counted))
            whose = f" by {self.ranks} ranks" if self.ranks > 1 else ""
            raise TooLargeError(
                f"memory: {size_text(needed)} planned{whose} > {limit}; {way_out}\n{lines}"
            )


def table_lines(table: Iterable[Entry]) -> list[str]:
    """The names and what they count, as text, and the sum.

    >>> table_lines([Entry("labels", 1 << 20, 0, False)])
    ['  labels  1 MiB', '  in all  1 MiB']
    """
    rows = [(entry.name, entry.nbytes) for entry in table if entry.nbytes]
    rows.append(("in all", sum(nbytes for _, nbytes in rows)))
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}  {size_text(nbytes)}" for name, nbytes in rows]


def resident_memory() -> Resident:
    """What this process has in RAM.

    >>> 0 < resident_memory().now <= resident_memory().peak
    True
    """
    lines = read_text(Path("/proc/self/status")).splitlines()
    kib = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)
           if value.endswith("kB")}  # fmt: skip
    return Resident(
        anonymous=(kib["RssAnon"] + kib["RssShmem"]) << 10,
        file=kib["RssFile"] << 10,
        peak=max(kib["VmHWM"], kib["VmRSS"]) << 10,
    )


def own_memory() -> int:
    """Bytes of this process that are in RAM, pages that it shares with others divided by their
    number; with all of them where the kernel does not say."""
    rollup = read_text(Path("/proc/self/smaps_rollup"))
    found = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
    return int(found[1]) << 10 if found else resident_memory().now


_process = Budget()


def process_budget() -> Budget:
    """The budget of this process."""
    return _process


os.register_at_fork(after_in_child=lambda: _process.__init__())  # type: ignore[misc]

"""One budget of memory for several caches.

Owns ``CacheArena``, which divides bytes, and how a user says the size of a cache. Imports numpy,
``sizes`` and the errors; it holds no memory itself.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.errors import ArgumentError, DTypeError
from gnnsys.system.sizes import parse_bytes

__all__ = [
    "ArenaShare",
    "CacheArena",
    "Table",
    "check_row_of_each",
    "row_of_each",
    "rows_of",
    "share_bytes",
]


@dataclass(eq=False)
class Table:
    """A table that wants a part of an arena."""

    name: str
    rows: int
    row_bytes: int
    importance: NDArray[np.uint16] | None
    """(rows,), or None where it is not known."""

    fraction: float | None = field(default=None, init=False)
    """Of the arena that it was promised; None to compete for what is not promised."""


@dataclass(frozen=True)
class ArenaShare:
    """A fixed part of an arena; ``CacheArena.share`` makes it."""

    arena: CacheArena
    fraction: float


class CacheArena:
    """A byte budget that the caches of several tables share: node types, edge features.

    Give it to each of them as ``cache=``. By itself it goes to the rows with the highest importance
    per byte, whatever table they are of, or, where a table knows of none, to each table in
    proportion to its bytes, at least a row; ``share`` promises a table a fixed part instead. What
    each table gets is fixed when the first of them is used.

    Args:
        budget: bytes, as a number or as a text such as "8GB".

    Raises:
        ArgumentError: a budget that is not a positive number of bytes.

    >>> import numpy as np, os, tempfile
    >>> import gnnsys
    >>> folder = tempfile.mkdtemp()
    >>> papers, authors = (os.path.join(folder, name) for name in ("papers.npy", "authors.npy"))
    >>> np.save(papers, np.zeros((300, 4), np.float32))
    >>> np.save(authors, np.zeros((100, 4), np.float32))
    >>> arena = gnnsys.CacheArena(1600)
    >>> x = [gnnsys.unified(path, cache=arena) for path in (papers, authors)]
    >>> [table.store.capacity for table in x]
    [75, 25]
    """

    def __init__(self, budget: int | str) -> None:
        nbytes = parse_bytes(budget, "budget") if isinstance(budget, str) else budget
        if isinstance(nbytes, bool) or not isinstance(nbytes, int):
            raise DTypeError(f"budget: {budget!r}, expected bytes or a text such as '8GB'")
        if nbytes <= 0:
            raise ArgumentError(f"budget: {budget!r}, expected a positive number of bytes")
        self.budget = nbytes
        self._tables: list[weakref.ref[Table]] = []
        self._rows: dict[Table, int] | None = None  # once it is divided
        self._lock = threading.Lock()

    def share(self, fraction: float) -> ArenaShare:
        """A fixed part of the budget, to give to one table as ``cache=``.

        Args:
            fraction: in (0, 1].

        Raises:
            ArgumentError: another number.
        """
        if not 0 < fraction <= 1:
            raise ArgumentError(f"fraction: {fraction}, expected more than 0 and at most 1")
        return ArenaShare(self, fraction)

    def add(self, table: Table, fraction: float | None = None) -> None:
        """Lets a table take part, until it is let go of.

        Raises:
            ArgumentError: the arena is divided already, or more than the whole is promised.
        """
        with self._lock:
            if self._rows is not None:
                raise ArgumentError(
                    f"cache: {table.name} comes late to an arena of {self.budget} bytes, which was "
                    f"divided among {len(self._rows)} tables when the first was used; make all "
                    "unified tensors before the first gather"
                )
            promised = sum(other.fraction or 0.0 for other in self._members())
            if promised + (fraction or 0.0) > 1 + 1e-9:
                raise ArgumentError(
                    f"cache: {table.name} is promised {fraction} of an arena of which {promised} "
                    "is promised already; the parts must not exceed 1"
                )
            table.fraction = fraction
            self._tables.append(weakref.ref(table))

    def rows(self, table: Table) -> int:
        """Rows that ``table`` may cache; divides the arena at the first call.

        Raises:
            ArgumentError: the budget is too small for the tables.
        """
        with self._lock:
            if self._rows is None:
                self._rows = self._divide(self._members())
            return self._rows[table]

    def _members(self) -> list[Table]:
        return [table for ref in self._tables if (table := ref()) is not None]

    def _divide(self, tables: list[Table]) -> dict[Table, int]:
        rows = {
            table: _fitting(table.fraction * self.budget, table)
            for table in tables
            if table.fraction is not None
        }
        rest = [table for table in tables if table.fraction is None]
        left = self.budget * (1 - sum(table.fraction or 0.0 for table in tables))
        if all(table.importance is not None for table in rest):
            rows |= _by_value(left, rest)
        else:
            rows |= _in_proportion(int(left), rest)
        least = sum(table.row_bytes for table in tables if table.rows)
        if self.budget < least or any(
            rows[table] == 0 and table.rows for table in tables if table.importance is None
        ):
            raise ArgumentError(
                f"cache: an arena of {self.budget} bytes is too small for its {len(tables)} "
                f"tables ({', '.join(table.name for table in tables)}): one row of each takes "
                f"{least} bytes, and each needs a row in its part; give it more, or fewer tables"
            )
        return rows

    def __repr__(self) -> str:
        return f"CacheArena({self.budget} bytes, {len(self._members())} tables)"


def _fitting(nbytes: float, table: Table) -> int:
    if table.row_bytes == 0:
        return table.rows
    return min(table.rows, int(nbytes // table.row_bytes))


def _in_proportion(nbytes: int, tables: list[Table]) -> dict[Table, int]:
    """Rows of each in proportion to its bytes; one where these are for less than a row."""
    total = max(1, sum(table.rows * table.row_bytes for table in tables))
    rows = {
        table: _fitting(nbytes * table.rows * table.row_bytes // total, table) for table in tables
    }
    small = [table for table in tables if table.rows and not rows[table]]
    least = sum(table.row_bytes for table in small)
    if not small or nbytes < least:
        return rows
    others = [table for table in tables if table not in small]
    return dict.fromkeys(small, 1) | _in_proportion(nbytes - least, others)


def _by_value(nbytes: float, tables: list[Table]) -> dict[Table, int]:
    """The rows with the highest (importance + 1) / bytes, over all tables, that fit in."""
    known = [table.importance for table in tables if table.importance is not None]
    counts = [np.bincount(each, minlength=1 << 16) for each in known]
    count = np.concatenate([np.empty(0, np.int64), *counts])
    value = np.tile(np.arange(1, (1 << 16) + 1), len(tables))
    owner = np.repeat(np.arange(len(tables)), 1 << 16)
    size = np.array([table.row_bytes for table in tables], np.int64)[owner]
    best = np.argsort(-value / np.maximum(size, 1), kind="stable")
    count, size, owner = count[best], size[best], owner[best]
    before = np.cumsum(count * size) - count * size
    taken = np.clip((nbytes - before) // np.maximum(size, 1), 0, count).astype(np.int64)
    rows = np.bincount(owner, taken, minlength=len(tables)).astype(np.int64)
    return dict(zip(tables, rows.tolist(), strict=True))


def rows_of(size: Any, rows: int, row_bytes: int, option: str) -> int:
    """Rows that a user's ``size`` is for: rows, a share of all, or bytes as a text.

    >>> [rows_of(size, 1000, 512, "cache") for size in (10, 0.25, "4KB", 5000)]
    [10, 250, 8, 1000]

    Raises:
        ArgumentError, DTypeError: another value or type.
    """
    if isinstance(size, str):
        nbytes = parse_bytes(size, option)
        return min(rows, nbytes // row_bytes) if row_bytes else rows
    if isinstance(size, bool) or not isinstance(size, (int, float, np.integer, np.floating)):
        raise DTypeError(
            f"{option}: a {type(size).__name__}, expected rows (100_000), a share of the rows "
            "(0.25), or bytes ('8GB')"
        )
    if isinstance(size, (float, np.floating)):
        if not 0 < size <= 1:
            raise ArgumentError(
                f"{option}: {size}, expected a share of the rows above 0 and at most 1.0; write "
                "bytes as a text such as '8GB', and rows as a whole number"
            )
        return int(size * rows)
    if size < 0:
        raise ArgumentError(f"{option}: {size} rows, expected at least 0")
    return min(rows, int(size))


def share_bytes(share: float | Fraction, tables: Iterable[tuple[int, int]]) -> int:
    """Bytes of a share of the rows of each of several tables, which divide them as they do others.

    Args:
        share: from 0 to 1.
        tables: rows and bytes of a row of each.

    >>> share_bytes(0.1, [(100, 8), (39, 4)])
    92
    """
    return sum(int(share * rows) * row_bytes for rows, row_bytes in tables)


def check_row_of_each(nbytes: int, tables: Iterable[tuple[int, int]], option: str) -> None:
    """Whether a cache of several tables has room for a row of each.

    Args:
        nbytes: of the cache.
        tables: as of ``share_bytes``.
        option: as the user gave it.

    Raises:
        ArgumentError: it has not.

    >>> check_row_of_each(11, [(100, 8), (39, 4)], "--cache 1%")
    Traceback (most recent call last):
        ...
    gnnsys.errors.ArgumentError: --cache 1%: 11 bytes, less than one row of each of 2 tables, 12; \
give more
    """
    sizes = [*tables]
    if nbytes < (least := row_of_each(sizes)):
        one = "a row of" if len(sizes) == 1 else f"one row of each of {len(sizes)} tables,"
        raise ArgumentError(f"{option}: {nbytes} bytes, less than {one} {least}; give more")


def row_of_each(tables: Iterable[tuple[int, int]]) -> int:
    """Bytes of a row of each table that has some, and at least 1.

    >>> row_of_each([(100, 8), (0, 4)])
    8
    """
    return max(1, sum(row_bytes for rows, row_bytes in tables if rows))

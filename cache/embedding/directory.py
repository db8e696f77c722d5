"""Where each row of an embedding table is, and which slots of the cache are given to others.

Pure bookkeeping in numpy: it moves no record and reads no file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["IN_LOG", "IN_TABLE", "RowDirectory"]

IN_TABLE, IN_LOG = -1, -2
"""Places of rows that are in no slot: in the table under their id, or in cell c of the log, which
is the place ``IN_LOG - c``."""

_NO_ROW = -1
_OF_A_ROW, _OF_A_SLOT = 4, 10  # bytes
_LEAST_WINDOW = 1024  # slots that are looked at together


class RowDirectory:
    """Places of rows, and slots by the clock rule: a slot whose row was not asked for again since
    the hand last passed is the next to be given away.

    Args:
        rows: of the table.
        capacity: number of slots.

    >>> directory = RowDirectory(rows=5, capacity=2)
    >>> directory.enter(directory.choose(2, kept=np.empty(0, np.int32)), np.array([4, 1]))
    >>> directory.find(np.array([1, 4, 3])).tolist()  # slots of rows 1 and 4; 3 is in the table
    [1, 0, -1]
    """

    def __init__(self, rows: int, capacity: int) -> None:
        self.capacity = capacity
        self.places = np.full(rows, IN_TABLE, np.int32)
        """(rows,) the slot of each row; else ``IN_TABLE``, or ``IN_LOG`` less its cell."""
        self.row_of = np.full(capacity, _NO_ROW, np.int32)
        """(capacity,) the row of each slot; -1 for none."""
        self.homes = np.full(capacity, IN_TABLE, np.int32)
        """(capacity,) the place on disk of the same record, where the slot is not dirty."""
        self.dirty = np.zeros(capacity, np.bool_)
        """(capacity,) whether the record on disk is an older one."""
        self._asked = np.zeros(capacity, np.bool_)
        self._hand = 0

    @staticmethod
    def bytes_of(rows: int, capacity: int) -> int:
        """Memory that one takes.

        >>> RowDirectory.bytes_of(rows=100, capacity=10)
        500
        """
        return _OF_A_ROW * rows + _OF_A_SLOT * capacity

    def find(self, ids: NDArray[np.int64]) -> NDArray[np.int32]:
        """(n,) places of rows; their slots count as asked for again."""
        places = self.places[ids]
        self._asked[places[places >= 0]] = True
        return places

    def choose(self, count: int, kept: NDArray[np.int32]) -> NDArray[np.int64]:
        """(count,) slots for other rows.

        Args:
            count: with the distinct slots of ``kept`` at most ``capacity``.
            kept: slots that are not chosen.
        """
        taken = np.zeros(self.capacity, np.bool_)
        taken[kept] = True
        chosen: list[NDArray[np.int64]] = []
        while count:
            stop = min(self._hand + max(2 * count, _LEAST_WINDOW), self.capacity)
            busy = self._asked[self._hand : stop] | taken[self._hand : stop]
            found = self._hand + np.flatnonzero(~busy)[:count]
            end = int(found[-1]) + 1 if len(found) == count else stop
            self._asked[self._hand : end] = False
            taken[found] = True
            chosen.append(found)
            count -= len(found)
            self._hand = end % self.capacity
        return np.concatenate(chosen) if chosen else np.empty(0, np.int64)

    def vacate(self, slots: NDArray[np.int64]) -> None:
        """Takes clean slots from their rows, which are on disk alone from here on."""
        before = self.row_of[slots]
        leaving = before != _NO_ROW
        leaving[leaving] = self.places[before[leaving]] == slots[leaving]  # else it left already
        self.places[before[leaving]] = self.homes[slots[leaving]]
        self.row_of[slots] = _NO_ROW

    def enter(self, slots: NDArray[np.int64], ids: NDArray[np.int64]) -> None:
        """Gives vacated slots, which hold their records, to rows that are on disk."""
        self.homes[slots] = self.places[ids]
        self._asked[slots] = False
        self.row_of[slots] = ids
        self.places[ids] = slots  # the last: an interrupted call leaves the rows where they are

    def clean(self, slots: NDArray[np.int64], cell: int) -> None:
        """Notes that the records of slots were written to the log, from ``cell`` on."""
        self.homes[slots] = IN_LOG - (cell + np.arange(len(slots)))
        self.dirty[slots] = False

    def on_disk(self, first: int, last: int) -> NDArray[np.int32]:
        """(last - first,) places on disk of rows, none of which is dirty."""
        places = self.places[first:last].copy()
        resident = places >= 0
        places[resident] = self.homes[places[resident]]
        return places

    def count_on_slots(self) -> None:
        """Rows that are in a slot and in the log become dirty: written anew when they leave."""
        self.dirty |= (self.row_of != _NO_ROW) & (self.homes <= IN_LOG)

    def logged(self, step: int) -> Iterator[NDArray[np.int64]]:
        """The cells of the rows that are in the log alone, for each ``step`` rows, in order."""
        for first in range(0, len(self.places), step):
            places = self.places[first : first + step]
            yield IN_LOG - places[places <= IN_LOG].astype(np.int64)

    def move_in_log(self, step: int, firsts: Sequence[int]) -> None:
        """Notes that the records of ``logged(step)`` are in other cells now.

        Args:
            step: as of ``logged``.
            firsts: for each block the cell of its first record; others follow it.
        """
        for block, cell in enumerate(firsts):
            places = self.places[block * step : (block + 1) * step]
            moved = np.flatnonzero(places <= IN_LOG)
            places[moved] = IN_LOG - (cell + np.arange(len(moved)))

    def forget_log(self) -> None:
        """What is in the log is in the table, too, from now on; no slot is dirty."""
        self.places[self.places <= IN_LOG] = IN_TABLE
        self.homes[self.homes <= IN_LOG] = IN_TABLE

    def clear(self) -> None:
        """All rows are in the table, as it is, and no slot has one."""
        self.places[:], self.row_of[:], self.homes[:] = IN_TABLE, _NO_ROW, IN_TABLE
        self.dirty[:], self._asked[:], self._hand = False, False, 0

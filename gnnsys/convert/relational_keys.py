"""Primary keys of tables and the foreign keys that refer to them, as numbers of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.convert.dialect import require_pyarrow
from gnnsys.convert.names import Names
from gnnsys.convert.tables import ParquetTable
from gnnsys.convert.values import as_plain, is_string, value_type
from gnnsys.errors import FileFormatError

__all__ = ["ABSENT", "EMPTY", "ForeignKeys", "Keys"]

ABSENT = -1
"""In the place of a row: a key that no row has."""

EMPTY = -2
"""In the place of a row: no key."""

_BLOCK_ROWS = 1 << 20


class Keys:
    """The primary keys of a table.

    Keys that count the rows from 0, as those of RelBench do, take no memory; others a dictionary.

    Args:
        path: of the table, for messages.
        table: the table.
        column: of its primary keys.
        memory: bytes that the dictionary may take.

    Raises:
        FileFormatError: keys that are neither whole numbers nor strings; a row without a key, or
            with that of another.
        TooLargeError: more keys than the memory holds.
    """

    def __init__(self, path: Path, table: ParquetTable, column: str, memory: int) -> None:
        self.rows, self.column = table.rows, column
        self.names: Names | None = None
        """Of rows that are not called by their numbers."""
        self._path = path
        pa = require_pyarrow(str(path))
        self.is_text = is_string(value_type(pa, table.schema.field(column).type))
        if self.is_text or not self._count_rows(table, column):
            self.names = self._number(table, column, memory)

    def _count_rows(self, table: ParquetTable, column: str) -> bool:
        """Whether the keys are 0, 1, …"""
        row = 0
        for batch in table.batches([column], _BLOCK_ROWS):
            keys = read_keys(self._path, column, batch.column(0), row)
            if keys.null_count:
                return False
            values = keys.to_numpy()
            if (values != np.arange(row, row + len(values))).any():
                return False
            row += len(values)
        return True

    def _number(self, table: ParquetTable, column: str, memory: int) -> Names:
        names = Names(f"{self._path}: {column}", memory)
        for batch in table.batches([column], _BLOCK_ROWS):
            keys = read_keys(self._path, column, batch.column(0), len(names))
            if keys.null_count:
                row = len(names) + int(np.argmax(keys.is_null().to_numpy(zero_copy_only=False)))
                raise FileFormatError(
                    f"{self._path}: row {row} has no primary key in column {column}; give it one"
                )
            names.add_unique(keys.to_pylist())
        return names

    def find(self, path: Path, column: str, values: Any, first: int) -> NDArray[np.int64]:
        """The row that each key refers to, or ABSENT, or EMPTY.

        Args:
            path: of the table that refers to this one, for messages.
            column: of the keys.
            values: (n,) of a pyarrow array.
            first: number of the first one's row.

        Raises:
            FileFormatError: keys of another type than those of this table.
        """
        if values.null_count == len(values):
            return np.full(len(values), EMPTY, np.int64)
        keys = read_keys(path, column, values, first)
        if is_string(keys.type) != self.is_text:
            kinds = {True: "strings", False: "whole numbers"}
            raise FileFormatError(
                f"{path}: column {column} holds {kinds[not self.is_text]}, but column "
                f"{self.column} of {self._path}, which it refers to, {kinds[self.is_text]}; write "
                "both as one type"
            )
        known = keys.is_valid().to_numpy(zero_copy_only=False)
        if self.names is not None:
            rows = self.names.find(keys.filter(keys.is_valid()))
        else:
            rows = keys.filter(keys.is_valid()).to_numpy()
            rows = np.where((rows >= 0) & (rows < self.rows), rows, ABSENT)
        found = np.full(len(values), EMPTY, np.int64)
        found[known] = rows
        return found


def read_keys(path: Path, column: str, values: Any, first: int) -> Any:
    """Keys as a pyarrow array of int64 or string; floats, as pandas has beside missing ones, are
    whole numbers."""
    pa = require_pyarrow(str(path))
    plain = as_plain(path, column, values)
    if is_string(plain.type):
        return plain.cast(pa.string())
    types = pa.types
    if not any(is_it(plain.type) for is_it in (types.is_integer, types.is_floating, types.is_null)):
        raise FileFormatError(
            f"{path}: keys of {plain.type} in column {column}, expected whole numbers or strings"
        )
    if types.is_floating(plain.type):  # pandas writes NaN as null, others may not
        plain = pa.compute.if_else(pa.compute.is_nan(plain), pa.scalar(None, plain.type), plain)
        floats = np.abs(plain.cast(pa.float64()).to_numpy(zero_copy_only=False))
        limit = 1 << (np.finfo(plain.type.to_pandas_dtype()).nmant + 1)
        if (floats >= limit).any():
            place = int(np.argmax(floats >= limit))
            raise FileFormatError(
                f"{path}: row {first + place} has the key {plain[place].as_py()!r} in column "
                f"{column}, beyond the whole numbers below {limit} that {plain.type} tells apart; "
                "write the keys as Int64"
            )
    try:
        return plain.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise FileFormatError(
            f"{path}: column {column} has a key that is no whole number in the rows from {first} "
            f"on ({error}); expected whole numbers or strings"
        ) from error


@dataclass(slots=True)
class ForeignKeys:
    """A column of foreign keys.

    Args:
        path: of its table.
        table: its table.
        column: its name.
        keys: those of the table that it refers to.
    """

    path: Path
    table: ParquetTable
    column: str
    keys: Keys

    def count(self) -> tuple[int, int, str]:
        """How many rows refer to a row that is there, how many to one that is not, and the first of
        these."""
        found = absent = row = 0
        first = ""
        for batch in self.table.batches([self.column], _BLOCK_ROWS):
            rows = self.keys.find(self.path, self.column, batch.column(0), row)
            wrong = rows == ABSENT
            if wrong.any() and not absent:
                place = int(np.argmax(wrong))
                first = f"{batch.column(0)[place].as_py()!r} in row {row + place}"
            found += int((rows >= 0).sum())
            absent += int(wrong.sum())
            row += batch.num_rows
        return found, absent, first

    def edges(self, first: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Rows and the rows that they refer to, without the first ones."""
        row, left = 0, first
        for batch in self.table.batches([self.column], _BLOCK_ROWS):
            rows = self.keys.find(self.path, self.column, batch.column(0), row)
            sources = np.flatnonzero(rows >= 0)
            targets = rows[sources]
            yield row + sources[left:], targets[left:]
            left = max(0, left - len(sources))
            row += batch.num_rows

    def reversed_edges(self, first: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """The rows that are referred to, and the rows that do."""
        return ((target, source) for source, target in self.edges(first))

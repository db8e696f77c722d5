"""A table of a relational database as features and times, read in blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.convert.arrays import ReadRows
from gnnsys.convert.dialect import require_pyarrow
from gnnsys.convert.relational_columns import ColumnEncoder, LearningEncoder, Unencoded, encoder_of
from gnnsys.convert.tables import ParquetTable, rows_from
from gnnsys.convert.values import is_list, to_numbers
from gnnsys.errors import FileFormatError

__all__ = ["NEVER", "RelationalTable"]

NEVER = np.iinfo(np.int64).max
"""The time of a row without one, which is thus no neighbour of any seed."""

_BLOCK_ROWS = 1 << 16
_BLOCK_BYTES = 16 << 20


class RelationalTable:
    """A table whose columns become features.

    Args:
        path: of its Parquet file, or of a folder of parts.
        pkey: column of primary keys, which is no feature; None where there is none.
        fkeys: columns of foreign keys, which are no features.
        time: the column that says when each row came to be; None for rows that always were.
        hidden: columns that a model must not see.
        cut: microseconds since 1970 up to which rows give statistics; those of
            a table without a time column do, too.
        categories: values of a column that have a column of features each.

    Raises:
        MissingFileError, FileFormatError: no such file, or not of Parquet; a column that is not
            there; times that are none.
    """

    def __init__(
        self,
        path: Path,
        *,
        pkey: str | None,
        fkeys: Set[str],
        time: str | None,
        hidden: Set[str],
        cut: int,
        categories: int,
    ) -> None:
        self.path, self.table = path, ParquetTable(path)
        self.rows = self.table.rows
        self._time, self._cut = time, cut
        keys = {*([pkey] if pkey else []), *fkeys}
        named = {*keys, *([time] if time else [])}
        absent = sorted(named.difference(self.table.names))
        if absent:
            raise FileFormatError(
                f"{path}: no column {absent[0]}, which a manifest names; it has "
                f"{', '.join(self.table.names) or 'none'}"
            )
        if time is not None:
            self._check_time(time)
        names = [name for name in self.table.names if name not in keys - (hidden & fkeys)]
        widths = self._list_widths(names)
        self._encoders: dict[str, ColumnEncoder] = {
            name: Unencoded("a task hides it")
            if name in hidden
            else encoder_of(path, self.table.schema.field(name), categories, widths.get(name, 0))
            for name in names
        }
        self._shown = [name for name, it in self._encoders.items() if not isinstance(it, Unencoded)]

    def _check_time(self, column: str) -> None:
        pa = require_pyarrow(str(self.path))
        kind = self.table.schema.field(column).type
        types = pa.types
        if not (types.is_timestamp(kind) or types.is_date(kind)):
            raise FileFormatError(
                f"{self.path}: the time column {column} is {kind}, expected timestamps or dates"
            )

    def _list_widths(self, names: list[str]) -> dict[str, int]:
        """How long the first list of each column is that is not empty."""
        pa = require_pyarrow(str(self.path))
        listed = [name for name in names if is_list(pa, self.table.schema.field(name).type)]
        widths: dict[str, int] = {}
        for name in listed:
            for batch in self.table.batches([name], _BLOCK_ROWS):
                lengths = pa.compute.list_value_length(batch.column(0)).drop_null().to_numpy()
                if lengths.any():
                    widths[name] = int(lengths[np.argmax(lengths > 0)])
                    break
        return widths

    # Times ----------------------------------------------------------------------------------------

    @property
    def has_times(self) -> bool:
        """Whether rows have times."""
        return self._time is not None

    def times(self, first: int = 0) -> Iterator[NDArray[np.int64]]:
        """Microseconds since 1970 of the rows from ``first`` on; NEVER where a row has no time.

        Raises:
            FileFormatError: rows that are not in the order of their times.
        """
        assert self._time is not None
        last, row = np.iinfo(np.int64).min, 0
        for batch in self.table.batches([self._time], _BLOCK_ROWS):
            times = read_times(self.path, self._time, batch.column(0), row)
            earlier = times < np.concatenate([[last], times[:-1]])[: len(times)]
            if earlier.any():
                place = row + int(np.argmax(earlier))
                raise FileFormatError(
                    f"{self.path}: row {place} is earlier by column {self._time} than the row "
                    "before it; sort the rows by time, those without a time last, as RelBench's "
                    "reindex_dataset.py does, so that temporal sampling finds them"
                )
            if len(times):
                last = times[-1]
            if row + len(times) > first:
                yield times[max(0, first - row) :]
            row += len(times)

    def count_without_time(self) -> int:
        """Rows whose time is missing."""
        if self._time is None:
            return 0
        columns = self.table.batches([self._time], _BLOCK_ROWS)
        return sum(batch.column(0).null_count for batch in columns)

    # Features -------------------------------------------------------------------------------------

    def take_statistics(self) -> int:
        """Shows the encoders the rows up to the cut; returns how many these are."""
        learning = {
            name: encoder
            for name, encoder in self._encoders.items()
            if isinstance(encoder, LearningEncoder)
        }
        columns = list(dict.fromkeys([*learning, *([self._time] if self._time else [])]))
        taken = row = 0
        pa = require_pyarrow(str(self.path))
        for batch in self.table.batches(columns, _BLOCK_ROWS) if columns else ():
            known = batch
            if self._time is not None:
                times = read_times(self.path, self._time, batch.column(self._time), row)
                known = batch.filter(pa.array(times <= self._cut))
            for name, encoder in learning.items():
                encoder.add(known.column(name))
            taken += known.num_rows
            row += batch.num_rows
        return taken

    def features(self) -> ReadRows:
        """(rows, features) float32, once statistics are taken."""
        return ReadRows(self._encode, (self.rows, self._width()), np.dtype(np.float32))

    def _width(self) -> int:
        return sum(self._encoders[name].width for name in self._shown)

    def _encode(self, first: int) -> Iterator[NDArray[np.float32]]:
        """Features of the rows from ``first`` on."""
        step = max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // (4 * max(1, self._width()))))
        row = first
        shown = [name for name in self._shown if self._encoders[name].width]
        for batch in rows_from(self.table.batches(shown, step), first):
            parts = [self._encoders[name].encode(batch.column(name), row) for name in shown]
            yield np.concatenate(parts, axis=1)
            row += batch.num_rows

    def feature_names(self) -> list[str]:
        """The column that each column of features is made of."""
        return [name for name in self._shown for _ in range(self._encoders[name].width)]

    def about(self) -> dict[str, dict[str, Any]]:
        """What each column became, by name: its kind, its first column of features, how many."""
        told: dict[str, dict[str, Any]] = {}
        first = 0
        for name, encoder in self._encoders.items():
            kind = encoder.kind if encoder.width else Unencoded.kind
            told[name] = {"kind": kind, **encoder.about()}
            if encoder.width:
                told[name] |= {"first": first, "width": encoder.width}
                first += encoder.width
        return told


def read_times(path: Path, column: str, values: Any, row: int) -> NDArray[np.int64]:
    """Microseconds since 1970; NEVER where there is none."""
    known = values.is_valid().to_numpy(zero_copy_only=False)
    times = np.full(len(values), NEVER, np.int64)
    times[known] = to_numbers(path, column, values.drop_null(), row=row, gaps=False, times=True)
    return times

"""What the columns of a relational table become as features, by their type.

Each kind of column is an encoder: it is shown the rows that statistics may be taken of, once, in
blocks, and encodes any rows afterwards. Encoders hold no rows.

=================  ==============================================================================
numeric            (x - mean) / standard deviation; 0 where it is missing
categorical        one column for each of the most frequent values, and one for all others
multi-categorical  the same of lists: 1 for each value in the list
timestamp          days since 1970 as a numeric column, and the sine and cosine of the time of day,
                   of the day in the week and of the day in the year
embedding          lists of floats of one length, as they are; 0 where it is missing
=================  ==============================================================================

A numeric column or a timestamp that is missing in some of the rows that statistics are taken of has
one column more, 1 where it is missing.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from gnnsys.convert.dialect import require_pyarrow
from gnnsys.convert.values import (
    as_plain,
    as_stamps,
    is_list,
    is_string,
    number_type,
    to_rows,
    value_type,
)
from gnnsys.errors import FileFormatError

__all__ = ["ColumnEncoder", "LearningEncoder", "Moments", "Unencoded", "encoder_of"]

_DAY = 86_400_000_000
"""Microseconds."""
_THURSDAY = 3  # days from Monday to that on which 1970 began
_MOST_NUMBER = 1e150
"""Beyond it float64 does not hold squares."""
_WAY_OUT = "mend it, or leave it empty"
_MOST_VALUES = 1 << 16
"""Distinct values beyond which a column has no categories, however often they come again."""


class ColumnEncoder(Protocol):
    """One column as features."""

    kind: str

    @property
    def width(self) -> int:
        """Columns of features, once all statistics are taken; 0 where it cannot be encoded."""

    def encode(self, column: Any, row: int) -> NDArray[np.float32]:
        """(n, width) features of a block that begins with row number ``row``."""

    def about(self) -> dict[str, Any]:
        """What the columns of features are, JSON-able."""


@runtime_checkable
class LearningEncoder(Protocol):
    """What a ``ColumnEncoder`` has besides whose features depend on statistics."""

    def add(self, column: Any) -> None:
        """Takes the statistics of a block, a pyarrow array."""


class Unencoded:
    """A column that no features are made of."""

    kind = "left out"
    width = 0

    def __init__(self, why: str) -> None:
        self._why = why

    def encode(self, column: Any, row: int) -> NDArray[np.float32]:
        """(n, 0)"""
        return np.empty((len(column), 0), np.float32)

    def about(self) -> dict[str, Any]:
        """Why."""
        return {"why": self._why}


class Moments:
    """Mean and standard deviation (of the population) of numbers that come in blocks, by the
    pairwise update of Chan, Golub and LeVeque (1979).

    >>> moments = Moments()
    >>> moments.add(np.array([1.0, 2.0]))
    >>> moments.add(np.array([6.0]))
    >>> moments.mean, round(moments.deviation, 4)
    (3.0, 2.1602)
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0
        self._least, self._most = np.inf, -np.inf

    def add(self, values: NDArray[np.float64]) -> None:
        """Takes finite numbers, whose squares are finite, too."""
        if not len(values):
            return
        self._least = min(self._least, float(values.min()))
        self._most = max(self._most, float(values.max()))
        mean = float(values.mean())
        apart, total = mean - self.mean, self.count + len(values)
        self._squares += float(np.square(values - mean).sum())
        self._squares += apart * apart * self.count * len(values) / total
        self.mean += apart * len(values) / total
        self.count = total

    @property
    def deviation(self) -> float:
        """1 where all numbers are the same, or there are none."""
        # Of equal numbers that no float holds, as 0.1, rounding leaves squares.
        same = self._least >= self._most or self._squares <= 0
        return 1.0 if same else float(np.sqrt(self._squares / self.count))

    def scale(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """In standard deviations from the mean."""
        return (values - self.mean) / self.deviation

    def about(self) -> dict[str, float]:
        """Both, by name."""
        return {"mean": self.mean, "deviation": self.deviation}


class _Numeric:
    kind = "numeric"

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        self._moments, self._missing = Moments(), 0

    def _values(self, column: Any) -> NDArray[np.float64]:
        """NaN where it is missing."""
        pa = require_pyarrow(str(self._path))
        plain = as_plain(self._path, self._name, column)
        values: NDArray[np.float64] = plain.cast(pa.float64(), safe=False).to_numpy(
            zero_copy_only=False
        )
        return np.where(np.isfinite(values), values, np.nan)

    def add(self, column: Any) -> None:
        values = self._values(column)
        missing = np.isnan(values)
        huge = np.abs(values) > _MOST_NUMBER
        if huge.any():
            raise FileFormatError(
                f"{self._path}: column {self._name} has {values[np.argmax(huge)]}, expected "
                f"numbers up to {_MOST_NUMBER}, of which there is a mean; {_WAY_OUT}"
            )
        self._moments.add(values[~missing])
        self._missing += int(missing.sum())

    @property
    def width(self) -> int:
        return 1 + (self._missing > 0)

    def encode(self, column: Any, row: int) -> NDArray[np.float32]:
        values = self._values(column)
        missing = np.isnan(values)
        scaled = np.where(missing, 0, self._moments.scale(values))
        huge = np.abs(scaled) > np.finfo(np.float32).max
        if huge.any():
            place = int(np.argmax(huge))
            raise FileFormatError(
                f"{self._path}: row {row + place} has {values[place]} in column {self._name}, "
                f"{scaled[place]:.3g} standard deviations from the mean, more than float32 holds; "
                f"{_WAY_OUT}"
            )
        return _side_by_side([scaled, missing][: self.width])

    def about(self) -> dict[str, Any]:
        return {**self._moments.about(), "missing": self._missing}


class _Timestamp:
    kind = "timestamp"

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        self._moments, self._missing = Moments(), 0

    def _values(self, column: Any) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Microseconds since 1970, and where they are missing."""
        stamps = as_stamps(self._path, self._name, column, exact=False)
        missing = stamps.is_null().to_numpy(zero_copy_only=False)
        return stamps.fill_null(0).to_numpy(), missing

    def add(self, column: Any) -> None:
        stamps, missing = self._values(column)
        self._moments.add(stamps[~missing] / _DAY)
        self._missing += int(missing.sum())

    @property
    def width(self) -> int:
        return 7 + (self._missing > 0)

    def encode(self, column: Any, row: int) -> NDArray[np.float32]:
        stamps, missing = self._values(column)
        days = stamps // _DAY
        of_day = (stamps % _DAY) / _DAY
        dates = days.astype("datetime64[D]")
        years = dates.astype("datetime64[Y]")
        begin, end = (each.astype("datetime64[D]") for each in (years, years + 1))
        of_year = ((dates - begin).astype(np.int64) + of_day) / (end - begin).astype(np.int64)
        turns = [of_day, ((days + _THURSDAY) % 7 + of_day) / 7, of_year]
        waves = [wave(2 * np.pi * turn) for turn in turns for wave in (np.sin, np.cos)]
        features = _side_by_side([self._moments.scale(stamps / _DAY), *waves])
        features[missing] = 0
        return _side_by_side([features, missing][: 1 + (self._missing > 0)])

    def about(self) -> dict[str, Any]:
        parts = ["days", *(f"{wave} {of}" for of in ("day", "week", "year") for wave in _WAVES)]
        return {**self._moments.about(), "missing": self._missing, "columns": parts}


_WAVES = ("sin", "cos")


class _Categorical:
    kind = "categorical"

    def __init__(self, path: Path, most: int, *, may_be_text: bool) -> None:
        self._path, self._most, self._may_be_text = path, most, may_be_text
        self._counts: Counter[Any] = Counter()
        self._known = 0
        self._too_many = False
        self._table: dict[Any, int] | None = None

    def _flat(self, column: Any) -> tuple[Any, NDArray[np.int64]]:
        """The values that are there, and the row of each in the block."""
        values = _decode(self._path, column)
        there = _is_there(self._path, values)
        return values.filter(there), np.flatnonzero(there.to_numpy(zero_copy_only=False))

    def add(self, column: Any) -> None:
        if self._too_many:
            return
        values, _ = self._flat(column)
        counts = values.value_counts()
        found, times = (counts.field(place).to_pylist() for place in range(2))
        for value, count in zip(found, times, strict=True):
            self._counts[value] += count
        self._known += len(values)
        if len(self._counts) > _MOST_VALUES:
            self._too_many = True
            self._counts.clear()

    @property
    def _why(self) -> str:
        """Why there are no categories; empty where there are."""
        distinct = len(self._counts)
        way_out = "; embed text before" if self._may_be_text else ""
        if self._too_many:
            return f"too many distinct values, more than {_MOST_VALUES}{way_out}"
        unlike = distinct > self._most and 2 * distinct > self._known
        return f"{distinct} distinct values{way_out}" if self._may_be_text and unlike else ""

    @property
    def _places(self) -> dict[Any, int]:
        """The column of features of each frequent value."""
        if self._table is None:
            ranked = sorted(self._counts.items(), key=lambda each: (-each[1], str(each[0])))
            self._table = {value: at for at, (value, _) in enumerate(ranked[: self._most])}
        return self._table

    @property
    def width(self) -> int:
        return 0 if self._why else len(self._places) + 1

    def encode(self, column: Any, row: int) -> NDArray[np.float32]:
        features = np.zeros((len(column), self.width), np.float32)
        values, rows = self._flat(column)
        if not len(values) or not self.width:
            return features
        encoded = values.dictionary_encode()
        other = len(self._places)
        places = [self._places.get(value, other) for value in encoded.dictionary.to_pylist()]
        features[rows, np.array(places, np.int64)[encoded.indices.to_numpy()]] = 1
        return features

    def about(self) -> dict[str, Any]:
        if self._why:
            return {"why": self._why}
        return {"values": [_plain(value) for value in self._places], "others": "the last column"}


class _MultiCategorical(_Categorical):
    kind = "multi-categorical"

    def _flat(self, column: Any) -> tuple[Any, NDArray[np.int64]]:
        pa = require_pyarrow(str(self._path))
        values = _decode(self._path, column.flatten())
        rows = pa.compute.list_parent_indices(column).to_numpy()
        there = _is_there(self._path, values)
        return values.filter(there), rows[there.to_numpy(zero_copy_only=False)]


class _Embedding:
    kind = "embedding"

    def __init__(self, path: Path, name: str, width: int) -> None:
        self._path, self._name, self.width = path, name, width

    def encode(self, column: Any, row: int) -> NDArray[np.float32]:
        return to_rows(self._path, self._name, column, row=row, width=self.width, missing=0)

    def about(self) -> dict[str, Any]:
        return {}


def encoder_of(path: Path, field: Any, most: int, width: int) -> ColumnEncoder:
    """The encoder of a column.

    Args:
        path: of the table, for messages.
        field: of its pyarrow schema.
        most: categories that have a column of features each.
        width: length of its first list that is not empty, where it has lists.

    Raises:
        FileFormatError: a type that mixes others.
    """
    pa = require_pyarrow(str(path))
    kind, types = field.type, pa.types
    if types.is_union(kind):
        raise FileFormatError(
            f"{path}: column {field.name} mixes types ({kind}), expected one; write it as strings"
        )
    if types.is_dictionary(kind) or is_string(kind):
        return _Categorical(path, most, may_be_text=is_string(kind))
    if types.is_timestamp(kind) or types.is_date(kind):
        return _Timestamp(path, field.name)
    if not is_list(pa, kind):
        numbers = number_type(pa, kind) is not None
        return _Numeric(path, field.name) if numbers else Unencoded(f"of type {kind}")
    inner = value_type(pa, kind.value_type)
    if types.is_floating(inner) or types.is_decimal(inner):
        return _Embedding(path, field.name, width) if width else Unencoded("no lists in it")
    if is_string(inner) or types.is_integer(inner):
        return _MultiCategorical(path, most, may_be_text=False)
    return Unencoded(f"of type {kind}")


def _decode(path: Path, column: Any) -> Any:
    """Without dictionaries."""
    pa = require_pyarrow(str(path))
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _is_there(path: Path, values: Any) -> Any:
    """Where values are neither missing nor NaN."""
    pa = require_pyarrow(str(path))
    if not pa.types.is_floating(values.type):
        return values.is_valid()
    return pa.compute.fill_null(pa.compute.invert(pa.compute.is_nan(values)), False)


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) else str(value)


def _side_by_side(parts: list[NDArray[Any]]) -> NDArray[np.float32]:
    columns = [part if part.ndim == 2 else part[:, None] for part in parts]
    return np.concatenate(columns, axis=1, dtype=np.float32, casting="unsafe")

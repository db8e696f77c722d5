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
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gnnsys.convert.dialect import require_pyarrow
from gnnsys.convert.values import as_plain, is_string, number_type, to_numbers, value_type
from gnnsys.errors import FileFormatError

__all__ = ["ColumnEncoder", "Moments", "Unencoded", "encoder_of"]

_DAY = 86_400_000_000
"""Microseconds."""
_THURSDAY = 3  # days from Monday to that on which 1970 began
_MOST_VALUES = 1 << 16
"""Distinct values beyond which a column has no categories, however often they come again."""


class ColumnEncoder(Protocol):
    """One column as features."""

    kind: str

    def add(self, column: Any, row: int) -> None:
        """Takes the statistics of a block, a pyarrow array that begins with row number ``row``."""

    @property
    def width(self) -> int:
        """Columns of features, once all blocks are added; 0 where it cannot be encoded."""

    def encode(self, column: Any, row: int) -> NDArray[np.float32]:
        """(n, width) features of a block."""

    def about(self) -> dict[str, Any]:
        """What the columns of features are, JSON-able."""


class Unencoded:
    """A column that no features are made of."""

    kind = "left out"
    width = 0

    def __init__(self, why: str) -> None:
        self._why = why

    def add(self, column: Any, row: int) -> None:
        """Takes nothing."""

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

    def add(self, values: NDArray[np.float64]) -> None:
        """Takes finite numbers."""
        if not len(values):
            return
        mean = float(values.mean())
        apart, total = mean - self.mean, self.count + len(values)
        self._squares += float(np.square(values - mean).sum())
        self._squares += apart * apart * self.count * len(values) / total
        self.mean += apart * len(values) / total
        self.count = total

    @property
    def deviation(self) -> float:
        """1 where all numbers are the same, or there are none."""
        return float(np.sqrt(self._squares / self.count)) if self._squares > 0 else 1.0

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

    def add(self, column: Any, row: int) -> None:
        values = self._values(column)
        missing = np.isnan(values)
        self._moments.add(values[~missing])
        self._missing += int(missing.sum())

    @property
    def width(self) -> int:
        return 1 + (self._missing > 0)

    def encode(self, column: Any, row: int) -> NDArray[np.float32]:
        values = self._values(column)
        missing = np.isnan(values)
        scaled = np.where(missing, 0, self._moments.scale(values))
        return _side_by_side([scaled, missing][: self.width])

    def about(self) -> dict[str, Any]:
        return {**self._moments.about(), "missing": self._missing}


class _Timestamp:
    kind = "timestamp"

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._moments, self._missing = Moments(), 0

    def _values(self, column: Any) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Microseconds since 1970, and where they are missing."""
        pa = require_pyarrow(str(self._path))
        kind = pa.timestamp("us", getattr(column.type, "tz", None))
        stamps = column.cast(kind, safe=False).cast(pa.int64())
        missing = stamps.is_null().to_numpy(zero_copy_only=False)
        return stamps.fill_null(0).to_numpy(), missing

    def add(self, column: Any, row: int) -> None:
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
        self._table: dict[Any, int] | None = None

    def _flat(self, column: Any) -> tuple[Any, NDArray[np.int64]]:
        """The values that are there, and the row of each in the block."""
        valid = column.is_valid()
        return column.filter(valid), np.flatnonzero(valid.to_numpy(zero_copy_only=False))

    def add(self, column: Any, row: int) -> None:
        if len(self._counts) > _MOST_VALUES:
            return
        values, _ = self._flat(_decode(column))
        counts = values.value_counts()
        found, times = (counts.field(place).to_pylist() for place in range(2))
        for value, count in zip(found, times, strict=True):
            self._counts[value] += count
        self._known += len(values)

    @property
    def _is_text(self) -> bool:
        distinct = len(self._counts)
        unlike = distinct > self._most and 2 * distinct > self._known
        return distinct > _MOST_VALUES or (self._may_be_text and unlike)

    @property
    def _places(self) -> dict[Any, int]:
        """The column of features of each frequent value."""
        if self._table is None:
            ranked = sorted(self._counts.items(), key=lambda each: (-each[1], str(each[0])))
            self._table = {value: at for at, (value, _) in enumerate(ranked[: self._most])}
        return self._table

    @property
    def width(self) -> int:
        return 0 if self._is_text else len(self._places) + 1

    def encode(self, column: Any, row: int) -> NDArray[np.float32]:
        features = np.zeros((len(column), self.width), np.float32)
        values, rows = self._flat(_decode(column))
        if not len(values) or not self.width:
            return features
        encoded = values.dictionary_encode()
        other = len(self._places)
        places = [self._places.get(value, other) for value in encoded.dictionary.to_pylist()]
        features[rows, np.array(places, np.int64)[encoded.indices.to_numpy()]] = 1
        return features

    def about(self) -> dict[str, Any]:
        if self._is_text:
            return {"why": f"{len(self._counts)} or more distinct values; embed text before"}
        return {"values": [_plain(value) for value in self._places], "others": "the last column"}


class _MultiCategorical(_Categorical):
    kind = "multi-categorical"

    def _flat(self, column: Any) -> tuple[Any, NDArray[np.int64]]:
        pa = require_pyarrow(str(self._path))
        values = _decode(column.flatten())
        rows = pa.compute.list_parent_indices(column).to_numpy()
        valid = values.is_valid()
        return values.filter(valid), rows[valid.to_numpy(zero_copy_only=False)]


class _Embedding:
    kind = "embedding"

    def __init__(self, path: Path, name: str, width: int) -> None:
        self._path, self._name, self.width = path, name, width

    def add(self, column: Any, row: int) -> None:
        """Takes nothing."""

    def encode(self, column: Any, row: int) -> NDArray[np.float32]:
        pa = require_pyarrow(str(self._path))
        valid = column.is_valid()
        at = np.flatnonzero(valid.to_numpy(zero_copy_only=False))
        known = column.filter(valid)
        lengths = pa.compute.list_value_length(known).to_numpy(zero_copy_only=False)
        wrong = lengths != self.width
        if wrong.any():
            place = int(np.argmax(wrong))
            raise FileFormatError(
                f"{self._path}: row {row + at[place]} has a list of {lengths[place]} in column "
                f"{self._name}, expected {self.width} numbers, as in the first list"
            )
        features = np.zeros((len(column), self.width), np.float32)
        features[at] = to_numbers(
            self._path, self._name, known, row=row, gaps=True, width=self.width
        )
        return features

    def about(self) -> dict[str, Any]:
        return {}


def encoder_of(path: Path, field: Any, most: int, width: int) -> ColumnEncoder:
    """The encoder of a column.

    Args:
        path: of the table, for messages.
        field: of its pyarrow schema.
        most: categories that have a column of features each.
        width: length of its first list, where it has lists.

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
    if not hasattr(kind, "value_field"):
        numbers = number_type(pa, kind) is not None
        return _Numeric(path, field.name) if numbers else Unencoded(f"of type {kind}")
    inner = value_type(pa, kind.value_type)
    if types.is_floating(inner) or types.is_decimal(inner):
        return _Embedding(path, field.name, width) if width else Unencoded("no lists in it")
    if is_string(inner) or types.is_integer(inner):
        return _MultiCategorical(path, most, may_be_text=False)
    return Unencoded(f"of type {kind}")


def _decode(column: Any) -> Any:
    return column.dictionary_decode() if hasattr(column, "dictionary_decode") else column


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) else str(value)


def _side_by_side(parts: list[NDArray[Any]]) -> NDArray[np.float32]:
    columns = [part if part.ndim == 2 else part[:, None] for part in parts]
    return np.concatenate(columns, axis=1, dtype=np.float32, casting="unsafe")

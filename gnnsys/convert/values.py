"""What the values of a table's column are as numbers, by their type.

Owns the rules: dictionaries are their values; decimals whole numbers where they have no fractions,
else the nearest floats; dates and timestamps are days since 1970 as floats, or, as times, whole
microseconds since 1970, in UTC where they have no time zone; lists of one length are columns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.convert.dialect import require_pyarrow
from gnnsys.errors import FileFormatError

__all__ = [
    "as_plain",
    "as_stamps",
    "is_list",
    "is_string",
    "number_type",
    "text_type",
    "to_numbers",
    "to_rows",
    "value_type",
]

_TRUTHS = {"true", "false", "True", "False", "TRUE", "FALSE"}
_DATE = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d(:?\d\d)?)?)?")
_DAY = 86_400_000_000
"""Microseconds."""


def value_type(pa: Any, kind: Any) -> Any:
    """A column's type; that of the values where it is a dictionary."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_string(kind: Any) -> bool:
    """Whether a type of pyarrow is one of its strings."""
    return str(kind) in ("string", "large_string", "string_view")


def is_list(pa: Any, kind: Any) -> bool:
    """Whether a type of pyarrow is one of its lists."""
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_time(pa: Any, kind: Any) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def number_type(pa: Any, kind: Any, times: bool = False) -> np.dtype[Any] | None:
    """numpy's type of a column's numbers, or of those in its lists; None where it has none."""
    kind = value_type(pa, kind)
    if is_list(pa, kind):
        inner = value_type(pa, kind.value_type)
        return None if is_list(pa, inner) else number_type(pa, inner)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return np.dtype(kind.to_pandas_dtype())
    if pa.types.is_decimal(kind):
        return np.dtype(np.int64 if kind.scale <= 0 else np.float64)
    if _is_time(pa, kind):
        return np.dtype(np.int64 if times else np.float64)
    return None


def text_type(pa: Any, values: Sequence[str], otherwise: Any) -> Any:
    """The type of a column of text by its first values: truths, timestamps, or ``otherwise``."""
    found = [value for value in values if value]
    if found and _TRUTHS.issuperset(found):
        return pa.bool_()
    dates = [_DATE.fullmatch(value) for value in found]
    if not found or not all(dates):
        return otherwise
    zoned = all(date is not None and date.group(4) for date in dates)
    return pa.timestamp("us", "UTC" if zoned else None)


def as_plain(path: Path, name: str, column: Any) -> Any:
    """A pyarrow array without dictionaries and decimals.

    Raises:
        FileFormatError: a decimal beyond int64.
    """
    pa = require_pyarrow(str(path))
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not pa.types.is_decimal(column.type):
        return column
    try:
        # By way of text: pyarrow's own cast is off by one in the last place of some.
        kind = pa.int64() if column.type.scale <= 0 else pa.float64()
        return column.cast(kind if column.type.scale <= 0 else pa.string()).cast(kind)
    except pa.ArrowInvalid as error:
        raise FileFormatError(
            f"{path}: column {name} holds {column.type} beyond int64 ({error}); number its values "
            "anew, or write them as floats"
        ) from error


def to_numbers(
    path: Path,
    name: str,
    column: Any,
    *,
    row: int,
    gaps: bool,
    width: int = 0,
    times: bool = False,
) -> NDArray[Any]:
    """A column's (rows,) numbers, or (rows, width) of lists.

    Args:
        path: of the file, for messages.
        name: of the column.
        column: a pyarrow array of a type that ``number_type`` knows.
        row: number of its first row.
        gaps: whether missing numbers are NaN; else they are errors.
        width: of lists.
        times: whether dates are times.

    Raises:
        FileFormatError: lists of another length, values that are lost, or missing whole numbers.
    """
    pa = require_pyarrow(str(path))
    column = as_plain(path, name, column)
    if is_list(pa, column.type):
        lengths = pa.compute.fill_null(pa.compute.list_value_length(column), -1).to_numpy()
        lengths = np.where(column.is_valid().to_numpy(zero_copy_only=False), lengths, -1)
        if (lengths != width).any():
            place = int(np.argmax(lengths != width))
            found = "nothing" if lengths[place] < 0 else f"a list of {lengths[place]}"
            raise FileFormatError(
                f"{path}: row {row + place} has {found} in column {name}, expected a list of "
                f"{width} numbers, as in the first row"
            )
        inner = to_numbers(path, name, column.flatten(), row=row, gaps=gaps)
        return inner.reshape(-1, width)
    if _is_time(pa, column.type):
        column = _as_time(pa, path, name, column, times)
    may_lack = pa.types.is_floating(column.type) or (gaps and pa.types.is_integer(column.type))
    if column.null_count and not may_lack:
        place = row + pa.compute.index(column.is_null(), True).as_py()
        way_out = "fill them in" if times else "fill them in, or make it a column of floats"
        raise FileFormatError(
            f"{path}: column {name} has {column.null_count} empty entries, expected numbers; "
            f"{way_out}; the first is in row {place}"
        )
    values: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return values


def to_rows(
    path: Path, name: str, column: Any, *, row: int, width: int, missing: float
) -> NDArray[np.float32]:
    """(rows, width) of a column of lists, of which some are missing; what is missing in a list is
    NaN.

    Args:
        path: of the file, for messages.
        name: of the column.
        column: a pyarrow array of lists of numbers.
        row: number of its first row.
        width: of lists.
        missing: what a row is filled with that has no list.

    Raises:
        FileFormatError: lists of another length.
    """
    pa = require_pyarrow(str(path))
    valid = column.is_valid()
    at = np.flatnonzero(valid.to_numpy(zero_copy_only=False))
    known = column.filter(valid)
    lengths = pa.compute.list_value_length(known).to_numpy(zero_copy_only=False)
    wrong = lengths != width
    if wrong.any():
        place = int(np.argmax(wrong))
        raise FileFormatError(
            f"{path}: row {row + at[place]} has a list of {lengths[place]} in column {name}, "
            f"expected {width} numbers, as in the first list; leave it empty (null) where it is "
            "unknown"
        )
    rows = np.full((len(column), width), missing, np.float32)
    rows[at] = to_numbers(path, name, known, row=row, gaps=True, width=width)
    return rows


def as_stamps(path: Path, name: str, column: Any, *, exact: bool) -> Any:
    """Dates or timestamps as a pyarrow array of microseconds since 1970.

    Args:
        path: of the file, for messages.
        name: of the column.
        column: a pyarrow array.
        exact: whether finer times are errors; else they are cut.

    Raises:
        FileFormatError: times that are finer.
    """
    pa = require_pyarrow(str(path))
    zone = getattr(column.type, "tz", None)
    try:
        return column.cast(pa.timestamp("us", zone), safe=exact).cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise FileFormatError(
            f"{path}: column {name} has times finer than microseconds, their unit ({error}); "
            "round them, or write them as whole numbers of your own unit"
        ) from error


def _as_time(pa: Any, path: Path, name: str, column: Any, times: bool) -> Any:
    stamps = as_stamps(path, name, column, exact=times)
    return stamps if times else pa.compute.divide(stamps.cast(pa.float64(), safe=False), _DAY)

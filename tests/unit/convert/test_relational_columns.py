"""Encoders of columns, type by type."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gnnsys.convert import relational_columns
from gnnsys.convert.relational_columns import ColumnEncoder, LearningEncoder, Moments, encoder_of
from gnnsys.errors import FileFormatError

PATH = Path("table.parquet")


def encoder_for(column: Any, most: int = 3, width: int = 0) -> ColumnEncoder:
    """That has seen the column."""
    encoder = encoder_of(PATH, pa.field("column", column.type), most, width)
    if isinstance(encoder, LearningEncoder):
        encoder.add(column)
    return encoder


def encode(column: Any, most: int = 3, width: int = 0) -> list[list[float]]:
    """A column by its own statistics."""
    encoder = encoder_for(column, most, width)
    found = encoder.encode(column, 0)
    assert found.shape == (len(column), encoder.width)
    return found.tolist()


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, None, 3], pa.int8()),
        pa.array([True, None, False]),
        pa.array([Decimal("-0.5"), None, Decimal("1.5")]),
        pa.array([2.0, np.inf, 4.0]),
        pa.array([2.0, np.nan, 4.0], pa.float32()),
        pa.array([1 << 62, None, 0], pa.uint64()),
    ],
    ids=lambda column: str(column.type),
)
def test_numbers_of_any_type_are_scaled_and_gaps_told(column: Any) -> None:
    first, gap, last = encode(column)
    assert gap == [0, 1]
    assert sorted([first[0], last[0]]) == [-1, 1]
    assert first[1] == last[1] == 0


def test_a_constant_and_a_gap_that_was_not_seen_before_are_zero() -> None:
    encoder = encoder_for(pa.array([7, 7]))
    assert encoder.encode(pa.array([7, 8, None]), 0).tolist() == [[0], [1], [0]]


@pytest.mark.parametrize(("value", "count"), [(0.1, 3), (19.99, 10), (-1e-170, 5)])
def test_a_constant_that_no_float_holds_is_one_too(value: float, count: int) -> None:
    encoder = encoder_for(pa.array([value] * count))
    found = encoder.encode(pa.array([value, value + 1]), 0)[:, 0]
    np.testing.assert_allclose(found, [0, 1], atol=1e-6)


def test_numbers_that_no_feature_holds_are_errors() -> None:
    with pytest.raises(FileFormatError, match=r"column column has -1e\+200, expected numbers up"):
        encoder_for(pa.array([1.0, -1e200]))
    with pytest.raises(FileFormatError, match=r"row 8 has 1e\+39 in column column, 2e\+39 stand"):
        encoder_for(pa.array([1.0, 2.0])).encode(pa.array([1.0, 1e39]), 7)


def test_moments_do_not_depend_on_blocks() -> None:
    random = np.random.default_rng(3)
    values = random.normal(1e6, 1e-2, 1000)
    for cuts in ([], [1], [0, 500], sorted(random.integers(0, 1000, 50))):
        moments = Moments()
        for block in np.split(values, cuts):
            moments.add(block)
        assert moments.mean == pytest.approx(values.mean(), rel=1e-15)
        assert moments.deviation == pytest.approx(values.std(), rel=1e-6)


def test_dictionaries_are_categories_whatever_they_hold() -> None:
    numbers = pa.array([5, 9, 5, None, 7]).dictionary_encode()
    # 5 stands twice, 7 comes before 9.
    assert encode(numbers, most=2) == [[1, 0, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0], [0, 1, 0]]
    words = pa.array(["b", "a", "b"]).dictionary_encode()
    assert encode(words) == encode(pa.array(["b", "a", "b"])) == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]


def test_nan_is_no_category() -> None:
    numbers = pa.array([np.nan, 2.0, np.nan]).dictionary_encode()
    assert encode(numbers) == [[0, 0], [1, 0], [0, 0]]
    assert encoder_for(numbers).about()["values"] == [2.0]


def test_values_that_were_not_seen_are_others() -> None:
    encoder = encoder_for(pa.array(["a", "a", "b"]))
    assert encoder.encode(pa.array(["c", None, "b"]), 0).tolist() == [
        [0, 0, 1], [0, 0, 0], [0, 1, 0],
    ]  # fmt: skip


def test_more_distinct_strings_than_half_the_rows_are_text() -> None:
    assert encoder_for(pa.array(list("abcdef")), most=5).width == 0
    assert encoder_for(pa.array(list("abcdef")), most=6).width == 7
    assert encoder_for(pa.array(list("abcdef") * 2), most=5).width == 6
    told = encoder_for(pa.array(list("abcdef"))).about()["why"]
    assert told == "6 distinct values; embed text before"


def test_columns_of_too_many_values_keep_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relational_columns, "_MOST_VALUES", 4)
    for column, way_out in (
        (pa.array(list("abcde") * 9), "; embed text before"),
        (pa.array([1, 2, 3, 4, 5] * 9).dictionary_encode(), ""),
        (pa.array([[1, 2, 3, 4, 5]] * 9), ""),
    ):
        encoder = encoder_for(column)
        assert not vars(encoder)["_counts"]
        assert isinstance(encoder, LearningEncoder)
        encoder.add(column[:1])
        assert encoder.encode(column, 0).shape == (len(column), 0)
        assert encoder.about() == {"why": f"too many distinct values, more than 4{way_out}"}


def test_lists_mark_each_of_their_values() -> None:
    column = pa.array([[3, 1, 3], [], None, [1, None], [2]], pa.list_(pa.int64()))
    # 1 and 3 stand twice: in this order; 2 is another.
    assert encode(column, most=2) == [[1, 1, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.list_(pa.float32(), 2)], ids=str)
def test_lists_of_floats_are_embeddings(kind: Any) -> None:
    column = pa.array([[1.0, 2.0], None, [3.0, 4.0]], kind)
    assert encode(column, width=2) == [[1, 2], [0, 0], [3, 4]]


def test_a_date_is_the_midnight_that_begins_it() -> None:
    days = pa.array([0, 366, None], pa.date32())
    assert encode(days) == encode(days.cast(pa.timestamp("ns"))) == encode(days.cast(pa.date64()))
    first, _, gap = encode(days)
    thursday = 2 * np.pi * 3 / 7
    waves = [0, 1, np.sin(thursday), np.cos(thursday), 0, 1]
    np.testing.assert_allclose(first, [-1, *waves, 0], atol=1e-6)
    assert gap == [0] * 7 + [1]


@pytest.mark.parametrize(
    "kind",
    [pa.binary(), pa.struct([("a", pa.int64())]), pa.time32("s"), pa.null(), pa.duration("s")],
    ids=str,
)
def test_other_types_are_left_out(kind: Any) -> None:
    encoder = encoder_of(PATH, pa.field("column", kind), 3, 0)
    assert encoder.width == 0
    assert encoder.about() == {"why": f"of type {kind}"}


def test_a_mixture_of_types_is_an_error() -> None:
    mixed = pa.dense_union([pa.field("a", pa.int64()), pa.field("b", pa.string())])
    with pytest.raises(FileFormatError, match="column x mixes types"):
        encoder_of(PATH, pa.field("x", mixed), 3, 0)

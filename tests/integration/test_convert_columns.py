"""Columns of other types than numbers and words: as numbers, ids and times, as pandas has them."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from gnnsys.convert.common import ConvertOptions
from gnnsys.convert.edge_list import EdgeListSpec, convert_edge_list
from gnnsys.dataset.folder import Dataset, open_dataset
from gnnsys.errors import FileFormatError

ROWS = 6
RNG = np.random.default_rng(7)


def convert(place: Path, edges: Path, **options: Any) -> Dataset:
    spec = EdgeListSpec(edges=edges, name="g", **options)
    return open_dataset(convert_edge_list(spec, place / "out", ConvertOptions()))


def ring(place: Path) -> Path:
    file = place / "e.csv"
    file.write_text("source,target\n" + "".join(f"{n},{(n + 1) % ROWS}\n" for n in range(ROWS)))
    return file


def write(file: Path, columns: dict[str, Any]) -> Path:
    pa.parquet.write_table(pa.table(columns), file)
    return file


def times_of(found: Dataset, name: str = "edge_time") -> list[int]:
    times = found.edge_table(name)[np.argsort(found.edge_table("edge_id"))]
    assert times.dtype == np.int64
    return times.tolist()


# Lists --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 4)])
@pytest.mark.parametrize("inner", ["float", "double", "int16", "halffloat"])
@pytest.mark.parametrize("way", ["features", "nodes"])
def test_lists_are_columns_of_features(kind: Any, inner: str, way: str, tmp_path: Path) -> None:
    values = RNG.integers(-8, 8, (ROWS, 4))
    emb = pa.array(values.tolist(), kind(pa.type_for_alias(inner)))
    columns: dict[str, Any] = {"emb": emb}
    expected = values
    if way == "nodes":
        columns = {"id": np.arange(ROWS), "a": values[:, 0] / 2, "emb": emb, "b": values[:, 1]}
        expected = np.column_stack([values[:, 0] / 2, values, values[:, 1]])
    file = write(tmp_path / "x.parquet", columns)
    found = convert(tmp_path, ring(tmp_path), **{way: file})
    assert np.array_equal(found.node_table("features"), expected)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([[1.0, 2.0], [1.0, 2.0], [1.0], [1.0, 2.0]], "row 2 has a list of 1 in column emb"),
        ([[1.0, 2.0], None, [1.0, 2.0]], "row 1 has nothing in column emb, expected a list of 2"),
        ([[[1.0]], [[2.0]]], "columns emb .* are not numbers"),
    ],
)
def test_lists_of_other_lengths_are_refused(rows: Any, says: str, tmp_path: Path) -> None:
    file = write(tmp_path / "x.parquet", {"emb": rows + rows[:1] * (ROWS - len(rows))})
    with pytest.raises(FileFormatError, match=rf"x\.parquet: {says}"):
        convert(tmp_path, ring(tmp_path), features=file)


def test_a_missing_list_of_fixed_size_is_refused(tmp_path: Path) -> None:
    rows = pa.array([[1.0, 2.0], [3.0, 4.0], None, *[[5.0, 6.0]] * 3], pa.list_(pa.float32(), 2))
    file = write(tmp_path / "x.parquet", {"emb": rows})
    with pytest.raises(FileFormatError, match=r"row (2 )?has nothing in (a )?column"):
        convert(tmp_path, ring(tmp_path), features=file)


def test_lists_are_features_of_edges(tmp_path: Path) -> None:
    values = RNG.standard_normal((ROWS, 3)).astype(np.float32)
    columns = {"src": np.arange(ROWS), "dst": np.zeros(ROWS, int), "emb": list(values)}
    found = convert(tmp_path, write(tmp_path / "e.parquet", columns), edge_features="emb")
    order = np.argsort(found.edge_table("edge_id"))
    assert np.array_equal(found.edge_table("edge_features")[order], values)


# Dictionaries and decimals ------------------------------------------------------------------------


@pytest.mark.parametrize("words", [True, False])
def test_dictionaries_are_ids_and_labels(words: bool, tmp_path: Path) -> None:
    ids = list("abcdef") if words else [7, 3, 5, 1, 9, 2]
    ends = pa.array([ids[0], ids[1], ids[0]]).dictionary_encode()
    others = pa.array([ids[2], ids[0], ids[5]]).dictionary_encode()
    edges = write(tmp_path / "e.parquet", {"src": ends, "dst": others})
    labels = pa.array(["x", None, "y", "x", "z", "y"]).dictionary_encode()
    nodes = {"id": pa.array(ids).dictionary_encode(), "label": labels}
    found = convert(tmp_path, edges, nodes=write(tmp_path / "n.parquet", nodes))
    source, target = found.edge_index().tolist()
    assert sorted(zip(source, target, strict=True)) == [(0, 2), (0, 5), (1, 0)]
    assert found.node_table("labels").tolist() == [0, -1, 1, 0, 2, 1]


def test_decimals_are_ids_weights_and_features(tmp_path: Path) -> None:
    cents = [Decimal(int(n)).scaleb(-6) for n in RNG.integers(-(10**15), 10**15, 2000)]
    ends = pa.array([Decimal(n % 40) for n in range(2000)], pa.decimal128(38, 0))
    others = pa.array([Decimal(n % 7) for n in range(2000)], pa.decimal128(20, 2))
    table = {"src": ends, "dst": others, "w": pa.array(cents, pa.decimal128(24, 6))}
    found = convert(tmp_path, write(tmp_path / "e.parquet", table), edge_time="w")
    order = np.argsort(found.edge_table("edge_id"))
    source, target = found.edge_index().numpy()[:, order]
    assert source.tolist() == [n % 40 for n in range(2000)]
    assert target.tolist() == [n % 7 for n in range(2000)]
    assert found.edge_table("edge_time")[order].tolist() == [float(value) for value in cents]


def test_decimals_that_are_no_node_are_refused(tmp_path: Path) -> None:
    for value, says in ((Decimal("0.5"), "edge 1 has the source 0.5"), (Decimal(2**70), "int64")):
        kind = pa.decimal128(38, 1 if says != "int64" else 0)
        table = {"src": pa.array([Decimal(1), value], kind), "dst": [1, 2]}
        with pytest.raises(FileFormatError, match=says):
            convert(tmp_path, write(tmp_path / "e.parquet", table))


# Times and truths ---------------------------------------------------------------------------------

MOMENTS = [datetime(2024, 3, 31, 0, 30, tzinfo=timezone.utc) + timedelta(hours=n, microseconds=n)
           for n in range(ROWS)]  # fmt: skip
SINCE = [round(moment.timestamp() * 1e6) for moment in MOMENTS]


@pytest.mark.parametrize("unit", ["us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Paris", "+05:30"])
def test_timestamps_are_microseconds_in_utc(unit: str, zone: str | None, tmp_path: Path) -> None:
    moments = pa.array(MOMENTS, pa.timestamp("us", "UTC")).cast(pa.timestamp(unit, zone))
    table = {"src": np.arange(ROWS), "dst": np.zeros(ROWS, int), "at": moments}
    found = convert(tmp_path, write(tmp_path / "e.parquet", table), edge_time="at")
    assert times_of(found) == SINCE


@pytest.mark.parametrize("kind", ["date32", "date64", "text", "zoned", "seconds"])
def test_dates_are_microseconds_too(kind: str, tmp_path: Path) -> None:
    days = [date(1969, 12, 30) + timedelta(days=300 * n) for n in range(ROWS)]
    moments = pd.to_datetime(pd.Series(days))
    frame = pd.DataFrame({"src": range(ROWS), "dst": 0, "at": moments})
    file = tmp_path / ("e.parquet" if kind.startswith("date") else "e.csv")
    if file.suffix == ".parquet":
        at = pa.array(days, pa.type_for_alias(kind))
        write(file, {"src": np.arange(ROWS), "dst": np.zeros(ROWS, int), "at": at})
    else:
        form = {"text": "%Y-%m-%d", "zoned": "%Y-%m-%dT02:00:00+02:00"}.get(kind)
        frame.to_csv(file, index=False, date_format=form or "%Y-%m-%d %H:%M:%S")
    found = convert(tmp_path, file, edge_time="at")
    assert times_of(found) == moments.astype("datetime64[us]").astype("int64").tolist()


@pytest.mark.parametrize(
    ("at", "says"),
    [
        (pa.array([1, None], pa.timestamp("us")), r"column at .* 1 empty .*; fill them in; the"),
        (pa.array([1, 1001], pa.timestamp("ns")), "column at has times finer than microseconds"),
        (pa.array([1, 2], pa.duration("s")), r"columns at \(duration\[s\]\) are not numbers"),
    ],
)
def test_times_that_are_none_are_refused(at: Any, says: str, tmp_path: Path) -> None:
    edges = write(tmp_path / "e.parquet", {"src": [0, 1], "dst": [1, 0], "at": at})
    with pytest.raises(FileFormatError, match=rf"e\.parquet: {says}"):
        convert(tmp_path, edges, edge_time="at")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_dates_and_truths_are_features_and_times_of_nodes(suffix: str, tmp_path: Path) -> None:
    days = pd.to_datetime(["2001-01-01", "2001-01-02", "1969-12-31", "2020-06-30 12:00:00",
                           "2030-01-01", "1970-01-01"], format="mixed")  # fmt: skip
    frame = pd.DataFrame({"id": range(ROWS), "time": days, "born": days, "f": np.arange(ROWS) / 2})
    frame["good"] = [True, False, True, True, False, False]
    file = tmp_path / f"n.{suffix}"
    frame.to_csv(file, index=False) if suffix == "csv" else frame.to_parquet(file, index=False)
    found = convert(tmp_path, ring(tmp_path), nodes=file)
    since = (days - pd.Timestamp(0)) / pd.Timedelta(days=1)
    expected = np.column_stack([since, frame["f"], frame["good"]]).astype(np.float32)
    assert np.array_equal(found.node_table("features"), expected)
    times = found.node_table("time")
    assert times.dtype == np.int64
    assert times.tolist() == ((days - pd.Timestamp(0)) // pd.Timedelta(microseconds=1)).tolist()

"""Tables as people have them: read right, or refused with the option that settles it."""

from __future__ import annotations

import csv
import gzip
import io
import tempfile
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from gnnsys.convert.common import ConvertOptions
from gnnsys.convert.edge_list import EdgeListSpec, convert_edge_list
from gnnsys.dataset.folder import open_dataset
from gnnsys.errors import GnnsysError

pd = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")

NODES = 30
OPTIONS = ("--header", "--columns", "--delimiter", "--ids", "--encoding", "--id-column")
HEADS = (
    ("source", "target"), ("src", "dst"), ("from", "to"), ("u", "v"), ("paper", "cited"),
    ("follower", "followee"), ("left", "right"), (":START_ID", ":END_ID"),
    ("source_id", "target_id"),
)  # fmt: skip
ATTRIBUTES = ("weight", "year", "kind", "comment")

Edges = Counter[tuple[str, str]]


def named_edges(folder: Path) -> Edges:
    """The edges of a dataset folder, by the names of their nodes."""
    found = open_dataset(folder)
    indptr = np.asarray(found.edge_table("indptr"))
    indices = np.asarray(found.edge_table("indices"))
    tables = found.manifest.nodes["node"].tables
    ids = np.asarray(found.node_table("node_id")) if "node_id" in tables else np.arange(len(indptr))
    names = [each.decode() if isinstance(each, bytes) else str(each) for each in ids.tolist()]
    targets = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    pairs = zip(indices.tolist(), targets.tolist(), strict=True)
    return Counter((names[source], names[target]) for source, target in pairs)


def convert(place: Path, file: Path, **options: Any) -> Edges:
    spec = EdgeListSpec(edges=file, name="g", **options)
    return named_edges(convert_edge_list(spec, place / "out", ConvertOptions()))


@st.composite
def tables(draw: st.DrawFn) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A table of edges in pandas, and how to write it."""
    words = draw(st.booleans())
    count = draw(st.integers(1, 12))
    number = st.integers(0, NODES - 1)
    name = st.text("abcdefgh é-", min_size=1, max_size=6).map(str.strip).filter(bool)
    end = name.filter(lambda text: text.lower() not in ("nan", "na")) if words else number
    columns: dict[str, list[Any]] = {}
    head = draw(st.sampled_from(HEADS))
    for which in head:
        columns[which] = draw(st.lists(end, min_size=count, max_size=count))
    for which in draw(st.lists(st.sampled_from(ATTRIBUTES), unique=True, max_size=2)):
        value = {
            "weight": st.floats(0.5, 9, width=16), "year": st.integers(1900, 2030),
            "kind": st.sampled_from(["likes", "knows"]),
            "comment": st.text("xyz,; '", max_size=8).map(str.strip),
        }[which]  # fmt: skip
        columns[which] = draw(st.lists(value, min_size=count, max_size=count))
    frame = pd.DataFrame(columns)
    header = draw(st.booleans())
    # Without names that tell it, sources and targets come first.
    if header and head != ("left", "right") and draw(st.integers(0, 3)) == 0:
        frame = frame[draw(st.permutations(list(frame.columns)))]
    if not words and draw(st.integers(0, 4)) == 0:
        which = draw(st.sampled_from([name for name in frame if name not in ATTRIBUTES]))
        frame[which] = frame[which].astype(float)
    how = {
        "sep": draw(st.sampled_from([",", ";", "\t", "|", " "])),
        "header": header,
        "index": draw(st.integers(0, 3)) == 0,
        "quoting": draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])),
        "lineterminator": draw(st.sampled_from(["\n", "\r\n"])),
    }
    return frame, how


def ends_of(frame: pd.DataFrame) -> Sequence[str]:
    return [name for name in frame.columns if name not in ATTRIBUTES]


def true_edges(frame: pd.DataFrame) -> Edges:
    """By the columns that were made as ends: sources first, as they are in HEADS."""
    first, second = next(head for head in HEADS if head[0] in frame.columns)

    def plain(column: str) -> list[str]:
        values = frame[column]
        whole = values.astype(int) if values.dtype.kind == "f" else values
        return [str(value) for value in whole]

    return Counter(zip(plain(first), plain(second), strict=True))


@settings(max_examples=400, deadline=None, print_blob=True)
@given(
    tables(),
    st.sampled_from([".csv", ".txt", ".tsv", ".edges", ".csv.gz"]),
    st.sampled_from(["", "# made by hand\n", "% sym\n% 3 4\n"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_a_table_of_pandas_is_read_right_or_refused(
    table: tuple[pd.DataFrame, dict[str, Any]], suffix: str, comment: str, encoding: str
) -> None:
    frame, how = table
    text = io.StringIO()
    frame.to_csv(text, **how)
    content = (comment + text.getvalue()).encode(encoding)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        file = place / f"e{suffix}"
        file.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
        found, refusal = None, ""
        try:
            found = convert(place, file, ids="names")
        except GnnsysError as error:
            refusal = str(error)
    event("refused" if refusal else "read")
    if refusal:
        assert any(option in refusal for option in OPTIONS), refusal
    else:
        assert found == true_edges(frame)


@settings(max_examples=120, deadline=None, print_blob=True)
@given(tables(), st.integers(2, 12), st.sampled_from([".csv", ".csv.gz", ".parquet"]))
def test_parts_of_pandas_are_read_right_or_refused(
    table: tuple[pd.DataFrame, dict[str, Any]], count: int, suffix: str
) -> None:
    frame, how = table
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "parts").mkdir()
        (place / "parts" / "_SUCCESS").touch()
        for number, rows in enumerate(np.array_split(np.arange(len(frame)), count)):
            file, part = place / "parts" / f"part-{number}{suffix}", frame.iloc[rows]
            if suffix == ".parquet":
                part.to_parquet(file, index=how["index"])
            else:
                part.to_csv(file, **how)
        found, refusal = None, ""
        try:
            found = convert(place, place / "parts", ids="names")
        except GnnsysError as error:
            refusal = str(error)
    event("refused" if refusal else "read")
    if refusal:
        assert any(option in refusal for option in (*OPTIONS, "parts of one table")), refusal
    else:
        assert found == true_edges(frame)


@st.composite
def node_tables(draw: st.DrawFn) -> tuple[pd.DataFrame, dict[str, Any], str, dict[str, Any]]:
    """A table of nodes in pandas, how to write it, where, and options for it."""
    count = draw(st.integers(1, 10))
    words = draw(st.booleans())
    name = st.text("abcdefgh é-", min_size=1, max_size=6).map(str.strip).filter(bool)
    usable = name.filter(lambda text: text.lower() not in ("nan", "na", "none", "null"))
    ids = draw(st.lists(usable if words else st.integers(0, 99), min_size=count, max_size=count,
                        unique=True))  # fmt: skip
    called = draw(st.sampled_from(["id", "node_id", "Id", "user", "key"]))
    columns: dict[str, list[Any]] = {called: ids}

    def column(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=count, max_size=count))

    if draw(st.booleans()):
        kind = draw(st.sampled_from([st.sampled_from(["x", "y y", "z,z"]), st.integers(0, 3)]))
        columns["label"] = column(kind)
    kinds = {
        "f": st.floats(-9, 9, width=32), "age": st.integers(0, 99), "good": st.booleans(),
        "born": st.dates(date(1900, 1, 1), date(2100, 1, 1)).map(pd.Timestamp),
    }  # fmt: skip
    for each in draw(st.lists(st.sampled_from(sorted(kinds)), unique=True, min_size=1)):
        columns[each] = column(kinds[each])
    frame = pd.DataFrame(columns)
    frame = frame[draw(st.permutations(list(frame.columns)))]
    options = {"id_column": called} if called in ("user", "key") else {}
    if draw(st.booleans()):
        options["feature_columns"] = (draw(st.sampled_from([n for n in frame if n in kinds])),)
    how = {
        "sep": draw(st.sampled_from([",", ";", "\t", "|"])),
        "index": draw(st.integers(0, 3)) == 0,
        "quoting": draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
        "lineterminator": draw(st.sampled_from(["\n", "\r\n"])),
    }
    return frame, how, draw(st.sampled_from([".csv", ".txt", ".tsv.gz", ".parquet"])), options


def true_features(frame: pd.DataFrame, names: Sequence[str]) -> Any:
    columns = []
    for name in names:
        values = frame[name]
        if values.dtype.kind == "M":
            values = (values - pd.Timestamp(0)) / pd.Timedelta(days=1)
        columns.append(values.to_numpy(np.float32))
    return np.column_stack(columns)


@settings(max_examples=200, deadline=None, print_blob=True)
@given(node_tables())
def test_a_table_of_nodes_is_read_right_or_refused(
    table: tuple[pd.DataFrame, dict[str, Any], str, dict[str, Any]],
) -> None:
    frame, how, suffix, options = table
    called = next(name for name in frame if name not in ("label", "f", "age", "good", "born"))
    features = options.get("feature_columns") or [
        name for name in frame if name not in (called, "label")
    ]
    ids = [str(each) for each in frame[called]]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "e.csv").write_text(f'source,target\n"{ids[0]}","{ids[-1]}"\n')
        if suffix == ".parquet":
            frame.to_parquet(place / f"n{suffix}", index=how["index"])
        else:
            text = frame.to_csv(**how).encode()
            content = gzip.compress(text) if suffix.endswith(".gz") else text
            (place / f"n{suffix}").write_bytes(content)
        spec = EdgeListSpec(
            edges=place / "e.csv", name="g", ids="names", nodes=place / f"n{suffix}", **options
        )
        found, refusal = None, ""
        try:
            found = open_dataset(convert_edge_list(spec, place / "out", ConvertOptions()))
        except GnnsysError as error:
            refusal = str(error)
        event("refused" if refusal else "read")
        if found is None:
            assert any(option in refusal for option in OPTIONS), refusal
            return
        named = found.node_ids()
        assert named is not None
        assert [str(each) for each in named[:]] == ids
        assert np.array_equal(found.node_table("features"), true_features(frame, features))
        if "label" in frame:
            codes = pd.factorize(frame["label"], sort=True)[0]
            expected = codes if frame["label"].dtype.kind != "i" else frame["label"].to_numpy()
            assert found.node_table("labels").tolist() == expected.tolist()

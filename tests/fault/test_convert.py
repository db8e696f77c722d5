"""Conversions of bad input, or to bad places: one clear error each, and no litter."""

from __future__ import annotations

import gc
import gzip
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch

import gnnsys
from gnnsys.convert import arrays, edge_files, text
from gnnsys.convert.common import ConvertOptions
from gnnsys.convert.edge_list import EdgeListSpec, convert_edge_list
from gnnsys.errors import (
    ArgumentError,
    FileFormatError,
    GnnsysError,
    MissingFileError,
    StorageError,
    TooLargeError,
)
from gnnsys.memory import FileStore, Storage

pa = pytest.importorskip("pyarrow", reason="text and Parquet are read through pyarrow")
pytest.importorskip("pyarrow.parquet")

PAIRS = np.random.default_rng(0).integers(0, 10, (2, 60))
PAIRS[:, 0] = 9


@contextmanager
def small_blocks() -> Iterator[None]:
    """Blocks of a few edges and rows, as large files have them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edge_files, "_BLOCK_EDGES", 8)
        patch.setattr(arrays, "_BLOCK_BYTES", 64)
        patch.setattr(text, "_BLOCK_BYTES", 64)
        yield


def convert(
    place: Path, options: ConvertOptions | None = None, *, edges: Path | None = None, **spec: Any
) -> Path:
    described = EdgeListSpec(edges=edges or place / "e.npy", name="some", **spec)
    return convert_edge_list(described, place / "out" / "g", options or ConvertOptions())


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a good edge list in it, and ``out`` for what is made."""
    np.save(tmp_path / "e.npy", PAIRS)
    (tmp_path / "out").mkdir()
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    """All files, by their place in the folder."""
    return {
        str(place.relative_to(folder)): place.read_bytes()
        for place in sorted(folder.rglob("*"))
        if place.is_file()
    }


# Bad input ----------------------------------------------------------------------------------------

Case = tuple[Callable[[Path], dict[str, Any]], type[GnnsysError], str]


def npy(values: Any, option: str = "edges", **more: Any) -> Callable[[Path], dict[str, Any]]:
    def make(place: Path) -> dict[str, Any]:
        np.save(place / "bad.npy", values)
        path = place / "bad.npy"
        return {option: str(path) if option.startswith("edge_") else path, **more}

    return make


def txt(
    content: str, name: str = "bad.csv", option: str = "edges", **more: Any
) -> Callable[[Path], dict[str, Any]]:
    def make(place: Path) -> dict[str, Any]:
        (place / name).write_text(content, newline="")
        return {option: place / name, **more}

    return make


def parquet(
    table: dict[str, Any], option: str = "edges", **more: Any
) -> Callable[[Path], dict[str, Any]]:
    def make(place: Path) -> dict[str, Any]:
        pa.parquet.write_table(pa.table(table), place / "bad.parquet")
        return {option: place / "bad.parquet", **more}

    return make


def npz(**members: Any) -> Callable[[Path], dict[str, Any]]:
    def make(place: Path) -> dict[str, Any]:
        np.savez(place / "bad.npz", allow_pickle=True, **members)
        return {"edges": place / "bad.npz"}

    return make


def cut(make: Callable[[Path], dict[str, Any]], keep: float) -> Callable[[Path], dict[str, Any]]:
    """The same file, truncated."""

    def make_and_cut(place: Path) -> dict[str, Any]:
        spec = make(place)
        path = spec["edges"]
        os.truncate(path, int(path.stat().st_size * keep))
        return spec

    return make_and_cut


def gz(content: bytes) -> Callable[[Path], dict[str, Any]]:
    def make(place: Path) -> dict[str, Any]:
        (place / "bad.csv.gz").write_bytes(content)
        return {"edges": place / "bad.csv.gz"}

    return make


def spec(**given: Any) -> Callable[[Path], dict[str, Any]]:
    return lambda place: given


def with_nodes(edges: str, nodes: str, **more: Any) -> Callable[[Path], dict[str, Any]]:
    def make(place: Path) -> dict[str, Any]:
        (place / "e.csv").write_text("source,target\n" + edges)
        (place / "bad.csv").write_text(nodes)
        return {"edges": place / "e.csv", "nodes": place / "bad.csv", **more}

    return make


GOOD_ROWS = "1,2\n" * 40
GZIPPED = gzip.compress("".join(f"{a},{b}\n" for a, b in PAIRS.T.tolist()).encode())
GOOD_COLUMNS = {"src": PAIRS[0], "dst": PAIRS[1]}
HUGE = "9" * 25

EDGE_FILES: dict[str, Case] = {
    "missing": (lambda p: {"edges": p / "bad.csv"}, MissingFileError, "bad.csv: no such file"),
    "a folder": (lambda p: {"edges": p}, GnnsysError, "another kind of file|stands for . files"),
    "an unknown kind": (
        txt("1,2", "bad.xls"),
        ArgumentError,
        r"bad\.xls: unknown kind '\.xls'; --format says which: text, npz",
    ),
    "floats": (npy(PAIRS * 1.0), FileFormatError, r"bad\.npy: edges of dtype float64, expected in"),
    "three rows": (
        npy(PAIRS[[0, 1, 0]]),
        FileFormatError,
        r"shape \(3, 60\), expected \(2, edges\) or",
    ),
    "one row": (npy(PAIRS[0]), FileFormatError, r"bad\.npy: shape \(60,\), expected"),
    "truncated .npy": (cut(npy(PAIRS), 0.9), FileFormatError, r"bad\.npy: not a whole \.npy array"),
    "an empty .npy": (cut(npy(PAIRS), 0), FileFormatError, r"bad\.npy: not a whole \.npy array"),
    "members without usual names": (
        npz(a=PAIRS, b=PAIRS),
        FileFormatError,
        r"bad\.npz: holds a, b; expected edge_index, or source and target, or name the array as",
    ),
    "ends of different lengths": (
        npz(src=PAIRS[0], dst=PAIRS[1, :9]),
        FileFormatError,
        r"bad\.npz: sources of shape \(60,\), targets of \(9,\)",
    ),
    "ends of floats": (
        npz(src=PAIRS[0], dst=PAIRS[1] * 1.0),
        FileFormatError,
        r"bad\.npz: edges of dtype float64",
    ),
    "truncated .npz": (cut(npz(x=PAIRS), 0.9), FileFormatError, r"bad\.npz: not a whole \.npz"),
    "a column of floats": (
        parquet({"src": PAIRS[0] + 0.5, "dst": PAIRS[1]}),
        FileFormatError,
        r"bad\.parquet: edge 0 has the source \d+\.5, expected a whole number",
    ),
    "one column of Parquet": (
        parquet({"src": PAIRS[0]}),
        FileFormatError,
        r"1 columns, expected sources and targets",
    ),
    "a gap in Parquet": (
        parquet({"src": [1, 2, 3], "dst": [1, 2, None]}),
        FileFormatError,
        r"bad\.parquet: edge 2 has no target; give it one",
    ),
    "truncated .parquet": (
        cut(parquet(GOOD_COLUMNS), 0.9),
        FileFormatError,
        r"bad\.parquet: not a whole Parquet",
    ),
    "unknown columns": (
        parquet(GOOD_COLUMNS, columns=("src", "to")),
        ArgumentError,
        r"--columns src to: .*bad\.parquet has src, dst",
    ),
    "truncated .gz": (gz(GZIPPED[:-9]), FileFormatError, r"bad\.csv\.gz: cannot be read"),
    "damaged .gz": (
        gz(GZIPPED[:60] + b"\x00\x00\x00" + GZIPPED[63:]),
        FileFormatError,
        r"bad\.csv\.gz: cannot be read",
    ),
    "text without rows": (
        txt("# none\n\n"),
        FileFormatError,
        r"bad\.csv: empty, expected rows of sources and targets",
    ),
    "one column of text": (
        txt("1\n2\n"),
        FileFormatError,
        r"bad\.csv: 1 columns, expected sources",
    ),
    "a word among numbers": (
        txt("# one\n\nsrc,dst\n\n" + GOOD_ROWS + "\n1,x2\n"),
        FileFormatError,
        r"bad\.csv: column dst, line 46: expected int64, found 'x2'; --ids names takes",
    ),
    "a fraction": (
        txt(GOOD_ROWS + "1.5,2\n"),
        FileFormatError,
        r"bad\.csv: column f0, line 41: expected int64, found '1\.5'",
    ),
    "a number beyond 64 bits": (
        txt(GOOD_ROWS + f"1,{HUGE}\n"),
        FileFormatError,
        rf"bad\.csv: column f1, line 41: expected int64, found '{HUGE}'",
    ),
    "a row of three": (
        txt("% c\n" + GOOD_ROWS + "\r\n1,2,3\r\n"),
        FileFormatError,
        r"bad\.csv: line 43: Expected 2 columns, got 3: 1,2,3",
    ),
    "a row of one": (
        txt("1 2\n" * 40 + "7\n", "bad.txt"),
        FileFormatError,
        r"bad\.txt: line 41: Expected 2 columns, got 1: 7",
    ),
    "an empty field": (
        txt(GOOD_ROWS + "1,\n"),
        FileFormatError,
        r"bad\.csv: edge 40 has no target; give it one",
    ),
    "an empty name": (
        txt("source,target\na,b\n,c\n"),
        FileFormatError,
        r"bad\.csv: edge 1 has no source; give it one",
    ),
}

IDS: dict[str, Case] = {
    "negative": (
        npy(np.where(PAIRS[0, 30] == PAIRS, -3, PAIRS)),
        FileFormatError,
        r"bad\.npy: edge \d+ has the (source|target) -3; expected ids from 0 up",
    ),
    "negative, in text": (
        txt(GOOD_ROWS + "1,-5\n"),
        FileFormatError,
        r"bad\.csv: edge 40 has the target -5; exp",
    ),
    "beyond the nodes": (
        spec(num_nodes=9),
        FileFormatError,
        r"e\.npy: edge 0 has the source 9, outside the nodes \[0, 9\); give the number of nodes",
    ),
    "beyond the nodes, late": (
        npy(np.c_[PAIRS, [[3], [10]]], num_nodes=10),
        FileFormatError,
        r"bad\.npy: edge 60 has the target 10, outside the nodes \[0, 10\)",
    ),
    "beyond 32 bits": (  # as int32 it would be node 3
        npy(np.c_[PAIRS, [[3 + 2**32], [3]]], num_nodes=10),
        FileFormatError,
        r"bad\.npy: edge 60 has the source 4294967299, outside the nodes \[0, 10\)",
    ),
    "beyond 63 bits": (
        npy(np.array([[0, 2**63 + 1], [1, 1]], np.uint64), num_nodes=10),
        FileFormatError,
        r"bad\.npy: edge 1 has the source 9223372036854775809; expected ids from 0 up, below 2\^63",
    ),
    "sparse": (
        npy(PAIRS * 10**6),
        FileFormatError,
        r"bad\.npy: 60 edges name node 9000000, so nearly all .* give --ids names",
    ),
    "fewer features than nodes": (
        npy(np.zeros((9, 2)), "features"),
        FileFormatError,
        r"outside the nodes \[0, 9\)",
    ),
    "words as dense ids": (
        txt("source,target\na,b\n", ids="dense"),
        ArgumentError,
        r"bad\.csv: ids are strings; leave out --ids den",
    ),
    "a number of nodes below 0": (spec(num_nodes=-1), ArgumentError, "--num-nodes -1: expected at"),
    "a number of nodes and names": (
        spec(num_nodes=5, ids="names"),
        ArgumentError,
        "--num-nodes 5: nodes have names",
    ),
    "features without a node table": (
        npy(np.zeros((10, 2)), "features", ids="names"),
        ArgumentError,
        r"nodes have names, so --features, .* need --nodes FILE",
    ),
    "masks without a node table": (
        npy(np.zeros(10, bool), "val", ids="names"),
        ArgumentError,
        "need --nodes FILE",
    ),
}

NODE_TABLES: dict[str, Case] = {
    "missing": (lambda p: {"nodes": p / "bad.csv"}, MissingFileError, "bad.csv: no such file"),
    "without rows": (with_nodes("a,b\n", ""), FileFormatError, r"bad\.csv: empty, expected a row"),
    "without a header": (
        with_nodes("1,2\n", "1,2\n2,3\n"),
        FileFormatError,
        r"bad\.csv: begins with 1, 2; expected a line of column names, the id's first",
    ),
    "a node twice": (
        with_nodes("a,b\n", "id\na\nb\nc\nb\n"),
        FileFormatError,
        r"bad\.csv: row 3 has the id 'b', which row 1 has already; expected each node once",
    ),
    "a number twice": (
        with_nodes("1,2\n", "id,f\n1,0\n2,0\n01,0\n"),
        FileFormatError,
        r"bad\.csv: row 2 has the id 1, which row 0 has already",
    ),
    "no id": (with_nodes("a,b\n", "id,f\na,1\n,2\n"), FileFormatError, r"row 1 has no id; give it"),
    "words for numbers": (
        with_nodes("1,2\n", "id\n1\nx\n"),
        FileFormatError,
        r"bad\.csv: row 1 has the id 'x', but the edges name nodes by numbers; give --ids names",
    ),
    "an edge of an unknown node": (
        with_nodes("a,b\nb,c\nx,a\n", "id\na\nb\nc\n"),
        FileFormatError,
        r"e\.csv: edge 2 has the source x, which is not among the 3 nodes of .*bad\.csv",
    ),
    "out of order": (
        with_nodes("0,1\n", "id,f\n0,1\n2,2\n1,3\n", ids="dense"),
        FileFormatError,
        r"bad\.csv: row 1 has the id 2, expected 1; give --ids names",
    ),
    "an unknown split": (
        with_nodes("a,b\n", "id,split\na,train\nb,training\n"),
        FileFormatError,
        r"bad\.csv: row 1 has the split 'training', expected train, val, test or nothing",
    ),
    "a word among features": (
        with_nodes("a,b\n", "id,f,label\n\na,1,x\nb,tall,y\n"),
        FileFormatError,
        r"bad\.csv: column f, line 4: expected double, found 'tall'",
    ),
    "a word among times": (
        with_nodes("a,b\n", "id,time\na,1\nb,late\n"),
        FileFormatError,
        r"bad\.csv: column time, line 3: expected double, found 'late'",
    ),
    "a row of other columns": (
        with_nodes("a,b\n", "id,f\na,1\nb,1,2\n"),
        FileFormatError,
        r"line 3: Expected 2 columns",
    ),
    "two splits": (
        with_nodes("a,b\n", "id,split\na,train\nb,\n", random_split=(0.5, 0.5, 0.0)),
        ArgumentError,
        "exclude each other; give one",
    ),
    "the number of nodes too": (
        with_nodes("a,b\n", "id\na\nb\n", num_nodes=2),
        ArgumentError,
        "--num-nodes and --nodes",
    ),
    "ids of floats": (
        npy(np.zeros(10), "nodes"),
        FileFormatError,
        r"float64 of shape \(10,\), exp",
    ),
    "an unknown kind": (txt("id\n", "bad.xls", "nodes"), ArgumentError, "unknown kind '.xls'"),
    "not Parquet": (txt("id\n", "bad.parquet", "nodes"), FileFormatError, "not a whole Parquet"),
    "features of words": (
        parquet({"id": np.arange(10), "f": ["x"] * 10}, "nodes"),
        FileFormatError,
        r"bad\.parquet: columns f \(string\) are not numbers",
    ),
}


def rows_of(shape: int | tuple[int, ...], dtype: Any = float) -> Any:
    return np.zeros(shape, dtype)


TABLES: dict[str, Case] = {
    "missing features": (
        lambda p: {"features": p / "bad.npy"},
        MissingFileError,
        r"bad\.npy: no such file",
    ),
    "missing train": (
        lambda p: {"train": p / "bad.npy"},
        MissingFileError,
        r"bad\.npy: no such file",
    ),
    "more features than nodes": (
        npy(rows_of((12, 2)), "features", num_nodes=10),
        FileFormatError,
        r"bad\.npy: 12 feature rows != 10 nodes",
    ),
    "features of text": (
        npy(np.array([["a"]] * 10), "features"),
        FileFormatError,
        r"bad\.npy: features of <U1, exp",
    ),
    "features no store has": (
        npy(rows_of((10, 2), np.uint16), "features"),
        FileFormatError,
        r"bad\.npy: features of uint16, expected float64, float32",
    ),
    "features of complex numbers": (
        npy(rows_of((10, 2), complex), "features"),
        FileFormatError,
        "features of complex128",
    ),
    "one feature": (npy(np.float32(1), "features"), FileFormatError, "single float32, expected"),
    "a word among features": (
        txt("a,b\n" + "1,2\n" * 9 + "1,two\n", option="features"),
        FileFormatError,
        r"bad\.csv: column b, line 11: expected double, found 'two'",
    ),
    "fewer labels": (
        npy(rows_of(9), "labels", num_nodes=10),
        FileFormatError,
        r"bad\.npy: 9 labels != 10 nodes",
    ),
    "fractional labels": (
        npy(np.arange(10) / 2, "labels"),
        FileFormatError,
        r"bad\.npy: labels are not whole numbers below 2147483648: node 1 has 0\.5",
    ),
    "infinite labels": (
        npy(np.full(10, np.inf), "labels"),
        FileFormatError,
        "node 0 has inf; expected classes fro",
    ),
    "endless classes": (
        npy(np.full(10, 2**40), "labels"),
        FileFormatError,
        "node 0 has 1099511627",
    ),
    "labels of text": (npy(np.array(["a"] * 10), "labels"), FileFormatError, r"bad\.npy: <U1 of"),
    "labels of three dimensions": (
        npy(rows_of((10, 2, 2)), "labels"),
        FileFormatError,
        r"float64 of shape \(10, 2, 2\)",
    ),
    "several labels beyond 1": (
        npy(np.full((10, 3), 2), "labels"),
        FileFormatError,
        "several columns of labels, expected 0",
    ),
    "a short mask": (
        npy(rows_of(9, bool), "train", num_nodes=10),
        FileFormatError,
        r"bad\.npy: 9 entries of a mask != 10 nodes",
    ),
    "a mask of columns": (
        npy(rows_of((10, 2), bool), "train"),
        FileFormatError,
        r"bad\.npy: bool of shape \(10, 2\)",
    ),
    "an id outside": (
        npy(np.array([3, 10]), "val"),
        FileFormatError,
        r"bad\.npy: id 10 at position 1 is outside the nodes \[0, 10\)",
    ),
    "an id below 0": (
        npy(np.array([3, -1]), "test"),
        FileFormatError,
        "id -1 at position 1 is out",
    ),
    "an id twice": (
        npy(np.array([3, 5, 5, 4, 3, 3]), "val"),
        FileFormatError,
        r"bad\.npy: id 3 is there 3 times, expected once",
    ),
    "ids of floats": (npy(rows_of(3), "train"), FileFormatError, r"bad\.npy: float64 of shape"),
    "two splits": (
        npy(np.array([1]), "train", random_split=(0.5, 0.2, 0.3)),
        ArgumentError,
        "exclude each oth",
    ),
    "shares above 1": (
        spec(random_split=(0.5, 0.5, 0.1)),
        ArgumentError,
        r"--random-split \(0\.5, 0\.5, 0\.1\): ex",
    ),
    "shares below 0": (spec(random_split=(0.5, -0.1, 0.1)), ArgumentError, "together at most 1"),
    "no shares": (
        spec(random_split=(0.5, float("nan"), 0.1)),
        ArgumentError,
        "expected three shar",
    ),
    "fewer edge rows": (
        npy(rows_of(59), "edge_weight"),
        FileFormatError,
        r"bad\.npy: 59 rows != 60 edges",
    ),
    "edge rows of text": (
        npy(np.array(["a"] * 60), "edge_features"),
        FileFormatError,
        r"bad\.npy: <U1, expected num",
    ),
    "missing edge rows": (
        lambda p: {"edge_time": str(p / "bad.npy")},
        MissingFileError,
        r"bad\.npy: no such file",
    ),
    "an unknown column": (
        parquet(GOOD_COLUMNS, edge_weight="w"),
        ArgumentError,
        r"w: neither a file nor a column of .*bad\.parquet: src, dst",
    ),
    "a column of words": (
        txt("src,dst,w\n1,2,heavy\n", edge_weight="w"),
        FileFormatError,
        r"bad\.csv: column w, line 2: expected double, found 'heavy'",
    ),
    "too little memory for names": (
        spec(ids="names"),
        TooLargeError,
        r"e\.npy: \d+ names take more than the 1000 bytes of --memory; give it",
    ),
}

CASES = {
    f"{kind}: {name}": case
    for kind, cases in (
        ("edges", EDGE_FILES),
        ("ids", IDS),
        ("nodes", NODE_TABLES),
        ("tables", TABLES),
    )
    for name, case in cases.items()
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_error_and_leaves_nothing(name: str, place: Path) -> None:
    make, error, says = CASES[name]
    given = make(place)
    before = contents(place)
    with small_blocks(), pytest.raises(error, match=says):
        convert(place, ConvertOptions(memory=1000), **given)
    assert list((place / "out").iterdir()) == []
    assert contents(place) == before


def test_nan_are_kept_counted_and_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.ones((10, 3), np.float32)
    values[[2, 2, 7], [0, 1, 2]] = np.nan
    np.save(place / "x.npy", values)
    folder = convert(place, ConvertOptions(dtype="bfloat16", nan="keep"), features=place / "x.npy")
    found = gnnsys.open_dataset(folder)
    delivered = found.features(device="cpu")[torch.arange(10)].numpy()
    assert np.array_equal(delivered, values, equal_nan=True)
    assert found.manifest.source["nan"] == {"features": 3}
    from gnnsys.commands.cli import main

    assert main(["info", str(folder)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "NaN" in line]
    assert "NaN in features" in line
    assert "3" in line


def test_what_is_there_is_not_overwritten(place: Path) -> None:
    convert(place)
    before = contents(place / "out")
    with pytest.raises(ArgumentError, match=r"out/g: exists already and is not overwritten"):
        convert(place)
    assert contents(place / "out") == before


# Places that cannot be written --------------------------------------------------------------------


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody may read: pytest's own are root's alone."""
    with TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def test_a_place_without_permission_is_one_error(public: Path) -> None:
    np.save(public / "e.npy", PAIRS)
    (public / "out").mkdir(mode=0o755)
    user = os.geteuid()
    if user != 0:
        pytest.skip("only root can become a user who may not write here")
    os.seteuid(65534)
    try:
        with pytest.raises(StorageError) as caught:
            convert(public)
    finally:
        os.seteuid(user)
    partial = public / "out" / "g.partial"
    says = "cannot be written (Permission denied); choose a place that can be written"
    assert str(caught.value) == f"{partial}: {says}"
    assert list((public / "out").iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode != 0:
        pytest.skip(f"mount is not permitted: {done.stderr.strip()}")
    yield disk
    gc.collect()  # what a failure's frames still map
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(("edges", "features"), [(60, 1 << 20), (1 << 18, 1), (90_000, 1 << 17)])
def test_a_full_disk_is_one_error_and_leaves_nothing(
    edges: int, features: int, small_disk: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "e.npy", np.random.default_rng(0).integers(0, 8, (2, edges)))
    np.save(tmp_path / "x.npy", np.zeros((8, features), np.float32))
    described = EdgeListSpec(edges=tmp_path / "e.npy", name="full", features=tmp_path / "x.npy")
    for options in (ConvertOptions(), ConvertOptions(memory=1 << 18)):
        with pytest.raises(StorageError, match=r"No space left on device\); make room") as caught:
            convert_edge_list(described, small_disk / "g", options)
        assert str(small_disk / "g.partial") in str(caught.value)
        assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("storage", ["mmap", "pread"])
def test_writing_rows_to_a_full_disk_is_one_error(storage: Storage, small_disk: Path) -> None:
    # sparse, of 4 MiB
    store = FileStore.create(small_disk / "h.npy", (1 << 12, 256), storage=storage)
    with pytest.raises(StorageError, match=r"h\.npy: cannot be written \(No space left"):
        store.write(torch.arange(1 << 12), torch.ones(1 << 12, 256))
    assert store.gather(torch.tensor([0])).shape == (1, 256)

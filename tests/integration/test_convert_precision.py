"""Features in another precision: what ``gnnsys convert --dtype`` writes, against numpy."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gnnsys.commands.cli import main
from gnnsys.convert import arrays, stored_rows
from gnnsys.convert.common import ConvertOptions
from gnnsys.convert.edge_list import EdgeListSpec, convert_edge_list
from gnnsys.convert.folder import convert_folder
from gnnsys.convert.graphbolt_export import export_graphbolt
from gnnsys.dataset.folder import open_dataset
from gnnsys.errors import ArgumentError, FileFormatError, StorageError, UnsupportedError

sys.path.insert(0, str(Path(__file__).parents[1] / "property"))
from stored_reference import encode

NODES, EDGES = 300, 700
_draw = np.random.default_rng(4)
PAIRS = _draw.integers(0, NODES, (2, EDGES))
FEATURES = _draw.standard_normal((NODES, 7)).astype(np.float32) * _draw.uniform(0, 9, (NODES, 1))
FEATURES = FEATURES.astype(np.float32)
OF_EDGES = _draw.standard_normal((EDGES, 3)).astype(np.float32)
# max and RMS of the round trip, as shares of the greatest magnitude: half a step, and uniform in it
BOUNDS = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "int8": 0.5 / 127, "int4": 0.5 / 7}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of each table."""
    monkeypatch.setattr(arrays, "_BLOCK_BYTES", 1 << 10)


def convert(place: Path, values: np.ndarray = FEATURES, of: Any = OF_EDGES, **options: Any) -> Path:
    np.save(place / "e.npy", PAIRS)
    np.save(place / "x.npy", values)
    np.save(place / "a.npy", of)
    files = {"features": place / "x.npy", "edge_features": str(place / "a.npy")}
    spec = EdgeListSpec(edges=place / "e.npy", name="g", **files)
    return convert_edge_list(spec, place / "out", ConvertOptions(**options))


def expected(values: np.ndarray, dtype: str, scale: str) -> torch.Tensor:
    if dtype in ("int8", "int4"):
        return torch.from_numpy(encode(values, dtype, scale)[1])
    return torch.from_numpy(values).to(getattr(torch, dtype)).float()


def tables_of(folder: Path, **options: Any) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Features of nodes and of edges as they are delivered, and the numbers of the edges."""
    dataset = open_dataset(folder)
    x = dataset.features(device="cpu", **options)
    attr = dataset.edge_features(device="cpu", **options)
    return x[torch.arange(NODES)], attr[torch.arange(EDGES)], dataset.edge_table("edge_id")


@pytest.mark.parametrize("again", [False, True], ids=["of files", "of a folder"])
@pytest.mark.parametrize("scale", ["row", "column"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "int4"])
def test_rows_are_those_of_the_formula_and_their_change_is_told(
    dtype: Any, scale: Any, again: bool, tmp_path: Path
) -> None:
    if again:
        options = ConvertOptions(dtype=dtype, scale=scale)
        folder = convert_folder(convert(tmp_path), tmp_path / "again", options)
    else:
        folder = convert(tmp_path, dtype=dtype, scale=scale)
    for options in ({}, {"cache": 20}):
        x, attr, order = tables_of(folder, **options)
        assert torch.equal(x, expected(FEATURES, dtype, scale))
        assert torch.equal(attr, expected(OF_EDGES[order], dtype, scale))
    dataset = open_dataset(folder)
    dataset.verify()
    axis = 0 if scale == "column" and dtype.startswith("int") else 1
    for place, values, rows in (
        ("features", FEATURES, x),
        ("edge_features", OF_EDGES[order], attr),
    ):
        shares = np.abs(values - rows.numpy()) / np.abs(values).max(axis=axis, keepdims=True)
        told = dataset.manifest.source["round_trip"][place]
        assert told["max"] == pytest.approx(shares.max(), rel=1e-5)
        assert told["rms"] == pytest.approx(np.sqrt((shares**2).mean()), rel=1e-4)
        assert 0 < told["rms"] < told["max"] <= BOUNDS[dtype] * (1 + 1e-5)


def test_a_folder_keeps_everything_but_its_features(tmp_path: Path) -> None:
    plain = convert(tmp_path)
    small = convert_folder(plain, tmp_path / "small", ConvertOptions(dtype="int8"))
    back = convert_folder(small, tmp_path / "back", ConvertOptions(dtype="float32"))
    before, after, floats = (open_dataset(folder) for folder in (plain, small, back))
    for name in ("indptr", "indices", "edge_id"):
        assert np.array_equal(after.edge_table(name), before.edge_table(name))
    assert (after.name, after.task) == (before.name, before.task)
    changed = after.manifest.source["round_trip"]
    told = {"dtype": "int8", "scale": "row", "round_trip": changed}
    assert after.manifest.source == before.manifest.source | told
    told = {"dtype": "float32", "round_trip_before": changed}
    assert floats.manifest.source == before.manifest.source | told
    assert np.array_equal(floats.node_table("features"), expected(FEATURES, "int8", "row").numpy())
    with pytest.raises(UnsupportedError, match="--dtype float32"):
        export_graphbolt(small, tmp_path / "gb")
    with pytest.raises(ArgumentError, match="a dataset folder of gnnsys already; --dtype"):
        convert_folder(plain, tmp_path / "same", ConvertOptions())


@pytest.mark.parametrize("stored_before", [False, True])
def test_rows_keep_their_values_in_another_order(stored_before: bool, tmp_path: Path) -> None:
    folder = convert(tmp_path, dtype="int4" if stored_before else "keep")
    options = [] if stored_before else ["--dtype", "int4"]
    assert main(["convert", str(folder), str(tmp_path / "o"), "--order", "degree", *options]) == 0
    x, attr, _ = tables_of(tmp_path / "o")
    dataset = open_dataset(tmp_path / "o")
    old = dataset.node_table("node_id")
    assert not np.array_equal(old, np.arange(NODES))
    assert torch.equal(x, expected(FEATURES, "int4", "row")[old])
    order = dataset.edge_table("edge_id")
    assert torch.equal(attr, expected(OF_EDGES[order], "int4", "row"))


def test_a_kill_in_the_middle_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (tmp_path / "whole", tmp_path / "cut"):
        place.mkdir()
    whole = convert(tmp_path / "whole", dtype="int8", scale="column")
    monkeypatch.setattr("gnnsys.dataset.writer._SAVE_BYTES", 1)
    store, left = stored_rows.StoredRows.store, [5]

    def fail(self: Any, *arguments: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return store(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(stored_rows.StoredRows, "store", fail)
        with pytest.raises(KeyboardInterrupt):
            convert(tmp_path / "cut", dtype="int8", scale="column")
    # The files are as they were: times of change tell whether they are.
    spec = EdgeListSpec(
        edges=tmp_path / "cut" / "e.npy",
        name="g",
        features=tmp_path / "cut" / "x.npy",
        edge_features=str(tmp_path / "cut" / "a.npy"),
    )
    options = ConvertOptions(dtype="int8", scale="column")
    cut = convert_edge_list(spec, tmp_path / "cut" / "out", options)
    for name in ("graph.json", "features.npy", "edge_features.npy"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name


def with_value(values: np.ndarray, value: float) -> np.ndarray:
    values = values.copy()
    values[77, 2] = values[78, 0] = value
    return values


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_gaps_have_no_code(dtype: Any, tmp_path: Path) -> None:
    gaps = with_value(FEATURES, np.nan)
    with pytest.raises(FileFormatError, match=r"x\.npy: 2 features .* row 77, column 2; --nan"):
        convert(tmp_path, gaps, dtype=dtype)
    with pytest.raises(FileFormatError, match=r"a\.npy, in CSC order: 2 features are NaN"):
        convert(tmp_path, of=with_value(OF_EDGES, -np.inf), dtype=dtype)
    with pytest.raises(ArgumentError, match=f"--nan keep: {dtype} has no NaN"):
        convert(tmp_path, gaps, dtype=dtype, nan="keep")
    x, _, _ = tables_of(convert(tmp_path, gaps, dtype=dtype, nan="zero"))
    assert torch.equal(x, expected(np.nan_to_num(gaps), dtype, "row"))


def test_values_beyond_a_type_are_refused_or_counted(tmp_path: Path) -> None:
    large = with_value(FEATURES, 1e6)
    with pytest.raises(FileFormatError, match=r"1000000\.0, beyond float16, as are .* --overflow"):
        convert(tmp_path, large, dtype="float16")
    folder = convert(tmp_path, large, dtype="float16", overflow="allow")
    assert open_dataset(folder).manifest.source["overflow"] == {"features": 2}
    assert tables_of(folder)[0].isinf().sum() == 2
    again = convert_folder(folder, tmp_path / "c", ConvertOptions(dtype="int8", nan="zero"))
    assert "overflow" not in open_dataset(again).manifest.source


def test_options_that_do_not_go_together_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["convert", "x", str(tmp_path / "o"), "--scale", "column", "--dtype", "float16"]
    assert main(arguments) == 2
    assert "--scale column: goes with --dtype int8 or int4, but" in capsys.readouterr().err


def test_the_command_says_what_is_stored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = convert(tmp_path)
    arguments = ["convert", str(plain), str(tmp_path / "s"), "--dtype", "int4", "--json"]
    assert main(arguments) == 0
    facts = json.loads(capsys.readouterr().out)
    features = facts["nodes"]["node"]["tables"]["features"]
    assert (features["dtype"], features["scale"], features["row_bytes"]) == ("int4", "row", 8)
    assert facts["source"]["round_trip"]["features"]["max"] <= BOUNDS["int4"] * (1 + 1e-5)
    options = ["--dtype", "float16", "--overflow", "allow", "--json"]
    assert main(["convert", str(plain), str(tmp_path / "h"), *options]) == 0
    assert "overflow" not in json.loads(capsys.readouterr().out)["source"]
    assert main(["info", str(tmp_path / "s")]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "int4, scale by row" in told
    assert "changed in features" in told


def test_a_truncated_table_is_refused(tmp_path: Path) -> None:
    folder = convert(tmp_path, dtype="int8")
    with (folder / "features.npy").open("r+b") as file:
        file.truncate(4096)
    with pytest.raises((FileFormatError, StorageError), match="truncated"):
        open_dataset(folder)

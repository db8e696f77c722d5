"""Folders and patterns of parts, as Spark and Dask write them: the same table as pandas reads."""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest

from gnnsys.commands.cli import main
from gnnsys.convert.common import ConvertOptions
from gnnsys.convert.edge_list import EdgeListSpec, convert_edge_list
from gnnsys.dataset.folder import Dataset, open_dataset
from gnnsys.errors import FileFormatError, GnnsysError

RNG = np.random.default_rng(5)
EDGES = pd.DataFrame({"src": RNG.integers(0, 30, 240), "dst": RNG.integers(0, 30, 240)})
EDGES["w"] = np.arange(240) / 4
NODES = pd.DataFrame({"id": RNG.permutation(30), "label": np.arange(30) % 3})
for column in range(3):
    NODES[f"f{column}"] = RNG.standard_normal(30)


def convert(place: Path, edges: Path, **options: Any) -> Dataset:
    spec = EdgeListSpec(edges=edges, name="g", **options)
    return open_dataset(convert_edge_list(spec, place / "out", ConvertOptions()))


def edges_of(found: Dataset) -> list[tuple[int, int, float]]:
    """Source, target and weight in the order of the source."""
    order = np.argsort(found.edge_table("edge_id"))
    sources, targets = found.edge_index().numpy()
    if found.has("node_id"):
        ids = found.node_table("node_id")
        sources, targets = ids[sources], ids[targets]
    weights = np.asarray(found.edge_table("edge_weight"))
    return list(zip(sources[order], targets[order], weights[order], strict=True))


def expected_edges(frame: pd.DataFrame) -> list[tuple[int, int, float]]:
    return list(zip(frame["src"], frame["dst"], frame["w"].astype(np.float32), strict=True))


def as_spark(folder: Path, frame: pd.DataFrame, suffix: str, header: bool = True) -> None:
    """Twelve parts, of which some are empty, beside what Spark and Hadoop leave there."""
    folder.mkdir()
    for number in range(12):
        part = frame[20 * (number - 1) : 20 * number] if number not in (0, 7) else frame[:0]
        name = f"part-{number:05d}-4f9c61a2-c000{suffix}"
        if suffix.endswith("parquet"):
            part.to_parquet(folder / name, index=False)
        else:
            text = part.to_csv(index=False, header=header).encode()
            (folder / name).write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
        (folder / f".{name}.crc").write_bytes(b"\x00crc")
    (folder / "_SUCCESS").touch()


def as_dask(folder: Path, frame: pd.DataFrame, suffix: str) -> None:
    """Numbers without leading zeros: ``part.10`` sorts before ``part.9`` as text."""
    folder.mkdir()
    for number in range(12):
        part = frame[20 * number : 20 * (number + 1)]
        if suffix.endswith("parquet"):
            part.to_parquet(folder / f"part.{number}{suffix}", index=False)
        else:
            part.to_csv(folder / f"export-{number}{suffix}", index=False)
    if suffix.endswith("parquet"):
        pa.parquet.write_metadata(pa.Schema.from_pandas(frame), folder / "_common_metadata")


def without_gaps(frame: pd.DataFrame) -> pd.DataFrame:
    """What ``as_spark`` writes of it."""
    kept = [n for n in range(1, 12) if n != 7]
    return pd.concat([frame[20 * (number - 1) : 20 * number] for number in kept])


@pytest.mark.parametrize("suffix", [".snappy.parquet", ".csv", ".csv.gz"])
@pytest.mark.parametrize("pattern", ["", "part-*"])
def test_parts_of_spark_are_one_edge_list(suffix: str, pattern: str, tmp_path: Path) -> None:
    folder = tmp_path / f"e{suffix}"
    as_spark(folder, EDGES, suffix)
    found = convert(tmp_path, folder / pattern, edge_weight="w", ids="names")
    assert edges_of(found) == expected_edges(without_gaps(EDGES))


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_parts_of_dask_stand_in_the_order_of_their_numbers(suffix: str, tmp_path: Path) -> None:
    as_dask(tmp_path / "e", EDGES, suffix)
    found = convert(tmp_path, tmp_path / "e", edge_weight="w", num_nodes=30)
    assert edges_of(found) == expected_edges(EDGES)


def test_parts_without_names_of_columns(tmp_path: Path) -> None:
    as_spark(tmp_path / "e", EDGES, ".csv", header=False)
    found = convert(tmp_path, tmp_path / "e", edge_weight="f2", ids="names")
    assert edges_of(found) == expected_edges(without_gaps(EDGES))


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_parts_hold_nodes_and_features(suffix: str, tmp_path: Path) -> None:
    EDGES.to_csv(tmp_path / "e.csv", index=False)
    (tmp_path / "n").mkdir()
    for number, part in enumerate(np.array_split(np.arange(30), 11)):
        file = tmp_path / "n" / f"part.{number}{suffix}"
        frame = NODES.iloc[part]
        frame.to_csv(file, index=False) if suffix == ".csv" else frame.to_parquet(file, index=False)
    found = convert(tmp_path, tmp_path / "e.csv", nodes=tmp_path / "n" / f"*{suffix}")
    features = NODES[["f0", "f1", "f2"]].to_numpy(np.float32)
    assert found.node_table("node_id").tolist() == NODES["id"].tolist()
    assert found.node_table("labels").tolist() == NODES["label"].tolist()
    assert np.array_equal(found.node_table("features"), features)
    (tmp_path / "out").rename(tmp_path / "first")
    for file in (tmp_path / "n").iterdir():
        frame = pd.read_csv(file) if suffix == ".csv" else pd.read_parquet(file)
        frame = frame[["f0", "f1", "f2"]]
        frame.to_csv(file, index=False) if suffix == ".csv" else frame.to_parquet(file, index=False)
    found = convert(tmp_path, tmp_path / "e.csv", features=tmp_path / "n")
    assert np.array_equal(found.node_table("features"), features)


@pytest.mark.parametrize("pattern", ["", "year=*", "**/*.parquet"])
def test_folders_of_hive_are_columns(pattern: str, tmp_path: Path) -> None:
    table = pa.Table.from_pandas(EDGES, preserve_index=False)
    table = table.append_column("year", pa.array(2000 + EDGES.index % 3))
    pa.dataset.write_dataset(
        table, tmp_path / "e", format="parquet",
        partitioning=pa.dataset.partitioning(pa.schema([("year", pa.int64())]), flavor="hive"),
    )  # fmt: skip
    found = convert(tmp_path, tmp_path / "e" / pattern, edge_weight="w", edge_time="year")
    frame = pd.read_parquet(tmp_path / "e")
    assert edges_of(found) == expected_edges(frame)
    order = np.argsort(found.edge_table("edge_id"))
    assert found.edge_table("edge_time")[order].tolist() == frame["year"].astype(int).tolist()
    assert Counter(frame["year"].astype(int)) == {2000: 80, 2001: 80, 2002: 80}


def other_type(folder: Path) -> str:
    EDGES.assign(w="x").to_parquet(folder / "part.3.parquet", index=False)
    return r"part\.3\.parquet: column w is string, in .*part\.0\.parquet it is double"


def other_names(folder: Path) -> str:
    EDGES.rename(columns={"w": "v"}).to_parquet(folder / "part.3.parquet", index=False)
    return r"part\.3\.parquet: column w is not there"


def damaged(folder: Path) -> str:
    file = folder / "part.3.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    return r"part\.3\.parquet: not a whole Parquet file"


def other_kind(folder: Path) -> str:
    (folder / "readme.txt").write_text("1 2\n")
    return r"readme\.txt: another kind of file than .*part\.0\.parquet"


def of_delta(folder: Path) -> str:
    (folder / "_delta_log").mkdir()
    return "Delta Lake"


def nothing(folder: Path) -> str:
    for file in folder.iterdir():
        file.rename(folder / f"_{file.name}")
    return "no parts in it"


@pytest.mark.parametrize("spoil", [other_type, other_names, damaged, other_kind, of_delta, nothing])
def test_an_odd_part_of_parquet_is_named(spoil: Callable[[Path], str], tmp_path: Path) -> None:
    as_dask(tmp_path / "e", EDGES, ".parquet")
    says = spoil(tmp_path / "e")
    with pytest.raises(GnnsysError, match=says):
        convert(tmp_path, tmp_path / "e")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("dst,src,w\n1,2,3\n", r"begins with dst, src, w, expected the column names src, dst, w"),
        ("1,2,3\n2,3,4\n", r"begins with 1, 2, 3, expected the column names"),
        ("src,dst,w\n1,2\n2,3\n", "Expected 3 columns, got 2"),
        ("src;dst;w\n1;2;3\n", "begins with src;dst;w"),
    ],
)
def test_an_odd_part_of_text_is_named(content: str, says: str, tmp_path: Path) -> None:
    as_dask(tmp_path / "e", EDGES, ".csv")
    (tmp_path / "e" / "export-7.csv").write_text(content)
    with pytest.raises(FileFormatError, match=rf"export-7\.csv: .*{says}"):
        convert(tmp_path, tmp_path / "e")


def test_names_of_columns_in_one_part_only_are_refused(tmp_path: Path) -> None:
    as_spark(tmp_path / "e", EDGES, ".csv", header=False)
    (tmp_path / "e" / "part-00003.csv").write_text("src,dst,w\n1,2,3\n")
    with pytest.raises(FileFormatError, match=r"part-00003\.csv: begins with src, dst, w"):
        convert(tmp_path, tmp_path / "e")


def test_the_command_takes_folders_and_patterns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_spark(tmp_path / "e", EDGES, ".snappy.parquet")
    for number, source in enumerate(("e", "e/*.parquet")):
        assert main(["convert", str(tmp_path / source), str(tmp_path / f"out{number}")]) == 0
        assert open_dataset(tmp_path / f"out{number}").num_edges() == 200
    assert main(["convert", str(tmp_path / "e"), str(tmp_path / "out"), "--dry-run"]) == 0
    assert re.search(r"parts\W+12\b", capsys.readouterr().out)
    assert main(["convert", str(tmp_path / "*.csv"), str(tmp_path / "out")]) == 2
    assert "no file is called so" in capsys.readouterr().err


def test_a_part_with_floats_names_the_same_nodes(tmp_path: Path) -> None:
    (tmp_path / "e").mkdir()
    for number, kind in enumerate((int, float)):
        frame = EDGES[["src", "dst"]][120 * number : 120 * (number + 1)].astype(kind)
        frame.to_csv(tmp_path / "e" / f"{number}.csv", index=False)
    found = convert(tmp_path, tmp_path / "e", ids="names")
    ids = found.node_ids()
    assert ids is not None
    assert set(ids[:].tolist()) == set(EDGES["src"]) | set(EDGES["dst"])

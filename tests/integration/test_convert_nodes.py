"""Tables of nodes: columns chosen by name, number and range, as pandas would take them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gnnsys.commands.cli import main
from gnnsys.convert.common import ConvertOptions
from gnnsys.convert.edge_list import EdgeListSpec, convert_edge_list
from gnnsys.dataset.folder import Dataset, open_dataset
from gnnsys.errors import ArgumentError, FileFormatError

RNG = np.random.default_rng(4)
FRAME = pd.DataFrame(
    {"row": range(20), "user": RNG.permutation(20), "age": RNG.integers(9, 90, 20)}
)
FRAME["kind"] = RNG.choice(["bot", "human"], 20)
for number in range(4):
    FRAME[f"x {number}"] = RNG.standard_normal(20).astype(np.float32)
FRAME["good"] = RNG.integers(0, 2, 20).astype(bool)


def convert(place: Path, file: Path, **options: Any) -> Dataset:
    (place / "e.csv").write_text("source,target\n3,7\n7,12\n")
    spec = EdgeListSpec(edges=place / "e.csv", name="g", nodes=file, **options)
    return open_dataset(convert_edge_list(spec, place / "out", ConvertOptions()))


def save(place: Path, suffix: str) -> Path:
    file = place / f"n{suffix}"
    if suffix == ".parquet":
        FRAME.to_parquet(file)
    else:
        FRAME.to_csv(file, index=False, sep="\t" if suffix == ".tsv" else ",")
    return file


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize(
    ("given", "columns"),
    [
        (["x 1", "age"], ["x 1", "age"]),
        (["x 0..x 2", "good"], ["x 0", "x 1", "x 2", "good"]),
        (["4..6", "2"], ["x 0", "x 1", "x 2", "age"]),
        (["x 2..7"], ["x 2", "x 3"]),
        (None, ["row", "age", "x 0", "x 1", "x 2", "x 3", "good"]),
    ],
)
def test_columns_are_those_that_are_named(
    suffix: str, given: list[str] | None, columns: list[str], tmp_path: Path
) -> None:
    features = None if given is None else tuple(given)
    found = convert(
        tmp_path, save(tmp_path, suffix), id_column="user", label_column="kind",
        feature_columns=features,
    )  # fmt: skip
    assert found.node_table("node_id").tolist() == FRAME["user"].tolist()
    assert found.node_table("labels").tolist() == (FRAME["kind"] == "human").tolist()
    assert np.array_equal(found.node_table("features"), FRAME[columns].to_numpy(np.float32))


def test_a_table_without_names_is_taken_by_numbers(tmp_path: Path) -> None:
    file = tmp_path / "n.csv"
    FRAME[["age", "user", "x 0", "x 1"]].to_csv(file, header=False, index=False)
    found = convert(tmp_path, file, id_column="1", label_column="f0", feature_columns=("2..3",))
    assert found.node_table("node_id").tolist() == FRAME["user"].tolist()
    assert found.node_table("labels").tolist() == FRAME["age"].tolist()
    expected = FRAME[["x 0", "x 1"]].to_numpy()
    assert np.allclose(found.node_table("features"), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"id_column": "usr"}, "--id-column usr: .*n.csv has row, user, .*; did you mean user?"),
        ({"label_column": "9"}, "--label-column 9: .*n.csv has row, user"),
        ({"feature_columns": ("x 3..x 1",)}, "--feature-columns .*: x 3 stands after x 1"),
        (
            {"feature_columns": ("x 0..x 1", "x 1")},
            "column x 1 is named twice",
        ),
        ({"nodes": None, "id_column": "user"}, "--id-column, .* are of --nodes FILE"),
        ({"columns": ("sourc", "target")}, "--columns sourc target: .*; did you mean source?"),
    ],
)
def test_columns_that_are_not_there_are_named(
    options: dict[str, Any], says: str, tmp_path: Path
) -> None:
    file = save(tmp_path, ".csv")
    (tmp_path / "e.csv").write_text("source,target\n3,7\n7,12\n")
    spec = EdgeListSpec(edges=tmp_path / "e.csv", name="g", **{"nodes": file, **options})
    with pytest.raises(ArgumentError, match=says):
        convert_edge_list(spec, tmp_path / "out", ConvertOptions())


def test_a_first_column_of_labels_is_not_the_id(tmp_path: Path) -> None:
    (tmp_path / "n.csv").write_text("label,who\n1,3\n0,7\n1,12\n")
    with pytest.raises(FileFormatError, match=r"the first one is label; --id-column says"):
        convert(tmp_path, tmp_path / "n.csv")
    found = convert(tmp_path, tmp_path / "n.csv", id_column="who")
    assert found.node_table("node_id").tolist() == [3, 7, 12]


def test_the_command_takes_columns_and_tells_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "e.csv").write_text("source,target\n3,7\n7,12\n")
    arguments = ["convert", str(tmp_path / "e.csv"), str(tmp_path / "out")]
    arguments += ["--nodes", str(save(tmp_path, ".csv")), "--id-column", "user"]
    arguments += ["--label-column", "kind", "--feature-columns", "age", "x 0..x 3"]
    assert main([*arguments, "--dry-run", "--json"]) == 0
    told = capsys.readouterr().out
    assert '"features": ["age", "x 0", "x 1", "x 2", "x 3"]' in told
    assert '"columns, left out": ["row", "good"]' in told
    assert main(arguments) == 0
    assert open_dataset(tmp_path / "out").node_table("features").shape == (20, 5)

"""NaN and infinite values in features, against numpy's masked arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch_geometric.data import Data

import gnnsys
from gnnsys.choices import GapPolicy
from gnnsys.commands.cli import main
from gnnsys.convert import arrays
from gnnsys.convert.common import ConvertOptions
from gnnsys.convert.edge_list import EdgeListSpec, convert_edge_list
from gnnsys.convert.pyg import convert_pyg
from gnnsys.dataset.folder import open_dataset
from gnnsys.errors import FileFormatError

ROWS = 500
VALUES = np.random.default_rng(9).standard_normal((ROWS, 4)) * 8
VALUES[3, 1] = VALUES[77, 2] = VALUES[400, 1] = np.nan
VALUES[78, 0], VALUES[499, 2] = np.inf, -np.inf


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks, so that the means are those of all."""
    monkeypatch.setattr(arrays, "_BLOCK_BYTES", 1 << 10)


def expected(values: np.ndarray, policy: str) -> np.ndarray:
    if policy == "keep":
        return values
    finite = np.ma.masked_invalid(values)
    return finite.filled(0.0 if policy == "zero" else finite.mean(axis=0, dtype=np.float64).data)


def save(place: Path, kind: str, values: np.ndarray) -> dict[str, Any]:
    file = place / f"x{kind}"
    frame = pd.DataFrame(values, columns=[f"f{n}" for n in range(values.shape[1])])
    if kind == ".npy":
        np.save(file, values)
    elif kind == ".pt":
        torch.save(torch.from_numpy(values).to(torch.bfloat16), file)
    elif kind == ".parquet":
        frame.to_parquet(file, index=False)
    else:
        frame.insert(0, "id", np.arange(len(values)))
        frame.to_csv(file, index=False)
    return {"nodes": file} if kind == ".csv" else {"features": file}


def convert(place: Path, policy: GapPolicy, files: dict[str, Any]) -> np.ndarray:
    np.save(place / "e.npy", np.array([[0, 1], [1, 2]]))
    spec = EdgeListSpec(edges=place / "e.npy", name="g", **files)
    folder = convert_edge_list(spec, place / "out", ConvertOptions(nan=policy))
    rows = gnnsys.open_dataset(folder).features(device="cpu")[torch.arange(ROWS)]
    return rows.numpy()


@pytest.mark.parametrize("kind", [".npy", ".parquet", ".csv", ".pt"])
@pytest.mark.parametrize("policy", ["keep", "zero", "mean"])
def test_gaps_are_kept_or_filled(kind: str, policy: GapPolicy, tmp_path: Path) -> None:
    values = VALUES
    if kind == ".pt":
        values = torch.from_numpy(VALUES).to(torch.bfloat16).double().numpy()
    found = convert(tmp_path, policy, save(tmp_path, kind, VALUES))
    tolerance = 4e-3 if kind == ".pt" else 1e-6
    assert np.allclose(found, expected(values, policy), rtol=tolerance, atol=1e-6, equal_nan=True)
    kept = np.isfinite(values)
    assert np.array_equal(found[kept], values[kept].astype(np.float32))


@pytest.mark.parametrize(
    ("kind", "column"), [(".npy", "1"), (".parquet", "1"), (".csv", "f1"), (".pt", "1")]
)
def test_gaps_are_refused_with_their_number_and_the_first(
    kind: str, column: str, tmp_path: Path
) -> None:
    files = save(tmp_path, kind, VALUES)
    says = rf"x\{kind}: 5 features are NaN or infinite, the first in row 3, column {column}; --nan "
    with pytest.raises(FileFormatError, match=says):
        convert(tmp_path, "refuse", files)
    assert not list(tmp_path.glob("out*"))


def test_the_mean_of_no_finite_value_is_refused(tmp_path: Path) -> None:
    values = VALUES.copy()
    values[:, 2] = np.nan
    with pytest.raises(FileFormatError, match="column 2 has no finite value"):
        convert(tmp_path, "mean", save(tmp_path, ".npy", values))


@pytest.mark.parametrize(("dtype", "value"), [("float16", 1e5), ("keep", 1e39)])
def test_values_beyond_the_type_they_are_stored_in_are_refused(
    dtype: Any, value: float, tmp_path: Path
) -> None:
    data = Data(
        x=torch.full((3, 2), value, dtype=torch.float64), edge_index=torch.tensor([[0], [1]])
    )
    with pytest.raises(FileFormatError, match=r"g: x: holds 1.*, beyond float"):
        convert_pyg(data, tmp_path / "g", ConvertOptions(dtype=dtype), name="g")


def test_the_command_refuses_or_replaces_nan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = torch.tensor([[1.0, 2.0], [float("nan"), 4.0], [3.0, 6.0]])
    torch.save(Data(x=x, edge_index=torch.tensor([[0], [1]])), tmp_path / "d.pt")
    command = ["convert", str(tmp_path / "d.pt"), str(tmp_path / "out")]
    assert main(command) == 2
    assert "1 features are NaN or infinite, the first in row 1" in capsys.readouterr().err
    assert main([*command, "--nan", "mean"]) == 0
    found = open_dataset(tmp_path / "out")
    assert found.node_table("features").tolist() == [[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]]
    assert found.manifest.source["nan_features"] == "mean"

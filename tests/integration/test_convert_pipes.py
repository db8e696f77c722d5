"""Tables through pipes: the same dataset as of the file, and nothing left behind."""

from __future__ import annotations

import gzip
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gnnsys.commands.cli import main
from gnnsys.convert import pipes
from gnnsys.dataset.folder import open_dataset

EDGES = pd.DataFrame(np.random.default_rng(2).integers(0, 50, (60_000, 2)), columns=["a", "b"])


def as_csv(file: Path) -> None:
    EDGES.to_csv(file, index=False)


def as_gzip(file: Path) -> None:
    file.write_bytes(gzip.compress(EDGES.to_csv(index=False).encode()))


def as_parquet(file: Path) -> None:
    EDGES.to_parquet(file, index=False)


def as_npy(file: Path) -> None:
    with open(file, "wb") as opened:
        np.save(opened, EDGES.to_numpy())


def fill(pipe: Path, content: bytes) -> threading.Thread:
    """Writes into a pipe as another process would."""
    thread = threading.Thread(target=pipe.write_bytes, args=(content,))
    thread.start()
    return thread


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go, to see what is left of them."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("write", [as_csv, as_gzip, as_parquet, as_npy])
def test_a_pipe_gives_the_edges_of_the_file(
    write: Callable[[Path], None],
    tmp_path: Path,
    temporary: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path / "file")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = fill(pipe, (tmp_path / "file").read_bytes())
    assert main(["convert", str(pipe), str(tmp_path / "out")]) == 0
    writer.join()
    assert "pipe" in capsys.readouterr().out
    found = open_dataset(tmp_path / "out").edge_index().numpy().T
    order = EDGES.sort_values(["b", "a"]).to_numpy()
    assert np.array_equal(found, order)
    assert not list(temporary.iterdir())
    assert {place.name for place in tmp_path.iterdir()} == {"file", "pipe", "out", "temporary"}


def test_nodes_come_through_a_pipe_and_errors_name_it(
    tmp_path: Path, temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    EDGES.to_csv(tmp_path / "e.csv", index=False)
    pipe = tmp_path / "nodes"
    os.mkfifo(pipe)
    ids = np.random.default_rng(0).permutation(50)
    for kept, code in ((50, 0), (49, 2)):
        rows = "".join(f"{node},{node / 2}\n" for node in ids[:kept])
        writer = fill(pipe, f"id,f\n{rows}".encode())
        arguments = ["convert", str(tmp_path / "e.csv"), str(tmp_path / f"out{kept}")]
        assert main([*arguments, "--nodes", str(pipe)]) == code
        writer.join()
    found = open_dataset(tmp_path / "out50")
    assert found.node_table("node_id").tolist() == ids.tolist()
    assert found.node_table("features")[:, 0].tolist() == (ids / 2).tolist()
    assert f"not among the 49 nodes of {pipe}\n" in capsys.readouterr().err
    assert not list(temporary.iterdir())
    assert not list(tmp_path.glob("out49*"))


def test_a_file_as_standard_input_is_read(tmp_path: Path) -> None:
    EDGES.to_csv(tmp_path / "e.csv", index=False)
    with open(tmp_path / "e.csv", "rb") as opened:
        place = f"/dev/fd/{opened.fileno()}"
        assert main(["convert", place, str(tmp_path / "out")]) == 0
    assert open_dataset(tmp_path / "out").num_edges() == len(EDGES)


@pytest.mark.parametrize("content", [b"", None])
def test_a_pipe_without_data_is_one_error(
    content: bytes | None,
    tmp_path: Path,
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(pipes, "_PATIENCE_S", 0.0)
    os.mkfifo(tmp_path / "pipe")
    writers = [] if content is None else [fill(tmp_path / "pipe", content)]
    assert main(["convert", str(tmp_path / "pipe"), str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "nobody wrote" in told or "nothing came" in told
    assert told.count("\n") == 1
    assert not list(temporary.iterdir())
    for writer in writers:
        writer.join()

"""What ends a command is one line and an exit status."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from gnnsys.commands import info
from gnnsys.commands.cli import main
from gnnsys.errors import StorageError
from gnnsys.generate import generate_community


@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        (OSError(30, os.strerror(30), "x.npy"), 2, "x.npy: Read-only file system; --debug"),
        (OSError("no such luck"), 2, "no such luck; --debug"),
        (MemoryError("8 GiB"), 2, "out of memory (8 GiB)"),
        (ValueError("two\n  lines"), 1, "a fault of gnnsys, ValueError: two lines; --debug"),
        (StorageError("g: cannot be written"), 2, "g: cannot be written"),
    ],
)
def test_whatever_ends_a_command_is_one_line_and_debug_raises_it(
    raised: Exception, code: int, told: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail(config: object) -> int:
        raise raised

    monkeypatch.setattr(info, "run_command", fail)
    assert main(["info", "g"]) == code
    error = capsys.readouterr().err
    assert error.startswith(f"gnnsys: error: {told}")
    assert error.count("\n") == 1
    with pytest.raises(type(raised)):
        main(["info", "g", "--debug"])


@pytest.mark.parametrize("table", ["train", "val", "test", "indices"])
@pytest.mark.parametrize("wrong", [-1, 60])
def test_an_id_outside_the_nodes_is_named_with_its_file(
    table: str, wrong: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = generate_community(tmp_path / "g", nodes=60, classes=2, features=4, degree=4)
    rows = np.load(folder / f"{table}.npy", mmap_mode="r+")
    rows[3] = wrong
    rows.flush()
    whole = ["--full-batch", "--model", "gcn"]
    for arguments in (
        ["train", str(folder), "--epochs", "1"],
        ["train", str(folder), "--epochs", "1", *whole],
        ["convert", str(folder), str(tmp_path / "gb"), "--to", "graphbolt"],
    ):
        assert main(arguments) == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert table in told or "sources of edges" in told or "neighbo" in told
        assert str(wrong) in told
        assert not (tmp_path / "gb").exists()

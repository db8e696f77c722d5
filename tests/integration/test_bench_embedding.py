"""The benchmark of embeddings runs, and both ways have the same losses."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.mark.slow
def test_training_in_a_folder_is_compared_with_training_in_memory(
    bench: SimpleNamespace, tmp_path: Path
) -> None:
    entry, report = importlib.import_module("embedding"), tmp_path / "report.json"
    sizes = ["--rows-log2", "8", "--dim", "4", "--cache", "64", "--limit-mib", "0"]
    work = ["--batch-size", "8", "--batches", "3", "--warm", "2", "--threads", "1"]
    arguments = [str(tmp_path / "t"), *sizes, *work, "--quick", "--rounds", "1"]
    assert entry.main([*arguments, "--json", str(report)]) == 0
    (rows,) = json.loads(report.read_text())["notes"]["rows"]
    assert sum(rows.values()) == 3 * 3 * 8

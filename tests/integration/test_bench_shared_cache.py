"""The benchmark of caches that ranks share: what real ranks read is what was predicted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.mark.slow
def test_what_ranks_read_is_what_the_plan_said(tmp_path: Path, run_entry) -> None:
    report = tmp_path / "shared.json"
    done = run_entry(
        "shared_cache.py", "--quick", "--rounds", "1", "--scale", "10", "--batch-size", "32",
        "--batches", "9", "--worlds", "2", "--capacities", "10", "--parts", "caches", "metis",
        "--window", "0",  # with which it does not matter how much is known at the start
        "--storage", "pread", "--folder", str(tmp_path), "--json", str(report),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    private, shared = found["caches"]
    assert (private["way"], shared["way"]) == ("private", "shm")
    for record in found["caches"]:
        assert record["rows_read"] == record["predicted_rows_read"]
        assert record["bytes_read"] == record["predicted_bytes"] > 0
    assert shared["bytes_read"] < private["bytes_read"]
    (metis,) = found["metis"]
    assert 0 < metis["rows_fetched"] < metis["rows"]
    assert not list(tmp_path.glob("gnnsys-bench-*"))

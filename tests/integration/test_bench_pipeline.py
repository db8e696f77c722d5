"""The benchmarks of pipelines, on the smallest of their inputs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path


def test_communication_is_checked_against_real_epochs(
    real_graphs: Path, tmp_path: Path, run_entry
) -> None:
    names = ("Cora", "CiteSeer", "PubMed", "Actor", "HeterophilousGraph", "GraphToolCollection")
    for name in names:
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).symlink_to(real_graphs / name)
    report = tmp_path / "communication.json"
    sizes = ["--ranks", "2", "--layers", "2", "--hidden", "8", "--run-nodes", "3000"]
    done = run_entry(
        "communication.py", "--root", str(tmp_path / "data"), "--run", "--models", "gcnii", *sizes,
        "--json", str(report),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(report.read_text())
    ran = {case["graph"] for case in told["cases"] if case["run"]}
    assert ran == {"cora", "polblogs"}
    for case in told["cases"]:
        assert case["bytes"]["pipeline 2x1"]["layer"] == 2 * case["nodes"] * 8 * 4 * 2
    summary = told["summary"]["pipeline 2x1"]["rows"]
    assert summary["least"] <= summary["geometric"] <= summary["arithmetic"] <= summary["greatest"]


def test_accuracy_runs_are_kept_and_told(real_graphs: Path, tmp_path: Path, run_entry) -> None:
    shutil.copytree(real_graphs / "Cora", tmp_path / "Cora")
    out = tmp_path / "runs.jsonl"
    options = ["--root", str(tmp_path), "--out", str(out), "--datasets", "cora", "--seeds", "2"]
    sizes = ["--epochs", "2", "--layers", "3", "--hidden", "8", "--models", "resgcn"]
    assert run_entry("pipeline_accuracy.py", *options, *sizes).returncode == 0
    lines = out.read_text().splitlines()
    assert len(lines) == 6
    done = run_entry("pipeline_accuracy.py", *options, *sizes)
    assert done.stdout == ""  # all are there
    assert out.read_text().splitlines() == lines
    table = run_entry("pipeline_accuracy.py", "--table", "--out", str(out)).stdout
    assert "| cora | resgcn | hybrid | 2 |" in table

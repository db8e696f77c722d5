"""The benchmark of contrastive losses, on the smallest of its inputs."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.image import imread


def test_forms_are_measured_in_processes_of_their_own(tmp_path: Path, run_entry) -> None:
    report, picture = tmp_path / "contrastive.json", tmp_path / "contrastive.png"
    done = run_entry(
        "contrastive.py", "--parts", "scaling", "--forms", "paper", "dense", "--sizes", "500,2000",
        "--rounds", "1", "--json", str(report), "--plot", str(picture),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(report.read_text())["scaling"]
    assert [(case["form"], case["nodes"]) for case in told["cases"]] == [
        ("paper", 500), ("paper", 2000), ("dense", 500), ("dense", 2000),
    ]  # fmt: skip
    dense = told["cases"][-1]
    # One matrix of float32 and what is linear.
    assert 4 * 2000**2 <= dense["kept_bytes"] <= 1.2 * 4 * 2000**2
    assert told["exponents"]["paper"]["kept"] <= 1.02 < 1.8 <= told["exponents"]["dense"]["kept"]
    assert imread(picture).std() > 0.05

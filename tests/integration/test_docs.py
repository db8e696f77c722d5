"""The page that follows a user from a CSV edge list to a trained model runs as it stands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "from-csv-to-model.md"


@pytest.mark.slow
def test_every_command_of_the_page_runs_in_an_empty_folder(tmp_path: Path) -> None:
    blocks = re.findall(r"```(bash|python)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert [kind for kind, _ in blocks].count("bash") >= 5
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for kind, text in blocks:
        command = ["bash", "-e", "-c", text] if kind == "bash" else [sys.executable, "-c", text]
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    # What the page says came out: many more right than the largest trade has people.
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["test_acc"] > 0.7
    assert result["epochs"] > 5
    predictions = np.load(tmp_path / "run" / "predictions" / "predictions.npy")
    labels, test = (np.load(tmp_path / "people" / f"{name}.npy") for name in ("labels", "test"))
    right = (predictions[test] == labels[test]).mean()
    assert abs(right - result["test_acc"]) < 1e-6
    assert "<svg" in (tmp_path / "run" / "report.html").read_text()

"""Pages with commands, such as from a CSV edge list to a trained model, run as they stand."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gnnsys.commands.cli import main

RunBlocks = Callable[[str], list[str]]

DOCS = Path(__file__).parents[2] / "docs"

# Perhaps with the name of a file.
BLOCK = re.compile(r"(?:[Tt]his is `(\w+\.py)`:\n\n)?```(bash|python)\n(.*?)```", re.DOTALL)

# Commands of words that a shell leaves as they are.
PLAIN = re.compile(r"(gnnsys [\w ./,%=:-]+(#.*)?\n)+")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # models of one's own add the folder
    yield
    for file in tmp_path.glob("*.py"):
        sys.modules.pop(file.stem, None)


@pytest.fixture
def run_blocks(run_forked: Callable[..., Any]) -> RunBlocks:
    def run(page: str) -> list[str]:
        """Runs what a page shows, one block after another; returns the kinds of blocks.

        Plain commands run in this process, which has imported torch already, and Python in forks of
        one that has, unless the page calls it a file.
        """
        blocks = BLOCK.findall((DOCS / page).read_text())
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        for file, kind, text in blocks:
            if file:
                Path(file).write_text(text)
            elif PLAIN.fullmatch(joined := text.replace("\\\n", "")):
                for line in joined.splitlines():
                    assert main(shlex.split(line, comments=True)[1:]) == 0, line
            elif kind == "python":
                check_ended(run_forked(text, Path.cwd()), text)
            else:
                environment = {**os.environ, "PATH": path}
                command = ["bash", "-e", "-c", text]
                check_ended(
                    subprocess.run(command, env=environment, capture_output=True, text=True), text
                )
        return [kind for _, kind, _ in blocks]

    return run


def check_ended(done: subprocess.CompletedProcess[str], text: str) -> None:
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


def test_every_command_about_formats_runs_in_an_empty_folder(
    tmp_path: Path, run_blocks: RunBlocks
) -> None:
    assert run_blocks("formats.md") == ["bash"]
    assert not (tmp_path / "out").exists()


def test_every_command_about_types_runs_in_an_empty_folder(
    tmp_path: Path, run_blocks: RunBlocks
) -> None:
    assert run_blocks("heterogeneous.md") == ["python", "bash"]
    assert len(np.load(tmp_path / "run" / "predictions" / "predictions.npy")) == 400
    # Another page has models of one's own for the same folder.
    assert run_blocks("models.md") == ["python", "bash"] * 2
    assert len(np.load(tmp_path / "run2" / "predictions" / "predictions.npy")) == 400


def test_every_command_about_links_runs_in_an_empty_folder(
    tmp_path: Path, run_blocks: RunBlocks
) -> None:
    assert run_blocks("links.md") == ["python", "bash", "python", "bash"]
    # By chance it is the mean of 1 / rank over 80 targets, 0.062.
    assert json.loads((tmp_path / "run" / "result.json").read_text())["test_mrr"] > 0.15
    assert len(pd.read_parquet(tmp_path / "best.parquet")) == 200 * 10


@pytest.mark.slow
def test_every_command_from_csv_to_model_runs_in_an_empty_folder(
    tmp_path: Path, run_blocks: RunBlocks
) -> None:
    assert run_blocks("from-csv-to-model.md").count("bash") >= 5
    # What the page says came out: many more right than the largest trade has people.
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["test_acc"] > 0.7
    assert result["epochs"] > 5
    predictions = np.load(tmp_path / "run" / "predictions" / "predictions.npy")
    labels, test = (np.load(tmp_path / "people" / f"{name}.npy") for name in ("labels", "test"))
    right = (predictions[test] == labels[test]).mean()
    assert abs(right - result["test_acc"]) < 1e-6
    assert "<svg" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.slow
def test_every_command_about_planning_runs_in_an_empty_folder(
    tmp_path: Path, run_blocks: RunBlocks
) -> None:
    assert run_blocks("planning.md").count("bash") >= 3
    assert (tmp_path / "plan.html").read_text().count("<svg") == 2
    assert (tmp_path / "demo-graph" / "static_score.npy").is_file()


def test_what_is_told_of_relational_layers_runs(run_blocks: RunBlocks) -> None:
    assert run_blocks("relational-layers.md") == ["python", "python"]


@pytest.mark.slow
def test_every_command_about_ranks_runs_in_an_empty_folder(
    tmp_path: Path, run_blocks: RunBlocks
) -> None:
    assert run_blocks("ranks.md") == ["bash"]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["epochs"], result["config"]["ranks"]) == (3, 2)


@pytest.mark.slow
def test_every_command_about_pipelines_runs_in_an_empty_folder(
    tmp_path: Path, run_blocks: RunBlocks
) -> None:
    assert run_blocks("pipeline.md").count("bash") >= 3
    assert json.loads((tmp_path / "run" / "result.json").read_text())["epochs"] == 8
    assert (tmp_path / "run" / "predictions").is_dir()
    assert (tmp_path / "schedule.png").stat().st_size > 10_000


@pytest.mark.slow
def test_every_command_about_clusters_runs_in_an_empty_folder(
    tmp_path: Path, run_blocks: RunBlocks
) -> None:
    assert run_blocks("clustering.md") == ["bash", "python"]
    written = np.load(tmp_path / "run" / "assignments.npy")
    assert (np.load(tmp_path / "clusters.npy") == written).all()
    assert (tmp_path / "clusters.png").stat().st_size > 10_000

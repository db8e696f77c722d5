"""``gnnsys train --ranks`` when something ends it before its time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import torch

from gnnsys.commands.cli import main
from gnnsys.generate import generate_community

TRAINING = ["--full-batch", "--model", "gcn", "--layers", "4", "--hidden", "8", "--seed", "3"]
SPLIT = ["--parallel", "pipeline", "--chunks", "6", "--snapshot-period", "4"]
TWO = [*SPLIT, "--ranks", "2"]

# The command, but for how long a rank may be silent before it counts as gone.
SHORT_SILENCE = """
import sys
from gnnsys.commands.cli import main
from gnnsys.ranks.liveness import Liveness
Liveness.__init__.__defaults__ = (0.5, 5.0, 600.0)
sys.exit(main())
"""
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("graph") / "community"
    return str(generate_community(folder, nodes=400, classes=4, features=8, degree=6, signal=0.5))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts ``gnnsys train``; what is left of it is killed at the end of the test."""
    started: list[subprocess.Popen[str]] = []

    def train(*arguments: str, command: Sequence[str] = ("-m", "gnnsys")) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *command, "train", *arguments],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        started.append(process)
        return process

    try:
        yield train
    finally:
        for process in started:
            if process.poll() is None:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()
            process.communicate()


def wait_for_checkpoint(process: subprocess.Popen[str], run: Path) -> None:
    deadline = time.monotonic() + 60
    while not (run / "checkpoint.pt").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def losses(run: Path) -> dict[int, float]:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {record["epoch"]: record["loss"] for record in records if record["kind"] == "epoch"}


def rank_process(launcher: subprocess.Popen[str], rank: int) -> psutil.Process:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in psutil.Process(launcher.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # one that ends meanwhile
                if child.environ().get("RANK") == str(rank):
                    return child
        time.sleep(0.01)
    raise AssertionError(f"no process of rank {rank}")


def test_ctrl_c_ends_all_ranks_with_one_checkpoint_that_goes_on(
    graph: str, tmp_path: Path, start: Start, one_thread: None
) -> None:
    run = tmp_path / "run"
    process = start(graph, *TRAINING, *TWO, "--epochs", "100000", "--out", str(run))
    wait_for_checkpoint(process, run)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert f"gnnsys train --resume {run}" in told.replace("\n", "")
    assert "Traceback" not in told
    assert "[rank" not in told
    assert "failed" not in told
    done = len(losses(run))
    # In one process, which repeats the ranks' bits.
    epochs = ["--epochs", str(done + 2)]
    assert main(["train", "--resume", str(run), *epochs]) == 0
    whole = tmp_path / "whole"
    assert (
        main(["train", graph, *TRAINING, *SPLIT, "--stages", "2", *epochs, "--out", str(whole)])
        == 0
    )
    assert losses(run) == losses(whole)


def test_a_rank_killed_while_it_writes_is_named_and_the_run_goes_on(
    graph: str, tmp_path: Path, start: Start, one_thread: None
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    split = ["--parallel", "pipeline", "--chunks", "6", "--snapshot-period", "1"]
    process = start(
        graph, *TRAINING, *split, "--ranks", "3", "--epochs", "100000", "--out", str(run)
    )
    wait_for_checkpoint(process, run)
    killed = rank_process(process, 1)
    before = set(run.glob("snapshot-*-1-of-3*"))
    while set(run.glob("snapshot-*-1-of-3*")) == before:  # until it begins with the next one
        assert process.poll() is None, process.communicate()
    begun = time.monotonic()
    killed.kill()
    _, told = process.communicate(timeout=60)
    assert time.monotonic() - begun < 60
    assert process.returncode == 128 + signal.SIGKILL, told
    assert "rank 1 was ended by SIGKILL" in told
    assert told.count("rank 1 of 3 is gone") == 2  # both of the others say so
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    assert len(checkpoint["snapshot"]) == 3
    assert {path.name for path in run.iterdir()} >= set(checkpoint["snapshot"])
    epochs = ["--epochs", str(max(losses(run)) + 2)]
    assert main(["train", "--resume", str(run), *epochs]) == 0
    assert (
        main(["train", graph, *TRAINING, *split, "--stages", "3", *epochs, "--out", str(whole)])
        == 0
    )
    assert losses(run) == losses(whole)
    left = {path.name for path in run.glob("snapshot-*")}
    assert left == set(torch.load(run / "checkpoint.pt", weights_only=True)["snapshot"])


def test_under_torchrun_the_others_name_a_killed_rank(
    graph: str, tmp_path: Path, start: Start
) -> None:
    run, script = tmp_path / "run", tmp_path / "gnnsys_train.py"
    script.write_text(SHORT_SILENCE)
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "3", str(script)]
    options = [*TRAINING, *SPLIT, "--epochs", "100000", "--out", str(run)]
    process = start(graph, *options, command=torchrun)
    wait_for_checkpoint(process, run)
    begun = time.monotonic()
    rank_process(process, 2).kill()
    _, told = process.communicate(timeout=60)
    assert time.monotonic() - begun < 60
    assert process.returncode == 1
    assert told.count("gnnsys: error: rank 2 of 3 is gone") == 2


def test_a_rank_that_ends_before_all_have_met_ends_the_rest(
    graph: str, tmp_path: Path, start: Start
) -> None:
    begun = time.monotonic()
    process = start(graph, *TRAINING, *TWO, "--epochs", "3", "--out", "run")
    while len(psutil.Process(process.pid).children()) < 2:  # they have much to import
        assert time.monotonic() - begun < 30
        time.sleep(0.01)
    rank_process(process, 1).send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, told
    assert "gnnsys: error: rank 1 was ended by SIGTERM\n" in told
    assert told.count("gnnsys: error: rank 1 was ended by SIGTERM before all had met") == 1
    assert "killed" not in told
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_in_use_is_refused_once(graph: str, tmp_path: Path, start: Start) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    process = start(graph, *TRAINING, *TWO, "--epochs", "3", "--out", "run")
    _, told = process.communicate(timeout=60)
    assert process.returncode == 2
    assert told.splitlines() == [
        "gnnsys: error: --out run: holds files already; give another folder, or go on with "
        "--resume run"
    ]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]

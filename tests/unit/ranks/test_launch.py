"""How often ranks are started again, by processes that only end as told."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from gnnsys.config.train import TrainConfig
from gnnsys.errors import ArgumentError, GnnsysError
from gnnsys.generate import generate_community
from gnnsys.ranks import launch
from gnnsys.training.loop import run_training

# Notes its start, then ends by the status, or the signal if negative, that is given for it; with
# "parent", its starter is asked to end first.
RANK = """
import os, signal, sys, time
restarts, rank = (int(os.environ[name]) for name in ("TORCHELASTIC_RESTART_COUNT", "RANK"))
open(f"{restarts}-{rank}", "w").close()
ends = sys.argv[1 + min(restarts, len(sys.argv) - 2)]
if rank == 0:
    time.sleep(60 if ends != "0" else 0)
elif ends == "parent":
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(60)
elif ends.startswith("-"):
    os.kill(os.getpid(), -int(ends))
sys.exit(abs(int(ends)))
"""


@pytest.mark.parametrize(
    ("ends", "status", "starts"),
    [
        (["-9", "1", "0"], 0, 3),
        (["-9"], 128 + signal.SIGKILL, 3),
        (["2"], 2, 3),  # the other hangs
        (["0"], 0, 1),
        (["parent"], 128 + signal.SIGINT, 1),
    ],
)
def test_dead_ranks_are_started_again_up_to_a_number_of_times(
    ends: list[str], status: int, starts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "_COMMAND", RANK)
    assert launch.run_ranks(ends, 2, grace=0.1, max_restarts=2) == status
    found = {tuple(map(int, path.name.split("-"))) for path in tmp_path.iterdir()}
    assert {attempt for attempt, _ in found} == set(range(starts))


def test_a_command_that_torchrun_starts_again_goes_on_with_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    graph = str(generate_community(tmp_path / "graph", nodes=60, classes=2, features=4, degree=3))

    def train(out: str, restarts: int, stop_after: int = 3) -> list[float]:
        monkeypatch.setitem(os.environ, "TORCHELASTIC_RESTART_COUNT", str(restarts))

        def die(epoch: int, done: int, total: int) -> None:
            if epoch > stop_after:
                raise MemoryError

        config = TrainConfig(
            dataset=graph, out=str(tmp_path / out), epochs=3, hidden=4, batch_size=8, threads=1
        )
        return [record.loss for record in run_training(config, on_batch=die).history]

    whole = train("whole", 0)
    for stop_after in (0, 2):  # before the first checkpoint, and after it
        with pytest.raises(MemoryError):
            train("run", restarts=stop_after, stop_after=stop_after)
    assert train("run", restarts=3) == whole
    with pytest.raises(ArgumentError, match="holds files already"):
        train("whole", 0)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(ArgumentError, match="holds files already"):
        train("other", 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranks": 2}, "--max-restarts 1: goes on from checkpoints; add --out FOLDER"),
        ({"out": "run"}, "--max-restarts 1: goes with --ranks; torchrun has one of its own"),
        ({"max_restarts": -1}, "--max-restarts -1: expected"),
    ],
)
def test_restarts_that_cannot_go_on_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(GnnsysError, match=message):
        TrainConfig(**({"dataset": "demo", "max_restarts": 1} | options))  # type: ignore[arg-type]

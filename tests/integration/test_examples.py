"""The programs in examples/."""

from __future__ import annotations

import json
import runpy
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import gnnsys
from gnnsys.generate import generate_community
from gnnsys.offload import StepStats

_EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return str(generate_community("g", nodes=80, features=4, degree=3))


def run_example(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(_EXAMPLES / "log_to_wandb.py")
    monkeypatch.setattr(sys, "argv", [path, *arguments])
    runpy.run_path(path, run_name="__main__")


def recorded(run: str) -> list[dict[str, Any]]:
    lines = map(json.loads, Path(run, "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "epoch"]


def test_a_run_is_logged_to_a_file_without_wandb(
    graph: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # import wandb fails
    run_example([graph, "--epochs", "3", "--out", "run"], monkeypatch)
    config, *epochs, best = map(json.loads, Path("gnnsys.jsonl").read_text().splitlines())
    assert config["config"]["dataset"] == graph
    assert [line["step"] for line in epochs] == [1, 2, 3]
    assert [line["train/loss"] for line in epochs] == [line["loss"] for line in recorded("run")]
    assert best["best_epoch"] == recorded("run")[-1]["best_epoch"]


def test_a_run_is_logged_by_the_calls_of_wandb(graph: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a module with the signatures of wandb.init, Run.log and Run.finish."""
    logged: list[Any] = []

    class Run:
        def log(self, data: dict[str, Any], step: int | None = None) -> None:
            logged.append((step, data))

        def finish(self, exit_code: int | None = None) -> None:
            logged.append("finished")

    module = types.ModuleType("wandb")
    module.init = lambda project=None, config=None: Run()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    run_example([graph, "--epochs", "2", "--out", "run"], monkeypatch)
    assert [each[0] for each in logged[:-1]] == [1, 2, None]
    assert logged[-1] == "finished"
    assert not Path("gnnsys.jsonl").exists()


def test_deep_training_offloaded_has_the_losses_of_plain_training(
    real_graphs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = runpy.run_path(str(_EXAMPLES / "deep_offload.py"))
    small = ["--root", str(real_graphs), "--dataset", "cora", "--layers", "3", "--width", "32"]
    ours = program["main"]([*small, "--epochs", "2"])
    assert " in memory at most" in capsys.readouterr().out
    monkeypatch.setattr(gnnsys, "ActivationOffload", Plain)
    assert program["main"]([*small, "--epochs", "2"]) == ours


class Plain:
    """In place of ``ActivationOffload``: nothing."""

    stats = StepStats()

    def __init__(self, budget: object) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        pass

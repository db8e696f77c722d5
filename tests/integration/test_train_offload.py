"""``gnnsys train --offload`` and ``gnnsys plan --offload``: the same weights, less memory."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gnnsys.commands.cli import main
from gnnsys.config.file import read_config
from gnnsys.config.run_files import RESULT

# Threads of torch that wait for one another take longer than these small steps.
pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = ["--hidden", "64", "--epochs", "3", "--seed", "3"]
DEEP = ["--full-batch", "--model", "gcnii", "--layers", "6", *OPTIONS]
WAYS = {
    "full batch": ["--full-batch", "--model", "sage", "--layers", "3", *OPTIONS],
    "deep": DEEP,
    "mini-batches": ["--model", "sage", "--batch-size", "100", *OPTIONS],
    "ranks": ["--model", "sage", "--batch-size", "100", "--ranks", "2", *OPTIONS],
    "pipeline": [*DEEP, "--parallel", "pipeline", "--stages", "2", "--ways", "1", "--chunks", "1"],
    "chunks": [*DEEP, "--parallel", "hybrid", "--stages", "2", "--ways", "2", "--chunks", "4"],
}
MOVES = ("full batch", "deep", "pipeline", "chunks")
"""Whose activations take more than 2 MB after bit masks."""

STORAGE = 2000 * 64 * 4
"""Bytes of a layer's rows."""


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("graph") / "community"
    sizes = ["--nodes", "2000", "--features", "12"]
    assert main(["generate", "community", str(folder), *sizes]) == 0
    return str(folder)


def train(graph: str, out: Path, *options: str) -> dict[str, Any]:
    assert main(["train", graph, "--out", str(out), *options]) == 0
    found: dict[str, Any] = json.loads((out / RESULT).read_text())
    return found


def same_weights(a: Path, b: Path) -> bool:
    ours, plain = (load_file(run / "model.safetensors") for run in (a, b))
    return ours.keys() == plain.keys() and all(torch.equal(ours[key], plain[key]) for key in plain)


@pytest.mark.parametrize("way", WAYS)
def test_weights_are_the_same_and_memory_is_not(way: str, graph: str, tmp_path: Path) -> None:
    assert train(graph, tmp_path / "plain", *WAYS[way])["offload"] == {}
    folder = tmp_path / "made" / "here"
    places = ["--offload", str(folder), "--activation-budget", "2MB"]
    told = train(graph, tmp_path / "ours", *WAYS[way], *places)["offload"]
    assert same_weights(tmp_path / "ours", tmp_path / "plain")
    assert 0 < told["peak"] <= 2 << 20
    assert told["peak"] < told["plain"]
    assert (told["stored"] > 0) == (way in MOVES)
    assert told["predicted_peak"] == pytest.approx(told["peak"], rel=0.05)
    assert os.listdir(folder) == []


def test_a_prediction_is_told_of_a_batch_that_it_was_for(graph: str, tmp_path: Path) -> None:
    """Of 1000 seeds, the last batch has 100, and the first is planned anew then."""
    batches = ["--model", "sage", "--batch-size", "300", *OPTIONS]
    told = train(graph, tmp_path / "run", *batches, "--offload", "auto")["offload"]
    assert told["predicted_peak"] == pytest.approx(told["peak"], rel=0.05)
    assert told["plain"] > 300 * 64 * 4 * 3


def test_runs_tell_and_go_on(
    graph: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    moving = ["--offload", "auto", "--activation-budget", "1500KB"]
    result = train(graph, run, *DEEP, *moving)
    assert result["offload"]["stored"] > 0
    assert result["memory"]["names"]["activations of training"]["planned"] == 1500 << 10
    shown = capsys.readouterr().out
    assert "activations: moved out" in shown
    assert "foretold" in shown
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Activations of a step" in page
    assert "foretold" in page
    resumed = ["--offload", str(tmp_path / "other"), "--activation-budget", "2MB"]
    assert main(["train", "--resume", str(run), "--epochs", "5", *resumed]) == 0
    train(graph, whole, *DEEP, "--epochs", "5")
    assert same_weights(run, whole)
    assert main(["train", "--resume", str(run), "--epochs", "6", "--offload", "none"]) == 0
    assert json.loads((run / RESULT).read_text())["offload"] == {}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--activation-budget", "2MB"], "--activation-budget 2MB: goes with --offload"),
        (["--offload", "auto", "--activation-budget", "0"], "--activation-budget 0: expected more"),
        (["--offload", "auto", "--activation-budget", "many"], "activation-budget many: expected"),
        (["--offload", "/proc/none"], "/proc/none: cannot be written"),
        (
            ["--offload", "auto", "--activation-budget", "300KB"],
            "a tensor of 500 KiB (2000, 64) beside",
        ),
    ],
)
def test_what_does_not_fit_is_one_error(
    options: list[str], error: str, graph: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", graph, *DEEP, *options]) == 2
    assert error in capsys.readouterr().err


def test_a_compiled_model_is_refused(graph: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", graph, "--compile", "--offload", "auto"]) == 2
    assert "--offload auto: does not go with --compile" in capsys.readouterr().err


def test_a_plan_foretells_bytes_and_the_peak(
    graph: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--layers", "6", "--hidden", "64"]
    plan = ["plan", graph, "--offload", str(tmp_path / "disk"), *sizes]
    assert main([*plan, "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    result = train(graph, tmp_path / "all", *DEEP, "--offload", "auto")["offload"]
    assert (told["plain"], told["masked"]) == (result["plain"], result["masked"])
    assert told["budgets"][0]["plan"]["peak"] == told["kept"] == result["peak"]
    assert [each["budget"] for each in told["budgets"]] == [
        int(told["plain"] * share) for share in (1, 0.5, 0.25, 0.125)
    ]
    for each in told["budgets"]:
        if each["plan"] is not None:
            assert each["plan"]["peak"] <= each["budget"]
            step = told["step_seconds"] + each["plan"]["stall"]
            assert each["plan"]["seconds"] == pytest.approx(step)
    assert told["budgets"][-1]["plan"] is None or told["least"] <= told["budgets"][-1]["budget"]
    capsys.readouterr()
    budget = told["least"] + STORAGE
    assert main([*plan, "--activation-budget", str(budget), "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out.splitlines()[-1])["budgets"]
    result = train(
        graph, tmp_path / "moved", *DEEP, "--offload", "auto", "--activation-budget", str(budget)
    )["offload"]
    # What backward needs before it is written stays.
    assert 0 < result["stored"] <= one["plan"]["written"]
    assert result["peak"] <= budget
    assert one["plan"]["peak"] == pytest.approx(result["peak"], rel=0.05)
    capsys.readouterr()
    assert main(plan) == 0
    assert "moved to the disk" in capsys.readouterr().out
    assert main([*plan, "--activation-budget", "100KB"]) == 2
    assert "in memory at once > budget of 100 KiB" in capsys.readouterr().err
    for option in (["--ranks", "2"], ["--budget", "10%"]):
        assert main([*plan, *option]) == 2
        assert f"{option[0]} " in (error := capsys.readouterr().err)
        assert "does not go with --offload" in error
    assert main(["plan", graph, "--offload", "none"]) == 2
    assert "--offload none: expected auto or a folder" in capsys.readouterr().err
    assert os.listdir(tmp_path / "disk") == []


def test_a_folder_in_a_file_of_options_is_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "train.toml"
    for written, meant in {"auto": "auto", "none": "none", "disk": str(tmp_path / "disk")}.items():
        file.write_text(f'dataset = "demo"\noffload = "{written}"\n')
        assert read_config(file).offload == meant

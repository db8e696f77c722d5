"""Schedules, weights of classes, regression and metrics, in whole runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import r2_score

import gnnsys
from gnnsys.commands.cli import main
from gnnsys.config.file import resumed_config
from gnnsys.config.train import TrainConfig
from gnnsys.errors import ArgumentError, UnsupportedError
from gnnsys.generate import generate_community
from gnnsys.report.reader import read_run
from gnnsys.training.checkpoint import load_checkpoint
from gnnsys.training.loop import TrainResult, run_training
from gnnsys.training.mini_batch import MiniBatch

NODES, FEATURES = 500, 5
OPTIONS: dict[str, Any] = {
    "epochs": 4, "batch_size": 128, "hidden": 16, "fanouts": (3, 3), "threads": 1, "device": "cpu"
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("options") / "g"
    return generate_community(path, nodes=NODES, classes=3, features=8, degree=6, signal=0.3)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a number for each node that its features tell, unknown for some."""
    place = tmp_path_factory.mktemp("numbers")
    draw = np.random.default_rng(0)
    x = draw.normal(size=(NODES, FEATURES)).astype(np.float32)
    y = (x @ draw.normal(size=FEATURES) + 3 + 0.1 * draw.normal(size=NODES)).astype(np.float32)
    y[::10] = np.nan
    edges = draw.integers(0, NODES, (2, 4 * NODES))
    for name, table in (("x", x), ("y", y), ("edges", edges)):
        np.save(place / f"{name}.npy", table)
    arguments = ["--features", place / "x.npy", "--labels", place / "y.npy", "--regression"]
    arguments += ["--random-split", 0.6, 0.2, 0.2]
    command = ["convert", place / "edges.npy", place / "g", *arguments, "--quiet"]
    assert main([str(word) for word in command]) == 0
    return place / "g"


def train(folder: Path, out: Path | None = None, **options: Any) -> TrainResult:
    config = TrainConfig(dataset=str(folder), out=str(out) if out else None, **OPTIONS | options)
    return run_training(config)


def resume(out: Path, **options: Any) -> TrainResult:
    return run_training(dataclasses.replace(resumed_config(out), **options))


def epochs_of(out: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [record for record in lines if record["kind"] == "epoch"]


# Schedules ---------------------------------------------------------------------------------------


def test_the_options_as_they_are_change_no_loss(folder: Path) -> None:
    spelled_out = {"optimizer": "adam", "lr_schedule": "constant", "clip_norm": 1e9}
    assert train(folder, **spelled_out).history == train(folder).history


@pytest.mark.parametrize(
    "options",
    [
        {"lr_schedule": "plateau", "lr_patience": 2, "lr": 1e-9},  # learns nothing
        {"lr_schedule": "cosine", "lr_epochs": 4, "warmup_epochs": 1.5, "clip_norm": 0.5},
        {"lr_schedule": "step", "lr_every": 2, "model": "gcnii", "full_batch": True},
    ],
    ids=lambda options: options["lr_schedule"] + options.get("model", ""),
)
def test_a_run_that_goes_on_equals_one_that_was_not_broken_off(
    folder: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    whole = train(folder, tmp_path / "whole", **options)
    train(folder, tmp_path / "run", **{**options, "epochs": 2})
    again = resume(tmp_path / "run", epochs=4)
    assert again.history == whole.history
    rates = [[record["lr"] for record in epochs_of(tmp_path / name)] for name in ("whole", "run")]
    assert rates[0] == rates[1]
    assert len(set(rates[0])) > 1
    one, other = (load_checkpoint(tmp_path / name).model for name in ("whole", "run"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_first_score_that_is_a_number_is_better_than_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scores = iter([float("nan"), 0.5, 0.6, float("nan")])

    def evaluate(self: Any, names: list[str], part: str) -> dict[str, float]:
        score = next(scores) if part == "val" else 0.0
        return dict.fromkeys(names, score)

    monkeypatch.setattr(MiniBatch, "evaluate", evaluate)
    result = train(folder, epochs=4)
    assert (result.best_epoch, result.best_val["accuracy"]) == (3, 0.6)
    assert caplog.text.count("--metric accuracy: is NaN on the validation nodes") == 1


def test_the_best_epoch_has_the_lowest_loss_and_the_run_stops_behind_it(
    folder: Path, tmp_path: Path
) -> None:
    result = train(folder, tmp_path / "run", metric="loss", patience=2, epochs=60, lr=0.05)
    losses = [record.val for record in result.history]
    assert result.reason == "early stop"
    assert result.best_epoch == 1 + int(np.argmin(losses)) == len(losses) - 2
    assert result.best_val["loss"] == min(losses)
    assert {"accuracy", "loss"} == {*result.best_test}


def test_weights_of_classes_change_what_is_learnt(folder: Path) -> None:
    one_alone = train(folder, class_weights="0,0,1", metric="recall", epochs=2, lr=0.1)
    assert one_alone.best_val["recall"] == pytest.approx(1 / 3)  # all are called class 2
    with pytest.raises(ArgumentError, match="2 numbers, expected one for each of 3 classes"):
        train(folder, class_weights="1,2")


# Regression --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"full_batch": True, "loss": "huber", "lr": 0.1}])
def test_a_regression_learns_what_features_tell(
    numbers: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    options = {"epochs": 30, "dropout": 0.0, "weight_decay": 0.0, "lr": 0.04, **options}
    result = train(numbers, tmp_path / "run", **options)
    assert result.metric == "rmse"
    assert {*result.best_test} == {"rmse", "mae", "r2"}
    assert result.best_test["r2"] > 0.9
    scores = [record.val for record in result.history]
    assert result.best_epoch == 1 + int(np.argmin(scores))

    assert main(["predict", str(tmp_path / "run"), "--quiet"]) == 0
    found = np.load(tmp_path / "run" / "predictions" / "predictions.npy")
    dataset = gnnsys.open_dataset(numbers)
    labels, test = np.array(dataset.node_table("labels")), dataset.split("test").numpy()
    assert found.shape == (NODES,)
    expected = r2_score(labels[test], found[test])
    assert result.best_test["r2"] == pytest.approx(expected, abs=1e-5)
    assert "classes" not in json.loads((tmp_path / "run" / "metrics.jsonl").open().readline())
    run = read_run(tmp_path / "run")
    assert run.loss_name == options.get("loss", "mse")
    assert run.best_metric()[0] == min(scores)


def test_predictions_of_a_regression_are_a_table_of_values(numbers: Path, tmp_path: Path) -> None:
    train(numbers, tmp_path / "run", epochs=1)
    assert main(["predict", str(tmp_path / "run"), "--out", str(tmp_path / "p.csv")]) == 0
    assert main(["predict", str(tmp_path / "run"), "--out", str(tmp_path / "p"), "--json"]) == 0
    table = pd.read_csv(tmp_path / "p.csv")
    assert [*table.columns] == ["id", "value"]
    np.testing.assert_allclose(table["value"], np.load(tmp_path / "p" / "predictions.npy"))


def test_labels_that_do_not_fit_a_regression_are_refused(
    numbers: Path, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError, match="--metric accuracy: the nodes of g have a number each"):
        train(numbers, metric="accuracy")
    with pytest.raises(ArgumentError, match="--loss l1: is of a regression"):
        train(folder, tmp_path / "run", loss="l1")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UnsupportedError, match="a number for each node"):
        train(numbers, model="gcnii", full_batch=True)


def test_a_table_of_nodes_has_numbers_for_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("edges.csv").write_text("source,target\na,b\nb,c\nc,a\n")
    Path("nodes.csv").write_text("id,label,f\na,-2,1\nb,,2\nc,3,3\n")
    convert = ["convert", "edges.csv", "g", "--nodes", "nodes.csv"]
    split = ["--random-split", "0.5", "0.5", "0"]
    assert main([*convert, "--regression", *split, "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["task"]["regression"]
    dataset = gnnsys.open_dataset("g")
    np.testing.assert_array_equal(dataset.labels(), [-2, np.nan, 3])
    assert sorted([*dataset.split("train"), *dataset.split("val")]) == [0, 2]
    Path("nodes.csv").write_text("id,label,f\na,1e99,1\nb,,2\nc,3,3\n")
    assert main([*convert[:2], "h", *convert[3:], "--regression"]) == 2
    assert "node 0 has 1e+99, expected numbers that float32 can hold" in capsys.readouterr().err
    assert not Path("h").exists()


def test_numbers_of_pyg_and_graphbolt_come_as_they_are(numbers: Path, tmp_path: Path) -> None:
    data = gnnsys.open_dataset(numbers).to_data()
    data.x = data.x.materialize()
    torch.save(data, tmp_path / "data.pt")
    convert = ["convert", "--regression", "--quiet"]
    assert main([*convert, str(tmp_path / "data.pt"), str(tmp_path / "pyg")]) == 0
    back = ["convert", str(tmp_path / "pyg"), str(tmp_path / "bolt"), "--to", "graphbolt"]
    assert main([*back, "--quiet"]) == 0
    assert main([*convert, str(tmp_path / "bolt"), str(tmp_path / "again")]) == 0
    for name in ("pyg", "again"):
        found = gnnsys.open_dataset(tmp_path / name)
        assert found.task is not None
        assert (found.task.regression, found.task.num_classes, found.task.metric) == (
            True, 1, "rmse"
        )  # fmt: skip
        seeds = torch.cat([found.split(part) for part in ("train", "val", "test")])
        assert torch.equal(found.labels()[seeds], data.y[seeds])

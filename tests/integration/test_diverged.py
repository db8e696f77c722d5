"""Losses that become NaN, and what is written of numbers that are not finite."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from gnnsys.commands.cli import main
from gnnsys.config.cluster import ClusterConfig
from gnnsys.config.train import TrainConfig
from gnnsys.errors import ArgumentError, DivergedError, MissingFileError
from gnnsys.generate import generate_community
from gnnsys.system.records import json_text
from gnnsys.training.loop import run_training

_WAYS: dict[str, dict[str, Any]] = {
    "sampled": {"fanouts": (3, 2), "batch_size": 40},
    "full": {"full_batch": True, "model": "gcn"},
    "pipeline": {
        "full_batch": True, "model": "gcn", "parallel": "pipeline", "stages": 2, "layers": 4,
        "hidden": 8,
    },
}  # fmt: skip


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return str(generate_community("g", nodes=200, features=6, degree=4).absolute())


def records_of(run: str) -> list[dict[str, Any]]:
    return [strict(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def strict(text: str) -> Any:
    """Parses what standard JSON permits, which has no NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("way", _WAYS)
def test_a_loss_of_nan_ends_the_run_and_the_checkpoint_before_stays(graph: str, way: str) -> None:
    options = {"dataset": graph, "epochs": 6, **_WAYS[way]}
    run_training(TrainConfig(**options, out="run"))
    weights = safetensors.torch.load_file("run/model.safetensors")
    with pytest.raises(DivergedError) as found:
        run_training(TrainConfig(**{**options, "lr": 1e30}, out="bad"))
    (end,) = [each for each in records_of("bad") if each["kind"] == "end"]
    assert end["reason"] == "diverged"
    steps = [each for each in records_of("bad") if each["kind"] == "step"]
    assert all(math.isfinite(each["loss"]) for each in steps)
    assert "try a lower --lr than 1e+30" in str(found.value)
    checkpoint = Path("bad/checkpoint.pt")
    assert ("the checkpoint in bad is from before" in str(found.value)) == checkpoint.exists()
    if checkpoint.exists():
        kept = torch.load(checkpoint, weights_only=True)
        assert all(bool(t.isfinite().all()) for t in kept["model"].values())
    assert safetensors.torch.load_file("run/model.safetensors").keys() == weights.keys()


def test_the_step_that_diverges_is_the_one_that_torch_finds(graph: str) -> None:
    """Against a loop of torch and PyG over the same graph with the same weights."""
    options = TrainConfig(dataset=graph, full_batch=True, model="gcn", lr=1e18, dropout=0.0)
    with pytest.raises(DivergedError) as found:
        run_training(options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        from gnnsys import open_dataset
        from gnnsys.config.resolve import resolve
        from gnnsys.training.datasets import load_run_dataset
        from gnnsys.training.models import make_model

        run = resolve(options)
        model = make_model(run, load_run_dataset(run))
    data = open_dataset(graph).to_data()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e18, weight_decay=5e-4)
    epoch = 0
    while epoch < 200:
        epoch += 1
        optimizer.zero_grad()
        out = model(data.x.materialize(), data.edge_index)
        loss = torch.nn.functional.cross_entropy(out[data.train_mask], data.y[data.train_mask])
        if not loss.isfinite():
            break
        loss.backward()
        optimizer.step()
        if not all(bool(p.isfinite().all()) for p in model.parameters()):
            break
    assert f"in epoch {epoch}, batch" in str(found.value)


def test_training_goes_on_when_asked_and_says_so_once(
    graph: str, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"dataset": graph, "epochs": 6, "lr": 1e30, "nan_loss": "go-on", **_WAYS["sampled"]}
    with caplog.at_level(logging.WARNING):
        result = run_training(TrainConfig(**options, out="run"))
    assert len(result.history) == 6
    assert math.isnan(result.history[-1].loss)
    told = [each.message for each in caplog.records if "training goes on as asked" in each.message]
    assert len(told) == 1
    last = [each for each in records_of("run") if each["kind"] == "epoch"][-1]
    assert last["loss"] is None
    assert last["non_finite"]["loss"] == "NaN"
    written = strict(Path("run/result.json").read_text())
    assert written["loss"] is None
    assert written["non_finite"]["loss"] == "NaN"
    assert main(["report", "run"]) == 0


def test_features_that_are_nan_are_named(graph: str) -> None:
    path = Path(graph, "features.npy")
    features = np.load(path, mmap_mode="r+")
    node = int(np.load(Path(graph, "train.npy"))[0])
    features[node, 2] = np.nan
    features.flush()
    with pytest.raises(DivergedError, match=f"NaN or infinite, such as node {node}; "):
        run_training(TrainConfig(dataset=graph, fanouts=(-1, -1), batch_size=1000))


def test_a_seed_of_a_clustering_that_diverges_ends_it(graph: str) -> None:
    from gnnsys.clustering.runs import run_clustering

    for options in ({"lr": 1e30}, {"lr": 1e30, "pretrain_epochs": 0, "warm_epochs": 0}):
        with pytest.raises(DivergedError, match=r"of seed 0; try a lower --lr than 1e\+30"):
            run_clustering(ClusterConfig(dataset=graph, k=3, epochs=4, **options))


# A dataset that has moved ------------------------------------------------------------------------


def test_a_run_goes_on_where_its_dataset_is_now(graph: str) -> None:
    options = {"dataset": graph, "fanouts": (3, 2), "batch_size": 40}
    whole = run_training(TrainConfig(**options, epochs=4))
    run_training(TrainConfig(**options, epochs=2, out="run"))
    Path(graph).rename("elsewhere")
    from gnnsys.config.file import resumed_config

    with pytest.raises(MissingFileError, match=r"no such folder, .*--data PLACE"):
        run_training(resumed_config("run"))
    assert main(["train", "--resume", "run", "--data", "elsewhere", "--epochs", "4"]) == 0
    losses = [each["loss"] for each in records_of("run") if each["kind"] == "epoch"]
    assert losses == [each.loss for each in whole.history]
    assert resumed_config("run").dataset == str(Path("elsewhere").absolute())
    assert main(["predict", "run"]) == 0


def test_another_dataset_in_its_place_is_refused(
    graph: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_training(TrainConfig(dataset=graph, fanouts=(3, 2), epochs=1, out="run"))
    before = Path("run/config.toml").read_text()
    other = generate_community("other", nodes=200, features=6, degree=4, seed=5)
    assert main(["train", "--resume", "run", "--data", str(other)]) == 2
    assert "of another dataset" in capsys.readouterr().err
    assert Path("run/config.toml").read_text() == before
    with pytest.raises(ArgumentError, match="--data: goes with --resume"):
        TrainConfig(dataset=graph, data="x")


# Files -------------------------------------------------------------------------------------------


def test_equal_weights_make_equal_files_that_name_no_folder(graph: str) -> None:
    for run in ("one", "two/deeper"):
        run_training(TrainConfig(dataset=graph, fanouts=(3, 2), epochs=2, out=run))
    one, two = (Path(run, "model.safetensors").read_bytes() for run in ("one", "two/deeper"))
    assert one == two
    assert str(Path.cwd()).encode() not in one
    assert b"deeper" not in two


@pytest.mark.parametrize(
    "content",
    [
        {"a": float("nan")},
        {"a": [1.5, float("inf")], "b": {"c d": -float("inf")}},
        [float("nan")],
        {"a": (1, None, "NaN", True)},
        {1: {"x": [float("nan")]}},
    ],
)
def test_json_holds_null_and_says_what_it_was(content: Any) -> None:
    text = json_text(content)
    found = strict(text)
    lenient = json.loads(json.dumps(content))
    places = found.pop("non_finite", {}) if isinstance(found, dict) else None
    for place, value in (places or {}).items():
        owner, expression = found, lenient
        *trail, last = (
            place.replace("]", "")
            .replace("['", ".")
            .replace("'", "")
            .replace("[", ".")
            .strip(".")
            .split(".")
        )
        for key in trail:
            owner = owner[int(key) if isinstance(owner, list) else key]
            expression = expression[int(key) if isinstance(expression, list) else key]
        key = int(last) if isinstance(owner, list) else last
        assert owner[key] is None
        assert json.dumps(expression[key]) == value
        owner[key] = expression[key]
    if places is not None:
        assert json.dumps(found) == json.dumps(lenient)
    else:
        assert found == [None]


@pytest.mark.slow
def test_all_that_is_printed_as_json_is_strict(
    graph: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("e.csv").write_text("source,target\n0,1\n1,2\n2,0\n")
    few = ["--epochs", "2", "--fanouts", "3", "2"]
    for command in (
        ["train", graph, *few, "--lr", "1e30", "--nan-loss", "go-on", "--out", "run"],
        ["predict", "run"],
        ["info", graph],
        ["plan", graph, "--batches", "3"],
        ["score", graph],
        ["convert", "e.csv", "new"],
        ["cluster", graph, "--k", "3", "--epochs", "1", "--pretrain-epochs", "1"],
        ["doctor"],
    ):
        capsys.readouterr()
        assert main([*command, "--json"]) in (0, 1), command
        out = capsys.readouterr().out
        strict(out if command == ["doctor"] else out.splitlines()[-1])


def test_weights_that_are_nan_are_not_kept(graph: str) -> None:
    options = {"dataset": graph, "epochs": 6, "lr": 1e30, "nan_loss": "go-on", **_WAYS["full"]}
    run_training(TrainConfig(**options, out="run"))
    kept = torch.load("run/checkpoint.pt", weights_only=True)
    for weights in (kept["model"], kept["best_model"]):
        assert all(bool(tensor.isfinite().all()) for tensor in weights.values())
    assert kept["state"]["epoch"] <= 6
    assert len(records_of("run")) > 6

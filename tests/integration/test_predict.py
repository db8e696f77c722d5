"""``gnnsys predict``: scores, sampled neighbours, tables; what is killed leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import gnnsys
from gnnsys.commands.cli import main
from gnnsys.commands.predict import predict as predict_nodes
from gnnsys.config.predict import PredictConfig
from gnnsys.config.train import TrainConfig
from gnnsys.generate import generate_community
from gnnsys.system.budget import process_budget
from gnnsys.training.loop import TrainResult, run_training


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("predict") / "g"
    return generate_community(path, nodes=2_000, classes=4, features=8, degree=10)


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult]:
    path = tmp_path_factory.mktemp("runs") / "run"
    return path, train(folder, path)


def train(folder: Path, out: Path, **options: Any) -> TrainResult:
    options = {"epochs": 3, "fanouts": (3, 3), "hidden": 16, **options}
    return run_training(TrainConfig(dataset=str(folder), out=str(out), **options))


def predict(capsys: pytest.CaptureFixture[str], run: Path, *options: str) -> dict[str, Any]:
    assert main(["predict", str(run), "--json", *options]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return told


def test_predict_says_the_scores_beside_those_of_the_run(
    folder: Path, run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, result = run
    told = predict(capsys, path, "--out", str(tmp_path / "p"))
    labels = gnnsys.open_dataset(folder).node_table("labels")
    classes = np.load(tmp_path / "p" / "predictions.npy")
    for part, had in (("val", result.best_val), ("test", result.best_test)):
        ids = gnnsys.open_dataset(folder).node_table(part)
        right = float((classes[ids] == labels[ids]).mean())
        assert told["metrics"][part]["accuracy"] == pytest.approx(right, abs=1e-6)
        assert told["run_metrics"][part] == pytest.approx(had)
    assert main(["predict", str(path), "--out", str(tmp_path / "q")]) == 0
    val = told["metrics"]["val"]["accuracy"]
    assert f"val accuracy {val:.4f} (the run's {result.best_val['accuracy']:.4f})" in (
        capsys.readouterr().out
    )


def test_only_parts_that_were_classified_whole_are_scored(
    folder: Path, run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    val = gnnsys.open_dataset(folder).node_table("val")
    np.save(tmp_path / "ids.npy", np.concatenate([val[::-1], val[:5]]))
    ids = ["--nodes", str(tmp_path / "ids.npy")]
    told = predict(capsys, run[0], "--out", str(tmp_path / "p"), *ids)
    assert told["metrics"].keys() == {"val"}
    every = predict(capsys, run[0], "--out", str(tmp_path / "q"))
    assert told["metrics"]["val"] == every["metrics"]["val"]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_few_nodes_are_classified_from_their_neighbourhoods(
    layers: int, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(folder, tmp_path / "run", layers=layers, fanouts=(3,) * layers)
    ids = np.array([7, 3, 1_999, 7])
    np.save(tmp_path / "ids.npy", ids)
    graph = gnnsys.open_dataset(folder).edge_index().numpy()
    needed = [np.unique(ids)]  # by each layer, the last first
    for _ in range(layers - 1):
        needed.append(np.union1d(needed[-1], graph[0][np.isin(graph[1], needed[-1])]))
    totals: dict[str, int] = {}
    config = PredictConfig(run=str(tmp_path / "run"), nodes=str(tmp_path / "ids.npy"))
    made = predict_nodes(config, lambda what, done, total: totals.update({what: total or 0}))
    computed = [totals[f"layer {layer + 1} of {layers}"] for layer in range(layers)]
    assert computed == [len(each) for each in reversed(needed)]
    assert sum(computed) < layers * 2_000
    predict(capsys, tmp_path / "run", "--out", str(tmp_path / "all"))
    for name in ("scores", "embeddings", "predictions"):
        some, every = (np.load(Path(p) / f"{name}.npy") for p in (made["path"], tmp_path / "all"))
        np.testing.assert_allclose(some, every[ids], atol=1e-5)


@pytest.mark.parametrize("model", ["sage", "gcn"])
def test_sampled_predictions_are_those_of_evaluation_on_samples(
    folder: Path, model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(folder, tmp_path / "run", model=model, eval="sampled", batch_size=100)
    told = predict(capsys, tmp_path / "run", "--sampled")
    place = tmp_path / "run" / "predictions"
    scores, embeddings = (np.load(place / f"{name}.npy") for name in ("scores", "embeddings"))
    assert scores.shape == (2_000, 4)
    assert embeddings.shape == (2_000, 16)
    exact = predict(capsys, tmp_path / "run", "--out", str(tmp_path / "exact"))
    assert np.isfinite(scores).all()
    assert not np.allclose(scores, np.load(tmp_path / "exact" / "scores.npy"), atol=1e-3)
    np.testing.assert_array_equal(np.load(place / "predictions.npy"), scores.argmax(1))
    for part in ("val", "test"):  # other batches, other draws
        near = pytest.approx(told["run_metrics"][part]["accuracy"], abs=0.1)
        assert told["metrics"][part]["accuracy"] == near
        assert exact["metrics"][part]["accuracy"] == near
    # The batches of validation, in their order, draw what evaluation drew.
    val = gnnsys.open_dataset(folder).node_table("val")
    np.save(tmp_path / "val.npy", val)
    again = ["--sampled", "--nodes", str(tmp_path / "val.npy"), "--out", str(tmp_path / "val")]
    found = predict(capsys, tmp_path / "run", *again)
    assert found["metrics"]["val"] == pytest.approx(result.best_val)


@pytest.mark.parametrize("sampled", [False, True])
def test_no_memory_is_planned_for_training(run: Any, tmp_path: Path, sampled: bool) -> None:
    names: set[str] = set()

    def look(what: str, done: int, total: int) -> None:
        names.update(each.name for each in process_budget().table() if each.planned)

    predict_nodes(PredictConfig(run=str(run[0]), out=str(tmp_path / "p"), sampled=sampled), look)
    assert names >= {"libraries", "labels, mapped"}
    assert not names & {"training steps", "order of the seeds"}
    assert ("batches under way" in names) == sampled


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_has_ids_classes_and_probabilities(
    ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = np.random.default_rng(0)
    names = [f"node-{number:03}" for number in range(300)]
    table = pd.DataFrame({"id": names, "label": draw.choice(["ant", "bee", "cat"], 300)})
    table["split"] = draw.choice(["train", "val", "test"], 300)
    table["x"], table["y"] = draw.random(300), draw.random(300)
    table.to_csv(tmp_path / "nodes.csv", index=False)
    edges = pd.DataFrame(draw.choice(names, (900, 2)), columns=["source", "target"])
    edges.to_csv(tmp_path / "edges.csv", index=False)
    graph, edge_file = str(tmp_path / "g"), str(tmp_path / "edges.csv")
    assert main(["convert", edge_file, graph, "--nodes", str(tmp_path / "nodes.csv")]) == 0
    train(tmp_path / "g", tmp_path / "run", epochs=1)
    capsys.readouterr()
    out = tmp_path / f"p.{ending}"
    told = predict(capsys, tmp_path / "run", "--out", str(out))
    assert told["files"] == {"": [300, 5]}
    found = pd.read_csv(out) if ending == "csv" else pd.read_parquet(out)
    assert list(found) == ["id", "class", "p_ant", "p_bee", "p_cat"]
    predict(capsys, tmp_path / "run")
    scores = np.load(tmp_path / "run" / "predictions" / "scores.npy")
    classes = json.loads((tmp_path / "g" / "graph.json").read_text())["source"]["classes"]
    ids = np.load(tmp_path / "g" / "node_id.npy").astype(str)
    assert found["id"].tolist() == ids.tolist()
    assert found["class"].tolist() == [classes[k] for k in scores.argmax(1)]
    softmax = torch.from_numpy(scores).softmax(1).numpy()
    columns = found[[f"p_{name}" for name in classes]].to_numpy()
    np.testing.assert_allclose(columns, softmax, rtol=1e-5)
    assert main(["predict", str(tmp_path / "run"), "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_layers_go_to_the_folder_that_eval_store_names(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "layers").mkdir()
    place = ["--eval-store", str(tmp_path / "layers")]
    predict(capsys, run[0], "--out", str(tmp_path / "p"), *place)
    predict(capsys, run[0], "--out", str(tmp_path / "q"), "--eval-store", "ram")
    for name in ("scores", "embeddings"):
        one, other = (np.load(tmp_path / p / f"{name}.npy") for p in ("p", "q"))
        np.testing.assert_array_equal(one, other)
    predict(capsys, run[0], "--out", str(tmp_path / "s"), "--eval-reads", "sequential", *place)
    scores = [np.load(tmp_path / p / "scores.npy") for p in ("p", "s")]
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-5, atol=1e-5)
    assert os.listdir(tmp_path / "layers") == []
    options = ["--out", str(tmp_path / "r"), "--eval-store", str(tmp_path / "nowhere")]
    assert main(["predict", str(run[0]), *options]) == 2
    assert "--eval-store" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_results_have_the_permissions_of_the_umask(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = os.umask(0o027)
    try:
        predict(capsys, run[0], "--out", str(tmp_path / "p"))
        predict(capsys, run[0], "--out", str(tmp_path / "p.csv"))
    finally:
        os.umask(before)
    assert (tmp_path / "p").stat().st_mode & 0o777 == 0o750
    files = [*(tmp_path / "p").iterdir(), tmp_path / "p.csv"]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o640}


def test_a_dataset_that_has_moved_is_named_with_the_option_that_finds_it(
    run: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    try:
        arguments = ["predict", str(run[0]), "--out", str(tmp_path / "p")]
        assert main(arguments) == 2
        told = " ".join(capsys.readouterr().err.split())
        assert f"{folder}: no such folder, where the dataset of {run[0]} was" in told
        assert "--dataset PLACE says where it is now" in told
        assert main([*arguments, "--dataset", str(moved)]) == 0
    finally:
        moved.rename(folder)


def test_what_a_killed_predict_wrote_is_removed_by_the_next(run: Any, tmp_path: Path) -> None:
    slow = (
        "import sys, time; from gnnsys.commands import predict as p; from gnnsys.commands.cli "
        "import main; p._write_blocks = lambda folder, *rest: (print('there', flush=True), "
        "time.sleep(60)); main(sys.argv[1:])"
    )
    arguments = ["predict", str(run[0]), "--out", str(tmp_path / "p")]
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *arguments], stdout=subprocess.PIPE, text=True, cwd="/"
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (left,) = tmp_path.iterdir()
    assert left.name != "p"
    assert main(arguments) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["p"]

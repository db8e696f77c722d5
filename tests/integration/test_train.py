"""``gnnsys train`` from the shell and from Python."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from gnnsys.commands.cli import main
from gnnsys.config.train import TrainConfig
from gnnsys.errors import FileFormatError
from gnnsys.system.machine import cpu_flags
from gnnsys.training.datasets import load_dataset
from gnnsys.training.loop import TrainResult, run_training


def train(dataset: str, **options: Any) -> TrainResult:
    return run_training(TrainConfig(dataset=dataset, **options))


def losses(result: TrainResult) -> list[float]:
    return [record.loss for record in result.history]


# The command line ---------------------------------------------------------------------------------


def shell(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("gnnsys"), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_json_is_the_last_line_and_progress_goes_to_standard_error() -> None:
    done = shell("train", "demo", "--epochs", "2", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["epochs"] == 2
    assert 0 < result["test_acc"] <= 1
    assert 0 < result["val_acc"] <= 1
    assert result["seconds"] > 0
    assert result["bytes"]["file"] == result["rows"]["file"] * 128 * 4
    assert result["peak_rss"] > 1 << 20
    assert result["versions"]["torch"] == torch.__version__
    assert result["config"]["fanouts"] == [15, 10]
    assert "train demo" in done.stderr


def test_without_json_a_table_shows_accuracy_rows_and_bytes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "demo", "--epochs", "1", "--fanouts", "2,2"]) == 0
    told = capsys.readouterr().out
    for word in ("test accuracy", "served by file", "rows", "bytes"):
        assert word in told


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "corra"], "corra"),
        (["train", "demo", "--model", "transformer"], "transformer"),
        (["train", "demo", "--modle", "gcn"], "--modle"),
        (["train", "demo", "--fanouts", "5"], "1 fanouts != 2 layers"),
        (["train", "demo", "--fanouts", "5", "0"], "at least 1"),
        (["train", "demo", "--fanouts", "5,0"], "at least 1"),
        (["train", "demo", "--fanouts", "5,x"], "expected numbers"),
        (["train", "demo", "--layers", "0"], "layers"),
        (["train", "demo", "--epochs", "0"], "epochs"),
        (["train", "demo", "--dropout", "1"], "dropout"),
        (["train", "demo", "--lr", "-1"], "lr"),
        (["train", "demo", "--batch-size", "0"], "batch-size"),
        (["train", "demo", "--metric", "rocauc"], "10 classes"),
        (["train", "demo", "--dependent-batches", "0"], "dependent-batches"),
        (["train", "demo", "--full-batch", "--sampling", "labor"], "samples nothing"),
        (["train", "cora", "--root", "nowhere"], "--root"),
        (["trian"], "trian"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_input_is_told_in_one_message_and_exits_with_2(
    arguments: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    try:
        status = main(arguments)
    except SystemExit as end:
        status = int(end.code or 0)
    assert status == 2
    told = capsys.readouterr()
    assert says in " ".join((told.err + told.out).replace("│", " ").split())
    assert "Traceback" not in told.err
    assert [name for name in os.listdir(tmp_path) if "torchinductor" not in name] == []


def test_every_command_has_help_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["train", "--help"], ["doctor", "--help"]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0
        assert (
            f"gnnsys {arguments[0] if len(arguments) > 1 else 'train'}" in capsys.readouterr().out
        )


def test_a_reader_that_goes_away_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [Path(sys.executable).with_name("gnnsys"), "train", "--help"]
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (141, "")


def test_labels_shorter_than_nodes_are_refused(real_graphs: Path, tmp_path: Path) -> None:
    raw = tmp_path / "HeterophilousGraph" / "minesweeper" / "raw"
    shutil.copytree(real_graphs / "HeterophilousGraph" / "minesweeper" / "raw", raw)
    raw.chmod(0o755)
    with np.load(raw / "minesweeper.npz") as arrays:
        kept = dict(arrays)
    kept["node_labels"] = kept["node_labels"][:-5]
    (raw / "minesweeper.npz").unlink()
    np.savez(raw / "minesweeper.npz", **kept)
    with pytest.raises(FileFormatError, match=r"minesweeper: 9995 labels != 10000 nodes"):
        train("minesweeper", root=str(tmp_path))


def test_raw_files_that_cannot_be_read_are_named(real_graphs: Path, tmp_path: Path) -> None:
    shutil.copytree(real_graphs / "Cora" / "raw", tmp_path / "Cora" / "raw")
    path = tmp_path / "Cora" / "raw" / "ind.cora.allx"
    path.chmod(0o644)
    os.truncate(path, 1000)
    with pytest.raises(FileFormatError, match=r"Cora/raw: PyG cannot read the raw files of cora"):
        train("cora", root=str(tmp_path))


# Training -----------------------------------------------------------------------------------------


def test_losses_depend_on_the_seed_and_not_on_threads_or_what_ran_before() -> None:
    options = {"epochs": 1, "batch_size": 512}
    first = train("demo", threads=1, **options)
    torch.rand(3)
    again = train("demo", threads=3, **options)
    other = train("demo", seed=1, **options)
    assert losses(first) == losses(again) != losses(other)
    assert first.best_test == again.best_test


def test_training_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(11)
    expected = torch.rand(4)
    torch.manual_seed(11)
    train("demo", epochs=1, fanouts=(2, 2))
    assert torch.equal(torch.rand(4), expected)


def test_a_gnn_learns_the_demo_and_a_linear_model_of_features_does_not() -> None:
    demo = load_dataset("demo")
    task = demo.node_task
    x, y = demo.features.materialize().numpy(), task.labels.numpy()
    linear = LogisticRegression(max_iter=100).fit(x[task.train], y[task.train])
    assert linear.score(x[task.test], y[task.test]) < 0.5
    assert train("demo").best_test["accuracy"] > 0.9


def test_labor_touches_fewer_rows_and_learns_as_well() -> None:
    plain, labor = (train("demo", epochs=3, sampling=name) for name in ("uniform", "labor"))
    assert labor.counters.served("file").rows < 0.95 * plain.counters.served("file").rows
    assert abs(labor.best_test["accuracy"] - plain.best_test["accuracy"]) < 0.03


def test_dependent_batches_share_draws() -> None:
    # The first batch of an epoch draws as ever; the others take over its draws.
    options = {"epochs": 1, "batch_size": 512, "fanouts": (2, 2)}
    plain, dependent = train("demo", **options), train("demo", dependent_batches=16, **options)
    assert losses(dependent) != losses(plain)
    assert dependent.counters.served("file").rows < plain.counters.served("file").rows


def test_bf16_trains_in_other_arithmetic_and_says_where_it_is_slow(
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = {"epochs": 2, "fanouts": (5, 5), "hidden": 16}
    exact, rounded = train("demo", **options), train("demo", precision="bf16", **options)
    assert losses(exact) != losses(rounded)
    assert losses(rounded) == pytest.approx(losses(exact), rel=0.05)
    fast = {"avx512_bf16", "amx_bf16", "bf16"} & {*cpu_flags()}
    assert ("no bfloat16 multiplication" in caplog.text) == (not fast)


@pytest.mark.parametrize(("model", "epochs"), [("sage", 10), ("gcn", 10), ("gat", 10), ("gin", 40)])
@pytest.mark.parametrize("full_batch", [False, True])
def test_every_model_learns_cora(
    real_graphs: Path, model: Any, epochs: int, full_batch: bool
) -> None:
    options = {"epochs": epochs, "hidden": 32, "lr": 0.02, "root": str(real_graphs)}
    result = train("cora", model=model, full_batch=full_batch, **options)
    assert result.best_test["accuracy"] > 0.5  # the largest class has 0.32
    assert losses(result)[-1] < losses(result)[0]
    assert result.counters.served("host").rows > 0


@pytest.mark.parametrize(
    ("name", "metric", "classes_score"),
    [("citeseer", "accuracy", 0.5), ("actor", "accuracy", 0.24), ("minesweeper", "rocauc", 0.55),
     ("tolokers", "rocauc", 0.6)],
)  # fmt: skip
def test_the_other_datasets_train(
    real_graphs: Path, name: str, metric: str, classes_score: float
) -> None:
    options = {"epochs": 15, "full_batch": True, "root": str(real_graphs)}
    result = train(name, **options)
    assert result.metric == metric
    assert result.best_test[metric] > classes_score
    best = max(result.history, key=lambda record: record.val)
    assert (best.epoch, best.val) == (result.best_epoch, result.best_val[metric])


def test_nothing_is_written_into_the_root(real_graphs: Path, tmp_path: Path) -> None:
    shutil.copytree(real_graphs / "Cora" / "raw", tmp_path / "Cora" / "raw")
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    train("cora", epochs=1, full_batch=True, root=str(tmp_path))
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


def test_full_batch_gcn_takes_the_published_options() -> None:
    config = TrainConfig(dataset="cora", model="gcn", full_batch=True).filled_in()
    published = {"layers": 2, "hidden": 16, "dropout": 0.5, "lr": 0.01, "weight_decay": 5e-4,
                 "epochs": 200}  # fmt: skip
    assert {name: getattr(config, name) for name in published} == published
    assert dataclasses.asdict(config.filled_in()) == dataclasses.asdict(config)


def score(dataset: str, **options: Any) -> float:
    return train(dataset, **options).best_test["accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "least", "stop"),
    [
        ("cora", 0.80, {"patience": 30}),
        ("pubmed", 0.77, {"lr": 0.05, "epochs": 25, "eval_every": 5}),
    ],
)
def test_full_batch_gcn_reaches_the_published_accuracy(
    real_graphs: Path, dataset: str, least: float, stop: dict[str, Any]
) -> None:
    # Kipf and Welling (ICLR 2017), who stop early too, report 0.815 and 0.790. A larger rate is as
    # good on PubMed, and sooner.
    options = {"model": "gcn", "full_batch": True, "root": str(real_graphs)}
    assert score(dataset, **options, **stop) >= least


@pytest.mark.slow
def test_mini_batches_score_as_the_full_batch(real_graphs: Path) -> None:
    options = {"model": "sage", "epochs": 50, "eval_every": 5, "root": str(real_graphs)}
    full = score("cora", full_batch=True, **options)
    assert abs(score("cora", **options) - full) <= 0.015

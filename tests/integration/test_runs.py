"""Runs in a folder: configuration, metrics, early stop, resume, predict."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import pty
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import gnnsys
from gnnsys.commands.cli import main
from gnnsys.config.file import read_config, resumed_config
from gnnsys.config.train import TrainConfig
from gnnsys.generate import generate_community
from gnnsys.report.reader import read_run
from gnnsys.training.checkpoint import load_checkpoint
from gnnsys.training.loop import EpochRecord, TrainResult, run_training
from gnnsys.training.models import NodeClassifier

OPTIONS: dict[str, Any] = {
    "epochs": 4,
    "batch_size": 256,
    "hidden": 16,
    "fanouts": (4, 3),
    "seed": 5,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small graph that a GNN learns."""
    path = tmp_path_factory.mktemp("data") / "g"
    return generate_community(path, nodes=2000, classes=4, features=16, degree=8, signal=0.2)


def train(folder: Path, out: Path | None = None, **options: Any) -> TrainResult:
    config = TrainConfig(dataset=str(folder), out=str(out) if out else None, **OPTIONS | options)
    return run_training(config)


def resume(out: Path, **options: Any) -> TrainResult:
    return run_training(dataclasses.replace(resumed_config(out), **options))


def records(out: Path, kind: str) -> list[dict[str, Any]]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def state_of(out: Path) -> dict[str, Any]:
    """All that decides about the batches to come, and what came out so far."""
    checkpoint = load_checkpoint(out)
    state = dataclasses.asdict(checkpoint.state)
    seconds = ("seconds", "epoch_began", "load_seconds", "load_began")
    for of_the_process in (*seconds, "metrics_bytes", "served"):
        del state[of_the_process]
    return {
        "state": state,
        "rng": checkpoint.torch_rng.tolist(),
        "model": {name: value.tolist() for name, value in checkpoint.model.items()},
        "best": {name: value.tolist() for name, value in (checkpoint.best_model or {}).items()},
        "moments": [
            [value.tolist() for value in entry.values()]
            for entry in checkpoint.optimizer["state"].values()
        ],
    }


# What a run leaves --------------------------------------------------------------------------------


def test_a_folder_trains_as_its_data_in_memory_does(folder: Path) -> None:
    # The same batches through Data and through the folder's stores.
    dataset = gnnsys.open_dataset(folder)
    data = dataset.to_data()
    seeds = dataset.split("train")
    options = {"num_neighbors": [4, 3], "input_nodes": seeds, "batch_size": 256, "shuffle": True}
    in_memory = gnnsys.NeighborLoader(data, is_sorted=True, **options)
    in_folder = gnnsys.NeighborLoader(dataset.stores(), **options)
    for one, other in zip(in_memory, in_folder, strict=True):
        for name in ("x", "y", "edge_index", "n_id"):
            assert torch.equal(one[name], other[name])


def test_the_run_folder_holds_options_metrics_checkpoint_and_weights(
    folder: Path, tmp_path: Path
) -> None:
    result = train(folder, tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "checkpoint.pt", "config.toml", "metrics.jsonl", "model.safetensors", "result.json",
        "tensorboard",
    }  # fmt: skip
    config = read_config(tmp_path / "run" / "config.toml")
    filled = TrainConfig(dataset=str(folder), **OPTIONS).filled_in()
    assert config == dataclasses.replace(filled, out=None)
    epochs = records(tmp_path / "run", "epoch")
    assert [record["loss"] for record in epochs] == [record.loss for record in result.history]
    assert [record["val"]["accuracy"] for record in epochs] == [r.val for r in result.history]
    start, end = records(tmp_path / "run", "start")[0], records(tmp_path / "run", "end")[0]
    assert start["dataset"]["nodes"] == 2000
    assert end["result"]["test_acc"] == result.best_test["accuracy"]
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == end["result"]
    best = load_file(tmp_path / "run" / "model.safetensors")
    model = NodeClassifier("sage", in_channels=16, hidden=16, out_channels=4, layers=2)
    model.load_state_dict(best)
    data = gnnsys.open_dataset(folder)
    scores = gnnsys.inference(model, data)
    test = data.split("test")
    labels = torch.from_numpy(np.array(data.node_table("labels")))
    accuracy = (scores[test].argmax(1) == labels[test]).float().mean()
    assert float(accuracy) == pytest.approx(result.best_test["accuracy"], abs=1e-6)


def test_tensorboard_reads_the_same_numbers(folder: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(folder, tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    losses = {event.step: event.value for event in events.Scalars("loss/epoch")}
    assert losses == pytest.approx({record.epoch: record.loss for record in result.history})
    assert {"val/accuracy", "test/accuracy", "loss/step"} <= set(events.Tags()["scalars"])


def test_tensorboard_has_throughput_tiers_and_hyperparameters(folder: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    result = train(folder, tmp_path / "run", cache="0.5", storage="pread")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()

    def curve(name: str) -> list[float]:
        return [event.value for event in events.Scalars(name)]

    epochs = records(tmp_path / "run", "epoch")
    seconds = [record["epoch_seconds"] for record in epochs]
    seeds = len(gnnsys.open_dataset(folder).split("train"))
    assert curve("throughput/seeds_per_second") == pytest.approx([seeds / s for s in seconds])
    batches = -(-seeds // result.config.batch_size)
    assert curve("throughput/batches_per_second") == pytest.approx([batches / s for s in seconds])
    assert curve("seconds/loading") == pytest.approx([r["load_seconds"] for r in epochs])
    assert curve("seconds/evaluation") == pytest.approx([r["eval_seconds"] for r in epochs])
    before = {"rows": {}, "bytes": {}, "reads": {}}
    for number, record in enumerate(epochs):
        rows, nbytes, reads = (
            {key: value - before[kind].get(key, 0) for key, value in record[kind].items()}
            for kind in ("rows", "bytes", "reads")
        )
        for tier in ("cache", "file"):
            share = rows[tier] / sum(rows.values())
            assert curve(f"tiers/{tier}_share")[number] == pytest.approx(share)
            assert curve(f"tiers/{tier}_bytes")[number] == pytest.approx(nbytes[tier])
        assert curve("reads/bytes_read")[number] == pytest.approx(reads["bytes_read"])
        before = record
    content = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    options = HParamsPluginData.FromString(content).session_start_info.hparams
    assert options["model"].string_value == "sage"
    assert options["lr"].number_value == result.config.lr
    assert options["fanouts"].string_value == ",".join(map(str, result.config.fanouts or ()))
    assert curve("final/val_accuracy") == pytest.approx([result.best_val["accuracy"]])
    assert curve("final/test_accuracy") == pytest.approx([result.best_test["accuracy"]])


def test_a_long_run_without_a_folder_says_that_nothing_is_kept(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gnnsys.training import run_folder

    def told(seconds: float, out: Path | None = None) -> int:
        monkeypatch.setattr(run_folder, "_LONG", seconds)
        caplog.clear()
        train(folder, out)
        return sum("--out FOLDER" in record.message for record in caplog.records)

    monkeypatch.setattr(run_folder, "_LOOKED_AT", 0.0)
    assert told(1e-3) == 1
    assert told(1e6) == 0
    assert told(1e-3, tmp_path / "run") == 0


def test_writing_a_run_changes_no_loss(folder: Path, tmp_path: Path) -> None:
    often = train(folder, tmp_path / "run", checkpoint_minutes=1e-6)
    assert often.history == train(folder).history


@pytest.mark.parametrize("model", ["sage", "gcn", "gat", "gin"])
def test_layerwise_evaluation_equals_whole_neighbourhoods(folder: Path, model: Any) -> None:
    exact = train(folder, model=model, epochs=1)
    config = TrainConfig(dataset=str(folder), model=model, **OPTIONS | {"epochs": 1})
    hops = config.layers + (model == "gcn")
    # Fanouts of -1 through one hop more than a GCN has layers give exact degrees.
    assert exact.history[0].val is not None
    dataset = gnnsys.open_dataset(folder)
    captured: list[torch.nn.Module] = []
    original = NodeClassifier.__init__

    def remember(self: NodeClassifier, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        captured.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NodeClassifier, "__init__", remember)
        again = run_training(config)
    assert again.history == exact.history
    net = captured[0].eval()
    loader = gnnsys.NeighborLoader(
        dataset.stores(), [-1] * hops, input_nodes=dataset.split("val"), batch_size=100
    )
    right = 0
    with torch.no_grad():
        for batch in loader:
            out = net(batch.x, batch.edge_index)[: batch.batch_size]
            right += int((out.argmax(1) == batch.y[: batch.batch_size]).sum())
    assert right / len(dataset.split("val")) == pytest.approx(exact.history[0].val, abs=1e-6)


def test_evaluation_in_files_gives_the_same_scores(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "layers").mkdir()
    in_files = train(folder, eval_store=str(tmp_path / "layers"))
    assert in_files.history == train(folder, eval_store="ram").history
    assert os.listdir(tmp_path / "layers") == []


def test_sampled_evaluation_draws_the_same_neighbours_every_time(folder: Path) -> None:
    one, other = (train(folder, eval="sampled") for _ in range(2))
    assert one.history == other.history
    assert one.history[-1].val != train(folder).history[-1].val


def test_evaluation_every_few_epochs_and_at_the_end(folder: Path) -> None:
    result = train(folder, epochs=5, eval_every=2)
    assert [record.val is not None for record in result.history] == [
        False, True, False, True, True,
    ]  # fmt: skip


def test_patience_ends_a_run_that_gets_no_better(folder: Path) -> None:
    result = train(folder, epochs=200, lr=0.2, patience=3)
    assert result.reason == "early stop"
    vals = [record.val for record in result.history]
    assert len(vals) == result.best_epoch + 3 < 200
    assert max(vals[result.best_epoch :]) <= vals[result.best_epoch - 1]  # type: ignore[type-var]


def test_f1_is_scored_and_chosen_by(folder: Path) -> None:
    result = train(folder, metric="f1")
    assert set(result.best_val) == {"accuracy", "f1"}
    assert {"test_f1", "test_acc"} <= set(result.as_dict())


def test_several_labels_a_node_are_learnt(tmp_path: Path) -> None:
    from torch_geometric.data import Data

    from gnnsys.convert.common import ConvertOptions
    from gnnsys.convert.pyg import convert_pyg

    draw = torch.Generator().manual_seed(0)
    x = torch.randn(600, 8, generator=draw)
    labels = (x[:, :3] > 0).float()
    labels[::7, 1] = torch.nan
    edge_index = torch.arange(600).repeat(2, 1)  # self loops: a node sees itself
    masks = {
        f"{name}_mask": torch.arange(600) % 3 == k
        for k, name in enumerate(("train", "val", "test"))
    }
    data = Data(x=x, y=labels, edge_index=edge_index, **masks)
    convert_pyg(data, tmp_path / "g", ConvertOptions(), name="g")
    result = train(tmp_path / "g", epochs=30, lr=0.05, metric="f1", dropout=0.0)
    assert result.best_test["f1"] > 0.9


# Resume -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("full_batch", [False, True])
def test_epochs_have_the_steps_that_were_trained_also_after_a_resume(
    folder: Path, tmp_path: Path, full_batch: bool
) -> None:
    counted, ends = 0, []
    stop_at = (2, 1 if full_batch else 3)

    def count(epoch: int, done: int, total: int) -> None:
        nonlocal counted
        counted += 1
        if (epoch, done) == stop_at and not ends[1:]:
            os.kill(os.getpid(), signal.SIGINT)

    def end(record: EpochRecord) -> None:
        if record.epoch > len(ends):  # a resumed run tells of the epochs before
            ends.append(counted)

    options = OPTIONS | {"full_batch": full_batch}
    config = TrainConfig(dataset=str(folder), out=str(tmp_path / "run"), **options)
    assert run_training(config, end, count).reason == "interrupted"
    assert run_training(resumed_config(tmp_path / "run"), end, count).reason == "done"
    steps = [record["step"] for record in records(tmp_path / "run", "epoch")]
    assert steps == ends == [counted * epoch // 4 for epoch in range(1, 5)]


@pytest.mark.parametrize("full_batch", [False, True])
def test_a_longer_run_equals_a_shorter_one_that_is_continued(
    folder: Path, tmp_path: Path, full_batch: bool
) -> None:
    options: dict[str, Any] = {"full_batch": full_batch, "model": "gat"}
    whole = train(folder, tmp_path / "whole", **options)
    train(folder, tmp_path / "parts", **options | {"epochs": 2})
    parts = resume(tmp_path / "parts", epochs=4)
    assert parts.history == whole.history
    assert state_of(tmp_path / "parts") == state_of(tmp_path / "whole")
    losses = [record["loss"] for record in records(tmp_path / "parts", "epoch")]
    assert losses == [record.loss for record in whole.history]
    assert parts.counters.tiers().keys() == whole.counters.tiers().keys()


def test_an_interrupted_run_ends_after_the_batch_and_goes_on_inside_the_epoch(
    folder: Path, tmp_path: Path
) -> None:
    whole = train(folder, tmp_path / "whole")
    config = TrainConfig(dataset=str(folder), out=str(tmp_path / "parts"), **OPTIONS)

    def interrupt(epoch: int, done: int, total: int) -> None:
        assert total == 4
        if (epoch, done) == (2, 3):
            os.kill(os.getpid(), signal.SIGINT)

    broken = run_training(config, on_batch=interrupt)
    assert broken.reason == "interrupted"
    assert len(broken.history) == 1
    checkpoint = load_checkpoint(tmp_path / "parts")
    assert (checkpoint.state.epoch, checkpoint.state.batch) == (2, 3)
    parts = resume(tmp_path / "parts")
    assert parts.history == whole.history
    assert state_of(tmp_path / "parts") == state_of(tmp_path / "whole")
    # Batches that were made ahead and never trained on are not counted.
    assert parts.counters.as_dict() == whole.counters.as_dict()


def test_waiting_for_batches_is_told_by_epoch_and_goes_on_adding_up_after_a_resume(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gnnsys.training import mini_batch

    loading, training = 0.05, 0.02
    joined = mini_batch.note_served

    def join_slowly(dataset: Any, batch: Any) -> Any:
        time.sleep(loading)
        return joined(dataset, batch)

    monkeypatch.setattr(mini_batch, "note_served", join_slowly)

    def train_slowly(epoch: int, done: int, total: int) -> None:
        time.sleep(training)
        if (epoch, done) == (2, 3) and not (tmp_path / "run" / "result.json").exists():
            os.kill(os.getpid(), signal.SIGINT)

    config = TrainConfig(dataset=str(folder), out=str(tmp_path / "run"), **OPTIONS)
    broken = run_training(config, on_batch=train_slowly)
    assert broken.reason == "interrupted"
    result = run_training(resumed_config(tmp_path / "run"), on_batch=train_slowly)
    epochs = records(tmp_path / "run", "epoch")
    for epoch in epochs:
        begun = 1 + (epoch["epoch"] == 2)  # a first batch cannot be made ahead
        assert begun * loading <= epoch["load_seconds"]
        assert epoch["load_seconds"] <= epoch["epoch_seconds"] - 4 * training
    steps_of_two = [r for r in records(tmp_path / "run", "step") if r["epoch"] == 2]
    assert all(0 < each["load_seconds"] <= epochs[1]["load_seconds"] for each in steps_of_two)
    assert result.load_seconds == pytest.approx(sum(epoch["load_seconds"] for epoch in epochs))
    assert epochs[0]["load_seconds"] + loading <= broken.load_seconds <= result.load_seconds


def test_training_of_the_whole_graph_waits_for_no_batches(folder: Path, tmp_path: Path) -> None:
    result = train(folder, tmp_path / "run", full_batch=True)
    assert result.load_seconds == result.as_dict()["load_seconds"] == 0
    assert {epoch["load_seconds"] for epoch in records(tmp_path / "run", "epoch")} == {0}
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "loading" not in (tmp_path / "run" / "report.html").read_text()


def test_ctrl_c_at_the_shell_leaves_a_checkpoint_and_says_how_to_go_on(
    folder: Path, tmp_path: Path
) -> None:
    gnnsys_command = str(Path(sys.executable).with_name("gnnsys"))
    options = ["--epochs", "100000", "--batch-size", "256"]
    process = subprocess.Popen(
        [gnnsys_command, "train", str(folder), "--out", str(tmp_path / "run"), *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (tmp_path / "run" / "checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"gnnsys train --resume {tmp_path / 'run'}" in told.replace("\n", "")
    assert "Traceback" not in told
    done = load_checkpoint(tmp_path / "run").state.epoch
    assert records(tmp_path / "run", "end")[-1]["reason"] == "interrupted"
    result = resume(tmp_path / "run", epochs=done)
    assert (result.reason, len(result.history)) == ("done", done)


@pytest.mark.parametrize("sent", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_of_a_job_system_leaves_a_checkpoint(
    sent: signal.Signals, folder: Path, tmp_path: Path, fork_script: Callable[..., Any]
) -> None:
    run = tmp_path / "run"
    process = fork_command(fork_script, tmp_path, "train", str(folder), "--out", str(run))
    try:
        while not (run / "checkpoint.pt").exists():
            assert process.alive()
            time.sleep(0.05)
        for _ in range(1 + (sent == signal.SIGUSR1)):  # twice, as shells may
            process.send_signal(sent)
        assert process.outcome()[0] == 130
    finally:
        process.kill()
    assert_interrupted(run)


def fork_command(fork_script: Callable[..., Any], folder: Path, *arguments: str) -> Any:
    """``gnnsys`` with these arguments, and epochs that do not end, in a fork."""
    script = folder / "command.py"
    script.write_text("import sys; from gnnsys.commands.cli import main; sys.exit(main())")
    endless = ("--epochs", "100000", "--batch-size", "256")
    return fork_script(script, "command", folder, (*arguments, *endless))


def assert_interrupted(run: Path) -> None:
    assert records(run, "end")[-1]["reason"] == "interrupted"
    done = load_checkpoint(run).state.epoch
    assert len(resume(run, epochs=done).history) == done


def test_a_closed_terminal_leaves_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    """It is closed right after SIGHUP: writing there fails from then on."""
    ours, theirs = pty.openpty()
    options = ["--epochs", "100000", "--batch-size", "256", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-m", "gnnsys", "train", str(folder), *options],
        cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # also under nohup
    )  # fmt: skip
    os.close(theirs)
    reader = threading.Thread(target=read_all, args=(ours,), daemon=True)
    reader.start()
    while not (tmp_path / "run" / "checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.05)
    for _ in range(2):  # as shells and kernels may
        process.send_signal(signal.SIGHUP)
    os.close(ours)
    process.wait(timeout=60)
    assert process.returncode == 130
    assert_interrupted(tmp_path / "run")


def read_all(file: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(file, 1 << 12):
            pass


def test_nohup_is_respected(folder: Path, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        config = TrainConfig(dataset=str(folder), out=str(tmp_path / "run"), **OPTIONS)
        kill = lambda *at: os.kill(os.getpid(), signal.SIGHUP)  # noqa: E731
        assert run_training(config, on_batch=kill).reason == "done"
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_outside_the_main_thread_leaves_signals_alone(folder: Path) -> None:
    found: list[TrainResult] = []
    thread = threading.Thread(target=lambda: found.append(train(folder, epochs=1)))
    before = signal.getsignal(signal.SIGINT)
    thread.start()
    thread.join()
    assert len(found[0].history) == 1
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.slow
def test_killed_at_twenty_random_points_the_final_state_is_the_same(
    folder: Path, tmp_path: Path, train_through_kills: Callable[..., None]
) -> None:
    options = OPTIONS | {"epochs": 50, "checkpoint_minutes": 1e-6, "batch_size": 256}
    train(folder, tmp_path / "whole", **options)
    train_through_kills(folder, tmp_path / "killed", options, kills=20)
    assert state_of(tmp_path / "killed") == state_of(tmp_path / "whole")
    served = [load_checkpoint(tmp_path / run).state.served for run in ("killed", "whole")]
    assert served[0] == served[1]
    killed, whole = (
        load_file(tmp_path / name / "model.safetensors") for name in ("killed", "whole")
    )
    assert killed.keys() == whole.keys()
    assert all(torch.equal(killed[name], whole[name]) for name in whole)
    one, other = (
        [(record["epoch"], record["loss"]) for record in records(tmp_path / name, "epoch")]
        for name in ("killed", "whole")
    )
    assert one == other


# Bad input ----------------------------------------------------------------------------------------


def shell(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    try:
        status = main(arguments)
    except SystemExit as end:
        status = int(end.code or 0)
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    return status, " ".join(told.err.split())


def test_options_of_a_resumed_run_cannot_change_what_it_has_computed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(folder, tmp_path / "run", epochs=1)
    run = str(tmp_path / "run")
    status, told = shell(capsys, "train", "--resume", run, "--lr", "0.5")
    assert (status, "--lr 0.5: the run in" in told, "has 0.01" in told) == (2, True, True)
    assert main(["train", "--resume", run, "--epochs", "2", "--threads", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["epochs"] == 2
    status, told = shell(capsys, "train", "demo", "--resume", run)
    assert status == 2
    assert "--dataset demo" in told


def test_the_configuration_of_a_run_serves_for_another(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(folder, tmp_path / "one")
    config = str(tmp_path / "one" / "config.toml")
    assert main(["train", "--config", config, "--out", str(tmp_path / "two"), "--json"]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["loss"] == first.history[-1].loss
    options = ["--config", config, "--out", str(tmp_path / "three"), "--json", "--lr", "0.003"]
    assert main(["train", *options]) == 0
    other = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert other["config"]["lr"] == 0.003
    assert other["loss"] != again["loss"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lr = ", "not TOML"),
        ("learning_rate = 0.1", "option 'learning_rate' is unknown"),
        ("epochs = 'many'", "epochs is 'many'"),
        ("model = 'transformer'", "--model transformer: expected one of sage, gcn"),
        ("full_batch = 1", "full_batch is 1"),
        ("fanouts = ['a', 'b']", "fanouts[0] is 'a', expected an integer"),
        ("fanouts = [5, 0]", "--fanouts 5,0: each is -1 (all neighbours) or at least 1"),
        ("fanouts = '5,x'", "--fanouts 5,x: expected numbers"),
        ("lr = -1.0", "expected lr > 0"),
    ],
)
def test_a_wrong_configuration_file_is_told_by_its_option(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.toml").write_text(text)
    status, told = shell(capsys, "train", "demo", "--config", str(tmp_path / "c.toml"))
    assert status == 2
    assert says in told


def test_what_is_missing_or_in_the_way_is_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, nowhere = str(folder), str(tmp_path / "nowhere")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "file").touch()
    for arguments, says in [
        (["train", "--resume", nowhere], "config.toml: no such file"),
        (["train", "--config", nowhere], "no such file"),
        (["train"], "no dataset given"),
        (["train", nowhere], "graph.json: no such file"),
        (["train", data, "--out", str(tmp_path / "full")], "holds files already"),
        (["train", data, "--out", str(tmp_path / "file" / "run")], "cannot be written"),
        (["train", data, "--eval-store", nowhere], "--eval-store"),
        (["train", data, "--patience", "-1"], "--patience -1"),
        (["train", data, "--checkpoint-minutes", "0"], "--checkpoint-minutes 0.0"),
        (["predict", nowhere], "config.toml: no such file"),
        (["report", nowhere], "no such"),
    ]:
        status, told = shell(capsys, *arguments)
        assert status == 2, arguments
        assert says.lower() in told.lower(), (says, told)
    assert sorted(os.listdir(tmp_path)) == ["file", "full"]


def test_a_checkpoint_of_another_dataset_or_model_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(folder, run, epochs=1)
    config = (run / "config.toml").read_text()
    other = generate_community(
        tmp_path / "other", nodes=2000, classes=4, features=16, degree=8, signal=0.2, seed=9
    )
    (run / "config.toml").write_text(config.replace(str(folder), str(other)))
    status, told = shell(capsys, "train", "--resume", str(run), "--epochs", "2")
    assert status == 2
    assert "checkpoint.pt: of another dataset" in told
    (run / "config.toml").write_text(config.replace("hidden = 16", "hidden = 32"))
    status, told = shell(capsys, "train", "--resume", str(run), "--epochs", "2")
    assert status == 2
    assert "of another model: hidden is 16, config.toml says 32" in told
    status, told = shell(capsys, "predict", str(run))
    assert status == 2
    assert "model.safetensors: of another model" in told
    assert not (run / "predictions").exists()
    (run / "config.toml").write_text(config)
    parts = torch.load(run / "checkpoint.pt", weights_only=True)
    parts["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3, 3)
    torch.save(parts, run / "checkpoint.pt")
    status, told = shell(capsys, "train", "--resume", str(run), "--epochs", "2")
    assert status == 2
    assert "checkpoint.pt: of another model: the optimizer's exp_avg of" in told
    (run / "checkpoint.pt").write_bytes((run / "checkpoint.pt").read_bytes()[:1000])
    status, told = shell(capsys, "train", "--resume", str(run), "--epochs", "2")
    assert status == 2
    assert "checkpoint.pt: not a whole checkpoint" in told


def test_a_full_disk_ends_the_run_with_one_error_and_the_old_checkpoint_whole(
    folder: Path, tmp_path: Path
) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode()}")
    try:
        whole = train(folder, tmp_path / "whole", epochs=3)
        train(folder, place / "run", epochs=1)
        free = os.statvfs(place).f_bavail * os.statvfs(place).f_bsize
        (place / "filler").write_bytes(bytes(max(0, free - 8192)))
        with pytest.raises(gnnsys.errors.StorageError, match="make room on that disk"):
            resume(place / "run", epochs=3)
        (place / "filler").unlink()
        assert not list((place / "run").glob("*.new"))
        assert resume(place / "run", epochs=3).history == whole.history
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_place_for_evaluation_that_is_none_is_refused_before_anything_is_trained(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "nowhere"
    arguments = ["train", str(folder), "--out", str(tmp_path / "run"), "--eval-store", str(place)]
    status, told = shell(capsys, *arguments)
    assert status == 2
    assert f"--eval-store {place}: cannot be written (no such folder)" in told.replace("\n", "")
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_being_written_is_refused_with_who_writes_it(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fork_script: Callable[..., Any],
) -> None:
    run = tmp_path / "run"
    whole = train(folder, tmp_path / "whole", epochs=3)
    train(folder, run, epochs=1)
    before = (run / "metrics.jsonl").read_bytes()
    other = fork_command(fork_script, tmp_path, "train", "--resume", str(run))
    try:
        while (run / "metrics.jsonl").stat().st_size <= len(before) + 1000:
            assert other.alive()
            time.sleep(0.01)
        status, told = shell(capsys, "train", "--resume", str(run), "--epochs", "3")
        assert status == 2
        holder = f"process {other.pid} on {platform.node()}"
        assert f"{holder} is writing this run" in told
        assert read_run(run).writer == holder
    finally:
        other.kill()
    assert (run / "lock").exists()
    assert read_run(run).writer is None
    shutil.rmtree(run)
    train(folder, run, epochs=1)
    (run / "lock").write_text(f"process {other.pid}")  # left by a kill
    assert resume(run, epochs=3).history == whole.history
    assert not (run / "lock").exists()


def test_a_full_disk_under_tensorboard_does_not_end_a_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(folder, tmp_path / "run", epochs=1)
    board = tmp_path / "run" / "tensorboard"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(board)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode()}")
    try:
        (board / "filler").write_bytes(bytes(4096))
        status, told = shell(capsys, "train", "--resume", str(tmp_path / "run"), "--epochs", "40")
    finally:
        subprocess.run(["umount", str(board)], check=True)
    assert status == 0, told
    assert "Traceback" not in told
    records = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [each["epoch"] for each in records if each["kind"] == "epoch"] == list(range(1, 41))


# Predict ------------------------------------------------------------------------------------------


def test_predict_writes_classes_scores_and_embeddings_of_the_best_weights(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(folder, tmp_path / "run")
    assert main(["predict", str(tmp_path / "run"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["files"]["scores.npy"] == [2000, 4]
    place = tmp_path / "run" / "predictions"
    scores, classes = np.load(place / "scores.npy"), np.load(place / "predictions.npy")
    assert (scores.argmax(1) == classes).all()
    dataset = gnnsys.open_dataset(folder)
    test = dataset.node_table("test")
    right = classes[test] == dataset.node_table("labels")[test]
    assert right.mean() == pytest.approx(result.best_test["accuracy"], abs=1e-6)
    # Embeddings are what the last layer takes: the last layer alone gives the scores.
    weights = load_file(tmp_path / "run" / "model.safetensors")
    embeddings = np.load(place / "embeddings.npy")
    graph = dataset.graph()
    target = np.repeat(np.arange(2000), np.diff(graph.indptr.numpy()))
    mean = np.zeros_like(embeddings)
    np.add.at(mean, target, embeddings[graph.indices.numpy()])
    mean /= np.diff(graph.indptr.numpy())[:, None]
    by_hand = (
        mean @ weights["gnn.convs.1.lin_l.weight"].numpy().T
        + weights["gnn.convs.1.lin_l.bias"].numpy()
        + embeddings @ weights["gnn.convs.1.lin_r.weight"].numpy().T
    )
    np.testing.assert_allclose(by_hand, scores, rtol=1e-4, atol=1e-5)


def test_predict_for_some_nodes_gives_their_rows_in_order(folder: Path, tmp_path: Path) -> None:
    train(folder, tmp_path / "run", epochs=1)
    np.save(tmp_path / "ids.npy", np.array([7, 3, 3, 1999], np.int32))
    run = str(tmp_path / "run")
    assert main(["predict", run]) == 0
    options = ["--nodes", str(tmp_path / "ids.npy"), "--out", str(tmp_path / "some")]
    assert main(["predict", run, *options]) == 0
    for name in ("scores", "embeddings", "predictions", "nodes"):
        every = np.load(tmp_path / "run" / "predictions" / f"{name}.npy")
        some = np.load(tmp_path / "some" / f"{name}.npy")
        np.testing.assert_array_equal(some, every[[7, 3, 3, 1999]])


def test_predict_refuses_ids_outside_and_overwriting(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(folder, tmp_path / "run", epochs=1)
    np.save(tmp_path / "ids.npy", np.array([3, 2000]))
    run = str(tmp_path / "run")
    status, told = shell(capsys, "predict", run, "--nodes", str(tmp_path / "ids.npy"))
    assert status == 2
    assert "id 2000 at position 1 is outside the nodes [0, 2000)" in told
    assert not (tmp_path / "run" / "predictions").exists()
    assert main(["predict", run]) == 0
    status, told = shell(capsys, "predict", run)
    assert status == 2
    assert "exists already" in told

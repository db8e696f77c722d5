"""Clustering runs that are broken off and go on, against the same run left alone."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from gnnsys.clustering.checkpoint import load_clusters
from gnnsys.clustering.encoders import MlpEncoder
from gnnsys.clustering.runs import run_clustering
from gnnsys.clustering.trainer import fit_means
from gnnsys.commands.cli import main
from gnnsys.config.cluster import ClusterConfig
from gnnsys.config.file import resumed_options
from gnnsys.config.run_files import LOCK
from gnnsys.config.train import TrainConfig
from gnnsys.generate import generate_community
from gnnsys.system.files import lock_file
from gnnsys.training.loop import run_training

_SMALL: dict[str, Any] = {
    "hidden": (8,), "dim": 3, "pretrain_epochs": 2, "warm_epochs": 2, "epochs": 3, "seeds": 2
}  # fmt: skip
_FLAGS = ["--hidden", "8", "--dim", "3", "--pretrain-epochs", "2", "--warm-epochs", "2"]
_FLAGS += ["--epochs", "3"]
_WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "sampled": {"batch_size": 150, "fanout": 4, "select": "modularity"},
    "random views, starts": {"loss": "grace", "starts": 2, "batch_size": 300, "seeds": 1},
}
_FILES = ("assignments.npy", "embeddings.npy", "model.safetensors", "encoder.json")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On a busy machine threads of small tensors wait for each other most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return str(generate_community("g", nodes=400, classes=3, features=6, degree=5, signal=2.0))


def kept(run: str) -> dict[str, Any]:
    """All that a finished run has left, but for the times."""
    result = json.loads(Path(run, "result.json").read_text())
    for seed in result["seeds"]:
        del seed["seconds"]
    epochs = [
        {name: value for name, value in record.items() if name not in ("seconds", "rss")}
        for record in records(run, "epoch")
    ]
    return {"result": result, "epochs": epochs} | {f: Path(run, f).read_bytes() for f in _FILES}


def records(run: str, kind: str) -> list[dict[str, Any]]:
    lines = Path(run, "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


@contextlib.contextmanager
def at_call(number: int, do: Callable[[], None] = lambda: None) -> Iterator[list[int]]:
    """Does something when an encoder is called for the so-manieth time; yields the calls."""
    calls = [0]

    def count(module: torch.nn.Module, *_: Any) -> None:
        calls[0] += isinstance(module, MlpEncoder)
        if calls[0] == number and isinstance(module, MlpEncoder):
            do()

    hook = torch.nn.modules.module.register_module_forward_hook(count)
    try:
        yield calls
    finally:
        hook.remove()


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("way", _WAYS)
def test_interrupted_anywhere_and_resumed_it_ends_with_the_same_bits(graph: str, way: str) -> None:
    options = {"dataset": graph, **_SMALL, **_WAYS[way]}
    with at_call(-1) as calls:
        run_clustering(ClusterConfig(**options, out="whole"))
    total, places = calls[0], set()
    # Runs that are broken off again and again, so that each place is one of some run.
    for number, pace in enumerate((5, 7)):
        run = f"run{number}"
        config = ClusterConfig(**options, out=run)
        for _ in range(total):
            with at_call(pace, interrupt):
                result = run_clustering(config)
            if result["reason"] == "done":
                break
            assert not Path(run, "result.json").exists()
            assert records(run, "end")[-1]["reason"] == "interrupted"
            places.add((result["place"]["phase"], load_clusters(Path(run)).seed.batch > 0))
            config = resumed_options(run, ClusterConfig)
        assert kept(run) == kept("whole")
        assert not Path(run, LOCK).exists()
    phases = {phase for phase, _ in places}
    assert phases == {"reconstruct", "contrast", "train"}
    inside_an_epoch = {phase for phase, inside in places if inside}
    assert inside_an_epoch >= ({"train"} if "batch_size" in options else {"reconstruct"})


_KILLED = """
    import os, signal, sys, torch
    torch.set_num_threads(1)
    from gnnsys.clustering.encoders import MlpEncoder
    from gnnsys.clustering.runs import run_clustering
    from gnnsys.config.cluster import ClusterConfig
    from gnnsys.config.file import resumed_options

    options = eval(sys.argv[1])

    def go(calls):
        left = [calls]

        def count(module, *_):
            left[0] -= isinstance(module, MlpEncoder)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        torch.nn.modules.module.register_module_forward_hook(count)
        there = os.path.exists("killed/config.toml")
        config = resumed_options("killed", ClusterConfig) if there else ClusterConfig(**options)
        run_clustering(config)

    for calls in (1, 4, 9, 14, 6):
        child = os.fork()
        if child == 0:
            go(calls)
            os._exit(0)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "the run ended before it was killed"
    go(-1)
"""


def test_killed_at_any_time_it_ends_with_the_same_bits(
    graph: str, tmp_path: Path, run_forked: Callable[..., Any]
) -> None:
    options = {"dataset": graph, **_SMALL, "batch_size": 150, "checkpoint_minutes": 1e-9}
    run_clustering(ClusterConfig(**options, out="whole"))
    done = run_forked(_KILLED, tmp_path, repr({**options, "out": "killed"}))
    assert done.returncode == 0, done.stderr
    assert "ended before its first checkpoint, so it begins again" in done.stderr
    assert kept("killed") == kept("whole")


def test_a_signal_of_a_job_system_ends_it_as_a_training_run(graph: str) -> None:
    command = [sys.executable, "-m", "gnnsys", "cluster", graph, "--epochs", "1000000"]
    command += ["--hidden", "8", "--pretrain-epochs", "1", "--warm-epochs", "1"]
    with subprocess.Popen(
        [*command, "--out", "run"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while not (Path("run/metrics.jsonl").exists() and records("run", "epoch")):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGUSR1)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    last = told.splitlines()[-1]
    assert last.startswith("gnnsys: interrupted in epoch ")
    assert last.endswith(" of seed 0 (train); go on with gnnsys cluster --resume run")
    assert load_clusters(Path("run")).seed.epoch == len(records("run", "epoch"))


def test_without_a_folder_it_says_that_nothing_is_kept(graph: str, capsys) -> None:
    with at_call(2, interrupt):
        assert main(["cluster", graph, *_FLAGS]) == 130
    told = capsys.readouterr()
    expected = "gnnsys: interrupted in epoch 0 of seed 0 (reconstruct), without a checkpoint"
    assert told.err.splitlines()[-1] == expected
    assert told.out == ""


# What is refused ----------------------------------------------------------------------------------


@pytest.fixture
def broken_off(graph: str) -> str:
    with at_call(15, interrupt):
        options = {"dataset": graph, **_SMALL, "out": "run"}
        assert run_clustering(ClusterConfig(**options))["reason"] == "interrupted"
    return "run"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that is refused."""
    before = {path: path.read_bytes() for path in Path("run").iterdir()}
    capsys.readouterr()
    assert main([*arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert {path: path.read_bytes() for path in Path("run").iterdir()} == before
    return line


def test_a_damaged_checkpoint_is_one_line(broken_off: str, capsys) -> None:
    path = Path(broken_off, "checkpoint.pt")
    whole = path.read_bytes()
    draw = np.random.default_rng(0)
    for place in draw.integers(0, len(whole) - 64, 12):
        damaged = bytearray(whole)
        damaged[place : place + 64] = bytes(byte ^ 0x5A for byte in damaged[place : place + 64])
        path.write_bytes(damaged)
        # The first bytes of a zip archive's parts repeat what its directory says.
        with contextlib.suppress(Exception):
            if torch.load(path, weights_only=True) is not None:
                continue
        assert str(path) in refused(capsys, "cluster", "--resume", broken_off)
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        line = refused(capsys, "cluster", "--resume", broken_off)
        assert f"{path}: not a whole checkpoint" in line
    torch.save({"version": 1, "config": {}}, path)
    assert "parts are missing" in refused(capsys, "cluster", "--resume", broken_off)


def test_state_of_another_shape_is_one_line(broken_off: str, capsys) -> None:
    path = Path(broken_off, "checkpoint.pt")
    parts = torch.load(path, weights_only=True)
    parts["seed"]["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3, 3)
    torch.save(parts, path)
    assert main(["cluster", "--resume", broken_off]) == 2
    assert "checkpoint.pt: of another model: the optimizer's exp_avg of" in capsys.readouterr().err


def test_options_that_cannot_change_and_other_runs_are_refused(
    graph: str, broken_off: str, capsys
) -> None:
    again = ["cluster", "--resume", broken_off]
    for option, value, had in (("dim", "4", "3"), ("epochs", "9", "3"), ("k", "4", "None")):
        line = refused(capsys, *again, f"--{option}", value)
        assert f"--{option} {value}: the run in run has {had}; leave it out" in line
    (line,) = [refused(capsys, "cluster", "other", "--resume", broken_off)]
    assert "--dataset other: the run in run has" in line
    assert "--data: goes with --resume" in refused(capsys, "cluster", graph, "--data", graph)
    other = generate_community("other", nodes=400, classes=3, features=6, degree=5, seed=3)
    assert "of another dataset" in refused(capsys, *again, "--data", str(other))
    with lock_file(Path(broken_off, LOCK)):
        line = refused(capsys, *again)
        assert f"process {os.getpid()} on {platform.node()} is writing this run" in line
    Path(broken_off, LOCK).unlink(missing_ok=True)
    line = refused(capsys, "train", "--resume", broken_off)
    assert "has options of gnnsys cluster, expected those of gnnsys train" in line
    run_training(TrainConfig(dataset=graph, epochs=1, fanouts=(2, 2), out="trained"))
    line = refused(capsys, "cluster", "--resume", "trained")
    assert "has options of gnnsys train, expected those of gnnsys cluster" in line
    assert "no/config.toml: no such file" in refused(capsys, "cluster", "--resume", "no")
    config = Path(broken_off, "config.toml")
    config.write_text(config.read_text().replace("dim = 3", "dim = 4"))
    assert "of other options: dim is 3, config.toml says 4" in refused(capsys, *again)


def test_the_dataset_may_have_moved(graph: str, broken_off: str, capsys) -> None:
    run_clustering(ClusterConfig(dataset=graph, **_SMALL, out="whole"))
    Path(graph).rename("elsewhere")
    assert "--data PLACE says where it is now" in refused(capsys, "cluster", "--resume", "run")
    assert main(["cluster", "--resume", "run", "--data", "elsewhere"]) == 0
    moved, whole = kept("run"), kept("whole")
    assert moved["result"]["options"].pop("dataset") == str(Path("elsewhere").absolute())
    del whole["result"]["options"]["dataset"]
    assert moved == whole
    assert resumed_options("run", ClusterConfig).dataset == str(Path("elsewhere").absolute())


def test_a_finished_run_says_so_and_takes_more_seeds(graph: str, capsys) -> None:
    command = ["cluster", graph, *_FLAGS, "--seeds", "1", "--out", "run"]
    assert main(command) == 0
    before = {path: path.stat().st_mtime_ns for path in Path("run").iterdir()}
    capsys.readouterr()
    assert main(["cluster", "--resume", "run"]) == 0
    told = capsys.readouterr()
    assert told.out == "run: has ended, nothing is left to do; see gnnsys report run\n"
    assert told.err == ""
    assert main(["cluster", "--resume", "run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads(Path("run/result.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in Path("run").iterdir()} == before
    assert "leave it out" in refused(capsys, "cluster", "--resume", "run", "--dim", "9")
    run_clustering(ClusterConfig(dataset=graph, **_SMALL, out="two"))
    assert main(["cluster", "--resume", "run", "--seeds", "2", "--plot", "x.png"]) == 0
    assert Path("x.png").read_bytes() == Path("run/embedding.png").read_bytes()
    more, two = kept("run"), kept("two")
    assert more["result"]["options"].pop("plot") == str(Path("x.png").absolute())
    del two["result"]["options"]["plot"]
    assert more == two
    assert main(["cluster", "--resume", "run"]) == 0  # its two seeds are among its options now
    assert "--seeds 1: the run in run has trained 2 already" in refused(
        capsys, "cluster", "--resume", "run", "--seeds", "1"
    )


def test_many_threads_change_no_bit_of_k_means(monkeypatch: pytest.MonkeyPatch) -> None:
    """scikit-learn's threads add up what they found in any order."""
    monkeypatch.setenv("OMP_NUM_THREADS", "8")  # else it takes no more than there are cores
    torch.set_num_threads(2)
    rows = np.random.default_rng(0).normal(size=(20_000, 8)).astype(np.float32)
    with threadpool_limits(8, user_api="openmp"):
        found = {fit_means(rows, 6, 1, 0).cluster_centers_.tobytes() for _ in range(4)}
    assert len(found) == 1

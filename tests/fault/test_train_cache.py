"""``gnnsys train`` over a cache when something goes wrong."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gnnsys.config.file import resumed_config
from gnnsys.config.train import TrainConfig
from gnnsys.errors import FileFormatError, StorageError
from gnnsys.generate import generate_community
from gnnsys.training.checkpoint import load_checkpoint
from gnnsys.training.loop import TrainResult, run_training

OPTIONS: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 64,
    "hidden": 16,
    "fanouts": (4, 3),
    "seed": 5,
}
CACHED: dict[str, Any] = {"cache": "0.1", "storage": "pread", "victim_buffer": "4KB"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small graph whose files a test may spoil."""
    return generate_community(
        tmp_path / "g", nodes=1000, classes=4, features=16, degree=8, signal=0.2
    )


def train(folder: Path, out: Path | None = None, **options: Any) -> TrainResult:
    return run_training(config_of(folder, out, **options))


def config_of(folder: Path, out: Path | None = None, **options: Any) -> TrainConfig:
    return TrainConfig(dataset=str(folder), out=str(out) if out else None, **OPTIONS | options)


# Kills --------------------------------------------------------------------------------------------


def test_a_run_killed_inside_epochs_and_resumed_has_the_same_losses(
    folder: Path, tmp_path: Path, train_through_kills: Callable[..., None]
) -> None:
    options = OPTIONS | {"epochs": 4, "checkpoint_minutes": 1e-6}
    whole = train(folder, cache="none", storage="mmap", **options)
    run = tmp_path / "run"
    train_through_kills(folder, run, options | CACHED, kills=3)
    state = load_checkpoint(run).state
    assert state.history == [dataclasses.asdict(record) for record in whole.history]
    rows = sum(rows for rows, _ in state.served.values())
    assert rows == sum(served.rows for served in whole.counters.tiers().values())


# The file of the features -------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["mmap", "pread"])
def test_a_file_truncated_during_the_run_is_one_error_and_the_run_goes_on_when_it_is_mended(
    folder: Path, tmp_path: Path, storage: Any
) -> None:
    features = folder / "features.npy"
    content = features.read_bytes()
    whole = train(folder)

    def cut(epoch: int, done: int, total: int) -> None:
        # A mapped page that goes while it is read ends the process: after the last batch none is.
        if (epoch, done) == (2, total if storage == "mmap" else 2):
            os.truncate(features, len(content) // 2)

    config = config_of(folder, tmp_path / "run", **CACHED | {"storage": storage})
    with pytest.raises(FileFormatError, match=r"features\.npy: truncated"):
        run_training(config, on_batch=cut)
    features.write_bytes(content)
    assert run_training(resumed_config(tmp_path / "run")).history == whole.history


@pytest.mark.parametrize("storage", ["mmap", "pread"])
def test_a_file_replaced_during_the_run_is_read_as_it_was(folder: Path, storage: Any) -> None:
    whole = train(folder)
    features = folder / "features.npy"

    def replace(epoch: int, done: int, total: int) -> None:
        if (epoch, done) == (1, 2):
            other = features.with_suffix(".new")
            np.save(other.with_suffix(".npy.new.npy"), np.zeros((1000, 16), np.float32))
            os.replace(other.with_suffix(".npy.new.npy"), features)

    config = config_of(folder, **CACHED | {"storage": storage})
    assert run_training(config, on_batch=replace).history == whole.history


# Other processes ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("one_thread")
def test_two_processes_train_on_one_dataset_at_once(
    folder: Path, tmp_path: Path, fork_script: Callable[..., Any]
) -> None:
    script = tmp_path / "train.py"
    script.write_text("import sys, gnnsys.commands.cli as cli; sys.exit(cli.main(sys.argv[1:]))")
    options = ["--epochs", "1", "--batch-size", "64", "--hidden", "16", "--fanouts", "4", "3"]
    options += ["--seed", "5", "--cache", "0.1", "--storage", "pread", "--json"]
    given = (("train", str(folder), *options), {"OMP_NUM_THREADS": "1"})
    both = [fork_script(script, name, tmp_path, *given) for name in ("one", "two")]
    told = [process.outcome()[1] for process in both]
    losses = [json.loads(text.splitlines()[-1])["loss"] for text in told]
    assert losses == [train(folder, epochs=1).history[-1].loss] * 2


# A trace on a full disk ---------------------------------------------------------------------------


def test_a_full_disk_for_the_trace_is_one_error_and_leaves_no_file(
    folder: Path, tmp_path: Path
) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode()}")
    try:
        with pytest.raises(StorageError, match=r"run\.trace"):
            train(folder, trace=str(place / "run.trace"), **CACHED)
        assert not (place / "run.trace").exists()
    finally:
        subprocess.run(["umount", str(place)], check=True)


# Limits -------------------------------------------------------------------------------------------


LIMITED = """
import os, sys
from gnnsys.commands.cli import main
import gnnsys.commands.train, torch
torch.set_num_threads(1)
# Libraries are in memory by now: the limit counts what comes on top of them.
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
status = main(sys.argv[2:])
sys.stdout.flush()
os._exit(status)  # taking Python down would copy pages of libraries into the group
"""


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_table_larger_than_the_memory_limit_trains_also_without_io_uring(
    memory_group: Any,
    refuse_calls: Callable[..., str],
    run_forked: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    nodes, features, limit = 30_000, 4096, 400 << 20
    size = nodes * features * 4
    large = generate_community(
        tmp_path / "large", nodes=nodes, classes=4, features=features, degree=4, train=0.03, val=0.6
    )
    memory_group.set_limit(limit)
    options = ["--epochs", "1", "--batch-size", "64", "--layers", "1", "--fanouts", "2"]
    options += ["--seed", "5", "--eval", "sampled", "--json", "--threads", "1"]

    def run(cache: str, before: str = "") -> subprocess.CompletedProcess[str]:
        arguments = [str(memory_group.folder), "train", str(large), "--cache", cache, *options]
        return run_forked(before + LIMITED, tmp_path, *arguments)

    done = [run("40MB"), run("40MB", before=refuse_calls({"io_uring_setup": errno.EPERM}))]
    for each in done:
        assert each.returncode == 0, each.stderr
    assert "io_uring" not in done[0].stderr
    assert "instead of io_uring" in done[1].stderr
    assert memory_group.peak_bytes() <= limit < size
    results = [json.loads(each.stdout.splitlines()[-1]) for each in done]
    assert all(result["reads"]["requests"] > 0 for result in results)
    refused = run("420MB")
    assert refused.returncode == 2
    told = " ".join(refused.stderr.split())
    assert " MiB planned > " in told
    assert "the control group (400 MiB) leaves; give more memory" in told
    assert "cache rows 420 MiB" in told
    in_memory = train(
        large, epochs=1, layers=1, fanouts=(2,), cache="none", storage="mmap", eval="sampled"
    )
    assert {result["loss"] for result in results} == {in_memory.history[-1].loss}

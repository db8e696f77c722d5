"""Fixtures that several test modules share."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch

_DATA = "GNNSYS_TEST_DATA"


@pytest.fixture(scope="session")
def real_graphs() -> Path:
    """The folder of real graphs, read-only; a test without it is skipped."""
    folder = Path(os.environ.get(_DATA, Path(__file__).parents[1] / ".." / "shared" / "data"))
    if not (folder / "Cora" / "raw").is_dir():
        pytest.skip(f"no real graphs at {folder}: name their folder in {_DATA}")
    return folder.resolve()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Losses are the same for a fixed number of torch's threads only."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class MemoryGroup:
    """A control group of its own, of either version."""

    folder: Path
    limit: str
    peak: str

    def set_limit(self, nbytes: int) -> None:
        (self.folder / self.limit).write_text(str(nbytes))

    def peak_bytes(self) -> int:
        return int((self.folder / self.peak).read_text())


@pytest.fixture
def memory_group() -> Iterator[MemoryGroup]:
    """A group to run a process in under a limit; a machine that permits none skips the test."""
    name = f"gnnsys-test-{uuid.uuid4().hex}"
    group = None
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            folder = Path(f"/sys/fs/cgroup/memory{path}") / name
            group = MemoryGroup(folder, "memory.limit_in_bytes", "memory.max_usage_in_bytes")
            break
        if controllers == "":
            folder = Path(f"/sys/fs/cgroup{path}") / name
            group = MemoryGroup(folder, "memory.max", "memory.peak")
    try:
        assert group is not None
        group.folder.mkdir()
        group.set_limit(1 << 40)
    except OSError as error:
        if group.folder.exists():
            group.folder.rmdir()
        pytest.skip(f"no memory limit can be set here: {error}")
    yield group
    group.folder.rmdir()


_KILLED = """
    import os, random, shutil, signal, sys, threading
    from pathlib import Path
    from gnnsys.config.train import TrainConfig
    from gnnsys.config.file import resumed_config
    from gnnsys.training.loop import run_training
    import torch.utils.tensorboard   # what a child needs is there before it is forked

    folder, out, seed, options = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), eval(sys.argv[4])
    kills = int(sys.argv[5])
    draw = random.Random(seed)

    def run_until_killed(batches, delay):
        left = [batches]

        def count(*_):
            left[0] -= 1
            if left[0] == 0:  # some time later, in the middle of whatever it is at
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

        if (out / "checkpoint.pt").exists():
            config = resumed_config(out)
        else:
            shutil.rmtree(out, ignore_errors=True)
            config = TrainConfig(dataset=folder, out=str(out), **options)
        run_training(config, on_batch=count)

    for kill in range(kills):
        batches, delay = draw.randint(1, 5), draw.uniform(0, 0.02)
        child = os.fork()
        if child == 0:
            run_until_killed(batches, delay)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"the run ended before kill {kill}: make it longer"
    run_training(resumed_config(out))
"""


@pytest.fixture
def train_through_kills() -> Callable[..., None]:
    """Trains a folder into a run that is killed at random points, resumed, and brought to its end.

    Called with the folder, the run, the options of ``TrainConfig`` and the number of kills.
    """

    def train(folder: Path, run: Path, options: dict[str, Any], kills: int) -> None:
        seed = int.from_bytes(os.urandom(4), "little")
        print(f"seed {seed}")
        arguments = [str(folder), str(run), str(seed), repr(options), str(kills)]
        command = [sys.executable, "-c", dedent(_KILLED), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=run.parent)
        assert done.returncode == 0, done.stderr

    return train

"""Fixtures that several test modules share."""

from __future__ import annotations

import multiprocessing
import os
import platform
import runpy
import socket
import struct
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.forkserver import ensure_running
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


@pytest.fixture(scope="module", autouse=True)
def _threads_are_put_back() -> Iterator[None]:
    """The losses of the modules that come next in this process depend on torch's threads."""
    threads = torch.get_num_threads()
    yield
    left = torch.get_num_threads()
    torch.set_num_threads(threads)
    assert left == threads


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Losses are the same for a fixed number of torch's threads only."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


_RUN = str(Path(__file__).with_name("run_script.py"))
# Scripts run in forks of one process that has imported what they need, which costs more than they.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["gnnsys.pipeline.engine", "gnnsys.pipeline.models", "gnnsys.training.loop"]
)


class Forked:
    """A process that runs a script from beginning to end, as Python does, its output in files.

    Args:
        script: the file; the output goes beside it.
        name: of the files of the output.
        folder: that it works in.
        arguments: of the command line.
        environment: variables that are set besides.
    """

    def __init__(
        self,
        script: Path,
        name: str,
        folder: Path,
        arguments: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        self._out, self._err = script.with_name(f"{name}.out"), script.with_name(f"{name}.err")
        self._out.touch()
        self._err.touch()
        given = {
            "script": script,
            "folder": folder,
            "arguments": arguments,
            "environment": environment or {},
            "out": self._out,
            "err": self._err,
        }
        self._process = _FORKS.Process(target=runpy.run_path, args=(_RUN, given))
        self._process.start()

    def wait_for(self, line: str) -> None:
        """Waits until it has printed this line."""
        deadline = time.monotonic() + 100
        while line not in self._out.read_text().splitlines():
            assert self._process.is_alive(), self._err.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def alive(self) -> bool:
        return self._process.is_alive()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def outcome(self, timeout: float = 100) -> tuple[int, str, str]:
        """Status, output and errors, when it has ended, which takes so many seconds at most."""
        self._process.join(timeout)
        assert self._process.exitcode is not None, self._err.read_text()
        return self._process.exitcode, self._out.read_text(), self._err.read_text()


@pytest.fixture(scope="session")
def fork_script() -> type[Forked]:
    """Starts scripts in forks of a process that has imported gnnsys."""
    folder = Path.cwd()
    os.chdir("/")  # where no sources are, which it would import in place of what is installed
    ensure_running()
    os.chdir(folder)
    return Forked


@pytest.fixture
def run_forked(
    fork_script: type[Forked], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the text of a script in a folder, with arguments, in a fork; for what does not depend on
    how a process starts. It is killed after ``timeout`` seconds."""

    def run(
        text: str, folder: Path, *arguments: object, timeout: float = 240
    ) -> subprocess.CompletedProcess[str]:
        script = tmp_path_factory.mktemp("script") / "script.py"
        script.write_text(dedent(text))
        forked = fork_script(script, "script", folder, tuple(map(str, arguments)))
        try:
            status, out, err = forked.outcome(timeout)
        finally:
            forked.kill()
        return subprocess.CompletedProcess([str(script), *arguments], status, out, err)

    return run


class Ranks:
    """Processes that run one script under torchrun's environment.

    Args:
        machines: a network namespace for each, and the address of the first; else all are on
            loopback.
    """

    def __init__(
        self,
        fork_script: Callable[..., Any],
        folder: Path,
        text: str,
        count: int,
        machines: tuple[list[str], str] | None = None,
    ) -> None:
        script = folder / "rank.py"
        script.write_text(dedent(text))
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        world = {
            "MASTER_ADDR": machines[1] if machines else "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(count),
            "OMP_NUM_THREADS": "1",
        }
        self.processes = [
            fork_script(
                script,
                str(rank),
                folder,
                environment={
                    **world,
                    "RANK": str(rank),
                    **({"NAMESPACE": machines[0][rank]} if machines else {}),
                },
            )
            for rank in range(count)
        ]

    def outputs(self) -> list[tuple[int, str, str]]:
        """Status, output and errors of each, when all have ended."""
        return [process.outcome() for process in self.processes]


@pytest.fixture
def start_ranks(fork_script: Callable[..., Any], tmp_path: Path) -> Iterator[Callable[..., Ranks]]:
    """Starts ranks; they are killed at the end of the test."""
    started: list[Ranks] = []

    def start(script: str, count: int, machines: tuple[list[str], str] | None = None) -> Ranks:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(Ranks(fork_script, folder, script, count, machines))
        return started[-1]

    try:
        yield start
    finally:
        for ranks in started:
            for process in ranks.processes:
                process.kill()


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
def train_through_kills(
    run_forked: Callable[..., subprocess.CompletedProcess[str]],
) -> Callable[..., None]:
    """Trains a folder into a run that is killed at random points, resumed, and brought to its end.

    Called with the folder, the run, the options of ``TrainConfig`` and the number of kills.
    """

    def train(folder: Path, run: Path, options: dict[str, Any], kills: int) -> None:
        seed = int.from_bytes(os.urandom(4), "little")
        print(f"seed {seed}")
        done = run_forked(_KILLED, run.parent, folder, run, seed, repr(options), kills)
        assert done.returncode == 0, done.stderr

    return train


_CALLS = {
    "x86_64": {
        "io_uring_setup": 425, "madvise": 28, "openat": 257, "pwrite64": 18,
        "sched_getaffinity": 204,
    },
    "aarch64": {
        "io_uring_setup": 425, "madvise": 233, "openat": 56, "pwrite64": 68,
        "sched_getaffinity": 123,
    },
}  # fmt: skip

_REFUSE = """
import ctypes, sys
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filters", ctypes.c_void_p)]
filters = ctypes.create_string_buffer({program!r})
program = Program({length}, ctypes.addressof(filters))
prctl = ctypes.CDLL(None).prctl
no_new_privileges, set_seccomp, by_filter = 38, 22, 2
if prctl(no_new_privileges, 1, 0, 0, 0) or prctl(set_seccomp, by_filter, ctypes.byref(program)):
    sys.exit("the kernel takes no filter")
"""


@pytest.fixture
def refuse_calls() -> Callable[..., str]:
    """Script lines after which the kernel answers system calls with errors, by a seccomp filter.

    Called with an errno for each name of a call. With ``mask``, only calls are refused whose
    ``argument``, by number, has one of its bits. A machine without filters skips the test.
    """
    calls = _CALLS.get(platform.machine())
    if calls is None or "Seccomp_filters" not in Path("/proc/self/status").read_text():
        pytest.skip("no filters of system calls here")

    def refuse(refused: dict[str, int], argument: int = 0, mask: int = 0) -> str:
        load, jump_equal, jump_set, ret = 0x20, 0x15, 0x45, 0x06
        error, allow = 0x00050000, 0x7FFF0000
        low_half = 16 + 8 * argument  # offset in struct seccomp_data, little endian
        filters = [(load, 0, 0, 0)]
        for name, code in refused.items():
            filters.append((jump_equal, 0, 3 if mask else 1, calls[name]))
            if mask:
                filters += [(load, 0, 0, low_half), (jump_set, 0, 1, mask)]
            filters.append((ret, 0, 0, error | code))
        filters.append((ret, 0, 0, allow))
        program = b"".join(struct.pack("HBBI", *each) for each in filters)
        return _REFUSE.format(program=program, length=len(filters))

    return refuse

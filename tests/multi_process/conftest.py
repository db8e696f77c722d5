"""Ranks as real processes on loopback."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import time
from collections.abc import Callable, Iterator
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from textwrap import dedent

import pytest

_SECONDS = 100
_RUN = str(Path(__file__).with_name("run_rank.py"))
# Ranks are forked from one process that has imported what they need, which costs more than they do.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["gnnsys.pipeline.engine", "gnnsys.pipeline.models", "gnnsys.training.loop"]
)


class Rank:
    """A process that runs a script from beginning to end, as Python does, its output in files."""

    def __init__(self, script: Path, environment: dict[str, str]) -> None:
        name = environment["RANK"]
        self._out, self._err = script.with_name(f"{name}.out"), script.with_name(f"{name}.err")
        self._out.touch()
        self._err.touch()
        given = {"script": script, "environment": environment, "out": self._out, "err": self._err}
        self._process = _FORKS.Process(target=runpy.run_path, args=(_RUN, given))
        self._process.start()

    def wait_for(self, line: str) -> None:
        """Waits until the rank has printed this line."""
        deadline = time.monotonic() + _SECONDS
        while line not in self._out.read_text().splitlines():
            assert self._process.is_alive(), self._err.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def outcome(self) -> tuple[int, str, str]:
        """Status, output and errors, when it has ended."""
        self._process.join(_SECONDS)
        assert self._process.exitcode is not None, self._err.read_text()
        return self._process.exitcode, self._out.read_text(), self._err.read_text()


class Ranks:
    """Processes that run one script under torchrun's environment."""

    def __init__(self, folder: Path, script: str, count: int) -> None:
        path = folder / "rank.py"
        path.write_text(dedent(script))
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        self.processes = [
            Rank(
                path,
                {
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                    "WORLD_SIZE": str(count),
                    "RANK": str(rank),
                    "OMP_NUM_THREADS": "1",
                },
            )
            for rank in range(count)
        ]

    def outputs(self) -> list[tuple[int, str, str]]:
        """Status, output and errors of each, when all have ended."""
        return [process.outcome() for process in self.processes]


@pytest.fixture(scope="session", autouse=True)
def _fork_server() -> None:
    """Started in a folder without sources, which it would import in place of what is installed."""
    folder = Path.cwd()
    os.chdir("/")
    ensure_running()
    os.chdir(folder)


@pytest.fixture
def start_ranks(tmp_path: Path) -> Iterator[Callable[..., Ranks]]:
    """Starts ranks; they are killed at the end of the test."""
    started: list[Ranks] = []

    def start(script: str, count: int) -> Ranks:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(Ranks(folder, script, count))
        return started[-1]

    try:
        yield start
    finally:
        for ranks in started:
            for process in ranks.processes:
                process.kill()

"""Ranks as real processes on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

import pytest

_SECONDS = 100


class Ranks:
    """Processes that run one script under torchrun's environment."""

    def __init__(self, folder: Path, script: str, count: int, command: tuple[str, ...]) -> None:
        path = folder / "rank.py"
        path.write_text(dedent(script))
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        self.processes = [
            subprocess.Popen(
                [*command, sys.executable, str(path)],
                cwd=folder,
                env={
                    **os.environ,
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                    "WORLD_SIZE": str(count),
                    "RANK": str(rank),
                    "OMP_NUM_THREADS": "1",
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(count)
        ]

    def outputs(self) -> list[tuple[int, str, str]]:
        """Status, output and errors of each, when all have ended."""
        told = [process.communicate(timeout=_SECONDS) for process in self.processes]
        return [
            (process.returncode, out, err)
            for process, (out, err) in zip(self.processes, told, strict=True)
        ]


@pytest.fixture
def start_ranks(tmp_path: Path) -> Iterator[Callable[..., Ranks]]:
    """Starts ranks; they are killed at the end of the test."""
    started: list[Ranks] = []

    def start(script: str, count: int, command: tuple[str, ...] = ()) -> Ranks:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(Ranks(folder, script, count, command))
        return started[-1]

    with _killed(started):
        yield start


@contextmanager
def _killed(started: list[Ranks]) -> Iterator[None]:
    try:
        yield
    finally:
        for ranks in started:
            for process in ranks.processes:
                process.kill()
                process.communicate()

"""Ranks as real processes on loopback."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest


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

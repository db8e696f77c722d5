"""Starts the ranks of a distributed run as processes of this machine, as torchrun does.

torch's own launcher signals all others as soon as one rank has ended with a status other than 0: in
the middle of the first rank's checkpoint after Ctrl-C, and before they can tell which rank is gone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from gnnsys.system.interrupts import signals
from gnnsys.system.machine import usable_cores

__all__ = ["run_ranks"]

_GRACE = 35.0  # those that a verdict waits for need less
_TOLD = (2, 130)  # bad input and an interrupt, of which the first rank tells in its own words
_LOOK = 0.1
_HOST = "127.0.0.1"
# The package is the installed one, whatever lies in the folder that the command works in.
_COMMAND = "import sys; sys.path.remove(''); from gnnsys.commands.cli import main; sys.exit(main())"


def run_ranks(arguments: Sequence[str], ranks: int, grace: float = _GRACE) -> int:
    """Runs ``gnnsys ARGUMENTS`` as so many processes that find each other on this machine.

    Rank 0 has this process's standard output and error; lines that others write to standard error
    come with their number. The first to fail is told of by number. The rest then have ``grace``
    seconds to end by themselves, which they do as soon as they miss it. Signals that ask for
    an end are passed on.

    Args:
        arguments: of the command.
        ranks: number of processes.
        grace: seconds from the first failure until the rest are killed.

    Returns:
        The exit status: 0, that of the first to fail, or 128 plus the number of its signal.
    """
    # Held here on a port that the system chose: nobody can take it before the ranks come.
    store = TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)
    environment = {
        "MASTER_ADDR": _HOST,
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # rank 0 connects to it, too
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
    }
    cores = usable_cores()
    environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // ranks)))
    # Of connections that end with another rank, whose end is told of in better words.
    environment["TORCH_CPP_LOG_LEVEL"] = os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR")
    processes: list[subprocess.Popen[bytes]] = []
    try:
        with _passed_on(processes):  # also while some are not there yet
            for rank in range(ranks):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-c", _COMMAND, *arguments],
                        env={**os.environ, **environment, **own},
                        stdout=None if rank == 0 else subprocess.DEVNULL,
                        stderr=None if rank == 0 else subprocess.PIPE,
                        start_new_session=True,  # a terminal's Ctrl-C comes once, through here
                    )
                )
            relays = [_relay(rank, process.stderr) for rank, process in enumerate(processes)]
            status = _wait(processes, grace)
        for relay in relays:
            if relay is not None:
                relay.join(1.0)
        return status
    finally:
        for process in processes:  # all at once, before one can tell of another's end
            if process.poll() is None:
                process.kill()
        for process in processes:
            process.wait()


def _wait(processes: list[subprocess.Popen[bytes]], grace: float) -> int:
    """Waits for all; returns the status of the first that failed."""
    status, deadline = 0, float("inf")
    running = dict(enumerate(processes))
    while running:
        for rank, process in list(running.items()):
            found = process.poll()
            if found is None:
                continue
            del running[rank]
            if found and not status:
                status = found if found > 0 else 128 - found
                deadline = time.monotonic() + grace
                if found not in _TOLD and (found < 0 or rank):
                    print(f"gnnsys: error: rank {rank} {_ending(found)}", file=sys.stderr)
        if running and time.monotonic() > deadline:
            told = ", ".join(map(str, running))
            print(f"gnnsys: ranks {told} did not end by themselves: killed", file=sys.stderr)
            return status
        time.sleep(_LOOK)
    return status


def _ending(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"failed with exit status {status}"


def _relay(rank: int, lines: IO[bytes] | None) -> threading.Thread | None:
    """Hands on what a rank writes, with its number before each line."""
    if lines is None:
        return None

    def run() -> None:
        with lines:
            for line in lines:
                sys.stderr.write(f"[rank {rank}] {line.decode(errors='replace')}")
                sys.stderr.flush()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@contextmanager
def _passed_on(processes: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Passes signals that ask for an end on to the processes."""

    def pass_on(number: int, frame: object) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

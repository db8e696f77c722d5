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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import IO

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from gnnsys.ranks.rendezvous import tell_of_end
from gnnsys.system.interrupts import signals
from gnnsys.system.machine import usable_cores

__all__ = ["run_ranks"]

_GRACE = 35.0  # those that a verdict waits for need less
_TOLD = (2, 130)  # bad input and an interrupt, of which the first rank tells in its own words
_LOOK = 0.1
_HOST = "127.0.0.1"
# The package is the installed one, whatever lies in the folder that the command works in.
_COMMAND = "import sys; sys.path.remove(''); from gnnsys.commands.cli import main; sys.exit(main())"


def run_ranks(
    arguments: Sequence[str], ranks: int, grace: float = _GRACE, *, max_restarts: int = 0
) -> int:
    """Runs ``gnnsys ARGUMENTS`` as so many processes that find each other on this machine.

    Rank 0 has this process's standard output and error; lines that others write to standard error
    come with their number. The first to fail is told of by number. The rest then have ``grace``
    seconds to end by themselves, which they do as soon as they miss it. Signals that ask for
    an end are passed on.

    Args:
        arguments: of the command.
        ranks: number of processes.
        grace: seconds from the first failure until the rest are killed.
        max_restarts: how often all are started again, at most, after one has died, when the rest
            are killed at once, or hangs. The processes know of it as torchrun's do, by
            TORCHELASTIC_RESTART_COUNT.

    Returns:
        The exit status: 0, that of the first to fail, or 128 plus the number of its signal.
    """
    processes: list[subprocess.Popen[bytes]] = []
    with _passed_on(processes) as asked_to_end:  # also while some are not there yet
        for restarts in range(max_restarts + 1):
            is_last = restarts == max_restarts
            with _started(processes, arguments, ranks, restarts) as tell:
                status, died = _wait(processes, grace, not is_last, asked_to_end, tell)
            if is_last or not died or asked_to_end:
                break
            print(
                f"gnnsys: starts all ranks again, restart {restarts + 1} of {max_restarts}",
                file=sys.stderr,
            )
    return status


@contextmanager
def _started(
    processes: list[subprocess.Popen[bytes]], arguments: Sequence[str], ranks: int, restarts: int
) -> Iterator[Callable[[str], None]]:
    """Puts all ranks, which are killed at the end, in the place of those in ``processes``; gives
    what tells those of them that have not met yet how another has ended."""
    # Held here on a port that the system chose: nobody can take it before the ranks come.
    store = TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)
    environment = {
        "MASTER_ADDR": _HOST,
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # rank 0 connects to it, too
        "TORCHELASTIC_RESTART_COUNT": str(restarts),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
    }
    cores = usable_cores()
    environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // ranks)))
    processes.clear()
    relays: list[threading.Thread] = []
    try:
        for rank in range(ranks):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = subprocess.Popen(
                [sys.executable, "-c", _COMMAND, *arguments],
                env={**os.environ, **environment, **own},
                stdout=None if rank == 0 else subprocess.DEVNULL,
                stderr=None if rank == 0 else subprocess.PIPE,
                start_new_session=True,  # a terminal's Ctrl-C comes once, through here
            )
            processes.append(process)
            if process.stderr is not None:
                relays.append(_relay(rank, process.stderr))
        yield partial(tell_of_end, store, restarts)
    finally:
        for process in processes:  # all at once, before one can tell of another's end
            if process.poll() is None:
                process.kill()
        for process in processes:
            process.wait()
        for relay in relays:
            relay.join(1.0)


def _wait(
    processes: list[subprocess.Popen[bytes]],
    grace: float,
    at_once: bool,
    asked_to_end: list[int],
    tell: Callable[[str], None],
) -> tuple[int, bool]:
    """Waits for all, but ``at_once`` not for the rest where one has died and none was asked to.

    Returns:
        The status of the first that failed, and whether one has died or hangs.
    """
    status, died, deadline = 0, False, float("inf")
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
                died = found not in _TOLD
                tell(f"rank {rank} {_ending(found)}")
                if died and (found < 0 or rank):
                    print(f"gnnsys: error: rank {rank} {_ending(found)}", file=sys.stderr)
                if died and at_once and not asked_to_end:
                    return status, True
        if running and time.monotonic() > deadline:
            told = ", ".join(map(str, running))
            print(f"gnnsys: ranks {told} did not end by themselves: killed", file=sys.stderr)
            return status, True
        time.sleep(_LOOK)
    return status, died


def _ending(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"failed with exit status {status}"


def _relay(rank: int, lines: IO[bytes]) -> threading.Thread:
    """Hands on what a rank writes, with its number before each line."""

    def run() -> None:
        with lines:
            for line in lines:
                sys.stderr.write(f"[rank {rank}] {line.decode(errors='replace')}")
                sys.stderr.flush()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@contextmanager
def _passed_on(processes: list[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Passes signals that ask for an end on to the processes; gives those that came."""
    came: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        came.append(number)
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in signals()}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

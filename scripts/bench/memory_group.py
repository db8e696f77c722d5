"""A control group that limits the memory of processes, their share of the page cache included.

As a script it enters a group and becomes another program:
python memory_group.py GROUP_FOLDER PROGRAM ARGUMENTS
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import BenchError
from peers import Peer

__all__ = ["MemoryGroup", "ask_limited"]

_ROOT = Path("/sys/fs/cgroup")
_FILES = {  # version of the control groups: limit, peak
    1: ("memory.limit_in_bytes", "memory.max_usage_in_bytes"),
    2: ("memory.max", "memory.peak"),
}
_number = itertools.count()


def ask_limited(
    command: Sequence[str | Path], request: dict[str, Any], limit: int
) -> tuple[dict[str, Any], int | None]:
    """What a worker answers that is started for this request alone, and the most memory it had.

    Args:
        command: python, script and arguments of the worker.
        request: to answer.
        limit: of its memory in bytes; 0 for none, where the memory is not told either.

    Raises:
        BenchError: no limit can be set.
        PeerError: the worker does not start, reports an error, or dies, as by the limit.
    """
    python, script, *arguments = map(str, command)
    with contextlib.ExitStack() as stack:
        if not limit:
            peer = stack.enter_context(Peer(Path(python), Path(script), arguments))
            return peer.ask(request), None
        group = stack.enter_context(MemoryGroup(limit))
        inside = [str(group.folder), python, script, *arguments]
        peer = stack.enter_context(Peer(Path(sys.executable), Path(__file__), inside))
        return peer.ask(request), group.peak_bytes()


class MemoryGroup:
    """A group below the one this process is in; it is removed at the end of a ``with`` statement.

    Args:
        limit: bytes that its processes may take together; swap does not count in version 1 of the
            control groups and is refused in version 2.

    Raises:
        BenchError: no group can be made or limited here.
    """

    def __init__(self, limit: int) -> None:
        parent, version = _own_group()
        limit_file, self._peak_file = _FILES[version]
        self.folder = parent / f"gnnsys-bench.{os.getpid()}.{next(_number)}"
        try:
            self.folder.mkdir()
            (self.folder / limit_file).write_text(str(limit))
            if version == 2 and (self.folder / "memory.swap.max").exists():
                (self.folder / "memory.swap.max").write_text("0")
        except OSError as error:
            self._remove()
            raise BenchError(
                f"{self.folder}: no group with a memory limit can be made ({error.strerror}); run "
                "as root where control groups are writable, or give --limit-mib 0 for no limit"
            ) from error

    def peak_bytes(self) -> int | None:
        """The most memory that its processes had at a time; None where the kernel does not tell."""
        try:
            return int((self.folder / self._peak_file).read_text())
        except OSError:
            return None

    def __enter__(self) -> MemoryGroup:
        return self

    def __exit__(self, *exception: object) -> None:
        self._remove()

    def _remove(self) -> None:
        if self.folder.is_dir():
            self.folder.rmdir()


def _own_group() -> tuple[Path, int]:
    """The folder that limits this process's memory, and the version of the control groups."""
    unified = None
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return _ROOT / "memory" / path.lstrip("/"), 1
        if not controllers:
            unified = _ROOT / path.lstrip("/"), 2
    if unified is None:
        raise BenchError("/proc/self/cgroup: names no group; give --limit-mib 0 for no limit")
    return unified


def _enter(group: Path, command: list[str]) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))
    os.execv(command[0], command)


if __name__ == "__main__":
    _enter(Path(sys.argv[1]), sys.argv[2:])

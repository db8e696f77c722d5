"""The disk under a file: one pass that primes it, what limits its random reads, its read-ahead."""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

from harness import BenchError, Rate
from options import positive

__all__ = [
    "DISK_PAGE",
    "LIMIT_RATE",
    "Disk",
    "add_disk_options",
    "prime",
    "random_reads_per_second",
    "read_ahead_kb",
]

DISK_PAGE = 4096
LIMIT_RATE = Rate(amount="disk_seconds", unit="of the disk's limit")
"""Of samples that have the amounts of ``Disk.amounts``."""

_PRIME_BYTES = 8 << 20


class Disk:
    """Primes and measures the disk under a file at the begin of each round.

    Args:
        file: on the disk.
        fio_seconds: of the measurement; 0 for none.
    """

    def __init__(self, file: Path, fio_seconds: float) -> None:
        self.rounds: dict[int, dict[str, float | None]] = {}
        """By round, what was measured."""
        self._file = file
        self._fio_seconds = fio_seconds

    def prepare(self, number: int) -> None:
        """Begins a round."""
        passed = prime(self._file)
        seconds = self._fio_seconds
        reads = random_reads_per_second(self._file, seconds) if seconds else None
        self.rounds[number] = {"prime_bytes_per_second": passed, "random_reads_per_second": reads}

    def amounts(self, number: int, pages: float) -> dict[str, float]:
        """The "disk_seconds" in which the disk reads so many pages at its limit in this round;
        nothing where there are no pages, or the limit is not known."""
        reads = self.rounds[number]["random_reads_per_second"]
        return {"disk_seconds": pages / reads} if reads and pages else {}

    def describe(self) -> str:
        """The cache state that ``prepare`` brings about."""
        return (
            "disk primed each round by one sequential O_DIRECT pass over the features; "
            f"read_ahead_kb {read_ahead_kb(self._file)}"
        )

    def summary_line(self) -> str:
        """The median of what was measured."""
        found = [measured["random_reads_per_second"] for measured in self.rounds.values()]
        reads = [value for value in found if value is not None]
        if not reads:
            return "disk: not measured"
        return f"disk: {statistics.median(reads):,.0f} random reads of 4 KiB a second by fio"

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"read_ahead_kb": read_ahead_kb(self._file), "rounds": self.rounds}


def add_disk_options(parser: argparse.ArgumentParser) -> None:
    """Those of fio."""
    add = parser.add_argument
    add("--fio-seconds", type=positive, default=3, metavar="S", help="of fio a round; default 3")
    add("--no-fio", dest="fio_seconds", action="store_const", const=0, help="leave fio out")


def prime(path: Path) -> float:
    """Reads the file once from the disk, past the page cache; returns bytes a second.

    A virtual disk answers from what its host has cached: random reads before and after such a pass
    can differ a hundredfold.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        buffer = mmap.mmap(-1, _PRIME_BYTES)
        start = time.perf_counter()
        size = 0
        while got := os.readv(descriptor, [buffer]):
            size += got
            if got < _PRIME_BYTES:  # the end, at which O_DIRECT may not go on
                break
    except OSError as error:
        raise BenchError(f"{path}: cannot be read with O_DIRECT ({error.strerror})") from error
    finally:
        os.close(descriptor)
    return size / (time.perf_counter() - start)


def random_reads_per_second(path: Path, seconds: float, depth: int = 128) -> float:
    """What fio reaches with reads of 4 KiB at that queue depth.

    Raises:
        BenchError: there is no fio, or it fails.
    """
    if shutil.which("fio") is None:
        raise BenchError("fio is not installed: install it, or give --no-fio")
    ring = {"rw": "randread", "ioengine": "io_uring", "iodepth": depth, "bs": DISK_PAGE}
    plain = {"direct": 1, "time_based": 1, "runtime": seconds, "norandommap": 1, "randrepeat": 0}
    job: dict[str, Any] = {"name": "random", "filename": path, **ring, **plain}
    command = ["fio", "--readonly", "--output-format=json", *(f"--{k}={v}" for k, v in job.items())]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        (found,) = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
    except ValueError as error:
        raise BenchError(f"fio: exit status {done.returncode}: {done.stderr[-300:]}") from error
    if found["error"]:
        raise BenchError(f"fio: error {found['error']}: {done.stderr[-300:]}")
    return float(found["read"]["iops"])


def read_ahead_kb(path: Path) -> int | None:
    """The kernel's read-ahead on the file's disk; None where it has no such setting."""
    device = os.stat(path).st_dev
    block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    for folder in (block, block.parent):  # a partition's queue is its disk's
        try:
            return int((folder / "queue" / "read_ahead_kb").read_text())
        except OSError:
            continue
    return None

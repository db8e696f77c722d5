"""What readers of a feature table share: read the lists in order, with the clock running, check.

Runs in a peer's environment: standard library, numpy and torch only.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from protocol import Clock, serve
from torch import Tensor

__all__ = ["serve_reader"]

Request = dict[str, Any]
Read = Callable[[int, Tensor], Tensor]
"""(number of the list, its ids (n,) int64) -> (n, dim) float32"""

_CHECKED_ROWS = 512


def serve_reader(
    channel: Any,
    folder: Path,
    open_reader: Callable[[Request, list[Tensor]], tuple[Read, Callable[[], dict[str, Any]]]],
    versions: dict[str, str],
) -> None:
    """Answers the jobs "check" and "read".

    Args:
        channel: of ``open_channel``.
        folder: of ``feature_table.py``.
        open_reader: gets the request and its lists; returns the function that reads one and one
            that tells, when the clock has stopped, what else is known.
        versions: of what reads.
    """
    file = folder / "feat.npy"

    def lists_of(request: Request) -> list[Tensor]:
        with np.load(folder / "ids.npz") as arrays:
            numbers = range(request["warm"] + request["batches"])
            return [torch.from_numpy(arrays[f"b{n}"].astype(np.int64)) for n in numbers]

    def check(request: Request) -> dict[str, Any]:
        ids = lists_of({"warm": 0, "batches": 1})[0]
        read, _ = open_reader(request, [ids])
        x = read(0, ids)
        wrong = int((x[:, 0].long() != ids).sum())
        some = np.random.default_rng(0).permutation(len(ids))[:_CHECKED_ROWS]
        wrong += sum(
            x[k].numpy().tobytes() != _row(file, int(ids[k]), x.shape[1] * 4) for k in some
        )
        return {"wrong": wrong}

    def read_all(request: Request) -> dict[str, Any]:
        torch.set_num_threads(request["threads"])
        _forget(file)
        lists = lists_of(request)
        start = time.perf_counter()
        read, describe = open_reader(request, lists)
        opened = time.perf_counter() - start
        warm = _read_until(read, lists, 0, request["warm"], request["most_seconds"])
        before, read_before = describe(), _read_bytes()
        with Clock() as clock:
            done = _read_until(
                read, lists, request["warm"], request["batches"], request["most_seconds"]
            )
        rows = sum(len(ids) for ids in lists[request["warm"] :][:done])
        return {
            "seconds": clock.seconds,
            "cpu_seconds": clock.cpu_seconds,
            "amounts": {
                "batches": done,
                "warm_batches": warm,
                "rows": rows,
                "bytes_read": _read_bytes() - read_before,
                "open_seconds": opened,
            },
            "before": before,
            "after": describe(),
        }

    ready = {"python": platform.python_version(), "torch": torch.__version__, **versions}
    serve(channel, ready, {"check": check, "read": read_all})


def _read_until(
    read: Read, lists: list[Tensor], first: int, count: int, most_seconds: float
) -> int:
    """Reads ``count`` lists, or as many as begin in the time; returns how many."""
    start = time.perf_counter()
    for number in range(first, first + count):
        ids = lists[number]
        middle = len(ids) // 2
        if int(read(number, ids)[middle, 0]) != int(ids[middle]):
            raise ValueError(f"list {number}: row {middle} is not that of node {int(ids[middle])}")
        if time.perf_counter() - start > most_seconds:
            return number - first + 1
    return count


def _row(file: Path, row: int, row_bytes: int) -> bytes:
    """A row as a plain read gives it."""
    with file.open("rb") as content:
        version = np.lib.format.read_magic(content)
        assert version == (1, 0)
        np.lib.format.read_array_header_1_0(content)
        return os.pread(content.fileno(), row_bytes, content.tell() + row * row_bytes)


def _forget(file: Path) -> None:
    """Drops the file from the page cache, which outlives processes."""
    descriptor = os.open(file, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def _read_bytes() -> int:
    """What this process had read from disks so far, page faults included."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    raise ValueError("/proc/self/io: has no read_bytes")

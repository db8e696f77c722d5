"""One rank of ``shared_cache.py``: python cache_rank.py RANK WORLD PORT

Gathers the rows of its batches of a trace, which it announces as a loader does. Nothing is sampled
or trained.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from protocol import open_channel, serve
from torch import Tensor

import gnnsys
from gnnsys.cache.trace import read_trace
from gnnsys.memory import HostStore, empty

_PAUSE = 0.05  # seconds in which owners tell where the rows of the next batches are


class Rank:
    """Answers requests, in the order of the methods."""

    def __init__(self, rank: int, world: int, port: int) -> None:
        self._rank, self._world = rank, world
        if world > 1:
            where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank}
            os.environ.update({key: str(value) for key, value in where.items()})
            os.environ["WORLD_SIZE"] = str(world)
            dist.init_process_group("gloo")
        self._store: Any = None

    def open(self, request: dict[str, Any]) -> dict[str, Any]:
        """Opens the features behind a cache; all ranks of a shared one do at once."""
        torch.set_num_threads(request["threads"])
        before = _memory()
        self._features = request["features"]
        self._store = gnnsys.unified(
            self._features,
            cache=request["rows"],
            scores=np.load(request["scores"], mmap_mode="r"),  # as gnnsys train maps them
            shared=request["shared"] or False,
            policy=request["policy"],
            window=request["window"],
            threads=request["threads"],
            storage=request["storage"],
        ).store
        return {"memory_before": before}

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Gathers this rank's batches; tells when each was there."""
        trace = read_trace(request["trace"])
        batches = [_ids(trace[n]) for n in range(self._rank, len(trace), self._world)]
        stream, ends = _Stream(), []
        rows: Tensor | None = None
        for ids, ticket in self._announced(batches, stream):
            rows = self._store.gather(ids, ticket=ticket)
            ends.append(time.monotonic())
        self._store.end(stream)
        if rows is not None:
            self._check(batches[-1], rows)
        return {"ends": ends}

    def _announced(self, batches: list[Tensor], stream: Any) -> Iterator[tuple[Tensor, Any]]:
        ahead, tickets = self._store.lookahead, deque[Any]()
        for number, ids in enumerate(batches):
            while number + len(tickets) < min(len(batches), number + ahead):
                tickets.append(self._store.announce(batches[number + len(tickets)], stream))
            yield ids, tickets.popleft()

    def _check(self, ids: Tensor, rows: Tensor) -> None:
        wanted = np.load(self._features, mmap_mode="r")[ids.numpy()]
        if not np.array_equal(rows.numpy(), wanted):
            raise ValueError("rows differ from those of the file")

    def counts(self, request: dict[str, Any]) -> dict[str, Any]:
        """What the cache counted, and memory; when all ranks have run."""
        return {**self._store.stats.as_dict(), "memory": _memory()}

    def hits(self, request: dict[str, Any]) -> dict[str, Any]:
        """Seconds of gathers of rank 0, all of whose rows are in the cache, and of the same rows of
        tensors, and of these the time that its thread had a core; other ranks hold their part of
        the rows."""
        stream = _Stream()
        if self._rank > 0:
            self._store.end(stream)
            return {}
        trace = read_trace(request["trace"])
        gathers = request["gathers"]
        # Those after the last one that is timed are announced meanwhile, as in an epoch's middle.
        count = gathers + self._store.lookahead
        batches = [_ids(trace[n % len(trace)]) for n in range(count)]
        table = torch.from_numpy(np.load(self._features, mmap_mode="r"))
        hosts = {}
        for name, make in (("torch.empty", torch.empty), ("gnnsys.memory.empty", empty)):
            memory = make(table.shape, dtype=table.dtype)
            hosts[name] = HostStore(memory.copy_(table), threads=request["threads"])
        names = ["shared", *hosts]
        seconds: dict[str, list[float]] = {name: [] for name in names}
        cpu_seconds: dict[str, list[float]] = {name: [] for name in names}
        for number, (ids, ticket) in enumerate(islice(self._announced(batches, stream), gathers)):
            time.sleep(_PAUSE)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                given = {"ticket": ticket} if name == "shared" else {}
                store = self._store if name == "shared" else hosts[name]
                began, cpu = time.perf_counter(), time.thread_time()
                rows = store.gather(ids, **given)
                cpu_seconds[name].append(time.thread_time() - cpu)
                seconds[name].append(time.perf_counter() - began)
                if number == 0 and not torch.equal(rows, table[ids]):
                    raise ValueError(f"{name}: rows differ from those of the file")
                del rows
        self._store.end(stream)
        counts = self._store.stats.as_dict()
        return {
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "rows": statistics.mean(map(len, batches[:gathers])),
            "waited": counts["io_wait_seconds"],
            "on_huge_pages": _kib("smaps_rollup", "ShmemPmdMapped") / _kib("status", "RssShmem"),
        }

    def asks(self, request: dict[str, Any]) -> dict[str, Any]:
        """Seconds of gathers of this rank's batches, which nobody announces, and bytes read from
        the file: by the file alone, and through the cache, which is filled before."""
        trace, stores = read_trace(request["trace"]), {"file": self._store.source}
        stores["cache"] = self._store
        batches = [_ids(trace[n]) for n in range(self._rank, len(trace), self._world)]
        self._check(batches[0], self._store.gather(batches[0]))
        found: dict[str, Any] = {}
        for name, store in stores.items():
            dist.barrier()
            before, seconds = self._store.source.read_stats.bytes_read, []
            for ids in batches[1:]:
                began = time.perf_counter()
                store.gather(ids)
                seconds.append(time.perf_counter() - began)
            bytes_read = self._store.source.read_stats.bytes_read - before
            found[name] = {"seconds": seconds, "bytes_read": bytes_read}
        dist.barrier()  # rows that this rank has are asked for until here
        return found

    def close(self, request: dict[str, Any]) -> dict[str, Any]:
        """Gives the cache back; all ranks of a shared one do at once."""
        self._store.close()
        self._store = None
        return {}


class _Stream:
    """Who announces."""


def _ids(batch: Any) -> Tensor:
    return torch.from_numpy(batch.astype(np.int64))


def _memory() -> dict[str, int]:
    """Bytes of this process, where memory that several map is divided among them."""
    names = "Pss", "Pss_Anon", "Pss_Shmem", "Pss_File"
    return {name: _kib("smaps_rollup", name) << 10 for name in names}


def _kib(file: str, name: str) -> int:
    """Of this process, as a file of /proc tells."""
    lines = Path("/proc/self", file).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    channel = open_channel()
    rank = Rank(*map(int, sys.argv[1:4]))
    names = ("open", "run", "counts", "hits", "asks", "close")
    jobs = {name: getattr(rank, name) for name in names}
    serve(channel, {"rank": int(sys.argv[1])}, jobs)

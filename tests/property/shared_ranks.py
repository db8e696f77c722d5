"""Ranks of one process that share a cache, and what they do in tests."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from local_mailboxes import LocalMailbox

from gnnsys.cache.planner import Planner
from gnnsys.cache.shared.device_rows import DeviceRows
from gnnsys.cache.shared.engine import SharedEngine
from gnnsys.cache.shared.memory import HostRows, RowMemory, SentRows
from gnnsys.cache.shared.owner import Owner
from gnnsys.cache.shared.setup import parts_of
from gnnsys.counters import Counters
from gnnsys.memory import HostStore
from gnnsys.memory.ids import RowIds
from gnnsys.memory.mapped import MappedStore
from gnnsys.ranks.owners import Owners
from gnnsys.system.gpu import HostExecutorDevice

ROWS, WIDTH = 40, 3
TABLE = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(5))


BACKENDS = ["shm", "exchange", "late"]
if shutil.which(os.environ.get("CXX", "c++")):
    BACKENDS += ["peer", "mapped"]


class Disk(HostStore):
    """Rows in memory that count as slow to reach."""

    depth = 1


def make_ranks(
    world: int, *, backend: str = "shm", source: Any = None, **setting: Any
) -> list[SharedEngine]:
    """The engines of ranks that live in this process; ``spare`` bounds places of devices."""
    capacity, cells = setting.get("capacity", 8), setting.get("cells", 0)
    window, prefetch = setting.get("window", 2), setting.get("prefetch", 1)
    scores = setting.get("scores")
    source = source or Disk(TABLE)
    owners = setting.get("owners") or Owners(ROWS, world, setting.get("block", 1))
    planners, places = [], []
    for rank in range(world):
        count = owners.count(rank)
        own = None if scores is None else scores[owners.ids(rank, np.arange(count))]
        slots, kept = parts_of(capacity, owners)[rank], parts_of(cells, owners)[rank]
        planners.append(
            Planner(
                count,
                slots,
                policy=setting.get("policy", "hybrid"),
                window=window,
                scores=own,
                victim_cells=kept,
            )
        )
        spare = setting.get("spare") if backend in ("peer", "mapped") else None
        places.append(Owner.most_places(slots, kept, prefetch, count, spare))
    return [
        SharedEngine(
            "x.npy",
            mailbox,
            owners,
            planners[rank],
            memory,
            prefetch=prefetch,
            staging_bytes=setting.get("staging_bytes", 1 << 20),
            counters=Counters(),
            failed=lambda suspect: suspect,
        )
        for rank, (mailbox, memory) in enumerate(
            zip(LocalMailbox.of(world), make_memory(backend, source, places), strict=True)
        )
    ]


class LateRows(HostRows):
    """Gathers as a GPU does: rows are read some time before ``finish`` returns."""

    device = torch.device("cuda")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._under_way: list[tuple[Any, ...]] = []
        self._finishing = threading.Lock()

    def gather(self, ids: RowIds, addresses: Any, out: Any) -> torch.Tensor:
        rows = self._new_output(len(ids))
        self._under_way.append((ids, addresses, rows))
        return rows

    def finish(self) -> None:
        with self._finishing:
            while self._under_way:
                super().gather(*self._under_way.pop())


def make_memory(backend: str, source: Any, places: list[int]) -> list[RowMemory]:
    """Of each rank, in this process."""
    nbytes = [each * source.row_bytes for each in places]
    if backend in ("peer", "mapped"):
        device = HostExecutorDevice()
        source = MappedStore(source, device) if backend == "mapped" else source
        own = [device.peer_memory(each) for each in nbytes]
        at = [each.address for each in own]
        return [
            DeviceRows(source, rank, device, own[rank], at, places[rank], 1)
            for rank in range(len(places))
        ]
    arrays = {rank: np.empty(each, np.uint8) for rank, each in enumerate(nbytes)}
    if backend in ("shm", "late"):
        kind = HostRows if backend == "shm" else LateRows
        return [kind(source, rank, arrays, places[rank], 8) for rank in arrays]
    return [SentRows(source, rank, {rank: arrays[rank]}, places[rank], 8) for rank in arrays]


def run_together(works: list[Callable[[], None]]) -> None:
    """Each in a thread; raises what the first of them raised."""
    errors: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "ranks wait for each other"


class Epoch:
    """Who announces: one iteration of a loader."""


def iterate(
    engine: SharedEngine, batches: list[list[int]], leaves_at: int, ahead: int, finish: bool = False
) -> None:
    """Announces ``ahead`` batches before it gathers the first; leaves at a batch; says, where it is
    to, when all are announced."""
    epoch, tickets, found = Epoch(), [], []
    ids = [RowIds(torch.tensor(batch, dtype=torch.int64)) for batch in batches]
    for number in range(len(batches)):
        if number == leaves_at:
            break
        while len(tickets) < min(len(batches), number + ahead):
            tickets.append(engine.announce(ids[len(tickets)], epoch))
        if finish and len(tickets) == len(batches):
            engine.finish(epoch)
        found.append(engine.gather(ids[number], None, tickets[number]))
    engine.end(epoch)
    engine._memory.finish()
    for rows, of in zip(found, ids, strict=False):
        assert torch.equal(rows, TABLE[of])


def ask(engine: SharedEngine, batches: list[list[int]]) -> None:
    """Gathers batches that nobody announced."""
    for batch in batches:
        ids = RowIds(torch.tensor(batch, dtype=torch.int64))
        assert torch.equal(engine.gather(ids, None, None), TABLE[ids])


def wait_until(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + 30
    while not condition() and time.monotonic() < until:
        time.sleep(0.001)
    return condition()

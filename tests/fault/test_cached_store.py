"""A cache whose source fails: the error arrives where it belongs, and nothing is lost or wrong."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data

import gnnsys
from gnnsys.cache.engine import Engine
from gnnsys.cache.store import CachedStore
from gnnsys.errors import FileFormatError, StorageError
from gnnsys.memory import FileStore
from gnnsys.memory.reads import PendingRows, Reads, StagedRows

ROWS = 200


class FaultySource(FileStore):
    """A file whose reads fail by number, counted from 0, each once."""

    def __init__(self, path: Path, fails: set[int]) -> None:
        super().__init__(path, storage="pread")
        self.fails, self.started, self.cancelled = fails, 0, 0

    def start_reads(self, batch: Reads) -> PendingRows:
        number, self.started = self.started, self.started + 1
        return _Reads(self, super().start_reads(batch), number)


class _Reads:
    def __init__(self, source: FaultySource, reads: PendingRows, number: int) -> None:
        self.source, self.reads, self.number = source, reads, number

    def wait(self) -> StagedRows:
        if self.number in self.source.fails:
            self.source.fails.remove(self.number)
            self.reads.cancel()
            raise StorageError(errno.EIO, f"{self.source.path}: input/output error at byte 4096")
        return self.reads.wait()

    def cancel(self) -> None:
        self.source.cancelled += 1
        self.reads.cancel()


@pytest.fixture
def table(tmp_path: Path) -> Tensor:
    rows = torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "x.npy", rows.numpy())
    return rows


def trace(count: int = 12) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(ROWS, (40,), generator=draw) for _ in range(count)]


@pytest.mark.parametrize("policy", ["hybrid", "hybrid-pvp", "sieve"])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_failed_read_is_told_at_its_batch_and_read_again_when_asked_again(
    table: Tensor, tmp_path: Path, policy: Any, prefetch: int
) -> None:
    source = FaultySource(tmp_path / "x.npy", {3, 6})
    store = CachedStore(
        source, cache=50, policy=policy, window=3, victim_buffer=5, prefetch=prefetch
    )
    batches = trace()
    tickets = [store.announce(ids) for ids in batches]
    told: list[str] = []
    for ids, ticket in zip(batches, tickets, strict=True):
        rows = None
        while rows is None:
            try:
                rows = store.gather(ids, ticket=ticket)
            except StorageError as error:
                told.append(str(error))
        assert torch.equal(rows, table[ids])
    assert len(told) == 2
    assert all("x.npy" in text for text in told)
    assert source.fails == set()
    assert store.stats.batches == len(batches)


@pytest.mark.parametrize("kept", [0, 1, 4])
def test_after_a_failed_read_the_rest_can_be_taken_back(
    table: Tensor, tmp_path: Path, kept: int
) -> None:
    source = FaultySource(tmp_path / "x.npy", {kept})
    store = CachedStore(source, cache=80, window=4)
    tickets = [store.announce(ids) for ids in trace()]
    for ids, ticket in zip(trace()[:kept], tickets, strict=False):
        assert torch.equal(store.gather(ids, ticket=ticket), table[ids])
    with pytest.raises(StorageError):
        store.gather(trace()[kept], ticket=tickets[kept])
    store.retract(tickets[kept])
    assert source.cancelled > 0
    for ids in trace():
        assert torch.equal(store.gather(ids, ticket=store.announce(ids)), table[ids])


def test_a_failed_gather_without_ticket_changes_nothing(table: Tensor, tmp_path: Path) -> None:
    source = FaultySource(tmp_path / "x.npy", {1})
    store = CachedStore(source, cache=100)
    some, more = torch.arange(10), torch.arange(5, 50)
    store.gather(some)
    with pytest.raises(StorageError):
        store.gather(more)
    before = store.stats
    assert torch.equal(store.gather(some), table[some])
    assert (store.stats - before).hits == 10
    assert torch.equal(store.gather(more), table[more])


def test_batches_announced_while_an_unannounced_read_fails_are_served(
    table: Tensor, tmp_path: Path
) -> None:
    source = FaultySource(tmp_path / "x.npy", {0})
    store = CachedStore(source, cache=100, window=1)
    tickets: list[Any] = []
    start = source.start_reads

    def announce_meanwhile(batch: Reads) -> PendingRows:
        source.start_reads = start  # type: ignore[method-assign]
        other = threading.Thread(target=lambda: tickets.extend(map(store.announce, trace())))
        other.start()
        other.join(10)
        return start(batch)

    source.start_reads = announce_meanwhile  # type: ignore[method-assign]
    with pytest.raises(StorageError):
        store.gather(torch.arange(30))
    assert len(tickets) == 12, "announce waited for a read"
    for ids, ticket in zip(trace(), tickets, strict=True):
        assert torch.equal(store.gather(ids, ticket=ticket), table[ids])


def test_a_prefill_that_fails_is_begun_again(table: Tensor, tmp_path: Path) -> None:
    source = FaultySource(tmp_path / "x.npy", {0})
    store = CachedStore(source, cache=100, scores=torch.arange(ROWS))
    ids = torch.arange(90, 110)
    with pytest.raises(StorageError):
        store.gather(ids)
    assert torch.equal(store.gather(ids), table[ids])
    assert (store.stats.hits, store.stats.prefilled) == (10, 100)


def test_a_gather_that_is_interrupted_half_way_forgets_what_is_cached_and_goes_on(
    table: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CachedStore(FileStore(tmp_path / "x.npy"), cache=100, window=2)
    batches = trace()
    tickets = [store.announce(ids) for ids in batches]
    engine = store._engine()
    assert isinstance(engine, Engine)
    execute = engine._executor.execute

    def interrupted(*args: Any) -> None:
        execute(*args)
        raise KeyboardInterrupt

    for number, (ids, ticket) in enumerate(zip(batches, tickets, strict=True)):
        if number == 3:
            monkeypatch.setattr(engine._executor, "execute", interrupted)
            with pytest.raises(KeyboardInterrupt):
                store.gather(ids, ticket=ticket)
            monkeypatch.undo()
            assert store.stats.resident == 0
        assert torch.equal(store.gather(ids, ticket=ticket), table[ids])


@pytest.mark.parametrize("window", [0, 4])
def test_an_epoch_that_the_disk_ends_is_followed_by_a_right_one(
    table: Tensor, tmp_path: Path, window: int
) -> None:
    edges = torch.randint(ROWS, (2, 1500), generator=torch.Generator().manual_seed(5))
    source = FaultySource(tmp_path / "x.npy", {4})
    x = gnnsys.UnifiedTensor(CachedStore(source, cache=40, window=4))
    options: dict[str, Any] = {"num_neighbors": [3, 2], "batch_size": 20, "window": window}
    loader = gnnsys.NeighborLoader(Data(x=x, edge_index=edges), **options)
    with pytest.raises(StorageError, match=r"batch \d of epoch 0, fetching: .*x.npy: input/output"):
        list(loader)
    found = list(loader)
    assert len(found) == 10
    for batch in found:
        assert torch.equal(batch.x, table[batch.n_id])


@pytest.mark.parametrize("storage", ["mmap", "pread", "uring"])
def test_a_file_that_is_cut_short_under_a_cache_is_told(
    table: Tensor, tmp_path: Path, storage: Any
) -> None:
    path = tmp_path / "x.npy"
    store = CachedStore(FileStore(path, storage=storage), cache=20)
    assert torch.equal(store.gather(torch.arange(5)), table[:5])
    whole = path.read_bytes()
    os.truncate(path, len(whole) // 2)
    with pytest.raises(FileFormatError, match=r"x\.npy"):
        store.gather(torch.tensor([2, ROWS - 1]))
    path.write_bytes(whole)
    assert torch.equal(store.gather(torch.tensor([2, ROWS - 1])), table[[2, ROWS - 1]])

"""CachedStore: its options, its tickets and their owner, what it counts, copies of it."""

from __future__ import annotations

import copy
import gc
import pickle
import resource
import threading
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

import gnnsys
from gnnsys.cache.engine import Engine
from gnnsys.cache.plan import POLICIES
from gnnsys.cache.simulator import simulate
from gnnsys.cache.stats import CacheStats
from gnnsys.cache.store import CachedStore
from gnnsys.cache.tickets import is_aside
from gnnsys.cache.trace import read_trace
from gnnsys.choices import Storage
from gnnsys.errors import (
    ArgumentError,
    DTypeError,
    ReadOnlyError,
    RowIndexError,
    StorageError,
    TooLargeError,
)
from gnnsys.memory import FileStore
from gnnsys.memory.reads import PendingRows, Reads
from gnnsys.system.budget import CACHE_ROWS, process_budget

ROWS = 300


class Owner:
    def __repr__(self) -> str:
        return "Owner()"


@pytest.fixture
def table(tmp_path: Path) -> Tensor:
    rows = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "x.npy", rows.numpy())
    return rows


@pytest.fixture
def source(table: Tensor, tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "x.npy", storage="pread")


def ids_of(count: int, seed: int = 0) -> Tensor:
    return torch.randint(ROWS, (count,), generator=torch.Generator().manual_seed(seed))


# Options ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cache", "rows"),
    [(0, 0), (7, 7), (ROWS + 1, ROWS), (0.5, 150), (1.0, ROWS), ("1KB", 64), ("1GB", ROWS)],
)
def test_a_cache_is_sized_in_rows_as_a_share_or_in_bytes(
    source: FileStore, cache: Any, rows: int
) -> None:
    store = CachedStore(source, cache=cache)
    assert store.capacity == rows
    assert store.stats.capacity == rows


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({"cache": -1}, ArgumentError, "-1 rows"),
        ({"cache": 1.5}, ArgumentError, "1.5.*bytes as a text"),
        ({"cache": 0.0}, ArgumentError, "share"),
        ({"cache": "lots"}, ArgumentError, "cache lots.*500MB"),
        ({"cache": True}, DTypeError, "bool"),
        ({"cache": None}, DTypeError, "NoneType"),
        ({"cache": 5, "policy": "best"}, ArgumentError, "policy: 'best'.*hybrid"),
        ({"cache": 5, "window": -1}, ArgumentError, "window"),
        ({"cache": 5, "window": "wide"}, ArgumentError, "window: 'wide'"),
        ({"cache": 5, "prefetch": -1}, ArgumentError, "prefetch"),
        ({"cache": 5, "victim_buffer": -3}, ArgumentError, "victim_buffer: -3"),
        ({"cache": 5, "scores": torch.ones(3)}, ArgumentError, "scores: shape"),
        ({"cache": 5, "threads": -1}, ArgumentError, "threads"),
    ],
)
def test_a_bad_option_is_named_with_what_is_expected(
    source: FileStore, options: Any, kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=says):
        CachedStore(source, **options)


def test_a_cache_larger_than_memory_is_refused_with_the_numbers(tmp_path: Path) -> None:
    huge = tmp_path / "huge.raw"
    with huge.open("wb") as file:
        file.truncate(1 << 43)
    raw = FileStore(huge, shape=(1 << 23, 1 << 18), encoding=torch.float32, storage="pread")
    with pytest.raises(TooLargeError, match=r"cache: 4194304 rows .* bytes > \d+, the memory"):
        CachedStore(raw, cache=0.5)
    with pytest.raises(TooLargeError, match=r"victim buffer of 1048576 rows"):
        CachedStore(raw, cache=1, victim_buffer="1TB")


def test_writable_sources_are_refused_and_a_cache_is_read_only(
    table: Tensor, tmp_path: Path, source: FileStore
) -> None:
    with pytest.raises(ArgumentError, match="writable"):
        CachedStore(FileStore(tmp_path / "x.npy", writable=True), cache=3)
    with pytest.raises(ReadOnlyError, match=r"x\.npy"):
        CachedStore(source, cache=3).write(torch.tensor([0]), table[:1])


def test_unified_takes_the_options_of_a_cache_for_files_alone(
    table: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "x.npy"
    x = gnnsys.unified(
        path, cache=0.5, policy="lookahead", window=3, victim_buffer=7, dtype=torch.float64,
        storage="pread", scores=np.arange(ROWS), prefill=False, device="cpu",
    )  # fmt: skip
    store = x.store
    assert isinstance(store, CachedStore)
    assert (store.policy, store.window, store.victim_cells) == ("lookahead", 3, 7)
    assert store.source.storage == "pread"
    assert x.dtype == torch.float64
    assert torch.equal(x[[-1, 3]], table.double()[[-1, 3]])
    assert torch.equal(x.half()[[2]], table.half()[[2]])
    assert torch.equal(x.materialize(), table.double())
    with pytest.raises(ArgumentError, match="cache"):
        gnnsys.unified(table, cache=5)
    with pytest.raises(ArgumentError, match="trace"):
        gnnsys.unified(path, trace=tmp_path / "trace")


# Tickets ------------------------------------------------------------------------------------------


def test_tickets_are_gathered_once_in_order_with_the_ids_announced(source: FileStore) -> None:
    store = CachedStore(source, cache=20)
    first, second = ids_of(5), ids_of(6, 1)
    tickets = [store.announce(first), store.announce(second)]
    with pytest.raises(ArgumentError, match=r"ticket: Ticket\(batch 1, 6 rows\), but the next is"):
        store.gather(second, ticket=tickets[1])
    with pytest.raises(ArgumentError, match="not the 5 that"):
        store.gather(second, ticket=tickets[0])
    store.gather(first.clone(), ticket=tickets[0])
    with pytest.raises(ArgumentError, match="in the order"):
        store.gather(first, ticket=tickets[0])
    store.retract(tickets[1])
    with pytest.raises(ArgumentError, match="none waits"):
        store.gather(second, ticket=tickets[1])
    store.retract(tickets[1])  # gone already


@pytest.mark.parametrize("cache", [20, 1.0])
def test_tickets_of_a_store_that_holds_all_rows_obey_the_same_rules(
    source: FileStore, table: Tensor, cache: Any
) -> None:
    store = CachedStore(source, cache=cache)
    one, other = Owner(), Owner()
    tickets = [store.announce(ids_of(5, seed), one) for seed in range(3)]
    aside = store.announce(ids_of(7), other)
    with pytest.raises(ArgumentError, match="in the order"):
        store.gather(ids_of(5, 1), ticket=tickets[1])
    with pytest.raises(ArgumentError, match="not the 7 that"):
        store.gather(ids_of(5), ticket=aside)
    assert torch.equal(store.gather(ids_of(7), ticket=aside), table[ids_of(7)])
    with pytest.raises(ArgumentError, match="gathered once"):
        store.gather(ids_of(7), ticket=aside)
    assert torch.equal(store.gather(ids_of(5), ticket=tickets[0]), table[ids_of(5)])
    store.retract(tickets[1])
    assert not is_aside(store.announce(ids_of(5), other))
    del other
    assert not is_aside(store.announce(ids_of(5), one))  # the tickets of who is gone are, too


@pytest.mark.parametrize("cache", [20, 1.0])
def test_an_id_outside_the_rows_is_named_and_nothing_changes(
    source: FileStore, table: Tensor, cache: Any
) -> None:
    store = CachedStore(source, cache=cache)
    bad = torch.tensor([1, ROWS])
    with pytest.raises(RowIndexError, match=f"{ROWS} at position 1"):
        store.gather(bad)
    ticket = store.announce(ids_of(9))
    with pytest.raises(RowIndexError, match="-1 at position 0"):
        store.gather(torch.tensor([-1]))
    assert torch.equal(store.gather(ids_of(9), ticket=ticket), table[ids_of(9)])
    if cache == 20:
        with pytest.raises(RowIndexError, match=f"{ROWS} at position 1"):
            store.announce(bad)


def test_a_gather_without_ticket_changes_nothing_while_tickets_wait(
    source: FileStore, table: Tensor
) -> None:
    """The plans that were made ahead count on the slots as they are."""
    stores = [CachedStore(source, cache=30, window=2, policy="lru") for _ in range(2)]
    batches = [ids_of(25, seed) for seed in range(6)]
    tickets = [[store.announce(ids) for ids in batches] for store in stores]
    for number, ids in enumerate(batches):
        for store, own in zip(stores, tickets, strict=True):
            assert torch.equal(store.gather(ids, ticket=own[number]), table[ids])
        if number < 5:
            other = ids_of(50, 100 + number)
            assert torch.equal(stores[1].gather(other), table[other])
    undisturbed, disturbed = (store.stats for store in stores)
    assert disturbed.batches == 11
    assert disturbed.resident == undisturbed.resident
    assert disturbed.evictions == undisturbed.evictions
    assert (stores[1].stats - disturbed).rows == 0


# Several owners -----------------------------------------------------------------------------------


def counts_of(store: CachedStore, gather: Any) -> dict[str, int]:
    """What a gather adds to the counters, times and pages left out."""
    before = store.stats
    gather()
    since = (store.stats - before).as_dict()
    kept = ("rows", "hits", "victim_hits", "reads", "copies", "bypasses", "evictions", "drops")
    return {name: since[name] for name in (*kept, "resident")}


@pytest.mark.parametrize("policy", ["hybrid", "lru", "hybrid-pvp"])
@pytest.mark.parametrize(("window", "prefetch"), [(0, 0), (1, 2), (4, 0), (4, 2)])
def test_a_second_owner_gets_its_rows_and_leaves_the_plans_of_the_first(
    source: FileStore, table: Tensor, policy: Any, window: int, prefetch: int
) -> None:
    options: dict[str, Any] = {"cache": 30, "victim_buffer": 5, "policy": policy}
    alone, shared = (
        CachedStore(source, window=window, prefetch=prefetch, **options) for _ in range(2)
    )
    one, other = Owner(), Owner()
    batches = [ids_of(25, seed) for seed in range(8)]
    expected = [alone.announce(ids, one) for ids in batches]
    tickets = [shared.announce(ids, one) for ids in batches]
    for number, ids in enumerate(batches):
        theirs = [ids_of(40, 100 + 3 * number + more) for more in range(3)]
        aside = [shared.announce(each, other) for each in theirs]
        for each, ticket in zip(theirs, aside, strict=True):
            assert torch.equal(shared.gather(each, ticket=ticket), table[each])
        found, right = (
            counts_of(store, partial(store.gather, ids, ticket=queue[number]))
            for store, queue in ((shared, tickets), (alone, expected))
        )
        assert found == right
    stats = shared.stats
    assert stats.batches == 4 * len(batches)
    assert stats.rows == len(batches) * (25 + 3 * 40)
    assert stats.rows == stats.hits + stats.victim_hits + stats.reads + stats.copies


def test_a_second_owner_is_told_of_once_and_not_where_nothing_is_slow(
    source: FileStore, caplog: pytest.LogCaptureFixture
) -> None:
    one, other, third = Owner(), Owner(), Owner()
    resident, store = CachedStore(source, cache=1.0), CachedStore(source, cache=20)
    for each in (resident, store, store.with_dtype(torch.float64)):
        for seed, owner in enumerate((one, other, third, other)):
            each.announce(ids_of(5, seed), owner)
    (said,) = caplog.records
    assert said.levelname == "WARNING"
    for part in ("x.npy", "without looking ahead", "end the other iteration", "gnnsys.unified"):
        assert part in said.getMessage()


@pytest.mark.parametrize("cache", [20, 1.0])
def test_a_second_owner_has_tickets_in_order_once_the_first_is_done(
    source: FileStore, table: Tensor, cache: Any
) -> None:
    store = CachedStore(source, cache=cache, window=1)
    one, other, third = Owner(), Owner(), Owner()
    first = store.announce(ids_of(5), one)
    early = store.announce(ids_of(6, 1), other)
    assert is_aside(early)
    store.gather(ids_of(5), ticket=first)
    late = [store.announce(ids_of(7, seed), other) for seed in (2, 3)]
    assert not any(map(is_aside, late))
    again = [store.announce(ids_of(8, 4), owner) for owner in (one, third)]
    assert all(map(is_aside, again))
    for ticket, ids in [(again[1], ids_of(8, 4)), (early, ids_of(6, 1)), (late[0], ids_of(7, 2))]:
        assert torch.equal(store.gather(ids, ticket=ticket), table[ids])
    store.retract(late[1])
    assert not is_aside(store.announce(ids_of(5), third))
    assert torch.equal(store.gather(ids_of(8, 4), ticket=again[0]), table[ids_of(8, 4)])


@pytest.mark.parametrize("cache", [20, 1.0])
def test_a_ticket_aside_that_is_taken_back_takes_those_after_it_along(
    source: FileStore, table: Tensor, cache: Any
) -> None:
    store = CachedStore(source, cache=cache)
    one, other = Owner(), Owner()
    first = store.announce(ids_of(5), one)
    aside = [store.announce(ids_of(5, seed), other) for seed in (1, 2)]
    store.retract(aside[1])  # leaves what is not its owner's
    with pytest.raises(ArgumentError, match="gathered once"):
        store.gather(ids_of(5, 2), ticket=aside[1])
    assert torch.equal(store.gather(ids_of(5), ticket=first), table[ids_of(5)])
    late = store.announce(ids_of(5, 3), other)
    store.retract(aside[0])
    with pytest.raises(ArgumentError, match="none waits"):
        store.gather(ids_of(5, 3), ticket=late)
    store.retract(aside[0])  # gone already
    assert not is_aside(store.announce(ids_of(5), one))


def test_tickets_aside_outlive_the_owner_that_was_in_their_way(
    source: FileStore, table: Tensor
) -> None:
    store = CachedStore(source, cache=20, window=2)
    one, other = Owner(), Owner()
    for seed in range(4):
        store.announce(ids_of(25, seed), one)
    aside = store.announce(ids_of(25, 9), other)
    del one
    ahead = store.announce(ids_of(25, 10), other)
    assert not is_aside(ahead)
    assert torch.equal(store.gather(ids_of(25, 9), ticket=aside), table[ids_of(25, 9)])
    assert torch.equal(store.gather(ids_of(25, 10), ticket=ahead), table[ids_of(25, 10)])
    assert store.stats.rows == 50


def test_a_ticket_aside_whose_reads_fail_stays_good_and_harms_no_plan(
    source: FileStore, table: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, shared = (CachedStore(source, cache=30, window=2) for _ in range(2))
    one, other = Owner(), Owner()
    batches = [ids_of(25, seed) for seed in range(5)]
    queues = [[store.announce(ids, one) for ids in batches] for store in (alone, shared)]
    aside = shared.announce(ids_of(40, 9), other)

    def fail(ids: Tensor) -> Any:
        raise StorageError("no disk")

    with monkeypatch.context() as patch:
        patch.setattr(source, "start_reads", fail)
        with pytest.raises(StorageError, match="no disk"):
            shared.gather(ids_of(40, 9), ticket=aside)
    with pytest.raises(RowIndexError, match=f"{ROWS} at position 1"):
        shared.announce(torch.tensor([1, ROWS]), other)
    for number, ids in enumerate(batches):
        found, right = (
            counts_of(store, partial(store.gather, ids, ticket=queue[number]))
            for store, queue in zip((shared, alone), queues[::-1], strict=True)
        )
        assert found == right
    assert torch.equal(shared.gather(ids_of(40, 9), ticket=aside), table[ids_of(40, 9)])


@pytest.mark.parametrize("cache", [60, 1.0])
def test_owners_in_threads_that_announce_gather_and_take_back_all_get_their_rows(
    source: FileStore, table: Tensor, cache: Any
) -> None:
    store = CachedStore(source, cache=cache, window=2, victim_buffer=10)
    wrong: list[Any] = []
    gathered: list[int] = []

    def iterate(place: int) -> None:
        try:
            for epoch in range(12):
                owner, batches = Owner(), [ids_of(20 + place, 50 * place + k) for k in range(6)]
                tickets = [store.announce(ids, owner) for ids in batches]
                last = 3 if epoch % 3 == 2 else 6
                for ids, ticket in zip(batches[:last], tickets, strict=False):
                    if not torch.equal(store.gather(ids, ticket=ticket), table[ids]):
                        wrong.append((place, epoch))
                    gathered.append(len(ids))
                if last < 6:
                    store.retract(tickets[last])
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=iterate, args=(place,), daemon=True) for place in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert wrong == []
    stats = store.stats
    assert stats.rows == sum(gathered)
    assert stats.rows == stats.hits + stats.victim_hits + stats.reads + stats.copies
    assert not is_aside(store.announce(ids_of(5), Owner()))


# Reading ahead ------------------------------------------------------------------------------------


def test_reads_are_under_way_while_the_consumer_works(source: FileStore) -> None:
    store = CachedStore(source, cache=30, window=1, prefetch=3)
    tickets = [store.announce(ids_of(40, seed)) for seed in range(6)]
    store.gather(ids_of(40), ticket=tickets[0])
    assert [ticket.pending is not None for ticket in tickets] == [False, *[True] * 3, False, False]
    store.retract(tickets[2])
    assert [ticket.pending is not None for ticket in tickets] == [False, True, *[False] * 4]


def test_reads_ahead_are_bounded_in_bytes(source: FileStore) -> None:
    store = CachedStore(source, cache=0, prefetch=3)
    engine = store._engine()
    assert isinstance(engine, Engine)
    tickets = [store.announce(torch.arange(40)) for _ in range(6)]
    engine._staging_bytes = 2 * 40 * (4096 + 16)
    store.gather(torch.arange(40), ticket=tickets[0])
    assert [ticket.pending is not None for ticket in tickets] == [False, True, *[False] * 4]


def test_large_gathers_without_ticket_are_served_in_pieces(
    source: FileStore, table: Tensor
) -> None:
    store = CachedStore(source, cache=100)
    engine = store._engine()
    assert isinstance(engine, Engine)
    engine._staging_bytes = 16 * (4096 + 16)  # 16 rows
    ids = ids_of(500)
    assert torch.equal(store.gather(ids), table[ids])
    assert store.stats.batches == 1
    assert store.stats.rows == 500
    assert len(store.gather(ids[:0])) == 0


@pytest.mark.parametrize("mode", ["pread", "mmap"])
def test_a_batch_whose_pages_are_not_staged_at_once_is_read_in_pieces(
    tmp_path: Path, mode: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = torch.randn(40_000, 16)
    np.save(tmp_path / "rows.npy", table.numpy())
    source = FileStore(tmp_path / "rows.npy", storage=mode)
    store = CachedStore(source, cache=3_000, victim_buffer=500, window=4)
    engine = store._engine()
    assert isinstance(engine, Engine)
    engine._staging_bytes = 0
    staged, start = [], source.start_reads

    def start_reads(batch: Reads) -> PendingRows:
        staged.append(len(batch.ids))
        return start(batch)

    monkeypatch.setattr(source, "start_reads", start_reads)
    draw = torch.Generator().manual_seed(0)
    batches = [torch.randint(40_000, (20_000,), generator=draw) for _ in range(6)]
    tickets = [store.announce(ids) for ids in batches]
    for ids, ticket in zip(batches, tickets, strict=True):
        assert torch.equal(store.gather(ids, ticket=ticket), table[ids])
        assert [each.pending for each in tickets] == [None] * 6
    assert sum(staged) == store.stats.reads
    assert max(staged) * (4096 + 64) <= 16 << 20
    assert len(staged) > 2 * len(batches)
    assert (store.stats.pages > store.stats.requests > len(staged)) == (mode == "pread")


def test_threads_that_announce_gather_and_read_without_tickets_all_get_their_rows(
    source: FileStore, table: Tensor
) -> None:
    store = CachedStore(source, cache=60, window=3, victim_buffer=10)
    wrong: list[Any] = []
    ready: list[Any] = []
    room = threading.Semaphore(8)
    announced = threading.Semaphore(0)

    def announce() -> None:
        for seed in range(150):
            room.acquire()
            ready.append(store.announce(ids_of(30, seed)))
            announced.release()

    def redeem() -> None:
        for seed in range(150):
            announced.acquire()
            rows = store.gather(ids_of(30, seed), ticket=ready[seed])
            room.release()
            if not torch.equal(rows, table[ids_of(30, seed)]):
                wrong.append(seed)

    def read() -> None:
        for seed in range(100, 200):
            if not torch.equal(store.gather(ids_of(20, seed)), table[ids_of(20, seed)]):
                wrong.append(-seed)

    threads = [threading.Thread(target=work, daemon=True) for work in (announce, redeem, read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert wrong == []
    assert store.stats.rows == 150 * 30 + 100 * 20


# Counts, casts and copies -------------------------------------------------------------------------


def test_repeated_rows_count_where_the_first_of_them_lies(source: FileStore) -> None:
    store = CachedStore(source, cache=2, policy="lru")
    store.gather(torch.tensor([4, 5]))
    store.gather(torch.tensor([4, 9, 9, 4, 9]))
    assert store.counters.as_dict()["rows"] == {"file": 5, "cache": 2}
    stats = store.stats
    assert (stats.hits, stats.reads, stats.copies) == (1, 3, 3)
    assert stats.hit_ratio == 1 / 4
    assert stats.pages >= 1
    assert stats.bytes_read > 0


def test_stats_subtract_counts_and_keep_the_state(source: FileStore) -> None:
    store = CachedStore(source, cache=10)
    store.gather(torch.arange(5))
    before = store.stats
    store.gather(torch.arange(7))
    since = store.stats - before
    assert (since.batches, since.rows, since.hits, since.reads) == (1, 7, 5, 2)
    assert (since.capacity, since.resident) == (10, 7)
    assert since.as_dict()["hit_ratio"] == pytest.approx(5 / 7)
    assert CacheStats().hit_ratio == 0.0


def test_a_store_of_another_dtype_shares_the_cache(source: FileStore, table: Tensor) -> None:
    store = CachedStore(source, cache=50)
    halves = store.with_dtype(torch.float16)
    ids = ids_of(20)
    store.gather(ids)
    out = torch.empty(20, 4, dtype=torch.float16)
    assert halves.gather(ids, out) is out
    assert torch.equal(out, table.half()[ids])
    assert torch.equal(halves.read_range(5, 9), table.half()[5:9])
    assert halves.stats.hits == store.stats.hits == len(ids.unique())
    strided = torch.empty(20, 8)[:, ::2]
    assert torch.equal(store.gather(ids, strided), table[ids])
    with pytest.raises(ArgumentError, match="out: shape"):
        store.gather(ids, torch.empty(3, 4))


def test_a_pickled_store_opens_the_file_with_a_cache_of_its_own(
    source: FileStore, table: Tensor
) -> None:
    store = CachedStore(source, cache=50, policy="lfu", window=2, victim_buffer=3)
    x = gnnsys.UnifiedTensor(store.with_dtype(torch.float64))
    assert torch.equal(x[:40], table[:40].double())
    again = pickle.loads(pickle.dumps(x))
    assert again.dtype == torch.float64
    other = again.store
    assert (other.capacity, other.policy, other.window, other.victim_cells) == (50, "lfu", 2, 3)
    assert other.stats.rows == 0
    assert torch.equal(again[:40], table[:40].double())
    assert copy.deepcopy(x).store.stats == store.stats


def test_a_closed_store_says_so(source: FileStore, tmp_path: Path) -> None:
    store = CachedStore(source, cache=50, trace=tmp_path / "trace")
    store.gather(torch.tensor([3, 3]))
    store.close()
    with pytest.raises(ArgumentError, match="closed"):
        store.gather(torch.tensor([3]))
    assert [ids.tolist() for ids in read_trace(tmp_path / "trace")] == [[3, 3]]


@pytest.mark.parametrize("cache", [50, 1.0])
def test_a_trace_holds_what_was_gathered_and_not_what_was_taken_back(
    source: FileStore, tmp_path: Path, cache: Any
) -> None:
    store = CachedStore(source, cache=cache, trace=tmp_path / "trace")
    tickets = [store.announce(ids_of(4, seed)) for seed in range(3)]
    store.gather(ids_of(4), ticket=tickets[0])
    store.retract(tickets[1])
    store.gather(ids_of(4, 7))
    del store, tickets
    found = [ids.tolist() for ids in read_trace(tmp_path / "trace")]
    assert found == [ids_of(4).tolist(), ids_of(4, 7).tolist()]


def test_memory_stays_within_the_cache_and_what_the_planner_says(tmp_path: Path) -> None:
    rows = 20_000
    np.save(tmp_path / "x.npy", np.zeros((rows, 256), np.float32))
    source = FileStore(tmp_path / "x.npy", storage="pread")
    store = CachedStore(source, cache="8MB", window=4, threads=1)
    draw = torch.Generator().manual_seed(0)
    batches = [torch.randperm(rows, generator=draw)[:1000] for _ in range(40)]
    store.gather(batches[0][:10])
    before = psutil.Process().memory_info().rss
    for ids in batches:
        store.gather(ids, ticket=store.announce(ids))
    grown = psutil.Process().memory_info().rss - before
    assert store.stats.resident == store.capacity == 8192
    engine = store._engine()
    assert isinstance(engine, Engine)
    in_flight = 3 * 1000 * (1024 + 4096)  # outputs and staging of a few batches
    assert grown < (8 << 20) + engine._planner.state_bytes + in_flight


def test_who_announces_plans_for_the_next_gather_where_no_window_is_full(source: FileStore) -> None:
    store = CachedStore(source, cache=50, window=30, prefetch=2)
    tickets = [store.announce(ids_of(5, k)) for k in range(6)]
    engine = store._engine()
    assert isinstance(engine, Engine)
    assert engine._planner.planned == 0
    store.gather(ids_of(5, 0), ticket=tickets[0])
    assert engine._planner.planned == 3
    tickets.append(store.announce(ids_of(5, 6)))
    assert engine._planner.planned == 4
    for k in range(1, 7):
        store.gather(ids_of(5, k), ticket=tickets[k])
    assert engine._planner.planned == 7
    store.announce(ids_of(5, 7))
    assert engine._planner.planned == 7, "an epoch's first waits until others are known"


def test_a_store_that_is_let_go_of_lets_its_memory_go(source: FileStore) -> None:
    store = CachedStore(source, cache=50)
    store.gather(ids_of(10))
    held = weakref.ref(store._engine())
    gc.disable()
    try:
        del store
        assert held() is None
    finally:
        gc.enable()


# Counting and recording ---------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_a_cache_counts_what_the_simulator_says(
    source: FileStore, tmp_path: Path, policy: Any
) -> None:
    draw = np.random.default_rng(3)
    batches = [draw.zipf(1.3, 50) % ROWS for _ in range(30)]
    window = 5
    store = CachedStore(
        source, cache=20, policy=policy, window=window, victim_buffer=15, prefetch=0
    )
    tickets = [store.announce(torch.from_numpy(ids)) for ids in batches]
    for ids, ticket in zip(batches, tickets, strict=True):
        store.gather(torch.from_numpy(ids), ticket=ticket)
    found = store.stats
    result = simulate(batches, policy, 20, window, num_rows=ROWS, victim_cells=15)
    assert found.hit_ratio == result.hit_ratio
    assert found.bypasses == result.bypasses
    assert (found.hits, found.victim_hits) == (result.hits, result.victim_hits)
    # From the file came, of the distinct rows, those that were no hits; a bypass is one of them.
    distinct = sum(len(np.unique(ids)) for ids in batches)
    assert found.hit_ratio == (distinct - found.reads) / distinct
    assert found.bypasses <= found.reads == result.misses


def test_rows_beyond_what_plans_can_number_are_told_with_a_way_out(tmp_path: Path) -> None:
    with (tmp_path / "x.bin").open("wb") as file:
        file.truncate(2**31)  # takes no room
    raw = FileStore(tmp_path / "x.bin", shape=(2**31, 1), encoding=torch.uint8, storage="pread")
    store = CachedStore(raw, cache=3)
    with pytest.raises(ArgumentError, match=r"num_rows=2147483648 > .*leave cache= out"):
        store.gather(torch.tensor([0]))
    assert raw.gather(torch.tensor([2**31 - 1])).tolist() == [[0]]  # the way out


@pytest.mark.parametrize("cache", [50, 1.0])
def test_batches_are_recorded_one_at_a_time(source: FileStore, cache: Any) -> None:
    store = CachedStore(source, cache=cache)
    engine = store._engine()
    is_held = engine._executing._is_owned if isinstance(engine, Engine) else engine._lock.locked
    held: list[bool] = []
    engine._record = lambda ids: held.append(is_held())
    store.gather(ids_of(3))
    store.gather(ids_of(3), ticket=store.announce(ids_of(3)))
    assert held == [True, True]


@pytest.mark.parametrize("cache", [50, 1.0])
def test_a_ticket_stays_good_where_its_trace_cannot_be_written(
    source: FileStore, table: Tensor, tmp_path: Path, cache: Any
) -> None:
    store = CachedStore(source, cache=cache, window=1, trace=tmp_path / "trace")
    batches = [ids_of(8, seed) for seed in range(4)]
    tickets = [store.announce(ids) for ids in batches]
    store.gather(batches[0], ticket=tickets[0])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(StorageError, match="cannot be written"):
            store.gather(batches[1], ticket=tickets[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert store.stats.rows == len(batches[0])
    with pytest.raises(ArgumentError, match="the trace is closed"):
        store.gather(batches[1], ticket=tickets[1])  # still its turn
    store._engine()._record = lambda ids: None
    for ids, ticket in zip(batches[1:3], tickets[1:3], strict=True):
        assert torch.equal(store.gather(ids, ticket=ticket), table[ids])
    store.retract(tickets[3])
    assert torch.equal(store.gather(batches[0]), table[batches[0]])
    assert store.stats.rows == 4 * 8


@pytest.mark.parametrize("cache", [300, 1.0])
def test_the_budget_knows_the_rows_of_a_cache(source: FileStore, cache: int | float) -> None:
    def held() -> int:
        return sum(each.held for each in process_budget().table() if each.name == CACHE_ROWS)

    gc.collect()
    before = held()
    store = CachedStore(source, cache=cache, scores=torch.arange(source.shape[0]))
    store.gather(ids_of(10))
    assert held() - before == store.capacity * store.row_bytes > 0
    del store
    gc.collect()
    assert held() == before


def test_a_cache_that_a_run_has_planned_is_not_judged_again(
    source: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbytes = 100 * source.row_bytes
    monkeypatch.setattr("gnnsys.system.budget.available_memory", lambda: nbytes - 1)
    budget = process_budget()
    with budget.run(None):
        budget.reserve("features, mapped", 1 << 40, mapped=True)  # the kernel may take them back
        assert CachedStore(source, cache=99).capacity == 99
        with pytest.raises(TooLargeError, match=f"{nbytes} bytes > {nbytes - 1}, the memory"):
            CachedStore(source, cache=100)
        budget.reserve(CACHE_ROWS, nbytes)
        assert CachedStore(source, cache=100).capacity == 100

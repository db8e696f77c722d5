"""Recorded plans, packed rows, and a cache that follows them."""

from __future__ import annotations

import os
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gnnsys.cache.packed.planner import RecordedPlanner
from gnnsys.cache.packed.plans import RecordedPlans, record_plans
from gnnsys.cache.packed.rows import pack_rows
from gnnsys.cache.store import CachedStore
from gnnsys.errors import FileFormatError, RowIndexError
from gnnsys.memory import FileStore, Storage

ROWS, COLUMNS, CAPACITY, BATCHES = 2000, 37, 150, 12
ROW_BYTES = 4 * COLUMNS
PLENTY = 1 << 30
Batches = list[NDArray[np.int64]]


@pytest.fixture
def table(tmp_path: Path) -> NDArray[np.float32]:
    features = np.random.default_rng(1).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    np.save(tmp_path / "features.npy", features)
    return features


def skewed(seed: int, count: int = BATCHES) -> Batches:
    """Batches in which low ids are frequent, in no order."""
    rng = np.random.default_rng(seed)
    made = (np.unique((ROWS * rng.random(300) ** 3).astype(np.int64)) for _ in range(count))
    return [rng.permutation(ids) for ids in made]


def scores_of(seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, 50, ROWS)


def cached(folder: Path, storage: Storage = "uring", **options: Any) -> CachedStore:
    source = FileStore(folder / "features.npy", storage=storage)
    return CachedStore(source, **{"cache": CAPACITY, "scores": scores_of(0)} | options)


def record(folder: Path, store: CachedStore, batches: Batches) -> RecordedPlans:
    planner = store.make_planner(len(batches))
    record_plans(folder, planner, batches, ahead_bytes=PLENTY)
    return RecordedPlans(folder)


def pack(folder: Path, store: CachedStore, plans: RecordedPlans, count: int) -> FileStore:
    pack_rows(store.source, plans, count, folder / "rows.bin", memory=3 * 100 * ROW_BYTES)
    shape = (int(plans.first_reads[count]), ROW_BYTES)
    storage: Any = getattr(store.source, "storage", "auto")
    return FileStore(folder / "rows.bin", encoding=torch.uint8, shape=shape, storage=storage)


def belady(batches: Batches, residents: set[int], scores: NDArray[Any]) -> list[list[int]]:
    """The rows that each batch reads, by brute force: who is needed last leaves, or never enters;
    of those that are never needed again, the least important first."""
    read = []
    for now, ids in enumerate(batches):
        wanted = set(ids.tolist())
        read.append(sorted(wanted - residents))

        def key(row: int, now: int = now) -> tuple[float, int, int]:
            later = (t for t in range(now + 1, len(batches)) if row in batches[t])
            use = next(later, None)
            return (np.inf, -int(scores[row]), row) if use is None else (use, 0, row)

        residents = {*sorted(residents | wanted, key=key)[:CAPACITY]}
    return read


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("prefill", [True, False])
def test_plans_over_an_epoch_read_what_beladys_rule_reads(tmp_path: Path, prefill: bool) -> None:
    batches, store = skewed(2), cached(tmp_path, prefill=prefill)
    planner = store.make_planner(0)
    start = set(np.asarray(planner.prefilled).tolist())
    assert len(start) == (CAPACITY if prefill else 0)
    plans = record(tmp_path, store, batches)
    ranked = store._options["scores"]
    assert [plans.reads(t).tolist() for t in range(BATCHES)] == belady(batches, start, ranked)


@pytest.mark.parametrize(
    ("storage", "memory"),
    [("uring", 3 * 100 * ROW_BYTES), ("pread", PLENTY), ("mmap", 3 * 7 * ROW_BYTES)],
)
def test_packed_rows_lie_in_the_order_of_the_batches_that_read_them(
    tmp_path: Path, table: NDArray[np.float32], memory: int, storage: Storage
) -> None:
    store = cached(tmp_path, storage)
    plans = record(tmp_path, store, skewed(3))
    told: list[tuple[int, int]] = []
    pack_rows(
        store.source, plans, 9, tmp_path / "rows.bin", memory=memory,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    wanted = table[np.concatenate([plans.reads(place) for place in range(9)])]
    assert (tmp_path / "rows.bin").read_bytes() == wanted.tobytes()
    assert told[-1] == (ROWS * ROW_BYTES, ROWS * ROW_BYTES)


def test_less_memory_ahead_gives_plans_that_are_carried_out_as_well(
    tmp_path: Path, table: NDArray[np.float32]
) -> None:
    batches, store = skewed(4), cached(tmp_path)
    record_plans(tmp_path, store.make_planner(BATCHES), batches, ahead_bytes=24 * 600)
    plans = RecordedPlans(tmp_path)
    best = sum(map(len, belady(batches, {*plans.residents.tolist()}, store._options["scores"])))
    assert best < plans.first_reads[-1] < sum(map(len, batches))
    follow(store, plans, None, 0, batches, table)


def follow(
    store: CachedStore,
    plans: RecordedPlans,
    packed: FileStore | None,
    count: int,
    batches: Batches,
    table: NDArray[np.float32],
    first: int = 0,
) -> None:
    """Gathers an epoch from batch ``first`` on as a loader does, and checks every row."""
    assert store.follow(plans, packed, count, first)
    tickets = [store.announce(torch.from_numpy(ids)) for ids in batches[first : first + 3]]
    for place, ids in enumerate(batches[first:], first):
        rows = store.gather(torch.from_numpy(ids), ticket=tickets.pop(0))
        assert (rows.numpy() == table[ids]).all(), f"batch {place}"
        tickets += [store.announce(torch.from_numpy(ids)) for ids in batches[place + 3 : place + 4]]


@pytest.mark.parametrize(
    ("storage", "device"),
    [
        ("uring", "cpu"),
        ("mmap", "cpu"),
        pytest.param(
            "uring",
            "simt",
            marks=pytest.mark.skipif(
                shutil.which(os.environ.get("CXX", "c++")) is None, reason="needs a C++ compiler"
            ),
        ),
    ],
)
def test_every_pass_gathers_the_tables_rows_and_reads_what_was_packed(
    tmp_path: Path, table: NDArray[np.float32], storage: Storage, device: str
) -> None:
    batches, store = skewed(5), cached(tmp_path, storage, device=device)
    plans = record(tmp_path, store, batches)
    packed = pack(tmp_path, store, plans, 9)
    reads = plans.first_reads
    follow(store, plans, packed, 9, batches, table)
    assert store.counters.as_dict()["rows"] == {
        "cache": sum(map(len, batches)) - reads[-1],
        "packed": reads[9],
        "file": reads[-1] - reads[9],
    }
    for first in (0, 7, 0):  # the rows of the start come back, slots change their places
        before = store.stats
        follow(store, plans, packed, 9, batches, table, first)
        after = store.stats - before
        assert after.reads == reads[-1] - reads[first]
        assert after.prefilled < CAPACITY
        assert store.stats.resident == CAPACITY
    other = skewed(6)  # the next epoch's, planned from the same start
    folder = tmp_path / "next"
    folder.mkdir()
    follow(store, record(folder, store, other), None, 0, other, table)


def test_other_batches_are_served_and_change_nothing(
    tmp_path: Path, table: NDArray[np.float32]
) -> None:
    batches, others, store = skewed(7), skewed(8), cached(tmp_path, prefetch=0)
    plans = record(tmp_path, store, batches)
    packed = pack(tmp_path, store, plans, BATCHES)
    store.follow(plans, packed, BATCHES, 0)
    for ids, other in zip(batches, others, strict=True):
        both = [store.announce(torch.from_numpy(each)) for each in (other, ids)]
        for each, ticket in zip((other, ids), both, strict=True):
            rows = store.gather(torch.from_numpy(each), ticket=ticket)
            assert (rows.numpy() == table[each]).all()
        twice = torch.tensor([5, 3, 5, ROWS - 1], dtype=torch.int32)
        assert (store.gather(twice).numpy() == table[twice.numpy()]).all()
    assert store.counters.as_dict()["rows"]["packed"] == plans.first_reads[-1]
    with pytest.raises(RowIndexError):
        store.announce(torch.tensor([ROWS]))


@pytest.mark.usefixtures("table")
def test_one_epochs_planner_is_let_go_of_before_the_next_ones_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, make = cached(tmp_path), RecordedPlanner.__init__
    plans = record(tmp_path, store, skewed(19))
    packed = pack(tmp_path, store, plans, BATCHES)
    made: list[weakref.ref[RecordedPlanner]] = []

    def look_and_make(planner: RecordedPlanner, *given: Any) -> None:
        assert [ref() for ref in made] == [None] * len(made)
        made.append(weakref.ref(planner))
        make(planner, *given)

    monkeypatch.setattr(RecordedPlanner, "__init__", look_and_make)
    for _ in range(3):
        store.follow(plans, packed, BATCHES, 0)
    assert len(made) == 3


@pytest.mark.parametrize("aside", [0, 1])
def test_batches_planned_ahead_beside_the_epoch_are_served_from_the_slots(
    tmp_path: Path, table: NDArray[np.float32], aside: int
) -> None:
    batches, others, store = skewed(16), skewed(17, 6), cached(tmp_path, prefetch=3)
    plans = record(tmp_path, store, batches)
    store.follow(plans, None, 0, 0)
    # Where the epoch's first batch waits before them, the slots are not known ahead.
    due = [batches[0]] * aside + others
    tickets = [store.announce(torch.from_numpy(ids)) for ids in due]
    before = store.stats
    for ids, ticket in zip(due, tickets, strict=True):
        assert (store.gather(torch.from_numpy(ids), ticket=ticket).numpy() == table[ids]).all()
    hits = [int(np.isin(ids, plans.residents).sum()) for ids in due]
    if aside:
        assert 0 < (store.stats - before).hits < sum(hits)
    else:
        assert (store.stats - before).hits == sum(hits)


def test_packed_rows_are_read_ahead_as_far_as_their_own_bytes_allow(
    tmp_path: Path, table: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, store = skewed(18), cached(tmp_path, prefetch=1)
    plans = record(tmp_path, store, batches)
    packed = pack(tmp_path, store, plans, BATCHES)
    largest = int(np.diff(plans.first_reads).max())
    monkeypatch.setattr(store._engine(), "_staging_bytes", 2 * largest * ROW_BYTES)
    synchronous: list[int] = []
    monkeypatch.setattr(
        store._engine(), "_read_in_pieces", lambda plan: synchronous.append(plan.batch)
    )
    follow(store, plans, packed, BATCHES, batches, table)
    assert synchronous == []


def test_batches_taken_back_are_announced_anew(tmp_path: Path, table: NDArray[np.float32]) -> None:
    batches, store = skewed(9), cached(tmp_path)
    plans = record(tmp_path, store, batches)
    packed = pack(tmp_path, store, plans, BATCHES)
    store.follow(plans, packed, BATCHES, 0)
    for place, ids in enumerate(batches):
        ahead = [store.announce(torch.from_numpy(each)) for each in batches[place : place + 3]]
        assert (store.gather(torch.from_numpy(ids), ticket=ahead[0]).numpy() == table[ids]).all()
        if len(ahead) > 1:
            store.retract(ahead[1])
    assert store.counters.as_dict()["rows"]["packed"] == plans.first_reads[-1]


def test_a_gather_broken_off_leaves_a_cache_that_plans_by_itself(
    tmp_path: Path, table: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, store = skewed(10), cached(tmp_path)
    plans = record(tmp_path, store, batches)
    packed = pack(tmp_path, store, plans, BATCHES)
    store.follow(plans, packed, BATCHES, 0)
    tickets = [store.announce(torch.from_numpy(ids)) for ids in batches[:4]]
    executor = store._engine()._executor  # type: ignore[union-attr]
    with monkeypatch.context() as broken:
        broken.setattr(executor, "execute", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.gather(torch.from_numpy(batches[0]), ticket=tickets[0])
    for ids, ticket in zip(batches, tickets, strict=False):
        assert (store.gather(torch.from_numpy(ids), ticket=ticket).numpy() == table[ids]).all()
    assert "packed" not in store.counters.as_dict()["rows"]
    follow(store, plans, packed, BATCHES, batches, table)


def test_a_cache_that_no_longer_follows_plans_by_itself(
    tmp_path: Path, table: NDArray[np.float32]
) -> None:
    batches, store = skewed(15), cached(tmp_path, window=2)
    store.unfollow()
    plans = record(tmp_path, store, batches)
    packed = pack(tmp_path, store, plans, BATCHES)
    store.follow(plans, packed, BATCHES, 0)
    ids = torch.from_numpy(batches[0])
    ticket, alone = store.announce(ids), store.lookahead
    store.unfollow()
    packed.close()
    assert store.lookahead == alone + 2
    for again in (ticket, None):
        assert (store.gather(ids, ticket=again).numpy() == table[batches[0]]).all()
    assert store.counters.as_dict()["rows"] == {
        "file": len(ids) + max(0, len(ids) - CAPACITY), "cache": min(CAPACITY, len(ids))
    }  # fmt: skip


def test_a_batch_larger_than_the_staging_memory_is_read_packed(
    tmp_path: Path, table: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, store = skewed(11), cached(tmp_path)
    plans = record(tmp_path, store, batches)
    packed = pack(tmp_path, store, plans, BATCHES)
    monkeypatch.setattr(store._engine(), "_staging_bytes", 100)
    monkeypatch.setattr("gnnsys.cache.engine.PIECE_BYTES", 20 * ROW_BYTES)
    follow(store, plans, packed, BATCHES, batches, table)
    assert store.counters.as_dict()["rows"]["packed"] == plans.first_reads[-1]


@pytest.mark.usefixtures("table")
def test_a_cache_of_all_rows_follows_nothing(tmp_path: Path) -> None:
    plans = record(tmp_path, cached(tmp_path), skewed(12))
    assert not cached(tmp_path, cache=1.0).follow(plans, None, 0, 0)


@pytest.mark.usefixtures("table")
def test_plans_cut_short_are_refused(tmp_path: Path) -> None:
    record(tmp_path, cached(tmp_path), skewed(13))
    path = tmp_path / "plans.bin"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(FileFormatError, match=r"plans\.bin: not as long as index\.npy says"):
        RecordedPlans(tmp_path)


@pytest.mark.usefixtures("table")
def test_rows_that_stay_keep_their_slots(tmp_path: Path) -> None:
    plans = record(tmp_path, cached(tmp_path), skewed(14))
    held = np.full(CAPACITY, -1, np.int32)
    held[[3, 140]] = plans.residents[[70, 0]]
    held[9] = ROWS - 1 if ROWS - 1 not in plans.residents else 0
    planner = RecordedPlanner(plans, ROWS, held)
    assert planner.held[[3, 140]].tolist() == plans.residents[[70, 0]].tolist()
    assert (planner.kept, len(planner.prefilled)) == (2, CAPACITY - 2)
    assert sorted(planner.held.tolist()) == plans.residents.tolist()
    assert (planner.held[planner.prefilled_slots] == planner.prefilled).all()
    planner.forget_prefilled()
    assert (len(planner.prefilled), planner.state_bytes) == (0, 4 * (ROWS + 2 * CAPACITY))

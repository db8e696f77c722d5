"""A cache that ranks share: whatever they ask for, rows equal ``features[ids]``, and each row is
read as often as one process with the same batches would read it."""

from __future__ import annotations

import ctypes
import errno
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnsys.cache.engine import PAGE_BYTES
from gnnsys.cache.plan import POLICIES
from gnnsys.cache.planner import Planner
from gnnsys.cache.shared import engine as engine_module
from gnnsys.cache.shared import owner as owner_module
from gnnsys.cache.shared.engine import SharedEngine
from gnnsys.cache.shared.owner import Owner
from gnnsys.cache.shared.places import Places
from gnnsys.cache.shared.rounds import Rounds
from gnnsys.cache.tickets import is_aside
from gnnsys.errors import ArgumentError, RankFailedError, RowIndexError, StorageError
from gnnsys.memory import HostStore
from gnnsys.memory.ids import RowIds
from gnnsys.ranks.owners import Owners
from gnnsys.system import huge_pages

sys.path.insert(0, str(Path(__file__).parent))
from shared_ranks import (
    BACKENDS,
    ROWS,
    TABLE,
    WIDTH,
    Disk,
    Epoch,
    ask,
    iterate,
    make_memory,
    make_ranks,
    run_together,
    wait_until,
)


@st.composite
def traces(draw: st.DrawFn) -> dict[str, Any]:
    world = draw(st.integers(1, 8))
    ends = st.sampled_from([0, ROWS - 1])
    batch = st.lists(st.integers(0, ROWS - 1) | ends, max_size=10)
    epoch = st.tuples(st.lists(batch, max_size=5), st.integers(0, 6))
    scores = draw(st.none() | st.lists(st.integers(0, 9), min_size=ROWS, max_size=ROWS))
    return {
        "world": world,
        "epochs": draw(st.lists(st.lists(epoch, min_size=world, max_size=world), max_size=3)),
        "ahead": draw(st.lists(st.integers(1, 6), min_size=world, max_size=world)),
        "finish": draw(st.lists(st.booleans(), min_size=world, max_size=world)),
        "asked": draw(st.lists(st.lists(batch, max_size=3), min_size=world, max_size=world)),
        "setting": {
            "backend": draw(st.sampled_from(BACKENDS)),
            "spare": draw(st.sampled_from([0, 1, 5, ROWS])),
            "capacity": draw(st.sampled_from([0, 1, 7, 20, ROWS, ROWS + 9])),
            "cells": draw(st.sampled_from([0, 3, 9])),
            "policy": draw(st.sampled_from(POLICIES)),
            "window": draw(st.integers(0, 4)),
            "prefetch": draw(st.integers(0, 2)),
            "block": draw(st.integers(1, 5)),
            "staging_bytes": draw(st.sampled_from([0, 1 << 20])),
            "scores": None if scores is None else np.array(scores, np.uint16),
        },
    }


@given(traces())
@settings(max_examples=120, deadline=None)
def test_rows_equal_the_table_whatever_ranks_ask_for(trace: dict[str, Any]) -> None:
    engines = make_ranks(trace["world"], **trace["setting"])

    def announce(rank: int) -> None:
        for epoch in trace["epochs"]:
            batches, leaves_at = epoch[rank]
            iterate(engines[rank], batches, leaves_at, trace["ahead"][rank], trace["finish"][rank])

    def work(rank: int) -> None:
        asked = trace["asked"][rank]
        run_together([lambda: announce(rank), lambda: ask(engines[rank], asked)])
        engines[rank].close()  # others may still ask

    run_together([lambda rank=rank: work(rank) for rank in range(trace["world"])])
    for each in (engine.stats for engine in engines):
        assert each.rows == each.hits + each.victim_hits + each.reads + each.copies


@given(
    st.lists(st.lists(st.integers(0, 19), max_size=8), max_size=12),
    st.sampled_from([0, 1, 4, 20]),
    st.sampled_from([0, 2]),
    st.integers(1, 4),
    st.sampled_from(POLICIES),
    st.sampled_from([None, 0, 1, 3]),
)
def test_no_place_is_written_to_while_a_rank_may_read_it(
    rounds: list[list[int]], capacity: int, cells: int, delay: int, policy: Any, spare: int | None
) -> None:
    planner = Planner(
        20, capacity, policy=policy, window=2, victim_cells=cells,
        scores=np.arange(20, dtype=np.uint16),
    )  # fmt: skip
    limit = Owner.most_places(planner.capacity, cells, delay - 1, 20, spare)
    places = Places(capacity, cells, delay, len(planner.prefilled), limit)
    holds = dict(enumerate(planner.prefilled.tolist()))
    for ids in rounds:
        planner.announce(np.array(ids, np.int64))
    read: list[set[int]] = []
    for ids in rounds:
        plan = planner.plan()
        of_position, of_read = places.assign(plan)
        assert len(of_read) == len(plan.reads)
        of_row = dict(zip(plan.reads.tolist(), of_read.tolist(), strict=True))
        written = [place for place in of_row.values() if place >= 0]
        assert len(set(written)) == len(written)
        for before in read[max(0, len(read) - delay + 1) :]:
            assert before.isdisjoint(written)
        holds.update({place: row for row, place in of_row.items() if place >= 0})
        found = of_position.tolist()
        for row, place in zip(ids, found, strict=True):
            assert place == -1 or holds[place] == row
            assert row not in of_row or place == of_row[row]
        if spare is None:
            assert -1 not in found
        stay = [*plan.fills[plan.fills[:, 2] >= 0, 1], *-1 - plan.victim_out[:, 0]]
        first = set(plan.reads[[k for k in stay if k >= 0]].tolist())
        placed = {row for row, place in of_row.items() if place >= 0}
        assert first <= placed or placed <= first
        assert max(written, default=-1) < places.used <= limit
        read.append(set(found) - {-1})


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_row_is_read_once_for_all_ranks(backend: str) -> None:
    engines = make_ranks(4, backend=backend, capacity=ROWS)
    batches = [list(range(rank, ROWS)) for rank in range(4)]
    run_together(
        [
            lambda e=e, b=b: iterate(e, [b, b[::-1]], 9, 2)
            for e, b in zip(engines, batches, strict=True)
        ]
    )
    stats = [engine.stats for engine in engines]
    assert sum(each.reads for each in stats) == ROWS
    assert sum(each.rows for each in stats) == 2 * sum(map(len, batches))
    assert [each.batches for each in stats] == [2] * 4
    assert sum(each.resident for each in stats) == ROWS
    served = [engine._counters.as_dict()["rows"] for engine in engines]
    assert sum(each.get("file", 0) for each in served) == ROWS
    for rank, each in enumerate(served):
        assert sum(each.values()) == 2 * len(batches[rank])
    apart = sum(
        int((Owners(ROWS, 4).locate(np.array(b))[0] != r).sum()) for r, b in enumerate(batches)
    )
    of_row = 4 + (WIDTH * 4 if backend == "exchange" else 4)  # ids, and rows or their places
    assert sum(each.bytes_sent for each in stats) == 2 * apart * of_row
    for engine in engines:
        engine.close()


def test_rows_stay_until_a_gather_that_is_not_waited_for_has_read_them() -> None:
    engines = make_ranks(2, backend="late", capacity=0, prefetch=0, window=0)
    batches = [[*range(first, first + 10)] for first in (0, 10, 20, 30, 5, 15)]
    run_together([lambda e=e: iterate(e, batches, 9, 1) for e in engines])
    run_together([engine.close for engine in engines])


@pytest.mark.skipif("peer" not in BACKENDS, reason="needs a C++ compiler")
def test_who_asks_reads_rows_that_find_no_place() -> None:
    batch, read = [*range(ROWS)], []

    class Noted(Disk):
        def gather(self, ids: Any, *rest: Any) -> Any:
            read.extend(ids.tolist())
            return super().gather(ids, *rest)

    engines = make_ranks(2, backend="peer", source=Noted(TABLE), capacity=20, spare=4, window=0)
    run_together([lambda e=e: iterate(e, [batch] * 5, 9, 1) for e in engines])
    served = [engine._counters.as_dict()["rows"] for engine in engines]
    assert [sum(each.values()) for each in served] == [5 * len(batch)] * 2
    assert len(read) > 5 * (ROWS - 20 - 2 * 4)
    of_file = sum(each["file"] for each in served)
    assert of_file == sum(engine.stats.reads for engine in engines) > len(read)
    for engine in engines:
        engine.close()


@pytest.mark.skipif("peer" not in BACKENDS, reason="needs a C++ compiler")
@pytest.mark.parametrize(
    ("together", "all_left", "done"),
    [
        (False, True, ["leave"]),
        (True, False, ["leave", "part"]),
        (True, True, ["leave", "part", "free"]),
    ],
)
def test_memory_of_devices_is_freed_once_all_have_left_it(
    together: bool, all_left: bool, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory: Any = make_memory("peer", Disk(TABLE), [ROWS])[0]
    found: list[str] = []
    for call in ("leave", "free"):
        monkeypatch.setattr(memory._own, call, lambda call=call: found.append(call))
    monkeypatch.setattr(memory, "_part", lambda: found.append("part") or all_left)
    memory.close(together)
    assert found == done


def test_rows_that_repeat_count_as_the_first_of_their_batch_does() -> None:
    engines = make_ranks(2, capacity=0)
    batches = [[1, 1, 2], [3, 1, 3, 1, 3]]
    tickets = [
        engine.announce(RowIds(torch.tensor(batch)), None)
        for engine, batch in zip(engines, batches, strict=True)
    ]
    for engine, ticket in zip(engines, tickets, strict=True):
        engine.gather(ticket.ids, None, ticket)
    owner = Owners(ROWS, 2).locate(np.array([1]))[0][0]
    read_for_the_first_rank = "cache" if owner == 1 else "peer"
    served = [engine._counters.as_dict()["rows"] for engine in engines]
    assert served == [{"file": 3}, {"file": 3, read_for_the_first_rank: 2}]
    for engine in engines:
        engine.end(None)
    run_together([engine.close for engine in engines])


@pytest.mark.parametrize("prefetch", [0, 1])
def test_owners_are_told_after_the_rows_are_copied_unless_these_are_waited_for(
    monkeypatch: pytest.MonkeyPatch, prefetch: int
) -> None:
    [engine] = make_ranks(1, prefetch=prefetch, window=0)
    ids, done = RowIds(torch.tensor([3])), []
    tickets = [engine.announce(ids, None) for _ in range(2)]
    engine.gather(ids, None, tickets[0])

    def note(owner: Any, call: str) -> None:
        real = getattr(owner, call)
        monkeypatch.setattr(owner, call, lambda *given: (done.append(call), real(*given)))

    note(engine._memory, "gather")
    note(engine._owner, "reach")
    if prefetch:
        assert wait_until(lambda: tickets[1].is_complete)
    engine.gather(ids, None, tickets[1])
    assert done == (["gather", "reach"] if prefetch else ["reach", "gather"])
    engine.end(None)
    engine.close()


@pytest.mark.parametrize("error", [0, errno.EAGAIN, errno.EINVAL])
def test_rows_are_the_same_on_huge_pages_and_where_the_kernel_has_none(
    monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def refuse(*given: Any) -> int:
        ctypes.set_errno(error)
        return -1

    if error:
        monkeypatch.setattr(huge_pages, "_libc", SimpleNamespace(madvise=refuse))
    wide = torch.arange(ROWS).repeat_interleave(1 << 16).view(ROWS, -1)  # 512 KiB a row
    [engine] = make_ranks(1, source=HostStore(wide), capacity=8, prefetch=0)
    for first in range(0, ROWS, 10):
        ids = RowIds(torch.arange(first, first + 10))
        rows = engine.gather(ids, None, engine.announce(ids, None))
        assert torch.equal(rows, wide[ids])
    memory = weakref.ref(engine._memory._memory[0])
    engine.end(None)
    engine.close()
    assert memory() is None


@dataclass(eq=False)
class Held:
    """Rows that are being read, or were."""

    wait: Callable[[], Any]
    cancel: Callable[[], None]


class Counted(Disk):
    """Knows how many rows were being read, or were read and not let go, at most."""

    rows = most = 0

    def start_reads(self, batch: Any) -> Any:
        pending, count = super().start_reads(batch), len(batch.ids)
        self.rows += count
        self.most = max(self.most, self.rows)
        held = Held(pending.wait, pending.cancel)
        weakref.finalize(held, self._let_go, count)
        return held

    def _let_go(self, count: int) -> None:
        self.rows -= count


def test_no_more_is_read_at_once_than_may_be_staged(monkeypatch: pytest.MonkeyPatch) -> None:
    row = WIDTH * 4 + PAGE_BYTES
    monkeypatch.setattr(owner_module, "PIECE_BYTES", 3 * row)
    source = Counted(TABLE)
    (engine,) = make_ranks(1, source=source, capacity=0, staging_bytes=7 * row)
    iterate(engine, [list(range(ROWS)), list(range(0, ROWS, 2))], 9, 2)
    engine.close()
    assert source.most <= 7
    assert source.rows == 0


@pytest.mark.parametrize("how", ["retracts and ends", "dies"])
def test_ranks_stay_together_whatever_ends_an_iteration(
    how: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "_LONG", 2.0)
    engines, ids = make_ranks(2), RowIds(torch.tensor([3, 39]))
    for engine in engines:
        epoch = Epoch()
        ticket = engine.announce(ids, epoch)
        if how == "dies":
            del epoch
            continue
        if engine is engines[0]:  # whose other table, say, could not be announced
            engine.retract(ticket)
        engine.end(epoch)
    # Of which the second rank has no batch.
    run_together(
        [lambda e=e, n=n: iterate(e, n * [[5]], 9, 1) for e, n in zip(engines, (1, 0), strict=True)]
    )
    iterations = [lambda e=e: iterate(e, [[7], [8]], 9, 2) for e in engines]
    run_together(iterations)
    assert not caplog.records  # nobody has waited for what does not come
    assert len({engine._stream for engine in engines}) == 1
    run_together([engine.close for engine in engines])


def test_batches_aside_are_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    [engine] = make_ranks(1)
    one, other, ids = Epoch(), Epoch(), RowIds(torch.tensor([3]))
    engine.announce(ids, one)
    for _ in range(3):
        aside = engine.announce(ids, other)
        assert is_aside(aside)
        engine.retract(aside)
    assert len(caplog.records) == 1
    assert "batches of another loader wait" in caplog.text
    engine.end(one)
    engine.close()


class BadStore(Disk):
    """Some of whose rows cannot be read."""

    def start_reads(self, batch: Any) -> Any:
        if 17 in batch.ids:
            raise StorageError(5, "the disk is gone")
        return super().start_reads(batch)


def test_a_rank_that_cannot_read_tells_all() -> None:
    engines = make_ranks(3, source=BadStore(TABLE), capacity=0)
    failed = int(Owners(ROWS, 3).locate(np.array([17]))[0][0])
    errors: list[BaseException] = []

    def work(engine: SharedEngine) -> None:
        try:
            iterate(engine, [[3], [17]], 9, 1)
        except (StorageError, RankFailedError) as error:
            errors.append(error)

    run_together([lambda e=e: work(e) for e in engines])
    told = f"rank {failed}: [Errno 5] the disk is gone"
    assert sorted(map(str, errors)) == sorted(["[Errno 5] the disk is gone", told, told])
    for engine in engines:
        with pytest.raises((StorageError, RankFailedError)):
            engine.announce(RowIds(torch.tensor([1])), None)
        engine.close()


def test_who_waits_long_for_a_rank_that_is_alive_reads_its_rows_itself(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_module, "_LONG", 0.05)
    engines = make_ranks(2)
    iterate(engines[0], [[1, 2], [3, 39]], 9, 2)  # the other iterates nothing
    assert caplog.text.count("loaders over a cache that ranks share are iterated by all") == 1
    assert engines[0]._counters.as_dict()["rows"] == {"file": 4}
    iterate(engines[1], [[4], [5]], 9, 2)  # its part, with what the first had said
    assert engines[1].stats.batches == 2
    run_together([lambda e=e: iterate(e, [[1, 2]], 9, 1) for e in engines])
    assert sum(engine.stats.rows for engine in engines) == 4 + 2 + 4
    run_together([engine.close for engine in engines])


def test_an_iteration_that_is_collected_inside_a_gather_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The garbage collector runs in whatever thread it likes, which may be gathering."""
    [engine] = make_ranks(1)
    dropped, epoch, ids = Epoch(), Epoch(), RowIds(torch.tensor([3]))
    wait = engine._await

    def collect_and_wait(ticket: Any) -> bool:
        engine.end(dropped)
        return wait(ticket)

    monkeypatch.setattr(engine, "_await", collect_and_wait)
    works = [lambda: engine.gather(ids, None, engine.announce(ids, epoch))]
    run_together(works)
    assert engine.stats.batches == 1
    engine.end(epoch)
    engine.close()


def test_a_rank_that_has_gone_ends_the_gathers_of_others() -> None:
    engines = make_ranks(2)
    engines[1]._mailbox.close()
    ticket = engines[0].announce(RowIds(torch.arange(ROWS)), None)
    with pytest.raises(RankFailedError, match="rank 1 of 2 is gone or no longer answers"):
        engines[0].gather(RowIds(torch.arange(ROWS)), None, ticket)
    for engine in engines:
        engine.close()


def test_a_rank_that_has_closed_its_store_ends_the_gathers_of_others() -> None:
    engines = make_ranks(2)
    engines[1].close()
    ticket = engines[0].announce(RowIds(torch.arange(ROWS)), None)
    with pytest.raises(RankFailedError, match="rank 1 of 2 has closed its store; this rank, 0,"):
        engines[0].gather(RowIds(torch.arange(ROWS)), None, ticket)
    engines[0].close()


def test_memory_stays_mapped_while_a_gather_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    [engine] = make_ranks(1)
    memory: Any = engine._memory
    ids, copy, closed = RowIds(torch.tensor([3, 5])), memory.gather, threading.Event()
    ticket = engine.announce(ids, None)
    closing = threading.Thread(target=lambda: (engine._shut(together=False), closed.set()))

    def close_and_copy(*arguments: Any) -> Any:
        closing.start()
        assert wait_until(lambda: engine._closed)
        assert not closed.wait(0.1)
        assert memory._memory
        return copy(*arguments)

    monkeypatch.setattr(memory, "gather", close_and_copy)
    assert torch.equal(engine.gather(ids, None, ticket), TABLE[ids])
    closing.join(30)
    assert not memory._memory


def test_what_is_not_announced_changes_no_plan() -> None:
    engines = make_ranks(2)
    outer, inner = Epoch(), Epoch()
    ids = RowIds(torch.tensor([5, 5, 39]))
    tickets = [engine.announce(ids, outer) for engine in engines]
    aside = engines[0].announce(ids, inner)  # while another's are waiting
    assert torch.equal(engines[0].gather(ids, None, aside), TABLE[ids])
    assert torch.equal(engines[0].gather(ids, None, None), TABLE[ids])
    with pytest.raises(ArgumentError, match="ids: 1 ids that are not the 3"):
        engines[0].gather(RowIds(ids[:1]), None, tickets[0])
    with pytest.raises(RowIndexError):
        engines[0].announce(RowIds(torch.tensor([ROWS])), outer)
    for engine, ticket in zip(engines, tickets, strict=True):
        assert torch.equal(engine.gather(ids, None, ticket), TABLE[ids])
    assert sum(engine.stats.rows for engine in engines) == 6
    for engine in engines:
        engine.end(outer)
    for engine in engines:
        engine.close()


def test_ranks_that_are_streams_ahead_are_understood() -> None:
    """What arrives late, after a rank's later streams: as from a slow connection."""
    rounds = Rounds(world=2, prefetch=0)
    for stream in range(3):
        rounds.end(0, stream, 0)
        rounds.reach(0, stream, 0)
    one = np.array([3], np.int32)
    rounds.add(1, 0, 0, one)
    assert [part.rank for part in rounds.next_round() or []] == [1]
    assert rounds.is_due(0)
    rounds.take(0)
    rounds.end(1, 0, 1)
    assert rounds.next_round() is None
    assert not rounds.are_over(1)
    rounds.reach(1, 0, 1)
    for stream in (1, 2):
        rounds.end(1, stream, 0)
    assert rounds.next_round() is None
    assert rounds.are_over(3)
    rounds.add(0, 3, 0, one)
    rounds.add(1, 3, 0, one)
    assert [part.rank for part in rounds.next_round() or []] == [0, 1]
    assert rounds.is_due(1)
    rounds.end(0, 3, 0)  # taken back again, and once more by the other
    rounds.end(1, 3, 0)
    assert rounds.made == 1
    rounds.add(1, 4, 0, one)
    rounds.end(0, 4, 0)
    assert [part.stream for part in rounds.next_round() or []] == [4]
    rounds.end(1, 4, 1)
    assert rounds.next_round() is None  # all have ended it
    rounds.end(1, 4, 0)
    assert rounds.made == 1


def test_a_rank_that_has_announced_all_is_not_waited_for_by_one_with_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engines = make_ranks(2)
    epoch, other, ids = Epoch(), Epoch(), RowIds(torch.arange(ROWS))
    ticket = engines[0].announce(ids, epoch)
    engines[0].finish(epoch)  # whose batch nobody takes yet
    iterate(engines[1], [[1], [2, 39]], 9, 2)
    assert "has waited" not in caplog.text
    assert torch.equal(engines[0].gather(ids, None, ticket), TABLE)
    # Who is next is the same on all ranks: not before it is said that the epoch has ended.
    assert is_aside(engines[0].announce(ids, other))
    engines[0].end(epoch)
    next_epoch = [engine.announce(ids, other) for engine in engines]
    for engine, each in zip(engines, next_epoch, strict=True):
        assert torch.equal(engine.gather(ids, None, each), TABLE)
    assert [engine.stats.batches for engine in engines] == [2, 3]
    run_together([engine.close for engine in engines])


def test_rounds_are_unmade_of_a_stream_that_ranks_had_finished() -> None:
    rounds = Rounds(world=2, prefetch=0)
    one = np.array([3], np.int32)
    for rank in range(2):
        for index in range(3):
            rounds.add(rank, 0, index, one)
        rounds.end(rank, 0, 3)
    rounds.add(0, 1, 0, one)
    rounds.end(1, 1, 0)
    while rounds.next_round():
        pass
    assert rounds.made == 4  # the last one of the next stream
    rounds.take(0)
    rounds.end(0, 0, 1)
    assert rounds.made == 1
    found = [rounds.next_round() for _ in range(4)]
    told = [[(part.rank, part.stream, part.index) for part in each or []] for each in found]
    assert told == [[(1, 0, 1)], [(1, 0, 2)], [(0, 1, 0)], []]


def test_a_batch_that_is_taken_back_is_not_waited_for() -> None:
    engines = make_ranks(2, prefetch=0, window=3)
    ids = [RowIds(torch.tensor([n])) for n in range(4)]
    tickets = [[engine.announce(each, None) for each in ids] for engine in engines]
    engines[0].retract(tickets[0][2])
    engines[1].retract(tickets[1][1])
    again = [engine.announce(ids[3], None) for engine in engines]
    kept = (2, 1)

    def gather(rank: int) -> None:
        for number in range(kept[rank]):
            rows = engines[rank].gather(ids[number], None, tickets[rank][number])
            assert torch.equal(rows, TABLE[ids[number]])
        assert torch.equal(engines[rank].gather(ids[3], None, again[rank]), TABLE[ids[3]])

    run_together([lambda: gather(0), lambda: gather(1)])
    run_together([engine.close for engine in engines])

"""A cache that ranks share: whatever they ask for, rows equal ``features[ids]``, and each row is
read as often as one process with the same batches would read it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnsys.cache.plan import POLICIES
from gnnsys.cache.planner import Planner
from gnnsys.cache.shared import engine as engine_module
from gnnsys.cache.shared.engine import SharedEngine
from gnnsys.cache.shared.owner import Owner
from gnnsys.cache.shared.places import Places
from gnnsys.cache.shared.rounds import Rounds
from gnnsys.cache.shared.setup import parts_of
from gnnsys.counters import Counters
from gnnsys.errors import ArgumentError, RankFailedError, RowIndexError, StorageError
from gnnsys.memory import HostStore
from gnnsys.memory.ids import RowIds
from gnnsys.ranks.owners import Owners

sys.path.insert(0, str(Path(__file__).parent))
from local_mailboxes import LocalMailbox

ROWS, WIDTH = 40, 3
TABLE = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(5))


def make_ranks(
    world: int, *, sends: bool = False, source: Any = None, **setting: Any
) -> list[SharedEngine]:
    """The engines of ranks that live in this process."""
    capacity, cells = setting.get("capacity", 8), setting.get("cells", 0)
    window, prefetch = setting.get("window", 2), setting.get("prefetch", 1)
    scores = setting.get("scores")
    source = source or HostStore(TABLE)
    owners = Owners(ROWS, world, setting.get("block", 1))
    row_bytes = source.row_bytes
    planners, memory = [], []
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
        places = Owner.most_places(slots, kept, prefetch, count)
        memory.append(np.empty(places * row_bytes, np.uint8))
    return [
        SharedEngine(
            source,
            "x.npy",
            mailbox,
            owners,
            planners[rank],
            [m if not sends or other == rank else None for other, m in enumerate(memory)],
            prefetch=prefetch,
            staging_bytes=setting.get("staging_bytes", 1 << 20),
            threads=1,
            counters=Counters(),
            failed=lambda suspect: suspect,
        )
        for rank, mailbox in enumerate(LocalMailbox.of(world))
    ]


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


def iterate(engine: SharedEngine, batches: list[list[int]], leaves_at: int, ahead: int) -> None:
    """Announces ``ahead`` batches before it gathers the first; leaves at a batch."""
    epoch, tickets = Epoch(), []
    ids = [RowIds(torch.tensor(batch, dtype=torch.int64)) for batch in batches]
    for number in range(len(batches)):
        if number == leaves_at:
            break
        while len(tickets) < min(len(batches), number + ahead):
            tickets.append(engine.announce(ids[len(tickets)], epoch))
        rows = engine.gather(ids[number], None, tickets[number])
        assert torch.equal(rows, TABLE[ids[number]])
    engine.end(epoch)


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
        "setting": {
            "sends": draw(st.booleans()),
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

    def work(rank: int) -> None:
        for epoch in trace["epochs"]:
            batches, leaves_at = epoch[rank]
            iterate(engines[rank], batches, leaves_at, trace["ahead"][rank])
        engines[rank].close()

    run_together([lambda rank=rank: work(rank) for rank in range(trace["world"])])


@given(
    st.lists(st.lists(st.integers(0, 19), max_size=8), max_size=12),
    st.sampled_from([0, 1, 4, 20]),
    st.sampled_from([0, 2]),
    st.integers(1, 4),
    st.sampled_from(POLICIES),
)
def test_no_place_is_written_to_while_a_rank_may_read_it(
    rounds: list[list[int]], capacity: int, cells: int, delay: int, policy: Any
) -> None:
    planner = Planner(
        20, capacity, policy=policy, window=2, victim_cells=cells,
        scores=np.arange(20, dtype=np.uint16),
    )  # fmt: skip
    places = Places(capacity, cells, delay, len(planner.prefilled))
    holds = dict(enumerate(planner.prefilled.tolist()))
    for ids in rounds:
        planner.announce(np.array(ids, np.int64))
    read: list[set[int]] = []
    for ids in rounds:
        plan = planner.plan()
        of_position, of_read = places.assign(plan)
        written = of_read.tolist()
        assert len(set(written)) == len(written) == len(plan.reads)
        for before in read[max(0, len(read) - delay + 1) :]:
            assert before.isdisjoint(written)
        holds.update(zip(written, plan.reads.tolist(), strict=True))
        assert [holds[place] for place in of_position.tolist()] == ids
        assert max(written, default=-1) < places.used
        assert places.used <= Owner.most_places(planner.capacity, cells, delay - 1, 20)
        read.append(set(of_position.tolist()))


@pytest.mark.parametrize("sends", [False, True])
def test_every_row_is_read_once_for_all_ranks(sends: bool) -> None:
    engines = make_ranks(4, sends=sends, capacity=ROWS)
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
    for engine in engines:
        engine.close()


class BadStore(HostStore):
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


def test_what_is_not_announced_is_read_from_the_source() -> None:
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
    rounds.take(1)


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

"""Gathers that nobody announced, of ranks that share a cache: what is there is served from it, to
the bit, and counted; owners that are slow, gone or closed."""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gnnsys.cache.shared import engine as engine_module
from gnnsys.cache.shared.setup import parts_of
from gnnsys.errors import ArgumentError, RankFailedError, RowIndexError
from gnnsys.memory import HostStore
from gnnsys.memory.ids import RowIds
from gnnsys.ranks.owners import Owners

sys.path.insert(0, str(Path(__file__).parent))
from shared_ranks import (
    BACKENDS,
    ROWS,
    TABLE,
    Disk,
    Epoch,
    ask,
    iterate,
    make_ranks,
    run_together,
)


@pytest.mark.parametrize("backend", BACKENDS[:4])
def test_what_nobody_announces_is_served_where_the_cache_was_filled_with_it(backend: str) -> None:
    world, scores = 3, np.random.default_rng(3).integers(0, 9, ROWS).astype(np.uint16)
    engines = make_ranks(world, backend=backend, capacity=14, scores=scores)
    owners = Owners(ROWS, world)
    owner = owners.locate(np.arange(ROWS))[0]
    filled = np.zeros(ROWS, bool)
    for rank, slots in enumerate(parts_of(14, owners)):
        own = np.flatnonzero(owner == rank)
        filled[own[np.argsort(-scores[own].astype(int), kind="stable")[:slots]]] = True
    batches = [[*range(ROWS), 5, 5, 39], [7], []]
    run_together([lambda e=e: ask(e, batches) for e in engines for _ in range(2)])
    asked = 2 * np.concatenate(batches).astype(int).tolist()
    for rank, engine in enumerate(engines):
        expected = {
            "cache": sum(filled[asked] & (owner[asked] == rank)),
            "peer": sum(filled[asked] & (owner[asked] != rank)),
            "file": sum(~filled[asked]),
        }
        assert engine._counters.as_dict()["rows"] == expected
        assert engine.stats.rows == 0
        with pytest.raises(RowIndexError):
            engine.gather(RowIds(torch.tensor([ROWS])), None, None)
    run_together([engine.close for engine in engines])
    with pytest.raises(ArgumentError, match="was closed"):
        ask(engines[0], [[1]])


def test_a_place_is_not_written_to_while_it_is_read_for_who_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores = np.arange(ROWS, dtype=np.uint16)
    engines = make_ranks(2, capacity=2, scores=scores, prefetch=0, window=0, policy="lru")
    numbers, epochs = np.arange(ROWS), [Epoch(), Epoch()]
    engines[0].end(epochs[0])  # holds nobody back
    others = threading.Thread(
        target=iterate, args=(engines[1], [[n] for n in [*numbers, *numbers]], 99, 3), daemon=True
    )
    gather = engines[0]._memory.gather

    def wait_and_gather(*arguments: Any) -> torch.Tensor:
        if not others.ident:
            others.start()
            others.join(0.3)
            assert others.is_alive()
        return gather(*arguments)

    monkeypatch.setattr(engines[0]._memory, "gather", wait_and_gather)
    ask(engines[0], [list(range(ROWS))])
    others.join(60)
    assert engines[1].stats.batches == 2 * ROWS
    run_together([engine.close for engine in engines])


@pytest.mark.parametrize("backend", BACKENDS[:4])
def test_a_row_is_served_to_who_asks_once_it_is_there(backend: str) -> None:
    engines = make_ranks(2, backend=backend, capacity=ROWS, prefetch=1, window=0)
    ids = [RowIds(torch.tensor([n])) for n in (3, 3, 4)]
    tickets = [[engine.announce(each, None) for each in ids] for engine in engines]
    for engine, own in zip(engines, tickets, strict=True):
        engine.gather(ids[0], None, own[0])
    before = [engine._counters.as_dict()["rows"] for engine in engines]
    ask(engines[0], [[4, 3]])  # row 4 has its place, and is read when all are a step further
    after = engines[0]._counters.as_dict()["rows"]
    assert after["file"] == before[0].get("file", 0) + 1
    assert sum(after.values()) == 3
    for number in (1, 2):
        for engine, own in zip(engines, tickets, strict=True):
            engine.gather(ids[number], None, own[number])
    ask(engines[1], [[4, 3]])
    served = [engine._counters.as_dict()["rows"] for engine in engines]
    assert sum(each.get("file", 0) for each in served) == 2 + 1
    assert sum(engine.stats.reads for engine in engines) == 2
    run_together([engine.close for engine in engines])


def test_rows_of_who_has_gone_or_closed_its_part() -> None:
    engines = make_ranks(3, capacity=ROWS, scores=np.ones(ROWS, np.uint16))
    run_together([engines[1].close])
    ask(engines[0], [list(range(ROWS))])
    gone = Owners(ROWS, 3).count(1)
    served = engines[0]._counters.as_dict()["rows"]
    assert (served["file"], sum(served.values())) == (gone, ROWS)
    fast = make_ranks(1, source=HostStore(TABLE), capacity=ROWS, scores=np.ones(ROWS, np.uint16))
    ask(fast[0], [[1]])
    assert fast[0]._counters.as_dict()["rows"] == {"file": 1}  # nobody is asked
    engines[2]._mailbox.close()
    with pytest.raises(RankFailedError, match="rank 2 of 3 is gone or no longer answers"):
        ask(engines[0], [list(range(ROWS))])
    for engine in [*engines, *fast]:
        engine.close()


class SlowStore(Disk):
    """Whose rows are there when ``gate`` is open."""

    gate = threading.Event()

    def start_reads(self, batch: Any) -> Any:
        return dataclasses.replace(super().start_reads(batch), check=self.gate.wait)


def test_who_asks_does_not_wait_long_for_an_owner_that_reads(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_module, "_LONG", 0.05)
    source = SlowStore(TABLE)
    [engine] = make_ranks(1, source=source, capacity=ROWS)
    ticket = engine.announce(RowIds(torch.tensor([3])), None)
    ask(engine, [[3]] * 100)
    assert caplog.text.count("has waited 0 s for ranks 0 to say which rows they have") == 1
    source.gate.set()
    engine.gather(RowIds(torch.tensor([3])), None, ticket)
    while engine._asks._late:
        time.sleep(0.001)
    ask(engine, [[3]])
    assert engine._counters.as_dict()["rows"] == {"file": 101, "cache": 1}
    assert engine._owner._held == {}
    engine.close()

"""Whatever was announced, gathered, taken back or failed: rows equal ``features[ids]``."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnsys.cache.plan import POLICIES
from gnnsys.cache.store import CachedStore
from gnnsys.errors import UnsupportedError
from gnnsys.memory import FileStore

sys.path.insert(0, str(Path(__file__).parent))
from planner_reference import ReferencePlanner
from stored_reference import delivered, open_store

OWNERS = 3
_PLACE = tempfile.TemporaryDirectory(prefix="gnnsys-cached-store-")  # goes with the process
FOLDER = Path(_PLACE.name)


class Owner:
    """Who announces."""


def table(rows: int, width: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(rows * 1000 + width)
    return torch.randn(rows, width, generator=draw)


def open_table(rows: int, width: int, storage: Any, stored: str = "float32") -> FileStore:
    path = FOLDER / f"{rows}x{width} {stored}.npy"
    values = table(rows, width).numpy()
    try:
        return open_store(path, values, stored, storage=storage)
    except UnsupportedError:  # a kernel without io_uring, which the doctor shows
        return open_store(path, values, stored, storage="pread")


def batches(rows: int) -> st.SearchStrategy[list[int]]:
    ends = st.sampled_from([0, rows - 1])
    return st.lists(st.integers(0, rows - 1) | ends, max_size=12)


@st.composite
def runs(draw: st.DrawFn) -> dict[str, Any]:
    rows = draw(st.sampled_from([1, 2, 17, 40]))
    capacity = draw(st.sampled_from([0, 1, rows // 3, rows - 1, rows, rows + 5]))
    scores = draw(st.none() | st.lists(st.integers(0, 9), min_size=rows, max_size=rows))
    batch, owner = batches(rows), st.integers(0, OWNERS - 1)
    step = st.one_of(
        st.tuples(st.just("announce"), owner, batch),
        st.tuples(st.just("announce"), owner, batch),
        st.tuples(st.just("redeem"), owner, st.none()),
        st.tuples(st.just("gather"), st.none(), batch),
        st.tuples(st.just("retract"), owner, st.integers(0, 5)),
        st.tuples(st.just("forget"), owner, st.none()),
    )
    return {
        "rows": rows,
        "width": draw(st.sampled_from([1, 3, 16])),
        "storage": draw(st.sampled_from(["mmap", "pread", "uring"])),
        "stored": draw(st.sampled_from(["float32", "float16", "int8 row", "int4 column"])),
        "options": {
            "cache": capacity,
            "policy": draw(st.sampled_from(POLICIES)),
            "window": draw(st.sampled_from([0, 1, 2, 8])),
            "victim_buffer": draw(st.sampled_from([0, 1, 5])),
            "scores": None if scores is None else np.array(scores),
            "prefill": draw(st.booleans()),
            "prefetch": draw(st.integers(0, 3)),
            "threads": 1,
        },
        "steps": draw(st.lists(step, max_size=30)),
        "dtype": draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16])),
    }


@settings(max_examples=150, deadline=None, print_blob=True)
@given(run=runs())
def test_rows_equal_fancy_indexing_and_counters_add_up_whatever_happens(run: Any) -> None:
    values = delivered(table(run["rows"], run["width"]).numpy(), run["stored"])
    expected = torch.from_numpy(values).to(run["dtype"])
    source = open_table(run["rows"], run["width"], run["storage"], run["stored"])
    store = CachedStore(source, **run["options"]).with_dtype(run["dtype"])
    owners = [Owner() for _ in range(OWNERS)]
    queues: list[list[tuple[Any, torch.Tensor]]] = [[] for _ in owners]
    asked = 0

    def gather(ids: torch.Tensor, ticket: Any = None) -> int:
        out = torch.empty(len(ids), run["width"], dtype=run["dtype"]) if len(ids) % 2 else None
        assert torch.equal(store.gather(ids, out, ticket=ticket), expected[ids])
        return len(ids)

    for what, who, value in run["steps"]:
        ids = torch.tensor(value if isinstance(value, list) else [], dtype=torch.int64)
        if what == "announce":
            queues[who].append((store.announce(ids, owners[who]), ids))
        elif what == "gather":
            asked += gather(ids)
        elif what == "redeem" and queues[who]:
            ticket, ids = queues[who].pop(0)
            asked += gather(ids, ticket)
        elif what == "retract" and value < len(queues[who]):
            store.retract(queues[who][value][0])
            del queues[who][value:]
        elif what == "forget":
            owners[who], queues[who] = Owner(), []
    for ticket, ids in [entry for queue in queues for entry in queue]:
        asked += gather(ids, ticket)
    stats = store.stats
    assert stats.rows == asked == stats.hits + stats.victim_hits + stats.reads + stats.copies
    served = store.counters.tiers()
    assert sum(tier.rows for tier in served.values()) == asked
    assert all(tier.bytes == tier.rows * store.row_bytes for tier in served.values())
    assert stats.resident <= store.capacity
    source.close()


@pytest.mark.parametrize("others", [0, 1, 2], ids="{} other owners".format)
@pytest.mark.parametrize("policy", POLICIES)
def test_announced_batches_are_served_as_the_reference_plans_them(policy: Any, others: int) -> None:
    draw = np.random.default_rng(7)
    trace = [torch.from_numpy(draw.zipf(1.4, 60) % 300) for _ in range(40)]
    options: dict[str, Any] = {"policy": policy, "window": 4}
    scores = (300 - np.arange(300)).astype(np.uint16)
    store = CachedStore(
        open_table(300, 16, "pread"), cache=50, victim_buffer=10, scores=scores, **options
    )
    planner = ReferencePlanner(300, 50, victim_cells=10, scores=scores, **options)
    expected = table(300, 16)
    owner, counts = Owner(), Counter[str]()
    tickets = [store.announce(ids, owner) for ids in trace]
    for ids, other, ticket in zip(trace, reversed(trace), tickets, strict=True):
        for _ in range(others):
            rows = store.gather(other, ticket=store.announce(other, Owner()))
            assert torch.equal(rows, expected[other])
        before = store.stats
        assert torch.equal(store.gather(ids, ticket=ticket), expected[ids])
        counts.update((store.stats - before).as_dict())
    for ids in trace:
        planner.announce(ids.numpy())
    plans = [planner.plan() for _ in trace]
    assert counts["reads"] == sum(len(plan.reads) for plan in plans)
    assert counts["hits"] == sum(len(plan.hits) for plan in plans)
    assert counts["victim_hits"] == sum(len(plan.victim_in) for plan in plans)
    assert counts["evictions"] == sum(plan.evictions for plan in plans)
    assert counts["rows"] - counts["copies"] == sum(len(ids.unique()) for ids in trace)
    stats = store.stats
    assert stats.rows == stats.hits + stats.victim_hits + stats.reads + stats.copies
    assert stats.resident == 50

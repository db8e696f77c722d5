"""The simulator against brute force: Belady's bound, counts, pages."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gnnsys.cache.plan import POLICIES
from gnnsys.cache.simulator import pages_of_rows, simulate
from gnnsys.cache.trace import TraceWriter
from gnnsys.errors import ArgumentError, DTypeError, RowIndexError

PROPERTY = settings(deadline=None, print_blob=True, max_examples=60)
Trace = list[NDArray[np.int64]]


def random_trace(seed: int, num_rows: int, batches: int) -> Trace:
    random = np.random.default_rng(seed)
    return [
        (random.random(random.integers(0, 20)) ** 2 * num_rows).astype(np.int64)
        for _ in range(batches)
    ]


def belady_hits(trace: Trace, capacity: int, prefilled: set[int]) -> int:
    """Hits where after each batch those rows stay whose next batch comes first."""
    sets = [set(ids.tolist()) for ids in trace]
    resident, hits = set(prefilled), 0
    for now, ids in enumerate(sets):
        hits += len(resident & ids)
        coming = [
            (next((b for b in range(now + 1, len(sets)) if row in sets[b]), len(sets)), row)
            for row in resident | ids
        ]
        resident = {row for _, row in sorted(coming)[:capacity]}
    return hits


def most_hits(sets: list[set[int]], capacity: int, resident: frozenset[int], now: int = 0) -> int:
    """The most hits of any choice of residents after each batch: all choices are tried."""
    if now == len(sets):
        return 0
    offered = resident | sets[now]
    size = min(capacity, len(offered))
    return len(resident & sets[now]) + max(
        most_hits(sets, capacity, frozenset(kept), now + 1)
        for kept in combinations(sorted(offered), size)
    )


@settings(deadline=None, print_blob=True, max_examples=25)
@given(
    st.lists(st.sets(st.integers(0, 4), max_size=3), max_size=4),
    st.integers(0, 3),
)
def test_no_choice_of_residents_has_more_hits_than_belady(
    sets: list[set[int]], capacity: int
) -> None:
    trace = [np.array(sorted(ids), np.int64) for ids in sets]
    best = most_hits(sets, capacity, frozenset())
    assert simulate(trace, "belady", capacity, num_rows=5).hits == best


@pytest.mark.parametrize("prefill", [False, True])
@PROPERTY
@given(st.integers(1, 40), st.integers(0, 50), st.integers(0, 40), st.integers(0, 1 << 30))
def test_lookahead_over_the_whole_trace_is_belady_with_bypass_and_no_policy_beats_it(
    prefill: bool, num_rows: int, capacity: int, window: int, seed: int
) -> None:
    trace = random_trace(seed, num_rows, 25)
    scores = np.random.default_rng(seed).integers(0, 7, num_rows).astype(np.uint16)
    best_first = sorted(range(num_rows), key=lambda row: (-int(scores[row]), row))
    bound = belady_hits(trace, capacity, set(best_first[:capacity]) if prefill else set())
    shared: dict[str, Any] = {"num_rows": num_rows, "scores": scores, "prefill": prefill}
    assert simulate(trace, "belady", capacity, **shared).hits == bound
    assert simulate(trace, "lookahead", capacity, len(trace), **shared).hits == bound
    assert simulate(trace, "hybrid", capacity, len(trace), **shared).hits == bound
    for policy in POLICIES:
        result = simulate(trace, policy, capacity, window, **shared)  # type: ignore[arg-type]
        assert result.hits <= bound, policy
        served = result.hits + result.victim_hits + result.misses + result.copies
        assert served == result.rows == sum(len(ids) for ids in trace)


@PROPERTY
@given(
    st.integers(1, 30), st.integers(0, 30), st.integers(0, 20), st.integers(0, 30), st.integers(0)
)
def test_more_victim_cells_never_read_more_and_without_drops_each_saved_row_is_used(
    num_rows: int, capacity: int, cells: int, window: int, seed: int
) -> None:
    trace = random_trace(seed, num_rows, 20)
    shared: dict[str, Any] = {"window": window, "num_rows": num_rows}
    without = simulate(trace, "hybrid-pvp", capacity, **shared)
    assert without.victims_saved == without.victim_hits == without.drops == 0
    enough = simulate(trace, "hybrid", capacity, victim_cells=num_rows, **shared)
    some = simulate(trace, "hybrid", capacity, victim_cells=cells, **shared)
    assert enough.drops == 0
    assert enough.victim_hits >= enough.victims_saved
    assert enough.misses <= some.misses <= simulate(trace, "hybrid", capacity, **shared).misses


@given(
    st.lists(st.integers(0, 60), unique=True),
    st.sampled_from([0, 1, 100, 512, 2048, 4096, 5000, 9000]),
    st.integers(0, 9000),
)
def test_pages_are_those_that_hold_a_byte_of_a_row(
    rows: list[int], row_bytes: int, offset: int
) -> None:
    rows = sorted(rows)
    pages = {
        page
        for row in rows
        if row_bytes
        for page in range(
            (offset + row * row_bytes) // 4096, (offset + (row + 1) * row_bytes - 1) // 4096 + 1
        )
    }
    assert pages_of_rows(np.array(rows, np.int64), row_bytes, offset) == len(pages)


def test_a_recorded_trace_is_replayed_from_its_file_and_part_of_it_measured(
    tmp_path: Path,
) -> None:
    trace = random_trace(5, 50, 30)
    with TraceWriter(tmp_path / "run.trace", 50) as writer:
        for ids in trace:
            writer.add(ids)
    whole = simulate(trace, "hybrid", 10, num_rows=50, row_bytes=1000)
    assert simulate(tmp_path / "run.trace", "hybrid", 10, row_bytes=1000) == whole
    told: list[tuple[int, int]] = []
    late = simulate(
        tmp_path / "run.trace", "hybrid", 10, measure_from=20, progress=lambda *at: told.append(at)
    )
    assert told == [(done, 30) for done in range(1, 31)]
    early = simulate(trace[:20], "hybrid", 10, num_rows=50)
    assert late.batches == 10
    assert late.rows + early.rows == whole.rows
    assert whole.as_dict()["hit_ratio"] == whole.hits / (whole.rows - whole.copies)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"num_rows": None}, ArgumentError, "num_rows is missing"),
        ({"capacity": -1}, ArgumentError, "capacity=-1"),
        ({"window": -2}, ArgumentError, "window=-2"),
        ({"victim_cells": -3}, ArgumentError, "victim_cells=-3"),
        ({"measure_from": -1}, ArgumentError, "measure_from=-1"),
        ({"policy": "fifo"}, ArgumentError, "'fifo'"),
        ({"num_rows": 2**31}, ArgumentError, "num_rows=2147483648 > 2147483646: .*without a cache"),
        ({"scores": np.zeros(9, np.uint16)}, ArgumentError, r"\(10,\)"),
        ({"scores": np.zeros(10)}, DTypeError, "uint16"),
        ({"trace": [np.array([3, 10])]}, RowIndexError, "id 10 at position 1"),
        ({"trace": [np.array([-1, 3], np.int32)]}, RowIndexError, "id -1 at position 0"),
        ({"trace": [np.array([1.5])]}, DTypeError, "float64"),
        ({"trace": [np.array([[1]])]}, ArgumentError, "one dimension"),
    ],
)
def test_bad_arguments_are_named_with_the_value_and_what_is_expected(
    changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {
        "trace": [np.array([1, 2])],
        "policy": "hybrid",
        "capacity": 3,
        "num_rows": 10,
    }
    with pytest.raises(error, match=message):
        simulate(**(arguments | changed))

"""What ranks are told to read equals plans of the reference, owner by owner, and rank by rank."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnsys.cache.plan import POLICIES
from gnnsys.cache.shared.setup import owners_of_rows
from gnnsys.cache.shared.simulator import simulate_ranks
from gnnsys.cache.simulator import simulate

sys.path.insert(0, str(Path(__file__).parent))
from planner_reference import ReferencePlanner

ROWS = 40


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    batch = st.lists(st.integers(0, ROWS - 1), max_size=12, unique=True)
    scores = draw(st.none() | st.lists(st.integers(0, 9), min_size=ROWS, max_size=ROWS))
    return {
        "trace": [np.array(ids, np.int32) for ids in draw(st.lists(batch, max_size=12))],
        "policy": draw(st.sampled_from(POLICIES)),
        "capacity": draw(st.sampled_from([0, 3, 10, 25, ROWS + 9])),
        "window": draw(st.integers(0, 5)),
        "victim_cells": draw(st.sampled_from([0, 7])),
        "scores": None if scores is None else np.array(scores, np.uint16),
        "row_bytes": draw(st.sampled_from([1 << 11, 1 << 14])),  # blocks of 8 rows, and of one
    }


def reads_of(batches: list[list[int]], planner: ReferencePlanner) -> list[list[int]]:
    """The rows that each batch reads."""
    found = []
    for now in range(len(batches)):
        while planner.announced < min(len(batches), now + 1 + planner.window):
            planner.announce(np.array(batches[planner.announced], np.int64))
        found.append(planner.plan().reads.tolist())
        planner.commit(now)
    return found


def pages_of(reads: list[list[int]], row_bytes: int) -> int:
    """Pages of 4 KiB that each batch's rows lie on, which fill pages or have a part of one."""
    of_row = [range(r * row_bytes // 4096, -(-(r + 1) * row_bytes // 4096)) for r in range(ROWS)]
    return sum(len({page for row in rows for page in of_row[row]}) for rows in reads)


@given(cases(), st.integers(1, 4), st.sampled_from([None, 1, 5]))
@settings(max_examples=40, deadline=None, print_blob=True)
def test_reads_are_those_of_the_reference(case: dict[str, Any], ranks: int, epoch: Any) -> None:
    trace, scores, row_bytes = case["trace"], case["scores"], case["row_bytes"]
    kept = {"policy": case["policy"], "scores": scores}
    steps = [
        epoch_batches[first : first + ranks]
        for begin in range(0, len(trace), epoch or 99)
        for epoch_batches in [trace[begin : begin + (epoch or 99)]]
        for first in range(0, len(epoch_batches), ranks)
    ]
    owner = owners_of_rows(ROWS, row_bytes, ranks).locate(np.arange(ROWS))[0].tolist()
    # Slots and cells are divided as the rows are.
    below = [sum(each < rank for each in owner) for rank in range(ranks + 1)]
    share: Any = [[case[name] * rows // ROWS for rows in below] for name in _SIZES]
    shared, private = [], []
    for rank in range(ranks):
        own = [row for row in range(ROWS) if owner[row] == rank]
        rounds = [[own.index(r) for ids in step for r in ids if owner[r] == rank] for step in steps]
        planner = ReferencePlanner(
            len(own),
            share[0][rank + 1] - share[0][rank],
            window=-(-case["window"] // ranks),
            victim_cells=share[1][rank + 1] - share[1][rank],
            **(kept | {"scores": None if scores is None else scores[own]}),
        )
        shared += [[own[number] for number in numbers] for numbers in reads_of(rounds, planner)]
        planner = ReferencePlanner(
            ROWS,
            case["capacity"] // ranks,
            window=case["window"],
            victim_cells=case["victim_cells"] // ranks,
            **kept,
        )
        private += reads_of([step[rank].tolist() for step in steps if rank < len(step)], planner)
    for is_shared, reads in ((True, shared), (False, private)):
        found = simulate_ranks(**case, ranks=ranks, shared=is_shared, epoch=epoch, num_rows=ROWS)
        assert found.misses == sum(map(len, reads))
        assert found.pages == pages_of(reads, row_bytes)
        assert found.bytes_read == found.pages * 4096
        assert found.batches == len(trace)
        served = found.hits + found.victim_hits + found.misses + found.copies
        assert served == found.rows == sum(map(len, trace))
        if ranks == 1:
            assert found == simulate(**case, num_rows=ROWS)


_SIZES = ("capacity", "victim_cells")

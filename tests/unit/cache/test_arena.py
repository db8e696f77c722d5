"""CacheArena: how tables share a budget, and what it says when they cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gnnsys
from gnnsys.cache.arena import CacheArena, Table, share_bytes
from gnnsys.errors import ArgumentError, DTypeError


def make_table(name: str, rows: int, row_bytes: int, scores: Any = None) -> Table:
    values = None if scores is None else np.asarray(scores, np.uint16)
    return Table(name, rows, row_bytes, values)


def test_tables_without_scores_share_in_proportion_to_their_bytes() -> None:
    arena = CacheArena(1000)
    tables = [make_table("a", 100, 30), make_table("b", 100, 10), make_table("c", 1, 0)]
    for table in tables:
        arena.add(table)
    assert [arena.rows(table) for table in tables] == [25, 25, 1]


@settings(max_examples=60, deadline=None)
@given(
    share=st.sampled_from([0.01, 0.1, 0.34, 0.5, 1.0]),
    tables=st.lists(
        st.tuples(st.integers(1, 300), st.integers(1, 60)), min_size=1, max_size=4, unique=True
    ),
)
def test_a_share_that_has_a_row_of_each_table_gives_each_one(
    share: float, tables: list[tuple[int, int]]
) -> None:
    budget = share_bytes(share, tables)
    if any(int(share * rows) == 0 for rows, _ in tables):
        return
    arena = CacheArena(budget)
    members = [make_table(str(number), *size) for number, size in enumerate(tables)]
    for table in members:
        arena.add(table)
    given = [arena.rows(table) for table in members]
    assert min(given) >= 1
    total = sum(rows * row_bytes for rows, row_bytes in tables)
    parts = [budget * rows // total for rows, _ in tables]
    if min(parts) >= 1:
        assert given == parts
    assert sum(rows * table.row_bytes for rows, table in zip(given, members, strict=True)) <= budget


def test_a_promised_share_comes_first_and_the_rest_is_divided() -> None:
    arena = CacheArena("1KB")
    promised, rest = make_table("a", 1000, 4), make_table("b", 1000, 8)
    arena.add(promised, 0.25)
    arena.add(rest)
    assert (arena.rows(promised), arena.rows(rest)) == (64, 96)


@settings(max_examples=60, deadline=None)
@given(
    budget=st.integers(1, 3000),
    tables=st.lists(
        st.tuples(st.integers(1, 40), st.lists(st.integers(0, 65535), min_size=1, max_size=30)),
        min_size=1,
        max_size=4,
    ),
)
def test_rows_compete_by_score_per_byte(budget: int, tables: list[tuple[int, list[int]]]) -> None:
    arena = CacheArena(budget)
    members = [
        make_table(str(number), len(scores), row_bytes, scores)
        for number, (row_bytes, scores) in enumerate(tables)
    ]
    for table in members:
        arena.add(table)
    if budget < sum(row_bytes for row_bytes, _ in tables):
        with pytest.raises(ArgumentError, match="too small"):
            arena.rows(members[0])
        return
    given = [arena.rows(table) for table in members]
    used = sum(rows * row_bytes for rows, (row_bytes, _) in zip(given, tables, strict=True))
    assert used <= budget
    # Each table gets its best rows, and none that is left out is worth more than one that is in.
    inside, outside = [], []
    for rows, (row_bytes, scores) in zip(given, tables, strict=True):
        values = [(score + 1) / row_bytes for score in sorted(scores, reverse=True)]
        inside += values[:rows]
        outside += [(value, row_bytes) for value in values[rows:]]
    least = min(inside, default=0.0)
    for value, row_bytes in outside:
        assert value <= least or used + row_bytes > budget


def test_a_late_table_and_too_many_are_told_so(tmp_path: Path) -> None:
    arena = CacheArena(400)
    first, gone = make_table("first", 100, 4), make_table("gone", 100, 4)
    for table in (first, gone):
        arena.add(table)
    del gone, table
    assert arena.rows(first) == 100
    with pytest.raises(ArgumentError, match="late comes late to an arena of 400 bytes"):
        arena.add(make_table("late", 100, 4))
    small = CacheArena(100)
    tables = [make_table(f"t{number}", 100, 40) for number in range(3)]
    for table in tables:
        small.add(table)
    with pytest.raises(ArgumentError, match=r"too small for its 3 tables.*t0, t1, t2"):
        small.rows(tables[0])
    full = CacheArena(100)
    kept = make_table("a", 10, 4)
    full.add(kept, 0.75)
    with pytest.raises(ArgumentError, match=r"promised 0\.5"):
        full.add(make_table("b", 10, 4), 0.5)


@pytest.mark.parametrize(
    ("budget", "kind"),
    [(0, ArgumentError), (-5, ArgumentError), ("x", ArgumentError), (0.5, DTypeError)],
)
def test_a_budget_that_is_no_number_of_bytes_is_refused(budget: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="budget"):
        gnnsys.CacheArena(budget)
    with pytest.raises(ArgumentError, match=r"fraction: 1\.5"):
        gnnsys.CacheArena(10).share(1.5)


def test_files_share_an_arena_and_serve_their_rows(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    tables = [torch.randn(rows, 4, generator=draw) for rows in (200, 100)]
    arena = gnnsys.CacheArena(1600)
    shares = [arena.share(0.5), arena]
    unified = []
    for number, (rows, share) in enumerate(zip(tables, shares, strict=True)):
        np.save(tmp_path / f"{number}.npy", rows.numpy())
        unified.append(gnnsys.unified(tmp_path / f"{number}.npy", cache=share, device="cpu"))
    for rows, x in zip(tables, unified, strict=True):
        assert torch.equal(x[::3], rows[::3])
    assert [x.store.capacity for x in unified] == [50, 50]

"""The C++ executor of plans, against the four steps of the contract done row by row in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gnnsys.system.extension import core

Array = NDArray[Any]
TABLES = ("hits", "victim_in", "fills", "copies", "victim_out")


def table(rows: list[tuple[int, ...]], columns: int) -> Array:
    return np.array(rows, np.int32).reshape(len(rows), columns)


def draw_plan(draw: np.random.Generator, rows: int, slots: int, cells: int) -> dict[str, Array]:
    """A plan of ``rows`` positions as a planner could make one; staging row k may be any row."""
    positions = draw.permutation(rows).tolist()
    source = draw.integers(0, 4, rows)
    source[:1] = 2  # the first one is no copy
    read_cells = iter(draw.permutation(cells).tolist())
    entered = iter(draw.permutation(slots).tolist())
    slot = lambda: next(entered, -1) if draw.random() < 0.7 else -1  # noqa: E731
    hits, victim_in, fills, copies, staged = [], [], [], [], 0
    for position, kind in zip(positions, source.tolist(), strict=True):
        cell = next(read_cells, None) if kind == 1 else None
        if kind == 0 and slots:
            hits.append((position, int(draw.integers(slots))))
        elif cell is not None:
            victim_in.append((position, cell, slot()))
        elif kind == 3:
            copies.append((position, positions[0]))
        else:
            fills.append((position, staged, slot()))
            staged += 1
    victims = [*range(slots), *(-1 - k for k in range(staged))]
    free = list(read_cells)
    chosen = draw.permutation(victims)[: len(free)].tolist() if victims else []
    victim_out = list(zip(chosen, free, strict=False))
    return {
        "hits": table(hits, 2),
        "victim_in": table(victim_in, 3),
        "fills": table(fills, 3),
        "copies": table(copies, 2),
        "victim_out": table(victim_out, 2),
    }


def follow(plan: dict[str, Array], slots: Array, cells: Array, staging: Array, rows: int) -> Array:
    """The contract in its order; returns what the batch gets."""
    out = np.zeros((rows, slots.shape[1]), np.uint8)
    for position, slot in plan["hits"]:
        out[position] = slots[slot]
    for position, cell, _ in plan["victim_in"]:
        out[position] = cells[cell]
    for position, row, _ in plan["fills"]:
        out[position] = staging[row]
    for source, cell in plan["victim_out"]:
        cells[cell] = slots[source] if source >= 0 else staging[-1 - source]
    for _, row, slot in plan["fills"]:
        if slot >= 0:
            slots[slot] = staging[row]
    for _, cell, slot in plan["victim_in"]:
        if slot >= 0:
            slots[slot] = cells[cell]
    for position, first in plan["copies"]:
        out[position] = out[first]
    return out


def execute(
    executor: Any, plan: dict[str, Array], slots: Array, cells: Array, staging: Array, rows: int
) -> Array:
    # Staged rows lie in any order, apart from one another.
    width = staging.shape[1]
    order = np.random.default_rng(len(staging)).permutation(len(staging))
    memory = np.zeros((len(staging) + 1, width + 5), np.uint8)
    memory[order, 3 : 3 + width] = staging
    offsets = order * (width + 5) + 3
    out = np.zeros((rows, width), np.uint8)
    executor.execute(
        rows, *(plan[name] for name in TABLES), slots.ctypes.data, len(slots), cells.ctypes.data,
        len(cells), memory.ctypes.data, offsets.astype(np.int64), width, out.ctypes.data,
    )  # fmt: skip
    return out


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    rows=st.integers(1, 60),
    slots=st.integers(0, 40),
    cells=st.integers(0, 20),
    width=st.sampled_from([1, 4, 7, 32, 64, 100, 1024]),
    isa=st.sampled_from(core.isas()),
)
def test_executing_a_plan_equals_its_steps_one_by_one(
    seed: int, rows: int, slots: int, cells: int, width: int, isa: str
) -> None:
    draw = np.random.default_rng(seed)
    plan = draw_plan(draw, rows, slots, cells)
    area = lambda n: draw.integers(0, 256, (n, width), np.uint8)  # noqa: E731
    in_slots, in_cells, staging = area(slots), area(cells), area(len(plan["fills"]))
    expected_slots, expected_cells = in_slots.copy(), in_cells.copy()
    expected = follow(plan, expected_slots, expected_cells, staging, rows)
    found = execute(core.PlanExecutor(2, isa), plan, in_slots, in_cells, staging, rows)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(in_slots, expected_slots)
    np.testing.assert_array_equal(in_cells, expected_cells)


def test_a_large_plan_on_several_threads_equals_its_steps() -> None:
    draw = np.random.default_rng(3)
    plan = draw_plan(draw, 30_000, 20_000, 5_000)
    area = lambda n: draw.integers(0, 256, (n, 256), np.uint8)  # noqa: E731
    slots, cells, staging = area(20_000), area(5_000), area(len(plan["fills"]))
    expected_slots, expected_cells = slots.copy(), cells.copy()
    expected = follow(plan, expected_slots, expected_cells, staging, 30_000)
    executor = core.PlanExecutor(4)
    np.testing.assert_array_equal(execute(executor, plan, slots, cells, staging, 30_000), expected)
    np.testing.assert_array_equal(slots, expected_slots)
    np.testing.assert_array_equal(cells, expected_cells)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("hits", [(0, 4)]),
        ("hits", [(0, -1)]),
        ("hits", [(1, 0)]),
        ("hits", []),
        ("hits", [(0, 0), (0, 1)]),
        ("victim_in", [(0, 2, -1)]),
        ("victim_in", [(0, 0, 4)]),
        ("fills", [(0, 1, -1)]),
        ("fills", [(0, 0, 4)]),
        ("copies", [(0, 0)]),
        ("copies", [(0, 1)]),
    ],
)
def test_a_plan_that_leaves_the_memory_is_refused_before_a_row_moves(
    name: str, rows: list[tuple[int, ...]]
) -> None:
    columns = {"victim_in": 3, "fills": 3}
    plan = {key: table([], columns.get(key, 2)) for key in TABLES}
    plan[name] = table(rows, columns.get(name, 2))
    slots, cells = np.ones((4, 8), np.uint8), np.full((2, 8), 2, np.uint8)
    with pytest.raises(ValueError, match="does not fit"):
        execute(core.PlanExecutor(1), plan, slots, cells, np.zeros((1, 8), np.uint8), 1)
    assert (slots == 1).all()
    assert (cells == 2).all()


@pytest.mark.parametrize("victims", [[(4, 0)], [(-2, 0)], [(0, 2)], [(0, -1)]])
def test_a_victim_from_or_to_a_place_that_is_not_there_is_refused(
    victims: list[tuple[int, int]],
) -> None:
    plan = {key: table([], 3 if key in ("victim_in", "fills") else 2) for key in TABLES}
    plan["fills"], plan["victim_out"] = table([(0, 0, -1)], 3), table(victims, 2)
    slots, cells = np.ones((4, 8), np.uint8), np.full((2, 8), 2, np.uint8)
    with pytest.raises(ValueError, match="does not fit"):
        execute(core.PlanExecutor(1), plan, slots, cells, np.zeros((1, 8), np.uint8), 1)
    assert (cells == 2).all()

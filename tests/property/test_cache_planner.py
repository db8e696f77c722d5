"""Plans: C++ and the reference make the same ones, and carrying them out serves the right rows."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gnnsys.cache.plan import POLICIES, BatchPlan
from gnnsys.cache.planner import Planner

sys.path.insert(0, str(Path(__file__).parent))
from planner_reference import ReferencePlanner

PROPERTY = settings(deadline=None, print_blob=True, max_examples=60)
Ids = NDArray[Any]


@st.composite
def planner_arguments(draw: Any) -> dict[str, Any]:
    num_rows = draw(st.integers(1, 40))
    scores = draw(st.none() | st.lists(st.integers(0, 5), min_size=num_rows, max_size=num_rows))
    return {
        "num_rows": num_rows,
        "capacity": draw(st.integers(0, num_rows + 3)),
        "window": draw(st.integers(0, 20)),
        "scores": None if scores is None else np.array(scores, np.uint16),
        "victim_cells": draw(st.integers(0, 12)),
        "prefill": draw(st.booleans()),
    }


def random_batch(random: np.random.Generator, num_rows: int) -> Ids:
    """Skewed, as nodes are, with repetitions and empty batches."""
    skewed = random.random(random.integers(0, 25)) ** 2
    return (skewed * num_rows).astype(random.choice([np.int32, np.int64]))


def assert_same_plan(plan: BatchPlan, expected: BatchPlan) -> None:
    for field in fields(BatchPlan):
        value, wanted = getattr(plan, field.name), getattr(expected, field.name)
        if not isinstance(wanted, np.ndarray):
            assert value == wanted, field.name
            continue
        assert value.dtype == wanted.dtype, field.name
        assert value.shape == wanted.shape, field.name
        assert np.array_equal(value, wanted), (field.name, value.tolist(), wanted.tolist())


class Executor:
    """Carries plans out on arrays, and undoes what a planner takes back."""

    def __init__(self, planner: Planner | ReferencePlanner) -> None:
        self.table = np.random.default_rng(3).integers(0, 1 << 40, planner.num_rows)
        self.slots = np.full(planner.capacity, -1, np.int64)
        self.cells = np.full(planner.victim_cells, -1, np.int64)
        self.slots[: len(planner.prefilled)] = self.table[planner.prefilled]

    def execute(self, plan: BatchPlan, ids: Ids) -> None:
        """Serves a batch; every row must be that of its id."""
        assert plan.rows == len(ids)
        out = np.full(plan.rows, -1, np.int64)
        staging = self.table[plan.reads]
        assert (np.diff(plan.reads) > 0).all()
        parts = [plan.hits, plan.victim_in, plan.fills, plan.copies]
        for part in parts:
            assert (np.diff(part[:, 0]) > 0).all()
        positions = np.concatenate([part[:, 0] for part in parts])
        assert np.array_equal(np.sort(positions), np.arange(plan.rows))

        out[plan.hits[:, 0]] = self.slots[plan.hits[:, 1]]
        out[plan.victim_in[:, 0]] = self.cells[plan.victim_in[:, 1]]
        out[plan.fills[:, 0]] = staging[plan.fills[:, 1]]
        source, cell = plan.victim_out.T
        assert not np.intersect1d(cell, plan.victim_in[:, 1]).size
        self.cells[cell[source >= 0]] = self.slots[source[source >= 0]]
        self.cells[cell[source < 0]] = staging[-1 - source[source < 0]]
        for part, rows in [(plan.victim_in, self.cells), (plan.fills, staging)]:
            kept = part[part[:, 2] >= 0]
            self.slots[kept[:, 2]] = rows[kept[:, 1]]
        out[plan.copies[:, 0]] = out[plan.copies[:, 1]]
        assert np.array_equal(out, self.table[ids])


@pytest.mark.parametrize("policy", POLICIES)
@PROPERTY
@given(planner_arguments(), st.integers(0, 1 << 30))
def test_the_planners_make_the_same_plans_and_these_serve_every_row(
    policy: Any, arguments: dict[str, Any], seed: int
) -> None:
    planner = Planner(policy=policy, **arguments)
    reference = ReferencePlanner(policy=policy, **arguments)
    assert np.array_equal(planner.prefilled, reference.prefilled)
    executor = Executor(planner)
    random = np.random.default_rng(seed)
    batches: list[Ids] = []
    plans: list[BatchPlan] = []  # not executed yet
    everyone = np.arange(planner.num_rows)
    for step in random.choice(["announce", "plan", "execute", "retract"], 120, p=P):
        if step == "announce":
            batches.append(random_batch(random, planner.num_rows))
            assert planner.announce(batches[-1]) == reference.announce(batches[-1])
        elif step == "plan" and planner.planned < planner.announced:
            plans.append(planner.plan())
            assert_same_plan(plans[-1], reference.plan())
        elif step == "execute" and plans:
            plan = plans.pop(0)
            executor.execute(plan, batches[plan.batch])
            planner.commit(plan.batch)
            reference.commit(plan.batch)
            slots = planner.committed_slots(everyone)
            assert np.array_equal(executor.slots[slots[slots >= 0]], executor.table[slots >= 0])
        elif step == "retract":
            batch = int(random.integers(planner.committed, planner.announced + 1))
            planner.retract(batch)
            reference.retract(batch)
            del batches[batch:]
            plans = [plan for plan in plans if plan.batch < batch]
        counts = [(p.announced, p.planned, p.committed) for p in (planner, reference)]
        assert counts[0] == counts[1]
        assert np.array_equal(
            planner.committed_slots(everyone), reference.committed_slots(everyone)
        )


P = [0.38, 0.3, 0.28, 0.04]  # of announce, plan, execute and retract


def test_plans_of_large_batches_serve_every_row() -> None:
    random = np.random.default_rng(5)
    rows = 5 << 20  # whose ids have three digits in a radix sort
    scores = random.integers(0, 1 << 16, rows).astype(np.uint16)
    planner = Planner(rows, 9000, window=2, scores=scores, victim_cells=700)
    executor = Executor(planner)
    common = random.integers(0, rows, 6000)
    batches = [
        np.concatenate([random.integers(0, rows, 4000), random.choice(common, 4000)])
        for _ in range(6)
    ]
    for ids in batches:
        planner.announce(ids)
    for ids in batches:
        plan = planner.plan()
        assert len(plan.reads) > 4000
        executor.execute(plan, ids)
        planner.commit(plan.batch)

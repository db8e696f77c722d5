"""Plans equal the best of all choices; the model of the moves equals a clock that ticks."""

import random
from itertools import chain, combinations

import pytest

from gnnsys.errors import TooLargeError
from gnnsys.offload.planner import SavedStorage, StepPlan, StepProfile, plan_step, simulate


def _profile(draw: random.Random, count: int, sizes: tuple[int, int]) -> StepProfile:
    """All times whole seconds: a byte is read, or two are written, in one."""
    saved = tuple(
        SavedStorage(
            2 * draw.randint(*sizes), draw.randint(0, 9), draw.randint(0, 9), draw.randint(0, 2)
        )
        for _ in range(count)
    )
    return StepProfile(saved, draw.randint(0, 3), draw.randint(0, 9), draw.randint(0, 9), 2.0, 1.0)


def _choices(count: int) -> list[tuple[int, ...]]:
    return list(chain.from_iterable(combinations(range(count), k) for k in range(count + 1)))


def _best(profile: StepProfile, budget: int) -> StepPlan:
    plans = [simulate(profile, stored, budget) for stored in _choices(len(profile.saved))]
    return min(
        (plan for plan in plans if plan is not None), key=lambda plan: (plan.seconds, plan.written)
    )


def _ticks(profile: StepProfile, stored: tuple[int, ...], budget: int) -> tuple[int, int] | None:
    """(peak, seconds), second by second: what is in memory, on its way out and on its way in."""
    # Storages have the numbers 0 to n - 1; what is small, before each of them and at the end, the
    # numbers n to 2 n.
    n = len(profile.saved)
    sizes = [each.nbytes for each in profile.saved]
    sizes += [*(each.small for each in profile.saved), profile.small]
    todo = []
    for i, each in enumerate(profile.saved):
        todo += [("save", n + i, int(each.forward)), ("save", i, 0)]
    todo += [("save", 2 * n, 0), ("turn", 2 * n, int(profile.turn))]
    for i in reversed(range(n)):
        todo += [("need", i, 0), ("free", i, int(profile.saved[i].backward))]
    here: set[int] = set()
    out: list[list[int]] = []  # [index, seconds to go]
    back: list[list[int]] = []
    gone: list[int] = []
    peak, seconds, turned = 0, 0, False

    def live() -> int:
        return sum(sizes[i] for i in here | {i for i, _ in back})

    while todo:
        while out and out[0][1] == 0:
            i, _ = out.pop(0)
            here.remove(i)
            gone.append(i)
        while back and back[0][1] == 0:
            here.add(back.pop(0)[0])
        while turned and gone and not out and live() + sizes[gone[-1]] <= budget:
            back.append([gone[-1], sizes[gone.pop()]])
        what, i, wait = todo[0]
        peak = max(peak, live())
        if wait == 0:
            if what == "save" and live() + sizes[i] > budget and not out:
                return None
            if (what == "save" and live() + sizes[i] <= budget) or (what == "need" and i in here):
                todo.pop(0)
                here.add(i)
                if what == "save" and i in stored:
                    out.append([i, sizes[i] // 2])
                out = [each for each in out if what == "save" or each[0] != i]
                turned = turned or todo[0][0] == "turn"
                continue
            if what in ("turn", "free"):
                todo.pop(0)
                here -= {i, n + i}
                continue
        else:
            todo[0] = (what, i, wait - 1)
        seconds += 1
        for queue in (out, back):
            if queue:
                queue[0][1] -= 1
    return peak, seconds + int(profile.rest)


def test_model_of_the_moves_equals_a_clock_that_ticks() -> None:
    draw = random.Random(0)
    waited = fitted = 0
    for _ in range(300):
        profile = _profile(draw, draw.randint(1, 7), (1, 9))
        stored = draw.choice(_choices(len(profile.saved)))
        budget = draw.randint(profile.least, profile.plain)
        plan = simulate(profile, stored, budget)
        expected = _ticks(profile, stored, budget)
        assert (None if plan is None else (plan.peak, plan.seconds)) == expected
        if plan is not None:
            assert plan.seconds == profile.computing + plan.stall
            assert plan.peak <= budget
            assert plan.written == sum(profile.saved[i].nbytes for i in stored)
            fitted, waited = fitted + 1, waited + (plan.stall > 0)
    assert fitted > 100
    assert waited > 50


@pytest.mark.parametrize("sizes", [(7, 7), (1, 30)], ids=["equal", "unequal"])
def test_plan_equals_the_best_of_all_choices(sizes: tuple[int, int]) -> None:
    draw = random.Random(1)
    for _ in range(60):
        profile = _profile(draw, draw.randint(1, 8), sizes)
        budget = draw.randint(profile.least, profile.plain + 5)
        plan, best = plan_step(profile, budget), _best(profile, budget)
        assert (plan.seconds, plan.written) == (best.seconds, best.written)
        assert plan.peak <= budget


def test_no_budget_keeps_all() -> None:
    profile = _profile(random.Random(2), 5, (1, 9))
    plan = plan_step(profile, None)
    assert plan == StepPlan(frozenset(), 0, profile.plain, 0.0, profile.computing)
    assert plan_step(StepProfile(), 0) == StepPlan(frozenset(), 0, 0, 0.0, 0.0)


@pytest.mark.parametrize(("bandwidth", "seconds"), [(1000.0, 16), (1.0, 1 + 600 + 1 + 600 + 1)])
def test_moves_cost_nothing_or_as_long_as_they_take(bandwidth: float, seconds: float) -> None:
    saved = (SavedStorage(100, 1.0, 1.0),) * 8
    plan = plan_step(StepProfile(saved, 0, 0.0, 0.0, bandwidth, bandwidth), 200)
    assert plan == StepPlan(frozenset(range(6)), 600, 200, seconds - 16, seconds)


def test_the_least_budget_is_that_of_one_storage() -> None:
    profile = StepProfile((SavedStorage(3000, 1, 1, 1024), SavedStorage(4096, 1, 1)))
    plan = plan_step(profile, 5120)
    assert (plan.stored, plan.peak) == ({0}, 5120)
    with pytest.raises(
        TooLargeError,
        match=r"activations: backward needs 5 KiB in memory at once > budget of 4\.999 KiB; give a",
    ):
        plan_step(profile, 5119)


@pytest.mark.parametrize("sizes", [(7, 7), (1, 30)], ids=["equal", "unequal"])
def test_many_storages_write_little_more_than_must_leave(sizes: tuple[int, int]) -> None:
    profile = _profile(random.Random(3), 10_000, sizes)
    plan = plan_step(profile, profile.plain // 4)
    assert plan.peak <= profile.plain // 4
    assert plan.written - (profile.plain - profile.plain // 4) < 60

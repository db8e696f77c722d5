"""The budget of memory: what is left, what is released, and what is refused."""

from __future__ import annotations

import mmap
import os
import threading

import pytest
import torch

from gnnsys.errors import TooLargeError
from gnnsys.memory.alloc import pooled
from gnnsys.system.budget import (
    AHEAD,
    BATCHES,
    Budget,
    Entry,
    process_budget,
    resident_memory,
)
from gnnsys.system.extension import core

MIB = 1 << 20


class Owner:
    """Something that has memory."""


def test_a_name_counts_the_greater_of_what_is_planned_and_held() -> None:
    budget, owner = Budget(1000), Owner()
    budget.reserve("rows", 300)
    assert budget.left() == 700
    budget.hold("rows", 200, owner)
    assert budget.left() == 700
    assert budget.left("rows") == 800  # for whoever fills what was planned
    budget.hold("rows", 200, owner)
    assert budget.left() == 600
    assert budget.table() == [Entry("rows", 300, 400, False)]


def test_what_is_held_is_released_with_its_owner() -> None:
    budget, owners = Budget(1000), [Owner(), Owner()]
    for owner in owners:
        budget.hold("rows", 100, owner)
    del owner
    owners.pop()
    assert budget.left() == 900
    owners.pop()
    assert budget.left() == 1000


def test_ranks_share_the_pages_of_files_and_nothing_else() -> None:
    budget = Budget()
    with budget.run(1000, ranks=2):
        budget.reserve("rows", 300)
        budget.reserve("features", 200, mapped=True)
        assert budget.left() == (1000 - 200 - 2 * 300) // 2
        budget.reserve("rows", 401)
        with pytest.raises(
            TooLargeError, match=r"(?s)1002 bytes planned by 2 ranks > --memory 1000.*rows +802 "
        ):
            budget.check("give more")


def test_a_run_takes_its_plan_and_its_total_with_it() -> None:
    budget, owner = Budget(), Owner()
    budget.hold("labels", 5, owner)
    with budget.run(100):
        budget.reserve("rows", 60)
        assert budget.left() == 35
    assert (budget.total, budget.planned("rows")) == (None, 0)
    assert budget.table() == [Entry("labels", 0, 5, False)]


def test_the_pool_keeps_what_is_planned_for_what_lives_in_it() -> None:
    def leave(nbytes: int) -> int:
        rows = pooled((nbytes,), torch.uint8)
        del rows
        return core.runtime_bytes()["retained"] // MIB

    core.set_retention(0)  # nothing is there from before
    budget = process_budget()
    with budget.run(None):
        budget.reserve(BATCHES, 20 * MIB)
        budget.reserve(AHEAD, 4 * MIB)
        assert leave(40 * MIB) == 0
        assert leave(24 * MIB) == 24
        budget.reserve(BATCHES, 6 * MIB)
        assert core.runtime_bytes()["retained"] == 0
        budget.reserve("labels", 100 * MIB)
        assert leave(24 * MIB) == 0
        Budget().reserve(BATCHES, 100 * MIB)  # of another budget
        assert leave(24 * MIB) == 0
    assert leave(40 * MIB) == 40
    core.set_retention(0)
    core.set_retention()


def test_without_a_total_plans_come_off_what_the_machine_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gnnsys.system.budget.available_memory", lambda: 1000)
    budget, owner = Budget(), Owner()
    budget.reserve("rows", 400)
    assert budget.left() == 600
    budget.hold("rows", 400, owner)  # gone from what is available
    assert budget.left() == 1000
    budget.reserve("libraries", 500, there=450)  # so are most of these
    assert budget.left() == 950
    budget.reserve("libraries, mapped", 300, there=300, mapped=True)  # available, but in use
    assert budget.left() == 650
    assert budget.left(mapped=False) == 950  # the kernel could take them back
    assert Budget(5000).left() == 1000
    budget.total = 1300  # counts them always
    assert budget.left(mapped=False) == 100


def test_what_does_not_fit_is_refused_with_the_table() -> None:
    budget = Budget(10 * MIB)
    budget.reserve("cache rows", 8 * MIB)
    budget.reserve("topology", 2 * MIB, mapped=True)
    budget.check("")
    budget.reserve("labels", MIB)
    with pytest.raises(TooLargeError, match="11 MiB planned > --memory 10 MiB; pay") as raised:
        budget.check("pay")
    lines = str(raised.value).splitlines()[1:]
    assert [line.split() for line in lines] == [
        ["cache", "rows", "8", "MiB"],
        ["topology", "2", "MiB"],
        ["labels", "1", "MiB"],
        ["in", "all", "11", "MiB"],
    ]


def test_the_machine_refuses_only_what_the_kernel_cannot_take_back() -> None:
    budget = Budget()
    budget.reserve("topology", 1 << 60, mapped=True)
    budget.check("")
    assert budget.left() == 0 < budget.left(mapped=False)
    budget.reserve("rows", 1 << 60)
    with pytest.raises(TooLargeError, match="rows"):
        budget.check("")


def test_threads_lose_nothing() -> None:
    budget, owner = Budget(1 << 40), Owner()

    def work() -> None:
        for _ in range(500):
            mine = Owner()
            budget.hold("rows", 3, mine)
            budget.hold("rows", 1, owner)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert budget.table() == [Entry("rows", 0, 2000, False)]


def test_a_forked_child_counts_for_itself() -> None:
    budget, owner = process_budget(), Owner()
    budget.hold("rows", 7, owner)
    child = os.fork()
    if child == 0:
        empty = budget.table() == []
        del owner  # inherited, not entered here
        os._exit(0 if empty and budget.table() == [] else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert Entry("rows", 0, 7, False) in budget.table()


def test_resident_memory_grows_by_what_is_touched() -> None:
    before = resident_memory()
    # Pages of their own, which no allocator had before.
    area = mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for place in range(0, len(area), mmap.PAGESIZE):
        area[place] = 1
    after = resident_memory()
    assert after.anonymous - before.anonymous >= 63 * MIB
    assert after.peak >= after.now >= len(area)

"""A number of threads is checked and made out by one rule."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gnnsys.errors import ArgumentError
from gnnsys.system.threads import num_threads


def test_zero_stands_for_the_cores_that_this_process_may_use() -> None:
    assert num_threads(0) == len(os.sched_getaffinity(0))
    first = min(os.sched_getaffinity(0))
    script = "from gnnsys.system.threads import num_threads; print(num_threads(0))"
    pinned = f"import os; os.sched_setaffinity(0, [{first}]); {script}"
    ran = subprocess.run([sys.executable, "-c", pinned], capture_output=True, text=True, check=True)
    assert ran.stdout == "1\n"


def test_ranks_of_a_machine_divide_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(os.sched_getaffinity(0))
    for ranks in (1, 2, cores + 1):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
        assert num_threads(0) == max(1, cores // ranks)
        assert num_threads(3) == 3


def test_a_number_is_kept_and_one_below_0_is_refused() -> None:
    assert num_threads(7) == 7
    with pytest.raises(ArgumentError, match="threads: -1 < 0; give 0 for all cores or a number"):
        num_threads(-1)

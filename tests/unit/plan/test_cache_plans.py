"""Plans of caches: what simulating them takes is known beforehand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gnnsys.cache import TraceWriter, read_trace
from gnnsys.errors import TooLargeError
from gnnsys.plan.caches import Workload, plan_budgets, run_cases
from gnnsys.system.budget import process_budget

ROWS, BATCHES, IDS = 1 << 20, 64, 1 << 15


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "batches.trace"
    draw = np.random.default_rng(0)
    with TraceWriter(path, ROWS) as trace:
        for _ in range(BATCHES):
            trace.add(draw.choice(ROWS, IDS, replace=False))
    return path


def workload_of(path: Path) -> Workload:
    return Workload(
        table="node",
        trace=read_trace(path),
        rows=ROWS,
        columns=128,
        dtype="float32",
        row_bytes=512,
        offset=128,
        importance=None,
        window=4,
        policy="lookahead",
    )


def test_planning_that_does_not_fit_is_refused_with_what_it_takes(recorded: Path) -> None:
    workload = workload_of(recorded)
    (budget,) = plan_budgets([workload], ["10%"])
    with process_budget().run(64 << 20), pytest.raises(TooLargeError) as found:
        run_cases([workload], budget.cases, threads=4)
    assert f"planning {BATCHES * IDS} ids of {ROWS} rows takes " in str(found.value)
    assert str(found.value).endswith("are left; plan fewer with --batches")


def test_planning_takes_what_was_said_of_it(
    recorded: Path, tmp_path: Path, run_forked: Callable[..., Any]
) -> None:
    script = f"""
import re, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_cache_plans import *

def held(name):
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status[name].split()[0]) * 1024

workload = workload_of(Path({str(recorded)!r}))
(budget,) = plan_budgets([workload], ["10%"])
case, = (case for case in budget.cases if case.policy == "belady")
with process_budget().run(1):
    try:
        run_cases([workload], [case], threads=1)
    except TooLargeError as error:
        said = int(re.search(r"takes (\\d+) bytes", str(error))[1])
before = held("VmRSS")
run_cases([workload], [case], threads=1)
print(said, held("VmHWM") - before)
"""
    told = run_forked(script, tmp_path)
    assert told.returncode == 0, told.stderr
    said, taken = map(int, told.stdout.split())
    assert said / 2 < taken < said * 1.05

"""A cache of several budgets, simulated over the same batches.

Owns what ``gnnsys plan`` computes: which caches are simulated and what comes out, as data. Knows
nothing of how that is printed or drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gnnsys.cache.plan import Policy
from gnnsys.cache.shared.simulator import simulate_ranks
from gnnsys.cache.simulator import SimulationResult, simulate
from gnnsys.cache.trace import Trace
from gnnsys.choices import Scale
from gnnsys.dataset.format import Encoding
from gnnsys.errors import ArgumentError, TooLargeError
from gnnsys.system.budget import process_budget
from gnnsys.system.sizes import parse_bytes_or_share

__all__ = ["CacheBudget", "Case", "Workload", "count_touched", "plan_budgets", "run_cases"]

_Simulated = Policy | Literal["belady"]
_OF_RANKS = ("shared", "private")

_MOST_IDS = 1 << 29
_OF_A_ROW, _OF_AN_ID = 8, 16 * 2 + 8
"""Bytes of a planner."""
_PRECISIONS: dict[str, Scale | None] = {
    "float32": None, "float16": None, "int8": "row", "int4": "row",
}  # fmt: skip
"""That features may be stored in, and whether rows have scales then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Batches, and the table of features that they read."""

    trace: Trace
    rows: int
    columns: int
    """Elements of a row."""
    dtype: str
    """That features are stored in, by numpy's name or bfloat16."""
    row_bytes: int
    offset: int
    """Where rows begin in their file."""
    importance: NDArray[np.uint16] | None
    window: int
    policy: Policy
    ranks: int | None = None
    """That divide the batches, where their caches are planned, too."""
    epoch: int | None = None
    """Batches of an epoch, as far as that matters to ranks; None for all."""

    @property
    def bytes(self) -> int:
        """Of all rows."""
        return self.rows * self.row_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One cache that is simulated."""

    role: str
    """``planned``: what the user asks for; ``static`` and ``belady``: what bounds it from both
    sides; ``one cache``: the victim buffer's memory as cache; ``shared`` and ``private``: one cache
    of all ranks, and as many parts of it as there are ranks; or a precision of features."""
    policy: _Simulated
    """A policy, or belady, which knows all batches: the bound that no policy can pass."""
    dtype: str
    row_bytes: int
    capacity: int
    """Rows."""
    victim_cells: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheBudget:
    """Memory for a cache, and what is simulated for it."""

    text: str
    """As the user wrote it."""
    bytes: int
    cases: tuple[Case, ...]


def plan_budgets(
    workload: Workload, texts: Sequence[str], victim_bytes: int = 0
) -> list[CacheBudget]:
    """The caches worth comparing for each budget.

    Args:
        workload: what they serve.
        texts: bytes, such as 2GB, or shares of the features, such as 10%.
        victim_bytes: of a victim buffer beside each; ``static`` and ``belady`` get them as cache.

    Raises:
        ArgumentError: neither bytes nor a share, more than 100 %, or less than a row.
    """
    budgets = []
    for text in texts:
        size = _budget_bytes(text, workload)
        planned = _case(workload, "planned", size, victim_bytes)
        cases = [
            planned,
            _case(workload, "static", size + victim_bytes, policy="static"),
            _case(workload, "belady", size + victim_bytes, policy="belady"),
        ]
        if planned.victim_cells:
            cases.append(_case(workload, "one cache", size + victim_bytes))
        if workload.ranks is not None:
            cases += [_case(workload, role, size, victim_bytes) for role in _OF_RANKS]
        if workload.dtype in (*_PRECISIONS, "bfloat16", "float64"):
            others = [dtype for dtype in _PRECISIONS if dtype != workload.dtype]
            cases += [_case(workload, dtype, size, victim_bytes, dtype=dtype) for dtype in others]
        budgets.append(CacheBudget(text=text.strip(), bytes=size, cases=tuple(cases)))
    return budgets


def _budget_bytes(text: str, workload: Workload) -> int:
    size = parse_bytes_or_share(text, "--budget")
    if isinstance(size, Fraction):
        size = int(size * workload.rows) * workload.row_bytes
    if size < workload.row_bytes:
        raise ArgumentError(
            f"--budget {text}: {size} bytes, less than a row of {workload.row_bytes}; give more"
        )
    return size


def _case(
    workload: Workload,
    role: str,
    cache_bytes: int,
    victim_bytes: int = 0,
    *,
    policy: _Simulated | None = None,
    dtype: str | None = None,
) -> Case:
    row_bytes = workload.row_bytes
    if dtype is not None:
        shape = workload.rows, workload.columns
        row_bytes = Encoding.of(dtype, shape, _PRECISIONS[dtype]).row_stride
    return Case(
        role=role,
        policy=policy or workload.policy,
        dtype=dtype or workload.dtype,
        row_bytes=row_bytes,
        capacity=min(workload.rows, cache_bytes // row_bytes),
        victim_cells=min(workload.rows, victim_bytes // row_bytes),
    )


def run_cases(
    workload: Workload,
    cases: Sequence[Case],
    threads: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[SimulationResult]:
    """Simulates caches, several at a time.

    Args:
        workload: what they serve.
        cases: the caches.
        threads: so many at once, or fewer where their planners would not fit in memory.
        progress: is told how many are done.

    Raises:
        TooLargeError: not even one planner fits, or a trace holds more ids than one takes.
    """
    ids = workload.trace.num_ids
    if ids >= _MOST_IDS:
        raise TooLargeError(
            f"batches: {ids} ids in all, expected fewer than {_MOST_IDS}, which the bound by "
            "belady looks ahead; plan fewer with --batches"
        )
    # The bound knows all batches: a record of each id, in a ring that doubles, and the id itself.
    needed = _OF_A_ROW * workload.rows + _OF_AN_ID * ids
    left = process_budget().left()
    if needed > left:
        raise TooLargeError(
            f"batches: planning {ids} ids of {workload.rows} rows takes {needed} bytes, "
            f"{left} are left; plan fewer with --batches"
        )
    threads = max(1, min(threads, left // max(1, needed)))

    def run(case: Case) -> SimulationResult:
        cache: Any = workload.trace, case.policy, case.capacity, workload.window
        table: dict[str, Any] = {
            "num_rows": workload.rows,
            "scores": workload.importance,
            "victim_cells": case.victim_cells,
            "row_bytes": case.row_bytes,
            "offset": workload.offset,
        }
        if case.role not in _OF_RANKS:
            return simulate(*cache, **table)
        assert workload.ranks is not None
        return simulate_ranks(
            *cache,
            **table,
            ranks=workload.ranks,
            shared=case.role == "shared",
            epoch=workload.epoch,
        )

    with ThreadPoolExecutor(threads) as pool:
        running = [pool.submit(run, case) for case in cases]
        for done, _ in enumerate(as_completed(running), 1):
            progress(done, len(cases))
        return [each.result() for each in running]


def count_touched(trace: Trace) -> int:
    """Rows that a trace asks for at least once."""
    touched = np.zeros(trace.num_rows, bool)
    for ids in trace:
        touched[ids] = True
    return int(touched.sum())

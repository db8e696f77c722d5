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

from gnnsys.cache.arena import CacheArena, Table, check_row_of_each, row_of_each, share_bytes
from gnnsys.cache.plan import Policy
from gnnsys.cache.shared.simulator import simulate_ranks
from gnnsys.cache.simulator import SimulationResult, simulate
from gnnsys.cache.trace import Trace
from gnnsys.choices import Scale
from gnnsys.dataset.format import Encoding
from gnnsys.errors import TooLargeError
from gnnsys.system.budget import process_budget
from gnnsys.system.sizes import parse_bytes_or_share

__all__ = [
    "PRECISIONS",
    "CacheBudget",
    "Case",
    "Workload",
    "count_touched",
    "plan_budgets",
    "run_cases",
]

_Simulated = Policy | Literal["belady"]
_OF_RANKS = ("shared", "private")

_MOST_IDS = 1 << 29
_OF_A_ROW, _OF_AN_ID = 8, 16 * 2 + 8
"""Bytes of a planner."""
PRECISIONS: dict[str, Scale | None] = {
    "float32": None, "float16": None, "int8": "row", "int4": "row",
}  # fmt: skip
"""That features may be stored in, and whether rows have scales then."""
_CONVERTED = (*PRECISIONS, "bfloat16", "float64")
"""Element types that can be stored in another precision."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Batches, and a table of features that they read."""

    table: str
    """The node type that it is of."""

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
    """One cache that is simulated: of a table, which has a part of the budget where others share
    it."""

    table: str
    """Node type."""
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
    """Role by role, of each those of all tables."""


def plan_budgets(
    workloads: Sequence[Workload],
    texts: Sequence[str],
    victim_bytes: int = 0,
    *,
    skips_small: bool = False,
) -> list[CacheBudget]:
    """The caches worth comparing for each budget.

    Several tables divide it as in training: it goes to the rows of the greatest importance for
    their bytes (``gnnsys.CacheArena``), whatever the policy.

    Args:
        workloads: what they serve, of each table; one alone may have ranks.
        texts: bytes, such as 2GB, or shares of the features, such as 10%.
        victim_bytes: of a victim buffer beside each; ``static`` and ``belady`` get them as cache.
        skips_small: leaves out those of less than a row of each table, unless all are.

    Raises:
        ArgumentError: neither bytes nor a share, more than 100 %, or less than a row of each table.
    """
    ranks = workloads[0].ranks
    others = [
        dtype
        for dtype in PRECISIONS
        if any(each.dtype in _CONVERTED and each.dtype != dtype for each in workloads)
    ]
    tables = [(each.rows, each.row_bytes) for each in workloads]
    sizes = {text: _budget_bytes(text, tables) for text in texts}
    if skips_small:
        roomy = [text for text in texts if sizes[text] >= row_of_each(tables)]
        texts = roomy or texts[-1:]
    budgets = []
    for text in texts:
        size = sizes[text]
        check_row_of_each(size, tables, f"--budget {text}")
        planned = _cases(workloads, "planned", size, victim_bytes)
        cases = [
            *planned,
            *_cases(workloads, "static", size + victim_bytes, policy="static"),
            *_cases(workloads, "belady", size + victim_bytes, policy="belady"),
        ]
        if planned[0].victim_cells:
            cases += _cases(workloads, "one cache", size + victim_bytes)
        for role in _OF_RANKS if ranks is not None else ():
            cases += _cases(workloads, role, size, victim_bytes)
        for dtype in others:
            cases += _cases(workloads, dtype, size, victim_bytes, dtype=dtype)
        budgets.append(CacheBudget(text=text.strip(), bytes=size, cases=tuple(cases)))
    return budgets


def _budget_bytes(text: str, tables: Sequence[tuple[int, int]]) -> int:
    size = parse_bytes_or_share(text, "--budget")
    return share_bytes(size, tables) if isinstance(size, Fraction) else size


def _cases(
    workloads: Sequence[Workload],
    role: str,
    cache_bytes: int,
    victim_bytes: int = 0,
    *,
    policy: _Simulated | None = None,
    dtype: str | None = None,
) -> list[Case]:
    """Those of a role, of each table."""
    stored = [_stored_as(each, dtype) for each in workloads]
    row_bytes = [size for _, size in stored]
    rows = _divide(cache_bytes, workloads, row_bytes)
    return [
        Case(
            table=each.table,
            role=role,
            policy=policy or each.policy,
            dtype=name,
            row_bytes=size,
            capacity=capacity,
            victim_cells=min(each.rows, victim_bytes // max(1, size)),
        )
        for each, (name, size), capacity in zip(workloads, stored, rows, strict=True)
    ]


def _stored_as(workload: Workload, dtype: str | None) -> tuple[str, int]:
    """The element type and bytes of a row of a table whose floats are stored in another one."""
    if dtype in (None, workload.dtype) or workload.dtype not in _CONVERTED:
        return workload.dtype, workload.row_bytes
    shape = workload.rows, workload.columns
    return dtype, Encoding.of(dtype, shape, PRECISIONS[dtype]).row_stride


def _divide(nbytes: int, workloads: Sequence[Workload], row_bytes: Sequence[int]) -> list[int]:
    """Rows of each table that a budget is for."""
    if len(workloads) == 1:
        return [min(workloads[0].rows, nbytes // max(1, row_bytes[0]))]
    if nbytes < row_of_each(zip([each.rows for each in workloads], row_bytes, strict=True)):
        return [0] * len(workloads)  # stored in more bytes than today
    arena = CacheArena(nbytes)
    tables = [
        Table(each.table, each.rows, size, each.importance)
        for each, size in zip(workloads, row_bytes, strict=True)
    ]
    for table in tables:
        arena.add(table)
    return [arena.rows(table) for table in tables]


def run_cases(
    workloads: Sequence[Workload],
    cases: Sequence[Case],
    threads: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[SimulationResult]:
    """Simulates caches, several at a time.

    Args:
        workloads: what they serve, of each table.
        cases: the caches.
        threads: so many at once, or fewer where their planners would not fit in memory.
        progress: is told how many are done.

    Raises:
        TooLargeError: not even one planner fits, or a trace holds more ids than one takes.
    """
    needed = max(map(_planner_bytes, workloads))
    left = process_budget().left()
    threads = max(1, min(threads, left // max(1, needed)))
    by_table = {each.table: each for each in workloads}

    def run(case: Case) -> SimulationResult:
        workload = by_table[case.table]
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


def _planner_bytes(workload: Workload) -> int:
    """Of the planner that takes most, which must fit."""
    ids = workload.trace.num_ids
    if ids >= _MOST_IDS:
        raise TooLargeError(
            f"batches: {ids} ids in all, expected fewer than {_MOST_IDS}, which the bound by "
            "belady looks ahead; plan fewer with --batches"
        )
    # The bound knows all batches: a record of each id, in a ring that doubles, and the id itself.
    needed, left = _OF_A_ROW * workload.rows + _OF_AN_ID * ids, process_budget().left()
    if needed > left:
        raise TooLargeError(
            f"batches: planning {ids} ids of {workload.rows} rows takes {needed} bytes, "
            f"{left} are left; plan fewer with --batches"
        )
    return needed


def count_touched(trace: Trace) -> int:
    """Rows that a trace asks for at least once."""
    touched = np.zeros(trace.num_rows, bool)
    for ids in trace:
        touched[ids] = True
    return int(touched.sum())

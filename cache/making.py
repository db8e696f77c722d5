"""What makes the engine of a cache: its memory is looked at, its parts are put together.

Owns ``make_engine`` and ``Once``, which has one made in the process that first asks for it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gnnsys.cache.engine import Engine
from gnnsys.cache.executor import CpuExecutor, Executor
from gnnsys.cache.kernel_executor import KernelExecutor
from gnnsys.cache.planner import Planner
from gnnsys.cache.resident import ResidentRows
from gnnsys.cache.shared.engine import SharedEngine
from gnnsys.cache.shared.setup import open_shared_cache, rounds_of
from gnnsys.cache.trace import TraceWriter
from gnnsys.choices import Policy, Sharing
from gnnsys.counters import Counters
from gnnsys.errors import TooLargeError
from gnnsys.memory.mapped import MappedStore
from gnnsys.memory.store import Store
from gnnsys.ranks.meeting import Meeting
from gnnsys.system.budget import CACHE_ROWS, PLANNER, STAGING, process_budget
from gnnsys.system.gpu import kernel_device

__all__ = [
    "LEAST_STAGING",
    "AnyEngine",
    "Once",
    "check_memory",
    "make_engine",
    "make_planner_of",
    "staging_bytes",
]

AnyEngine = Engine | ResidentRows | SharedEngine

LEAST_STAGING, _MOST_STAGING = 32 << 20, 256 << 20
"""Bounds of the bytes for rows that are read ahead."""


def staging_bytes(free: int, ranks: int = 1) -> int:
    """Bytes for rows that are read ahead: an eighth of what is free, within bounds of which the
    upper one is that of all ranks of a machine.

    >>> staging_bytes(1 << 30) >> 20
    128
    """
    return max(LEAST_STAGING, min(_MOST_STAGING // ranks, free // 8))


def make_engine(
    source: Store,
    name: str,
    capacity_of: Callable[[], int],
    counters: Counters,
    trace: TraceWriter | None,
    *,
    prefill: bool,
    prefetch: int,
    threads: int,
    device: str,
    victim_buffer: int,
    sharing: Sharing | None,
    **planning: Any,
) -> AnyEngine:
    """See ``CachedStore``."""
    rows, capacity, cells = source.shape[0], capacity_of(), victim_buffer
    if sharing is not None:
        return _make_shared(
            source, name, capacity, cells, sharing, prefill=prefill, prefetch=prefetch,
            threads=threads, counters=counters, device=device, **planning,
        )  # fmt: skip
    gpu = kernel_device(device)
    in_host = capacity
    if gpu is not None and gpu.torch_device.type == "cuda":
        _check_device_memory(capacity, source.row_bytes, gpu.torch_device)
        in_host = 0
    free = check_memory(in_host, cells, source.row_bytes)
    record = trace.add if trace is not None else _ignore
    if capacity >= rows and prefill and gpu is None:
        return ResidentRows(source, name, threads=threads, counters=counters, record=record)

    def make_planner(first: bool) -> Planner:
        return make_planner_of(name, rows, capacity, cells, first and prefill, **planning)

    budget = process_budget()
    executor: Executor
    if gpu is not None:
        executor = KernelExecutor(capacity, cells, source.row_bytes, gpu, threads)
        source = source if source.resident is None else MappedStore(source, gpu)
    else:
        executor = CpuExecutor(capacity, cells, source.row_bytes, threads)
    budget.hold(CACHE_ROWS, (in_host + cells) * source.row_bytes, executor)
    return Engine(
        source,
        name,
        make_planner,
        executor,
        window=planning["window"],
        prefetch=prefetch,
        staging_bytes=budget.planned(STAGING) or staging_bytes(free),
        counters=counters,
        record=record,
    )


def make_planner_of(
    name: str, rows: int, capacity: int, cells: int, prefill: bool, **planning: Any
) -> Planner:
    """The planner of a cache for a table of so many rows; raises TooLargeError."""
    try:
        planner = Planner(rows, capacity, victim_cells=cells, prefill=prefill, **planning)
    except MemoryError as error:
        raise TooLargeError(
            f"cache: no memory for the planner, about {4 * rows} bytes for the {rows} rows of "
            f"{name}; give a smaller cache="
        ) from error
    process_budget().hold(PLANNER, planner.state_bytes, planner)
    return planner


def _make_shared(
    source: Store,
    name: str,
    capacity: int,
    cells: int,
    sharing: Sharing,
    *,
    prefill: bool,
    prefetch: int,
    threads: int,
    counters: Counters,
    device: str,
    policy: Policy,
    window: int,
    scores: NDArray[np.uint16] | None,
) -> SharedEngine:
    def make_planner(
        rows: int, slots: int, cells: int, scores: NDArray[np.uint16] | None
    ) -> Planner:
        ahead = rounds_of(window, meeting.world)
        return make_planner_of(
            name, rows, slots, cells, prefill, policy=policy, window=ahead, scores=scores
        )

    with Meeting("gnnsys.unified(…, shared=…)") as meeting:
        ranks = meeting.machines.count(meeting.machines[meeting.rank])  # of this machine
        share = ranks / meeting.world
        here = int(capacity * share), int(cells * share)
        check = partial(check_memory, row_bytes=source.row_bytes, ranks=ranks)
        free = check(*((0, 0) if device.startswith("cuda") else here))
        return open_shared_cache(
            meeting,
            source,
            name,
            make_planner,
            capacity=capacity,
            cells=cells,
            importance=scores,
            sharing=sharing,
            window=window,
            prefetch=prefetch,
            staging_bytes=process_budget().planned(STAGING) or staging_bytes(free, ranks),
            threads=threads,
            counters=counters,
            facts={"policy": policy, "prefill": prefill},
            device=device,
            check_host=partial(check, *here),
        )


def _check_device_memory(capacity: int, row_bytes: int, device: torch.device) -> None:
    left, whole = torch.cuda.mem_get_info(device)
    if capacity * row_bytes > left:
        raise TooLargeError(
            f"cache: {capacity} rows of {row_bytes} bytes take {capacity * row_bytes} bytes, and "
            f"{left} of {whole} are free on {device}; give at most cache={left // row_bytes}"
        )


def check_memory(
    capacity: int,
    cells: int,
    row_bytes: int,
    ranks: int = 1,
    *,
    beside: int = 0,
    name: str = CACHE_ROWS,
) -> int:
    """Bytes that are available to this process beside a cache; raises TooLargeError where it does
    not fit.

    One that a run has planned was judged with the whole plan, by ``Budget.check``.

    Args:
        capacity, cells: rows, of all ranks of this machine that share it.
        row_bytes: of a row.
        ranks: their number.
        beside: bytes that it needs besides.
        name: that it has in the budget.
    """
    budget, needed = process_budget(), (capacity + cells) * row_bytes + beside
    free = budget.left(name, mapped=False) * budget.ranks
    if needed > max(free, budget.planned(name) * budget.ranks):
        half = max(0, free - beside) // 2
        fits = f"at most cache={half // row_bytes} or a text such as cache='{half >> 20}MB'"
        raise TooLargeError(
            f"cache: {capacity} rows and a victim buffer of {cells} rows of {row_bytes} bytes take "
            f"{needed} bytes > {free}, the memory available here; give "
            f"{fits if half >> 20 else 'more memory, or no cache'}"
        )
    return max(0, free - needed) // ranks


class Once:
    """Makes a value when it is first asked for, in the process that asks."""

    def __init__(self, make: Callable[[], AnyEngine]) -> None:
        self._make = make
        self._value: AnyEngine | None = None
        self._process = 0
        self._lock = threading.Lock()

    def __call__(self) -> AnyEngine:
        if self._value is None:
            with self._lock:
                if self._value is None:
                    self._process = os.getpid()
                    self._value = self._make()
        return self._value

    @property
    def is_made(self) -> bool:
        return self._value is not None

    def is_foreign(self) -> bool:
        return self._value is not None and self._process != os.getpid()

    def close(self) -> None:
        value, self._value = self._value, None
        if value is not None and self._process == os.getpid():
            value.close()


def _ignore(ids: NDArray[Any]) -> None:
    pass

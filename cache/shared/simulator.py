"""What ranks would read of a trace's rows, with one cache together or with one each.

Owns ``simulate_ranks``: plans are made as the owners of a shared cache make them, and not carried
out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.cache.plan import Policy
from gnnsys.cache.planner import Planner
from gnnsys.cache.shared.setup import owners_of_rows, parts_of, rounds_of
from gnnsys.cache.simulator import PAGE_BYTES, SimulationResult, pages_of_rows, plans_of
from gnnsys.errors import ArgumentError
from gnnsys.ranks.owners import Owners

__all__ = ["simulate_ranks"]


def simulate_ranks(
    trace: Sequence[NDArray[Any]],
    policy: Policy,
    capacity: int,
    window: int = 16,
    *,
    ranks: int,
    shared: bool,
    num_rows: int,
    epoch: int | None = None,
    scores: NDArray[np.uint16] | None = None,
    prefill: bool = True,
    victim_cells: int = 0,
    row_bytes: int = PAGE_BYTES,
    offset: int = 0,
) -> SimulationResult:
    """Plans the batches of a trace for ranks and counts where their rows would come from.

    Step t of rank r is batch ``t * ranks + r`` of an epoch. With a shared cache the batches of a
    step are planned together, by the owner of each row, over ``ceil(window / ranks)`` steps.

    Args:
        trace: the ids of each batch, in ``[0, num_rows)``.
        policy: as of ``Planner``.
        capacity: slots of all ranks together, in rows.
        window: batches looked ahead: of all ranks where the cache is shared, else of each.
        ranks: that divide the batches.
        shared: whether they have one cache; otherwise each has one of ``capacity // ranks``.
        num_rows: of the table.
        epoch: batches of an epoch, where steps begin anew; None for one epoch.
        scores, prefill, row_bytes, offset: see ``simulate``.
        victim_cells: rows of the victim buffers of all ranks together.

    Returns:
        Counts of all ranks, over all batches.

    Raises:
        ArgumentError, DTypeError: as ``Planner``; ``ranks`` or ``epoch`` below 1.

    Example:
        >>> trace = [np.array([0, 1]), np.array([1, 2]), np.array([0, 2]), np.array([1])]
        >>> for shared in (True, False):
        ...     simulate_ranks(
        ...         trace, "hybrid", 4, ranks=2, shared=shared, num_rows=4, row_bytes=1 << 14
        ...     ).misses
        3
        5
    """
    if ranks < 1 or (epoch is not None and epoch < 1):
        raise ArgumentError(f"ranks={ranks}, epoch={epoch}: expected at least 1")
    steps = _steps(len(trace), ranks, epoch or max(1, len(trace)))
    options: dict[str, Any] = {"policy": policy, "prefill": prefill}
    result = SimulationResult(policy=policy, capacity=min(capacity, num_rows), window=window)
    if shared:
        owners = owners_of_rows(num_rows, row_bytes, ranks)
        parts = _by_owner(trace, steps, owners)
        slots, cells = parts_of(capacity, owners), parts_of(victim_cells, owners)
    for rank in range(ranks):
        if shared:
            ids = owners.ids(rank, np.arange(owners.count(rank)))
            planner = Planner(
                len(ids),
                slots[rank],
                window=rounds_of(window, ranks),
                scores=None if scores is None else scores[ids],
                victim_cells=cells[rank],
                **options,
            )
            for plan in plans_of(planner, parts[rank]):
                result.add(plan, pages_of_rows(ids[plan.reads], row_bytes, offset))
        else:
            planner = Planner(
                num_rows,
                capacity // ranks,
                window=window,
                scores=scores,
                victim_cells=victim_cells // ranks,
                **options,
            )
            own = [trace[step[rank]] for step in steps if rank < len(step)]
            for plan in plans_of(planner, own):
                result.add(plan, pages_of_rows(plan.reads, row_bytes, offset))
    result.batches = len(trace)
    return result


def _by_owner(
    trace: Sequence[NDArray[Any]], steps: Sequence[range], owners: Owners
) -> list[list[NDArray[np.int32]]]:
    """For each owner its rows of each step, by their numbers."""
    parts: list[list[NDArray[np.int32]]] = [[] for _ in range(owners.world)]
    for step in steps:
        ids = np.concatenate([trace[number] for number in step]).astype(np.int64)
        _, numbers = owners.divide(ids)
        for part, own in zip(parts, numbers, strict=True):
            part.append(own.astype(np.int32))
    return parts


def _steps(batches: int, ranks: int, epoch: int) -> list[range]:
    """The batches that ranks have at the same time."""
    return [
        range(first, min(first + ranks, end))
        for begin in range(0, batches, epoch)
        for end in [min(begin + epoch, batches)]
        for first in range(begin, end, ranks)
    ]

"""Making a shared cache, which all ranks do together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.cache.planner import Planner
from gnnsys.cache.shared.engine import SharedEngine
from gnnsys.cache.shared.owner import Owner
from gnnsys.choices import Sharing
from gnnsys.counters import Counters
from gnnsys.errors import UnsupportedError
from gnnsys.memory.store import Store
from gnnsys.ranks.distributed import watch_ranks
from gnnsys.ranks.mailbox import SocketMailbox
from gnnsys.ranks.meeting import Meeting
from gnnsys.ranks.owners import Owners
from gnnsys.ranks.rendezvous import check_equal
from gnnsys.system.budget import CACHE_ROWS, process_budget
from gnnsys.system.shared_memory import SharedMemory, map_shared

__all__ = ["MakePlanner", "open_shared_cache", "owners_of_rows", "parts_of", "rounds_of"]

_log = logging.getLogger(__name__)
_BLOCK_BYTES = 16 << 10
_AT_A_TIME = 1 << 20

MakePlanner = Callable[[int, int, int, "NDArray[np.uint16] | None"], Planner]
"""Makes a planner of a number of rows, slots and cells, and the rows' importance."""


def owners_of_rows(rows: int, row_bytes: int, world: int) -> Owners:
    """Who owns which row of a table: rows of the same pages go together.

    >>> owners_of_rows(1000, 512, 2).block
    32
    """
    return Owners(rows, world, max(1, _BLOCK_BYTES // max(1, row_bytes)))


def parts_of(total: int, owners: Owners) -> list[int]:
    """What each rank has of something that is divided as the rows are.

    >>> parts_of(5, owners_of_rows(1000, 512, 2)), parts_of(1000, owners_of_rows(1000, 512, 2))
    ([2, 3], [512, 488])
    """
    counts = np.cumsum([0] + [owners.count(rank) for rank in range(owners.world)])
    bounds = [total * int(count) // max(1, owners.num_ids) for count in counts]
    return np.diff(bounds).tolist()


def rounds_of(window: int, world: int) -> int:
    """Rounds that hold so many batches of all ranks.

    >>> rounds_of(64, 3)
    22
    """
    return -(-window // world)


def open_shared_cache(
    meeting: Meeting,
    source: Store,
    name: str,
    make_planner: MakePlanner,
    *,
    capacity: int,
    cells: int,
    importance: NDArray[np.uint16] | None,
    sharing: Sharing,
    window: int,
    prefetch: int,
    staging_bytes: int,
    threads: int,
    counters: Counters,
    facts: dict[str, Any],
) -> SharedEngine:
    """This rank's part of a cache over all ranks of the default process group, each of which calls
    this, in the same order where there are several caches.

    Args:
        meeting: of the ranks.
        source: of the same rows on all ranks.
        name: of the store, in errors.
        capacity, cells: of all ranks together; see ``CachedStore``.
        importance: (rows,) or None.
        sharing: how ranks read each other's rows.
        window: batches of all ranks that a plan looks ahead.
        prefetch, staging_bytes, threads, counters: see ``SharedEngine``.
        facts: that have to be the same on all ranks, besides.

    Raises:
        RankFailedError: a rank does not come.
        ArgumentError: ranks differ in what they have to agree on.
        UnsupportedError: "shm" where ranks do not see each other's memory.
        ResourceError: no sockets, threads or shared memory.
    """
    rank, world = meeting.rank, meeting.world
    facts = {
        "rows": source.shape[0], "bytes a row": source.row_bytes,
        "element type": str(source.encoding.stored), "cache": capacity, "victim_buffer": cells,
        "shared": sharing, "window": window, "prefetch": prefetch, **facts,
    }  # fmt: skip
    check_equal(dict(enumerate(meeting.tell(facts))))
    mailbox = SocketMailbox(meeting)
    owners = owners_of_rows(source.shape[0], source.row_bytes, world)
    slots, kept = parts_of(capacity, owners), parts_of(cells, owners)
    places = [
        Owner.most_places(slots[each], kept[each], prefetch, owners.count(each)) * source.row_bytes
        for each in range(world)
    ]
    own = SharedMemory.create(f"gnnsys-cache-{rank}", places[rank])
    process_budget().hold(CACHE_ROWS, (slots[rank] + kept[rank]) * source.row_bytes, own.bytes)
    memory: list[NDArray[np.uint8] | None] = [None] * world
    if sharing != "exchange":
        memory = _map_all(meeting, mailbox.one_machine, own, places, sharing)
    memory[rank] = own.bytes
    planner = make_planner(
        owners.count(rank), slots[rank], kept[rank], _importance_of(owners, rank, importance)
    )
    liveness = watch_ranks()

    def failed(suspect: int | None) -> int | None:
        if suspect is None:
            return liveness.failed
        verdict = liveness.wait_for_verdict(suspect)
        return suspect if verdict is None else verdict

    meeting.tell(None)  # all have mapped what they need
    return SharedEngine(
        source,
        name,
        mailbox,
        owners,
        planner,
        memory,
        prefetch=prefetch,
        staging_bytes=staging_bytes,
        threads=threads,
        counters=counters,
        failed=failed,
    )


def _importance_of(
    owners: Owners, rank: int, importance: NDArray[np.uint16] | None
) -> NDArray[np.uint16] | None:
    """Of a rank's rows."""
    if importance is None:
        return None
    own = np.empty(owners.count(rank), np.uint16)
    for first in range(0, len(own), _AT_A_TIME):
        numbers = np.arange(first, min(first + _AT_A_TIME, len(own)))
        own[numbers] = importance[owners.ids(rank, numbers)]
    return own


def _map_all(
    meeting: Meeting, one_machine: bool, own: SharedMemory, nbytes: Sequence[int], sharing: Sharing
) -> list[NDArray[np.uint8] | None]:
    """The memory of all ranks, or None for each where one of them cannot map another's."""
    where = meeting.tell(own.where)
    memory: list[NDArray[np.uint8] | None] = []
    refusal = "" if one_machine else "they are on several machines"
    try:
        if not refusal:
            memory = [
                own.bytes if rank == meeting.rank else map_shared(tuple(each), size)
                for rank, (each, size) in enumerate(zip(where, nbytes, strict=True))
            ]
    except OSError as error:
        refusal = f"rank {meeting.rank} may not map another's memory ({error})"
    refusal = next(filter(None, meeting.tell(refusal)), "")
    if refusal and sharing == "shm":
        raise UnsupportedError(f"shared='shm': {refusal}; use shared='exchange' or 'auto'")
    if refusal:
        _log.info("shared cache: rows are sent from rank to rank (exchange): %s", refusal)
        return [None] * meeting.world
    return list(memory)

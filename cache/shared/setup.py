"""Making a shared cache, which all ranks do together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.cache.planner import Planner
from gnnsys.cache.shared.engine import SharedEngine
from gnnsys.cache.shared.memory import RowMemory
from gnnsys.cache.shared.opening import open_device_rows, open_host_rows
from gnnsys.cache.shared.owner import Owner
from gnnsys.choices import Sharing
from gnnsys.counters import Counters
from gnnsys.memory.store import Store
from gnnsys.ranks.distributed import watch_ranks
from gnnsys.ranks.mailbox import SocketMailbox
from gnnsys.ranks.meeting import Meeting
from gnnsys.ranks.owners import Owners
from gnnsys.ranks.rendezvous import check_equal
from gnnsys.system.gpu import kernel_device

__all__ = ["MakePlanner", "open_shared_cache", "owners_of_rows", "parts_of", "rounds_of"]

_BLOCK_BYTES = 16 << 10
_SPARE_BYTES = 256 << 20
"""Of a device's memory, beside a cache: for rows of the rounds that ranks may still read."""
_LEAST_BLOCKS = 8  # of a rank, so that what ranks do for their rows is about as much
_AT_A_TIME = 1 << 20

MakePlanner = Callable[[int, int, int, "NDArray[np.uint16] | None"], Planner]
"""Makes a planner of a number of rows, slots and cells, and the rows' importance."""


def owners_of_rows(rows: int, row_bytes: int, world: int) -> Owners:
    """Who owns which row of a table: rows of the same pages go together, where there are enough for
    all ranks.

    >>> owners_of_rows(1000, 512, 2).block, owners_of_rows(40, 512, 2).block
    (32, 2)
    """
    most = rows // (_LEAST_BLOCKS * world)
    return Owners(rows, world, max(1, min(_BLOCK_BYTES // max(1, row_bytes), most)))


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
    device: str,
    check_host: Callable[[], object],
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
        device: in whose memory the cache is, where all ranks read it there.
        check_host: called before it is in host memory instead; raises where it does not fit.

    Raises:
        RankFailedError: a rank does not come.
        ArgumentError: ranks differ in what they have to agree on.
        UnsupportedError: "shm" or "peer" where ranks do not see each other's memory.
        ResourceError: no sockets, threads or shared memory.
    """
    rank, world = meeting.rank, meeting.world
    facts = {
        "rows": source.shape[0], "bytes a row": source.row_bytes,
        "element type": str(source.encoding.stored), "cache": capacity, "victim_buffer": cells,
        "shared": sharing, "window": window, "prefetch": prefetch,
        "device": device.partition(":")[0], **facts,
    }  # fmt: skip
    check_equal(dict(enumerate(meeting.tell(facts))))
    mailbox = SocketMailbox(meeting)
    meeting.undo.callback(mailbox.close)
    owners = owners_of_rows(source.shape[0], source.row_bytes, world)
    slots, kept = parts_of(capacity, owners), parts_of(cells, owners)

    def places(spare: int | None = None) -> list[int]:
        return [
            Owner.most_places(slots[each], kept[each], prefetch, owners.count(each), spare)
            for each in range(world)
        ]

    memory: RowMemory | None = None
    one_machine, resident = mailbox.one_machine, slots[rank] + kept[rank]
    if device != "cpu":
        bounded, gpu = places(_SPARE_BYTES // max(1, source.row_bytes)), kernel_device(device)
        memory = open_device_rows(
            meeting, source, one_machine, bounded, resident, gpu, sharing, threads
        )
        sharing = "auto"
    if memory is None:
        check_host()
        memory = open_host_rows(meeting, source, one_machine, places(), resident, sharing, threads)
    planner = make_planner(
        owners.count(rank), slots[rank], kept[rank], _importance_of(owners, rank, importance)
    )
    liveness = watch_ranks()

    def failed(suspect: int | None) -> int | None:
        verdict = liveness.failed if suspect is None else liveness.wait_for_verdict(suspect)
        if verdict is not None:
            liveness.leave(because_of=verdict)
        return suspect if verdict is None else verdict

    engine = SharedEngine(
        name,
        mailbox,
        owners,
        planner,
        memory,
        prefetch=prefetch,
        staging_bytes=staging_bytes,
        counters=counters,
        failed=failed,
    )
    meeting.undo.callback(engine.close)
    meeting.tell(None)  # all have mapped what they need, and have their threads
    return engine


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

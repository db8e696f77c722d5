"""Opening the memory of a shared cache, which all ranks do together: they agree on its kind."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from gnnsys.cache.shared.device_rows import DeviceRows
from gnnsys.cache.shared.memory import HostRows, RowMemory, SentRows
from gnnsys.choices import Sharing
from gnnsys.errors import DeviceError, RankFailedError, TooLargeError, UnsupportedError
from gnnsys.memory.mapped import MappedStore
from gnnsys.memory.store import Store
from gnnsys.ranks.meeting import Meeting
from gnnsys.system.budget import CACHE_ROWS, process_budget
from gnnsys.system.gpu import Device
from gnnsys.system.gpu.peer_memory import OUT_OF_MEMORY, PeerMemory
from gnnsys.system.shared_memory import SharedMemory, map_shared

__all__ = ["open_device_rows", "open_host_rows"]

_log = logging.getLogger(__name__)
_PATIENCE = 10.0  # seconds for which a rank that closes waits for those that still read its memory


def open_host_rows(
    meeting: Meeting,
    source: Store,
    one_machine: bool,
    places: Sequence[int],
    resident: int,
    sharing: Sharing,
    threads: int,
) -> RowMemory:
    """Places in host memory: mapped by all ranks where each can, or else sent.

    Args:
        meeting: of the ranks.
        source: of the rows.
        one_machine: whether all ranks see each other's memory.
        places: of each rank.
        resident: places of this rank that hold rows for long.
        sharing: "auto", "shm" or "exchange".
        threads: that move rows.

    Raises:
        UnsupportedError: "shm" where ranks do not see each other's memory.
        ResourceError: no shared memory.
    """
    rank = meeting.rank
    nbytes = [each * source.row_bytes for each in places]
    own = SharedMemory.create(f"gnnsys-cache-{rank}", nbytes[rank])
    process_budget().hold(CACHE_ROWS, resident * source.row_bytes, own.bytes)
    if sharing != "exchange":
        memory, refusal = _map_all(meeting, one_machine, own, nbytes)
        if not refusal:
            return HostRows(source, rank, memory, places[rank], resident, threads)
        if sharing == "shm":
            raise UnsupportedError(f"shared='shm': {refusal}; use shared='exchange' or 'auto'")
        _log.warning("shared cache: rows are sent from rank to rank (exchange): %s", refusal)
    return SentRows(source, rank, {rank: own.bytes}, places[rank], resident, threads)


def _map_all(
    meeting: Meeting, one_machine: bool, own: SharedMemory, nbytes: Sequence[int]
) -> tuple[dict[int, NDArray[np.uint8]], str]:
    """The memory of all ranks, and why one of them cannot map another's."""
    where = meeting.tell(own.where)
    memory = {meeting.rank: own.bytes}
    refusal = "" if one_machine else "they are on several machines"
    try:
        if not refusal:
            for rank, each in enumerate(where):
                if rank != meeting.rank:
                    memory[rank] = map_shared(tuple(each), nbytes[rank])
    except OSError as error:
        refusal = f"rank {meeting.rank} may not map another's memory ({error})"
    return memory, _first(meeting, refusal)


def open_device_rows(
    meeting: Meeting,
    source: Store,
    one_machine: bool,
    places: Sequence[int],
    resident: int,
    gpu: Device | None,
    sharing: Sharing,
    threads: int,
) -> RowMemory | None:
    """Places in the memory of every rank's device; None where a rank cannot read another's, which
    is logged.

    Args:
        meeting, source, one_machine, places, resident, threads: see ``open_host_rows``.
        gpu: this rank's device; None where kernels do not run on it.
        sharing: "auto" or "peer".

    Raises:
        UnsupportedError: "peer" where a rank cannot read another's memory.
        TooLargeError: a device does not have so much memory.
    """
    rank, refusal = meeting.rank, ""
    if not one_machine:
        refusal = "they are on several machines"
    elif gpu is None:
        refusal = f"kernels do not run on the device of rank {rank}"
    refusal = _first(meeting, refusal)
    if gpu is not None and not refusal:
        opened = _read_all(meeting, gpu, [each * source.row_bytes for each in places])
        if not isinstance(opened, str):
            own, addresses = opened
            if gpu.torch_device.type == "cpu":
                process_budget().hold(CACHE_ROWS, resident * source.row_bytes, own)
            source = source if source.resident is None else MappedStore(source, gpu)
            part = _part_of(Meeting("the end of a shared cache", _PATIENCE))
            return DeviceRows(source, rank, gpu, own, addresses, places[rank], threads, part)
        refusal = opened
    if sharing == "peer":
        raise UnsupportedError(
            f"shared='peer': {refusal}; use shared='auto', or a cache in host memory"
        )
    _log.warning(
        "shared cache: it is in host memory, not in that of GPUs, which ranks cannot share: %s",
        refusal,
    )
    return None


def _read_all(
    meeting: Meeting, gpu: Device, nbytes: Sequence[int]
) -> tuple[PeerMemory, list[int]] | str:
    """This rank's memory, and where it reads that of each rank; or why one of them cannot."""
    rank, refusal = meeting.rank, ""
    own: PeerMemory | None = None
    try:
        own = gpu.peer_memory(nbytes[rank])
    except DeviceError as error:
        if error.status == OUT_OF_MEMORY:
            raise TooLargeError(
                f"cache: this rank's part and what is read ahead take {nbytes[rank]} bytes of "
                f"{gpu.torch_device}, which does not have so much ({error}); give a smaller cache="
            ) from error
        refusal = f"rank {rank} cannot let others read its memory ({error})"
    try:
        where = meeting.tell(own.where if own is not None else None)
    except BaseException:
        if own is not None:
            own.free()  # nobody has opened it
        raise
    if own is not None:
        meeting.undo.callback(own.leave)
    addresses: list[int] = []
    try:
        for other, each in enumerate(where):
            if own is not None and each is not None:
                is_own = other == rank
                addresses.append(own.address if is_own else own.open(each, nbytes[other]))
    except (OSError, DeviceError) as error:
        refusal = f"rank {rank} cannot read the memory of rank {len(addresses)} ({error})"
    refusal = _first(meeting, refusal)
    if own is not None and not refusal:
        return own, addresses
    if own is not None:
        own.leave()
    meeting.tell(None)  # all have
    if own is not None:
        own.free()
    return refusal


def _part_of(meeting: Meeting) -> Callable[[], bool]:
    """Waits for all ranks, for a while; returns whether they came."""

    def part() -> bool:
        with suppress(RankFailedError, RuntimeError):  # or whoever keeps the store has gone
            meeting.tell(None)
            return True
        return False

    return part


def _first(meeting: Meeting, refusal: str) -> str:
    """Of all ranks' refusals; "" where none refuses."""
    return next(filter(None, meeting.tell(refusal)), "")

"""The process group of a run: joining it, and doing something on one rank for all."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from gnnsys.compat import default_store, set_group_timeout
from gnnsys.errors import ArgumentError, GnnsysError, RankFailedError
from gnnsys.ranks.distributed import DistributedTransport, watch_ranks
from gnnsys.ranks.environment import rank_of_process, rank_on_machine, world_around
from gnnsys.ranks.liveness import store_connection
from gnnsys.ranks.meeting import FAILED, FAILURES
from gnnsys.ranks.rendezvous import check_equal, meet
from gnnsys.ranks.transport import all_gather_objects
from gnnsys.system.device import SIMT

__all__ = [
    "Interruption",
    "check_alike",
    "gather_objects",
    "gather_results",
    "group_transport",
    "join_ranks",
    "on_all_ranks",
    "on_first_rank",
    "told_by_first_rank",
    "transport_for_thread",
]

T = TypeVar("T")

_CONNECT = datetime.timedelta(seconds=12)  # gloo tries five times
_WORK = datetime.timedelta(days=30)  # who is alive is watched otherwise


def join_ranks(device: str, prepare: Callable[[], T]) -> T:
    """Joins the process group of all ranks, unless this is a process by itself, or in one.

    Args:
        device: what a rank computes on: cpu or simt, cuda, or auto for cuda where there is one.
        prepare: what each rank has to do before.

    Returns:
        What ``prepare`` gave here.

    Raises:
        ArgumentError: what is wrong with the place to meet or one rank's network, on all ranks.
        GnnsysError: what ``prepare`` raised here; on the others an ArgumentError that tells of it.
        RankFailedError: ranks that do not come.
    """
    world = world_around() or 1
    if world == 1 or dist.is_initialized():
        return prepare()
    on_gpu = torch.cuda.is_available() and device not in ("cpu", SIMT)
    facts = {"device": "cuda" if on_gpu else "cpu"}
    try:
        if on_gpu:
            _take_gpu()
        prepared = prepare()
    except GnnsysError as error:
        with suppress(GnnsysError):
            meet(world, facts, wrong=str(error))
        raise
    store = meet(world, facts)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=store,
            rank=rank_of_process(),
            world_size=world,
            timeout=_CONNECT,
        )
        watch_ranks()
    except RuntimeError as error:
        raise RankFailedError(
            f"the {world} ranks have met, but cannot reach each other (by the network interface "
            f"{os.environ.get('GLOO_SOCKET_IFNAME', 'of the machine name')}; GLOO_SOCKET_IFNAME "
            f"names another): {str(error).splitlines()[0]}",
            -1,
        ) from error
    set_group_timeout(_WORK)
    return prepared


def _take_gpu() -> None:
    number, count = rank_on_machine(), torch.cuda.device_count()
    if number >= count:
        raise ArgumentError(
            f"LOCAL_RANK {number} >= GPUs of its machine({count}): start one rank for each GPU, or "
            "give --device cpu"
        )
    torch.cuda.set_device(number)


def on_first_rank(work: Callable[[], T]) -> T | None:
    """Does something on rank 0 only and returns what it gave there, None on the others.

    Raises:
        GnnsysError: what ``work`` raised, on all ranks, so that none waits for one that has left.
    """
    results: list[T] = []
    told_by_first_rank(lambda: results.append(work()))
    return results[0] if results else None


def on_all_ranks(work: Callable[[], T]) -> T:
    """Does something on every rank, and returns what it gave here once all have done it.

    Raises:
        GnnsysError: as of ``gather_results``.
    """
    results: list[T] = []
    gather_results(lambda: results.append(work()))
    return results[0]


def told_by_first_rank(work: Callable[[], T]) -> T:
    """Does something on rank 0 only and returns what it gave there, on all ranks.

    Raises:
        GnnsysError: what ``work`` raised, on all ranks.
    """
    told = _attempt(work if rank_of_process() == 0 else lambda: None, "control")
    if told[0][1] is not None:
        raise told[0][1]
    return cast(T, told[0][0])


def gather_results(work: Callable[[], T], kind: str = "control") -> list[T]:
    """Does something on every rank; returns what it gave on each, in their order, on all.

    Args:
        work: gives what can be pickled.
        kind: as which its bytes count.

    Raises:
        GnnsysError: what ``work`` raised on the first rank where it did, on all ranks, so that none
            waits for one that has left. It names the rank where others have no such error.

    >>> gather_results(lambda: 3)
    [3]
    """
    told = _attempt(work, kind)
    for rank, (_, error) in enumerate(told):
        if error is not None:
            if any(other is None for _, other in told):
                error.args = (f"rank {rank}: {error}", *error.args[1:])
            raise error
    return [cast(T, result) for result, _ in told]


def _attempt(work: Callable[[], T], kind: str) -> list[tuple[T | None, GnnsysError | None]]:
    """What something gives on each rank, and what it raises there."""
    result: T | None = None
    raised: GnnsysError | None = None
    try:
        result = work()
    except GnnsysError as error:
        raised = error
    failures = None
    if raised is not None and group_transport() is not None:  # others may be in a Meeting
        failures = PrefixStore(FAILURES, store_connection(default_store()))
        failures.set(FAILED, f"rank {dist.get_rank()}: {raised}")
    told = gather_objects((result, raised), kind)
    if failures is not None:
        failures.delete_key(FAILED)
    for _, found in told:
        if found is not None:
            found.on_all_ranks = True
    return told


def check_alike(facts: Mapping[str, Any]) -> None:
    """Compares what all ranks were started with.

    Args:
        facts: of this rank, by their names, the same ones on all.

    Raises:
        ArgumentError: they differ; on all ranks.
    """
    check_equal(dict(enumerate(gather_objects(dict(facts)))))


def gather_objects(mine: T, kind: str = "control") -> list[T]:
    """Every rank's object, in the order of the ranks, on every rank; one for a process by itself.

    Args:
        mine: whatever can be pickled.
        kind: as which its bytes count.
    """
    transport = group_transport()
    if transport is None:
        return [mine]
    return transport.drive(all_gather_objects(transport, mine, kind))


def transport_for_thread() -> DistributedTransport:
    """What another thread of this process talks to the same ones of the other ranks with, by
    tensors on the CPU; all ranks have to ask for it at the same time."""
    gather_objects(None)  # what follows does not look who is alive
    group = dist.new_group(backend="gloo", timeout=_CONNECT)
    set_group_timeout(_WORK, group)
    return DistributedTransport(group)


class Interruption:
    """Whether a run was asked to end; to be made on all ranks, for each run."""

    def __init__(self) -> None:
        self.here = False
        """Whether this rank was asked."""
        self._liveness = watch_ranks() if group_transport() is not None else None
        self._run = 0 if self._liveness is None else self._liveness.begin_run()

    def ask(self) -> None:
        """Asks this rank, which tells the others also while it only waits for them."""
        self.here = True
        if self._liveness is not None:
            self._liveness.ask_to_end(self._run)

    def is_heard_of(self) -> bool:
        """Whether this rank was asked, or has heard that another was; others may not know yet."""
        return self.here or (
            self._liveness is not None and self._liveness.is_asked_to_end(self._run)
        )


_shared: tuple[Any, DistributedTransport] | None = None


def group_transport() -> DistributedTransport | None:
    """What all of this process talks to the other ranks of its group with; None without others."""
    global _shared
    if not (dist.is_available() and dist.is_initialized()):
        return None
    store = default_store()
    if _shared is None or _shared[0] is not store:
        _shared = store, DistributedTransport()
    return _shared[1]

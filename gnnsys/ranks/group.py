"""The process group of a run: joining it, and doing something on one rank for all."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from gnnsys.compat import default_store, set_group_timeout
from gnnsys.errors import ArgumentError, GnnsysError, RankFailedError
from gnnsys.ranks.distributed import DistributedTransport, watch_ranks
from gnnsys.ranks.environment import rank_of_process, rank_on_machine, world_around
from gnnsys.ranks.transport import all_gather_objects
from gnnsys.system.device import SIMT

__all__ = [
    "check_alike",
    "gather_objects",
    "group_transport",
    "join_ranks",
    "on_all_ranks",
    "on_first_rank",
    "told_by_first_rank",
]

T = TypeVar("T")

_MEET = datetime.timedelta(seconds=60)
_WORK = datetime.timedelta(days=30)  # who is alive is watched otherwise


def join_ranks(device: str) -> None:
    """Joins the process group of all ranks; does nothing for a process by itself, or in one.

    Args:
        device: what a rank computes on: cpu or simt, cuda, or auto for cuda where there is one.

    Raises:
        RankFailedError: ranks that do not come.
    """
    world = world_around() or 1
    if world == 1 or dist.is_initialized():
        return
    on_gpu = torch.cuda.is_available() and device not in ("cpu", SIMT)
    if on_gpu:
        torch.cuda.set_device(rank_on_machine())
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=_MEET)
        watch_ranks()
    except RuntimeError as error:
        raise RankFailedError(
            f"the {world} ranks have not met, for which they have {_MEET.seconds} s ({error})", -1
        ) from error
    set_group_timeout(_WORK)


def on_first_rank(work: Callable[[], T]) -> T | None:
    """Does something on rank 0 only and returns what it gave there, None on the others.

    Raises:
        GnnsysError: what ``work`` raised, on all ranks, so that none waits for one that has left.
    """
    return on_all_ranks(work if rank_of_process() == 0 else lambda: None)


def on_all_ranks(work: Callable[[], T]) -> T:
    """Does something on every rank, and returns what it gave here once all have done it.

    Raises:
        GnnsysError: what ``work`` raised on the first rank where it did, on all ranks, so that none
            waits for one that has left.
    """
    results: list[T] = []
    error: GnnsysError | None = None
    try:
        results.append(work())
    except GnnsysError as found:
        error = found
    error = next((each for each in gather_objects(error) if each is not None), None)
    if error is not None:
        raise error
    return results[0]


def told_by_first_rank(work: Callable[[], T]) -> T:
    """Does something on rank 0 only and returns what it gave there, on all ranks.

    Raises:
        GnnsysError: what ``work`` raised, on all ranks.
    """
    return cast(T, gather_objects(on_first_rank(work))[0])


def check_alike(facts: Mapping[str, Any]) -> None:
    """Compares what all ranks were started with.

    Args:
        facts: of this rank, by their names, the same ones on all.

    Raises:
        ArgumentError: they differ; on all ranks.
    """
    first, *others = gather_objects(dict(facts))
    for rank, found in enumerate(others, 1):
        for name, value in first.items():
            if found.get(name) != value:
                raise ArgumentError(
                    f"rank {rank} has {name} {found.get(name)} != {value} of rank 0: start all "
                    "ranks with the same options, dataset and versions"
                )


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

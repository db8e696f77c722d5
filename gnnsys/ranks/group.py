"""The process group of a run: joining it, and doing something on one rank for all."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from gnnsys.compat import set_group_timeout
from gnnsys.errors import GnnsysError, RankFailedError
from gnnsys.ranks.distributed import DistributedTransport, watch_ranks
from gnnsys.ranks.environment import rank_of_process, rank_on_machine, world_around
from gnnsys.ranks.transport import all_gather_objects
from gnnsys.system.device import SIMT

__all__ = ["join_ranks", "on_all_ranks", "on_first_rank"]

T = TypeVar("T")

_MEET = datetime.timedelta(seconds=60)
_WORK = datetime.timedelta(days=30)  # who is alive is watched otherwise


def join_ranks(device: str) -> None:
    """Joins the process group of all ranks; does nothing for a process by itself.

    Args:
        device: what a rank computes on: cpu or simt, cuda, or auto for cuda where there is one.

    Raises:
        RankFailedError: ranks that do not come.
    """
    world = world_around() or 1
    if world == 1:
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
    if dist.is_available() and dist.is_initialized():
        transport = DistributedTransport()
        errors = transport.drive(all_gather_objects(transport, error, "control"))
        error = next((each for each in errors if each is not None), None)
    if error is not None:
        raise error
    return results[0]

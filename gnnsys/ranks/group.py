"""The ranks of a training run: which one this process is, and their process group."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from gnnsys.config import TrainConfig
from gnnsys.config_parallel import split_of, world_around
from gnnsys.errors import ArgumentError, GnnsysError, RankFailedError
from gnnsys.pipeline.distributed import DistributedTransport, watch_ranks
from gnnsys.pipeline.transport import all_gather_objects

__all__ = ["join_ranks", "on_first_rank", "rank_of_process"]

T = TypeVar("T")

_MEET = datetime.timedelta(seconds=60)
_WORK = datetime.timedelta(days=30)  # who is alive is watched otherwise


def rank_of_process() -> int:
    """The number that torchrun or ``--ranks`` gave this process; 0 without them."""
    return int(os.environ.get("RANK", "0"))


def join_ranks(config: TrainConfig) -> None:
    """Joins the ranks of a run; does nothing for a run of one process.

    Raises:
        ArgumentError: options that do not fit the number of ranks.
        RankFailedError: ranks that do not come.
    """
    world = world_around() or 1
    if world == 1:
        return
    if config.parallel is None:
        raise ArgumentError(
            f"{world} ranks train one model with --parallel pipeline, graph or hybrid only; give "
            "it, or start one process"
        )
    split_of(config)
    if torch.cuda.is_available() and config.device != "cpu":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if _on_gpu(config) else "gloo", timeout=_MEET)
        watch_ranks()
    except RuntimeError as error:
        raise RankFailedError(
            f"the {world} ranks have not met, for which they have {_MEET.seconds} s ({error})", -1
        ) from error
    dist.distributed_c10d._set_pg_timeout(_WORK)


def on_first_rank(work: Callable[[], T]) -> T | None:
    """Does something on rank 0 only and returns what it gave there, None on the others.

    Raises:
        GnnsysError: what ``work`` raised, on all ranks, so that none waits for one that has left.
    """
    result: T | None = None
    error: GnnsysError | None = None
    if rank_of_process() == 0:
        try:
            result = work()
        except GnnsysError as found:
            error = found
    if dist.is_available() and dist.is_initialized():
        transport = DistributedTransport()
        error = transport.drive(all_gather_objects(transport, error, "control"))[0]
    if error is not None:
        raise error
    return result


def _on_gpu(config: TrainConfig) -> bool:
    return config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())

"""The ranks of a pipeline that live in this process: one of them, or all where there is no process
group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from gnnsys.errors import ArgumentError
from gnnsys.pipeline.rank import PipelineRank
from gnnsys.ranks.distributed import DistributedTransport
from gnnsys.ranks.local_hub import LocalHub
from gnnsys.ranks.transport import Transport, Work, all_gather_objects

__all__ = ["RankGroup"]


class RankGroup:
    """Runs the same work on all ranks of this process, and lets all ranks agree.

    Args:
        stages: S.
        ways: W.

    Raises:
        ArgumentError: a process group of another size than S * W.
    """

    def __init__(self, stages: int, ways: int) -> None:
        self._ways = ways
        self.world = stages * ways
        self.is_distributed = dist.is_available() and dist.is_initialized()
        self.ranks: list[PipelineRank] = []
        """Made by whoever holds the group, one for each of ``transports``."""
        if not self.is_distributed:
            self._hub = LocalHub(self.world)
            self.transports: list[Transport] = [*self._hub.transports]
            return
        found = dist.get_world_size()
        if found != self.world:
            raise ArgumentError(
                f"stages({stages}) * ways({ways}) != world size({found}): start {self.world} ranks "
                "or change stages and ways"
            )
        self._distributed = DistributedTransport()
        self.transports = [self._distributed]

    def run(self, work: Callable[[PipelineRank], Work[Any]]) -> list[Any]:
        """Does the same on all ranks of this process; returns what each gave."""
        if self.is_distributed:
            return [self._distributed.drive(work(self.ranks[0]))]
        return self._hub.drive([work(rank) for rank in self.ranks])

    def gather(self, mine: list[Any], kind: str = "control") -> list[Any]:
        """Of all ranks, in their order, what those of this process have."""
        if self.is_distributed:
            return self._distributed.drive(all_gather_objects(self._distributed, mine[0], kind))
        return mine

    def from_rank_0(self, make: Callable[[], Any]) -> Any:
        """What rank 0 makes, on all."""
        if not self.is_distributed:
            return make()
        return self.gather([make() if self._distributed.rank == 0 else None])[0]

    @property
    def first_ways(self) -> list[PipelineRank]:
        """Those of this process that are the first of their stage, all ways of which have the same
        weights."""
        return [rank for rank in self.ranks if rank.transport.rank % self._ways == 0]

    def merge(self, mine: dict[str, Any]) -> dict[str, Any]:
        """One dictionary of the entries of all processes."""
        merged: dict[str, Any] = {}
        for part in self.gather([mine]):
            merged |= part
        return merged

"""Ranks of one machine: which they are, and what they share."""

from __future__ import annotations

import contextlib
import logging
import math
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.errors import ResourceError
from gnnsys.ranks.environment import rank_of_process
from gnnsys.ranks.group import gather_objects, group_transport
from gnnsys.ranks.meeting import Meeting, machine_identity
from gnnsys.system import shared_memory
from gnnsys.system.machine import read_text
from gnnsys.system.once import warn_once
from gnnsys.system.threads import local_world_size

__all__ = ["Machines", "SharedPlace", "SharedTensor", "find_machines", "make_once"]

_log = logging.getLogger(__name__)
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Machines:
    """Which ranks share memory."""

    rank: int
    """Of this process."""

    groups: tuple[tuple[int, ...], ...]
    """Ranks, ascending, of each machine; one whose memory no other can open is by itself."""

    @property
    def own(self) -> tuple[int, ...]:
        """Ranks of this machine."""
        return next(group for group in self.groups if self.rank in group)

    @property
    def leads(self) -> bool:
        """Whether this rank is the first of its machine."""
        return self.own[0] == self.rank

    def partners(self) -> list[int]:
        """One rank of each other machine, to which this one sends what it alone has."""
        place = self.own.index(self.rank)
        return [group[place % len(group)] for group in self.groups if group is not self.own]

    def sources(self) -> list[int]:
        """Ranks of other machines that have this one among their ``partners``."""
        return [
            rank
            for group in self.groups
            for rank in group
            if self.rank in Machines(rank, self.groups).partners()
        ]


class SharedTensor:
    """Zeros that other ranks of this machine can map, too, while this object is open.

    Args:
        shape: of the tensor, not empty.
        dtype: of its elements.

    >>> memory = SharedTensor((2, 3), torch.float32)
    >>> one, other = memory.place.open(), memory.place.open()
    >>> memory.close()
    >>> one[1] = 5
    >>> other.sum().item()
    15.0
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        nbytes = math.prod(shape) * dtype.itemsize
        self._memory: shared_memory.SharedMemory | None
        self._memory = shared_memory.SharedMemory.create("gnnsys-rows", nbytes)
        self.place = SharedPlace(self._memory.where, tuple(shape), dtype)
        """Where it is found; can be pickled."""

    def close(self) -> None:
        """Lets go of it; tensors of it stay."""
        self._memory = None


@dataclass(frozen=True, slots=True)
class SharedPlace:
    """Where memory of another process of this machine is found."""

    where: tuple[int, int, int]
    shape: tuple[int, ...]
    dtype: torch.dtype

    def is_there(self) -> bool:
        """Whether this process may open it, and it is that and no other process's."""
        with contextlib.suppress(OSError):
            shared_memory.map_shared(self.where, 1, writable=True)
            return True
        return False

    def open(self) -> Tensor:
        """The tensor, mapped.

        Raises:
            ResourceError: the process that made it has ended or let go of it, or memory is short.
        """
        nbytes = math.prod(self.shape) * self.dtype.itemsize
        try:
            mapped = shared_memory.map_shared(self.where, nbytes, writable=True)
        except OSError as error:
            raise ResourceError(
                f"{nbytes} bytes of memory that process {self.where[0]} shares cannot be mapped "
                f"({error}); is it still there?"
            ) from error
        return torch.from_numpy(mapped).view(self.dtype).view(self.shape)


def find_machines() -> Machines:
    """Asks all ranks which of them can open each other's memory; called by all together.

    >>> find_machines().groups
    ((0,),)
    """
    rank = rank_of_process()
    probe: SharedTensor | None = None
    with contextlib.suppress(OSError):  # a sandbox may refuse it: then memory is not shared
        probe = SharedTensor((1,), torch.uint8)
    told = gather_objects((_kernel(), probe.place if probe else None))
    near = (
        other
        for other, (kernel, place) in enumerate(told)
        if kernel == _kernel() and place is not None and place.is_there()
    )
    firsts = gather_objects(next(near, rank))
    if probe is not None:
        probe.close()
    groups: dict[int, list[int]] = {}
    for each, first in enumerate(firsts):
        groups.setdefault(first if firsts[first] == first else each, []).append(each)
    found = Machines(rank, tuple(map(tuple, groups.values())))
    if len(found.own) < local_world_size():
        warn_once(
            _log, "only %d of the %d ranks of this machine can open each other's memory: what they "
            "would share is held more than once", len(found.own), local_world_size()
        )  # fmt: skip
    return found


def make_once(
    what: str, make: Callable[[], NDArray[Any]], have: NDArray[Any] | None = None
) -> NDArray[Any]:
    """An array that one rank of each machine makes, and the others of it map. All ranks of the
    default process group call this; in a process by itself it is made.

    Args:
        what: it is, in errors.
        make: makes it; called on other ranks where memory cannot be shared, too.
        have: the array on a rank that has it.

    Returns:
        The array, not to be written to; ``have`` where that is given.

    Raises:
        RankFailedError: a rank is gone, or could not make it.

    >>> make_once("squares", lambda: np.arange(3) ** 2).tolist()
    [0, 1, 4]
    """
    if group_transport() is None:
        return make() if have is None else have
    with Meeting(what, patience=math.inf) as meeting:
        told = meeting.tell([machine_identity(), have is None])
        alike = [rank for rank, each in enumerate(told) if each == told[meeting.rank]]
        memory: shared_memory.SharedMemory | None = None
        place: tuple[Any, ...] | None = None
        if have is None and alike[0] == meeting.rank:
            have = make()
            if len(alike) > 1:
                with contextlib.suppress(ResourceError):  # a sandbox may refuse it
                    memory = shared_memory.SharedMemory.create("gnnsys-made", have.nbytes)
                    shared = memory.bytes.view(have.dtype).reshape(have.shape)
                    shared[...], place = have, (memory.where, have.dtype.str, have.shape)
                    have = shared
        place = meeting.tell(place)[alike[0]]
        if have is None:
            have = _mapped(place)
        if have is None:
            warn_once(_log, "%s: ranks of this machine cannot share it, and hold it each", what)
            have = make()
        meeting.tell(None)  # all have mapped it
    return have


def _mapped(place: Sequence[Any] | None) -> NDArray[Any] | None:
    """What another rank has made; None where this one may not."""
    if place is None:
        return None
    where, dtype, shape = place
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    with contextlib.suppress(OSError):
        return shared_memory.map_shared(tuple(where), nbytes).view(dtype).reshape(shape)
    return None


def _kernel() -> str:
    """Tells the system that runs here from those of other machines."""
    return read_text(_BOOT) or socket.gethostname()

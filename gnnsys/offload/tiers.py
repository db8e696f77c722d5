"""Where storages wait: in the memory of the host, for a GPU, and in a file."""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from concurrent.futures import Future

import torch
from torch import Tensor

from gnnsys.choices import OffloadPolicy
from gnnsys.errors import StorageError, TooLargeError
from gnnsys.offload.copies import Arrival, Copies, HostPool, StreamCopies, copies_for
from gnnsys.offload.spill_file import Extent, SpillFile
from gnnsys.offload.workers import Worker
from gnnsys.system.budget import ACTIVATIONS, process_budget
from gnnsys.system.sizes import size_text

__all__ = ["Place", "Tier", "make_tier"]

Place = Tensor | Extent
"""(n,) uint8 of the host's memory, or a part of the file."""


class Tier:
    """Memory of the host as long as there is some, then a file; threads wait for copies, write and
    read.

    Args:
        copies: between the device and the host.
        pool: of the host's memory; None for none of it.
        file: None for none.
    """

    def __init__(self, copies: Copies, pool: HostPool | None, file: SpillFile | None) -> None:
        self._copies, self._pool, self._file = copies, pool, file
        self._copier, self._writer = Worker("gnnsys-copies"), Worker("gnnsys-stores")
        self._reader = Worker("gnnsys-loads")

    def allocate(self, nbytes: int) -> Place:
        """A place for so many bytes.

        Raises:
            StorageError: there is none in the file.
            TooLargeError: nor in the host's memory, where there is no file.
        """
        memory = None if self._pool is None else self._pool.hold(nbytes)
        if memory is not None:
            return memory
        if self._file is None:
            raise TooLargeError(
                f"activations: no {size_text(nbytes)} are left in the memory of the host: "
                f"{self._pool_text()}; give a larger host_budget, or allow the policy disk"
            )
        try:
            return self._file.allocate(nbytes)
        except StorageError as error:
            if self._pool is None:
                raise
            raise StorageError(f"{error}; of the host's memory, {self._pool_text()}") from error

    def store(self, memory: Tensor, place: Place) -> Future[None]:
        """Moves (n,) uint8 of the device, which does not change until that is done."""
        if isinstance(place, Tensor):
            wait = self._copies.out(memory, place)

            def copy() -> None:
                wait()

            return self._copier.submit(copy)
        file, fetch = self._opened(), self._copies.out(memory)
        return self._writer.submit(lambda: file.write(place, fetch()))

    def load(self, place: Place, nbytes: int) -> Future[Arrival]:
        """Has back what was stored."""
        if isinstance(place, Tensor):
            arrived: Future[Arrival] = Future()
            try:
                arrived.set_result(self._copies.back(place))
            except RuntimeError as error:  # of torch: the device has no memory left
                arrived.set_exception(error.with_traceback(None))  # which would keep the graph
            return arrived
        file = self._opened()

        def read() -> Arrival:
            out = file.room_for(nbytes)
            file.read(place, out)
            return self._copies.back(out)

        return self._reader.submit(read)

    def free(self, place: Place) -> None:
        """Lets the place be used again; memory is, once nobody has it."""
        if isinstance(place, Extent):
            self._opened().free(place)

    def bandwidths(self) -> tuple[float, float]:
        """Bytes a second that were moved out and back so far, by copies and the file together;
        infinite where nothing was."""
        file, out, back = self._file, self._copies.copied_out, self._copies.copied_back
        written, wrote = (0, 0.0) if file is None else (file.written, file.write_seconds)
        read, reading = (0, 0.0) if file is None else (file.read_bytes, file.read_seconds)
        # What is in the file was copied out before, on a GPU.
        return (
            _speed(max(out.nbytes, written), out.seconds + wrote),
            _speed(max(back.nbytes, read), back.seconds + reading),
        )

    def close(self) -> None:
        """Ends the threads and removes the file."""
        for worker in (self._copier, self._writer, self._reader):
            worker.close()
        if self._file is not None:
            self._file.close()

    def _opened(self) -> SpillFile:
        assert self._file is not None
        return self._file

    def _pool_text(self) -> str:
        assert self._pool is not None
        return (
            f"{size_text(self._pool.in_use)} of at most {size_text(self._pool.budget)} are in use"
        )


def make_tier(
    device: torch.device,
    policies: Collection[OffloadPolicy],
    folder: str | os.PathLike[str] | None,
    host_budget: int | None,
    disk_budget: int | None,
) -> Tier | None:
    """Where storages of a device may be moved to; None for nowhere.

    Args:
        device: on which they are used. The memory of the CPU is the host's, so that its storages
            go only to the file.
        policies: ``host``, ``disk``; others do not matter.
        folder: of the file; None for that of temporary files.
        host_budget: bytes of the host's memory; None for half of what the process has left.
        disk_budget: bytes that the file may have; None for half of what is free.
    """
    if not {"host", "disk"} & {*policies}:
        return None
    copies, pool = copies_for(device), None
    if "host" in policies and isinstance(copies, StreamCopies):
        if host_budget is None:
            host_budget = process_budget().left(of=ACTIVATIONS) // 2
        pool = HostPool(host_budget, copies.streams.host_memory)
    file = SpillFile(folder, disk_budget) if "disk" in policies else None
    return None if pool is None and file is None else Tier(copies, pool, file)


def _speed(nbytes: int, seconds: float) -> float:
    return nbytes / seconds if seconds else math.inf

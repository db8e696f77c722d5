"""The memory of a shared cache, as one rank reaches it: its own places, and the rows of others.

Owns ``RowMemory``, all that the engine and the owner know of a backend, and the two backends in
host memory. Decides nothing: who is told which place, and when a place is free, is said elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.memory.alloc import pooled
from gnnsys.memory.ids import CPU, RowIds
from gnnsys.memory.reads import StagedRows
from gnnsys.memory.store import RowReader, Store
from gnnsys.system.extension import core
from gnnsys.system.huge_pages import HugePages
from gnnsys.system.threads import num_threads

__all__ = ["HostRows", "RowMemory", "SentRows"]


class RowMemory(Protocol):
    """Places for rows in the memory of every rank."""

    source: Store
    """What rows are read from, delivered as they are stored."""

    places: int
    """Number of this rank's own."""

    device: torch.device
    """Where gathered rows appear."""

    def put(self, staged: StagedRows, places: NDArray[np.int32]) -> None:
        """Copies staged row k to this rank's place ``places[k]``; returns when they are there.

        Called in the owner's thread.
        """

    def tell(self, rank: int, places: NDArray[np.int32]) -> NDArray[Any]:
        """What a rank is told of rows in these places of this rank, -1 for one that is not kept."""

    def locate(self, rank: int, told: bytearray | memoryview, rows: int) -> NDArray[np.int64]:
        """(rows,) where this rank reads the rows that a rank has told of, which may be in ``told``;
        -1 for one that is not kept."""

    def gather(self, ids: RowIds, addresses: NDArray[np.int64], out: Tensor | None) -> Tensor:
        """Rows from where they were located; those that are not kept, from the source.

        Args:
            ids: (n,) of the rows.
            out: (n, …) dense, of the stored type; None for new memory.
        """

    def read(self, ids: RowIds, out: Tensor | None) -> Tensor:
        """Rows from the source, delivered as those of ``gather``."""

    def finish(self) -> None:
        """Waits until gathers so far have read what they read."""

    def close(self, together: bool) -> None:
        """Lets go of the memory.

        Args:
            together: whether all ranks do so now, and nobody reads any more.
        """


class HostRows(RowMemory):
    """Places in host memory that every rank maps.

    Args:
        source: of the rows.
        rank: of this process.
        memory: by rank, the (bytes,) of its places.
        places: number of this rank's own.
        resident: of them those that hold rows for long.
        threads: that move rows; 0 for all cores this process may use.
    """

    device = CPU

    def __init__(
        self,
        source: Store,
        rank: int,
        memory: Mapping[int, NDArray[np.uint8]],
        places: int,
        resident: int,
        threads: int = 0,
    ) -> None:
        self.source, self.places = source, places
        self._rank, self._memory, self._row_bytes = rank, memory, source.row_bytes
        self._pages = HugePages(memory[rank], resident * source.row_bytes)
        self._mover = core.PlanExecutor(num_threads(threads))
        stored = source.encoding.stored
        self._reader = RowReader(0, source.shape, stored, self._row_bytes, threads)

    def put(self, staged: StagedRows, places: NDArray[np.int32]) -> None:
        """See ``RowMemory.put``."""
        if self._row_bytes:
            self._pages.reach((int(places.max()) + 1) * self._row_bytes)
            targets = self._addresses(self._memory[self._rank], places)
            self._mover.move(staged.address + staged.offsets, targets, self._row_bytes)

    def tell(self, rank: int, places: NDArray[np.int32]) -> NDArray[Any]:
        """See ``RowMemory.tell``."""
        del rank
        return places

    def locate(self, rank: int, told: bytearray | memoryview, rows: int) -> NDArray[np.int64]:
        """See ``RowMemory.locate``."""
        del rows
        return self._addresses(self._memory[rank], np.frombuffer(told, np.int32))

    def gather(self, ids: RowIds, addresses: NDArray[np.int64], out: Tensor | None) -> Tensor:
        """See ``RowMemory.gather``."""
        rows = self._new_output(len(ids)) if out is None else out
        self._reader.copy_at(0, torch.from_numpy(addresses), rows)
        return rows

    def read(self, ids: RowIds, out: Tensor | None) -> Tensor:
        """See ``RowMemory.read``."""
        return self.source.gather(ids, out)

    def finish(self) -> None:
        """See ``RowMemory.finish``; a gather returns when it is done."""

    def close(self, together: bool) -> None:
        """See ``RowMemory.close``; it is there as long as somebody maps it."""
        del together
        self._memory = {}

    def _addresses(self, memory: NDArray[np.uint8], places: NDArray[Any]) -> NDArray[np.int64]:
        return memory.ctypes.data + places.astype(np.int64) * self._row_bytes

    def _new_output(self, rows: int) -> Tensor:
        return pooled((rows, *self.source.shape[1:]), self.source.encoding.stored)


class SentRows(HostRows):
    """Places in host memory of each rank alone, which sends rows to the others.

    Args:
        memory: of this rank.
    """

    def tell(self, rank: int, places: NDArray[np.int32]) -> NDArray[Any]:
        """See ``RowMemory.tell``."""
        if rank == self._rank:
            return places
        rows = self._new_output(len(places))
        addresses = self._addresses(self._memory[self._rank], places)
        self._reader.copy_at(0, torch.from_numpy(addresses), rows)
        return rows.view(-1).view(torch.uint8).numpy()

    def locate(self, rank: int, told: bytearray | memoryview, rows: int) -> NDArray[np.int64]:
        """See ``RowMemory.locate``."""
        if rank == self._rank:
            return super().locate(rank, told, rows)
        return self._addresses(np.frombuffer(told, np.uint8), np.arange(rows))

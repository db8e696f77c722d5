"""The ``Store`` contract, which every tier fulfils, and what stores do alike."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol, TypeGuard, TypeVar

import numpy as np
import torch
from torch import Tensor

from gnnsys.counters import Counters
from gnnsys.errors import ArgumentError, DTypeError, ReadOnlyError, RowIndexError, UnsupportedError
from gnnsys.memory.alloc import pooled
from gnnsys.memory.describe import facts_of
from gnnsys.memory.encoding import Encoding
from gnnsys.memory.ids import CPU, RowIds, check_bounds, check_ids, row_index_error
from gnnsys.memory.reads import PendingRows, Reads
from gnnsys.system.extension import core
from gnnsys.system.notebook import facts_as_html
from gnnsys.system.threads import num_threads

__all__ = ["AnnouncedStore", "BatchRows", "RowReader", "Store", "is_announced"]

S = TypeVar("S", bound="Store")


class Store(Protocol):
    """Rows of one feature matrix in one kind of memory.

    What every tier gives, so that nobody asks what kind of store there is. Methods may be called
    from several threads.
    """

    tier: str
    """Under which the rows it serves are counted."""

    shape: torch.Size
    """(rows, …)"""

    encoding: Encoding
    """How rows are stored, and as what they are delivered."""

    counters: Counters
    """Rows and bytes served so far, by tier."""

    device: torch.device = CPU
    """Where gathered rows appear."""

    path: str = ""
    """Of the file that rows are read from, or the first one; "" without a file."""

    depth: int = 0
    """Reads of that file that may be in flight at once; 0 where no disk is asked for rows."""

    @property
    def dtype(self) -> torch.dtype:
        """The delivered element type."""
        return self.encoding.delivered

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of a row as it is stored."""
        return self.encoding.row_bytes(self.shape)

    @property
    def resident(self) -> Tensor | None:
        """(rows, …) all rows as they are stored, where host memory holds them and they may be read
        in place; else None."""
        return None

    def gather(self, ids: Tensor, out: Tensor | None = None, stream: Any = None) -> Tensor:
        """Rows ``ids`` in their order, ``features[ids]`` bit for bit.

        Args:
            ids: (n,) int32 or int64 on the CPU, each in ``[0, rows)``; duplicates are fine.
            out: (n, …) tensor of the delivered dtype to write to; without it a pooled one is
                returned whose memory is used again once it is let go.
            stream: for stores whose rows a device reads; CPU stores take None.

        Raises:
            RowIndexError: an id is outside the rows.
            DTypeError, ArgumentError: ids or out of a wrong type or shape.
        """

    def start_reads(self, batch: Reads) -> PendingRows:
        """Begins to bring rows of a batch nearer; what was started first is read first.

        The rows are not counted as served: whoever hands them on counts them.

        Raises:
            RowIndexError: an id is outside the rows.
            ArgumentError: the ids do not ascend.
        """
        raise UnsupportedError(f"{self.tier}: rows of this store are not read ahead; gather them")

    def read_range(self, first: int, last: int, out: Tensor | None = None) -> Tensor:
        """Rows ``[first, last)`` in one sequential pass, in memory of their own.

        Args:
            first, last: numbers of the first row and of the one after the last.
            out: (last - first, …) of the delivered dtype to write to; None for new memory.

        Raises:
            RowIndexError: the range is not within the rows.
        """

    def write(self, ids: Tensor, rows: Tensor) -> None:
        """Overwrites rows ``ids``; of an id that is there twice, the last row stays.

        Args:
            ids: (n,) int32 or int64 on the CPU, each in ``[0, rows)``.
            rows: (n, …) on the CPU; cast to the stored element type.

        Raises:
            ReadOnlyError: the store is not writable.
            RowIndexError: an id is outside the rows; nothing is written.
            DTypeError, ArgumentError: ids or rows of a wrong type or shape.
        """
        raise ReadOnlyError(f"{self.tier}: this store is read-only")

    def with_dtype(self: S, dtype: torch.dtype) -> S:
        """The same rows delivered as ``dtype``: of the same memory or open file, and counted
        together. Closing one closes both.

        Raises:
            DTypeError: no store delivers that type.
        """
        return self._with(encoding=replace(self.encoding, delivered=dtype))

    def as_stored(self: S) -> S:
        """The same rows delivered as they are stored: those that are quantised as (n, row_bytes)
        uint8. Otherwise as ``with_dtype``; the store itself where it does so."""
        shape, stored = self.encoding.stored_shape(self.shape), self.encoding.stored
        as_is = Encoding(stored, stored)
        return self if self.encoding == as_is else self._with(encoding=as_is, shape=shape)

    def _with(self: S, **changes: Any) -> S:
        other: S = object.__new__(type(self))
        other.__dict__.update(self.__dict__, **changes)
        return other

    def close(self) -> None:
        """Lets go of memory and files, after the gathers under way have ended.

        Gathering afterwards raises ArgumentError, where there was something to let go of. What was
        gathered stays valid, and so do staged rows as long as somebody has them.
        """

    def facts(self) -> dict[str, str]:
        """What a notebook shows: rows, bytes, tier and more, without reading any."""
        return facts_of(self)

    def _repr_html_(self) -> str:
        return facts_as_html(type(self).__name__, self.facts())


class AnnouncedStore(Store, Protocol):
    """A store that is told ahead which rows will be asked for. ::

    ticket = store.announce(ids, owner)  # one owner's batches are planned ahead at a time
    rows = store.gather(ids, ticket=ticket)
    store.retract(ticket)  # instead: neither this batch nor any announced after it will come
    store.finish(owner)  # no further batch will be announced
    store.end(owner)  # nor gathered
    """

    world_size: int = 1
    """Ranks that share it, all of which announce a batch for each that one of them gathers."""

    @property
    def lookahead(self) -> int:
        """Batches that it wants announced ahead of the one it serves."""
        return 0

    def announce(self, ids: Tensor, owner: Any = None) -> Any:
        """Takes note of the (n,) ids of a batch to come; returns its ticket."""

    def gather(
        self, ids: Tensor, out: Tensor | None = None, stream: Any = None, *, ticket: Any = None
    ) -> Tensor:
        """Rows of the batch announced; tickets are redeemed in the order they were given."""

    def retract(self, ticket: Any) -> None:
        """Takes back this ticket and all that its owner was given after it."""

    def finish(self, owner: Any = None) -> None:
        """Told, where it is known, that an owner announces nothing more than what waits.

        Ranks that share a store may wait for what another has not announced yet.
        """

    def end(self, owner: Any = None) -> None:
        """Takes back what waits of an owner, who announces nothing any more."""


def is_announced(store: Store) -> TypeGuard[AnnouncedStore]:
    """Whether a store is to be told ahead."""
    return hasattr(store, "announce")


class BatchRows(Store):
    """The rows of an announced batch, as ``store`` serves them for its ticket, once."""

    def __init__(self, store: AnnouncedStore, ticket: Any) -> None:
        self.tier, self.shape, self.encoding = store.tier, store.shape, store.encoding
        self.counters = store.counters
        self.store, self.ticket = store, ticket

    def gather(self, ids: Tensor, out: Tensor | None = None, stream: Any = None) -> Tensor:
        """See ``AnnouncedStore.gather``."""
        return self.store.gather(ids, out, ticket=self.ticket)

    def read_range(self, first: int, last: int, out: Tensor | None = None) -> Tensor:
        """See ``Store.read_range``."""
        return self.store.read_range(first, last, out)

    def close(self) -> None:
        """Leaves the store open."""


class RowReader:
    """Gathers rows of a table that lies in this process's address space, mapped or not.

    Args:
        address: of the first row.
        shape: (rows, …) of the table as it is stored.
        stored: element type in memory.
        stride: bytes from a row to the next.
        threads: that gather; 0 for all cores this process may use.
        isa: "auto", or an instruction set of ``gnnsys._core.isas()``.
    """

    cast_block_bytes = 256 << 10
    """Rows that are cast at a time: they are still in the L2 cache when they are."""

    def __init__(
        self,
        address: int,
        shape: torch.Size,
        stored: torch.dtype,
        stride: int,
        threads: int = 0,
        isa: str = "auto",
    ) -> None:
        self.address = address
        self.shape = shape
        self.stored = stored
        self.stride = stride
        self.row_bytes = Encoding(stored, stored).row_bytes(shape)
        self._gatherer = core.Gatherer(num_threads(threads), isa)

    def gather(self, ids: RowIds, encoding: Encoding, out: Tensor | None = None) -> Tensor:
        """See ``Store.gather``; rows are delivered as ``encoding`` says."""
        shape = encoding.delivered_shape(self.shape)
        if out is not None:
            check_out(out, len(ids), shape, encoding.delivered)
        if encoding.delivered != encoding.landed:
            return self._gather_cast(ids, encoding, out)
        target = encoding.target(out)
        rows = pooled((len(ids), *shape[1:]), encoding.landed) if target is None else target
        self._copy_rows(ids, rows, encoding.coding(shape))
        return rows if out is None else encoding.cast(rows, out)

    def _copy_rows(self, ids: RowIds, out: Tensor, coding: core.RowCoding | None) -> None:
        """Writes rows ``ids`` as they are stored, or decoded, to ``out``, dense memory for them."""
        bad = self._gatherer.gather(
            self.address,
            self.shape[0],
            self.row_bytes,
            self.stride,
            ids.data_ptr(),
            ids.element_size(),
            len(ids),
            out.data_ptr(),
            coding,
        )
        if bad >= 0:
            raise row_index_error(ids, bad, self.shape[0])

    def copy_at(
        self, address: int, offsets: Tensor, out: Tensor, coding: core.RowCoding | None = None
    ) -> None:
        """Copies rows from places that the caller answers for, or decodes them there.

        Args:
            address: of the memory they lie in.
            offsets: (n,) int64 bytes from there to each row, none below 0.
            out: dense memory of n rows.
            coding: None for rows as they are stored.
        """
        self._gatherer.gather(
            address,
            torch.iinfo(torch.int64).max,
            self.row_bytes,
            1,
            offsets.data_ptr(),
            8,
            len(offsets),
            out.data_ptr(),
            coding,
        )

    def _gather_cast(self, ids: RowIds, encoding: Encoding, out: Tensor | None) -> Tensor:
        shape = encoding.delivered_shape(self.shape)
        if out is None:
            out = torch.empty((len(ids), *shape[1:]), dtype=encoding.delivered)
        landed_bytes = math.prod(shape[1:]) * encoding.landed.itemsize
        step = max(1, self.cast_block_bytes // max(1, landed_bytes))
        block = pooled((min(step, len(ids)), *shape[1:]), encoding.landed)
        for start in range(0, len(ids), step):
            some = RowIds(ids[start : start + step])
            self._copy_rows(some, block[: len(some)], encoding.coding(shape))
            encoding.cast(block[: len(some)], out[start : start + step])
        return out


def check_out(
    out: Tensor,
    rows: int,
    table: torch.Size,
    dtype: torch.dtype,
    device: torch.device = CPU,
) -> None:
    """Raises unless ``out`` takes ``rows`` rows of a table of that shape as ``dtype``, there."""
    expected = (rows, *table[1:])
    if tuple(out.shape) != expected:
        raise ArgumentError(f"out: shape {tuple(out.shape)} != {expected}, the rows asked for")
    if out.dtype != dtype:
        raise DTypeError(f"out: dtype {out.dtype} != {dtype}, that of the store")
    if out.device != device:
        raise ArgumentError(f"out: is on {out.device}; rows of this store arrive on {device}")


def check_range(first: int, last: int, rows: int) -> None:
    """Raises RowIndexError unless ``[first, last)`` is within the rows."""
    if not 0 <= first <= last <= rows:
        raise RowIndexError(f"rows [{first}, {last}) are not within [0, {rows})")


def check_write(
    ids: Tensor, rows: Tensor, shape: torch.Size, encoding: Encoding
) -> tuple[RowIds, Tensor]:
    """What a store of ``shape`` writes: each id once, ascending, with the last of its rows.

    Returns:
        (m,) int64 ids and (m, …) rows, dense, as they are stored.

    Raises:
        RowIndexError, DTypeError, ArgumentError: see ``Store.write``.
        UnsupportedError: rows are quantised by scales of columns, which are those of the rows that
            the table was made of.
    """
    wanted = check_ids(ids).long()
    rows = check_rows(rows, len(wanted), shape, encoding)
    check_bounds(wanted, shape[0])
    if not bool((wanted[1:] > wanted[:-1]).all()):
        backwards = wanted.flip(0).numpy()
        unique, place = np.unique(backwards, return_index=True)
        wanted = torch.from_numpy(unique)
        rows = rows[torch.from_numpy(len(backwards) - 1 - place)]
    return RowIds(wanted), encoding.encode(rows)


def check_rows(rows: Tensor, count: int, shape: torch.Size, encoding: Encoding) -> Tensor:
    """Rows, detached, of which a store of ``shape`` can write ``count``; raises as ``check_write``
    does."""
    if encoding.codes is not None and encoding.codes.scales:
        raise UnsupportedError(
            f"rows: {encoding.codes.dtype} with a scale for each column takes no other rows, which "
            "may be beyond its scales; write to a table with a scale for each row (--scale row)"
        )
    if rows.shape != (count, *shape[1:]) or rows.device.type != "cpu":
        raise ArgumentError(
            f"rows: shape {tuple(rows.shape)} on {rows.device}, expected {(count, *shape[1:])} on "
            "the CPU"
        )
    return rows.detach()

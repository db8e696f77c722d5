"""A cache that holds every row: read once, in one pass, and then nothing but memory.

Owns ``ResidentRows``, which keeps the order of tickets as ``Engine`` does and plans nothing.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from gnnsys.cache.stats import CacheStats
from gnnsys.cache.tickets import Ticket, Tickets
from gnnsys.counters import Counters
from gnnsys.errors import TooLargeError
from gnnsys.memory import empty
from gnnsys.memory.encoding import Encoding
from gnnsys.memory.ids import RowIds
from gnnsys.memory.store import RowReader, Store
from gnnsys.system.budget import CACHE_ROWS, process_budget

__all__ = ["ResidentRows"]

_log = logging.getLogger(__name__)


class ResidentRows:
    """Serves rows of a table that fits into its cache; the calls are those of ``Engine``."""

    lookahead = 0

    def __init__(
        self,
        source: Store,
        name: str,
        *,
        threads: int,
        counters: Counters,
        record: Callable[[NDArray[Any]], None] = lambda ids: None,
    ) -> None:
        self._source, self._threads = source, threads
        self._counters, self._record = counters, record
        self._rows: Tensor | None = None
        self._reader: RowReader | None = None
        self._tickets = Tickets(name)
        self._given = 0
        self._lock = threading.Lock()
        self._stats = CacheStats(capacity=source.shape[0])

    @property
    def stats(self) -> CacheStats:
        """Counts so far."""
        with self._lock:
            return dataclasses.replace(self._stats)

    def announce(self, ids: RowIds, owner: Any) -> Ticket:
        """See ``CachedStore.announce``."""
        with self._lock:
            if self._tickets.is_abandoned():
                self._tickets.drop_from(self._tickets[0])
            if not self._tickets.admits(owner):
                return self._tickets.make_aside(ids, owner)
            ticket = Ticket(ids, self._given)
            self._tickets.add(ticket, owner)
            self._given += 1
            return ticket

    def retract(self, ticket: Any) -> None:
        """See ``CachedStore.retract``."""
        with self._lock:
            self._given -= len(self._tickets.drop_from(ticket))

    def finish(self, owner: Any) -> None:
        """See ``AnnouncedStore.finish``; nobody waits for it."""

    def end(self, owner: Any) -> None:
        """See ``CachedStore.end``."""
        with self._lock:
            self._given -= len(self._tickets.drop_of(owner))

    def close(self) -> None:
        """Nothing is under way between two gathers."""

    def gather(
        self, ids: RowIds, out: Tensor | None, ticket: Any, encoding: Encoding | None = None
    ) -> Tensor:
        """See ``Engine.gather``."""
        with self._lock:
            if ticket is not None:
                self._tickets.check_turn(ticket, ids)
            if self._reader is None:
                self._load()
            assert self._reader is not None
            rows = self._reader.gather(ids, encoding or self._source.encoding, out)
            self._record(ids.numpy())
            if ticket is not None:
                self._tickets.redeem(ticket)
            self._stats.batches += 1
            self._stats.rows += len(ids)
            self._stats.hits += len(ids)
        self._counters.add("cache", len(ids), len(ids) * self._source.row_bytes)
        return rows

    def _load(self) -> None:
        source, began = self._source, time.monotonic()
        try:
            self._rows = empty(source.shape, source.dtype)
        except (MemoryError, OSError) as error:
            raise TooLargeError(
                f"cache: the system refuses memory for all {source.shape[0]} rows ({error}); give "
                "a smaller cache="
            ) from error
        process_budget().hold(CACHE_ROWS, source.shape[0] * source.row_bytes, self._rows)
        source.read_range(0, source.shape[0], self._rows)
        self._reader = RowReader(
            self._rows.data_ptr(),
            source.shape,
            source.dtype,
            source.row_bytes,
            self._threads,
        )
        self._stats.prefilled = self._stats.resident = source.shape[0]
        _log.info("cache: all %d rows in %.1f s", source.shape[0], time.monotonic() - began)

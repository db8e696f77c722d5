"""Joint batches drawn ahead, told to a cache, and joined with their rows.

Owns ``JointIteration`` and its two threads. Invariants: all ranks begin to draw the same batches in
the same order, whatever happens to one of them, and none draws after one that has failed; what is
begun is drawn to its end, since other ranks take part in it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gnnsys.loaders.sampled_bytes import bytes_ahead, size_of
from gnnsys.memory.store import AnnouncedStore, BatchRows, is_announced
from gnnsys.ranks.transport import Driver, all_gather_objects
from gnnsys.system.background import run_outside
from gnnsys.unified_tensor import UnifiedTensor

if TYPE_CHECKING:
    from gnnsys.loaders.cooperative import JointBatch

__all__ = ["JointIteration"]


class JointIteration:
    """One pass over batches; it is who announces them.

    Args:
        draw: this rank's part of a batch, of its number and seeds.
        seeds: the number of each batch, and its seeds.
        features: whose rows are gathered.
        transport: by which ranks agree how far ahead they draw; not the one that ``draw`` uses.
        transform: is given each batch with its rows; what it returns is yielded.
    """

    def __init__(
        self,
        draw: Callable[[int, Tensor], JointBatch],
        seeds: Iterator[tuple[int, Tensor]],
        features: Tensor,
        transport: Driver,
        transform: Callable[[JointBatch], Any],
    ) -> None:
        self._draw, self._left, self._features = draw, seeds, features
        self._transport, self._transform = transport, transform
        self._store: AnnouncedStore | None = None
        if isinstance(features, UnifiedTensor) and is_announced(features.store):
            self._store = features.store
        self._drawn: deque[Future[tuple[JointBatch, Any]]] = deque()
        self._failed = threading.Event()

    def batches(self) -> Generator[Any, None, None]:
        """What ``transform`` returned for each batch; ends the iteration, however it is left."""
        drawing = ThreadPoolExecutor(1, "gnnsys-draw")
        gathering = ThreadPoolExecutor(1, "gnnsys-gather")

        def end() -> None:
            gathering.shutdown()
            drawing.shutdown()
            if self._store is not None:
                self._store.end(self)

        try:
            self._draw_ahead(drawing, 1)
            count = self._agreed_count()
            self._draw_ahead(drawing, count)
            gathered = self._gather_next(gathering)
            while gathered is not None:
                self._draw_ahead(drawing, count)
                batch = gathered.result()
                gathered = self._gather_next(gathering)
                yield batch
        finally:
            run_outside(end)

    def _draw_ahead(self, drawing: ThreadPoolExecutor, count: int) -> None:
        for number, seeds in islice(self._left, count - len(self._drawn)):
            self._drawn.append(drawing.submit(self._draw_and_announce, number, seeds))

    def _draw_and_announce(self, number: int, seeds: Tensor) -> tuple[JointBatch, Any]:
        if self._failed.is_set():  # other ranks are still at the batch that failed
            raise CancelledError
        try:
            batch = self._draw(number, seeds)
            return batch, None if self._store is None else self._store.announce(batch.n_id, self)
        except BaseException:
            self._failed.set()
            raise

    def _agreed_count(self) -> int:
        """Batches to draw ahead of the one that is gathered: as many on all ranks as a cache asks
        for, of the size of the first, and memory takes."""
        wanted = 1
        if self._store is not None and self._drawn:
            batch, _ = self._drawn[0].result()
            wanted = min(self._store.lookahead, bytes_ahead() // max(1, size_of(batch)))
        told = all_gather_objects(self._transport, max(1, wanted), "control")
        return min(self._transport.drive(told))

    def _gather_next(self, gathering: ThreadPoolExecutor) -> Future[Any] | None:
        return gathering.submit(self._gather, self._drawn.popleft()) if self._drawn else None

    def _gather(self, drawn: Future[tuple[JointBatch, Any]]) -> Any:
        rows, (batch, ticket) = self._features, drawn.result()
        if self._store is not None:
            rows = UnifiedTensor(BatchRows(self._store, ticket), rows.device)
        return self._transform(replace(batch, x=rows[batch.n_id]))

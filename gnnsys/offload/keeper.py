"""Keeps storages within a budget of memory: moves those out that backward needs last, and back.

Backward needs what forward saves in reverse, so that the first saved is needed last. Under a lock:
forward and backward may run in different threads, and moves end in others.
"""

from __future__ import annotations

import contextlib
import math
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gnnsys.compat import version_of
from gnnsys.errors import ArgumentError, StorageError, TooLargeError
from gnnsys.memory.alloc import return_freed_memory
from gnnsys.offload.planner import StepPlan, StepProfile
from gnnsys.offload.records import Geometry, Record, Released, changed, memory_of
from gnnsys.offload.stats import StepClock
from gnnsys.offload.tiers import Tier
from gnnsys.system.sizes import size_text

if TYPE_CHECKING:
    from concurrent.futures import Future

    from gnnsys.offload.copies import Arrival

__all__ = ["Keeper"]

_LOADS = 4
"""Storages on their way back at once."""

_RETURNED = 16 << 20
"""Bytes at least after which what was let go of is given back to the system: the C allocator keeps
it where small memory that is in use lies between."""

_LOOK_SECONDS = 0.1
"""After which whoever waits looks for handles that were let go of, of which nobody tells."""


class Keeper:
    """Storages of one device.

    Args:
        device: where they are used.
        budget: bytes that may be in memory.
        tier: where storages are moved to; None for nowhere.
        rounds: whether float32 is rounded to bfloat16.
    """

    def __init__(
        self, device: torch.device, budget: int, tier: Tier | None, *, rounds: bool = False
    ) -> None:
        self.device, self.budget = device, budget
        self.plan: StepPlan | None = None
        self.released: Released = deque()
        self.live = self.peak = 0
        """Bytes in memory, and at most in this step."""

        self._tier, self._rounds = tier, rounds
        self._records: dict[tuple[int, int], Record] = {}
        self._stored = self._loaded = self._forwarded = 0  # bytes of the step
        self._storing = self._coming = 0  # bytes that are being moved out, and back
        self._loading = 0  # storages
        self._handles = 0  # that were made
        self._dropped = 0  # bytes, since they were given back
        self._turned = False  # whether backward has begun
        self._prefetching = self._closed = False
        self._failure: BaseException | None = None
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._clock = StepClock()

    # A step ---------------------------------------------------------------------------------------

    def begin_step(self, plan: StepPlan | None) -> None:
        """Counts from zero; forgets a fault of the step before.

        Args:
            plan: by which storages are moved out at once.
        """
        with self._lock:
            self._failure = None
            self._drain()
            self.plan, self._clock = plan, StepClock()
            self.peak = self.live
            self._stored = self._loaded = self._forwarded = 0
            self._turned = False

    def counts(self) -> dict[str, Any]:
        """Of the step so far, by the names of ``StepStats``."""
        return {
            "stored": self._stored,
            "loaded": self._loaded,
            "forwarded": self._forwarded,
            "peak": self.peak,
            "stall": self._clock.waited,
            "seconds": self._clock.seconds,
        }

    def profile(self) -> StepProfile:
        """Of the step so far."""
        bandwidths = (math.inf, math.inf) if self._tier is None else self._tier.bandwidths()
        return self._clock.profile(*bandwidths)

    def end_forward(self) -> None:
        """Begins to bring back what backward needs first; raises what failed so far."""
        with self._lock:
            self._drain()
            self._raise_failure()
            self._turned = True
            self._prefetch()

    def is_idle(self) -> bool:
        """Whether nothing is kept, but for moves that nobody waits for."""
        with self._lock:
            self._drain()
            return not self._records and self.live == self._storing + self._coming

    def next_number(self) -> int:
        """Of a handle that is about to be made."""
        self._handles += 1
        return self._handles

    # Saving ---------------------------------------------------------------------------------------

    def add_small(self, nbytes: int, shape: torch.Size) -> None:
        """Counts what stays in memory until a handle of so many bytes is let go of."""
        with self._lock:
            self._begin_save()
            self._make_room(nbytes, shape)
            self._clock.saved_small(nbytes)
            self._count(nbytes)

    def find(self, key: tuple[int, int], number: int) -> Record | None:
        """The record of a storage, for a handle of this number; None where it is not kept.

        Args:
            key: the storage's number, and its version.
        """
        with self._lock:
            self._drain()
            record = self._records.get(key)
            if record is not None:
                record.uses.append(number)
            return record

    def use(self, record: Record, number: int) -> None:
        """Keeps a record for one more handle."""
        with self._lock:
            record.uses.append(number)

    def keep(self, t: Tensor, key: tuple[int, int], number: int) -> Record:
        """Keeps the storage of a tensor.

        Args:
            t: the tensor.
            key: the storage's number and version.
            number: of the handle that is to be made.

        Raises:
            TooLargeError: it cannot be kept within the budget.
            StorageError: a move failed.
        """
        with self._lock:
            self._begin_save()
            memory, rounded = memory_of(t), False
            alive: weakref.ref[torch.UntypedStorage] | None = weakref.ref(t.untyped_storage())
            if self._rounds and t.dtype == torch.float32 and len(memory) % 4 == 0:
                memory = memory.view(torch.float32).to(torch.bfloat16).view(torch.uint8)
                alive, rounded = None, True
            nbytes = len(memory)
            place = self._clock.saved(nbytes)
            self._make_room(nbytes, t.shape)
            record = Record(key, place, nbytes, t.shape, None, alive, rounded, uses=[number])
            record.watch(memory)
            if self.plan is not None and place in self.plan.stored and self._tier is not None:
                # Where there is no place it stays, as long as there is room for others.
                with contextlib.suppress(StorageError, TooLargeError):
                    self._start_store(record, self._tier)
            self._records[key] = record
            self._count(nbytes)
            return record

    def _begin_save(self) -> None:
        self._drain()
        self._raise_failure()
        self._turned = False

    # Needing --------------------------------------------------------------------------------------

    def take(self, record: Record, geometry: Geometry) -> Tensor:
        """The tensor, brought back where it is not in memory.

        Raises:
            TooLargeError: it cannot be brought back within the budget.
            StorageError: a move failed.
        """
        with self._lock:
            self._drain()
            self._raise_failure()
            self._turned = True
            self._clock.needed(record.number)
            memory = self._bring(record)
            if record.is_changed():
                assert record.witness is not None
                found = max(version_of(record.witness), record.version + 1)
                raise changed(record.shape, found, record.version)
            self._prefetch()
        if record.rounded:
            memory = memory.view(torch.bfloat16).to(torch.float32).view(torch.uint8)
        return geometry.view(memory)

    def _bring(self, record: Record) -> Tensor:
        while record.memory is None:
            if record.loading is not None:
                self._wait()
            elif record.fault is not None:
                self._raise_fault(record)
            elif (memory := record.elsewhere()) is not None:
                self._forwarded += record.nbytes
                return memory
            else:
                self._start_to_bring(record)
        if record.storing is not None:
            self._forwarded += record.nbytes
            record.storing.cancel()
        if record.arrival is not None:
            record.arrival.join()
        return record.memory

    def _start_to_bring(self, record: Record) -> None:
        assert self._tier is not None
        if self._closed:
            raise ArgumentError("ActivationOffload: backward came after it was closed")
        self._make_room(record.nbytes, record.shape)
        if record.is_away():  # still, after a wait in which there may have been room for it
            self._start_load(record, self._tier)

    def _raise_fault(self, record: Record) -> None:
        fault, record.fault = record.fault, None
        assert fault is not None
        try:
            raise fault
        finally:
            del fault  # its traceback keeps the graph, and so the record

    # Moving, all under the lock -------------------------------------------------------------------

    def close(self) -> None:
        """Waits for what is being moved, and lets go of the tier."""
        self._closed = True
        if self._tier is not None:
            self._tier.close()

    def _start_store(self, record: Record, tier: Tier) -> None:
        assert record.memory is not None
        place = tier.allocate(record.nbytes)
        try:
            record.storing = tier.store(record.memory, place)
        except BaseException:
            tier.free(place)
            raise
        record.place = place
        self._storing += record.nbytes
        self._stored += record.nbytes
        record.storing.add_done_callback(lambda done: self._end_store(record, tier, done))

    def _end_store(self, record: Record, tier: Tier, done: Future[None]) -> None:
        with self._lock:
            record.storing = None
            self._storing -= record.nbytes
            fault = None if done.cancelled() else done.exception()
            self._fail(fault)
            if done.cancelled():
                self._stored -= record.nbytes
            if done.cancelled() or fault is not None:  # it stays in memory
                tier.free(record.place)
                record.place = None
            else:
                self._drop(record)
            self._end_move(record)

    def _end_move(self, record: Record) -> None:
        """In a thread to which nobody listens."""
        if not record.uses:
            self._forget(record)
        try:
            self._prefetch()
        except Exception as error:
            self._fail(error)
        finally:
            self._changed.notify_all()

    def _fail(self, fault: BaseException | None) -> None:
        if fault is not None and self._failure is None:
            self._failure = fault.with_traceback(None)  # which would keep the graph

    def _start_load(self, record: Record, tier: Tier) -> None:
        record.loading = tier.load(record.place, record.nbytes)
        self._loading += 1
        self._coming += record.nbytes
        self._count(record.nbytes)
        self._loaded += record.nbytes
        record.loading.add_done_callback(lambda done: self._end_load(record, tier, done))

    def _end_load(self, record: Record, tier: Tier, done: Future[Arrival]) -> None:
        with self._lock:
            record.loading = None
            self._loading -= 1
            self._coming -= record.nbytes
            record.fault = done.exception()
            if record.fault is None:
                record.arrival = done.result()
                record.watch(record.arrival.tensor)
                if not record.rounded:
                    record.alive = weakref.ref(record.arrival.tensor.untyped_storage())
            else:
                self.live -= record.nbytes
            self._end_move(record)

    def _drop(self, record: Record) -> None:
        """Lets go of what is in memory."""
        record.memory = record.arrival = None
        self.live -= record.nbytes
        self._dropped += record.nbytes
        if self._dropped >= max(_RETURNED, self.budget // 8):
            self._dropped = 0
            return_freed_memory()

    def _forget(self, record: Record) -> None:
        """Lets go of all, of a record that nobody needs and that is not being moved."""
        if record.memory is not None:
            self._drop(record)
        if record.place is not None and self._tier is not None:
            self._tier.free(record.place)
            record.place = None

    def _make_room(self, nbytes: int, shape: torch.Size) -> None:
        """Waits until so many bytes more fit the budget."""
        while self.live + nbytes > self.budget:
            if self.live + nbytes - self._storing > self.budget:
                victim = self._furthest()
                if victim is not None and victim.place is not None:
                    self._drop(victim)
                    continue
                if victim is not None and self._tier is not None:
                    self._start_store(victim, self._tier)
                    continue
                if not self._storing and not self._loading:
                    raise self._too_large(nbytes, shape)
            self._wait()
            self._drain()
            self._raise_failure()

    def _too_large(self, nbytes: int, shape: torch.Size) -> TooLargeError:
        way_out = (
            "give a larger budget" if self._tier is not None else "allow policies to move them out"
        )
        return TooLargeError(
            f"activations: a tensor of {size_text(nbytes)} {tuple(shape)} beside "
            f"{size_text(self.live)} that must stay in memory takes "
            f"{size_text(self.live + nbytes)} > budget of {size_text(self.budget)}; {way_out}"
        )

    def _furthest(self) -> Record | None:
        """What is needed last of all that could leave the memory."""
        here = [r for r in self._records.values() if r.memory is not None and r.storing is None]
        return min(here, key=lambda record: record.last, default=None)

    def _prefetch(self) -> None:
        if self._prefetching:  # a load from the host's memory ends at once, and comes by here
            return
        self._prefetching = True
        try:
            while self._turned and not self._closed and self._tier and self._loading < _LOADS:
                away = [r for r in self._records.values() if r.is_away()]
                nearest = max(away, key=lambda record: record.last, default=None)
                if nearest is None or self.live + nearest.nbytes > self.budget:
                    return
                self._start_load(nearest, self._tier)
        finally:
            self._prefetching = False

    def _wait(self) -> None:
        with self._clock.waiting():
            self._changed.wait(_LOOK_SECONDS)

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _count(self, nbytes: int) -> None:
        self.live += nbytes
        self.peak = max(self.peak, self.live)

    def _drain(self) -> None:
        """Lets go of what handles held that are gone."""
        while self.released:
            record, number, nbytes, when = self.released.popleft()
            self._clock.released(when)
            self.live -= nbytes
            if record is None:
                continue
            record.uses.remove(number)
            if not record.uses:
                if self._records.get(record.key) is record:
                    del self._records[record.key]
                if record.storing is not None:
                    record.storing.cancel()
                elif record.loading is None:
                    self._forget(record)

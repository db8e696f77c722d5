"""Streams that the CPU executes, in an order that shows what is not waited for."""

from __future__ import annotations

import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["HostEvent", "HostStream", "HostStreams"]


class HostStreams:
    """See ``Streams``; memory of the device is that of the process.

    A stream does nothing by itself: somebody who waits has done what that needs. By ``early``,
    streams of copies also do at once all that events let them; by ``late``, those that compute; by
    ``random``, any of them anything at any time. Memory that was let go of is given out again as
    soon as a GPU's may be, the last first. Results may depend on none of it.

    Args:
        order: of what is done, as above.
        seed: of the random order.
    """

    def __init__(self, order: Literal["early", "late", "random"] = "late", seed: int = 0) -> None:
        self._order, self._random = order, random.Random(seed)
        self._cpu = HostStream(computes=True)  # does at once what it is given
        self._current = self._cpu
        self._streams: list[HostStream] = []
        self._memory: list[_Memory] = []
        self._lock = threading.RLock()

    def current(self) -> HostStream:
        """See ``Streams``; the CPU itself, unless there is ``computing_on``."""
        return self._current

    @contextmanager
    def computing_on(self, stream: HostStream) -> Iterator[None]:
        """Within it, that is the current stream, of all threads."""
        before, self._current = self._current, stream
        try:
            yield
        finally:
            self._current = before

    def new(self, *, computes: bool = False) -> HostStream:
        """See ``Streams``.

        Args:
            computes: rather than copies.
        """
        self._streams.append(HostStream(computes))
        return self._streams[-1]

    def give(self, stream: HostStream, work: Callable[[], object]) -> None:
        """Something for the stream to do after what it was given until now."""
        self._give(stream, work)

    def record(self, stream: HostStream) -> HostEvent:
        """See ``Streams``."""
        return HostEvent(stream, stream.given)

    def seconds_between(self, start: HostEvent, end: HostEvent) -> float | None:
        """See ``Streams``."""
        with self._lock:
            return end.came_at - start.came_at if end.has_come else None

    def wait(self, stream: HostStream, event: HostEvent) -> None:
        """See ``Streams``."""
        self._give(stream, event)

    def synchronize(self, event: HostEvent) -> None:
        """See ``Streams``."""
        with self._lock:
            while not event.has_come:
                self._advance(event.stream)

    def copy(self, stream: HostStream, source: Tensor, out: Tensor) -> None:
        """See ``Streams``."""
        self._give(stream, partial(np.copyto, self._bytes_of(out), self._bytes_of(source)))

    def device_memory(self, stream: HostStream, nbytes: int) -> Tensor:
        """See ``Streams``."""
        with self._lock:
            found = [memory for memory in self._memory if memory.is_free_for(stream, nbytes)]
            if not found:
                found = [_Memory(stream, np.full(nbytes, 0xAB, np.uint8))]
                self._memory += found
            return max(found, key=lambda memory: memory.let_go_at).hand_out()

    def host_memory(self, nbytes: int) -> Tensor:
        """See ``Streams``."""
        return torch.from_numpy(np.full(nbytes, 0xAB, np.uint8))

    def share(self, tensor: Tensor, stream: HostStream) -> None:
        """See ``Streams``."""
        with self._lock:
            for memory in self._memory:
                if memory.is_of(tensor):
                    memory.users.append(stream)

    def _bytes_of(self, tensor: Tensor) -> NDArray[np.uint8]:
        """Keeps memory of the host, but not that of the device, from being let go of."""
        with self._lock:
            for memory in self._memory:
                if memory.is_of(tensor):
                    first = tensor.data_ptr() - memory.data.ctypes.data
                    return memory.data[first : first + tensor.numel()]
        found: NDArray[np.uint8] = tensor.detach().numpy()
        return found

    def _give(self, stream: HostStream, work: Callable[[], object] | HostEvent) -> None:
        with self._lock:
            stream.left.append(work)
            stream.given += 1
            if stream is self._cpu:
                self.synchronize(self.record(stream))
            if self._order == "random":
                for chosen in self._random.choices(self._streams, k=self._random.randrange(4)):
                    if chosen.can_advance:
                        self._advance(chosen)
                return
            eager = [s for s in self._streams if s.computes == (self._order == "late")]
            while ready := [s for s in eager if s.can_advance]:
                self._advance(ready[0])

    def _advance(self, stream: HostStream) -> None:
        """One thing more of it is done, or of what it waits for."""
        while isinstance(work := stream.left[0], HostEvent) and not work.has_come:
            stream = work.stream
        stream.left.popleft()
        if not isinstance(work, HostEvent):
            work()
        stream.times.append(time.perf_counter())


@dataclass(eq=False, slots=True)
class HostStream:
    """A stream of ``HostStreams``."""

    computes: bool
    """Rather than copies."""

    left: deque[Callable[[], object] | HostEvent] = field(default_factory=deque)
    """What it has not done."""

    given: int = 0
    """How many things it was given."""

    times: list[float] = field(default_factory=list)
    """When it had done each of them."""

    @property
    def can_advance(self) -> bool:
        """Whether the next of them may be done."""
        work = self.left[0] if self.left else None
        return work is not None and (not isinstance(work, HostEvent) or work.has_come)


@dataclass(frozen=True, slots=True)
class HostEvent:
    """An event of ``HostStreams``."""

    stream: HostStream
    given: int

    @property
    def has_come(self) -> bool:
        """Whether the stream has done all that it had been given."""
        return self.stream.given - len(self.stream.left) >= self.given

    @property
    def came_at(self) -> float:
        """When it did, which it has."""
        return self.stream.times[self.given - 1] if self.given else 0.0


@dataclass(eq=False, slots=True)
class _Memory:
    """Of the device; as the one of CUDA, it belongs to a stream for good."""

    stream: HostStream
    data: NDArray[np.uint8]
    users: list[HostStream] = field(default_factory=list)
    in_use: bool = False
    let_go_at: float = 0.0
    guards: list[HostEvent] = field(default_factory=list)

    def is_of(self, tensor: Tensor) -> bool:
        first = self.data.ctypes.data
        return first <= tensor.data_ptr() < first + self.data.nbytes

    def is_free_for(self, stream: HostStream, nbytes: int) -> bool:
        return (
            not self.in_use
            and self.stream is stream
            and self.data.nbytes == nbytes
            and all(event.has_come for event in self.guards)
        )

    def hand_out(self) -> Tensor:
        self.in_use, self.users, self.guards = True, [], []
        tensor = torch.from_numpy(self.data)
        weakref.finalize(tensor.untyped_storage(), self._let_go).atexit = False
        return tensor

    def _let_go(self) -> None:
        self.guards = [HostEvent(user, user.given) for user in self.users]
        self.let_go_at = time.monotonic()
        self.in_use = False

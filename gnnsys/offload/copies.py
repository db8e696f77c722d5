"""Activations on their way between a device and the memory of the host, beside computing."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gnnsys.errors import ArgumentError
from gnnsys.system.gpu.host_streams import HostStreams
from gnnsys.system.gpu.placement import device_of_cpu_tensors
from gnnsys.system.gpu.streams import CudaStreams, Streams

__all__ = ["Arrival", "Copies", "Copying", "HostPool", "StreamCopies", "copies_for"]

STAGING_BYTES = 256 << 20
"""Of pinned memory that copies of a device go through; more of them wait for their turn."""


class Arrival:
    """What comes back to the device.

    Args:
        tensor: (n,) uint8 on the device; to be read after ``join``.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def join(self) -> None:
        """What the current stream is given from now on reads what has arrived."""


@dataclass(slots=True)
class Copying:
    """What copies in one direction took."""

    nbytes: int = 0
    seconds: float = 0.0


class Copies(Protocol):
    """Copies between a device and the memory of the host; any thread may ask for them.

    Nobody who asks waits for a copy, nor for memory.
    """

    @property
    def copied_out(self) -> Copying:
        """By copies out that are done."""

    @property
    def copied_back(self) -> Copying:
        """By copies back that are done."""

    def out(self, data: Tensor, into: Tensor | None = None) -> Callable[[], Tensor]:
        """Starts to copy what the current stream has computed.

        Args:
            data: (n,) uint8 on the device, which does not change until the call below.
            into: (n,) uint8 of a ``HostPool``; None for memory of the staging.

        Returns:
            To be called once, by any thread: waits for the copy, (n,) uint8 on the CPU.
        """

    def back(self, host: Tensor) -> Arrival:
        """Starts to copy (n,) uint8 on the CPU to the device."""


def copies_for(device: torch.device) -> Copies:
    """Of a GPU copies on streams of their own, of the CPU none: its memory is the host's.

    CPU tensors within ``kernels_of_cpu_tensors`` are copied as those of a GPU are, and as late as
    they may be there.

    Args:
        device: of the activations.

    Raises:
        ArgumentError: a device of another kind.

    >>> copies = copies_for(torch.device("cpu"))
    >>> wait = copies.out(torch.arange(3, dtype=torch.uint8))
    >>> arrival = copies.back(wait())
    >>> arrival.join()
    >>> arrival.tensor
    tensor([0, 1, 2], dtype=torch.uint8)
    """
    if device.type == "cuda":
        return StreamCopies(CudaStreams(device))
    if device.type != "cpu":
        raise ArgumentError(f"device: {device}, whose activations do not leave it; use cpu or cuda")
    return _InPlace() if device_of_cpu_tensors() is None else StreamCopies(HostStreams())


class HostPool:
    """Memory of the host for tensors of a device, pinned, up to a bound.

    Args:
        budget: bytes at most; as for torch, which keeps pinned memory by powers of two, a tensor
            counts as the next of them.
        memory: makes it, by its number of bytes; RuntimeError where the system pins no more.
    """

    def __init__(self, budget: int, memory: Callable[[int], Tensor]) -> None:
        self.budget, self._memory = budget, memory
        self._in_use = 0
        self._let_go: deque[int] = deque()  # by finalizers, which may come at any time
        self._lock = threading.Lock()

    @property
    def in_use(self) -> int:
        """Bytes of tensors that are alive."""
        with self._lock:
            return self._count()

    def hold(self, nbytes: int) -> Tensor | None:
        """(nbytes,) uint8, which are held until the tensor is gone; None where they are too many,
        or the system pins no more.

        >>> pool = HostPool(100, memory=lambda n: torch.empty(n, dtype=torch.uint8))
        >>> tensor = pool.hold(64)
        >>> pool.hold(40), pool.in_use
        (None, 64)
        >>> del tensor
        >>> pool.in_use
        0
        """
        taken = 1 << max(nbytes - 1, 0).bit_length()
        with self._lock:
            if self._count() + taken > self.budget:
                return None
            self._in_use += taken
        try:
            tensor = self._memory(nbytes)
        except RuntimeError:
            self._let_go.append(taken)
            return None
        weakref.finalize(tensor.untyped_storage(), self._let_go.append, taken).atexit = False
        return tensor

    def _count(self) -> int:
        while self._let_go:
            self._in_use -= self._let_go.popleft()
        return self._in_use


class _InPlace:
    """Copies of the CPU."""

    def __init__(self) -> None:
        self.copied_out, self.copied_back = Copying(), Copying()

    def out(self, data: Tensor, into: Tensor | None = None) -> Callable[[], Tensor]:
        return lambda: data if into is None else into.copy_(data)

    def back(self, host: Tensor) -> Arrival:
        return Arrival(host)


class StreamCopies:
    """Copies by a stream for each direction, through pinned memory.

    Args:
        streams: of the device.
        staging_bytes: of pinned memory at most. Where they are in use, a copy out starts when it is
            waited for; if they are so still, it goes to, or comes from, memory that is not pinned.
    """

    def __init__(self, streams: Streams, staging_bytes: int = STAGING_BYTES) -> None:
        self.streams = streams
        self.staging = HostPool(staging_bytes, streams.host_memory)
        self.lane_out, self._lane_back = _Lane(streams), _Lane(streams)
        self._user: Any = None  # stream that what comes back is for

    @property
    def copied_out(self) -> Copying:
        """See ``Copies``."""
        return self.lane_out.copied()

    @property
    def copied_back(self) -> Copying:
        """See ``Copies``."""
        return self._lane_back.copied()

    def out(self, data: Tensor, into: Tensor | None = None) -> Callable[[], Tensor]:
        """See ``Copies``."""
        self._user = self.streams.current()
        return _Departure(self, data, into, self.streams.record(self._user)).wait

    def back(self, host: Tensor) -> Arrival:
        """See ``Copies``."""
        streams, lane = self.streams, self._lane_back
        # A thread that loads has another current stream than backward. Memory of backward's own
        # stream is that which forward let go of; of the copies' stream it would come on top.
        user = streams.current() if self._user is None else self._user
        tensor = streams.device_memory(user, host.numel())
        streams.wait(lane.stream, streams.record(user))  # for its last use of that memory
        if not host.is_pinned() and (staged := self.staging.hold(host.numel())) is not None:
            # By numpy: torch would wake its threads, which compute.
            np.copyto(staged.numpy(), host.numpy())
            host = staged
        return _StreamArrival(tensor, streams, user, lane.copy(host, tensor), host)


class _Lane:
    """A stream of copies, and what they took."""

    def __init__(self, streams: Streams) -> None:
        self._streams, self.stream = streams, streams.new()
        self._copied = Copying()
        self._under_way: deque[tuple[int, Any, Any]] = deque()  # (bytes, start, end)
        self._lock = threading.Lock()

    def copy(self, source: Tensor, out: Tensor) -> Any:
        """Starts a copy; returns the event that it is done."""
        start = self._streams.record(self.stream)
        self._streams.copy(self.stream, source, out)
        end = self._streams.record(self.stream)
        self._under_way.append((source.numel(), start, end))
        self.copied()
        return end

    def copied(self) -> Copying:
        with self._lock:
            while self._under_way:
                nbytes, start, end = self._under_way[0]
                seconds = self._streams.seconds_between(start, end)
                if seconds is None:
                    break
                self._under_way.popleft()
                self._copied.nbytes += nbytes
                self._copied.seconds += seconds
            return replace(self._copied)


class _Departure:
    def __init__(self, copies: StreamCopies, data: Tensor, into: Tensor | None, ready: Any) -> None:
        self._copies, self._ready = copies, ready
        self._data: Tensor | None = data  # memory of the device, held no longer than needed
        self._out = copies.staging.hold(data.numel()) if into is None else into
        self._done = None if self._out is None else self._start(data, self._out)

    def wait(self) -> Tensor:
        data, out = self._data, self._out
        assert data is not None
        if out is None:
            out = self._copies.staging.hold(data.numel())
        if out is None:
            out = torch.empty(data.numel(), dtype=torch.uint8)
        self._copies.streams.synchronize(self._done or self._start(data, out))
        self._data = self._out = None
        return out

    def _start(self, data: Tensor, out: Tensor) -> Any:
        streams, lane = self._copies.streams, self._copies.lane_out
        streams.wait(lane.stream, self._ready)
        return lane.copy(data, out)


class _StreamArrival(Arrival):
    def __init__(
        self, tensor: Tensor, streams: Streams, user: Any, done: Any, host: Tensor
    ) -> None:
        super().__init__(tensor)
        self._streams, self._user, self._done = streams, user, done
        self._host: Tensor | None = host  # in use until then, so counted

    def join(self) -> None:
        current = self._streams.current()
        self._streams.wait(current, self._done)
        if current != self._user:
            self._streams.share(self.tensor, current)
        self._host = None

    def __del__(self) -> None:
        if self._host is not None:  # memory that a copy may still write goes back to the stream
            self._streams.wait(self._user, self._done)

"""Streams of a device and the events that order them, of which copies beside computing are made."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["CudaStreams", "Streams"]


class Streams(Protocol):
    """Each stream does in order what it is given; events order what different streams do.

    Streams and events are objects of the implementation. Memory is (nbytes,) uint8.
    """

    def current(self) -> Any:
        """The stream that this thread computes on."""

    def new(self) -> Any:
        """A stream for copies."""

    def record(self, stream: Any) -> Any:
        """An event: all that the stream was given until now is done."""

    def seconds_between(self, start: Any, end: Any) -> float | None:
        """From one event of a stream to a later one of it; None where that has not come."""

    def wait(self, stream: Any, event: Any) -> None:
        """The stream goes on once the event has come; the caller does at once."""

    def synchronize(self, event: Any) -> None:
        """The caller goes on once the event has come."""

    def copy(self, stream: Any, source: Tensor, out: Tensor) -> None:
        """Gives a stream a copy to do.

        Memory of the host may be let go of at once, that of the device once the copy is done.
        """

    def device_memory(self, stream: Any, nbytes: int) -> Tensor:
        """Memory that the stream may write from now on; others once it has done what it was given.

        Let go of, it is the stream's again at once.
        """

    def host_memory(self, nbytes: int) -> Tensor:
        """Memory of the host that copies go to and from by themselves."""

    def share(self, tensor: Tensor, stream: Any) -> None:
        """Memory of the device is not used again before this stream has done what it is given until
        the memory is let go of."""


class CudaStreams:
    """Those of torch.

    Args:
        device: of CUDA.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def current(self) -> torch.cuda.Stream:
        """See ``Streams``."""
        return torch.cuda.current_stream(self._device)

    def new(self) -> torch.cuda.Stream:
        """See ``Streams``."""
        return torch.cuda.Stream(self._device)

    def record(self, stream: torch.cuda.Stream) -> torch.cuda.Event:
        """See ``Streams``."""
        # Who waits for a blocking one sleeps: cores have other work.
        return stream.record_event(torch.cuda.Event(blocking=True, enable_timing=True))

    def seconds_between(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float | None:
        """See ``Streams``."""
        return start.elapsed_time(end) / 1000 if end.query() else None

    def wait(self, stream: torch.cuda.Stream, event: torch.cuda.Event) -> None:
        """See ``Streams``."""
        stream.wait_event(event)

    def synchronize(self, event: torch.cuda.Event) -> None:
        """See ``Streams``."""
        event.synchronize()

    def copy(self, stream: torch.cuda.Stream, source: Tensor, out: Tensor) -> None:
        """See ``Streams``; torch keeps pinned memory until it is done."""
        with torch.cuda.stream(stream):
            out.copy_(source, non_blocking=True)

    def device_memory(self, stream: torch.cuda.Stream, nbytes: int) -> Tensor:
        """See ``Streams``."""
        with torch.cuda.stream(stream):
            return torch.empty(nbytes, dtype=torch.uint8, device=self._device)

    def host_memory(self, nbytes: int) -> Tensor:
        """See ``Streams``; pinned."""
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def share(self, tensor: Tensor, stream: torch.cuda.Stream) -> None:
        """See ``Streams``."""
        tensor.record_stream(stream)

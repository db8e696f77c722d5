"""Batches made on a stream of a GPU of their own, beside the consumer's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["SideStream"]


@functools.cache
def _stream_of(device: torch.device) -> torch.cuda.Stream:
    """One for all, since memory that a stream lets go of is used again on that stream alone; of the
    lowest priority there is."""
    return torch.cuda.Stream(device, priority=0)


class SideStream:
    """What is launched for the next batch runs while the consumer trains with the one before it.

    Args:
        device: of CUDA; None for none, where everything is done as if there were no streams.
    """

    def __init__(self, device: torch.device | None) -> None:
        self._stream = None if device is None else _stream_of(device)
        if self._stream is not None:  # what was put into the consumer's may be read
            self._stream.wait_stream(torch.cuda.current_stream(device))
        self._made: dict[int, torch.cuda.Event] = {}

    def run(self, make: Callable[[], Any]) -> Any:
        """The batch that ``make`` returns; it may be used after ``join`` alone."""
        if self._stream is None:
            return make()
        with torch.cuda.stream(self._stream):
            batch = make()
            self._made[id(batch)] = self._stream.record_event()
        return batch

    def join(self, batch: Any) -> None:
        """Has the current stream wait for a batch, whose memory it then holds on to."""
        if self._stream is None:
            return
        stream = torch.cuda.current_stream(self._stream.device)
        stream.wait_event(self._made.pop(id(batch)))

        def keep(x: Tensor) -> Tensor:
            if x.is_cuda:
                x.record_stream(stream)
            return x

        batch.apply(keep)

"""All ranks of a pipeline in one process, taking turns."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from itertools import product
from typing import Any, TypeVar

from torch import Tensor

from gnnsys.errors import GnnsysError
from gnnsys.ranks.transport import Ledger, Receipt, Work

__all__ = ["LocalHub"]

T = TypeVar("T")

_PATIENCE = 30.0
"""Seconds that a rank waits for one in another thread."""


class LocalHub:
    """Hands messages on between the ranks of this process.

    They take turns in ``drive``; or each has a thread of its own, and its transport's ``drive``
    runs its work there.

    Args:
        world: their number.

    >>> import torch
    >>> hub = LocalHub(2)
    >>> def work(transport):
    ...     into = torch.empty(1)
    ...     transport.send(torch.tensor([float(transport.rank)]), 1 - transport.rank, "layer")
    ...     yield transport.receive(into, 1 - transport.rank, "layer")
    ...     return into.item()
    >>> hub.drive([work(transport) for transport in hub.transports])
    [1.0, 0.0]
    """

    def __init__(self, world: int) -> None:
        pairs = product(range(world), range(world))
        channels = {pair: _Channel() for pair in pairs}
        self.transports = [_LocalTransport(rank, world, channels) for rank in range(world)]

    def drive(self, work: Sequence[Work[Any]]) -> list[Any]:
        """Runs one generator for each rank until all have ended; returns what they returned.

        Raises:
            GnnsysError: each waits for something that no other will send.
        """
        results: list[Any] = [None] * len(work)
        running = {rank: _Run(each) for rank, each in enumerate(work)}
        while running:
            advanced = False
            for rank, run in list(running.items()):
                advanced |= run.advance()
                if run.ended:
                    results[rank] = run.result
                    del running[rank]
            if not advanced:
                raise GnnsysError(f"ranks {sorted(running)} wait for what no rank will send")
        return results


class _Run:
    """A generator and the receipt that it waits for."""

    def __init__(self, work: Work[Any]) -> None:
        self._work = work
        self._receipt: Receipt | None = None
        self.ended = False
        self.result: Any = None

    def advance(self) -> bool:
        """Goes on until it must wait; returns whether it could."""
        advanced = False
        while self._receipt is None or self._receipt.done():
            advanced = True
            try:
                self._receipt = next(self._work)
            except StopIteration as stop:
                self.ended, self.result = True, stop.value
                break
        return advanced


class _Channel:
    """Messages from one rank to another, in their order."""

    def __init__(self) -> None:
        self.sent: deque[Tensor] = deque()
        self.awaited: deque[_LocalReceipt] = deque()

    def match(self) -> None:
        while self.sent and self.awaited:
            self.awaited.popleft().take(self.sent.popleft())


class _LocalReceipt:
    def __init__(self, into: Tensor, channel: _Channel) -> None:
        self._into, self._channel = into, channel
        self._is_there = into.numel() == 0

    def take(self, message: Tensor) -> None:
        if message.shape != self._into.shape or message.dtype != self._into.dtype:
            raise GnnsysError(
                f"received {tuple(message.shape)} of {message.dtype} where "
                f"{tuple(self._into.shape)} of {self._into.dtype} was awaited"
            )
        self._into.copy_(message)
        self._is_there = True

    def done(self) -> bool:
        if not self._is_there:
            self._channel.match()
        return self._is_there


class _LocalTransport:
    """The transport of one rank of a hub."""

    def __init__(self, rank: int, world: int, channels: dict[tuple[int, int], _Channel]) -> None:
        self.rank, self.world = rank, world
        self.ledger = Ledger()
        self._channels = channels

    def send(self, tensor: Tensor, to: int, kind: str) -> None:
        if tensor.numel():
            self.ledger.count(tensor, kind)
            self._channels[self.rank, to].sent.append(tensor.detach().clone())

    def receive(self, into: Tensor, source: int, kind: str) -> Receipt:
        channel = self._channels[source, self.rank]
        receipt = _LocalReceipt(into, channel)
        if into.numel():
            channel.awaited.append(receipt)
        return receipt

    def launch(self) -> None:
        """Nothing to do."""

    def flush(self) -> None:
        """Nothing to do."""

    def drive(self, work: Work[T]) -> T:
        """Runs this rank's work, while others run theirs in their threads.

        Raises:
            GnnsysError: nothing came for half a minute.
        """
        while True:
            try:
                receipt = next(work)
            except StopIteration as stop:
                return stop.value
            until = time.monotonic() + _PATIENCE
            while not receipt.done():
                if time.monotonic() > until:
                    raise GnnsysError(f"rank {self.rank} waits for what no rank sends")
                time.sleep(0)

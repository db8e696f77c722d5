"""How tensors move between the ranks of a pipeline, and the count of what was moved.

Work that waits for others is written as a generator of receipts: ``yield receipt`` waits until it
is done. Whoever drives the generator decides what to do meanwhile.
"""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

__all__ = ["Driver", "Ledger", "Receipt", "Transport", "Work", "all_gather_objects"]


def _zeros() -> dict[str, Any]:
    return defaultdict(int)


@dataclass(slots=True)
class Ledger:
    """What a rank sent, by kind: "layer" (rows and gradients between stages), "graph" (between
    ways), "joint" (ids, rows and gradients of joint batches), "weight" (gradients of parameters),
    "evaluation" and "control" (all else)."""

    bytes: dict[str, int] = field(default_factory=_zeros)
    messages: dict[str, int] = field(default_factory=_zeros)

    seconds_waited: dict[str, float] = field(default_factory=_zeros)
    """For what was to be received. Ranks that share a process do not wait."""

    def count(self, tensor: Tensor, kind: str) -> None:
        """Adds a tensor that is being sent."""
        self.bytes[kind] += tensor.numel() * tensor.element_size()
        self.messages[kind] += 1

    def reset(self) -> None:
        """Forgets everything."""
        for counts in (self.bytes, self.messages, self.seconds_waited):
            counts.clear()

    def as_dict(self) -> dict[str, dict[str, float]]:
        """The three counts, for JSON."""
        return {
            "bytes": dict(self.bytes),
            "messages": dict(self.messages),
            "seconds_waited": dict(self.seconds_waited),
        }


T = TypeVar("T")


class Receipt(Protocol):
    """Stands for something that was asked for."""

    def done(self) -> bool:
        """Whether it is there."""


Work = Generator[Receipt, None, T]
"""What yields what it waits for, and returns a T."""


class Transport(Protocol):
    """What a rank sends and receives with. Messages of a pair of ranks arrive in their order."""

    rank: int
    world: int
    ledger: Ledger

    def send(self, tensor: Tensor, to: int, kind: str) -> None:
        """Starts to send a tensor, which must not change before ``flush``, and counts it. An empty
        one is not sent."""

    def receive(self, into: Tensor, source: int, kind: str) -> Receipt:
        """Starts to receive into a contiguous tensor; for an empty one nothing is awaited."""

    def launch(self) -> None:
        """Lets what was started go on its way before the next wait."""

    def flush(self) -> None:
        """Waits until all that was sent has left."""


class Driver(Transport, Protocol):
    """A transport that also runs what waits for others."""

    def drive(self, work: Work[T]) -> T:
        """Runs a generator; returns what it returns."""


def all_gather_objects(transport: Transport, mine: Any, kind: str) -> Work[list[Any]]:
    """Every rank's object, in the order of the ranks, on every rank.

    Args:
        mine: whatever can be pickled.
        kind: as which its bytes count.
    """
    others = [rank for rank in range(transport.world) if rank != transport.rank]
    data = torch.frombuffer(bytearray(pickle.dumps(mine)), dtype=torch.uint8)
    for other in others:
        transport.send(torch.tensor([len(data)]), other, kind)
        transport.send(data, other, kind)
    sizes = {rank: torch.empty(1, dtype=torch.int64) for rank in others}
    yield from [transport.receive(size, rank, kind) for rank, size in sizes.items()]
    parts = {rank: torch.empty(int(size), dtype=torch.uint8) for rank, size in sizes.items()}
    yield from [transport.receive(part, rank, kind) for rank, part in parts.items()]
    transport.flush()
    return [
        mine if rank == transport.rank else pickle.loads(parts[rank].numpy().tobytes())
        for rank in range(transport.world)
    ]

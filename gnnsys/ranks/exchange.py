"""Tensors from each rank to each other one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gnnsys.ranks.transport import Transport, Work

__all__ = ["all_to_all", "all_to_all_lengths"]


def all_to_all(
    transport: Transport, parts: Sequence[Tensor], lengths: Sequence[int], kind: str
) -> Work[list[Tensor]]:
    """Sends a part of rows to each rank; returns the parts that they sent here, in their order.

    Args:
        parts: (n, ...) for each rank, all of one dtype and row shape on all ranks; empty ones are
            not sent. That of the transport's own rank is handed back as it is.
        lengths: rows that come from each rank.
        kind: as which the bytes count.
    """
    others = [rank for rank in range(transport.world) if rank != transport.rank]
    for rank in others:
        transport.send(parts[rank].contiguous(), rank, kind)
    own = parts[transport.rank]
    received = [own.new_empty(length, *own.shape[1:]) for length in lengths]
    yield from [transport.receive(received[rank], rank, kind) for rank in others]
    transport.flush()
    received[transport.rank] = own
    return received


def all_to_all_lengths(transport: Transport, parts: Sequence[Tensor], kind: str) -> Work[list[int]]:
    """The rows that each rank has for this one, where each knows but its own ``parts``."""
    mine = [torch.tensor([len(part)]) for part in parts]
    found = yield from all_to_all(transport, mine, [1] * transport.world, kind)
    return [int(length) for length in found]

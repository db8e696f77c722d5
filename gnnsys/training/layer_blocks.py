"""Blocks of targets: how a layer's targets are cut into them, and how their rows are read."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from gnnsys.unified_tensor import UnifiedTensor, unified

__all__ = ["as_unified", "cut_blocks", "device_of", "read_rows", "row_bytes"]


def cut_blocks(costs: Tensor, room: int) -> Iterator[tuple[int, int]]:
    """Ranges of targets, one after the other, that cost about ``room`` each, or are one target.

    Args:
        costs: (targets + 1,) int64 that ascend: what the targets before each one cost.
        room: of a block, in the same unit.

    >>> [*cut_blocks(torch.tensor([0, 1, 2, 9, 10]), room=3)]
    [(0, 2), (2, 3), (3, 4)]
    """
    first, count = 0, len(costs) - 1
    while first < count:
        last = int(torch.searchsorted(costs, costs[first] + max(1, room), right=True)) - 1
        last = min(count, max(last, first + 1))
        yield first, last
        first = last


def read_rows(rows: UnifiedTensor, places: Tensor, in_order: int) -> Tensor:
    """Rows at ``places``; the first ``in_order`` are a range, which a file reads in one pass."""
    store = rows.store
    if store.resident is not None:
        return rows[places]
    inputs = torch.empty((len(places), *store.shape[1:]), dtype=store.dtype)
    if in_order:
        first = int(places[0])
        store.read_range(first, first + in_order, inputs[:in_order])
    rest = inputs[in_order:]
    if store.device == rest.device:
        store.gather(places[in_order:], rest)
    else:  # a cache in the memory of a GPU
        rest.copy_(store.gather(places[in_order:]))
    return inputs


def row_bytes(rows: Tensor) -> int:
    """Of a row in memory."""
    return math.prod(rows.shape[1:]) * rows.element_size()


def as_unified(rows: Tensor, threads: int) -> UnifiedTensor:
    """The same rows behind a store."""
    if isinstance(rows, UnifiedTensor):
        return rows
    return unified(rows.cpu(), threads=threads, device="cpu")


def device_of(model: torch.nn.Module) -> torch.device:
    """Where a model computes."""
    return next((part.device for part in model.parameters()), torch.device("cpu"))

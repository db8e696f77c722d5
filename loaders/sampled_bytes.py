"""How large sampled batches are, and how many bytes of them may wait for a cache."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from gnnsys.system.budget import AHEAD, process_budget

__all__ = ["bytes_ahead", "size_of"]

_LEAST = 64 << 20


def bytes_ahead() -> int:
    """Bytes of sampled batches that may wait: as a run has planned, or a part of what is left."""
    budget = process_budget()
    return budget.planned(AHEAD) or max(_LEAST, budget.left() // 32)


def size_of(sampled: Any) -> int:
    """Bytes of the tensors of what a sampler returned.

    >>> import torch
    >>> size_of({"paper": torch.zeros(3, dtype=torch.int64)})
    24
    """
    if isinstance(sampled, Tensor):
        return sampled.numel() * sampled.element_size()
    if isinstance(sampled, dict):
        return sum(map(size_of, sampled.values()))
    if dataclasses.is_dataclass(sampled):
        return sum(size_of(getattr(sampled, f.name)) for f in dataclasses.fields(sampled))
    return 0

"""What ids of a user are checked for."""

from __future__ import annotations

import torch
from torch import Tensor

from gnnsys.errors import ArgumentError
from gnnsys.loaders.user_graph import check_ids_dtype

__all__ = ["check_ids_below"]


def check_ids_below(name: str, ids: Tensor, count: int) -> Tensor:
    """The ids, on the CPU and of int64.

    Raises:
        ArgumentError, DTypeError: an id outside [0, count), or ids that are not integers.
    """
    ids = check_ids_dtype(name, ids, "ids").to("cpu", torch.int64)
    wrong = ids[(ids < 0) | (ids >= count)]
    if len(wrong):
        raise ArgumentError(f"{name}: {int(wrong[0])} is outside [0, {count})")
    return ids

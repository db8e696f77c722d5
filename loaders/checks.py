"""What ids and numbers of a user are checked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gnnsys.errors import ArgumentError
from gnnsys.loaders.user_graph import check_ids_dtype

__all__ = ["check_ids_below", "check_whole"]


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


def check_whole(name: str, value: Any, least: int) -> None:
    """Raises ArgumentError unless the value is a whole number, and at least as great."""
    is_whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_whole or value < least:
        raise ArgumentError(f"{name}: {value!r}, expected a whole number, at least {least}")

"""Row ids: checked once, where they come in, and typed from there on."""

from __future__ import annotations

from typing import Any, NewType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import dlpack

from gnnsys.errors import ArgumentError, DTypeError, RowIndexError

__all__ = [
    "CPU",
    "RowIds",
    "check_ascending",
    "check_bounds",
    "check_ids",
    "from_dlpack",
    "row_index_error",
]

RowIds = NewType("RowIds", Tensor)
"""(n,) int32 or int64, dense, where a store reads them: what ``check_ids`` let pass. Whether they
are within the rows is seen where rows are read, by loops that look at each id anyway."""

CPU = torch.device("cpu")


def check_ids(ids: Tensor, device: torch.device | None = CPU) -> RowIds:
    """A user's ids as loops and kernels take them.

    Args:
        ids: (n,) of any device, or an array that shares its memory by DLPack.
        device: whose memory is read; None leaves them where they are.

    Raises:
        DTypeError, ArgumentError: not a tensor of int32 or int64 with one dimension.
    """
    ids = from_dlpack(ids)
    if not isinstance(ids, Tensor):
        raise DTypeError(f"ids: a {type(ids).__name__}, expected a tensor")
    if ids.dim() != 1:
        raise ArgumentError(f"ids: {ids.dim()} dimensions, expected 1")
    if ids.dtype not in (torch.int32, torch.int64):
        raise DTypeError(f"ids: dtype {ids.dtype}, expected torch.int64 or torch.int32")
    return RowIds(ids.to(device or ids.device).contiguous())


def from_dlpack(value: Any) -> Any:
    """A tensor over an array of another library that shares it by DLPack, such as CuPy's; any other
    value as it is."""
    is_known = isinstance(value, (Tensor, np.ndarray, np.generic))
    return dlpack.from_dlpack(value) if hasattr(value, "__dlpack__") and not is_known else value


def row_index_error(ids: Any, position: int, rows: int) -> RowIndexError:
    """The error for the id at ``position`` of ``ids``."""
    return RowIndexError(
        f"ids: id {int(ids[position])} at position {position} is outside the rows [0, {rows})"
    )


def check_bounds(ids: Tensor, rows: int) -> None:
    """Raises RowIndexError for the first id that is outside the rows."""
    outside = torch.nonzero((ids < 0) | (ids >= rows))
    if len(outside):
        raise row_index_error(ids, int(outside[0]), rows)


def check_ascending(ids: NDArray[np.int64], rows: int) -> None:
    """Raises ArgumentError or RowIndexError unless ids ascend strictly, within the rows."""
    falling = np.flatnonzero(ids[1:] <= ids[:-1])
    if len(falling):
        place = int(falling[0])
        raise ArgumentError(
            f"ids: id {ids[place + 1]} at position {place + 1} follows {ids[place]}; expected "
            "strictly ascending ids"
        )
    for place in (0, len(ids) - 1):
        if len(ids) and not 0 <= ids[place] < rows:
            raise row_index_error(ids, place, rows)

"""Splits any index that torch accepts into row ids and the rest. Pure; imports torch only.

``x[index]`` is computed as ``x[ids][rest]``: ``ids`` are the rows that the index can reach, in
order, and ``rest`` is the same index with its part for dimension 0 replaced by one that addresses
the gathered rows. Everything after dimension 0 is then torch's own business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gnnsys.errors import DTypeError, RowIndexError

__all__ = ["RowIndex", "split_index"]


@dataclass(frozen=True, slots=True)
class RowIndex:
    """An index, taken apart."""

    ids: Tensor
    """(n,) int32 or int64 row ids in [0, rows), on the CPU."""

    rest: Any
    """Index for the (n, …) gathered rows; None when they are the result."""


def split_index(index: Any, rows: int, dims: int) -> RowIndex | None:
    """Takes ``index`` for a tensor of ``dims`` dimensions with ``rows`` rows apart.

    Returns:
        None when the index does not restrict the rows (``x[..., 0]``, ``x[None]``, ``x[True]``).

    Raises:
        RowIndexError: an id is outside the rows, or a mask has another length.
        DTypeError: an index of a type that torch does not accept.

    >>> split_index(torch.tensor([2, -1]), rows=4, dims=2)
    RowIndex(ids=tensor([2, 3]), rest=None)
    >>> split_index((slice(1, 3), 0), rows=4, dims=2)
    RowIndex(ids=tensor([1, 2]), rest=(slice(None, None, None), 0))
    """
    if isinstance(index, Tensor) and index.dim() == 1 and index.dtype in (torch.int64, torch.int32):
        return RowIndex(_row_ids(index, rows), None)  # the hot path: x[ids]
    parts = list(index) if isinstance(index, tuple) else [index]
    place = _row_place(parts, dims)
    if place is None:
        return None
    ids, replacement = _split_part(parts[place], rows)
    if len(parts) == 1 and replacement == [slice(None)]:
        return RowIndex(ids, None)
    return RowIndex(ids, tuple(parts[:place] + replacement + parts[place + 1 :]))


def _row_place(parts: list[Any], dims: int) -> int | None:
    """Where in the index dimension 0 is addressed."""
    for place, part in enumerate(parts):
        if part is None:
            continue
        if part is Ellipsis:
            following = sum(_dims_taken(p) for p in parts[place + 1 :])
            if following < dims:
                return None  # the ellipsis covers dimension 0
            continue
        if isinstance(part, (bool, np.bool_)) or (_is_tensor_like(part) and _is_scalar_mask(part)):
            return None
        return place
    return None


def _dims_taken(part: Any) -> int:
    if part is None or part is Ellipsis or isinstance(part, (bool, np.bool_)):
        return 0
    if _is_tensor_like(part):
        mask = _as_tensor(part)
        return mask.dim() if mask.dtype in (torch.bool, torch.uint8) else 1
    return 1


def _is_tensor_like(part: Any) -> bool:
    return isinstance(part, (Tensor, np.ndarray, list, tuple, range))


def _is_scalar_mask(part: Any) -> bool:
    tensor = _as_tensor(part)
    return tensor.dim() == 0 and tensor.dtype == torch.bool


def _as_tensor(part: Any) -> Tensor:
    if isinstance(part, Tensor):
        return part
    tensor = torch.as_tensor(list(part) if isinstance(part, range) else part)
    return tensor.long() if tensor.numel() == 0 and not isinstance(part, np.ndarray) else tensor


def _split_part(part: Any, rows: int) -> tuple[Tensor, list[Any]]:
    """Ids that one part of an index reaches, and the part that addresses them once gathered."""
    if isinstance(part, slice):
        return torch.arange(rows)[part], [slice(None)]
    if _is_tensor_like(part):
        tensor = _as_tensor(part).cpu()
        if tensor.dtype in (torch.bool, torch.uint8) and tensor.dim() > 0:
            return _split_mask(tensor, rows)
        return _split_ids(tensor, rows)
    try:
        row = int(part.__index__())
    except AttributeError:
        raise DTypeError(
            f"index: a {type(part).__name__} cannot index rows; use ints, slices or tensors"
        ) from None
    return _row_ids(torch.tensor([row]), rows), [0]


def _split_ids(tensor: Tensor, rows: int) -> tuple[Tensor, list[Any]]:
    if tensor.dtype not in (torch.int64, torch.int32):
        raise RowIndexError(f"index: dtype {tensor.dtype}, torch takes int64, int32 or bool here")
    ids = _row_ids(tensor.reshape(-1), rows)
    # An index again, not a slice: beside other index tensors it broadcasts with them.
    return ids, [torch.arange(len(ids)).view(tensor.shape)]


def _split_mask(mask: Tensor, rows: int) -> tuple[Tensor, list[Any]]:
    if mask.shape[0] != rows:
        raise RowIndexError(f"index: mask of {mask.shape[0]} rows != {rows}, those of the tensor")
    places = mask.bool().nonzero(as_tuple=True)
    return places[0], [torch.arange(len(places[0])), *places[1:]]


def _row_ids(ids: Tensor, rows: int) -> Tensor:
    """Ids in [0, rows): negative ones count from the end."""
    ids = ids.cpu()
    if len(ids) == 0:
        return ids
    low, high = (int(bound) for bound in torch.aminmax(ids))
    if low < -rows or high >= rows:
        wrong = int(torch.nonzero((ids < -rows) | (ids >= rows))[0])
        raise RowIndexError(
            f"index: id {int(ids[wrong])} at position {wrong} is outside the rows [0, {rows}), "
            f"counted from the end [-{rows}, 0)"
        )
    return torch.where(ids < 0, ids + rows, ids) if low < 0 else ids

"""Splits any index that torch accepts into row ids and the rest. Pure; imports torch only.

``x[index]`` is computed as ``x[ids][rest]``: ``ids`` are the rows that the index can reach, in
order, and ``rest`` is the same index with its part for dimension 0 replaced by one that addresses
the gathered rows. Everything after dimension 0 is then torch's own business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gnnsys.errors import ArgumentError, DTypeError, RowIndexError

__all__ = ["RowIndex", "split_index"]

_MASK_DTYPES = (torch.bool, torch.uint8)


@dataclass(frozen=True, slots=True)
class RowIndex:
    """An index, taken apart."""

    ids: Tensor
    """(n,) int32 or int64 row ids in [0, rows), on the CPU."""

    rest: Any
    """Index for the (n, …) gathered rows; None when they are the result."""


def split_index(index: Any, shape: Sequence[int]) -> RowIndex | None:
    """Takes ``index`` for a tensor of ``shape`` (rows, …) apart.

    Returns:
        None when the index does not restrict the rows (``x[..., 0]``, ``x[None]``, ``x[True]``).

    Raises:
        RowIndexError: an id is outside the rows, or a mask has another shape.
        DTypeError: an index of a type that torch does not accept.

    >>> split_index(torch.tensor([2, -1]), shape=(4, 5))
    RowIndex(ids=tensor([2, 3]), rest=None)
    >>> split_index((slice(1, 3), 0), shape=(4, 5))
    RowIndex(ids=tensor([1, 2]), rest=(slice(None, None, None), 0))
    """
    parts = list(index) if isinstance(index, tuple) else [index]
    place = _row_place(parts, len(shape))
    if place is None:
        return None
    ids, replacement = _split_part(parts[place], shape)
    direct = isinstance(index, Tensor) and index.dim() == 1
    if len(parts) == 1 and (direct or replacement == [slice(None)]):
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
        return mask.dim() if mask.dtype in _MASK_DTYPES else 1
    return 1


def _is_tensor_like(part: Any) -> bool:
    sequence = isinstance(part, Sequence) and not isinstance(part, (str, bytes))
    return sequence or isinstance(part, (Tensor, np.ndarray))


def _is_scalar_mask(part: Any) -> bool:
    tensor = _as_tensor(part)
    return tensor.dim() == 0 and tensor.dtype in _MASK_DTYPES


def _as_tensor(part: Any) -> Tensor:
    """The tensor that torch makes of a part: numbers in a sequence become int64."""
    if isinstance(part, Tensor):
        if part.layout != torch.strided:
            raise DTypeError(f"index: a {part.layout} tensor; torch takes dense ones only")
        whole_number = not (part.is_floating_point() or part.is_complex())
        scalar = part.dim() == 0 and part.dtype not in _MASK_DTYPES
        return part.long() if scalar and whole_number else part
    try:
        array = part if isinstance(part, np.ndarray) else np.array(_unpack(part))
        if array.size == 0 or (array.dtype.kind in "iu" and array.dtype != np.uint8):
            array = array.astype(np.int64)
        return torch.as_tensor(np.ascontiguousarray(array).reshape(array.shape))
    except (TypeError, ValueError) as error:
        raise DTypeError(
            f"index: {part!r} cannot index rows ({error}); use ints, slices or tensors"
        ) from error


def _unpack(part: Any) -> Any:
    """Nested sequences as nested lists, which numpy takes apart whatever they were."""
    if isinstance(part, Tensor) and part.dim() > 0:
        raise TypeError("a tensor in a sequence: write a tuple to index several dimensions")
    return [_unpack(p) for p in part] if _is_tensor_like(part) and np.ndim(part) else part


def _split_part(part: Any, shape: Sequence[int]) -> tuple[Tensor, list[Any]]:
    """Ids that one part of an index reaches, and the part that addresses them once gathered."""
    rows = shape[0]
    if isinstance(part, slice):
        start, stop, step = part.indices(rows)
        if step < 1:
            raise ArgumentError(f"index: slice step {step} < 1; torch takes positive ones only")
        return torch.arange(start, max(start, stop), step), [slice(None)]
    if _is_tensor_like(part):
        tensor = _as_tensor(part).cpu()
        if tensor.dtype in _MASK_DTYPES and tensor.dim() > 0:
            return _split_mask(tensor, shape)
        return _split_ids(tensor, rows)
    try:
        row = int(part.__index__())
    except AttributeError:
        raise DTypeError(
            f"index: a {type(part).__name__} cannot index rows; use ints, slices or tensors"
        ) from None
    if not -rows <= row < rows:
        raise RowIndexError(f"index: row {row} is outside the rows [0, {rows})")
    return torch.tensor([row % rows]), [0]


def _split_ids(tensor: Tensor, rows: int) -> tuple[Tensor, list[Any]]:
    if tensor.dtype not in (torch.int64, torch.int32):
        raise RowIndexError(f"index: dtype {tensor.dtype}, torch takes int64, int32 or bool here")
    ids = _row_ids(tensor.reshape(-1), rows)
    # An index again, not a slice: beside other index tensors it broadcasts with them.
    return ids, [torch.arange(len(ids)).view(tensor.shape)]


def _split_mask(mask: Tensor, shape: Sequence[int]) -> tuple[Tensor, list[Any]]:
    if mask.shape != torch.Size(shape[: mask.dim()]):
        raise RowIndexError(
            f"index: mask of shape {tuple(mask.shape)} != {tuple(shape[: mask.dim()])}, the first "
            "dimensions of the tensor"
        )
    places = mask.bool().nonzero(as_tuple=True)
    if mask.dim() == 1:
        return places[0], [torch.arange(len(places[0]))]
    rows, position = torch.unique_consecutive(places[0], return_inverse=True)
    return rows, [position, *places[1:]]


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
    return torch.where(ids < 0, ids.long() + rows, ids) if low < 0 else ids

"""The one element type in which a program computes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gnnsys.errors import DTypeError
from gnnsys.message_passing.sums import SUMMED_DTYPES

__all__ = ["as_autocast", "of_one_dtype", "why_not_autocast"]


def of_one_dtype(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values as autocast casts them; their floats must then be of one element type.

    Raises:
        DTypeError: floats of several element types, or of one that is not summed.
    """
    cast = {name: as_autocast(value) for name, value in values.items()}
    floats = {name: value.dtype for name, value in cast.items() if value.is_floating_point()}
    if len(set(floats.values())) > 1:
        told = ", ".join(f"{name!r} of {dtype}" for name, dtype in floats.items())
        raise DTypeError(f"values: {told}; expected one element type, convert the others")
    for name, dtype in floats.items():
        if dtype not in SUMMED_DTYPES:
            raise DTypeError(f"values: {name!r} of {dtype}, expected float32, float64 or bfloat16")
    return cast


def as_autocast(x: Tensor) -> Tensor:
    """Under torch.autocast in its element type, as what goes into a product of matrices.

    Raises:
        DTypeError: autocast's element type is not summed.
    """
    kind = x.device.type
    if x.dtype == torch.float64 or not x.is_floating_point():
        return x
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return x
    reason = why_not_autocast(kind)
    if reason:
        raise DTypeError(f"{reason}; give autocast torch.bfloat16, or leave it here")
    return x.to(torch.get_autocast_dtype(kind))


def why_not_autocast(kind: str) -> str:
    """Why nothing is computed under autocast on this kind of device; "" where something is."""
    if not torch.is_autocast_enabled(kind) or torch.get_autocast_dtype(kind) in SUMMED_DTYPES:
        return ""
    dtype = torch.get_autocast_dtype(kind)
    return f"torch.autocast is of {dtype}, not of float32, float64 or bfloat16"

"""Functions of ours whose results may be computed again instead of being kept for backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec

from torch import Tensor
from torch.overrides import wrap_torch_function

__all__ = ["is_recomputed", "recomputed"]

P = ParamSpec("P")
_functions: set[Any] = set()


def recomputed(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Lets modes of torch see a function, and ``gnnsys.offload`` compute its result again.

    Args:
        function: of tensors and numbers, a tensor first. The result depends on them alone, bit for
            bit, and costs little beside the time in which it would be read from a disk.
    """
    seen = wrap_torch_function(lambda *args, **kwargs: args)(function)
    _functions.add(seen)
    return seen


def is_recomputed(function: Any) -> bool:
    """Whether a function was declared by ``recomputed``."""
    return function in _functions

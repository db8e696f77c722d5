"""What is known of a tensor beside its elements: kept by object, and dropped by any change."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from torch import Tensor

from gnnsys.compat import WeakIdKeyDictionary, version_of

__all__ = ["KnownOf"]

_Fact = TypeVar("_Fact")


class KnownOf(Generic[_Fact]):
    """Facts about tensors, each for as long as its tensor lives and is not changed.

    Facts belong to tensor objects. Whatever is computed from a tensor is another object, of which
    nothing is known; nothing is copied or pickled with the tensor. Changes are told by torch's
    version counter and the address: those that torch cannot see (of a numpy array that shares the
    memory) are not noticed. Of tensors of inference mode, which have no counter, nothing is kept.

    >>> import torch
    >>> known, x = KnownOf(), torch.zeros(2)
    >>> known.remember(x, "zeros")
    >>> known.of(x), known.of(x[:1]), known.of(x.add_(1))
    ('zeros', None, None)
    """

    def __init__(self) -> None:
        self._facts: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __len__(self) -> int:
        return len(self._facts)

    def of(self, tensor: Tensor) -> _Fact | None:
        """The fact, if there is one and the tensor is as it was."""
        found: tuple[Any, _Fact] | None = self._facts.get(tensor)
        return found[1] if found is not None and found[0] == _state(tensor) else None

    def remember(self, tensor: Tensor, fact: _Fact) -> None:
        """Takes note of a fact, which must not refer to the tensor or to a view of it."""
        if not tensor.is_inference():
            self._facts[tensor] = (_state(tensor), fact)


def _state(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), version_of(tensor), tensor.shape, tensor.stride()

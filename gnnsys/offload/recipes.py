"""How a value that autograd saves is computed again from others, bit for bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from gnnsys.compat import version_of
from gnnsys.offload.bit_masks import BitMask
from gnnsys.offload.records import changed

__all__ = ["HOLE", "Recipe", "Source", "ValueKey", "key_of", "new_number", "number_of"]

ValueKey: TypeAlias = tuple[int, torch.dtype, torch.Size, tuple[int, ...], int, int]
"""(number of its storage, dtype, shape, stride, offset, version): equal for equal values."""

HOLE = object()
"""Stands for a source among the arguments of a recipe."""

_NUMBER = "gnnsys_number"
_numbers = itertools.count()


def new_number() -> int:
    """Of no storage."""
    return next(_numbers)


def number_of(storage: torch.UntypedStorage) -> int:
    """A storage's own number, from 0 upwards; none is used again."""
    numbered = storage.__dict__  # torch keeps a storage's object for as long as its memory
    if _NUMBER not in numbered:
        numbered.setdefault(_NUMBER, next(_numbers))
    number: int = numbered[_NUMBER]
    return number


def key_of(t: Tensor) -> ValueKey:
    """What the value of a strided tensor is known by; views of one memory share the number.

    >>> x = torch.zeros(2, 3)
    >>> key_of(x) == key_of(x.detach()), key_of(x) == key_of(x.t()), key_of(x) == key_of(x + 0)
    (True, False, False)
    """
    number, offset = number_of(t.untyped_storage()), int(t.storage_offset())
    return number, t.dtype, t.shape, t.stride(), offset, version_of(t)


class Source(NamedTuple):
    """Where an argument of a recipe comes from: any of these that is there."""

    key: ValueKey | None
    """Of the value, which may be held for backward; None once it was overwritten."""

    outside: Tensor | None = None
    """The value itself: it is alive anyway, or very small."""

    recipe: Recipe | None = None
    """How it is computed in turn."""

    def is_changed(self) -> bool:
        """Whether a tensor from outside was changed in place meanwhile."""
        if self.outside is None or self.key is None:
            return False
        return version_of(self.outside) != self.key[-1]


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """A function and its arguments, the sources' values left out.

    >>> x = torch.tensor([1.0, -2.0])
    >>> Recipe((Source(key_of(x)),), torch.mul, (HOLE, 3)).run([x])
    tensor([ 3., -6.])
    """

    sources: tuple[Source, ...]
    """In the order in which they stand in ``args``, then in ``kwargs``."""

    function: Callable[..., Tensor]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    overwrites: bool = False
    """Whether the function writes its result over the first source."""

    threads: int = field(default_factory=torch.get_num_threads)
    """Among which torch divided it. The ends of their parts may be rounded in another way."""

    @property
    def size(self) -> int:
        """The number of functions that it calls if no source is held."""
        return 1 + sum(0 if s.recipe is None else s.recipe.size for s in self.sources)

    def run(self, values: Sequence[Tensor]) -> Tensor:
        """The value, in new memory, with the strides that it had.

        Args:
            values: of the sources, with the shapes and strides that they had.

        Raises:
            RuntimeError: a tensor from outside was changed in place meanwhile.
        """
        for source in self.sources:
            _check_unchanged(source)
        first, *others = values
        is_constant = self.sources[0].key is None  # of which there is this one
        rest = iter([first.clone() if self.overwrites or is_constant else first, *others])
        with torch.no_grad(), _as_then(self.threads, first.device.type):
            args = [_given(each, rest) for each in self.args]
            kwargs = {name: _given(each, rest) for name, each in self.kwargs.items()}
            return self.function(*args, **kwargs)


def _given(argument: Any, values: Iterator[Tensor]) -> Any:
    if isinstance(argument, BitMask):
        return argument.unpack()
    return next(values) if argument is HOLE else argument


def _check_unchanged(source: Source) -> None:
    if source.is_changed():
        assert source.outside is not None
        assert source.key is not None
        found, expected = version_of(source.outside), source.key[-1]
        raise changed(source.outside.shape, found, expected, as_source=True)


@contextmanager
def _as_then(threads: int, device: str) -> Iterator[None]:
    now = torch.get_num_threads()
    if now != threads:
        torch.set_num_threads(threads)
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        if now != threads:
            torch.set_num_threads(now)

"""What is known of a storage that backward needs, and the handles that autograd holds instead."""

from __future__ import annotations

import time
import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gnnsys.compat import version_of
from gnnsys.offload.bit_masks import BitMask

if TYPE_CHECKING:
    from concurrent.futures import Future

    from gnnsys.offload.copies import Arrival
    from gnnsys.offload.recipes import Recipe

__all__ = [
    "Geometry",
    "Handle",
    "Kept",
    "Made",
    "Masked",
    "OneSource",
    "Recomputed",
    "Record",
    "Released",
    "Sources",
    "Whole",
    "changed",
    "memory_of",
    "witness_of",
]


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a tensor lies in its storage."""

    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int
    """In elements, from the beginning of the storage."""

    @classmethod
    def of(cls, t: Tensor) -> Geometry:
        """That of a strided tensor."""
        return cls(t.dtype, t.shape, t.stride(), int(t.storage_offset()))

    def view(self, memory: Tensor) -> Tensor:
        """The tensor, in (n,) uint8 with what the storage held; changes of both are counted
        together."""
        size = self.dtype.itemsize
        elements = memory[: len(memory) // size * size].view(self.dtype)
        start = elements.storage_offset() + self.offset
        return elements.as_strided(self.shape, self.stride, start)


def memory_of(t: Tensor) -> Tensor:
    """(n,) uint8: the whole storage of a tensor; changes of both are counted together."""
    return _counted_with(t, t.untyped_storage())


@dataclass(eq=False, slots=True)
class Record:
    """A storage that handles need, kept once whatever tensors lie in it."""

    key: tuple[int, int]
    """The storage's number, and the version that its content is of."""

    number: int
    """In the order in which the step's storages were saved first."""

    nbytes: int
    shape: torch.Size
    """Of the tensor by which it came, for messages."""

    memory: Tensor | None
    """(n,) uint8 while it is kept in memory; see ``watch``."""

    alive: weakref.ref[torch.UntypedStorage] | None
    """To the storage that was saved, or its last copy, which others may keep."""

    rounded: bool = False
    """Whether ``memory`` holds bfloat16 in place of float32."""

    place: Any = None
    """Of a copy elsewhere: see ``Tier``; None where there is none."""

    storing: Future[None] | None = None
    loading: Future[Arrival] | None = None
    arrival: Arrival | None = None
    """By which ``memory`` came back."""

    fault: BaseException | None = None
    """Why it did not."""

    witness: Tensor | None = None
    """Whose version is that of the memory that tensors were handed out of last."""

    version: int = 0
    """The witness's, before any was handed out."""

    spoiled: bool = False
    """Whether someone wrote to a tensor that was handed out before: what lies elsewhere may be of
    then."""

    uses: list[int] = field(default_factory=list)
    """Numbers of the handles that need it, ascending; backward comes to the last one first."""

    @property
    def last(self) -> int:
        """The handle by which backward needs it next."""
        return self.uses[-1]

    def watch(self, memory: Tensor) -> None:
        """Has it in (n,) uint8, of which tensors are handed out from now on."""
        self.spoiled = self.is_changed()
        self.memory = memory
        self.witness, self.version = witness_of(memory), version_of(memory)

    def is_changed(self) -> bool:
        """Whether someone wrote to a tensor that was handed out."""
        if self.spoiled or self.witness is None:
            return self.spoiled
        return version_of(self.witness) != self.version

    def elsewhere(self) -> Tensor | None:
        """(n,) uint8: the storage where others keep it; None where nobody does. Its changes are
        counted with those of what was handed out before."""
        storage = None if self.alive is None else self.alive()
        if storage is None:
            return None
        assert self.witness is not None
        return _counted_with(self.witness, storage)

    def is_away(self) -> bool:
        """Whether it is to be brought back: nobody has it in memory, it is not on its way, and did
        not fail to come."""
        is_gone = self.memory is None and self.loading is None and self.place is not None
        return is_gone and self.fault is None and (self.alive is None or self.alive() is None)


Released = deque[tuple["Record | None", int, int, float]]
"""(record, number of the handle, bytes of its own, time) of handles that were let go of. Whoever
collects garbage may be in the middle of anything, so that nothing else is done then."""


def changed(
    shape: torch.Size, version: int, expected: int, *, as_source: bool = False
) -> RuntimeError:
    """What is raised for a tensor that was changed in place, in autograd's words.

    Args:
        as_source: whether another is to be computed of it.
    """
    what, way_out = f"[{list(shape)}]", ""
    if as_source:
        what += ", from which a saved tensor is to be computed again,"
        way_out = '. Change it after backward, or leave "recompute" out of the policies'
    return RuntimeError(
        "one of the variables needed for gradient computation has been modified by an inplace "
        f"operation: {what} is at version {version}; expected version {expected} instead{way_out}"
    )


def witness_of(t: Tensor) -> Tensor:
    """An empty tensor whose changes are counted with those of ``t``."""
    witness = t.detach()
    witness.data = torch.empty(0, dtype=t.dtype, device=t.device)
    return witness


def _counted_with(t: Tensor, storage: torch.UntypedStorage) -> Tensor:
    """(n,) uint8 in a storage, whose changes are counted with those of ``t``."""
    memory = t.detach()
    memory.data = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
    return memory


class Handle:
    """What autograd holds in place of a tensor.

    Args:
        t: the tensor.
        number: of the handle, in the order in which tensors were saved.
        released: told when the handle is let go of.
    """

    __slots__ = ("__weakref__", "_released", "_saved_at", "_shape", "_watched", "number")

    def __init__(self, t: Tensor, number: int, released: Released) -> None:
        self.number = number
        self._released = released
        self._shape = torch.Size() if t.is_nested else t.shape
        self._saved_at = version_of(t)
        self._watched = self._watch(t)

    def _watch(self, t: Tensor) -> Tensor:
        """A tensor whose changes are counted with those of ``t``."""
        return witness_of(t)

    def check(self, *, as_source: bool = False) -> None:
        """Raises RuntimeError where the tensor was changed since it was saved, as autograd does for
        tensors that it keeps itself.

        Args:
            as_source: whether another is to be computed of it.
        """
        version = version_of(self._watched)
        if version != self._saved_at:
            raise changed(self._shape, version, self._saved_at, as_source=as_source)

    def is_changed(self) -> bool:
        """Whether the tensor, or one that it is made of, was changed since it was saved."""
        return version_of(self._watched) != self._saved_at

    def __del__(self) -> None:
        self._released.append((None, self.number, 0, time.perf_counter()))


class Kept(Handle):
    """A tensor that is kept as it is."""

    __slots__ = ()

    def _watch(self, t: Tensor) -> Tensor:
        return t.detach()  # of a result, the tensor itself would keep the graph, and be kept by it

    @property
    def tensor(self) -> Tensor:
        """The tensor."""
        return self._watched


class Masked(Handle):
    """Bits in a tensor's place."""

    __slots__ = ("mask",)

    def __init__(self, t: Tensor, number: int, released: Released, mask: BitMask) -> None:
        super().__init__(t, number, released)
        self.mask = mask

    def __del__(self) -> None:
        self._released.append((None, self.number, self.mask.nbytes, time.perf_counter()))


class Whole(Handle):
    """A tensor in a storage that is kept."""

    __slots__ = ("geometry", "record")

    def __init__(self, t: Tensor, number: int, released: Released, record: Record) -> None:
        super().__init__(t, number, released)
        self.geometry, self.record = Geometry.of(t), record

    def again(self, number: int) -> Whole:
        """Another handle of the same tensor, which the record is to be told of."""
        other = object.__new__(Whole)
        other.number, other._released = number, self._released
        other._shape, other._saved_at, other._watched = self._shape, self._saved_at, self._watched
        other.geometry, other.record = self.geometry, self.record
        return other

    def __del__(self) -> None:
        self._released.append((self.record, self.number, 0, time.perf_counter()))


@dataclass(frozen=True, slots=True)
class Made:
    """A value that an operator makes again."""

    recipe: Recipe
    sources: Sources

    @property
    def steps(self) -> int:
        """Functions that are called for it."""
        made = (each.made if isinstance(each, Recomputed) else each for each in self.sources)
        return 1 + sum(each.steps for each in made if isinstance(each, Made))

    def is_changed(self) -> bool:
        """Whether a tensor that it is made of was changed since it was saved."""
        return any(source.is_changed() for source in self.recipe.sources) or any(
            each.is_changed() for each in self.sources if not isinstance(each, Tensor)
        )


class Recomputed(Handle):
    """A tensor that an operator makes again."""

    __slots__ = ("made",)

    def __init__(self, t: Tensor, number: int, released: Released, made: Made) -> None:
        super().__init__(t, number, released)
        self.made = made

    def is_changed(self) -> bool:
        return super().is_changed() or self.made.is_changed()


OneSource = Tensor | Whole | Masked | Recomputed | Made
Sources = list[OneSource]
"""What an operator is given: tensors that are there anyway, handles, and what is made of these."""

"""Packs what autograd saves by a ``Recorder`` alone, so that gradients tell whether it is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gnnsys.offload.bit_masks import BitMask
from gnnsys.offload.recipes import Recipe, Source
from gnnsys.offload.recorder import Recorder


class Saving:
    """Masks and recipes where the recorder has them, copies of whole storages elsewhere."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.copies: dict[tuple[int, int], Tensor] = {}  # by number and version of a storage
        self.counts: Counter[str] = Counter()

    @contextmanager
    def step(self) -> Iterator[None]:
        self.recorder.begin_step()
        with torch.autograd.graph.saved_tensors_hooks(self.pack, self.unpack), self.recorder:
            yield

    def pack(self, t: Tensor) -> Any:
        kind, packed = self._pack(t)
        self.counts[kind] += 1
        return packed

    def unpack(self, packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        return packed.unpack() if isinstance(packed, BitMask) else self.value(packed)

    def has(self, source: Source) -> bool:
        if source.outside is not None or (source.key and self._place(source.key) in self.copies):
            return True
        return source.recipe is not None and all(map(self.has, source.recipe.sources))

    def value(self, source: Source) -> Tensor:
        if source.outside is not None:
            return source.outside
        if source.key and self._place(source.key) in self.copies:
            return self._copy(source.key)
        assert isinstance(source.recipe, Recipe)
        return source.recipe.run([self.value(each) for each in source.recipe.sources])

    def _pack(self, t: Tensor) -> tuple[str, Any]:
        if t.layout != torch.strided or self.recorder.is_outside(t):
            return "outside", t
        mask = self.recorder.mask_of(t)
        if mask is not None:
            return "mask", mask
        key = self.recorder.key_of(t)
        if self._place(key) in self.copies:
            return "shared", Source(key)
        recipe = self.recorder.recipe_of(t)
        if recipe is not None and all(map(self.has, recipe.sources)):
            made = self.value(Source(None, None, recipe))
            assert_same_bits(made, t)
            return "recipe", Source(None, None, recipe)
        bytes_of = torch.empty(0, dtype=torch.uint8).set_(t.detach().untyped_storage())
        self.copies[self._place(key)] = bytes_of.clone()
        return "copy", Source(key)

    def _place(self, key: Any) -> tuple[int, int]:
        return key[0], key[-1]

    def _copy(self, key: Any) -> Tensor:
        _, dtype, shape, stride, offset, _ = key
        storage = self.copies[self._place(key)].untyped_storage()
        return torch.empty(0, dtype=dtype).set_(storage, offset, shape, stride)


def assert_same_bits(a: Tensor, b: Tensor) -> None:
    """NaN, zeros' signs, strides and all."""
    assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
    same = (each.detach().contiguous().view(-1).view(torch.uint8) for each in (a, b))
    assert torch.equal(*same)

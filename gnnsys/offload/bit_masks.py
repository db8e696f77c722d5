"""One bit in place of an element, where backward asks for no more than its sign, or for which of
two values it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gnnsys.system.extension import core

__all__ = ["BitMask", "mask_of_input", "mask_of_result", "mask_of_two_values"]

_PATTERNS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers of as many bytes as an element."""

_INFINITIES = {
    torch.float16: 0x7C00,
    torch.bfloat16: 0x7F80,
    torch.float32: 0x7F80_0000,
    torch.float64: 0x7FF0_0000_0000_0000,
}
"""Patterns, by which the CPU compares."""


@dataclass(frozen=True, slots=True, eq=False)
class BitMask:
    """Bits, and the tensor that they stand for: of 0 where a bit is not set, else of one value.

    >>> mask = mask_of_two_values(torch.tensor([0.0, 1.25, 1.25]))
    >>> mask.nbytes, mask.unpack()
    (1, tensor([0.0000, 1.2500, 1.2500]))
    """

    bits: Tensor
    """((n + 7) // 8,) uint8; the lowest bit of a byte comes first, in the order of memory."""

    one: int
    """The value, as an integer of the same bits."""

    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]

    exact: bool
    """Whether the tensor is the one that was packed, rather than one of the same signs."""

    @property
    def nbytes(self) -> int:
        """Of the bits."""
        return self.bits.numel()

    def unpack(self) -> Tensor:
        """A new tensor, with the strides of the one that was packed."""
        device = self.bits.device
        out = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=device)
        count, width = out.numel(), self.dtype.itemsize
        if _in_core(device):
            pattern = self.one & (1 << 8 * width) - 1
            args = width, self.bits.numpy(), count, pattern, out.data_ptr(), torch.get_num_threads()
            core.unpack_bits(*args)
            return out
        set_bits = self.bits.unsqueeze(1) >> torch.arange(8, device=device) & 1
        patterns = set_bits.view(-1)[:count].to(_PATTERNS[width]).mul_(self.one)
        flat = out.as_strided((count,), (1,))
        flat.view(_PATTERNS[width]).copy_(patterns)
        return out


def mask_of_result(x: Tensor) -> BitMask | None:
    """Which elements are not at most 0: of 1 and 0, what ReLU's backward takes its result for.

    Args:
        x: floating point.

    Returns:
        None where x is not dense, or of another element type.
    """
    return _mask_of_signs(x, counts_nan=True)


def mask_of_input(x: Tensor) -> BitMask | None:
    """Which elements are above 0: of 1 and 0, what leaky ReLU's backward takes its input for.

    Args:
        x: floating point.

    Returns:
        None where x is not dense, or of another element type.
    """
    return _mask_of_signs(x, counts_nan=False)


def mask_of_two_values(x: Tensor) -> BitMask | None:
    """Of bools, or of 0 and one other value, such as what dropout multiplies by.

    Returns:
        None where x is not dense, or has other values; -0 is one.
    """
    flat, width = _flat(x), x.dtype.itemsize
    if flat is None or width not in _PATTERNS:
        return None
    if _in_core(x.device):
        bits = _bits_for(x)
        args = width, x.data_ptr(), x.numel(), bits.numpy(), torch.get_num_threads()
        found = core.pack_two_values(*args)
        return None if found is None else _mask(x, bits, found, exact=True)
    if x.dtype == torch.bool:  # without waiting for the device
        return _mask(x, _packed(flat), 1, exact=True)
    patterns = flat.view(_PATTERNS[width])
    is_set = patterns != 0
    one = int(patterns[is_set][:1].sum())
    if not bool(torch.where(is_set, patterns == one, True).all()):
        return None
    return _mask(x, _packed(is_set), one, exact=True)


def _mask_of_signs(x: Tensor, *, counts_nan: bool) -> BitMask | None:
    flat = _flat(x)
    if flat is None or x.dtype not in _INFINITIES:
        return None
    one = int(torch.ones(1, dtype=x.dtype).view(_PATTERNS[x.dtype.itemsize]))
    if _in_core(x.device):
        bits, infinity = _bits_for(x), _INFINITIES[x.dtype]
        args = x.data_ptr(), x.numel(), bits.numpy(), torch.get_num_threads()
        core.pack_signs(x.dtype.itemsize, infinity, counts_nan, *args)
        return _mask(x, bits, one, exact=False)
    return _mask(x, _packed(~(flat <= 0) if counts_nan else flat > 0), one, exact=False)


def _in_core(device: torch.device) -> bool:
    """Whether compiled code packs; elsewhere operators of torch do."""
    return device.type == "cpu"


def _mask(x: Tensor, bits: Tensor, one: int, *, exact: bool) -> BitMask:
    return BitMask(bits, one, x.dtype, x.shape, x.stride(), exact)


def _bits_for(x: Tensor) -> Tensor:
    return torch.empty((x.numel() + 7) // 8, dtype=torch.uint8)


def _packed(is_set: Tensor) -> Tensor:
    """((n + 7) // 8,) uint8 of (n,) bools, by torch."""
    padded = torch.nn.functional.pad(is_set, (0, -is_set.numel() % 8)).view(-1, 8)
    weights = 1 << torch.arange(8, dtype=torch.uint8, device=is_set.device)
    return (padded * weights).sum(1, dtype=torch.uint8)


def _flat(x: Tensor) -> Tensor | None:
    """(n,) in the order of memory; None where elements overlap or do not follow one another, or
    memory holds other values than the tensor has."""
    if x.layout != torch.strided or x.is_neg() or x.is_conj():
        return None
    if not x.is_contiguous() and torch.empty_like(x, device="meta").stride() != x.stride():
        return None
    return x.as_strided((x.numel(),), (1,), x.storage_offset())

"""Host memory for tensors: on huge pages, pooled, over read-only arrays; what freed memory does.

Rows scattered over 4 KiB pages take 1.5 to 2.4 times as long to gather as on huge ones.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import math
import mmap
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.errors import ArgumentError
from gnnsys.system.extension import core
from gnnsys.system.files import advise
from gnnsys.system.huge_pages import HUGE_PAGE

__all__ = [
    "empty",
    "in_pages_of_its_own",
    "keep_freed_memory",
    "map_pages",
    "pooled",
    "return_freed_memory",
    "suit_freed_memory",
    "view_array",
]

_log = logging.getLogger(__name__)
_POOLED_BYTES = 64 << 10
# Parameters of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST_HEAP_TENSOR = 256 << 20
_GROWTH = 64 << 20
_PLENTY = 4 << 30  # bytes, of which what is kept by default is a quarter at most
_RETURNED = 1 << 20
_INT_MAX = (1 << 31) - 1  # mallopt takes an int
_kept = 0  # bytes that this process was told to keep


def empty(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """An uninitialised (in fact zero) CPU tensor that starts at a huge-page boundary.

    Args:
        shape: of the tensor.
        dtype: of its elements.

    Returns:
        An ordinary contiguous tensor; its memory is unmapped with the last reference.

    >>> empty((3, 2)).shape
    torch.Size([3, 2])
    """
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < HUGE_PAGE:
        return torch.zeros(*shape, dtype=dtype)
    whole = map_pages(nbytes + HUGE_PAGE)
    head = -whole.data_ptr() % HUGE_PAGE
    return whole[head : head + nbytes].view(dtype).view(*shape)


def in_pages_of_its_own(tensor: Tensor) -> Tensor:
    """A copy of a CPU tensor in pages that hold nothing else, which a GPU can be let read.

    >>> in_pages_of_its_own(torch.arange(3)).untyped_storage().nbytes() % mmap.PAGESIZE
    0
    """
    whole = map_pages(max(1, tensor.nbytes))
    return whole[: tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)


def map_pages(nbytes: int) -> Tensor:
    """Whole pages of at least so many bytes, huge ones where there are such."""
    nbytes = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    area = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        advise(area, mmap.MADV_HUGEPAGE)
    return torch.frombuffer(area, dtype=torch.uint8)


def pooled(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised CPU tensor in memory that is used again once it is let go: of the process's
    pool, or of the allocator where that does not give it back to the kernel.

    >>> pooled((3, 2), torch.float16).shape
    torch.Size([3, 2])
    """
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < _POOLED_BYTES:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(core.pooled_bytes(nbytes)).view(dtype).view(shape)


def view_array(array: NDArray[Any]) -> Tensor:
    """A tensor over the memory of ``array``, also of a read-only one, which torch would warn of.

    Whoever calls this never writes to the tensor.

    Raises:
        TypeError, ValueError: an element type or strides that torch does not know.
    """
    if array.flags.writeable:
        return torch.from_numpy(array)
    interface = dict(array.__array_interface__)
    interface["data"] = (interface["data"][0], False)

    class Writable:
        __array_interface__ = interface
        owner = array  # keeps the memory alive

    return torch.from_numpy(np.asarray(Writable()))


def keep_freed_memory(nbytes: int = 1 << 30) -> bool:
    """Tells the C allocator to keep freed memory for the next tensors.

    By default glibc maps every large tensor afresh and unmaps it when it is freed, so that each
    training step takes a page fault for every 4 KiB that it writes: a 3-layer GraphSAGE step on a
    batch of 72,802 nodes took 870 ms, and 396 ms with the memory kept. Holds for the whole
    process, until it ends; a later call can keep more, not less.

    Args:
        nbytes: of freed memory to keep, at most 2 GiB; tensors of up to 256 MiB take part.

    Returns:
        Whether it was done: False where the C library is not glibc, which is logged once.

    Raises:
        ArgumentError: ``nbytes`` is not positive.

    >>> keep_freed_memory() in (True, False)
    True
    """
    global _kept
    if nbytes <= 0:
        raise ArgumentError(f"keep_freed_memory: nbytes {nbytes}, expected a positive number")
    if not _is_glibc():
        return False
    nbytes = min(nbytes, _INT_MAX)
    if nbytes <= _kept:
        return True
    done = _tell_allocator(min(nbytes, _LARGEST_HEAP_TENSOR), keep=nbytes, growth=_GROWTH)
    if done:
        _kept = nbytes
    else:
        _log.info("freed memory goes back to the kernel: mallopt refused to keep %d bytes", nbytes)
    return done


def suit_freed_memory(available: int) -> None:
    """Has the C allocator keep freed memory where a process has plenty, else return it at once.

    Left alone, glibc does neither: what a training step freed stays in the heap between what is in
    use, measured up to three times what a step takes. Changes nothing after ``keep_freed_memory``.

    Args:
        available: bytes that the process may take.
    """
    if available >= _PLENTY:
        keep_freed_memory()
    elif not _kept and _is_glibc():
        _tell_allocator(_RETURNED, keep=_RETURNED, growth=_RETURNED // 8)


def return_freed_memory() -> None:
    """Gives the pages of the C allocator's heaps that nothing lies in back to the kernel; does
    nothing where the C library is not glibc."""
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _tell_allocator(largest: int, keep: int, growth: int) -> bool:
    """Tensors of up to ``largest`` bytes lie in the heap, which keeps so much at its end."""
    mallopt = ctypes.CDLL(None).mallopt
    return all(
        mallopt(parameter, value) == 1
        for parameter, value in (
            (_M_MMAP_THRESHOLD, largest),
            (_M_TRIM_THRESHOLD, keep),
            (_M_TOP_PAD, growth),
        )
    )


@functools.cache
def _is_glibc() -> bool:
    names = getattr(os, "confstr_names", {})
    if "CS_GNU_LIBC_VERSION" in names and os.confstr("CS_GNU_LIBC_VERSION"):
        return True
    _log.info("freed memory goes back to the kernel: only glibc can be told to keep it")
    return False

"""Memory on huge pages: mapped where they can lie, and put on them as it is filled."""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import os
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

__all__ = ["HUGE_PAGE", "HugePages", "map_aligned"]

_log = logging.getLogger(__name__)

HUGE_PAGE = 2 << 20
_AT_ONCE = 8 << 20  # a call waits for all cores: one for each huge page would take longer
_MAP_FIXED = 0x10  # of linux/mman.h, as is the next
_MADV_COLLAPSE = 25

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
    *(ctypes.c_int, ctypes.c_int, ctypes.c_long),
)
_libc.madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int


def map_aligned(descriptor: int, nbytes: int, protection: int) -> NDArray[np.uint8]:
    """(bytes,) of a file that all who map it share, from a huge page's boundary on.

    Raises:
        OSError: the system refuses it.
    """
    # Python's mmap lets nobody choose the address: a place is held by it, and mapped over.
    place = mmap.mmap(
        -1, max(1, nbytes) + HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ
    )
    start = np.frombuffer(place, np.uint8).ctypes.data
    head = -start % HUGE_PAGE
    mapped = _libc.mmap(
        start + head, max(1, nbytes), protection, mmap.MAP_SHARED | _MAP_FIXED, descriptor, 0
    )
    if mapped != start + head:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    with suppress(OSError):  # a kernel without them
        place.madvise(mmap.MADV_HUGEPAGE, head, max(1, nbytes))
    return np.asarray(_Mapped(place, mapped, nbytes, bool(protection & mmap.PROT_WRITE)))


class _Mapped:
    """Bytes that stay mapped while an array is over them."""

    def __init__(self, place: mmap.mmap, address: int, nbytes: int, writable: bool) -> None:
        self._place = place
        self.__array_interface__ = {
            "data": (address, not writable),
            "shape": (nbytes,),
            "typestr": "|u1",
            "version": 3,
        }


class HugePages:
    """Puts memory on huge pages while it is filled from its beginning on.

    They are asked for by MADV_COLLAPSE, which takes them also where the system's settings leave
    memory that processes share on small ones. Others that map it at a huge page's boundary read it
    by them, too. What the system refuses stays on small pages: this changes speed only.

    Args:
        memory: (bytes,) that is not written to yet, which the caller keeps.
        planned: bytes of it that are filled in any case: of these more are taken at once.

    >>> memory = np.zeros(3 * HUGE_PAGE, np.uint8)
    >>> pages = HugePages(memory, planned=len(memory))
    >>> pages.reach(100)
    >>> memory[:100] = 7
    >>> int(memory.sum())
    700
    """

    def __init__(self, memory: NDArray[np.uint8], planned: int) -> None:
        self._address, self._nbytes, self._planned = memory.ctypes.data, len(memory), planned
        self._done = -self._address % HUGE_PAGE
        """Bytes of the memory that were asked for."""

    def reach(self, nbytes: int) -> None:
        """To be called before bytes up to this one are first written to; takes less than a huge
        page beyond both it and what is planned."""
        first = self._done
        if nbytes <= first:
            return
        wanted = max(nbytes, min(first + _AT_ONCE, self._planned)) - first
        pages = min(-(-wanted // HUGE_PAGE), (self._nbytes - first) // HUGE_PAGE)
        if pages <= 0:
            return
        self._done = first + pages * HUGE_PAGE
        begin, end = self._address + first, self._address + self._done
        for page in range(begin, end, HUGE_PAGE):
            ctypes.memset(page, 0, 1)  # where nothing is, nothing is collapsed
        if _libc.madvise(begin, end - begin, _MADV_COLLAPSE) == 0:
            return
        error = ctypes.get_errno()
        if error != errno.EAGAIN:  # which is about these pages alone
            self._done = self._nbytes
        _log.debug("memory stays on small pages: MADV_COLLAPSE: %s", os.strerror(error))

"""Host memory that a GPU reads in place: registered page by page with CUDA."""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import resource
import threading
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gnnsys.errors import DeviceError, ResourceError
from gnnsys.system.sizes import size_text

__all__ = [
    "CHUNK_BYTES",
    "OWN_MAPPING_BYTES",
    "HostMemory",
    "Range",
    "Registrar",
    "check_not_lost",
]

_log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 30
"""Of one registration: CUDA holds a lock of the process meanwhile."""

OWN_MAPPING_BYTES = 256 << 20
"""Larger blocks the C allocator maps one by one; see ``gnnsys.memory.alloc``."""

_PAGE = mmap.PAGESIZE
_lost: list[Range] = []
"""In a forked process: what its parent had registered, and this one has no pages of."""

# Of cudaHostRegister, and what it answers.
_PORTABLE, _MAPPED, _READ_ONLY = 1, 2, 8
_OUT_OF_MEMORY, _ALREADY_REGISTERED = 2, 712


class Registrar(Protocol):
    """Who registers memory; a part of ``Provider``."""

    def register(self, address: int, nbytes: int, flags: int) -> None: ...

    def unregister(self, address: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes of this process's memory."""

    address: int
    nbytes: int

    @property
    def fills_pages(self) -> bool:
        """Whether no other bytes lie in their pages."""
        return self.address % _PAGE == self.nbytes % _PAGE == 0

    def pieces(self, most: int) -> list[Range]:
        """The pages that they lie in, up to ``most`` bytes at a time.

        >>> [piece.nbytes for piece in Range(4097, 12288).pieces(8192)]
        [8192, 8192]
        """
        first = self.address // _PAGE * _PAGE
        last = -(-(self.address + self.nbytes) // _PAGE) * _PAGE
        return [Range(at, min(most, last - at)) for at in range(first, last, most)]

    def meets(self, other: Range) -> bool:
        """Whether there is a byte that both have."""
        last, other_last = self.address + self.nbytes, other.address + other.nbytes
        return max(self.address, other.address) < min(last, other_last)


class HostMemory:
    """What of this process's memory is registered, and how often it was asked for.

    Memory is registered in pieces at the first call for each, and let go with the last. What
    somebody else registered is used as it is. Registered are only pages that nothing else lies in:
    CUDA refuses copies of what is registered in part, which others may ask for next to it.

    Args:
        registrar: see ``Provider``.
        chunk_bytes: of one registration at most, a multiple of the page size.
    """

    def __init__(self, registrar: Registrar, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._registrar, self._chunk_bytes = registrar, chunk_bytes
        self._pieces: dict[Range, _Piece] = {}
        self._let_go: deque[Range] = deque()
        self._lock = threading.Lock()
        lose = weakref.WeakMethod(self._lose)
        os.register_at_fork(after_in_child=lambda: (found := lose()) and found())

    def add(self, memory: Range, *, reads_only: bool = True) -> None:
        """Registers the pages of a range, all or none.

        Processes that are forked from now on do not have those that are private: their copy of a
        table would take as much memory again, at once, as the device holds on to the pages.

        Args:
            memory: that fills its pages, or lies in a mapping of its own: of a file, or of a block
                of so many bytes that the C allocator maps it by itself.
            reads_only: whether memory that can only be read may be registered.

        Raises:
            ResourceError: the limit of locked memory is too low.
            DeviceError: CUDA refuses; memory that can only be read, where that is not registered;
                memory that shares pages with other.
        """
        mapping = _mapping_of(memory)
        if not (memory.fills_pages or mapping.is_of_file or memory.nbytes > OWN_MAPPING_BYTES):
            raise DeviceError(
                f"{size_text(memory.nbytes)} of host memory share pages with other memory; "
                f"more than {size_text(OWN_MAPPING_BYTES)}, a file or gnnsys.memory.empty would not"
            )
        if not (mapping.is_writable or reads_only):
            raise DeviceError(
                f"{size_text(memory.nbytes)} of host memory can only be read, and this driver does "
                "not register such memory"
            )
        flags = _PORTABLE | _MAPPED | (0 if mapping.is_writable else _READ_ONLY)
        done = []
        with self._lock:
            try:
                for piece in memory.pieces(self._chunk_bytes):
                    if piece not in self._pieces:
                        self._pieces[piece] = self._register(piece, flags, mapping)
                    self._pieces[piece].uses += 1
                    done.append(piece)
            except DeviceError as error:
                self._remove(done)
                raise _refused(memory, error) from error
        self._remove_let_go()

    def remove(self, memory: Range) -> None:
        """Takes back one ``add``; later, where another thread or this one is at it."""
        self._let_go.append(memory)
        self._remove_let_go()

    def _register(self, piece: Range, flags: int, mapping: _Mapping) -> _Piece:
        if any(piece.meets(other) for other in self._pieces):
            raise DeviceError("a part of it is registered already")
        _touch(piece)
        is_own = True
        try:
            self._registrar.register(piece.address, piece.nbytes, flags)
        except DeviceError as error:
            if error.status != _ALREADY_REGISTERED:
                raise
            is_own = False
        if not mapping.is_shared:
            _advise(piece, mmap.MADV_DONTFORK)
        return _Piece(is_private=not mapping.is_shared, is_own=is_own)

    def _remove_let_go(self) -> None:
        # The garbage collector may call ``remove`` while this thread holds the lock.
        while self._let_go and self._lock.acquire(blocking=False):
            try:
                while self._let_go:
                    self._remove(self._let_go.popleft().pieces(self._chunk_bytes))
            finally:
                self._lock.release()

    def _remove(self, pieces: list[Range]) -> None:
        for piece in pieces:
            found = self._pieces[piece]
            found.uses -= 1
            if found.uses > 0:
                continue
            del self._pieces[piece]
            if found.is_private:
                _advise(piece, mmap.MADV_DOFORK)
            if found.is_own:
                try:
                    self._registrar.unregister(piece.address)
                except DeviceError as error:  # the rest is to be let go of all the same
                    _log.warning("host memory at %#x stays registered: %s", piece.address, error)

    def _lose(self) -> None:
        _lost.extend(piece for piece, found in self._pieces.items() if found.is_private)


@dataclass(slots=True)
class _Piece:
    is_private: bool
    """Not there in processes that are forked meanwhile."""

    is_own: bool
    """Registered here, not by somebody else."""

    uses: int = 0


@dataclass(slots=True)
class _Mapping:
    is_writable: bool = True
    is_shared: bool = True
    """With processes that are forked."""

    is_of_file: bool = True
    """Or of shared memory."""


def check_not_lost(address: int, nbytes: int) -> None:
    """Raises where memory was private to a process that this one was forked from, and registered.

    Raises:
        DeviceError: it is not there.
    """
    if _lost and any(memory.meets(Range(address, nbytes)) for memory in _lost):
        raise DeviceError(
            "features are registered with the GPU, and a process that was forked since does not "
            "have them: use num_workers=0, or keep them in a file or in shared memory"
        )


def _refused(memory: Range, error: DeviceError) -> Exception:
    size = size_text(memory.nbytes)
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if error.status == _OUT_OF_MEMORY and limit != resource.RLIM_INFINITY and limit < memory.nbytes:
        return ResourceError(
            f"{size} of host memory cannot be locked for the GPU: the limit is "
            f"{size_text(limit)}; raise it by `ulimit -l unlimited`"
        )
    return DeviceError(f"{size} of host memory cannot be registered: {error}", error.status)


def _touch(piece: Range) -> None:
    """Has every page in memory: CUDA would fault them in one by one, and hold its lock."""
    array: Any = (ctypes.c_uint8 * piece.nbytes).from_address(piece.address)
    np.frombuffer(array, np.uint8)[::_PAGE].max(initial=0)


def _advise(pages: Range, advice: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.madvise(ctypes.c_void_p(pages.address), ctypes.c_size_t(pages.nbytes), advice) != 0:
        code = ctypes.get_errno()
        _log.warning("madvise(%d) of registered memory: %s", advice, os.strerror(code))


def _mapping_of(memory: Range) -> _Mapping:
    """What is true of all of it."""
    found = _Mapping()
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, modes, _, _, inode = line.split(None, 5)[:5]
            first, last = (int(end, 16) for end in span.split("-"))
            if memory.meets(Range(first, last - first)):
                found.is_writable &= modes[1] == "w"
                found.is_shared &= modes[3] == "s"
                found.is_of_file &= inode != "0"
    return found

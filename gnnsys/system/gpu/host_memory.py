"""Host memory that a GPU reads in place: registered page by page with CUDA."""

from __future__ import annotations

import ctypes
import itertools
import logging
import mmap
import os
import resource
import threading
import weakref
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gnnsys.errors import DeviceError, ResourceError
from gnnsys.system.sizes import size_text

__all__ = ["CHUNK_BYTES", "HostMemory", "Range", "Registrar", "check_not_lost"]

_log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 30
"""Of one registration: CUDA holds a lock of the process meanwhile."""

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

    def pieces(self, most: int) -> list[Range]:
        """The pages that the bytes lie in: those that are not filled, which other memory may share,
        one by one, the rest together, up to ``most`` bytes at a time.

        >>> [piece.address for piece in Range(4097, 12288).pieces(4096)]
        [4096, 8192, 12288, 16384]
        >>> Range(4096, 8192).pieces(1 << 20) == [Range(4096, 8192)]
        True
        """
        last = self.address + self.nbytes
        first_whole = -(-self.address // _PAGE) * _PAGE
        end_whole = max(last // _PAGE * _PAGE, first_whole)
        cuts = [self.address // _PAGE * _PAGE, *range(first_whole, end_whole, most), end_whole]
        cuts.append(-(-last // _PAGE) * _PAGE)
        return [Range(a, b - a) for a, b in itertools.pairwise(cuts) if a < b]

    def has(self, other: Range) -> bool:
        """Whether all bytes of the other are among these."""
        last, other_last = self.address + self.nbytes, other.address + other.nbytes
        return self.address <= other.address and other_last <= last

    def meets(self, other: Range) -> bool:
        """Whether there is a byte that both have."""
        last, other_last = self.address + self.nbytes, other.address + other.nbytes
        return max(self.address, other.address) < min(last, other_last)


class HostMemory:
    """What of this process's memory is registered, and how often it was asked for.

    Memory is registered in pieces at the first call for each, and let go with the last. What
    somebody else registered is used as it is.

    Args:
        registrar: see ``Provider``.
        reads_only: whether memory can be registered that is only read.
        chunk_bytes: of one registration at most, a multiple of the page size.
    """

    def __init__(
        self, registrar: Registrar, reads_only: bool, chunk_bytes: int = CHUNK_BYTES
    ) -> None:
        self._registrar, self._reads_only = registrar, reads_only
        self._chunk_bytes = chunk_bytes
        self._pieces: dict[Range, _Piece] = {}
        self._lock = threading.Lock()
        lose = weakref.WeakMethod(self._lose)
        os.register_at_fork(after_in_child=lambda: (found := lose()) and found())

    def add(self, memory: Range) -> None:
        """Registers the pages of a range, all or none.

        Processes that are forked from now on do not have those that are private: their copy of a
        table would take as much memory again, at once, as the device holds on to the pages.

        Raises:
            ResourceError: the limit of locked memory is too low.
            DeviceError: CUDA refuses, or the memory can only be read and that cannot be told.
        """
        is_writable, is_shared = _mapping_of(memory)
        if not (is_writable or self._reads_only):
            raise DeviceError(
                f"{size_text(memory.nbytes)} of host memory can only be read, and this driver does "
                "not register such memory"
            )
        flags = _PORTABLE | _MAPPED | (0 if is_writable else _READ_ONLY)
        done = []
        with self._lock:
            try:
                for piece in memory.pieces(self._chunk_bytes):
                    if piece not in self._pieces:
                        is_private = not is_shared and memory.has(piece)
                        self._pieces[piece] = _Piece(is_private, self._register(piece, flags))
                        if is_private:
                            _advise(piece, mmap.MADV_DONTFORK)
                    self._pieces[piece].uses += 1
                    done.append(piece)
            except DeviceError as error:
                self._remove(done)
                raise _refused(memory, error) from error

    def remove(self, memory: Range) -> None:
        """Takes back one ``add``."""
        with self._lock:
            self._remove(memory.pieces(self._chunk_bytes))

    def _register(self, piece: Range, flags: int) -> bool:
        """Whether it was not registered before."""
        _touch(piece)
        try:
            self._registrar.register(piece.address, piece.nbytes, flags)
        except DeviceError as error:
            if error.status != _ALREADY_REGISTERED:
                raise
            return False
        return True

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


def _mapping_of(memory: Range) -> tuple[bool, bool]:
    """Whether all of it may be written, and whether all is shared with forked processes."""
    is_writable = is_shared = True
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, modes = line.split(None, 2)[:2]
            first, last = (int(end, 16) for end in span.split("-"))
            if memory.meets(Range(first, last - first)):
                is_writable &= modes[1] == "w"
                is_shared &= modes[3] == "s"
    return is_writable, is_shared

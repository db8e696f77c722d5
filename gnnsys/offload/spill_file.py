"""A file without a name that takes what does not fit into memory, and uses freed room again."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import tempfile
import threading
import time
import weakref
from bisect import bisect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gnnsys.choices import Storage
from gnnsys.errors import ArgumentError, GnnsysError, StorageError
from gnnsys.memory import FileStore
from gnnsys.memory.alloc import map_pages
from gnnsys.memory.direct_rows import DEPTH, direct_mode
from gnnsys.system.files import HEADER_BYTES, as_storage_error
from gnnsys.system.machine import mount_of
from gnnsys.system.once import warn_once
from gnnsys.system.threads import local_world_size

__all__ = ["Extent", "SpillFile"]

_log = logging.getLogger(__name__)
_PAGE = 4096
_TAIL = 16  # pages that are written with one that is not full: a single one goes to the page cache


@dataclass(frozen=True, slots=True, eq=False)
class Extent:
    """A place in a ``SpillFile``: pages of 4,096 bytes that follow one another."""

    first: int
    """Number of its first page."""
    pages: int
    nbytes: int
    """That it holds; the rest of its last page is not used."""


class SpillFile:
    """Bytes in a file that has no name, so that nothing of it outlives the process, however that
    ends. Several threads may use it at once; a forked child cannot, nor can it disturb its parent.

    The bytes go past the page cache where the file system permits it, through a ``FileStore``. The
    file takes room as it is written.

    Args:
        folder: on the disk to use; None for that of temporary files.
        most_bytes: of the file; None for half of what is free there, which the ranks of a machine
            share.

    Raises:
        StorageError: no file of that size can be made there.
        ResourceError: the process has as many files open as it may.
        ArgumentError: ``most_bytes`` is less than a page of 4,096 bytes.

    >>> spill = SpillFile(most_bytes=1 << 20)
    >>> extent = spill.allocate(3)
    >>> spill.write(extent, torch.tensor([5, 6, 7], dtype=torch.uint8))
    >>> out = spill.room_for(3)
    >>> spill.read(extent, out)
    >>> out
    tensor([5, 6, 7], dtype=torch.uint8)
    >>> spill.free(extent)
    >>> spill.close()
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None = None, most_bytes: int | None = None
    ) -> None:
        if most_bytes is not None and most_bytes < _PAGE:
            raise ArgumentError(
                f"most_bytes: {most_bytes}, expected at least a page of {_PAGE} bytes"
            )
        self._folder = Path(tempfile.gettempdir() if folder is None else folder)
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._held: dict[int, Extent] = {}  # by first page
        self._freed: list[Extent] = []  # that are not back in _pages yet
        self._in_use = self._peak = 0
        self.written = self.read_bytes = 0
        """Bytes moved so far."""
        self.write_seconds = self.read_seconds = 0.0
        """Time that moving them took, threads added up."""
        with as_storage_error(self._folder):
            _tell_of_memory(self._folder)
            file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
            self._release = weakref.finalize(self, file.close)
            self._path = f"/proc/self/fd/{file.fileno()}"
            try:
                self.most_bytes = _room_in(self._folder) if most_bytes is None else most_bytes
                self._pages = _Pages(self.most_bytes // _PAGE)
                self._store = self._make_store()
            except BaseException:
                self._release()
                raise

    def _make_store(self) -> FileStore:
        shape, storage = (self._pages.count, _PAGE), _way_to_read(self._path)
        with self._naming_the_folder():
            return FileStore.create(self._path, shape, torch.uint8, storage=storage)

    @property
    def in_use(self) -> int:
        """Bytes of the pages that are allocated now."""
        with self._lock:
            self._take_back()
            return self._in_use

    @property
    def peak(self) -> int:
        """Bytes of the pages that were allocated at most at once."""
        return self._peak

    def allocate(self, nbytes: int) -> Extent:
        """Takes the first pages in a row that hold so many bytes.

        Raises:
            StorageError: there are none left.
            ArgumentError: ``nbytes`` is not positive, or this file was closed or is a parent's.
        """
        self._check_usable()
        if nbytes <= 0:
            raise ArgumentError(f"nbytes: {nbytes}, expected a positive number")
        pages = -(-nbytes // _PAGE)
        with self._lock:
            self._take_back()
            first = self._pages.take(pages)
            if first is None:
                raise StorageError(
                    f"{self._folder}: no {nbytes} bytes in a row are left for activations: "
                    f"{self._in_use} of at most {self.most_bytes} bytes are in use; permit more, "
                    "or name a folder on a disk with more room"
                )
            extent = self._held[first] = Extent(first, pages, nbytes)
            self._in_use += pages * _PAGE
            self._peak = max(self._peak, self._in_use)
        return extent

    def write(self, extent: Extent, data: Tensor) -> None:
        """Writes an extent, which must stay allocated meanwhile.

        Args:
            extent: that was allocated here.
            data: (extent.nbytes,) uint8 on the CPU.

        Raises:
            StorageError: the disk is full, or the file cannot be written.
            ArgumentError: ``data`` does not fit, or the extent is not allocated.
        """
        self._check(extent, data)
        start = time.perf_counter()
        whole = extent.pages
        if extent.nbytes % _PAGE:
            whole = max(0, whole - _TAIL)
            # By numpy: torch would wake its threads, which compute.
            tail = np.zeros((extent.pages - whole, _PAGE), np.uint8)
            tail.reshape(-1)[: extent.nbytes - whole * _PAGE] = data[whole * _PAGE :].numpy()
        with self._naming_the_folder():
            self._store.write_range(extent.first, data[: whole * _PAGE].view(whole, _PAGE))
            if whole < extent.pages:
                self._store.write_range(extent.first + whole, torch.from_numpy(tail))
        with self._lock:
            self.written += extent.nbytes
            self.write_seconds += time.perf_counter() - start

    def read(self, extent: Extent, out: Tensor) -> None:
        """Reads an extent, which must stay allocated meanwhile.

        Args:
            extent: that was written here.
            out: (extent.nbytes,) uint8 on the CPU, dense, to read into.

        Raises:
            StorageError: the disk failed.
            ArgumentError: ``out`` does not fit, or the extent is not allocated.
        """
        self._check(extent, out)
        start = time.perf_counter()
        whole = extent.nbytes // _PAGE
        end = extent.first + whole
        with self._naming_the_folder():
            self._store.read_range(extent.first, end, out[: whole * _PAGE].view(whole, _PAGE))
            if whole < extent.pages:
                page = self._store.read_range(end, end + 1).numpy()[0]
                out[whole * _PAGE :].numpy()[:] = page[: extent.nbytes - whole * _PAGE]
        with self._lock:
            self.read_bytes += extent.nbytes
            self.read_seconds += time.perf_counter() - start

    def room_for(self, nbytes: int) -> Tensor:
        """(nbytes,) uint8 of memory to read into, at the beginning of a storage of its own.

        Of a thread that frees none of it, the C allocator would keep a heap."""
        return map_pages(nbytes)[:nbytes]

    def free(self, extent: Extent) -> None:
        """Gives the pages of an extent out again. Does nothing in a forked child or once closed.

        Takes no lock: the garbage collector may call it in the midst of an allocation.

        Raises:
            ArgumentError: the extent is not allocated here.
        """
        if self._is_usable():
            self._check_held(extent)
            del self._held[extent.first]
            self._freed.append(extent)

    def close(self) -> None:
        """Waits for reads and writes under way and lets go of the file, and so of its room."""
        if self._is_usable():
            self._store.close()
            self._release()

    def _take_back(self) -> None:
        while self._freed:
            extent = self._freed.pop()
            self._pages.give(extent.first, extent.pages)
            self._in_use -= extent.pages * _PAGE

    def _check(self, extent: Extent, data: Tensor) -> None:
        self._check_usable()
        self._check_held(extent)
        found = (tuple(data.shape), data.dtype, data.device.type)
        if found != ((extent.nbytes,), torch.uint8, "cpu") or not data.is_contiguous():
            raise ArgumentError(
                f"data: {tuple(data.shape)} of {data.dtype} on {data.device}, strides "
                f"{data.stride()}; expected dense ({extent.nbytes},) of torch.uint8 on the CPU"
            )

    def _check_held(self, extent: Extent) -> None:
        if self._held.get(extent.first) is not extent:
            raise ArgumentError(f"{extent}: is not allocated in this file, or was freed")

    def _check_usable(self) -> None:
        if not self._is_usable():
            why = "was closed" if self._process == os.getpid() else "belongs to a parent process"
            raise ArgumentError(f"{self._folder}: this file for activations {why}; make another")

    def _is_usable(self) -> bool:
        return self._process == os.getpid() and self._release.alive

    @contextmanager
    def _naming_the_folder(self) -> Iterator[None]:
        # The path that FileStore knows says nothing to a user.
        try:
            yield
        except GnnsysError as error:
            raise self._named(error) from error

    def _named(self, error: GnnsysError) -> GnnsysError:
        what = str(error).removeprefix(f"{self._path}: ")
        named = type(error)(f"{self._folder} (file for activations): {what}")
        if isinstance(named, OSError) and isinstance(error, OSError):
            named.errno = error.errno
        return named


class _Pages:
    """Runs of free pages: the first that is long enough is taken; neighbours join."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._runs = [(0, count)]  # first page and length, ascending, apart from each other

    def take(self, pages: int) -> int | None:
        """The first of so many pages in a row, which are no longer free; None without such."""
        for at, (first, length) in enumerate(self._runs):
            if length >= pages:
                rest = [(first + pages, length - pages)] if length > pages else []
                self._runs[at : at + 1] = rest
                return first
        return None

    def give(self, first: int, pages: int) -> None:
        """Frees pages that were taken."""
        at = bisect(self._runs, (first, pages))
        begin = end = at
        if at and sum(self._runs[at - 1]) == first:
            begin, (first, length) = at - 1, self._runs[at - 1]
            pages += length
        if at < len(self._runs) and self._runs[at][0] == first + pages:
            end = at + 1
            pages += self._runs[at][1]
        self._runs[begin:end] = [(first, pages)]


def _room_in(folder: Path) -> int:
    free, limit = shutil.disk_usage(folder).free, resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    own = free // 2 // local_world_size()
    room = own if limit == resource.RLIM_INFINITY else min(own, limit - HEADER_BYTES)
    if room < _PAGE:
        raise StorageError(
            f"{folder}: no room for activations: {free} bytes are free, and a file may have "
            f"{limit} (-1: any number); name a folder on another disk, or raise ulimit -f"
        )
    return room


def _way_to_read(path: str) -> Storage:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return "mmap"
    return direct_mode("auto", DEPTH)


def _tell_of_memory(folder: Path) -> None:
    kind = mount_of(folder)[0]
    if kind in ("tmpfs", "ramfs"):
        warn_once(
            _log, "%s: lies in memory (%s), so that activations moved there take memory still; "
            "name a folder on a disk", folder, kind,
        )  # fmt: skip

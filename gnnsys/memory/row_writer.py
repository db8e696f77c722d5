"""Writes ranges of bytes to the file of a shard, past the page cache where that is possible."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gnnsys.errors import StorageError
from gnnsys.memory.table_file import Shard
from gnnsys.system.extension import core
from gnnsys.system.files import as_storage_error

__all__ = ["RowWriter", "open_writer"]

_PAGE = 4096
_BLOCK = 4 << 20  # bytes that are written at a time past the page cache
_LEAST = 64 << 10  # shorter ranges are left to the page cache, which gathers them


class RowWriter:
    """Writes to an open file; make one with `open_writer`."""

    def __init__(self, handle: int, direct: int | None) -> None:
        self._handle = handle
        self._direct = direct

    def write(self, place: int, data: NDArray[np.uint8]) -> None:
        """Writes ``data`` from byte ``place`` on: whole pages directly, what is left cached."""
        first = -(-place // _PAGE) * _PAGE
        last = (place + len(data)) // _PAGE * _PAGE
        if self._direct is None or last - first < _LEAST:
            _write_all(self._handle, data, place)
            return
        _write_all(self._handle, data[: first - place], place)
        _write_all(self._handle, data[last - place :], last)
        whole = data[first - place : last - place]
        if whole.ctypes.data % _PAGE == 0:
            self._write_direct(whole, first)
            return
        staged = core.pooled_bytes(min(_BLOCK, len(whole)))  # of whole pages of memory
        for start in range(0, len(whole), _BLOCK):
            part = whole[start : start + _BLOCK]
            staged[: len(part)] = part
            self._write_direct(staged[: len(part)], first + start)

    def _write_direct(self, data: NDArray[np.uint8], place: int) -> None:
        written = 0
        try:
            if self._direct is not None:
                written = os.pwrite(self._direct, data.data, place)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            self._direct = None  # the file system opened the file so, but does not write so
        _write_all(self._handle, data[written:], place + written)


@contextmanager
def open_writer(shard: Shard, direct: bool) -> Iterator[RowWriter]:
    """Opens the file of a shard for writing.

    Args:
        shard: whose file.
        direct: whether to write past the page cache.

    Raises:
        StorageError: it cannot be written, or another file stands in its place.
    """
    handle, past = -1, None
    with as_storage_error(Path(shard.path)):
        try:
            handle = os.open(shard.path, os.O_WRONLY)
            if not os.path.samestat(os.fstat(handle), os.fstat(shard.handle)):
                raise StorageError(
                    f"{shard.path}: was replaced by another file since it was opened; open it anew"
                )
            past = _open_direct(shard.path) if direct else None
            yield RowWriter(handle, past)
        finally:
            for each in (handle, -1 if past is None else past):
                if each >= 0:
                    os.close(each)


def _open_direct(path: str) -> int | None:
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT)
    except OSError:
        return None  # reading says so, once


def _write_all(handle: int, data: NDArray[np.uint8], place: int) -> None:
    while len(data):
        written = os.pwrite(handle, data.data, place)
        data, place = data[written:], place + written

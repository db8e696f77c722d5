"""The files of a table: where its rows lie in them, and whether they are what they should be."""

from __future__ import annotations

import errno
import math
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from gnnsys.errors import (
    ArgumentError,
    DTypeError,
    FileFormatError,
    MissingFileError,
    ResourceError,
    StorageError,
)
from gnnsys.memory.encoding import check_dtype
from gnnsys.system.files import NPY_FAULTS, advise, check_file

__all__ = ["Shard", "TableFile", "read_error"]

_NO_HANDLES = (errno.EMFILE, errno.ENFILE)

_TORCH_DTYPES = {
    np.dtype(name): getattr(torch, name)
    for name in [
        "float64",
        "float32",
        "float16",
        "complex128",
        "complex64",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
        "bool",
    ]
}


@dataclass(slots=True)
class Shard:
    """Consecutive rows of a table, in a file of their own, open as long as this object lives."""

    path: str
    handle: int
    """The open file; -1 once it was closed."""
    shape: torch.Size
    """(rows, …)"""
    stored: torch.dtype
    offset: int
    """Bytes before the first row."""
    first: int = 0
    """Number of its first row in the table."""
    area: mmap.mmap | None = field(default=None, repr=False)
    """The mapped file, in mmap mode."""
    rows: int = field(init=False)
    row_bytes: int = field(init=False)
    end: int = field(init=False)
    """The byte of the file after the last row."""

    def __post_init__(self) -> None:
        self.rows = self.shape[0]
        self.row_bytes = math.prod(self.shape[1:]) * self.stored.itemsize
        self.end = self.offset + self.rows * self.row_bytes

    def check_size(self, exact: bool = False) -> None:
        """Raises FileFormatError where the file is too short, or, if ``exact``, too long."""
        found = os.fstat(self.handle).st_size
        if found < self.end or (exact and found != self.end):
            state = "truncated" if found < self.end else "longer than its header says"
            raise FileFormatError(
                f"{self.path}: {state}: shape {tuple(self.shape)} of {self.stored} from offset "
                f"{self.offset} ends at byte {self.end}, the file at {found}; write it again"
            )

    def close(self) -> None:
        """Lets go of the file."""
        handle, self.handle, self.area = self.handle, -1, None
        if handle >= 0:
            os.close(handle)

    def __del__(self) -> None:
        self.close()

    def read_into(self, place: int, out: NDArray[np.uint8]) -> None:
        """Fills ``out`` with the bytes from ``place`` on, through the page cache."""
        while len(out):
            try:
                got = os.preadv(self.handle, [out.data], place)
            except OSError as error:
                raise read_error(self.path, place, error.errno or 0) from error
            if got == 0:
                self.check_size()
                raise read_error(self.path, place, errno.EIO)
            out, place = out[got:], place + got

    def map(self) -> int:
        """Maps the file, for reads at random; returns the address of the first row, or 0."""
        if os.fstat(self.handle).st_size == 0:
            return 0  # an empty raw table: nothing to map
        with _taking_handles(self.path):
            self.area = mmap.mmap(self.handle, 0, access=mmap.ACCESS_READ)
        advise(self.area, mmap.MADV_RANDOM)
        return int(np.frombuffer(self.area, np.uint8).ctypes.data) + self.offset


def read_error(path: str, place: int, code: int) -> StorageError | ResourceError:
    """The error for a read of ``path`` that failed at byte ``place`` with an errno, or 0 where the
    file ended."""
    if code == errno.ECANCELED:
        return ResourceError(
            f"{path}: cannot be read at byte {place}: io_uring could not start a thread of the "
            "kernel; raise the limit of threads (pids.max of the control group, ulimit -u)"
        )
    code = code or errno.EIO
    error = StorageError(
        f"{path}: cannot be read at byte {place} ({os.strerror(code)}); see the kernel's log for "
        "the disk, and bring the file to another one"
    )
    error.errno = code
    return error


class TableFile:
    """The rows of a ``.npy`` file, of several one after another, or of a raw file.

    Args:
        paths: of the files, in the order of their rows.
        encoding: element type where the header cannot name it; a raw file needs it.
        shape: (rows, …) of a raw file, and only there.
        offset: bytes before the first row of a raw file.

    Raises:
        MissingFileError: there is no such file.
        FileFormatError: not a .npy array in C order, shorter or longer than its header says, or
            of other rows than the first file.
        DTypeError, ArgumentError: an unusable dtype, or raw options that do not fit.
    """

    def __init__(
        self,
        paths: Sequence[str],
        encoding: torch.dtype | None = None,
        shape: Sequence[int] | None = None,
        offset: int = 0,
    ) -> None:
        if len(paths) == 0 or (shape is not None and len(paths) != 1):
            raise ArgumentError(
                f"path: {len(paths)} files, expected "
                + ("one raw file with shape=" if shape is not None else "at least one")
            )
        self.shards: list[Shard] = []
        try:
            for path in paths:
                self.shards.append(_open_shard(path, encoding, shape, offset))
            self.shape, self.stored = self._join()
        except BaseException:
            self.close()
            raise
        self.row_bytes = self.shards[0].row_bytes

    @property
    def nbytes(self) -> int:
        """Size of all rows."""
        return self.shape[0] * self.row_bytes

    def check_size(self) -> None:
        """Raises FileFormatError where a file became shorter than its rows."""
        for shard in self.shards:
            shard.check_size()

    def read_into(self, first: int, out: NDArray[np.uint8]) -> None:
        """Reads rows one after another from row ``first`` on until ``out`` is full."""
        for shard in self.shards:
            start = max(first, shard.first)
            stop = min(first + len(out) // max(1, self.row_bytes), shard.first + shard.rows)
            if start < stop:
                place = shard.offset + (start - shard.first) * self.row_bytes
                part = out[(start - first) * self.row_bytes : (stop - first) * self.row_bytes]
                shard.read_into(place, part)

    def close(self) -> None:
        """Lets go of the files."""
        for shard in self.shards:
            shard.close()

    def _join(self) -> tuple[torch.Size, torch.dtype]:
        head, rows = self.shards[0], 0
        for shard in self.shards:
            if (shard.shape[1:], shard.stored) != (head.shape[1:], head.stored):
                raise FileFormatError(
                    f"{shard.path}: rows of {shard.stored} {tuple(shard.shape[1:])}, expected "
                    f"{head.stored} {tuple(head.shape[1:])} as in {head.path}: shards of one table "
                    "hold rows of one kind"
                )
            shard.first = rows
            rows += shard.rows
        return torch.Size((rows, *head.shape[1:])), head.stored


def _open_shard(
    path: str, encoding: torch.dtype | None, shape: Sequence[int] | None, offset: int
) -> Shard:
    with _taking_handles(path), _open(path) as file:
        if shape is None:
            full, in_file, offset = _read_npy_header(file, path)
            stored = _stored_dtype(in_file, encoding, path)
        else:
            full, stored, offset = _raw_layout(shape, encoding, offset)
        check_dtype(stored, "encoding")
        shard = Shard(path, os.dup(file.fileno()), full, stored, offset)
    shard.check_size(exact=shape is None)
    return shard


@contextmanager
def _taking_handles(path: str) -> Iterator[None]:
    """Turns the OSError where there are no more open files into one that tells the way out."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_HANDLES:
            raise
        raise ResourceError(
            f"{path}: cannot be opened ({error.strerror}); raise the number of open files "
            "(ulimit -n), or close stores that are not needed"
        ) from error


def _open(path: str) -> BinaryIO:
    check_file(Path(path))
    try:
        return open(path, "rb")
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: no such file") from error
    except OSError as error:
        if error.errno in _NO_HANDLES:
            raise
        raise FileFormatError(f"{path}: cannot be opened ({error.strerror})") from error


def _read_npy_header(file: BinaryIO, path: str) -> tuple[torch.Size, np.dtype[Any], int]:
    """Shape, element type and offset of the data of a .npy file (numpy.lib.format)."""
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran_order, dtype = read(file)
    except KeyError as error:
        raise FileFormatError(f"{path}: .npy version {version}, expected 1.0 or 2.0") from error
    except NPY_FAULTS as error:
        raise FileFormatError(
            f"{path}: not a .npy file ({error}); a raw file needs shape= and encoding="
        ) from error
    if fortran_order and len(shape) > 1:
        raise FileFormatError(
            f"{path}: Fortran order, in which a row is scattered over the file; write it with "
            "numpy.save(path, numpy.ascontiguousarray(array))"
        )
    if len(shape) == 0:
        raise FileFormatError(f"{path}: a scalar, expected at least one dimension: the rows")
    return torch.Size(shape), dtype, file.tell()


def _stored_dtype(in_file: np.dtype[Any], encoding: torch.dtype | None, path: str) -> torch.dtype:
    if encoding is not None:
        if encoding.itemsize != in_file.itemsize:
            raise DTypeError(
                f"{path}: encoding {encoding} has {encoding.itemsize} bytes an element, the file's "
                f"{in_file} {in_file.itemsize}"
            )
        return encoding
    if in_file in _TORCH_DTYPES:
        return _TORCH_DTYPES[in_file]
    known = ", ".join(str(d) for d in _TORCH_DTYPES)
    raise DTypeError(
        f"{path}: dtype {in_file.str} ({in_file}) is not one of {known} in this machine's byte "
        "order; name what its bits mean with encoding=, as in encoding=torch.bfloat16"
    )


def _raw_layout(
    shape: Sequence[int], encoding: torch.dtype | None, offset: int
) -> tuple[torch.Size, torch.dtype, int]:
    if encoding is None:
        raise ArgumentError("encoding: a raw file needs the element type it holds")
    if len(shape) == 0 or min(shape) < 0 or offset < 0:
        raise ArgumentError(f"shape {tuple(shape)}, offset {offset}: expected (rows, …) and bytes")
    return torch.Size(shape), encoding, offset

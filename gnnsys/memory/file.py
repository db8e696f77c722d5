"""Rows in a file: a .npy array or raw bytes."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from gnnsys.counters import Counters
from gnnsys.errors import (
    ArgumentError,
    DTypeError,
    FileFormatError,
    MissingFileError,
    ReadOnlyError,
)
from gnnsys.files import NPY_FAULTS, as_storage_error, npy_header, write_whole
from gnnsys.memory.store import RowReader, check_dtype, check_ids, row_index_error

__all__ = ["FileStore"]

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


class FileStore:
    """Rows of a ``.npy`` file (C order) or of a raw file, read through the page cache.

    Only the pages of the rows asked for are read (the mapping is advised ``MADV_RANDOM``).

    Args:
        path: of the file.
        dtype: of what is gathered; None for that of the file.
        encoding: element type of the file where its header cannot name it: ``torch.bfloat16`` for
            a uint16 ``.npy``. A raw file needs it.
        shape: (rows, …); for a raw file, and only there.
        offset: bytes before the first row of a raw file.
        threads: that gather; 0 for all cores this process may use.
        writable: whether ``write`` may change the file.
        isa: "auto", or an instruction set of ``gnnsys._core.isas()``.

    Raises:
        MissingFileError: there is no such file.
        FileFormatError: not a .npy array in C order, or shorter or longer than its header says.
        DTypeError, ArgumentError: an unusable dtype, or raw options that do not fit.

    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "features.npy")
    >>> np.save(path, np.arange(6, dtype=np.float32).reshape(3, 2))
    >>> FileStore(path).gather(torch.tensor([2, 0]))
    tensor([[4., 5.],
            [0., 1.]])
    """

    tier = "file"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        dtype: torch.dtype | None = None,
        encoding: torch.dtype | None = None,
        shape: Sequence[int] | None = None,
        offset: int = 0,
        threads: int = 0,
        writable: bool = False,
        isa: str = "auto",
    ) -> None:
        self.path = os.path.abspath(path)
        self._options: dict[str, Any] = {
            "encoding": encoding,
            "shape": shape,
            "offset": offset,
            "threads": threads,
            "writable": writable,
            "isa": isa,
        }
        with _open(self.path) as file:
            if shape is None:
                self.shape, in_file, self._offset = _read_npy_header(file, self.path)
                self.stored = _stored_dtype(in_file, encoding, self.path)
            else:
                self.shape, self.stored, self._offset = _raw_layout(shape, encoding, offset)
            self.dtype = dtype or self.stored
            check_dtype(self.stored, "encoding")
            check_dtype(self.dtype, "dtype")
            self.row_bytes = math.prod(self.shape[1:]) * self.stored.itemsize
            self._map = _map(file)
            self._check_size(exact=shape is None)
        self.counters = Counters()
        self._closed = False
        first = np.frombuffer(self._map, np.uint8).ctypes.data if self._map else 0
        self._reader = RowReader(
            first + self._offset,
            self.shape,
            self.stored,
            self.dtype,
            self.row_bytes,
            threads,
            isa,
        )

    def gather(self, ids: Tensor, out: Tensor | None = None, stream: Any = None) -> Tensor:
        """See ``Store.gather``; raises FileFormatError when the file became shorter."""
        del stream
        self._check_open()
        # Reading a mapping past the end of its file kills the process, so look before.
        self._check_size(exact=False)
        rows = self._reader.gather(check_ids(ids), out)
        self.counters.add(self.tier, len(ids), len(ids) * self.row_bytes)
        return rows

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        *,
        threads: int = 0,
    ) -> FileStore:
        """Makes a .npy file of zeros and opens it for writing; it takes room as it is written.

        Args:
            path: of the file; one that is there is overwritten.
            shape: (rows, …).
            dtype: of its elements; torch.bfloat16 is stored as uint16.
            threads: that gather; 0 for all cores.

        Raises:
            StorageError: the file cannot be written.
            DTypeError, ArgumentError: an unusable dtype or shape.

        >>> import os, tempfile
        >>> store = FileStore.create(os.path.join(tempfile.mkdtemp(), "h.npy"), (4, 2))
        >>> store.write(torch.tensor([1, 2]), torch.ones(2, 2))
        >>> store.gather(torch.tensor([0, 1]))
        tensor([[0., 0.],
                [1., 1.]])
        """
        check_dtype(dtype, "dtype")
        if len(shape) == 0 or min(shape) < 0:
            raise ArgumentError(f"shape {tuple(shape)}: expected (rows, …), none below 0")
        encoding = torch.bfloat16 if dtype == torch.bfloat16 else None
        in_file = np.dtype(str(torch.uint16 if encoding else dtype).removeprefix("torch."))
        with as_storage_error(Path(path)), open(path, "wb") as file:
            file.write(npy_header(tuple(shape), in_file))
            file.truncate(file.tell() + math.prod(shape) * in_file.itemsize)
        return cls(path, encoding=encoding, threads=threads, writable=True)

    def write(self, ids: Tensor, rows: Tensor) -> None:
        """Overwrites rows ``ids`` of the file; of an id that is there twice, the last row stays.

        Args:
            ids: (n,) int32 or int64 on the CPU, each in ``[0, rows)``.
            rows: (n, …) on the CPU; cast to the element type of the file.

        Raises:
            ReadOnlyError: the store was not made with ``writable=True``.
            RowIndexError: an id is outside the rows; nothing is written.
            DTypeError, ArgumentError: ids or rows of a wrong type or shape.
            FileFormatError: the file became shorter.
            StorageError: the disk is full, or the file cannot be written.
        """
        if not self._options["writable"]:
            raise ReadOnlyError(f"{self.path}: opened read-only; open it with writable=True")
        self._check_open()
        self._check_size(exact=False)
        ids = check_ids(ids).long()
        if rows.shape != (len(ids), *self.shape[1:]) or rows.device.type != "cpu":
            raise ArgumentError(
                f"rows: shape {tuple(rows.shape)} on {rows.device}, expected "
                f"{(len(ids), *self.shape[1:])} on the CPU, a row for each id"
            )
        outside = torch.nonzero((ids < 0) | (ids >= self.shape[0]))
        if len(outside):
            raise row_index_error(ids, int(outside[0]), self.shape[0])
        dense = rows.detach().to(self.stored).resolve_conj().resolve_neg().contiguous()
        data = dense.reshape(-1).view(torch.uint8).numpy().reshape(len(ids), self.row_bytes)
        # Rows that follow one another go to the file together.
        starts = [0, *(1 + torch.nonzero(ids.diff() != 1)[:, 0]).tolist(), len(ids)]
        with as_storage_error(Path(self.path)), open(self.path, "r+b", buffering=0) as file:
            for first, last in pairwise(starts):
                if first < last:
                    file.seek(self._offset + int(ids[first]) * self.row_bytes)
                    write_whole(file, data[first:last].reshape(-1).data)

    def with_dtype(self, dtype: torch.dtype) -> FileStore:
        """The same rows delivered as ``dtype``, and counted together with this store's."""
        other = FileStore(self.path, dtype=dtype, **self._options)
        other.counters = self.counters
        return other

    def whole(self) -> Tensor:
        """All rows, read in one sequential pass into memory of their own."""
        self._check_open()
        self._check_size(exact=False)
        nbytes = self.shape[0] * self.row_bytes
        data = np.fromfile(self.path, np.uint8, count=nbytes, offset=self._offset)
        self.counters.add(self.tier, self.shape[0], nbytes)
        if nbytes == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        return torch.from_numpy(data).view(self.stored).view(self.shape).to(self.dtype)

    def close(self) -> None:
        """Lets go of the file; gathering afterwards raises ArgumentError."""
        self._closed, self._map = True, None

    def _check_open(self) -> None:
        if self._closed:
            raise ArgumentError(f"{self.path}: this store was closed")

    def _check_size(self, exact: bool) -> None:
        found = 0 if self._map is None else self._map.size()
        wanted = self._offset + self.shape[0] * self.row_bytes
        if found < wanted or (exact and found != wanted):
            state = "truncated" if found < wanted else "longer than its header says"
            raise FileFormatError(
                f"{self.path}: {state}: shape {tuple(self.shape)} of {self.stored} from offset "
                f"{self._offset} ends at byte {wanted}, the file at {found}; write it again"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.path, self.dtype, self._options)

    def __repr__(self) -> str:
        return f"FileStore({self.path!r}, shape={tuple(self.shape)}, dtype={self.dtype})"


def _rebuild(path: str, dtype: torch.dtype, options: dict[str, Any]) -> FileStore:
    return FileStore(path, dtype=dtype, **options)


def _open(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise FileFormatError(f"{path}: a folder, expected a .npy file") from error
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be opened ({error.strerror})") from error


def _map(file: BinaryIO) -> mmap.mmap | None:
    if os.fstat(file.fileno()).st_size == 0:
        return None  # an empty raw table: nothing to map
    area = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    area.madvise(mmap.MADV_RANDOM)
    return area


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

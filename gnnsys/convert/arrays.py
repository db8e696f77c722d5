"""Arrays read from any row on in blocks: in memory, mapped, members of .npz; tensors in files."""

from __future__ import annotations

import logging
import lzma
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gnnsys.dataset.writer import RowReader
from gnnsys.errors import FileFormatError, MissingFileError, UnsupportedError
from gnnsys.system.files import NPY_FAULTS
from gnnsys.system.once import warn_once

__all__ = [
    "ArraySource",
    "MatrixRows",
    "NpzMember",
    "ReadRows",
    "WidenedRows",
    "as_matrix",
    "block_rows",
    "load_tensor",
    "load_torch",
    "narrow",
    "npz_members",
    "widen",
]

_log = logging.getLogger(__name__)
_BLOCK_BYTES = 16 << 20
_EXACT = 1 << 24
"""Up to which float32 has all whole numbers."""
_NPZ_FAULTS = (
    *NPY_FAULTS, OSError, KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile,
    zlib.error, lzma.LZMAError,
)  # fmt: skip


class ArraySource(Protocol):
    """An array that is read in blocks of rows."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def blocks(self, first: int = 0) -> Iterator[NDArray[Any]]:
        """Rows from ``first`` on, in blocks of bounded size."""


def block_rows(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """How many rows of an array of that shape are read at a time."""
    row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    return max(1, _BLOCK_BYTES // max(1, row_bytes))


class MatrixRows:
    """An array in memory or mapped; bfloat16, given by its bits, is read as float32."""

    def __init__(self, rows: NDArray[Any], *, bits: bool = False) -> None:
        self._rows, self._bits = rows, bits
        self.shape: tuple[int, ...] = rows.shape
        self.dtype = np.dtype(np.float32) if bits else rows.dtype

    def blocks(self, first: int = 0) -> Iterator[NDArray[Any]]:
        """Rows from ``first`` on, in blocks of bounded size."""
        step = block_rows(self.shape, self.dtype)
        for start in range(first, len(self._rows), step):
            block = np.asarray(self._rows[start : start + step])
            native = block.astype(block.dtype.newbyteorder("="), copy=False)
            yield widen(native) if self._bits else native


class ReadRows:
    """An array that a function reads from any row on."""

    def __init__(self, read: RowReader, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._read, self.shape, self.dtype = read, shape, dtype

    def blocks(self, first: int = 0) -> Iterator[NDArray[Any]]:
        """Rows from ``first`` on."""
        return self._read(first)


class WidenedRows:
    """The bits of bfloat16, read as float32."""

    dtype = np.dtype(np.float32)

    def __init__(self, bits: ArraySource) -> None:
        self._bits, self.shape = bits, bits.shape

    def blocks(self, first: int = 0) -> Iterator[NDArray[Any]]:
        """Rows from ``first`` on."""
        return (widen(block) for block in self._bits.blocks(first))


class _Column:
    """A vector as a matrix of one column."""

    def __init__(self, vector: ArraySource) -> None:
        self._vector, self.dtype = vector, vector.dtype
        self.shape: tuple[int, ...] = (*vector.shape, 1)

    def blocks(self, first: int = 0) -> Iterator[NDArray[Any]]:
        """Rows from ``first`` on."""
        return (block[:, None] for block in self._vector.blocks(first))


def as_matrix(source: ArraySource) -> ArraySource:
    """The array itself, or a vector as one column."""
    return _Column(source) if len(source.shape) == 1 else source


def npz_members(path: Path) -> list[str]:
    """Names of the arrays in a .npz file."""
    with _open_zip(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: no such file") from error
    except _NPZ_FAULTS as error:
        raise FileFormatError(f"{path}: not a whole .npz file ({error})") from error


class NpzMember:
    """One array of a .npz file, read as a stream: ``numpy.load`` would take it whole.

    Args:
        path: of the .npz file.
        name: of the array in it.
        any_order: take Fortran order too; ``fortran`` then says whether ``flat_blocks`` gives the
            elements column by column.
    """

    def __init__(self, path: Path, name: str, *, any_order: bool = False) -> None:
        self._path, self._name, self._any_order = path, name, any_order
        self.fortran = False
        with _open_zip(path) as archive:
            members = [member.removesuffix(".npy") for member in archive.namelist()]
            if name not in members:
                raise FileFormatError(
                    f"{path}: no array {name!r}; it holds {', '.join(members) or 'none'}"
                )
            with self._open(archive) as file:
                self.shape, self.dtype = self._read_header(file)

    def _open(self, archive: zipfile.ZipFile) -> IO[bytes]:
        with self._damage():
            return archive.open(self._name + ".npy")

    @contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except _NPZ_FAULTS as error:
            raise FileFormatError(f"{self._path}:{self._name}: damaged ({error})") from error

    def _read_header(self, file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
        label = f"{self._path}:{self._name}"
        with self._damage():
            version = np.lib.format.read_magic(file)
            reader = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, fortran, dtype = reader(file)
        if dtype.hasobject:
            raise FileFormatError(f"{label}: holds Python objects, expected numbers")
        self.fortran = fortran and len(shape) > 1
        if self.fortran and not self._any_order:
            raise UnsupportedError(f"{label}: Fortran order; save it with numpy.ascontiguousarray")
        return shape, dtype

    def blocks(self, first: int = 0) -> Iterator[NDArray[Any]]:
        """Rows from ``first`` on; what lies before is skipped over."""
        rows, row = (self.shape[0] if self.shape else 1) - first, self.shape[1:]
        items = int(np.prod(row, dtype=np.int64))
        if items == 0:
            yield np.empty((rows, *row), self.dtype)
        step = block_rows(self.shape, self.dtype) * items
        for block in self.flat_blocks(first * items, rows * items, step):
            yield block.reshape(-1, *row)

    def flat_blocks(
        self, first_item: int, items: int, step: int | None = None
    ) -> Iterator[NDArray[Any]]:
        """``items`` elements from ``first_item`` on as they lie, flat, ``step`` in a block."""
        step = step or max(1, _BLOCK_BYTES // self.dtype.itemsize)
        left = items
        with _open_zip(self._path) as archive, self._open(archive) as file:
            self._read_header(file)
            with self._damage():
                file.seek(file.tell() + first_item * self.dtype.itemsize)
            while left > 0:
                count = min(step, left)
                data = self._read(file, count * self.dtype.itemsize)
                yield np.frombuffer(data, self.dtype)
                left -= count

    def _read(self, file: IO[bytes], nbytes: int) -> bytes:
        with self._damage():
            data = file.read(nbytes)
        if len(data) != nbytes:
            raise FileFormatError(
                f"{self._path}:{self._name}: ends {nbytes - len(data)} bytes before its header says"
            )
        return data


def load_torch(
    path: Path, fault: str = "torch cannot read a tensor from it", way_out: str = ""
) -> Any:
    """What ``torch.save`` wrote, mapped where the file's form permits it; no code is run."""
    import torch

    try:
        mapped = zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises many kinds for a file that is none of its own
        reason = re.search("Unsupported global: GLOBAL [^ ]*", str(error))
        told = reason.group() if reason else str(error).split("\n")[0]
        raise FileFormatError(f"{path}: {fault} ({told}){way_out}") from error


def load_tensor(path: Path) -> tuple[NDArray[Any], str]:
    """The tensor in a file and the name of its type; bfloat16, which numpy lacks, as its bits."""
    import torch

    tensor = load_torch(path)
    if not isinstance(tensor, torch.Tensor):
        raise FileFormatError(f"{path}: holds a {type(tensor).__name__}, expected a tensor")
    try:
        if tensor.dtype == torch.bfloat16:
            return tensor.detach().contiguous().view(torch.uint16).numpy(), "bfloat16"
        array = tensor.detach().resolve_conj().resolve_neg().numpy()
    except (TypeError, RuntimeError, IndexError) as error:
        raise FileFormatError(
            f"{path}: {tensor.layout} of {tensor.dtype}, expected a dense tensor of numbers"
        ) from error
    return array, array.dtype.name


def widen(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """What the bits of bfloat16 stand for.

    >>> widen(np.array([16256, 49152], np.uint16)).tolist()
    [1.0, -2.0]
    """
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(block: NDArray[Any], label: str | Path) -> NDArray[np.float32]:
    """float64 as float32; whole numbers that are rounded are told, once for each ``label``."""
    with np.errstate(over="ignore"):
        out = block.astype(np.float32)
    large = np.abs(block) > _EXACT
    if large.any():
        values = block[large]
        lost = values[(out[large] != values) & (values == np.floor(values)) & np.isfinite(values)]
        if len(lost):
            warn_once(
                _log,
                "%s: whole numbers beyond 2^24 are rounded to float32's precision of 24 bits; ids "
                "and codes are better numbered anew",
                label,
            )
    return out

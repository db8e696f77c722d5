"""Arrays in files, read from any row on in blocks: .npy, members of .npz, CSV, Parquet, torch."""

from __future__ import annotations

import logging
import lzma
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gnnsys.convert.columns import is_index
from gnnsys.convert.dialect import TableOptions, is_integer, require_pyarrow
from gnnsys.convert.spec import split_member
from gnnsys.convert.text import TEXT_SUFFIXES, TextTable
from gnnsys.errors import ArgumentError, FileFormatError, MissingFileError, UnsupportedError
from gnnsys.system.files import NPY_FAULTS, map_npy
from gnnsys.system.once import warn_once

__all__ = [
    "ArraySource",
    "MatrixRows",
    "NpzMember",
    "ParquetTable",
    "as_matrix",
    "block_rows",
    "load_tensor",
    "load_torch",
    "narrow",
    "npz_members",
    "open_array",
    "open_matrix",
    "read_whole",
    "rows_from",
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


def open_array(path: str | Path, options: TableOptions | None = None) -> ArraySource:
    """Opens a matrix or vector in a file, without reading it whole.

    Args:
        path: .npy; .npz with one array, or FILE.npz:NAME; .csv, .tsv or .txt of numbers, also .gz;
            .parquet; .pt with a tensor.
        options: what the user says of text.

    Raises:
        MissingFileError, FileFormatError: the file is not there, or not what its name says.
    """
    source = _open_any(Path(path), options)
    if len(source.shape) == 0:
        raise FileFormatError(f"{path}: a single {source.dtype}, expected rows")
    return source


def read_whole(source: ArraySource) -> NDArray[Any]:
    """All rows, in memory."""
    return np.concatenate([np.empty((0, *source.shape[1:]), source.dtype), *source.blocks()])


def _open_any(path: Path, options: TableOptions | None) -> ArraySource:
    file, member = split_member(path)
    if member:
        return NpzMember(file, member)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file")
    if path.suffix == ".npy":
        return MatrixRows(map_npy(path))
    if path.suffix == ".npz":
        names = npz_members(path)
        if len(names) != 1:
            raise ArgumentError(
                f"{path}: holds {', '.join(names) or 'no arrays'}; name one as {path.name}:NAME"
            )
        return NpzMember(path, names[0])
    if path.name.endswith((*TEXT_SUFFIXES, ".parquet")):
        return open_matrix(path, options=options)
    if path.suffix == ".pt":
        rows, dtype = load_tensor(path)
        return MatrixRows(rows, bits=dtype == "bfloat16")
    raise ArgumentError(
        f"{path}: unknown kind {path.suffix!r}; expected .npy, .npz, .csv, .tsv, .txt, .parquet or "
        ".pt"
    )


def open_matrix(
    path: Path,
    header: bool | None = None,
    columns: Sequence[str] | None = None,
    *,
    floats: bool = False,
    options: TableOptions | None = None,
) -> ArraySource:
    """Columns of a Parquet or text file as a matrix, a vector where there is one column."""
    if path.suffix == ".parquet":
        return _ParquetMatrix(path, columns, floats=floats)
    return _TextMatrix(path, header, columns, floats=floats, options=options)


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


# Text and Parquet ---------------------------------------------------------------------------------


class _TextMatrix:
    """The numbers of a text file as a matrix (rows, columns) float32.

    A single column is a vector (rows,), of int64 where all are whole numbers, else of float64.

    Args:
        path: of the file.
        header: whether its first row names the columns; None to look.
        columns: which; None for all.
        floats: take whole numbers for floats, too.

    Raises:
        FileFormatError: no rows, or whole numbers with gaps.
    """

    def __init__(
        self,
        path: Path,
        header: bool | None = None,
        columns: Sequence[str] | None = None,
        *,
        floats: bool = False,
        options: TableOptions | None = None,
    ) -> None:
        pa = require_pyarrow(str(path))
        self._path = path
        table = TextTable(path, header, options=options)
        self._columns = list(columns or table.names)
        if not self._columns:
            raise FileFormatError(f"{path}: empty, expected rows of numbers")
        single = len(self._columns) == 1
        whole = single and not floats
        rows = _whole_rows(path, table, self._columns[0]) if whole else None
        kind = pa.float64() if rows is None else pa.int64()
        self.dtype = np.dtype(kind.to_pandas_dtype() if single else np.float32)
        self._table = table.typed(dict.fromkeys(self._columns, kind))
        if rows is None:
            rows = sum(batch.num_rows for batch in self._table.batches(self._columns[:1]))
        self.shape: tuple[int, ...] = (rows,) if single else (rows, len(self._columns))

    def blocks(self, first: int = 0) -> Iterator[NDArray[Any]]:
        """Rows from ``first`` on; those before are parsed and left out."""
        for batch in rows_from(self._table.batches(self._columns), first):
            block = _as_matrix(batch.columns, self.shape)
            yield narrow(block, self._path) if self.dtype == np.float32 else block


def _whole_rows(path: Path, table: TextTable, column: str) -> int | None:
    """The number of rows if there are whole numbers, and nothing else, in that column."""
    pa = require_pyarrow(str(path))
    place = table.names.index(column)
    data = [row[place] for row in table.first_rows if place < len(row)]
    if not data or not is_integer(data[0]):
        return None
    rows = gaps = 0
    try:
        for batch in table.typed({column: pa.int64()}).batches([column]):
            rows, gaps = rows + batch.num_rows, gaps + batch.column(0).null_count
    except FileFormatError:  # reading them as other numbers tells what is wrong, if anything is
        return None
    if gaps:
        raise FileFormatError(f"{path}: NaN among whole numbers; write 1.0 for 1")
    return rows


def rows_from(batches: Iterable[Any], first: int) -> Iterator[Any]:
    """pyarrow record batches without the first rows."""
    for batch in batches:
        if first < batch.num_rows:
            yield batch.slice(first)
        first = max(0, first - batch.num_rows)


def _as_matrix(columns: Sequence[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    arrays = [column.to_numpy(zero_copy_only=False) for column in columns]
    return arrays[0] if len(shape) == 1 else np.stack(arrays, axis=1)


class ParquetTable:
    """A Parquet file, read in batches of rows; what is wrong with it is one FileFormatError."""

    def __init__(self, path: Path) -> None:
        self._pyarrow = require_pyarrow(str(path))
        self._path = path
        try:
            self._file = self._pyarrow.parquet.ParquetFile(path)
        except FileNotFoundError as error:
            raise MissingFileError(f"{path}: no such file") from error
        except (self._pyarrow.ArrowException, OSError) as error:
            raise FileFormatError(f"{path}: not a whole Parquet file ({error})") from error
        self.schema = self._file.schema_arrow
        self.names = self._columns()
        """Of its columns as pandas shows them: an index first, or left out where it has no name."""
        self.rows: int = self._file.metadata.num_rows

    def _columns(self) -> list[str]:
        names = list(self.schema.names)
        twice = [name for name, times in Counter(names).items() if times > 1]
        if twice:
            raise FileFormatError(
                f"{self._path}: {len(names)} columns, of which several are called {twice[0]!r}; "
                "give each a name of its own"
            )
        about = self.schema.pandas_metadata or {}
        index = [each for each in about.get("index_columns", []) if each in names]
        names = [*index, *(name for name in names if name not in index)]
        return [name for name in names if not is_index(name)]

    def batches(self, columns: Sequence[str], rows: int) -> Iterator[Any]:
        """Record batches of some columns, of at most that many rows."""
        try:
            yield from self._file.iter_batches(batch_size=rows, columns=list(columns))
        except (self._pyarrow.ArrowException, OSError) as error:
            raise FileFormatError(f"{self._path}: damaged ({error}); fetch it again") from error


class _ParquetMatrix:
    """Numeric columns of a Parquet file as a matrix; a vector where there is one column.

    Args:
        path: of the file.
        columns: which; None for all.
        floats: take whole numbers for floats, too; else gaps among them are errors.
    """

    def __init__(
        self, path: Path, columns: Sequence[str] | None = None, *, floats: bool = False
    ) -> None:
        pa = require_pyarrow(str(path))
        self._path, self._table = path, ParquetTable(path)
        self._columns = list(columns or self._table.names)
        if not self._columns:
            raise FileFormatError(f"{path}: no columns, expected some of numbers")
        fields = [self._table.schema.field(name) for name in self._columns]
        wrong = [f"{field.name} ({field.type})" for field in fields if not _is_numeric(pa, field)]
        if wrong:
            raise FileFormatError(f"{path}: columns {', '.join(wrong)} are not numbers")
        types = [np.dtype(field.type.to_pandas_dtype()) for field in fields]
        self.dtype = np.result_type(*types, *([np.dtype(np.float32)] if floats else []))
        rows = self._table.rows
        self.shape: tuple[int, ...] = (rows,) if len(fields) == 1 else (rows, len(fields))

    def blocks(self, first: int = 0) -> Iterator[NDArray[Any]]:
        """Rows from ``first`` on.

        Raises:
            FileFormatError: a damaged file, or gaps in columns of whole numbers.
        """
        is_boolean = require_pyarrow(str(self._path)).types.is_boolean
        step = block_rows(self.shape, self.dtype)
        for batch in rows_from(self._table.batches(self._columns, step), first):
            for name, column in zip(self._columns, batch.columns, strict=True):
                has_nan = self.dtype.kind == "f" and not is_boolean(column.type)
                if column.null_count and not has_nan:
                    raise FileFormatError(
                        f"{self._path}: column {name} has {column.null_count} empty entries, "
                        "expected numbers; fill them in, or make it a column of floats"
                    )
            yield _as_matrix(batch.columns, self.shape).astype(self.dtype, copy=False)


def _is_numeric(pa: Any, field: Any) -> bool:
    kind = field.type
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    )

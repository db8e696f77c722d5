"""Matrices and vectors in files: columns of Parquet and of text, and arrays of any other kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.convert.arrays import (
    ArraySource,
    MatrixRows,
    NpzMember,
    block_rows,
    load_tensor,
    narrow,
    npz_members,
)
from gnnsys.convert.columns import is_index
from gnnsys.convert.dialect import TableOptions, is_integer, require_pyarrow
from gnnsys.convert.parts import find_parts, folder_values, kind_of, single_file
from gnnsys.convert.spec import split_member
from gnnsys.convert.text import TextTable
from gnnsys.convert.values import is_list, number_type, text_type, to_numbers, value_type
from gnnsys.errors import ArgumentError, FileFormatError
from gnnsys.system.files import map_npy

__all__ = ["ParquetTable", "open_array", "open_matrix", "read_whole", "rows_from"]


def open_array(path: str | Path, options: TableOptions | None = None) -> ArraySource:
    """Opens a matrix or vector in a file, without reading it whole.

    Args:
        path: .npy; .npz with one array, or FILE.npz:NAME; .csv, .tsv or .txt of numbers, also .gz;
            .parquet; .pt with a tensor; or a folder or pattern of parts of text or Parquet.
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
    kind = kind_of(path)
    if kind in ("text", "mtx", "parquet"):
        return open_matrix(path, options=options)
    path = single_file(path)
    if kind == "npy":
        return MatrixRows(map_npy(path))
    if kind == "npz":
        names = npz_members(path)
        if len(names) != 1:
            raise ArgumentError(
                f"{path}: holds {', '.join(names) or 'no arrays'}; name one as {path.name}:NAME"
            )
        return NpzMember(path, names[0])
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
    times: bool = False,
    options: TableOptions | None = None,
    parquet: bool | None = None,
) -> ArraySource:
    """Columns of a Parquet or text table as a matrix, a vector where there is one column.

    Args:
        path: of the file, a folder of parts or a pattern.
        header: whether the first row of text names the columns; None to look.
        columns: which; None for all.
        floats: take whole numbers for floats, too.
        times: whether dates are times, as in ``gnnsys.convert.values``.
        options: what the user says of text.
        parquet: whether it is Parquet; None for what its name says.
    """
    if kind_of(path) == "parquet" if parquet is None else parquet:
        return _ParquetMatrix(path, columns, floats=floats, times=times)
    return _TextMatrix(path, header, columns, floats=floats, times=times, options=options)


def rows_from(batches: Iterable[Any], first: int) -> Iterator[Any]:
    """pyarrow record batches without the first rows."""
    for batch in batches:
        if first < batch.num_rows:
            yield batch.slice(first)
        first = max(0, first - batch.num_rows)


class _Columns:
    """Columns of a table side by side.

    Args:
        path: of the file.
        names: of the columns.
        widths: of those that hold lists, by name.
        times: whether dates are times.
    """

    def __init__(
        self, path: Path, names: Sequence[str], widths: dict[str, int], times: bool
    ) -> None:
        self._path, self._names, self._widths, self._times = path, names, widths, times

    def shape(self, rows: int) -> tuple[int, ...]:
        """Of the matrix, or of the vector where a single column holds numbers."""
        if len(self._names) == 1 and not self._widths:
            return (rows,)
        return rows, sum(self._widths.get(name, 1) for name in self._names)

    def blocks(self, batches: Iterable[Any], first: int, gaps: bool) -> Iterator[NDArray[Any]]:
        """Numbers of rows from ``first`` on; those before are parsed and left out.

        ``gaps`` says whether missing ones are NaN.
        """
        row = first
        for batch in rows_from(batches, first):
            arrays = [
                to_numbers(
                    self._path, name, batch.column(place), row=row, gaps=gaps,
                    width=self._widths.get(name, 0), times=self._times,
                )
                for place, name in enumerate(self._names)
            ]  # fmt: skip
            row += batch.num_rows
            if len(arrays) == 1:
                yield arrays[0]
            else:
                yield np.column_stack(arrays) if self._widths else np.stack(arrays, axis=1)


# Text ---------------------------------------------------------------------------------------------


class _TextMatrix:
    """The numbers of a text file as a matrix (rows, columns) float32.

    A single column is a vector (rows,), of int64 where all are whole numbers or times, else of
    float64.

    Args:
        path: of the file.
        header: whether its first row names the columns; None to look.
        columns: which; None for all.
        floats: take whole numbers for floats, too.
        times: whether dates are times.
        options: what the user says of it.

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
        times: bool = False,
        options: TableOptions | None = None,
    ) -> None:
        pa = require_pyarrow(str(path))
        self._path = path
        table = TextTable(path, header, options=options)
        names = list(columns or table.names)
        if not names:
            raise FileFormatError(f"{path}: empty, expected rows of numbers")
        single = len(names) == 1
        rows = _whole_rows(path, table, names[0]) if single and not floats else None
        otherwise = pa.float64() if rows is None else pa.int64()
        kinds = {name: text_type(pa, table.first_values(name), otherwise) for name in names}
        known = number_type(pa, kinds[names[0]], times)
        self.dtype = known if single and known is not None else np.dtype(np.float32)
        self._table = table.typed(kinds)
        self._names, self._columns = names, _Columns(path, names, {}, times)
        if rows is None:
            rows = sum(batch.num_rows for batch in self._table.batches(names[:1]))
        self.shape: tuple[int, ...] = self._columns.shape(rows)

    def blocks(self, first: int = 0) -> Iterator[NDArray[Any]]:
        """Rows from ``first`` on; those before are parsed and left out."""
        batches = self._table.batches(self._names)
        for block in self._columns.blocks(batches, first, self.dtype.kind == "f"):
            yield narrow(block, self._path) if self.dtype == np.float32 else block


def _whole_rows(path: Path, table: TextTable, column: str) -> int | None:
    """The number of rows if there are whole numbers, and nothing else, in that column."""
    pa = require_pyarrow(str(path))
    data = table.first_values(column)
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


# Parquet ------------------------------------------------------------------------------------------


class ParquetTable:
    """Parquet files, read in batches of rows; what is wrong with them is one FileFormatError.

    Args:
        path: of the file, a folder of parts or a pattern. Folders called ``year=2024``, as Hive
            calls them, are columns, too.
    """

    def __init__(self, path: Path) -> None:
        self._pyarrow = pa = require_pyarrow(str(path))
        self._path = path
        self._files = find_parts(path)
        self.parts = len(self._files)
        self.rows = 0
        for number, file in enumerate(self._files):
            with self._open(file) as opened:
                found = self._without_views(opened.schema_arrow)
                self.rows += opened.metadata.num_rows
            if number == 0:
                self.schema = found
            self._check_schema(file, found)
        self._folders = [folder_values(path, file) for file in self._files]
        self._keys = [key for key in self._folders[0] if key not in self.schema.names]
        for key in self._keys:
            whole = all(is_integer(values.get(key) or "0") for values in self._folders)
            field = pa.field(key, pa.int64() if whole else pa.string())
            self.schema = self.schema.append(field)
        self.names = self._columns()
        """Of its columns as pandas shows them: an index first, or left out where it has no name."""

    def _open(self, file: Path) -> Any:
        try:
            return self._pyarrow.parquet.ParquetFile(file)
        except (self._pyarrow.ArrowException, OSError) as error:
            raise FileFormatError(f"{file}: not a whole Parquet file ({error})") from error

    def _without_views(self, schema: Any) -> Any:
        """Strings for views of them, which pyarrow does not filter."""
        pa = self._pyarrow
        for place, field in enumerate(schema):
            of_lists = is_list(pa, field.type)
            if str(field.type.value_type if of_lists else field.type) == "string_view":
                kind = pa.list_(pa.string()) if of_lists else pa.string()
                schema = schema.set(place, field.with_type(kind))
        return schema

    def _check_schema(self, file: Path, found: Any) -> None:
        first, other = self._types(self.schema), self._types(found)
        odd = next((name for name in first | other if first.get(name) != other.get(name)), None)
        if odd is not None:
            here, there = (each.get(odd, "not there") for each in (other, first))
            raise FileFormatError(
                f"{file}: column {odd} is {here}, in {self._files[0]} it is {there}; parts of one "
                "table have the same columns"
            )

    def _types(self, schema: Any) -> dict[str, str]:
        """By column, where a dictionary is its values and any length of string is one."""
        pa = self._pyarrow
        return {
            field.name: str(value_type(pa, field.type)).replace("large_", "") for field in schema
        }

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
        """Record batches of some columns, in their order, of at most that many rows."""
        stored = [name for name in columns if name not in self._keys] or self.schema.names[:1]
        for file, values in zip(self._files, self._folders, strict=True):
            try:
                with self._open(file) as opened:
                    for batch in opened.iter_batches(batch_size=rows, columns=stored):
                        read = self._with_keys(batch, values).select(list(columns))
                        yield self._as_in_schema(read)
            except (self._pyarrow.ArrowException, OSError) as error:
                if "Expected all lists to be of size" in str(error):  # of pyarrow before 26
                    raise FileFormatError(
                        f"{file}: a row has nothing in a column of lists of fixed size, which "
                        f"pyarrow {self._pyarrow.__version__} does not read ({error}); fill it in"
                    ) from error
                raise FileFormatError(f"{file}: damaged ({error}); fetch it again") from error

    def _as_in_schema(self, batch: Any) -> Any:
        pa = self._pyarrow
        if "string_view" not in str(batch.schema):
            return batch
        kinds = {name: self.schema.field(name).type for name in batch.schema.names}
        columns = [batch.column(name).cast(kind) for name, kind in kinds.items()]
        return pa.RecordBatch.from_arrays(columns, list(kinds))

    def _with_keys(self, batch: Any, values: dict[str, str | None]) -> Any:
        pa = self._pyarrow
        for key in self._keys:
            kind, value = self.schema.field(key).type, values.get(key)
            known = value if value is None or not pa.types.is_integer(kind) else int(value)
            constant = pa.repeat(pa.scalar(known, kind), batch.num_rows)
            batch = batch.append_column(key, constant)
        return batch


class _ParquetMatrix:
    """Numeric columns of a Parquet table as a matrix; a vector where there is one column.

    Args:
        path: of the file.
        columns: which; None for all.
        floats: take whole numbers for floats, too; else gaps among them are errors.
        times: whether dates are times.
    """

    def __init__(
        self,
        path: Path,
        columns: Sequence[str] | None = None,
        *,
        floats: bool = False,
        times: bool = False,
    ) -> None:
        pa = require_pyarrow(str(path))
        self._path, self._table = path, ParquetTable(path)
        self._names = list(columns or self._table.names)
        if not self._names:
            raise FileFormatError(f"{path}: no columns, expected some of numbers")
        fields = [self._table.schema.field(name) for name in self._names]
        types = [number_type(pa, field.type, times) for field in fields]
        wrong = [
            f"{field.name} ({field.type})"
            for field, kind in zip(fields, types, strict=True)
            if kind is None
        ]
        if wrong:
            raise FileFormatError(f"{path}: columns {', '.join(wrong)} are not numbers")
        known = [kind for kind in types if kind is not None]
        self.dtype = np.result_type(*known, *([np.dtype(np.float32)] if floats else []))
        self._columns = _Columns(path, self._names, self._widths(fields), times)
        self.shape: tuple[int, ...] = self._columns.shape(self._table.rows)

    def _widths(self, fields: Sequence[Any]) -> dict[str, int]:
        """How long the lists in the first row are, by column."""
        pa = require_pyarrow(str(self._path))
        listed = [field.name for field in fields if is_list(pa, field.type)]
        if not listed:
            return {}
        batch = next(iter(self._table.batches(listed, 1)), None)
        return {name: 0 if batch is None else _width(batch.column(name)[0]) for name in listed}

    def blocks(self, first: int = 0) -> Iterator[NDArray[Any]]:
        """Rows from ``first`` on.

        Raises:
            FileFormatError: a damaged file, or gaps in columns of whole numbers.
        """
        step = block_rows(self.shape, self.dtype)
        batches = self._table.batches(self._names, step)
        for block in self._columns.blocks(batches, first, self.dtype.kind == "f"):
            yield block.astype(self.dtype, copy=False)


def _width(first: Any) -> int:
    """Of lists like the first one."""
    return len(first.as_py() or ())

"""Tables in text files, read in batches of rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from gnnsys.convert.columns import has_header, index_columns
from gnnsys.convert.dialect import (
    BLANKS,
    READ_FAULTS,
    Dialect,
    TableOptions,
    TidyLines,
    open_text,
    read_dialect,
    require_pyarrow,
    spoken,
)
from gnnsys.convert.parts import find_parts
from gnnsys.errors import FileFormatError

__all__ = ["TextTable", "describe_text", "read_parts"]

_BLOCK_BYTES = 16 << 20


def read_parts(path: Path, options: TableOptions) -> list[tuple[Path, Dialect]]:
    """How each part of a table is written, of those that have rows; the first one if none has.

    Raises:
        MissingFileError, FileFormatError, ArgumentError: as ``read_dialect``.
    """
    files = find_parts(path)
    found: list[tuple[Path, Dialect]] = []
    for file in files:
        dialect = read_dialect(file, options)
        if dialect.rows and not found:  # others are read with the same delimiter
            options = replace(options, delimiter=dialect.delimiter, only_where_unclear=False)
        if dialect.rows or len(files) == 1:
            found.append((file, dialect))
    return found or [(files[0], read_dialect(files[0], options))]


class TextTable:
    """A table in a text file of any dialect, or in parts, read in batches of rows.

    Columns of the same name are numbered. An index column is not among ``names``.

    Args:
        path: of the file, a folder of parts or a pattern.
        header: whether its first row names the columns; None to look, as ``decide`` does.
        names: of the columns where there is no header; f0, f1, … by default.
        types: pyarrow types by column; others are guessed from the first block.
        options: what the user says of it.
        decide: the rule for headers.
        parts: of the table, where they were read before.

    Raises:
        MissingFileError, FileFormatError: not there, not readable, not clear how, or parts with
            other columns.
    """

    def __init__(
        self,
        path: Path,
        header: bool | None = None,
        names: Sequence[str] | None = None,
        types: dict[str, Any] | None = None,
        *,
        options: TableOptions | None = None,
        decide: Callable[[Path, Dialect, TableOptions], bool] = has_header,
        parts: list[tuple[Path, Dialect]] | None = None,
    ) -> None:
        self._pyarrow = require_pyarrow(str(path))
        self._types = types or {}
        options = options or TableOptions()
        self.parts = parts or read_parts(path, options)
        """Files and how each is written."""
        self._path, self.dialect = self.parts[0]
        rows = [list(row) for row in self.dialect.rows]
        self.header = decide(self._path, self.dialect, options) if header is None else header
        fields = rows[0] if rows else []
        width = len(rows[1]) if len(rows) > 1 else len(fields)
        extra = self.header and width == len(fields) + 1
        # All rows end with a delimiter, or their first column is R's, of row names.
        trailing = extra and all(row[-1] == "" for row in rows[1:])
        if self.header:
            given = [*fields, ""] if trailing else [""] * extra + fields
        else:
            given = list(names or ())
            given += [f"f{place}" for place in range(len(given), width)]
        self.all_names = _distinct(given)
        self.index = [""] if trailing else index_columns(given, extra) if self.header else []
        self.names = [name for name in self.all_names if name not in self.index]
        kept = [place for place, name in enumerate(self.all_names) if name not in self.index]
        self.first_rows = [
            [row[place] for place in kept if place < len(row)] for row in rows[self.header :]
        ]
        """The first rows below the header, without the index."""
        for part in self.parts[1:]:
            self._check_part(*part, options, decide)

    def _check_part(
        self,
        path: Path,
        dialect: Dialect,
        options: TableOptions,
        decide: Callable[[Path, Dialect, TableOptions], bool],
    ) -> None:
        first, expected = dialect.rows[0], self.dialect.rows[0]
        header = self.header
        if not header:
            with suppress(FileFormatError):  # where that is not clear, it is as in the first part
                header = decide(path, dialect, options)
        if header != self.header or (header and first != expected):
            names = "the column names" if self.header else "a row without names, as"
            raise FileFormatError(
                f"{path}: begins with {', '.join(first[:4])}, expected {names} "
                f"{', '.join(expected[:4])} of {self._path}; parts of one table have the same "
                "columns, and all a header or none"
            )
        if dialect.attributes != self.dialect.attributes:
            raise FileFormatError(
                f"{path}: {{…}} at the ends of rows in it or in {self._path}, not in both; "
                "expected parts that are written alike"
            )

    def first_values(self, column: str) -> list[str]:
        """Of a column: those in the first rows of all parts."""
        place = self.all_names.index(column)
        rows = [row for _, dialect in self.parts for row in dialect.rows[self.header :]]
        return [row[place] for row in rows if place < len(row)]

    def typed(self, types: dict[str, Any]) -> TextTable:
        """The same table with columns of those pyarrow types."""
        other = copy(self)
        other._types = types
        return other

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """pyarrow record batches of the columns; None for all but the index.

        Raises:
            FileFormatError: a row with other columns, or text where a number should be; with the
                line's number.
        """
        for path, dialect in self.parts:
            part = copy(self)
            part._path, part.dialect = path, dialect
            yield from part._read(columns)

    def _read(self, columns: Sequence[str] | None) -> Iterator[Any]:
        """The batches of the file in hand."""
        if not self.dialect.rows:
            return
        pa = self._pyarrow
        options: dict[str, Any] = {
            # Row numbers in errors are told only where one thread reads.
            "read_options": pa.csv.ReadOptions(
                use_threads=False,
                block_size=_BLOCK_BYTES,
                skip_rows=self.dialect.skipped + self.header,
                column_names=self.all_names,
            ),
            "parse_options": pa.csv.ParseOptions(delimiter=self.dialect.delimiter),
            "convert_options": pa.csv.ConvertOptions(
                column_types=self._types,
                include_columns=list(columns or self.names),
                strings_can_be_null=False,
            ),
        }
        try:
            with self._stream() as stream, pa.csv.open_csv(stream, **options) as reader:
                yield from reader
        except pa.ArrowInvalid as error:
            raise FileFormatError(f"{self._path}: {self._place(str(error))}") from error
        except (pa.ArrowKeyError, *READ_FAULTS, ValueError) as error:
            raise FileFormatError(f"{self._path}: cannot be read ({error})") from error

    def _stream(self) -> Any:
        stream = open_text(self._path, self.dialect)
        if not (self.dialect.delimiter == BLANKS or self.dialect.attributes or self.dialect.spaced):
            return stream
        return self._pyarrow.TransformInputStream(stream, TidyLines(self.dialect))

    def _place(self, message: str) -> str:
        """pyarrow's message with the line of the file instead of its own count of rows."""

        def line(found: re.Match[str]) -> str:
            return f"line {self._line_of(int(found.group(1)))}: "

        message = re.sub(r"Row #(\d+): ", line, message.removeprefix("CSV parse error: "), count=1)
        message = re.sub(r"In CSV column #(\d+): ", self._name_column, message, count=1)
        message = re.sub(
            "CSV conversion error to (.*): invalid value", r"expected \1, found", message
        )
        if "columns, got" in message:
            mark = spoken(self.dialect.delimiter)
            message += f"; it was read with {mark} between columns, and --delimiter says another"
        if "UTF8" in message:
            message += "; give --encoding, such as latin-1 or cp1252"
        return message

    def _line_of(self, row: int) -> int:
        """The line of pyarrow's row number, which counts empty lines among skipped ones only."""
        number, skipped = 0, self.dialect.skipped + self.header
        with open_text(self._path, self.dialect) as stream:
            for number, text in enumerate(_lines(stream), start=1):
                row -= number <= skipped or not self._is_empty(text)
                if row == 0:
                    break
        return number

    def _is_empty(self, line: bytes) -> bool:
        blanks = self.dialect.delimiter == BLANKS
        return not (line.strip() if blanks else line.strip(b"\r\n"))

    def _name_column(self, found: re.Match[str]) -> str:
        number = int(found.group(1))
        known = number < len(self.all_names)
        return f"column {self.all_names[number] if known else number}, "


def _lines(stream: Any) -> Iterator[bytes]:
    held = b""
    while block := stream.read(1 << 20):
        *lines, held = (held + bytes(block)).split(b"\n")
        yield from lines
    if held:
        yield held


def _distinct(names: list[str]) -> list[str]:
    seen: Counter[str] = Counter()
    distinct = []
    for name in names:
        distinct.append(f"{name}.{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return distinct


def describe_text(table: TextTable) -> dict[str, Any]:
    """How a table was understood."""
    dialect = table.dialect
    about: dict[str, Any] = {
        "format": "text",
        "delimiter": spoken(dialect.delimiter),
        "header": table.header,
    }
    if len(table.parts) > 1:
        about["parts"] = len(table.parts)
    if dialect.compression != "none":
        about["compression"] = dialect.compression
    if dialect.encoding != "utf-8":
        about["encoding"] = dialect.encoding
    if table.index:
        about["index, left out"] = table.index[0] or "without a name"
    if dialect.attributes:
        about["left out"] = "{…} at the ends of rows"
    return about

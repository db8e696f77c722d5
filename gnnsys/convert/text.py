"""Tables in text files: comma, tab, semicolon or blanks between columns, also gzipped."""

from __future__ import annotations

import csv
import gzip
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any

from gnnsys.errors import FileFormatError, MissingFileError, UnsupportedError

__all__ = ["TEXT_SUFFIXES", "TextTable", "is_integer", "is_number", "require_pyarrow"]

TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")

_BLOCK_BYTES = 16 << 20
_HEAD_BYTES = 1 << 20  # in which the comments end and the first two rows lie
_FIRST_ROWS = 100  # that tell a header
_BLANKS = " "  # the delimiter that stands for any number of blanks and tabs
_EMPTY = {"", "NA", "N/A", "NULL", "null", "NaN", "nan"}  # in place of a number


def require_pyarrow(what: str) -> Any:
    """pyarrow, or one error that says how to install it."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError as error:
        raise UnsupportedError(
            f"{what}: needs pyarrow, which is not installed; pip install 'gnnsys[convert]'"
        ) from error
    return pyarrow


class TextTable:
    """A CSV, TSV or whitespace-separated file, also gzipped, read in batches of rows.

    Lines that begin with ``#`` or ``%`` before the first row are left out, as in SNAP's files, and
    empty lines everywhere. Columns of the same name are numbered.

    Args:
        path: of the file.
        header: whether its first row names the columns; None to look.
        names: of the columns where there is no header; f0, f1, … by default.
        types: pyarrow types by column; others are guessed from the first block.
    """

    def __init__(
        self,
        path: Path,
        header: bool | None = None,
        names: Sequence[str] | None = None,
        types: dict[str, Any] | None = None,
    ) -> None:
        self._pyarrow = require_pyarrow(str(path))
        self._path = path
        self._types = types or {}
        lines, self._skipped = self._first_lines()
        self._delimiter = _delimiter_of(path, lines[0] if lines else "")
        self.first_rows = [self._split(line) for line in lines]
        fields = self.first_rows[0] if lines else []
        if header is None:
            header = any(not is_number(field) and field not in _EMPTY for field in fields)
        self.header = header
        self.names = fields if header else list(names or ())
        self.names = self.names + [f"f{i}" for i in range(len(self.names), len(fields))]
        self.names = _distinct(self.names)

    def _first_lines(self) -> tuple[list[str], int]:
        """The first rows, and how many lines stand before them."""
        try:
            with self._pyarrow.input_stream(str(self._path), compression="detect") as stream:
                head = stream.read(_HEAD_BYTES) or b""
        except OSError as error:
            if not self._path.exists():
                raise MissingFileError(f"{self._path}: no such file") from error
            raise FileFormatError(f"{self._path}: cannot be read ({error})") from error
        lines: list[str] = []
        skipped = 0
        for line in re.split("\r\n|\n|\r", head.decode("utf-8-sig", "replace")):
            if lines or line.strip()[:1] not in ("", "#", "%"):
                lines += [line] if line.strip() else []
            else:
                skipped += 1
        return lines[:_FIRST_ROWS], skipped

    def _split(self, line: str) -> list[str]:
        if self._delimiter == _BLANKS:
            return line.split()
        return [field.strip() for field in next(csv.reader([line], delimiter=self._delimiter))]

    def typed(self, types: dict[str, Any]) -> TextTable:
        """The same table with columns of those pyarrow types."""
        other = copy(self)
        other._types = types
        return other

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """pyarrow record batches of the columns.

        Raises:
            FileFormatError: a row with other columns, or text where a number should be; with the
                line's number.
        """
        if not self.first_rows:
            return
        pa = self._pyarrow
        options: dict[str, Any] = {
            # Row numbers in errors are told only where one thread reads.
            "read_options": pa.csv.ReadOptions(
                use_threads=False,
                block_size=_BLOCK_BYTES,
                skip_rows=self._skipped + self.header,
                column_names=self.names,
            ),
            "parse_options": pa.csv.ParseOptions(delimiter=self._delimiter),
            "convert_options": pa.csv.ConvertOptions(
                column_types=self._types,
                include_columns=list(columns or ()),
                strings_can_be_null=False,
            ),
        }
        try:
            with self._stream() as stream, pa.csv.open_csv(stream, **options) as reader:
                yield from reader
        except pa.ArrowInvalid as error:
            raise FileFormatError(f"{self._path}: {self._place(str(error))}") from error
        except (pa.ArrowKeyError, OSError) as error:
            raise FileFormatError(f"{self._path}: cannot be read ({error})") from error

    def _stream(self) -> Any:
        stream = self._pyarrow.input_stream(str(self._path), compression="detect")
        if self._delimiter != _BLANKS:
            return stream
        return self._pyarrow.TransformInputStream(stream, _SingleBlanks())

    def _place(self, message: str) -> str:
        """pyarrow's message with the line of the file instead of its own count of rows."""

        def line(found: re.Match[str]) -> str:
            return f"line {self._line_of(int(found.group(1)))}: "

        message = re.sub(r"Row #(\d+): ", line, message.removeprefix("CSV parse error: "), count=1)
        message = re.sub(r"In CSV column #(\d+): ", self._name_column, message, count=1)
        return re.sub("CSV conversion error to (.*): invalid value", r"expected \1, found", message)

    def _line_of(self, row: int) -> int:
        """The line of pyarrow's row number, which counts empty lines among skipped ones only."""
        number, skipped = 0, self._skipped + self.header
        opener = gzip.open if self._path.suffix == ".gz" else open
        with opener(self._path, "rb") as lines:
            for number, text in enumerate(lines, start=1):
                row -= number <= skipped or not self._is_empty(text)
                if row == 0:
                    break
        return number

    def _is_empty(self, line: bytes) -> bool:
        return not (line.strip() if self._delimiter == _BLANKS else line.strip(b"\r\n"))

    def _name_column(self, found: re.Match[str]) -> str:
        number = int(found.group(1))
        return f"column {self.names[number] if number < len(self.names) else number}, "


class _SingleBlanks:
    """Leaves one blank between columns and none at the ends of lines; blocks may end anywhere."""

    def __init__(self) -> None:
        self._held = b""  # blanks that the line's end, if it follows, makes superfluous
        self._new_line = True

    def __call__(self, block: Any) -> bytes:
        text = self._held + bytes(block).replace(b"\t", b" ")
        kept = text.rstrip(b" \r")
        self._held = text[len(kept) :]
        while b"  " in kept:
            kept = kept.replace(b"  ", b" ")
        kept = kept.replace(b" \n", b"\n").replace(b" \r\n", b"\n").replace(b"\n ", b"\n")
        if self._new_line:
            kept = kept.lstrip(b" ")
        if kept:
            self._new_line = kept.endswith(b"\n")
        return kept


def _delimiter_of(path: Path, first: str) -> str:
    if ".tsv" in path.suffixes:
        return "\t"
    if ".csv" in path.suffixes:
        return ";" if ";" in first and "," not in first else ","
    first = first.strip()
    if "\t" in first:  # alone, it keeps the blanks inside words
        return "\t" if all(part == part.strip() for part in first.split("\t")) else _BLANKS
    return next((mark for mark in (",", ";") if mark in first), _BLANKS)


def _distinct(names: list[str]) -> list[str]:
    seen: Counter[str] = Counter()
    distinct = []
    for name in names:
        distinct.append(f"{name}.{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return distinct


def is_number(text: str) -> bool:
    """Whether a field is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def is_integer(text: str) -> bool:
    """Whether a field is a whole number."""
    return re.fullmatch(r"[-+]?\d+", text) is not None

"""How a text file is written: compression, encoding, comments, delimiter. Its columns: ``columns``.

Owns the rules, in this order, by which ``read_dialect`` tells it from the beginning of the file:

1. Compression is told by the first bytes, whatever the file is called.
2. Encoding: by the byte order mark; else what the options say; else UTF-8.
3. Lines that begin with ``#`` or ``%``, and empty ones, before the first row are left out; a line
   ``sep=;`` there, as Excel writes it, is the delimiter.
4. ``{…}`` at the end of all rows are attributes of edges, as networkx writes them: left out.
5. Delimiter: the tab, where it cuts all rows into as many fields, unless blanks separate numbers,
   too, as in KONECT's files; else that of ``,``, ``;`` and ``|`` which does; else blanks.

What follows from none of them is refused with the option that settles it.
"""

from __future__ import annotations

import codecs
import csv
import io
import lzma
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gnnsys.errors import ArgumentError, FileFormatError, MissingFileError, UnsupportedError

__all__ = [
    "BLANKS",
    "READ_FAULTS",
    "Dialect",
    "TableOptions",
    "TidyLines",
    "is_integer",
    "is_number",
    "is_whole",
    "open_text",
    "read_dialect",
    "require_pyarrow",
    "split_line",
    "spoken",
]

BLANKS = " "
"""The delimiter that stands for any number of blanks and tabs."""

READ_FAULTS = (OSError, lzma.LZMAError, EOFError)
"""What reading a packed file may raise."""

_HEAD_BYTES = 1 << 20
"""In which the comments end and the first rows lie."""
_FIRST_ROWS = 100
_MARKS = (",", ";", "|")
_WORDS = {"tab": "\t", "space": BLANKS, "blanks": BLANKS, "comma": ",", "semicolon": ";"}
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\0": "xz"}
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ATTRIBUTES = re.compile(r"\s*\{.*\}\s*$")
_ATTRIBUTES_BYTES = re.compile(rb"[ \t]*\{[^\n]*\}[ \t\r]*$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class TableOptions:
    """What a user says of a text file."""

    delimiter: str = "auto"
    """A character, or tab, blanks, comma, semicolon."""

    header: Literal["auto", "yes", "no"] = "auto"
    """Whether the first row names the columns."""

    encoding: str = "auto"
    """As Python calls it."""

    only_where_unclear: bool = False
    """Whether delimiter and header count only where the rules do not tell them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialect:
    """How a text file is written."""

    compression: str = "none"
    encoding: str = "utf-8"
    skipped: int = 0
    """Lines before the first row."""
    commented: bool = False
    """Whether one of them is a comment."""
    delimiter: str = ","
    attributes: bool = False
    """Whether each row ends with ``{…}``, which is left out."""
    spaced: bool = False
    """Whether blanks stand before quoted fields."""
    rows: tuple[tuple[str, ...], ...] = ()
    """The first ones, cut into fields."""
    banner: str = ""
    """The first line of a Matrix Market file."""


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


def is_whole(text: str) -> bool:
    """Whether a field is a whole number, possibly written as a float: 7.0.

    >>> is_whole("7.0"), is_whole("7.5")
    (True, False)
    """
    return re.fullmatch(r"[-+]?\d+(\.0*)?", text) is not None


def split_line(line: str, delimiter: str) -> list[str]:
    """The fields of a line, without the blanks around them and without quotes.

    >>> split_line('1, "a, b"', ",")
    ['1', 'a, b']
    """
    if delimiter == BLANKS:
        line = re.sub("[ \t]+", " ", line.strip()) if '"' not in line else line.strip()
    # A field may be longer than what csv takes by default, whose limit is the process's.
    limit = csv.field_size_limit(1 << 30)
    try:
        reader = csv.reader([line.replace("\0", "")], delimiter=delimiter, skipinitialspace=True)
        fields = next(reader, [])
    except csv.Error:  # a quote that is not closed in this line
        fields = line.split(delimiter)
    finally:
        csv.field_size_limit(limit)
    if delimiter == BLANKS:
        return [each for field in fields for each in _untabbed(field)]
    return [field.strip() for field in fields]


def _untabbed(field: str) -> list[str]:
    return [part for part in field.split("\t") if part] if "\t" in field else [field]


def open_text(path: Path, dialect: Dialect) -> Any:
    """A pyarrow stream of the file's UTF-8 text, from its first byte on."""
    pa = require_pyarrow(str(path))
    if dialect.compression == "xz":
        stream = pa.PythonFile(lzma.open(path, "rb"), mode="r")  # noqa: SIM115  # closes with it
    else:
        codec = None if dialect.compression == "none" else dialect.compression
        stream = pa.input_stream(str(path), compression=codec)
    if dialect.encoding not in ("utf-8", "utf-8-sig"):
        stream = pa.PythonFile(_Transcoded(stream, dialect.encoding), mode="r")
    return stream


class _Transcoded(io.RawIOBase):
    """A stream of bytes in another encoding as UTF-8."""

    def __init__(self, stream: Any, encoding: str) -> None:
        self._stream, self._held = stream, b""
        self._decoder = codecs.getincrementaldecoder(encoding)()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes."""
        want = size if size >= 0 else 1 << 62
        parts, found = [self._held], len(self._held)
        while found < want:
            block = self._stream.read(min(want, 1 << 20))
            part = self._decoder.decode(block, final=not block).encode("utf-8", "replace")
            parts.append(part)
            found += len(part)
            if not block:
                break
        text = b"".join(parts)
        self._held = text[want:]
        return text[:want]

    def close(self) -> None:
        """Closes the file, too."""
        self._stream.close()
        super().close()


def read_dialect(path: Path, options: TableOptions) -> Dialect:
    """How a text file is written.

    Args:
        path: of the file.
        options: what is known of it.

    Raises:
        MissingFileError, FileFormatError: it is not there, or cannot be decoded.
        ArgumentError: an encoding or a delimiter that is none; or what only an option settles.
    """
    compression = _compression_of(path)
    try:
        with open_text(path, Dialect(compression=compression)) as stream:
            head = stream.read(_HEAD_BYTES) or b""
    except READ_FAULTS as error:
        raise FileFormatError(f"{path}: cannot be read ({error})") from error
    text, encoding = _decode(path, bytes(head), options.encoding)
    lines, skipped, commented, told = _first_lines(text, whole=len(head) < _HEAD_BYTES)
    banner = next((line for line in text.splitlines()[:1] if line.startswith("%%Matrix")), "")
    attributes = bool(lines) and all(map(_ATTRIBUTES.search, lines))
    if attributes:
        lines = [_ATTRIBUTES.sub("", line) for line in lines]
    given = _mark_of(options.delimiter)
    forced = told if options.only_where_unclear else given or told
    delimiter = forced or _choose_delimiter(path, lines, given)
    return Dialect(
        compression=compression,
        encoding=encoding,
        skipped=skipped,
        commented=commented,
        delimiter=delimiter,
        attributes=attributes,
        spaced=delimiter != BLANKS and any(re.search(f'\\{delimiter} +"', line) for line in lines),
        rows=tuple(tuple(split_line(line, delimiter)) for line in lines),
        banner=banner,
    )


def _compression_of(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            first = file.read(8)
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: no such file") from error
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read ({error.strerror})") from error
    return next((name for magic, name in _MAGIC.items() if first.startswith(magic)), "none")


def _decode(path: Path, head: bytes, encoding: str) -> tuple[str, str]:
    found = next((name for bom, name in _BOMS if head.startswith(bom)), None)
    if found is None and encoding == "auto":
        if b"\0" in head[:1000]:
            raise FileFormatError(
                f"{path}: holds zero bytes; give --encoding utf-16-le if it is such text, or "
                "--format if it is no text"
            )
        found = "utf-8"
    chosen = found or encoding
    try:
        decoder = codecs.getincrementaldecoder(chosen)()
    except LookupError as error:
        raise ArgumentError(
            f"--encoding {encoding}: unknown; expected utf-8, utf-16, latin-1, cp1252, …"
        ) from error
    try:
        return decoder.decode(head), chosen
    except UnicodeDecodeError as error:
        raise FileFormatError(
            f"{path}: not {chosen} at byte {error.start}; give --encoding, such as latin-1 or "
            "cp1252"
        ) from error


def _first_lines(text: str, whole: bool) -> tuple[list[str], int, bool, str]:
    """The first rows; how many lines stand before them; whether comments; what ``sep=`` says."""
    rows: list[str] = []
    skipped, commented, told = 0, False, ""
    lines = re.split("\r\n|\n|\r", text)
    if not whole and len(lines) > 1:
        lines.pop()  # cut off somewhere
    for line in lines:
        if rows:
            rows += [line] if line.strip() else []
        elif line.strip()[:1] in ("", "#", "%"):
            skipped += 1
            commented |= bool(line.strip())
        elif re.fullmatch(r"\"?sep=.\"?", line.strip(" "), re.IGNORECASE):
            skipped += 1
            told = line.strip(' "')[4:]
        else:
            rows = [line]
        if len(rows) == _FIRST_ROWS:
            break
    return rows, skipped, commented, told


def _mark_of(given: str) -> str:
    """The delimiter that a user gives; empty for auto."""
    if given == "auto":
        return ""
    mark = _WORDS.get(given, given)
    if len(mark) != 1 or mark in '"\n\r':
        raise ArgumentError(
            f"--delimiter {given!r}: expected one character, or tab, blanks, comma, semicolon"
        )
    return mark


def spoken(delimiter: str) -> str:
    """A delimiter in a word, where there is one."""
    return {mark: word for word, mark in _WORDS.items()}.get(delimiter, delimiter)


def _choose_delimiter(path: Path, lines: list[str], given: str) -> str:
    """The delimiter of rows, by rule 5; ``given`` where that does not tell it."""
    if not lines:
        return ","
    blanks = _cuts_alike(lines, BLANKS)
    between = any(len(line.strip().split("\t")) > 1 for line in lines)
    # A first row alone without a tab is the one that is cut otherwise.
    alike = "\t" in lines[0].strip() or not blanks
    if _cuts_alike(lines, "\t") and alike and between:
        return BLANKS if blanks and not _has_words(lines) else "\t"
    possible = [mark for mark in _MARKS if _cuts_alike(lines, mark)]
    if len(possible) == 1 and not (blanks and _hides_numbers(lines, possible[0])):
        return possible[0]
    if possible:
        if given:
            return given
        found = " or ".join(repr(mark) for mark in [*possible, *([BLANKS] if blanks else [])])
        raise FileFormatError(
            f"{path}: {found} may separate its columns, as in {lines[-1][:60]!r}; "
            "--delimiter says which"
        )
    if blanks and not _hides_index(lines):
        return BLANKS
    if blanks:
        raise FileFormatError(
            f"{path}: begins with a blank, which may stand for a column without a name; "
            "--delimiter blanks takes any number of them for one"
        )
    # One column, or rows of several lengths, which the reader tells with their lines.
    by_suffix = {".tsv": "\t", ".csv": ","}
    suffix = next((each for each in path.suffixes if each in by_suffix), "")
    counts = {mark: lines[0].count(mark) for mark in ("\t", *_MARKS)}
    most = max(counts, key=lambda mark: counts[mark])
    return most if counts[most] else by_suffix.get(suffix, BLANKS)


def _cuts_alike(lines: list[str], mark: str) -> bool:
    """Whether a delimiter cuts all rows into as many fields, two or more.

    The first may have one less: R does not name the column of row names.
    """
    counts = [len(split_line(line, mark)) for line in lines]
    others = set(counts[1:]) or {counts[0]}
    return len(others) == 1 and min(others) >= 2 and counts[0] in (min(others), min(others) - 1)


def _hides_index(lines: list[str]) -> bool:
    """Whether a first row of words begins with a blank, unlike others, but has as many fields."""
    first, *others = lines
    if first[:1] != " " or not any(line[:1] != " " for line in others):
        return False
    fields = split_line(first, BLANKS)
    return len(fields) == len(split_line(others[0], BLANKS)) and not all(map(is_number, fields))


def _has_words(lines: list[str]) -> bool:
    """Whether tabs alone separate columns, or blanks stand inside words between them."""
    if not any(" " in line for line in lines):
        return True
    fields = [field.split() for line in lines for field in split_line(line, "\t")]
    return any(len(parts) > 1 and not all(map(is_number, parts)) for parts in fields)


def _hides_numbers(lines: list[str], mark: str) -> bool:
    """Whether fields are several numbers with blanks in between, in any row but the first."""
    return any(
        len(field.split()) > 1 and all(map(is_number, field.split()))
        for line in lines[1:] or lines
        for field in split_line(line, mark)
    )


class TidyLines:
    """Leaves of each line what pyarrow's reader takes, whole lines at a time.

    One blank between columns and none at the ends of lines where blanks separate them; no ``{…}``
    at their ends; no blanks before quotes.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._held = b""

    def __call__(self, block: Any) -> bytes:
        text = b"".join((self._held, block))
        end = text.rfind(b"\n") + 1 if len(block) else len(text)
        self._held, text = text[end:], text[:end]
        if self._dialect.attributes:
            text = _ATTRIBUTES_BYTES.sub(b"", text)
        if self._dialect.delimiter == BLANKS:
            return _single_blanks(text)
        if self._dialect.spaced:
            mark = re.escape(self._dialect.delimiter).encode()
            text = re.sub(b"(" + mark + rb') +(?=")', rb"\1", text)
        return text


_QUOTED_OR_BLANKS = re.compile(rb'("[^"\n]*")|[ \t]+')


def _single_blanks(text: bytes) -> bytes:
    if b'"' in text:
        text = _QUOTED_OR_BLANKS.sub(lambda found: found.group(1) or b" ", text)
    else:
        text = text.replace(b"\t", b" ")
        while b"  " in text:
            text = text.replace(b"  ", b" ")
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n")
    text = text.replace(b" \n", b"\n").replace(b"\n ", b"\n")
    return text.strip(b" ") if text.endswith(b"\n") else text.strip(b" \r")

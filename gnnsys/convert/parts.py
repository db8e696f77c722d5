"""Files that make one table together: those of a folder or a pattern, as Spark and Dask write them.

Left out are files and folders whose names begin with ``_`` or ``.``, such as ``_SUCCESS``. Parts
stand in the order of the numbers in their names: ``part.10`` comes after ``part.9``.
"""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from gnnsys.errors import FileFormatError, MissingFileError, UnsupportedError

__all__ = [
    "find_parts",
    "folder_values",
    "holds_parts",
    "is_pattern",
    "kind_of",
    "single_file",
]

_TEXT_SUFFIXES = tuple(
    suffix + packed
    for suffix in (".csv", ".tsv", ".txt", ".edges", ".edgelist", ".el", ".mtx")
    for packed in ("", ".gz", ".bz2", ".zst", ".xz")
)
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"

Kind = Literal["text", "mtx", "parquet", "npy", "npz", ""]
"""How a file is to be read; empty where its name does not say it."""

_KINDS: dict[str, Kind] = {".npz": "npz", ".npy": "npy", ".parquet": "parquet", ".mtx": "mtx"}


def is_pattern(path: Path) -> bool:
    """Whether a path that is not there names several files: ``parts/*.csv``."""
    return glob.has_magic(str(path)) and not path.exists()


def find_parts(path: Path) -> list[Path]:
    """The files of a table in their order: the file itself, or those of a folder or a pattern.

    Raises:
        MissingFileError: there are none.
        FileFormatError: a device, a pipe or a socket.
        UnsupportedError: a table of Delta Lake, whose folder also holds files of older versions.
    """
    if path.is_file():
        return [path]
    places = [Path(each) for each in glob.glob(str(path), recursive=True)]
    places = [path] if path.exists() else [place for place in places if not _is_hidden(place)]
    found = [file for place in places for file in _files_under(place)]
    if not found:
        what = "no such file"
        if path.is_dir() or is_pattern(path):
            what = "no parts in it" if path.is_dir() else "no file is called so"
        raise MissingFileError(f"{path}: {what}")
    return sorted(dict.fromkeys(found), key=_in_order)


def single_file(path: Path) -> Path:
    """The one file of what cannot be in parts.

    Raises:
        UnsupportedError: there are several, or it is a folder.
    """
    parts = find_parts(path)
    if len(parts) > 1 or path.is_dir():
        raise UnsupportedError(
            f"{path}: stands for {len(parts)} files such as {parts[0].name}; expected one, or "
            "parts of Parquet or text"
        )
    return parts[0]


def _files_under(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise FileFormatError(f"{place}: neither a file nor a pipe of data; expected a table")
    if (place / "_delta_log").is_dir():
        raise UnsupportedError(
            f"{place}: a table of Delta Lake, whose folder also holds what was deleted; write it "
            "as plain Parquet, such as by spark.read.format('delta').load(…).write.parquet(…)"
        )
    files = [file for file in place.rglob("*") if file.is_file()]
    return [file for file in files if not any(map(_is_hidden, _below(file, place)))]


def _below(file: Path, place: Path) -> list[Path]:
    return [Path(name) for name in file.relative_to(place).parts]


def _is_hidden(place: Path) -> bool:
    return place.name.startswith(("_", "."))


def _in_order(path: Path) -> list[str | int]:
    pieces = re.split(r"(\d+)", str(path))
    return [int(piece) if piece.isdecimal() else piece for piece in pieces]


def holds_parts(folder: Path) -> bool:
    """Whether any file of a folder is a table by its name."""
    return any(_kind_of_file(file) for file in _files_under(folder))


def kind_of(path: Path) -> Kind:
    """How a file, or all parts of a folder or a pattern, are to be read, by their names.

    Raises:
        MissingFileError: there are none.
        FileFormatError: one part is of another kind than the first.
    """
    parts = find_parts(path)
    kind = _kind_of_file(parts[0])
    odd = next((part for part in parts if _kind_of_file(part) != kind), None)
    if odd is not None:
        raise FileFormatError(
            f"{odd}: another kind of file than {parts[0]}, which is a part of {path}, too; "
            f"expected parts of one kind, or a pattern of some, such as '*{parts[0].suffix}'"
        )
    return kind


def _kind_of_file(path: Path) -> Kind:
    return _KINDS.get(path.suffix) or ("text" if path.name.endswith(_TEXT_SUFFIXES) else "")


def folder_values(path: Path, part: Path) -> dict[str, str | None]:
    """What Hive's folders between a table and its part say, which are called ``year=2024``.

    >>> folder_values(Path("t"), Path("t/year=2024/kind=a%2Fb/part-0.parquet"))
    {'year': '2024', 'kind': 'a/b'}
    """
    magic = [place for place, name in enumerate(path.parts) if glob.has_magic(name)]
    fixed = magic[0] if magic and is_pattern(path) else len(path.parts)
    pairs = [name.partition("=") for name in part.parts[fixed:-1] if "=" in name]
    return {unquote(key): None if value == _NO_VALUE else unquote(value) for key, _, value in pairs}

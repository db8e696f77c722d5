"""What an embedding table is, and how its folder is made."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from gnnsys.errors import FileFormatError, MissingFileError, StorageError
from gnnsys.memory.file import FileStore
from gnnsys.system.files import (
    as_storage_error,
    lock_file,
    lock_holder,
    read_text_file,
    replace_file,
    sync,
)

__all__ = [
    "DTYPES",
    "LOCK",
    "ROWS",
    "TABLE",
    "TableHeader",
    "create_files",
    "remove",
    "remove_files",
]

TABLE, ROWS, LOCK = "table.json", "rows.npy", "lock"
_FORMAT = 1
_BLOCK_BYTES = 8 << 20  # of records that are written at a time

DTYPES = {"float32": torch.float32, "float64": torch.float64}
"""Element types of records."""


@dataclass(kw_only=True, slots=True)
class TableHeader:
    """What a table is, as ``table.json`` has it."""

    rows: int
    dim: int
    """Elements of a row."""

    dtype: str
    """Of all elements: float32 or float64."""

    state: dict[str, float] = field(default_factory=dict)
    """Names of what an optimiser keeps for each element of a row, and what they begin with."""

    version: int = 0
    """Counts commits."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Tells tables apart."""

    @property
    def row_bytes(self) -> int:
        """Size of a row."""
        return self.dim * DTYPES[self.dtype].itemsize

    @property
    def width(self) -> int:
        """Elements of a record: the row and its state."""
        return self.dim * (1 + len(self.state))

    @property
    def record_bytes(self) -> int:
        """Size of a record."""
        return self.row_bytes * (1 + len(self.state))

    def write(self, folder: Path) -> None:
        """Replaces the file."""
        text = json.dumps({"format": _FORMAT, **asdict(self)}, indent=2)
        replace_file(folder / TABLE, text.encode())

    @classmethod
    def read(cls, folder: Path) -> TableHeader:
        """That of a folder.

        Raises:
            MissingFileError, FileFormatError: it is not there, or not whole.
        """
        path = folder / TABLE
        try:
            content = json.loads(read_text_file(path, "the header of an embedding table"))
            if content.pop("format") != _FORMAT:
                raise FileFormatError(f"{path}: of another format; read it with a newer gnnsys")
            header = cls(**content)
            if header.dtype not in DTYPES or min(header.rows, header.dim) < 1:
                raise ValueError(f"{header.rows} rows of {header.dim} {header.dtype}")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingFileError(
                f"{path}: no such file; EmbeddingStore.create makes a table"
            ) from error
        except FileFormatError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileFormatError(
                f"{path}: not the header of an embedding table ({error}); make the table again"
            ) from error
        return header


def create_files(
    folder: Path, header: TableHeader, initial: Callable[[int, int], Tensor] | None
) -> None:
    """Makes the folder of a table; none is left where that fails.

    Args:
        initial: gives rows ``[first, last)``; None for zeros.

    Raises:
        StorageError: something is in the way, or the disk is full.
    """
    if folder.exists():
        raise StorageError(
            f"{folder}: is there already; open it with EmbeddingStore(folder), or name another"
        )
    made = folder.with_name(f"{folder.name}.new")  # maybe left by a process that was killed
    with as_storage_error(made):
        lock = lock_file(made / LOCK)
    if lock is None:
        raise StorageError(f"{folder}: {lock_holder(made / LOCK)} makes it; wait, or name another")
    with lock:
        try:
            with as_storage_error(made):
                _write_first(made / ROWS, header, initial)
                header.write(made)
                sync(made)
                os.rename(made, folder)
                sync(folder.parent)
        except BaseException:
            remove_files(made)
            raise


def remove_files(folder: Path) -> None:
    """Removes the folder of a table that was not changed since it was made, if it is there."""
    remove(folder / TABLE, folder / ROWS, folder / LOCK)
    with as_storage_error(folder):
        if folder.exists():
            folder.rmdir()


def remove(*paths: Path) -> None:
    """Removes files, where they are there."""
    for path in paths:
        with as_storage_error(path):
            path.unlink(missing_ok=True)


def _write_first(
    path: Path, header: TableHeader, initial: Callable[[int, int], Tensor] | None
) -> None:
    dtype, dim = DTYPES[header.dtype], header.dim
    store = FileStore.create(path, (header.rows, header.width), dtype, storage="pread")
    try:
        for first, last in _blocks(header.rows, header.record_bytes):
            records = torch.zeros(last - first, header.width, dtype=dtype)
            if initial is not None:
                records[:, :dim] = initial(first, last)
            for number, start in enumerate(header.state.values(), 1):
                records[:, number * dim : (number + 1) * dim] = start
            store.write(torch.arange(first, last), records)
        sync(path)
    finally:
        store.close()


def _blocks(rows: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows; all but the last are a multiple of 16, and none but a table is below it."""
    step = max(16, _BLOCK_BYTES // row_bytes // 16 * 16)
    first = 0
    while first < rows:
        last = first + step if rows - first >= step + 16 else rows
        yield first, last
        first = last

"""Arrays and edges in the files of a GraphBolt folder, mapped or read in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from gnnsys.convert.arrays import load_tensor
from gnnsys.convert.csc import EdgeReader
from gnnsys.convert.graphbolt_metadata import EdgeEntry, Entry
from gnnsys.convert.text import TextTable
from gnnsys.dataset.writer import RowReader, cut_rows
from gnnsys.errors import FileFormatError
from gnnsys.system.files import map_npy

__all__ = ["EntryArray", "open_entry", "read_csv_edges"]


@dataclass(frozen=True, slots=True)
class EntryArray:
    """A file's array, mapped; bfloat16 as its bits."""

    rows: NDArray[Any]
    dtype: str
    """As a table's encoding names it."""

    file: dict[str, Any]
    """path, format, dtype and shape for a ``Record``."""

    label: str
    """The file's name, for messages."""

    def read(self) -> RowReader:
        """Blocks of rows in the machine's order of bytes."""
        native = self.rows.dtype.newbyteorder("=")
        cut = cut_rows(self.rows)
        return lambda first: (block.astype(native, copy=False) for block in cut(first))


def open_entry(folder: Path, entry: Entry | EdgeEntry) -> EntryArray:
    file = folder / entry.path
    array = map_npy(file) if entry.format == "numpy" else None
    if array is None:
        array, dtype = load_tensor(file)
    elif array.dtype.kind in "biufc":
        dtype = array.dtype.name
    else:
        raise FileFormatError(f"{file}: dtype {array.dtype}, expected numbers")
    described = {
        "path": entry.path,
        "format": entry.format,
        "dtype": dtype if dtype == "bfloat16" else array.dtype.str,
        "shape": list(array.shape),
    }
    return EntryArray(array.reshape(1) if array.ndim == 0 else array, dtype, described, str(file))


def read_csv_edges(file: Path) -> EdgeReader:
    names = ("src", "dst")

    def read(first: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        table = TextTable(file, header=False, names=names, types=dict.fromkeys(names, "int64"))
        if len(table.names) != 2 and table.first_rows:
            raise FileFormatError(f"{file}: {len(table.names)} columns, expected source, target")
        for batch in table.batches():
            if any(column.null_count for column in batch.columns):
                raise FileFormatError(f"{file}: a field is empty, expected node ids")
            source, target = (column.to_numpy()[first:] for column in batch.columns)
            first = max(0, first - batch.num_rows)
            if len(source):
                yield source, target

    return read

"""Arrays and edges in the files of a GraphBolt folder, mapped or read in blocks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from gnnsys.convert.arrays import load_tensor
from gnnsys.convert.graphbolt_metadata import EdgeEntry, Entry
from gnnsys.dataset.writer import RowReader, cut_rows
from gnnsys.errors import FileFormatError
from gnnsys.system.files import map_npy

__all__ = ["EntryArray", "open_entry"]


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

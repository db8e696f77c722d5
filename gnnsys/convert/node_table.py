"""A table with a row for each node: names, labels, splits, times and features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.convert.arrays import ArraySource, as_matrix
from gnnsys.convert.columns import EMPTY, choose_columns, find_id
from gnnsys.convert.dialect import (
    TableOptions,
    is_integer,
    is_number,
    is_whole,
    require_pyarrow,
)
from gnnsys.convert.names import Names
from gnnsys.convert.parts import kind_of
from gnnsys.convert.tables import ParquetTable, open_array, open_matrix, read_whole
from gnnsys.convert.text import TextTable, describe_text
from gnnsys.convert.values import as_plain
from gnnsys.dataset.format import NODE_TYPE
from gnnsys.dataset.writer import DatasetWriter, cut_rows
from gnnsys.errors import ArgumentError, FileFormatError

__all__ = ["NodeColumns", "NodeTable", "write_names"]

_SPLITS = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "": "",
    "none": "",
}
_OWN = ("label", "split", "time")
_BLOCK_ROWS = 1 << 20


def write_names(writer: DatasetWriter, names: Names, node_type: str = NODE_TYPE) -> None:
    """Writes what each node of a type is called in the source."""
    for name, table in names.tables().items():
        dtype = table.dtype.str[1:] if table.dtype.kind == "S" else table.dtype.name
        writer.write_nodes(name, cut_rows(table), table.shape, dtype, node_type)


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeColumns:
    """What a user says of a node table's columns: as ``choose_columns`` takes them; None for usual
    ones."""

    id: str | None = None
    label: str | None = None
    features: Sequence[str] | None = None


class NodeTable:
    """Nodes in the order of their numbers.

    Args:
        path: .csv, .tsv, .txt or .parquet with a column of ids, called id or the first one, and,
            where it has them, the columns label, split (train, val, test or empty) and time; all
            others are features. Or .npy: the ids alone.
        options: what the user says of text.
        columns: what the user says of its columns.

    Raises:
        MissingFileError, FileFormatError: not there, not readable, or without ids.
        ArgumentError: columns that are not there.
    """

    def __init__(
        self,
        path: Path,
        options: TableOptions | None = None,
        columns: NodeColumns | None = None,
    ) -> None:
        self._path, self._options = path, options
        self._chosen = columns or NodeColumns()
        self.about: dict[str, Any] = {}
        """How the file was understood."""
        self._kind = kind_of(path)
        self.feature_columns: list[str] = []
        self._columns: dict[str, str] = {}
        self.id_column = ""
        if self._kind == "npy":
            self._ids = _read_ids(path)
            return
        self._table = self._open()
        names = self._table.names
        if not names:
            raise FileFormatError(f"{path}: empty, expected a row for each node")
        self._choose_columns(names)
        self._ids = _plain_ids(self._read(self.id_column).to_pylist())
        missing = next((row for row, name in enumerate(self._ids) if name in (None, "")), None)
        if missing is not None:
            raise FileFormatError(f"{path}: row {missing} has no id; give it one")

    def _choose_columns(self, names: list[str]) -> None:
        chosen = self._chosen
        self.id_column = find_id(names)
        if self.id_column.lower() in _OWN and chosen.id is None:
            raise FileFormatError(
                f"{self._path}: no column is called id, and the first one is {self.id_column}; "
                f"--id-column says which of {', '.join(names[:8])} names the nodes"
            )
        if chosen.id is not None:
            (self.id_column,) = choose_columns(self._path, names, [chosen.id], "--id-column")
        others = [name for name in names if name != self.id_column]
        self._columns = {name.lower(): name for name in others if name.lower() in _OWN}
        if chosen.label is not None:
            found = choose_columns(self._path, names, [chosen.label], "--label-column")
            self._columns["label"] = found[0]
        used = self._columns.values()
        self.feature_columns = [
            name for name in others if name.lower() not in _OWN and name not in used
        ]
        if chosen.features is not None:
            self.feature_columns = choose_columns(
                self._path, names, chosen.features, "--feature-columns"
            )
        self._left = [name for name in others if name not in {*self.feature_columns, *used}]

    def _open(self) -> ParquetTable | TextTable:
        if self._kind == "parquet":
            return ParquetTable(self._path)
        if self._kind != "text":
            raise ArgumentError(
                f"{self._path}: unknown kind {self._path.suffix!r}; expected .csv, .tsv, .txt, "
                ".parquet or .npy"
            )
        table = TextTable(self._path, options=self._options)
        self.about = describe_text(table)
        if not table.header and table.first_rows and self._chosen.id is None:
            raise FileFormatError(
                f"{self._path}: begins with {', '.join(table.first_rows[0][:4])}; expected a line "
                "of column names, the id's first; --id-column 0 takes a table without, whose "
                "columns are f0, f1, …"
            )
        return table

    def _read(self, column: str) -> Any:
        """A column as a pyarrow array, of text as strings."""
        pa = require_pyarrow(str(self._path))
        if isinstance(self._table, ParquetTable):
            batches = self._table.batches([column], _BLOCK_ROWS)
        else:
            batches = self._table.typed({column: pa.string()}).batches([column])
        arrays = [as_plain(self._path, column, batch.column(0)) for batch in batches]
        return pa.chunked_array(arrays).combine_chunks() if arrays else pa.array([], pa.string())

    def __len__(self) -> int:
        return len(self._ids)

    def describe(self) -> dict[str, Any]:
        """How the file was understood, and what its columns are."""
        if self._kind == "npy":
            return {"format": "npy", "rows": len(self)}
        about = {**self.about, "rows": len(self), "id": self.id_column, **self._columns}
        about["features"] = self.feature_columns
        return {**about, "columns, left out": self._left} if self._left else about

    def has(self, column: str) -> bool:
        """Whether there is a column label, split or time."""
        return column in self._columns

    def names(self, as_strings: bool) -> Names:
        """The ids, numbered as they stand; as strings where those of the edges are.

        Raises:
            FileFormatError: an id that is there twice, or no number while the edges have numbers.
        """
        names = Names(str(self._path), memory=1 << 62)
        names.add_unique([str(name) for name in self._ids] if as_strings else self._whole_ids())
        return names

    def check_dense(self) -> None:
        """Raises FileFormatError unless the ids are 0, 1, … in this order."""
        for row, name in enumerate(self._whole_ids()):
            if name != row:
                raise FileFormatError(
                    f"{self._path}: row {row} has the id {name}, expected {row}; give --ids names "
                    "to number nodes as they stand in the table"
                )

    def _whole_ids(self) -> list[int]:
        for row, name in enumerate(self._ids):
            if not is_integer(str(name)):
                raise FileFormatError(
                    f"{self._path}: row {row} has the id {name!r}, but the edges name nodes by "
                    "numbers; give --ids names if these are words"
                )
        return [int(name) for name in self._ids]

    def times(self) -> NDArray[Any]:
        """(nodes,) the column time, as numbers."""
        return read_whole(self._open_columns([self._columns["time"]], times=True))

    def values(self) -> NDArray[Any]:
        """(nodes,) the column label, as floats, NaN where empty.

        Raises:
            FileFormatError: a label that is no number.
        """
        return read_whole(self._open_columns([self._columns["label"]], floats=True))

    def labels(self) -> tuple[NDArray[Any], list[str]]:
        """(nodes,) classes, -1 or NaN where empty, and their names where they are no numbers."""
        pa = require_pyarrow(str(self._path))
        values = self._read(self._columns["label"])
        if pa.types.is_integer(values.type):
            return values.fill_null(-1).to_numpy(zero_copy_only=False), []
        if pa.types.is_floating(values.type):
            return values.to_numpy(zero_copy_only=False), []
        words = ["" if value is None else str(value) for value in values.to_pylist()]
        words = ["" if word.strip() in EMPTY else word.strip() for word in words]
        known = {word for word in words if word}
        if all(is_integer(word) and len(word) < 19 for word in known):
            return np.array([int(word or -1) for word in words], np.int64), []
        if all(is_number(word) for word in known):
            return np.array([float(word or "nan") for word in words]), []
        classes = sorted(known)
        numbers = {word: number for number, word in enumerate(classes)} | {"": -1}
        return np.array([numbers[word] for word in words], np.int64), classes

    def splits(self) -> dict[str, NDArray[np.int64]]:
        """Ids to train on, to validate and to test on.

        Raises:
            FileFormatError: another word than train, val, test or none.
        """
        parts: dict[str, list[int]] = {"train": [], "val": [], "test": [], "": []}
        for row, value in enumerate(self._read(self._columns["split"]).to_pylist()):
            word = str(value or "").strip().lower()
            if word not in _SPLITS:
                raise FileFormatError(
                    f"{self._path}: row {row} has the split {value!r}, expected train, val, test "
                    "or nothing"
                )
            parts[_SPLITS[word]].append(row)
        return {name: np.array(parts[name], np.int64) for name in ("train", "val", "test")}

    def features(self) -> ArraySource:
        """The other columns as a matrix (nodes, columns)."""
        return as_matrix(self._open_columns(self.feature_columns, floats=True))

    def _open_columns(self, columns: list[str], **how: bool) -> ArraySource:
        header = not isinstance(self._table, TextTable) or self._table.header
        return open_matrix(self._path, header, columns, options=self._options, **how)


def _plain_ids(ids: list[Any]) -> list[Any]:
    """Ids without the blanks around them, and without ``.0`` where all are whole numbers."""
    plain = [name.strip() if isinstance(name, str) else name for name in ids]
    if all(is_whole(str(name)) for name in plain) and any("." in str(name) for name in plain):
        return [str(name).partition(".")[0] for name in plain]
    return plain


def _read_ids(path: Path) -> list[Any]:
    source = open_array(path)
    if len(source.shape) != 1 or source.dtype.kind not in "iuU":
        raise FileFormatError(
            f"{path}: {source.dtype} of shape {source.shape}, expected (nodes,) ids"
        )
    return read_whole(source).tolist()

"""Files that hold edges: sources and targets in blocks, as numbers or by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.convert.arrays import (
    ArraySource,
    NpzMember,
    ParquetTable,
    npz_members,
    open_array,
    open_matrix,
    rows_from,
)
from gnnsys.convert.csc import EdgeReader, cut_edges
from gnnsys.convert.names import Names
from gnnsys.convert.spec import EdgeListSpec, split_member
from gnnsys.convert.text import TEXT_SUFFIXES, TextTable, is_integer, require_pyarrow
from gnnsys.errors import ArgumentError, FileFormatError, MissingFileError
from gnnsys.system.files import map_npy, write_at

__all__ = ["EdgeFile", "open_edges", "read_columns", "read_matrix", "read_rows", "spool_array"]

_BLOCK_EDGES = 1 << 21
_END_NAMES = (
    ("source", "target"),
    ("src", "dst"),
    ("src", "dest"),
    ("from", "to"),
    ("u", "v"),
    ("row", "col"),
    ("head", "tail"),
    ("node1", "node2"),
    ("sourceid", "targetid"),
    ("from_node", "to_node"),
)
"""Usual names of the two columns or arrays."""

Ends = tuple[Any, Any]
"""Sources and targets: numpy arrays of integers, or pyarrow arrays."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EdgeFile:
    """An edge list that is open."""

    path: Path

    has_strings: bool
    """Whether ids are strings."""

    blocks: Callable[[int], Iterator[Ends]]
    """Edges from a number on."""

    columns: Sequence[str] = ()
    """Names of the table's columns."""

    header: bool = False
    """Whether they stand in its first row of text."""

    def find_names(self, memory: int) -> Names:
        """All ids, numbered as they appear, the source of an edge before its target."""
        names = Names(str(self.path), memory)
        for source, target in self.blocks(0):
            names.add_edges(source, target)
        return names

    def reader(self, names: Names | None) -> EdgeReader:
        """Edges as node numbers; with ``names``, ids that are not among them are errors."""

        def read(first: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
            done, label = first, str(self.path)
            for source, target in self.blocks(first):
                if names is None:
                    yield source, target
                else:
                    yield (
                        names.numbers(source, label, done, "source"),
                        names.numbers(target, label, done, "target"),
                    )
                done += len(source)

        return read

    def attribute(self, part: str, scratch: Path) -> NDArray[Any]:
        """Rows of an edge attribute: a column of this table, or a file."""
        if part in self.columns:
            return spool_array(open_matrix(self.path, self.header, [part]), scratch)
        if self.columns and not split_member(part)[0].is_file():
            raise ArgumentError(
                f"{part}: neither a file nor a column of {self.path}: {', '.join(self.columns)}"
            )
        if Path(part).suffix == ".npy":
            return map_npy(Path(part))
        return spool_array(open_array(part), scratch)


def spool_array(source: ArraySource, path: Path) -> NDArray[Any]:
    """Copies an array to a scratch file and maps it, so that its rows can be read in any order."""
    offset = 0
    for block in source.blocks():
        write_at(path, offset, block)
        offset += block.nbytes
    if offset == 0:
        return np.empty(source.shape, source.dtype)
    return np.memmap(path, source.dtype, mode="r", shape=source.shape)


def open_edges(spec: EdgeListSpec) -> EdgeFile:
    """Opens an edge list: .npy, .npz, .parquet, .csv, .tsv or .txt, also .gz.

    Raises:
        MissingFileError, FileFormatError, ArgumentError: not there, damaged, or of another kind.
    """
    path = spec.edges
    place, member = split_member(path)
    if not place.is_file():
        raise MissingFileError(f"{place}: no such file")
    if place.suffix == ".npz":
        return _open_npz(place, member)
    if path.suffix == ".npy":
        return _open_npy(path)
    if path.suffix == ".parquet":
        return _open_parquet(path, spec)
    if path.name.endswith(TEXT_SUFFIXES):
        return _open_text(path, spec)
    raise ArgumentError(
        f"{path}: unknown kind {path.suffix!r}; expected .npy, .npz, .parquet, .csv, .tsv or .txt"
    )


def _check_integers(path: Path, dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "iu":
        raise FileFormatError(f"{path}: edges of dtype {dtype}, expected integers")


def _open_npy(path: Path) -> EdgeFile:
    array = map_npy(path)
    _check_integers(path, array.dtype)
    if array.ndim != 2 or 2 not in array.shape:
        raise FileFormatError(f"{path}: shape {array.shape}, expected (2, edges) or (edges, 2)")
    blocks = cut_edges(array if array.shape[0] == 2 else array.T, _BLOCK_EDGES)
    return EdgeFile(path=path, has_strings=False, blocks=blocks)


def _open_npz(path: Path, member: str) -> EdgeFile:
    names = [member] if member else npz_members(path)
    found = _usual_ends(names)
    if found:
        ends = NpzMember(path, found[0]), NpzMember(path, found[1])
        return EdgeFile(path=path, has_strings=False, blocks=_read_two(path, ends))
    if "edge_index" in names:
        names = ["edge_index"]
    if len(names) != 1:
        raise FileFormatError(
            f"{path}: holds {', '.join(names)}; expected edge_index, or source and target, or name "
            f"the array as {path.name}:NAME"
        )
    blocks = read_matrix(path, NpzMember(path, names[0], any_order=True))
    return EdgeFile(path=path, has_strings=False, blocks=blocks)


def _read_two(path: Path, ends: tuple[NpzMember, NpzMember]) -> EdgeReader:
    for end in ends:
        _check_integers(path, end.dtype)
    if ends[0].shape != ends[1].shape or len(ends[0].shape) != 1:
        raise FileFormatError(
            f"{path}: sources of shape {ends[0].shape}, targets of {ends[1].shape}; expected the "
            "same (edges,)"
        )

    def blocks(first: int) -> Iterator[Ends]:
        left = ends[0].shape[0] - first
        return zip(*(end.flat_blocks(first, left, _BLOCK_EDGES) for end in ends), strict=True)

    return blocks


def read_columns(file: Path, kind: str, names: Sequence[str] = ()) -> Iterator[list[NDArray[Any]]]:
    """Columns of a file of numbers without a header, batch by batch."""
    found = TextTable(file, header=False, names=names).names
    table = TextTable(file, header=False, names=names, types=dict.fromkeys(found, kind))
    for batch in table.batches():
        if kind == "int64" and any(column.null_count for column in batch.columns):
            raise FileFormatError(f"{file}: a field is empty or NaN, expected whole numbers")
        yield [column.to_numpy(zero_copy_only=False) for column in batch.columns]


def read_rows(file: Path, edges: int | None = None, both_ways: bool = False) -> EdgeReader:
    """Reads (source, target) rows of text without a header.

    Args:
        file: .csv, also .gz.
        edges: how many rows there must be; None for any number.
        both_ways: whether each is followed by its reverse, also where it is a self loop.
    """

    def read(first: int) -> Iterator[Ends]:
        # With reverses, edges go out in pairs, so that the first one wanted is never a reverse.
        skipped = first // (1 + both_ways)
        seen = 0
        for columns in read_columns(file, "int64", ("src", "dst")):
            if len(columns) != 2:
                raise FileFormatError(f"{file}: {len(columns)} columns, expected source, target")
            source, target = (column[max(0, skipped - seen) :] for column in columns)
            seen += len(columns[0])
            if both_ways:
                pairs = np.stack([source, target], axis=1)
                source, target = pairs.ravel(), pairs[:, ::-1].ravel()
            if len(source):
                yield source, target
        if edges is not None and seen != edges:
            raise FileFormatError(f"{file}: {seen} edges != {edges} in num-edge-list.csv.gz")

    return read


def read_matrix(path: Path, member: NpzMember) -> EdgeReader:
    """Reads (2, edges) or (edges, 2) integers of a .npz file, opened in any order."""
    _check_integers(path, member.dtype)
    if len(member.shape) != 2 or 2 not in member.shape:
        raise FileFormatError(f"{path}: shape {member.shape}, expected (2, edges) or (edges, 2)")
    two_rows = member.shape[0] == 2
    edges = member.shape[1] if two_rows else member.shape[0]

    def in_rows(first: int) -> Iterator[Ends]:
        # Sources lie before all targets in the file: two streams read it side by side.
        sources = member.flat_blocks(first, edges - first, _BLOCK_EDGES)
        targets = member.flat_blocks(edges + first, edges - first, _BLOCK_EDGES)
        return zip(sources, targets, strict=True)

    def in_pairs(first: int) -> Iterator[Ends]:
        for block in member.flat_blocks(2 * first, 2 * (edges - first), 2 * _BLOCK_EDGES):
            yield from cut_edges(block.reshape(-1, 2).T, _BLOCK_EDGES)(0)

    return in_rows if two_rows != member.fortran else in_pairs


def _choose_columns(
    path: Path, names: Sequence[str], columns: tuple[str, str] | None
) -> tuple[str, str]:
    if columns is not None:
        for column in columns:
            if column not in names:
                raise ArgumentError(
                    f"--columns {' '.join(columns)}: {path} has {', '.join(names) or 'none'}"
                )
        return columns
    if len(names) < 2:
        raise FileFormatError(f"{path}: {len(names)} columns, expected sources and targets")
    return _usual_ends(names) or (names[0], names[1])


def _usual_ends(names: Sequence[str]) -> tuple[str, str] | None:
    """Those of sources and targets among names, where they have usual ones."""
    by_lower = {name.lower(): name for name in names}
    for source, target in _END_NAMES:
        if source in by_lower and target in by_lower:
            return by_lower[source], by_lower[target]
    return None


def _open_parquet(path: Path, spec: EdgeListSpec) -> EdgeFile:
    pa = require_pyarrow(str(path))
    table = ParquetTable(path)
    names = table.schema.names
    chosen = _choose_columns(path, names, spec.columns)
    kinds = {name: table.schema.field(name).type for name in chosen}
    for name, kind in kinds.items():
        if not (pa.types.is_integer(kind) or _is_text(pa, kind)):
            raise FileFormatError(f"{path}: column {name} holds {kind}, expected ids or names")
    strings = not all(pa.types.is_integer(kind) for kind in kinds.values())
    return EdgeFile(
        path=path,
        has_strings=strings,
        blocks=lambda first: _read_ends(
            path, table.batches(chosen, _BLOCK_EDGES), chosen, strings, first
        ),
        columns=names,
    )


def _is_text(pa: Any, kind: Any) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return str(value) in ("string", "large_string", "string_view")


def _read_ends(
    path: Path, batches: Iterable[Any], columns: tuple[str, str], strings: bool, first: int
) -> Iterator[Ends]:
    pa = require_pyarrow(str(path))
    done = first
    for batch in rows_from(batches, first):
        ends = [batch.column(name) for name in columns]
        if strings:
            ends = [end.cast(pa.string()) for end in ends]
        for what, end in zip(("source", "target"), ends, strict=True):
            empty = pa.compute.index(end.is_null(), True).as_py()
            if empty < 0 and strings:
                empty = pa.compute.index(end, "").as_py()
            if empty >= 0:
                raise FileFormatError(f"{path}: edge {done + empty} has no {what}; give it one")
        done += batch.num_rows
        if strings:
            yield ends[0], ends[1]
        else:
            yield ends[0].to_numpy(), ends[1].to_numpy()


def _open_text(path: Path, spec: EdgeListSpec) -> EdgeFile:
    pa = require_pyarrow(str(path))
    header = spec.header == "yes"
    if spec.header == "auto":
        header = _looks_like_header(TextTable(path, header=False).first_rows)
    table = TextTable(path, header=header)
    if not table.first_rows:
        raise FileFormatError(f"{path}: empty, expected rows of sources and targets")
    chosen = _choose_columns(path, table.names, spec.columns)
    places = [table.names.index(name) for name in chosen]
    strings = spec.ids == "names" or not all(
        len(row) > place and is_integer(row[place])
        for row in table.first_rows[header : header + 1]
        for place in places
    )
    typed = table.typed(dict.fromkeys(chosen, pa.string() if strings else pa.int64()))

    def blocks(first: int) -> Iterator[Ends]:
        try:
            yield from _read_ends(path, typed.batches(chosen), chosen, strings, first)
        except FileFormatError as error:
            way_out = "" if strings else "; --ids names takes ids that are words"
            raise FileFormatError(f"{error}{way_out}") from error

    return EdgeFile(
        path=path,
        has_strings=strings,
        blocks=blocks,
        columns=table.names,
        header=header,
    )


def _looks_like_header(rows: list[list[str]]) -> bool:
    """Names of columns: usual ones, or a word above numbers only."""
    if not rows:
        return False
    if _usual_ends(rows[0]):
        return True
    first, *others = [row[:2] for row in rows]
    columns = list(zip(*others, strict=False))
    return any(
        not is_integer(name) and all(is_integer(value) for value in column)
        for name, column in zip(first, columns, strict=False)
    )

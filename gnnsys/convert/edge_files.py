"""Files that hold edges: sources and targets in blocks, as numbers or by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.convert.arrays import ArraySource, NpzMember, npz_members
from gnnsys.convert.columns import EMPTY, choose_ends, has_edge_header, usual_ends, whole_floats
from gnnsys.convert.csc import EdgeReader, cut_edges
from gnnsys.convert.dialect import TableOptions, is_integer, is_number, is_whole, require_pyarrow
from gnnsys.convert.matrices import SparseMatrix, is_scipy, read_matrix_market, read_scipy
from gnnsys.convert.names import Names
from gnnsys.convert.parts import kind_of, single_file
from gnnsys.convert.spec import EdgeListSpec, split_member
from gnnsys.convert.tables import ParquetTable, open_array, open_matrix, rows_from
from gnnsys.convert.text import TextTable, describe_text, read_parts
from gnnsys.convert.values import as_plain, value_type
from gnnsys.errors import ArgumentError, FileFormatError
from gnnsys.system.files import map_npy, write_at

__all__ = ["EdgeFile", "open_edges", "read_columns", "read_matrix", "read_rows", "spool_array"]

_BLOCK_EDGES = 1 << 21
_EXACT = 1 << 53
"""Up to which float64 has all whole numbers."""
_KINDS = ("text", "npz", "npy", "parquet", "mtx")

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
    """Names of the table's columns, without an index."""

    ends: tuple[str, str] | None = None
    """Those of sources and targets."""

    num_nodes: int | None = None
    """Where the file tells it."""

    values: NDArray[Any] | None = None
    """Of a matrix: one for each edge."""

    sample: Sequence[Sequence[str]] = ()
    """The first edges of text."""

    about: Mapping[str, Any] = field(default_factory=dict)
    """How the file was understood."""

    options: TableOptions | None = None
    """What the user says of text."""

    header: bool = False
    """Whether they stand in its first row of text."""

    def first(self, count: int) -> list[list[Any]]:
        """The first edges, as they stand in the file."""
        if self.sample:
            return [list(edge) for edge in self.sample[:count]]
        ends = next(self.blocks(0), None) or ()
        return [list(edge) for edge in zip(*(end[:count].tolist() for end in ends), strict=True)]

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

    def attribute(self, part: str, scratch: Path, times: bool = False) -> NDArray[Any]:
        """Rows of an edge attribute: a column of this table, or a file."""
        if self.values is not None and part == "values":
            return self.values
        if part in self.columns:
            rows = open_matrix(
                self.path, self.header, [part], times=times, options=self.options,
                parquet=self.about["format"] == "Parquet",
            )  # fmt: skip
            return spool_array(rows, scratch)
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
    kind = kind_of(place) if spec.format == "auto" else spec.format
    if kind == "npz":
        return _open_npz(single_file(place), member)
    if kind == "npy":
        return _open_npy(single_file(path))
    if kind == "parquet":
        return _open_parquet(path, spec)
    if kind in ("text", "mtx"):
        return _open_text(path, spec, kind)
    raise ArgumentError(
        f"{path}: unknown kind {path.suffix!r}; --format says which: {', '.join(_KINDS)}"
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
    if is_scipy(names) and not member:
        return _open_matrix(read_scipy(path), path)
    found = usual_ends(names)
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


def _open_parquet(path: Path, spec: EdgeListSpec) -> EdgeFile:
    pa = require_pyarrow(str(path))
    table = ParquetTable(path)
    chosen = choose_ends(path, table.names, spec.columns)
    kinds = [table.schema.field(name).type for name in chosen]
    for name, kind in zip(chosen, kinds, strict=True):
        if not (_is_id(pa, kind) or _is_text(pa, kind)):
            raise FileFormatError(f"{path}: column {name} holds {kind}, expected ids or names")
    strings = any(_is_text(pa, kind) for kind in kinds)
    return EdgeFile(
        path=path,
        has_strings=strings,
        blocks=lambda first: _read_ends(
            path, table.batches(chosen, _BLOCK_EDGES), chosen, strings, first
        ),
        columns=table.names,
        ends=chosen,
        header=True,
        about={"format": "Parquet", **({"parts": table.parts} if table.parts > 1 else {})},
    )


def _is_id(pa: Any, kind: Any) -> bool:
    """Whether a column may hold numbers of nodes; pandas makes floats of them."""
    kind = value_type(pa, kind)
    types = pa.types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind))


def _is_text(pa: Any, kind: Any) -> bool:
    return str(value_type(pa, kind)) in ("string", "large_string", "string_view")


def _read_ends(
    path: Path, batches: Iterable[Any], columns: tuple[str, str], strings: bool, first: int
) -> Iterator[Ends]:
    pa = require_pyarrow(str(path))
    done = first
    for batch in rows_from(batches, first):
        ends = [batch.column(name) for name in columns]
        for place, what in enumerate(("source", "target")):
            plain = as_plain(path, columns[place], ends[place])
            end = _as_ids(pa, path, plain, what, done)
            if strings:
                end = pa.compute.utf8_trim_whitespace(end.cast(pa.string()))
            empty = pa.compute.index(end.is_null(), True).as_py()
            if empty < 0 and strings:
                empty = pa.compute.index(end, "").as_py()
            if empty >= 0:
                raise FileFormatError(f"{path}: edge {done + empty} has no {what}; give it one")
            ends[place] = end
        done += batch.num_rows
        yield (ends[0], ends[1]) if strings else (ends[0].to_numpy(), ends[1].to_numpy())


def _as_ids(pa: Any, path: Path, end: Any, what: str, done: int) -> Any:
    """Whole numbers instead of floats: 7.0 and 7 are one node."""
    if not pa.types.is_floating(end.type):
        return end
    values = end.to_numpy(zero_copy_only=False).astype(np.float64)
    wrong = ~((values == np.floor(values)) & (np.abs(values) < _EXACT)) & ~np.isnan(values)
    if wrong.any():
        place = int(np.argmax(wrong))
        raise FileFormatError(
            f"{path}: edge {done + place} has the {what} {values[place]}, expected a whole number "
            "below 2^53, or names; --ids names takes ids that are words"
        )
    return pa.array(np.nan_to_num(values).astype(np.int64), mask=np.isnan(values))


def _open_text(path: Path, spec: EdgeListSpec, kind: str) -> EdgeFile:
    pa = require_pyarrow(str(path))
    options = spec.table_options()
    parts = read_parts(path, options)
    file, dialect = parts[0]
    if (dialect.banner or kind == "mtx") and len(parts) == 1:
        return _open_matrix(read_matrix_market(file, dialect), file)
    table = TextTable(path, options=options, decide=has_edge_header, parts=parts)
    if not dialect.rows:
        raise FileFormatError(f"{path}: empty, expected rows of sources and targets")
    rows = table.first_rows
    chosen = choose_ends(path, table.names, spec.columns, named=table.header, rows=rows)
    places = [table.names.index(name) for name in chosen]
    floats = [whole_floats(table.first_values(name)) for name in chosen]
    if spec.ids != "names":
        _check_ids(path, chosen, places, rows)
    strings = spec.ids == "names" or not all(
        floats[which] or all(len(row) > place and is_integer(row[place]) for row in rows[:1])
        for which, place in enumerate(places)
    )
    plain = pa.string() if strings else pa.int64()
    typed = table.typed(
        {name: pa.float64() if floats[which] else plain for which, name in enumerate(chosen)}
    )

    def blocks(first: int) -> Iterator[Ends]:
        try:
            yield from _read_ends(path, typed.batches(chosen), chosen, strings, first)
        except FileFormatError as error:
            way_out = "" if strings else "; --ids names takes ids that are words"
            told = str(error)
            raise FileFormatError(told if "--ids" in told else told + way_out) from error

    return EdgeFile(
        path=path,
        has_strings=strings,
        blocks=blocks,
        columns=table.names,
        ends=chosen,
        options=options,
        header=table.header,
        sample=[[row[place] for place in places] for row in rows[:3] if len(row) > max(places)],
        about=describe_text(table),
    )


def _check_ids(
    path: Path, columns: tuple[str, str], places: Sequence[int], rows: Sequence[Sequence[str]]
) -> None:
    """Refuses a first id that is a number with a fraction: the columns are perhaps others."""
    for name, place in zip(columns, places, strict=True):
        values = [row[place] for row in rows[:1] if place < len(row) and row[place] not in EMPTY]
        if all(map(is_number, values)) and not all(map(is_whole, values)):
            raise FileFormatError(
                f"{path}: column {name} holds numbers with fractions, expected ids; --columns "
                "SOURCE TARGET says where they are, --ids names takes these"
            )


def _open_matrix(matrix: SparseMatrix, path: Path) -> EdgeFile:
    return EdgeFile(
        path=path,
        has_strings=False,
        blocks=matrix.blocks,
        num_nodes=matrix.num_nodes,
        values=matrix.values,
        about={"format": matrix.about},
    )

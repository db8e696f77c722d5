"""Dataset folders with links of an edge type held out: to validate on and to test on.

No message passes along them in what is made, nor along their reverses. Owns what becomes of each
table; which edges are held out is decided by ``link_parts``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.convert.common import Conversion
from gnnsys.convert.graphbolt_files import Edges
from gnnsys.convert.link_parts import (
    EdgeBlocks,
    ScratchRows,
    choose_parts,
    find_newest,
    mark_reverses,
)
from gnnsys.convert.spec import ConvertOptions, HoldOut
from gnnsys.dataset.format import HELD_OUT, LINK_PARTS, EdgeType, Table, link_table
from gnnsys.dataset.tables import DatasetTables
from gnnsys.dataset.writer import RowReader, cut_rows
from gnnsys.errors import ArgumentError

__all__ = ["convert_held_out"]

_RowsOf = Callable[[int, int], NDArray[Any]]

_BLOCK_EDGES = 1 << 20
_BLOCK_BYTES = 8 << 20
_PART = {name: number + 1 for number, name in enumerate(LINK_PARTS)}


def convert_held_out(
    path: Path,
    options: ConvertOptions,
    links: HoldOut,
    *,
    name: str,
    files: Iterable[Path],
    prepare: Callable[[Path], Path],
    called: str | None = None,
    **more: Any,
) -> Path:
    """Makes a dataset folder of another one, without links that are held out and their reverses.

    A pair of nodes is held out with all of its parallel edges and, where both ends are of one type,
    with the edges that lead back, so that no link is both in the graph and held out. The links are
    kept beside the edges, with their times (``gnnsys.dataset.links``); features and weights of
    their edges are left out with them. What only ``convert --to graphbolt`` reads is left out.

    Args:
        path: of the folder to make.
        options: of the conversion; its memory is for pairs that are looked up.
        links: which ones.
        name: of the dataset.
        files: that the other folder is made of; as for ``Conversion``.
        prepare: given a path to make it at, returns the other folder.
        called: what messages call that; None for its path.
        more: other options that change it.

    Raises:
        ArgumentError: no such edge type, or one of several has to be named; shares of which one is
            no edge; no times to go by; nothing left to train with; links of the type that are held
            out already; reverses that cannot be told or do not lead back.
        GnnsysError: as ``prepare`` and the writer raise.

    >>> import tempfile
    >>> from gnnsys.generate import generate_community
    >>> place = Path(tempfile.mkdtemp())
    >>> old = generate_community(place / "old", nodes=50, classes=2, degree=4)
    >>> new = convert_held_out(
    ...     place / "new", ConvertOptions(), HoldOut(shares=(0.1, 0.2)), name="new",
    ...     files=[old / "graph.json"], prepare=lambda path: old,
    ... )
    >>> about = DatasetTables(new).manifest.source[HELD_OUT][0]
    >>> about["train"] + about["val"] + about["test"]
    200
    """
    more |= {HELD_OUT: repr(links)}
    with Conversion(path, options, name=name, kind="held out", files=files, **more) as writer:
        found = DatasetTables(prepare(writer.scratch / "source"))
        return _HoldingOut(writer, found, links, called or str(found.path)).write()


class _HoldingOut:
    """Writes one folder from another."""

    def __init__(
        self, writer: Conversion, found: DatasetTables, links: HoldOut, called: str
    ) -> None:
        self._writer, self._found, self._links, self._called = writer, found, links, called
        self._kind = _find_type(found, links.edge_type, called)
        self._reverses = _find_reverses(found, self._kind, links.reverses, called)
        _refuse_again(found, self._kind, called)

    def write(self) -> Path:
        writer, found = self._writer, self._found
        writer.heterogeneous, writer.task = found.heterogeneous, found.task
        parts, counts = self._choose()
        marks = {self._kind: parts}
        about: dict[str, Any] = {
            "edge_type": list(self._kind), "by": self._links.by, "seed": self._links.seed,
            "shares": list(self._links.shares), **counts, "reverses": [],
        }  # fmt: skip
        for edge_type in self._reverses:
            marks[edge_type], edges = self._mark(edge_type, parts)
            about["reverses"].append({"edge_type": list(edge_type), "edges": edges})
        kept = {k: v for k, v in found.manifest.source.items() if k not in ("graphbolt", "nan")}
        writer.source = kept | {HELD_OUT: [*kept.get(HELD_OUT, []), about]}
        for node_type in found.node_types:
            self._write_nodes(node_type)
        for edge_type in found.edge_types:
            self._write_edges(edge_type, marks.get(edge_type))
        for part in LINK_PARTS:
            self._write_links(part, counts[part], parts)
        return writer.commit()

    # Which ----------------------------------------------------------------------------------------

    def _choose(self) -> tuple[ScratchRows, dict[str, int]]:
        """The part of each edge, and how many are of each; since before a kill, where they are."""
        writer, edges = self._writer, self._blocks(self._kind, "hold out: edges")
        parts = ScratchRows(writer.scratch / "parts", np.uint8)
        noted: list[int] | None = writer.recall("parts", None)
        if noted is None:
            wanted = [round(share * edges.count) for share in self._links.shares]
            self._check_counts(edges.count, wanted)
            newest = self._order_by_time(edges) if self._links.by == "time" else None
            noted = choose_parts(edges, wanted, self._links.seed, newest, parts)
            if newest:
                newest.path.unlink()
            writer.note("parts", noted)
        counts = dict(zip(("train", *LINK_PARTS), noted, strict=True))
        self._check_counts(edges.count, noted[1:])
        return parts, counts

    def _check_counts(self, edges: int, counts: list[int]) -> None:
        kind, shares = ",".join(self._kind), ",".join(map(str, self._links.shares))
        for part, count in zip(LINK_PARTS, counts, strict=True):
            if count == 0:
                raise ArgumentError(
                    f"--hold-out-shares {shares}: leaves no link for {part} of the {edges} edges "
                    f"of {kind}; give larger shares"
                )
        if sum(counts) >= edges:
            raise ArgumentError(
                f"--hold-out-shares {shares}: leaves nothing to train with of the {edges} edges of "
                f"{kind}, of which a pair of nodes is held out as a whole; give smaller shares"
            )

    def _order_by_time(self, edges: EdgeBlocks) -> ScratchRows:
        found, kind = self._found, self._kind
        if not found.has("edge_time", kind):
            raise ArgumentError(
                f"--hold-out-by time: the edges of {','.join(kind)} in {self._called} have no "
                "times (edge_time); give random, or a source whose edges have some (of an edge "
                "list: --edge-time)"
            )
        times = found.edge_table("edge_time", kind)
        dtype = found.manifest.edges[kind].tables["edge_time"].encoding.dtype
        if times.ndim != 1 or "int" not in dtype:
            raise ArgumentError(
                f"--hold-out-by time: the times of {','.join(kind)} in {self._called} are "
                f"{dtype} {times.shape}, expected one whole number for each edge; give random, or "
                "scale and round the times, for instance to milliseconds"
            )
        newest = ScratchRows(self._writer.scratch / "newest", np.uint64)
        find_newest(edges, times, newest, self._writer.options.memory)
        return newest

    def _mark(self, edge_type: EdgeType, parts: ScratchRows) -> tuple[ScratchRows, int]:
        """Which edges of a type are reverses of links held out, and how many; likewise."""
        writer, key = self._writer, f"reverses{self._reverses.index(edge_type)}"
        marks = ScratchRows(writer.scratch / key, np.uint8)
        noted: int | None = writer.recall(key, None)
        if noted is None:
            edges = self._blocks(edge_type, "hold out: reverses")
            held = self._blocks(self._kind)
            noted = mark_reverses(held, parts, edges, writer.options.memory, marks)
            writer.note(key, noted)
        return marks, noted

    def _blocks(self, edge_type: EdgeType, what: str | None = None) -> EdgeBlocks:
        if what is None:
            return EdgeBlocks(self._found, edge_type)
        report = self._writer.report
        return EdgeBlocks(self._found, edge_type, lambda done, total: report(what, done, total))

    # Tables ---------------------------------------------------------------------------------------

    def _write_nodes(self, node_type: str) -> None:
        writer, found = self._writer, self._found
        writer.add_nodes(found.num_nodes(node_type), node_type)
        for name, table in found.manifest.nodes[node_type].tables.items():
            if not name.startswith("gb_"):
                rows = found.node_table(name, node_type)
                writer.write_nodes(name, cut_rows(rows), table.shape, table.encoding, node_type)

    def _write_edges(self, edge_type: EdgeType, marks: ScratchRows | None) -> None:
        """The tables of an edge type, without the edges that have a mark."""
        writer, found = self._writer, self._found
        tables = found.manifest.edges[edge_type].tables
        if marks is None:
            writer.add_edges(found.num_edges(edge_type), edge_type)
        else:
            indptr = _indptr_of_kept(found.indptr(edge_type), marks)
            edges = int(indptr[-1])
            writer.add_edges(edges, edge_type)
            writer.write_edges("indptr", cut_rows(indptr), indptr.shape, "int64", edge_type)
        for name, table in tables.items():
            rows, shape = found.edge_table(name, edge_type), table.shape
            read = cut_rows(rows)
            if marks is not None and name == "indptr":
                continue
            if marks is not None and (name == "indices" or name.startswith("edge_")):
                read = _chosen_rows(_range_of(rows), table, marks, 0)
                shape = (edges, *shape[1:])
            writer.write_edges(name, read, shape, table.encoding, edge_type)

    def _write_links(self, part: str, count: int, parts: ScratchRows) -> None:
        writer, found, kind = self._writer, self._found, self._kind
        edges, tables = Edges(found, kind), found.manifest.edges[kind].tables
        of = {"source": edges.sources, "target": edges.targets}
        for what, rows_of in of.items():
            read = _chosen_rows(rows_of, tables["indices"], parts, _PART[part])
            writer.write_edges(link_table(part, what), read, (count,), "int64", kind)
        if "edge_time" in tables:
            times, table = found.edge_table("edge_time", kind), tables["edge_time"]
            read = _chosen_rows(_range_of(times), table, parts, _PART[part])
            shape = (count, *table.shape[1:])
            writer.write_edges(link_table(part, "time"), read, shape, table.encoding, kind)


def _find_type(found: DatasetTables, edge_type: EdgeType | None, called: str) -> EdgeType:
    if edge_type is None and len(found.edge_types) == 1:
        return found.edge_types[0]
    if edge_type not in found.edge_types:
        known = ", ".join(",".join(each) for each in found.edge_types)
        given = "" if edge_type is None else f" {','.join(edge_type)}"
        raise ArgumentError(f"--hold-out{given}: {called} has {known}; name one of them")
    return edge_type


def _find_reverses(
    found: DatasetTables, kind: EdgeType, given: tuple[EdgeType, ...] | None, called: str
) -> list[EdgeType]:
    """The other edge types that hold the reverses of a type's edges."""
    back = [each for each in found.edge_types if (each[0], each[2]) == (kind[2], kind[0])]
    known = ", ".join(",".join(each) for each in back) or "no edge type"
    if given is not None:
        for each in given:
            if each not in back:
                raise ArgumentError(
                    f"--hold-out-reverses {','.join(each)}: does not lead from {kind[2]!r} to "
                    f"{kind[0]!r} in {called}, where {known} does"
                )
        return [each for each in dict.fromkeys(given) if each != kind]
    if back in ([], [kind]):
        return []
    from gnnsys.loaders.reverse_types import types_back  # which brings torch

    inferred = types_back(kind, found.edge_types)
    others = [each for each in inferred if each != kind]
    if others and len(inferred) > 1:
        raise ArgumentError(
            f"--hold-out {','.join(kind)}: which edge type of {called} has the reverses cannot "
            f"be told, {known} lead back; name those that do by --hold-out-reverses, or give it "
            "without any if none does"
        )
    return others


def _refuse_again(found: DatasetTables, kind: EdgeType, called: str) -> None:
    """Raises ArgumentError where links of the type, or their reverses, are held out already."""
    for about in found.manifest.source.get(HELD_OUT, []):
        held = about["edge_type"]
        reverses = [each["edge_type"] for each in about["reverses"]]
        if list(kind) in (held, *reverses):
            raise ArgumentError(
                f"--hold-out {','.join(kind)}: links of {','.join(held)} are held out of "
                f"{called} already; convert what it was made of"
            )


def _indptr_of_kept(indptr: NDArray[np.int64], marks: ScratchRows) -> NDArray[np.int64]:
    """Where the edges of each target begin, of those without a mark."""
    kept = np.zeros_like(indptr)
    edges, total = int(indptr[-1]), 0
    for begin in range(0, edges, _BLOCK_EDGES):
        end = min(begin + _BLOCK_EDGES, edges)
        before = np.cumsum(np.append(total, marks.read(begin, end) == 0))
        first, last = np.searchsorted(indptr, (begin, end)).tolist()
        some = slice(first, last)
        kept[some] = before[indptr[some] - begin]
        total = int(before[-1])
    kept[np.searchsorted(indptr, edges) :] = total
    return kept


def _range_of(rows: NDArray[Any]) -> _RowsOf:
    return lambda begin, end: rows[begin:end]


def _chosen_rows(rows_of: _RowsOf, table: Table, marks: ScratchRows, mark: int) -> RowReader:
    """Reads the rows of a table of edges, [begin, end) of which ``rows_of`` gives, with a mark."""
    step = max(1, min(_BLOCK_EDGES, _BLOCK_BYTES // max(1, table.encoding.row_stride)))
    edges = table.shape[0]

    def read(first: int) -> Iterator[NDArray[Any]]:
        for begin in range(0, edges, step):
            end = min(begin + step, edges)
            places = np.flatnonzero(marks.read(begin, end) == mark)
            if first >= len(places):
                first -= len(places)
                continue
            yield rows_of(begin, end)[places[first:]]
            first = 0

    return read

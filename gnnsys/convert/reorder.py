"""Dataset folders with their nodes in another order: every table follows, ids are kept.

Owns what a node's new number means to each table. Orders come from ``row_order``, rows are moved by
``permute`` and edges sorted by ``csc``, all of it resumable and in bounded memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.cache.importance import out_degree
from gnnsys.choices import RowOrder
from gnnsys.convert.common import Conversion
from gnnsys.convert.csc import EdgeSort, sorted_numbers, write_csc
from gnnsys.convert.graphbolt_files import Edges
from gnnsys.convert.permute import Permutation, permuted_rows
from gnnsys.convert.row_order import community_order, degree_order
from gnnsys.convert.spec import ConvertOptions
from gnnsys.dataset.format import (
    LINK_PARTS,
    EdgeType,
    edge_folder,
    is_seed_table,
    link_table,
    node_folder,
)
from gnnsys.dataset.tables import DatasetTables, check_nodes
from gnnsys.dataset.writer import RowReader, cut_rows
from gnnsys.errors import FileFormatError, RowIndexError, UnsupportedError
from gnnsys.system.files import map_npy, replace_npy

__all__ = ["convert_in_order"]

_BLOCK_EDGES = 1 << 20
_BLOCK_NODES = 1 << 16
_SPLITS = ("train", "val", "test")


def convert_in_order(
    path: Path,
    options: ConvertOptions,
    order: RowOrder,
    *,
    name: str,
    files: Iterable[Path],
    prepare: Callable[[Path], Path],
    **more: Any,
) -> Path:
    """Makes a dataset folder whose nodes are numbered so that rows needed together lie together.

    It is the graph of another folder: node i of it is node ``order[i]`` there. What the nodes are
    called there (``node_ids``) they are called here; where they have no names, their numbers there
    become the table node_id. The ids in train, val and test keep their order, so that the same
    seed draws batches of the same seeds. What only ``convert --to graphbolt`` reads is left out.

    Args:
        path: of the folder to make.
        options: of the conversion; memory and threads are for edges and rows here, too.
        order: degree, by how often a node stands in lists of neighbours; or community, see
            ``gnnsys.convert.row_order``.
        name: of the dataset.
        files: that the other folder is made of; as for ``Conversion``.
        prepare: given a path to make it at, returns the other folder.
        more: other options that change it.

    Raises:
        UnsupportedError: communities of a heterogeneous graph; a table that is neither of each node
            nor of ids.
        FileFormatError: an edge from a node outside the graph.
        GnnsysError: as ``prepare`` and the writer raise.

    >>> import tempfile
    >>> from gnnsys.generate import generate_community
    >>> place = Path(tempfile.mkdtemp())
    >>> old = generate_community(place / "old", nodes=40, classes=2, features=3)
    >>> new = convert_in_order(
    ...     place / "new", ConvertOptions(), "degree", name="new", files=[old / "graph.json"],
    ...     prepare=lambda path: old,
    ... )
    >>> old_id = np.load(new / "node_id.npy")
    >>> bool((np.load(new / "features.npy") == np.load(old / "features.npy")[old_id]).all())
    True
    """
    more |= {"order": order}
    with Conversion(path, options, name=name, kind="ordered", files=files, **more) as writer:
        found = DatasetTables(prepare(writer.scratch / "source"))
        return _Reordering(writer, found, order).write()


@dataclass(frozen=True, slots=True)
class _Nodes:
    """The new numbers of the nodes of a type."""

    order: NDArray[np.int64]
    """(nodes,) for each new number the old one."""

    places: NDArray[np.int64]
    """(nodes,) for each old number the new one."""


class _Reordering:
    """Writes one folder from another."""

    def __init__(self, writer: Conversion, found: DatasetTables, order: RowOrder) -> None:
        self._writer, self._found, self._order = writer, found, order
        self._nodes: dict[str, _Nodes] = {}

    def write(self) -> Path:
        writer, found = self._writer, self._found
        if found.heterogeneous and self._order == "community":
            raise UnsupportedError(
                f"{found.path}: heterogeneous; --order community is for graphs of one type, so "
                "choose --order degree"
            )
        writer.heterogeneous, writer.task = found.heterogeneous, found.task
        kept = {key: value for key, value in found.manifest.source.items() if key != "graphbolt"}
        writer.source = kept | {"order": self._order}
        for number, node_type in enumerate(found.node_types):
            writer.add_nodes(found.num_nodes(node_type), node_type)
            self._nodes[node_type] = self._number(number, node_type)
            self._write_nodes(node_type)
        for edge_type in found.edge_types:
            self._write_edges(edge_type)
        return writer.commit()

    # Numbers --------------------------------------------------------------------------------------

    def _number(self, number: int, node_type: str) -> _Nodes:
        """The order, from the scratch folder where it is there since before a kill."""
        files = [self._writer.scratch / f"{number}.{what}.npy" for what in ("order", "places")]
        if not files[1].exists():
            order = self._find_order(node_type)
            replace_npy(files[0], order)
            places = np.empty_like(order)
            places[order] = np.arange(len(order))
            replace_npy(files[1], places)
            del order, places
        return _Nodes(*map(map_npy, files))

    def _find_order(self, node_type: str) -> NDArray[np.int64]:
        found, nodes = self._found, self._found.num_nodes(node_type)
        degree = np.zeros(nodes, np.int64)
        for edge_type in found.edge_types:
            if edge_type[0] != node_type:
                continue
            indices = found.edge_table("indices", edge_type)
            try:
                degree += out_degree(indices, nodes, self._tell("degree: edges"))
            except RowIndexError as error:
                place = edge_folder(found.heterogeneous, edge_type) + "indices"
                raise FileFormatError(
                    f"{found.path}: {place}: {error}; convert the source again"
                ) from error
        if self._order == "degree":
            return degree_order(degree)
        indptr, indices = found.indptr(), found.edge_table("indices")
        return community_order(indptr, indices, degree, self._tell("communities: passes"))

    def _tell(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self._writer.report(what, done, total)

    # Nodes ----------------------------------------------------------------------------------------

    def _write_nodes(self, node_type: str) -> None:
        writer, found, nodes = self._writer, self._found, self._nodes[node_type]
        tables = found.manifest.nodes[node_type].tables
        to = Permutation(order=nodes.order, group_of=lambda first, last: nodes.places[first:last])
        for name, table in tables.items():
            if name.startswith(("gb_", "node_id_")):
                continue
            rows = found.node_table(name, node_type)
            place = node_folder(found.heterogeneous, node_type) + name
            if is_seed_table(name):
                raise UnsupportedError(
                    f"{found.path}: the table {place} has seeds of a task, whose nodes stand in "
                    "order of time, which temporal sampling needs; leave out --order"
                )
            if name in _SPLITS:
                check_nodes(rows, len(nodes.order), f"{found.path}: {place}")
                read = cut_rows(nodes.places[rows])
            elif len(rows) == len(nodes.order):
                read = permuted_rows(writer, place, rows, to, writer.options.memory)
            else:
                raise UnsupportedError(
                    f"{found.path}: the table {place} has {len(rows)} rows, expected one for each "
                    f"of the {len(nodes.order)} nodes: what its rows are of is not known"
                )
            writer.write_nodes(name, read, table.shape, table.encoding, node_type)
        if "node_id_ends" in tables:
            self._write_words(node_type)
        elif "node_id" not in tables:
            shape = nodes.order.shape
            writer.write_nodes("node_id", cut_rows(nodes.order), shape, "int64", node_type)

    def _write_words(self, node_type: str) -> None:
        """Names of any length: see ``gnnsys.dataset.node_ids``."""
        writer, order = self._writer, self._nodes[node_type].order
        old_ends = self._found.node_table("node_id_ends", node_type)
        text = self._found.node_table("node_id_text", node_type)
        starts = np.concatenate([[0], old_ends[:-1]])[order]
        lengths = old_ends[order] - starts
        ends = np.cumsum(lengths)

        def read(first: int) -> Iterator[NDArray[np.uint8]]:
            node = int(np.searchsorted(ends, first, side="right"))
            skipped = first - (int(ends[node - 1]) if node else 0)
            for begin in range(node, len(order), _BLOCK_NODES):
                some = slice(begin, begin + _BLOCK_NODES)
                # Each byte's place: that of its word, and how far it is in the word.
                before = ends[some] - lengths[some] - (ends[begin] - lengths[begin])
                at = np.repeat(starts[some] - before, lengths[some])
                yield text[at + np.arange(len(at))][skipped:]
                skipped = 0

        writer.write_nodes("node_id_ends", cut_rows(ends), ends.shape, "int64", node_type)
        writer.write_nodes("node_id_text", read, text.shape, "uint8", node_type)

    # Edges ----------------------------------------------------------------------------------------

    def _write_edges(self, edge_type: EdgeType) -> None:
        writer, found = self._writer, self._found
        tables = found.manifest.edges[edge_type].tables
        attributes = [name for name in tables if name.startswith("edge_")]
        sources, targets = (self._nodes[end].places for end in (edge_type[0], edge_type[2]))
        edges = Edges(found, edge_type)
        count = found.num_edges(edge_type)

        def read(first: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
            for start in range(first, count, _BLOCK_EDGES):
                some = start, min(start + _BLOCK_EDGES, count)
                yield sources[edges.sources(*some)], targets[edges.targets(*some)]

        job = EdgeSort(
            writer=writer,
            label=str(found.path),
            edge_type=edge_type,
            keep_order=bool(attributes),
            numbers_apart=True,
            memory=writer.options.memory,
            threads=writer.options.threads,
        )
        write_csc(job, read)
        self._write_links(edge_type)
        if not attributes:
            return
        to = Permutation(
            order=sorted_numbers(job),
            group_of=lambda first, last: targets[edges.targets(first, last)],
            starts=writer.open_edges("indptr", edge_type),
        )
        for name in attributes:
            place = edge_folder(found.heterogeneous, edge_type) + name
            rows = found.edge_table(name, edge_type)
            reader = permuted_rows(writer, place, rows, to, writer.options.memory)
            table = tables[name]
            writer.write_edges(name, reader, table.shape, table.encoding, edge_type)

    def _write_links(self, edge_type: EdgeType) -> None:
        """Those that are held out, in their order."""
        writer, found = self._writer, self._found
        tables = found.manifest.edges[edge_type].tables
        ends = {"source": edge_type[0], "target": edge_type[2]}
        for part in LINK_PARTS:
            for what in ("source", "target", "time"):
                name = link_table(part, what)
                if name not in tables:
                    continue
                rows, table = found.edge_table(name, edge_type), tables[name]
                read = cut_rows(rows)
                if what in ends:
                    places = self._nodes[ends[what]].places
                    check_nodes(rows, len(places), f"{found.path}: {name} of {edge_type}")
                    read = _numbered_anew(read, places)
                writer.write_edges(name, read, table.shape, table.encoding, edge_type)


def _numbered_anew(read: RowReader, places: NDArray[np.int64]) -> RowReader:
    return lambda first: (places[block] for block in read(first))

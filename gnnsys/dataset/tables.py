"""The tables of a dataset folder as numpy maps them.

Commands that convert and describe need no more, and start without torch.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.dataset.format import (
    CHECKSUM_CHUNK,
    EDGE_TYPE,
    NODE_TYPE,
    EdgeSet,
    EdgeType,
    Manifest,
    NodeSet,
    Shard,
    Table,
    Task,
    read_manifest,
)
from gnnsys.dataset.node_ids import NodeIds
from gnnsys.errors import ArgumentError, FileFormatError, MissingFileError, UnsupportedError
from gnnsys.system.extension import core
from gnnsys.system.files import map_npy
from gnnsys.system.progress import Progress

__all__ = ["DatasetTables", "check_nodes"]


def check_nodes(ids: NDArray[Any], nodes: int, label: str, first: int = 0) -> None:
    """Raises FileFormatError where an id, of ``label`` from ``first`` on, is outside the nodes."""
    if len(ids) and not 0 <= ids.min() <= ids.max() < nodes:
        place = int(np.argmax((ids < 0) | (ids >= nodes)))
        raise FileFormatError(
            f"{label}: id {ids[place]} at position {first + place} is outside the nodes "
            f"[0, {nodes})"
        )


class DatasetTables:
    """A dataset folder whose tables are arrays; ``Dataset`` makes tensors and graphs of them.

    >>> import tempfile
    >>> from gnnsys.generate import generate_community
    >>> folder = generate_community(tempfile.mkdtemp() + "/g", nodes=50, classes=2, features=3)
    >>> DatasetTables(folder).node_table("features").shape
    (50, 3)
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._compared: set[str] = set()
        self.manifest: Manifest = read_manifest(path)
        for table in self._all_tables().values():
            self._check_files(table)

    @property
    def name(self) -> str:
        """Of the dataset."""
        return self.manifest.name

    @property
    def heterogeneous(self) -> bool:
        """Whether there are several node or edge types."""
        return self.manifest.heterogeneous

    @property
    def node_types(self) -> list[str]:
        """One of them, ``"node"``, where the graph is homogeneous."""
        return list(self.manifest.nodes)

    @property
    def edge_types(self) -> list[EdgeType]:
        """Source node type, relation and target node type of each."""
        return list(self.manifest.edges)

    @property
    def task(self) -> Task | None:
        """What is to be learnt, where the folder says it."""
        return self.manifest.task

    def num_nodes(self, node_type: str = NODE_TYPE) -> int:
        """Nodes of a type."""
        return self._owner(node_type).count

    def num_edges(self, edge_type: EdgeType = EDGE_TYPE) -> int:
        """Edges of a type."""
        return self._owner(edge_type).count

    def node_table(self, name: str, node_type: str = NODE_TYPE) -> NDArray[Any]:
        """A table of a node type, mapped read-only; bfloat16 as uint16, quantised rows as
        (rows, row_stride) uint8.

        Raises:
            MissingFileError: there is no such table.
            ArgumentError: there is no such node type.
        """
        return self._map(self._find(name, node_type))

    def edge_table(self, name: str, edge_type: EdgeType = EDGE_TYPE) -> NDArray[Any]:
        """A table of an edge type, likewise; row e belongs to position e of the CSC."""
        return self._map(self._find(name, edge_type))

    def has(self, name: str, of: str | EdgeType = NODE_TYPE) -> bool:
        """Whether a node or edge type has a table of that name."""
        return name in self._owner(of).tables

    def node_ids(self, node_type: str = NODE_TYPE) -> NodeIds | None:
        """What the nodes are called in the source; None where it numbers them as the folder does.

        Raises:
            FileFormatError: tables that do not fit each other.
        """
        nothing = np.empty(0, np.int64), np.empty(0, np.uint8)
        if self.has("node_id", node_type):
            table = self._find("node_id", node_type)
            return NodeIds(self._map(table), *nothing, self._shard_path(table))
        if not self.has("node_id_ends", node_type):
            return None
        ends = self._find("node_id_ends", node_type)
        text = self.node_table("node_id_text", node_type)
        return NodeIds(None, self._map(ends), text, self._shard_path(ends))

    def indptr(self, edge_type: EdgeType = EDGE_TYPE) -> NDArray[np.int64]:
        """(nodes + 1,) where the edges of each target begin, mapped read-only.

        Raises:
            FileFormatError: it does not ascend from 0 to the number of edges, or is damaged.
        """
        found = self.edge_table("indptr", edge_type)
        edges = self.num_edges(edge_type)
        fault = core.find_indptr_fault(found, edges)
        if fault >= 0:
            file = self._shard_path(self._find("indptr", edge_type))
            raise FileFormatError(
                f"{file}: entry {fault} is {found[fault]}; expected entries that ascend from 0 to "
                f"the {edges} edges; convert the source again"
            )
        self._compare("indptr", edge_type)
        return found

    def split_size(self, name: str, node_type: str | None = None) -> int:
        """How many nodes are named "train", "val" or "test"; nothing is read."""
        node_type = node_type or (self.task.node_type if self.task else NODE_TYPE)
        return self._find(name, node_type).shape[0] if self.has(name, node_type) else 0

    def split_ids(self, name: str, node_type: str | None = None) -> NDArray[np.int64]:
        """(n,) ids of the nodes of "train", "val" or "test"; empty where there are none.

        Raises:
            FileFormatError: an id outside the nodes, or a damaged file.
        """
        node_type = node_type or (self.task.node_type if self.task else NODE_TYPE)
        if not self.has(name, node_type):
            return np.empty(0, np.int64)
        file = self._shard_path(self._find(name, node_type))
        check_nodes(self.node_table(name, node_type), self.num_nodes(node_type), str(file))
        return self._whole(name, node_type)

    def verify(self, progress: Progress = lambda what, done, total: None) -> None:
        """Reads every table and compares it with its checksums and ids with their bounds.

        Raises:
            FileFormatError: the first that does not fit, with the file and the place in it.
        """
        tables = self._all_tables()
        total = sum(table.data_bytes for table in tables.values())
        done = 0
        for table in tables.values():
            for nbytes in self._verify_table(table):
                done += nbytes
                progress("verify bytes", done, total)
        for edge_type in self.edge_types:
            self._verify_edges(edge_type)

    def _verify_table(self, table: Table) -> Iterator[int]:
        for shard in table.shards:
            path = self.path / shard.path
            with open(path, "rb") as file:
                file.seek(shard.bytes - shard.rows * table.encoding.row_stride)
                for number, wanted in enumerate(shard.crc32):
                    place, data = file.tell(), file.read(CHECKSUM_CHUNK)
                    found = f"{zlib.crc32(data):08x}"
                    if found != wanted:
                        raise FileFormatError(
                            f"{path}: checksum {number} (from byte {place}) is {found}, expected "
                            f"{wanted}: the file was changed or damaged; convert the source again"
                        )
                    yield len(data)

    def _verify_edges(self, edge_type: EdgeType) -> None:
        self.indptr(edge_type)
        indices, nodes = self.edge_table("indices", edge_type), self.num_nodes(edge_type[0])
        file = self._shard_path(self._find("indices", edge_type))
        step = CHECKSUM_CHUNK // indices.itemsize
        for start in range(0, len(indices), step):
            check_nodes(indices[start : start + step], nodes, str(file), start)

    # Tables and their files -----------------------------------------------------------------------

    def _all_tables(self) -> dict[str, Table]:
        owners: list[NodeSet | EdgeSet] = [
            *self.manifest.nodes.values(),
            *self.manifest.edges.values(),
        ]
        tables = [table for owner in owners for table in owner.tables.values()]
        return {shard.path: table for table in tables for shard in table.shards[:1]}

    def _owner(self, of: str | EdgeType) -> NodeSet | EdgeSet:
        found: NodeSet | EdgeSet | None
        if isinstance(of, str):
            found, known = self.manifest.nodes.get(of), str(self.node_types)
        else:
            found, known = self.manifest.edges.get(of), str(self.edge_types)
        if found is None:
            raise ArgumentError(f"{self.path}: no type {of!r}; it has {known}")
        return found

    def _find(self, name: str, of: str | EdgeType) -> Table:
        tables = self._owner(of).tables
        if name not in tables:
            raise MissingFileError(
                f"{self.path}: {of} has no table {name!r}; it has {', '.join(tables) or 'none'}"
            )
        return tables[name]

    def _shard_path(self, table: Table) -> Path:
        if len(table.shards) != 1:
            raise UnsupportedError(
                f"{self.path}: a table of {len(table.shards)} shards; this version reads one"
            )
        return self.path / table.shards[0].path

    def _map(self, table: Table) -> NDArray[Any]:
        return map_npy(self._shard_path(table))

    def _whole(self, name: str, node_type: str) -> NDArray[Any]:
        """A table of nodes that is compared with its checksums; what is written to it stays in this
        process."""
        self._compare(name, node_type)
        return map_npy(self._shard_path(self._find(name, node_type)), "c")

    def _compare(self, name: str, of: str | EdgeType) -> None:
        """Compares a table with its checksums, which is for those that are read whole anyway: once,
        for as long as the folder is open."""
        table = self._find(name, of)
        file = table.shards[0].path
        if file not in self._compared:
            for _ in self._verify_table(table):
                pass
            self._compared.add(file)

    def _check_files(self, table: Table) -> None:
        for shard in table.shards:
            path = self.path / shard.path
            if not path.is_file():
                raise MissingFileError(f"{path}: no such file, but graph.json names it")
            found = path.stat().st_size
            if found != shard.bytes:
                state = "truncated" if found < shard.bytes else "longer than it should be"
                raise FileFormatError(
                    f"{path}: {state}: {found} bytes, expected {shard.bytes} by graph.json; "
                    "convert the source again"
                )
            self._check_header(table, shard)

    def _check_header(self, table: Table, shard: Shard) -> None:
        path = self.path / shard.path
        array = map_npy(path)
        encoding = table.encoding
        wanted = encoding.file_shape((shard.rows, *table.shape[1:])), encoding.file_dtype
        if (array.shape, array.dtype) != wanted:
            raise FileFormatError(
                f"{path}: holds {array.dtype} {array.shape}, expected {wanted[1]} {wanted[0]} by "
                "graph.json"
            )

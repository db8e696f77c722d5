"""Opens dataset folders: every table stays where it is, mapped or read row by row."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Data, EdgeAttr, GraphStore
from torch_geometric.data.graph_store import EdgeLayout
from torch_geometric.utils import index_to_mask

from gnnsys.cache.arena import CacheArena
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
from gnnsys.dataset.importance import SCORE_TABLE
from gnnsys.dataset.node_ids import NodeIds
from gnnsys.errors import ArgumentError, FileFormatError, MissingFileError, UnsupportedError
from gnnsys.feature_store import FeatureStore
from gnnsys.loaders.topology import CSC
from gnnsys.memory.alloc import view_array
from gnnsys.system.files import map_npy
from gnnsys.system.progress import Progress
from gnnsys.unified_tensor import UnifiedTensor, unified

__all__ = ["Dataset", "check_nodes", "open_dataset"]


def check_nodes(ids: NDArray[Any], nodes: int, label: str, first: int = 0) -> None:
    """Raises FileFormatError where an id, of ``label`` from ``first`` on, is outside the nodes."""
    if len(ids) and not 0 <= ids.min() <= ids.max() < nodes:
        place = int(np.argmax((ids < 0) | (ids >= nodes)))
        raise FileFormatError(
            f"{label}: id {ids[place]} at position {first + place} is outside the nodes "
            f"[0, {nodes})"
        )


def open_dataset(path: str | os.PathLike[str]) -> Dataset:
    """Opens a folder that ``gnnsys convert`` or ``gnnsys generate`` made, without loading it.

    Args:
        path: of the folder.

    Raises:
        MissingFileError: the folder, ``graph.json`` or a table's file is not there.
        FileFormatError: ``graph.json`` or a file's header or size is not what it should be.

    >>> import tempfile
    >>> from gnnsys.generate import generate_community
    >>> folder = generate_community(tempfile.mkdtemp() + "/g", nodes=50, classes=2, features=3)
    >>> dataset = open_dataset(folder)
    >>> dataset.num_nodes(), dataset.features()[torch.tensor([3, 4])].shape
    (50, torch.Size([2, 3]))
    """
    return Dataset(Path(path))


class Dataset:
    """A dataset folder that is open; make one with ``gnnsys.open_dataset``.

    Tables are named as their files: features, labels, train, val, test, time for nodes; edge_time,
    edge_features, edge_weight, edge_id for edges, in the order of the CSC.

    >>> import tempfile
    >>> from gnnsys.generate import generate_community
    >>> folder = generate_community(tempfile.mkdtemp() + "/g", nodes=50, classes=2, degree=4)
    >>> dataset = Dataset(folder)
    >>> dataset.num_edges(), dataset.graph().num_nodes, dataset.split("train").shape
    (200, 50, torch.Size([25]))
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
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
        """A table of a node type, mapped read-only; bfloat16 as uint16.

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

    def graph(self, edge_type: EdgeType = EDGE_TYPE) -> CSC:
        """The edges of a type: indptr in memory, neighbours mapped.

        Raises:
            FileFormatError: an indptr that does not ascend to the number of edges, or is damaged.
        """
        indptr = torch.from_numpy(np.array(self.edge_table("indptr", edge_type)))
        try:
            graph = CSC(indptr, view_array(self.edge_table("indices", edge_type)))
        except ArgumentError as error:
            file = self._shard_path(self._find("indptr", edge_type))
            raise FileFormatError(f"{file}: {error}; convert the source again") from error
        self._compare("indptr", edge_type)
        return graph

    def edge_index(self, edge_type: EdgeType = EDGE_TYPE) -> Tensor:
        """(2, edges) int64 sources and targets, in memory, sorted by target.

        Raises:
            FileFormatError: an indptr that does not ascend, or a source outside the nodes.
        """
        self._verify_edges(edge_type)
        graph = self.graph(edge_type)
        return torch.stack([graph.indices.long(), graph.targets()])

    def features(
        self,
        node_type: str = NODE_TYPE,
        *,
        name: str = "features",
        dtype: torch.dtype | None = None,
        threads: int = 0,
        device: str | None = None,
        **options: Any,
    ) -> UnifiedTensor:
        """The features of a node type as a unified tensor over their file.

        Args:
            node_type: whose.
            name: of the table.
            dtype: that rows are delivered in; None for float32 where they are stored shorter.
            threads: that gather; 0 for all cores.
            device: where rows are consumed; None for "cuda" when there is one.
            **options: of ``gnnsys.unified``, such as ``cache="8GB"``.
        """
        table = self._find(name, node_type)
        stored = torch.bfloat16 if table.encoding.dtype == "bfloat16" else None
        if dtype is None and table.encoding.dtype in ("bfloat16", "float16"):
            dtype = torch.float32
        paths = [self.path / shard.path for shard in table.shards]
        return unified(
            paths, dtype=dtype, encoding=stored, threads=threads, device=device, **options
        )

    def split(self, name: str, node_type: str | None = None) -> Tensor:
        """(n,) int64 ids of the nodes of "train", "val" or "test"; empty where there are none.

        Raises:
            FileFormatError: an id outside the nodes, or a damaged file.
        """
        node_type = node_type or (self.task.node_type if self.task else NODE_TYPE)
        if not self.has(name, node_type):
            return torch.empty(0, dtype=torch.int64)
        ids = np.array(self.node_table(name, node_type))
        file = self._shard_path(self._find(name, node_type))
        check_nodes(ids, self.num_nodes(node_type), str(file))
        self._compare(name, node_type)
        return torch.from_numpy(ids)

    def labels(self, node_type: str = NODE_TYPE) -> Tensor:
        """(nodes,) classes, or (nodes, labels) truth values, of a node type, in memory.

        Raises:
            FileFormatError: the file is damaged.
        """
        self._compare("labels", node_type)
        return torch.from_numpy(np.array(self.node_table("labels", node_type)))

    def static_score(self) -> tuple[str, NDArray[np.uint16]] | None:
        """The kind of score that ``gnnsys score`` stored, and (nodes,) scores; None without one."""
        if self.heterogeneous or not self.has(SCORE_TABLE):
            return None
        about = self.manifest.source.get(SCORE_TABLE)
        kind = about.get("kind") if isinstance(about, dict) else None
        self._compare(SCORE_TABLE, NODE_TYPE)
        return str(kind or "unknown"), np.array(self.node_table(SCORE_TABLE))

    def stores(
        self, *, threads: int = 0, device: str | None = None, **options: Any
    ) -> tuple[Any, Any]:
        """The dataset as PyG's ``(FeatureStore, GraphStore)``, for any loader of PyG or gnnsys.

        Attributes are ``x`` and, where the folder has them, ``y`` and ``time``. Nothing is loaded
        but each indptr. ``options`` are those of ``gnnsys.unified`` for ``x``, such as
        ``cache="8GB"``, which is for all node types together (``gnnsys.CacheArena``).
        """
        features, graphs = FeatureStore(), _CscStore()
        if isinstance(options.get("cache"), str) and self.heterogeneous:
            options["cache"] = CacheArena(options["cache"])
        for node_type in self.node_types:
            group = node_type if self.heterogeneous else None
            if self.has("features", node_type):
                x = self.features(node_type, threads=threads, device=device, **options)
                features[group, "x", None] = x
            for name, attribute in (("labels", "y"), ("time", "time")):
                if self.has(name, node_type):
                    table = self._shard_path(self._find(name, node_type))
                    features.put_file(table, group, attribute, device=device)
        for edge_type in self.edge_types:
            kind = edge_type if self.heterogeneous else None
            graphs.put_csc(kind, self.graph(edge_type), self.num_nodes(edge_type[0]))
        return features, graphs

    def to_data(self, *, threads: int = 0, device: str | None = None) -> Data:
        """A homogeneous dataset as PyG ``Data``: edges in memory, features unified, masks.

        Raises:
            UnsupportedError: the graph is heterogeneous.
        """
        if self.heterogeneous:
            raise UnsupportedError(
                f"{self.path}: a heterogeneous graph is no Data; use Dataset.stores()"
            )
        data = Data(edge_index=self.edge_index(), num_nodes=self.num_nodes())
        if self.has("features"):
            data.x = self.features(threads=threads, device=device)
        if self.has("labels"):
            data.y = self.labels()
        for part in ("train", "val", "test"):
            if self.has(part):
                data[f"{part}_mask"] = index_to_mask(self.split(part), self.num_nodes())
        return data

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
        graph, nodes = self.graph(edge_type), self.num_nodes(edge_type[0])
        step = CHECKSUM_CHUNK // graph.indices.element_size()
        for start in range(0, graph.num_edges, step):
            low, high = torch.aminmax(graph.indices[start : start + step])
            if low < 0 or high >= nodes:
                file = self._shard_path(self._find("indices", edge_type))
                raise FileFormatError(
                    f"{file}: holds the node {int(low if low < 0 else high)}, outside [0, {nodes})"
                )

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

    def _compare(self, name: str, of: str | EdgeType) -> None:
        """Compares a table with its checksums, which is for those that are read whole anyway."""
        for _ in self._verify_table(self._find(name, of)):
            pass

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
        wanted = (shard.rows, *table.shape[1:]), table.encoding.file_dtype
        if (array.shape, array.dtype) != wanted:
            raise FileFormatError(
                f"{path}: holds {array.dtype} {array.shape}, expected {wanted[1]} {wanted[0]} by "
                "graph.json"
            )

    def __repr__(self) -> str:
        nodes = ", ".join(f"{key}: {value.count}" for key, value in self.manifest.nodes.items())
        edges = sum(value.count for value in self.manifest.edges.values())
        return f"Dataset({str(self.path)!r}, nodes={{{nodes}}}, edges={edges})"


class _CscStore(GraphStore):
    """PyG's ``GraphStore`` over CSCs that stay where they are."""

    def __init__(self) -> None:
        super().__init__()
        self.__dict__["_graphs"] = {}

    def put_csc(self, edge_type: EdgeType | None, graph: CSC, num_sources: int) -> None:
        """Adds the edges of a type; None where there is one type."""
        self._graphs[edge_type] = graph, (num_sources, graph.num_nodes)

    def graph(self) -> CSC:
        """The edges, of a store that has those of one type."""
        ((graph, _),) = self._graphs.values()
        found: CSC = graph
        return found

    def _put_edge_index(self, edge_index: Any, edge_attr: EdgeAttr) -> bool:
        raise UnsupportedError("the graph of a dataset folder is read-only")

    def _get_edge_index(self, edge_attr: EdgeAttr) -> Any:
        if edge_attr.edge_type not in self._graphs:
            return None
        graph, _ = self._graphs[edge_attr.edge_type]
        return graph.indices, graph.indptr

    def _remove_edge_index(self, edge_attr: EdgeAttr) -> bool:
        raise UnsupportedError("the graph of a dataset folder is read-only")

    def get_all_edge_attrs(self) -> list[EdgeAttr]:
        """One for each edge type, in CSC."""
        return [
            EdgeAttr(edge_type, EdgeLayout.CSC, True, size)
            for edge_type, (_, size) in self._graphs.items()
        ]

"""Opens dataset folders: every table stays where it is, mapped or read row by row."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Data, EdgeAttr, GraphStore
from torch_geometric.data.graph_store import EdgeLayout
from torch_geometric.utils import index_to_mask

from gnnsys.cache.arena import CacheArena
from gnnsys.dataset.format import EDGE_TYPE, NODE_TYPE, EdgeType, Table
from gnnsys.dataset.importance import SCORE_TABLE
from gnnsys.dataset.seeds import Seeds, read_seeds
from gnnsys.dataset.tables import DatasetTables
from gnnsys.errors import UnsupportedError
from gnnsys.feature_store import FeatureStore
from gnnsys.loaders.neighbor_file import NeighborFile
from gnnsys.loaders.topology import CSC
from gnnsys.memory.alloc import view_array
from gnnsys.memory.encoding import Quantised
from gnnsys.system.device import SIMT
from gnnsys.unified_tensor import UnifiedTensor, unified

__all__ = ["CscStore", "Dataset", "open_dataset"]


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


class Dataset(DatasetTables):
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

    def graph(self, edge_type: EdgeType = EDGE_TYPE) -> CSC:
        """The edges of a type, mapped: processes of a machine have them in memory once. Samplers
        may read the neighbours otherwise, see ``CSC.file``.

        Raises:
            FileFormatError: an indptr that does not ascend to the number of edges, or is damaged.
        """
        indptr, indices = self.indptr(edge_type), self.edge_table("indices", edge_type)
        file = NeighborFile(self._shard_path(self._find("indices", edge_type)), indices)
        return CSC(view_array(indptr), view_array(indices), file=file)

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
        return self._unified(name, node_type, dtype, threads=threads, device=device, **options)

    def edge_features(
        self,
        edge_type: EdgeType = EDGE_TYPE,
        *,
        name: str = "edge_features",
        dtype: torch.dtype | None = None,
        threads: int = 0,
        device: str | None = None,
        **options: Any,
    ) -> UnifiedTensor:
        """The features of an edge type likewise: row e is of the edge at position e of the CSC."""
        return self._unified(name, edge_type, dtype, threads=threads, device=device, **options)

    def _unified(
        self, name: str, of: str | EdgeType, dtype: torch.dtype | None, **options: Any
    ) -> UnifiedTensor:
        table = self._find(name, of)
        if dtype is None and table.encoding.dtype in ("bfloat16", "float16"):
            dtype = torch.float32
        paths = [self.path / shard.path for shard in table.shards]
        return unified(paths, dtype=dtype, encoding=_encoding_of(table), **options)

    def split(self, name: str, node_type: str | None = None) -> Tensor:
        """(n,) int64 ids of the nodes of "train", "val" or "test"; empty where there are none.

        Raises:
            FileFormatError: an id outside the nodes, or a damaged file.
        """
        return torch.from_numpy(self.split_ids(name, node_type))

    def labels(self, node_type: str = NODE_TYPE) -> Tensor:
        """(nodes,) classes, or (nodes, labels) truth values, of a node type, mapped; what is
        written to them stays in this process.

        Raises:
            FileFormatError: the file is damaged.
        """
        return torch.from_numpy(self._whole("labels", node_type))

    def seeds(self, task: str, split: str) -> Seeds:
        """The rows of a task of a relational database, in memory: nodes, times and labels.

        Args:
            task: its name.
            split: "train", "val" or "test".

        Raises:
            ArgumentError: there is no such task, or no such split of it.
        """
        return read_seeds(self, task, split)

    def score_kind(self) -> str | None:
        """The kind of score that ``gnnsys score`` stored; None without one. Nothing is read."""
        if not any(self.has(SCORE_TABLE, kind) for kind in self.node_types):
            return None
        about = self.manifest.source.get(SCORE_TABLE)
        kind = about.get("kind") if isinstance(about, dict) else None
        return str(kind or "unknown")

    def static_score(self, node_type: str = NODE_TYPE) -> tuple[str, NDArray[np.uint16]] | None:
        """The kind of score that ``gnnsys score`` stored, and (nodes,) scores of a node type; None
        without one.

        Raises:
            FileFormatError: the file is damaged.
        """
        kind = self.score_kind()
        if kind is None or not self.has(SCORE_TABLE, node_type):
            return None
        return kind, self._whole(SCORE_TABLE, node_type)

    def stores(
        self,
        *,
        edge_features: bool = True,
        threads: int = 0,
        device: str | None = None,
        **options: Any,
    ) -> tuple[Any, Any]:
        """The dataset as PyG's ``(FeatureStore, GraphStore)``, for any loader of PyG or gnnsys.

        Attributes are ``x`` and, where the folder has them, ``y`` and ``time``, and ``edge_attr``
        unless ``edge_features`` is False. Nothing is loaded. ``options`` are those of
        ``gnnsys.unified`` for ``x`` and ``edge_attr``, such as ``cache="8GB"``, which is for all of
        them together (``gnnsys.CacheArena``); ``scores`` and ``trace`` are of nodes, for ``x``
        alone; ``scores`` may be a dict by node type.
        """
        features, graphs = FeatureStore(), CscStore()
        with_features = [
            edge_type
            for edge_type in self.edge_types
            if edge_features and self.has("edge_features", edge_type)
        ]
        if isinstance(options.get("cache"), str) and (self.heterogeneous or with_features):
            options["cache"] = CacheArena(options["cache"])
        of_nodes = ("scores", "trace")
        of_edges = {key: value for key, value in options.items() if key not in of_nodes}
        scores = options.pop("scores", None)
        for node_type in self.node_types:
            group = node_type if self.heterogeneous else None
            if self.has("features", node_type):
                own = scores[node_type] if isinstance(scores, Mapping) else scores
                x = self.features(node_type, threads=threads, device=device, scores=own, **options)
                features[group, "x", None] = x
            for name, attribute in (("labels", "y"), ("time", "time")):
                if self.has(name, node_type):
                    table = self._shard_path(self._find(name, node_type))
                    # Kernels gather features alone.
                    near = "cpu" if device == SIMT else device
                    # Hundreds of their rows share a page: mapped, it is read once for all of them.
                    features.put_file(table, group, attribute, storage="mmap", device=near)
        for edge_type in self.edge_types:
            kind = edge_type if self.heterogeneous else None
            graphs.put_csc(kind, self.graph(edge_type), self.num_nodes(edge_type[0]))
            if edge_type in with_features:
                rows = self.edge_features(edge_type, threads=threads, device=device, **of_edges)
                features[kind, "edge_attr", None] = rows
        return features, graphs

    def to_data(self, *, threads: int = 0, device: str | None = None) -> Data:
        """A homogeneous dataset as PyG ``Data``: edges in memory, features of nodes and edges
        unified, masks.

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
        if self.has("edge_features", EDGE_TYPE):
            data.edge_attr = self.edge_features(threads=threads, device=device)
        if self.has("labels"):
            data.y = self.labels()
        for part in ("train", "val", "test"):
            if self.has(part):
                data[f"{part}_mask"] = index_to_mask(self.split(part), self.num_nodes())
        return data

    def __repr__(self) -> str:
        nodes = ", ".join(f"{key}: {value.count}" for key, value in self.manifest.nodes.items())
        edges = sum(value.count for value in self.manifest.edges.values())
        return f"Dataset({str(self.path)!r}, nodes={{{nodes}}}, edges={edges})"


def _encoding_of(table: Table) -> torch.dtype | Quantised | None:
    """What the header of a table's file cannot name."""
    encoding = table.encoding
    if encoding.scale is None:
        return torch.bfloat16 if encoding.dtype == "bfloat16" else None
    dtype: Literal["int8", "int4"] = "int4" if encoding.dtype == "int4" else "int8"
    return Quantised(dtype, table.shape[1:], encoding.scales)


class CscStore(GraphStore):
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

    def graphs(self) -> dict[EdgeType, CSC]:
        """The edges of each type, of a store that has types."""
        return {edge_type: graph for edge_type, (graph, _) in self._graphs.items()}

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

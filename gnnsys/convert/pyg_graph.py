"""A PyG ``Data`` or ``HeteroData`` object to a dataset folder."""

from __future__ import annotations

import re
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.convert.arrays import MatrixRows, block_rows, widen
from gnnsys.convert.common import Conversion, ConvertOptions
from gnnsys.convert.csc import cut_edges
from gnnsys.dataset.format import EDGE_TYPE, NODE_TYPE, EdgeType
from gnnsys.errors import ArgumentError, FileFormatError

if TYPE_CHECKING:
    from torch import Tensor
    from torch_geometric.data import Data, HeteroData

__all__ = ["convert_pyg"]

_SPLITS = {
    "train": ("train_mask", "train_idx", "train_index"),
    "val": ("val_mask", "valid_mask", "val_idx", "valid_idx", "val_index", "valid_index"),
    "test": ("test_mask", "test_idx", "test_index"),
}
_SPLIT_LABELS = ("train_y", "val_y", "valid_y", "test_y")
_EDGE_TABLES = {"edge_attr": "edge_features", "time": "edge_time"}
_OWN_TABLES = {"features", "labels", "train", "val", "test"}


def convert_pyg(
    data: Data | HeteroData,
    path: Path,
    options: ConvertOptions,
    *,
    name: str,
    files: Iterable[Path] = (),
    split: int = 0,
    metric: str | None = None,
) -> Path:
    """Makes a dataset folder of a graph in memory.

    ``x`` becomes features, ``y`` labels, masks and ``train_idx``, … train, val and test,
    ``edge_attr`` edge_features, ``time`` on nodes or edges time or edge_time; any other tensor with
    a row for each node or edge a table of its own name. What is left out is named in the folder's
    ``source``. The nodes to classify are those of the type that has ``y``.

    Args:
        data: ``edge_index`` (2, edges) of each edge type, ``x`` (nodes, features), ``y`` (nodes,)
            classes or (nodes, labels) of 0 and 1, masks (nodes,) or (nodes, splits).
        path: of the folder to make.
        options: of the conversion.
        name: of the dataset.
        files: that ``data`` was read from; without them a checksum of its tensors tells whether an
            unfinished folder is of the same graph.
        split: column of masks that have several.
        metric: what the dataset is judged by; None for the one that its labels suggest.

    Raises:
        ArgumentError: a split that is not there, or ``options.undirected`` with several types.
        FileFormatError: tensors that do not fit the nodes or edges.

    >>> import tempfile, torch
    >>> from torch_geometric.data import Data
    >>> ring = Data(edge_index=torch.tensor([[0, 1, 2], [1, 2, 0]]), num_nodes=3)
    >>> path = Path(tempfile.mkdtemp()) / "ring"
    >>> np.load(convert_pyg(ring, path, ConvertOptions(), name="ring") / "indices.npy")
    array([2, 0, 1], dtype=int32)
    """
    from torch_geometric.data import HeteroData

    heterogeneous = isinstance(data, HeteroData)
    files = list(files)
    more: dict[str, Any] = {"split": split, "metric": metric}
    if not files:
        more["crc32"] = _checksum(data)
    nodes = dict(data.node_items()) if heterogeneous else {NODE_TYPE: data.stores[0]}
    edges = dict(data.edge_items()) if heterogeneous else {EDGE_TYPE: data.stores[0]}
    with Conversion(
        path, options, name=name, kind="pyg", files=files, heterogeneous=heterogeneous,
        way_out="apply torch_geometric.transforms.ToUndirected to the HeteroData object", **more,
    ) as writer:  # fmt: skip
        counts = {kind: _count_nodes(name, kind, store) for kind, store in nodes.items()}
        for kind, count in counts.items():
            writer.add_nodes(count, kind)
        taken: set[tuple[Any, str]] = set()
        # The task is that of the labels written last.
        for kind in sorted(nodes, key=lambda kind: _rank_as_task(nodes[kind])):
            label = f"{name}, nodes {kind!r}" if heterogeneous else name
            node_set = _NodeSet(writer, label, kind)
            node_set.write(nodes[kind], split, metric)
            taken |= {(kind, key) for key in node_set.taken}
        for edge_type, store in edges.items():
            label = f"{name}, edges {edge_type}" if heterogeneous else name
            tables = _write_edge_set(writer, store, label, edge_type)
            owner = edge_type if heterogeneous else NODE_TYPE
            taken |= {(owner, key) for key in tables.values()}
        writer.source["left_out"] = _list_left_out(nodes | edges if heterogeneous else nodes, taken)
        return writer.commit()


def _list_left_out(stores: Mapping[Any, Any], taken: set[tuple[Any, str]]) -> list[str]:
    """Tensors that no table was made of."""
    left = [
        (owner, key)
        for owner, store in stores.items()
        for key in store
        if _has(store, key) and (owner, key) not in taken
    ]
    return [f"{'/'.join(o) if isinstance(o, tuple) else o}: {key}" for o, key in left]


def _checksum(data: Any) -> str:
    import torch

    from gnnsys.memory.encoding import bytes_of

    crc = 0
    for number, store in enumerate(data.stores):
        for key, value in sorted(store.items()):
            crc = zlib.crc32(f"{number} {key}".encode(), crc)
            if isinstance(value, torch.Tensor):
                crc = zlib.crc32(f"{value.dtype} {tuple(value.shape)}".encode(), crc)
                for part in _parts(value):
                    crc = zlib.crc32(bytes_of(_dense(part)), crc)
            else:
                crc = zlib.crc32(repr(value).encode(), crc)
    return f"{crc:08x}"


def _dense(tensor: Tensor) -> Tensor:
    import torch

    tensor = tensor.detach() if tensor.layout == torch.strided else tensor.detach().to_dense()
    return tensor.as_subclass(torch.Tensor).cpu().contiguous()


def _parts(tensor: Tensor) -> list[Tensor]:
    """The dense tensors that a tensor of any layout is made of."""
    import torch

    if tensor.layout == torch.sparse_coo:
        whole = tensor.coalesce()
        return [whole.indices(), whole.values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_csc):
        csr = tensor.to_sparse_csr()
        return [csr.crow_indices(), csr.col_indices(), csr.values()]
    return [tensor]


def _bits(tensor: Tensor) -> tuple[NDArray[Any], bool]:
    """As numpy holds it, and whether that is the bits of bfloat16."""
    import torch

    tensor = _dense(tensor)
    bits = tensor.dtype == torch.bfloat16
    return (tensor.view(torch.uint16) if bits else tensor).numpy(), bits


def _array(tensor: Tensor) -> NDArray[Any]:
    """As numpy holds it: bfloat16 widened to float32, which loses nothing."""
    array, bits = _bits(tensor)
    return widen(array) if bits else array


def _count_nodes(name: str, node_type: str, store: Any) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # PyG warns of what is refused here, or counted by the edges
        count = store.num_nodes
    if count is None:
        raise FileFormatError(
            f"{name}: the node type {node_type!r} has no tensors to count its nodes by; set "
            f"data[{node_type!r}].num_nodes"
        )
    return int(count)


def _rank_as_task(store: Any) -> int:
    has_split = any(key in store for key in _SPLITS["train"])
    return ("y" in store or any(key in store for key in _SPLIT_LABELS)) * (1 + has_split)


# Nodes --------------------------------------------------------------------------------------------


class _SparseRows:
    """A sparse matrix, of which some rows at a time are made dense."""

    def __init__(self, matrix: Tensor) -> None:
        self._coo = matrix.detach().cpu().to_sparse_coo().coalesce()
        self.shape: tuple[int, ...] = tuple(matrix.shape)
        self.dtype = self._coo.values().numpy().dtype

    def blocks(self, first: int = 0) -> Iterator[NDArray[Any]]:
        """Rows from ``first`` on."""
        rows, columns = self._coo.indices().numpy()
        values = self._coo.values().numpy()
        step = block_rows(self.shape, self.dtype)
        for start in range(first, self.shape[0], step):
            block = np.zeros((min(step, self.shape[0] - start), self.shape[1]), self.dtype)
            entries = slice(*np.searchsorted(rows, (start, start + len(block))))
            block[rows[entries] - start, columns[entries]] = values[entries]
            yield block


class _NodeSet:
    """Writes the tables of one node type."""

    def __init__(self, writer: Conversion, label: str, kind: str) -> None:
        self._writer, self._label, self._type = writer, label, kind
        self._count = writer.num_nodes(kind)
        self.taken: set[str] = set()
        """Keys that tables were made of."""

    def write(self, store: Any, split: int, metric: str | None) -> None:
        import torch

        writer, kind = self._writer, self._type
        self.taken = {"x"}
        if _has(store, "x"):
            label = f"{self._label}: x"
            if store["x"].layout == torch.strided:
                x, bits = _bits(store["x"])
                x = x[:, None] if x.ndim == 1 else x
                writer.write_features(MatrixRows(x), label, kind, bits=bits)
            else:
                rows = _SparseRows(store["x"])
                writer.check_room(rows, label)
                writer.write_features(rows, label, kind)
        labels = self._find_labels(store)
        if labels is not None:
            writer.write_labels(labels, f"{self._label}: y", kind, metric=metric)
        for part, ids in self._find_splits(store, split).items():
            writer.write_split(part, ids, f"{self._label}: {part}", kind)
        for key, value in store.items():
            known = key in self.taken or key in _OWN_TABLES or not re.fullmatch(r"\w+", key)
            if known or not _is_table(value, self._count) or not store.is_node_attr(key):
                continue
            writer.write_table(key, _array(value), f"{self._label}: {key}", kind)
            self.taken.add(key)

    def _find_labels(self, store: Any) -> NDArray[Any] | None:
        """``y``, or what ``train_y`` and its like say of ``train_idx``, as in Entities."""
        if _has(store, "y"):
            self.taken.add("y")
            return _array(store["y"])
        known = [key for key in _SPLIT_LABELS if _has(store, key)]
        labels: NDArray[Any] = np.full(self._count, -1, np.int64)
        if self._writer.options.regression:
            labels = np.full(self._count, np.nan)
        for key in known:
            ids = key.replace("_y", "_idx")
            if not _has(store, ids) or len(store[ids]) != len(store[key]):
                raise FileFormatError(
                    f"{self._label}: {len(store[key])} entries of {key} != "
                    f"{len(store[ids]) if _has(store, ids) else 0} of {ids}"
                )
            at = _array(store[ids])
            if len(at) and not 0 <= at.min() <= at.max() < self._count:
                raise FileFormatError(
                    f"{self._label}: {ids} from {at.min()} to {at.max()} is outside the nodes "
                    f"[0, {self._count})"
                )
            labels[at] = _array(store[key])
            self.taken.add(key)
        return labels if known else None

    def _find_splits(self, store: Any, split: int) -> Mapping[str, NDArray[Any]]:
        found = {}
        for part, keys in _SPLITS.items():
            key = next((key for key in keys if _has(store, key)), None)
            if key is not None:
                ids = _array(store[key])
                self.taken.add(key)
                found[part] = ids != 0 if key.endswith("mask") else ids
        # A mask of one column, such as the test mask of WikiCS, holds for every split.
        splits = max((ids.shape[1] for ids in found.values() if ids.ndim == 2), default=1)
        if not 0 <= split < splits and found:
            raise ArgumentError(
                f"split {split}: {self._label} has {splits}, numbered from 0; choose one of them"
            )
        return {part: ids[:, split] if ids.ndim == 2 else ids for part, ids in found.items()}


def _has(store: Any, key: str) -> bool:
    import torch

    return key in store and isinstance(store[key], torch.Tensor)


def _is_table(value: Any, rows: int) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == rows


# Edges --------------------------------------------------------------------------------------------


def _write_edge_set(
    writer: Conversion, store: Any, label: str, edge_type: EdgeType
) -> dict[str, str]:
    key, index, weights = _find_edges(store, label)
    if index.ndim != 2 or index.shape[0] != 2 or index.dtype.kind not in "iu":
        raise FileFormatError(
            f"{label}: edge_index is {index.dtype} {index.shape}, expected integers (2, edges)"
        )
    tables = _edge_tables(store, label, index.shape[1])
    arrays = {table: _array(store[name]) for table, name in tables.items()}
    if weights is not None:
        arrays["edge_weight"], tables["edge_weight"] = weights, key
    writer.write_csc(cut_edges(index), f"{label}: {key}", edge_type, keep_order=bool(tables))
    for table, rows in arrays.items():
        writer.write_edge_rows(table, rows, f"{label}: {tables[table]}", edge_type)
    return {"edge_index": key, **tables}


def _find_edges(store: Any, label: str) -> tuple[str, NDArray[Any], NDArray[Any] | None]:
    """Where the edges stand, (2, edges) sources and targets, and their weights in ``adj_t``."""
    import torch

    if _has(store, "edge_index"):
        return "edge_index", _array(store["edge_index"]), None
    if not _has(store, "adj_t") or store["adj_t"].layout == torch.strided:
        raise FileFormatError(
            f"{label}: no edge_index tensor, found {', '.join(store.keys()) or 'nothing'}; "
            "expected edge_index, or adj_t of torch.sparse, as ToSparseTensor makes it without "
            "torch_sparse"
        )
    # Rows are targets. PyG puts tables of edges into the same order.
    pointers, sources, values = map(_array, _parts(store["adj_t"].detach().to_sparse_csr()))
    targets = np.repeat(np.arange(len(pointers) - 1), np.diff(pointers))
    weighted = values.ndim == 1 and (values != 1).any() and "edge_weight" not in store
    return "adj_t", np.stack([sources, targets]), values if weighted else None


def _edge_tables(store: Any, label: str, num_edges: int) -> dict[str, str]:
    """Names of tables, and the keys that their rows stand under."""
    tables = {}
    for key, value in store.items():
        if key in ("edge_attr", "edge_weight", "edge_time") and _has(store, key):
            rows = len(value) if value.dim() else 0
            if rows != num_edges:
                raise FileFormatError(f"{label}: {key} has {rows} rows != {num_edges} edges")
        elif key == "edge_index" or not _is_table(value, num_edges) or not store.is_edge_attr(key):
            continue
        table = _EDGE_TABLES.get(key, key if key.startswith("edge_") else f"edge_{key}")
        if table not in tables and table != "edge_id" and re.fullmatch(r"\w+", table):
            tables[table] = key
    return tables

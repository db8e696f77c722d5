"""What every converter does: open the writer, write features, labels and splits."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gnnsys.choices import FloatType
from gnnsys.convert.arrays import ArraySource
from gnnsys.dataset.format import EDGE_TYPE, NODE_TYPE, EdgeType, Task, is_dtype
from gnnsys.dataset.writer import DatasetWriter, cut_rows
from gnnsys.errors import FileFormatError, MissingFileError
from gnnsys.system.progress import Progress

__all__ = [
    "ConvertOptions",
    "encode",
    "open_writer",
    "write_edge_attribute",
    "write_features",
    "write_ids",
    "write_labels",
    "write_node_table",
]


_FEATURE_TYPES = (
    "float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool",
)  # fmt: skip
_FLOATS = ("edge_features", "edge_weight")
_MOST_CLASSES = 1 << 31


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertOptions:
    """How to convert, whatever the source."""

    dtype: Literal["keep"] | FloatType = "keep"
    """Element type that float features are stored in."""

    undirected: bool = False
    """Add the reverse of every edge."""

    memory: int = 2 << 30
    """Bytes for arrays of edges."""

    threads: int = 0
    """That sort; 0 for all cores this process may use."""

    progress: Progress = lambda what, done, total: None
    """Is told how far the work is."""


def open_writer(
    path: Path,
    *,
    name: str,
    kind: str,
    files: Iterable[Path],
    options: ConvertOptions,
    heterogeneous: bool = False,
    **more: Any,
) -> DatasetWriter:
    """The writer of a conversion, which is continued only from the same files and options.

    Args:
        path: of the folder to make.
        name: of the dataset.
        kind: of the source: edge-list, pyg, ogb, graphbolt, …
        files: that are read; their sizes and times of change tell whether they are the same.
        options: of the conversion.
        heterogeneous: whether the graph has several types.
        more: other options that change the result, JSON-able.
    """
    sizes = [_size_of(Path(file)) for file in files]
    chosen = {"dtype": options.dtype, "undirected": options.undirected, **more}
    return DatasetWriter(
        path,
        name=name,
        heterogeneous=heterogeneous,
        fingerprint=json.dumps([kind, name, sizes, chosen], sort_keys=True, default=str),
        source={"kind": kind, "files": [Path(file).name for file, _, _ in sizes], **chosen},
        progress=options.progress,
    )


def _size_of(file: Path) -> tuple[str, int, int]:
    try:
        found = file.stat()
    except FileNotFoundError as error:
        raise MissingFileError(f"{file}: no such file") from error
    except OSError as error:
        raise FileFormatError(f"{file}: cannot be read ({error.strerror})") from error
    return str(file), found.st_size, found.st_mtime_ns


def encode(block: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Rows as they are stored; bfloat16 as the uint16 of its bits, rounded to nearest even.

    >>> encode(np.array([1.0, -2.0], np.float32), "bfloat16").tolist()
    [16256, 49152]
    """
    if dtype != "bfloat16":
        return block.astype(dtype, copy=False)
    import torch

    from gnnsys.memory.alloc import view_array

    single = view_array(np.ascontiguousarray(block, dtype=np.float32))
    return single.to(torch.bfloat16).view(torch.uint16).numpy()


def write_features(
    writer: DatasetWriter,
    source: ArraySource,
    options: ConvertOptions,
    *,
    label: str,
    num_nodes: int,
    node_type: str = NODE_TYPE,
) -> None:
    """Writes the table features; float64 becomes float32 unless ``options.dtype`` says otherwise.

    Raises:
        FileFormatError: another number of rows than nodes, or a type that no store delivers.
    """
    _check_rows(label, source.shape[0], num_nodes, "feature rows")
    dtype = source.dtype.name
    if dtype not in _FEATURE_TYPES:
        raise FileFormatError(
            f"{label}: features of {source.dtype}, expected {', '.join(_FEATURE_TYPES)}"
        )
    if options.dtype != "keep" and source.dtype.kind == "f":
        dtype = options.dtype
    elif dtype == "float64":
        dtype = "float32"

    def read(first: int) -> Iterator[NDArray[Any]]:
        for block in source.blocks(first):
            yield encode(block, dtype)

    writer.write_nodes("features", read, source.shape, dtype, node_type)


def write_labels(
    writer: DatasetWriter,
    labels: NDArray[Any],
    *,
    label: str,
    num_nodes: int,
    node_type: str = NODE_TYPE,
    num_classes: int | None = None,
    metric: str | None = None,
) -> None:
    """Writes the table labels and sets the task.

    Args:
        writer: of the dataset.
        labels: (nodes,) or (nodes, 1) classes from 0, below 0 or NaN where unknown; or
            (nodes, labels) of 0 and 1, one column a label.
        label: what to call them in messages.
        num_nodes: how many there must be.
        node_type: whose.
        num_classes: None for one more than the greatest.
        metric: None for rocauc where there are several labels, else accuracy.

    Raises:
        FileFormatError: another number of labels than nodes, or labels that are no classes.
    """
    _check_rows(label, len(labels), num_nodes, "labels")
    if labels.ndim > 2 or labels.dtype.kind not in "iubf":
        raise FileFormatError(
            f"{label}: {labels.dtype} of shape {labels.shape}, expected classes or columns of 0 "
            "and 1"
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    multi_label = labels.ndim == 2
    table: NDArray[Any]
    if multi_label:
        table = np.asarray(labels).astype(np.float32)
        if not np.isin(table[~np.isnan(table)], (0, 1)).all():
            raise FileFormatError(f"{label}: several columns of labels, expected 0 or 1 in each")
        classes = labels.shape[1]
    else:
        table = _as_classes(labels, label)
        classes = int(table.max(initial=-1)) + 1
        if num_classes is not None and classes > num_classes:
            raise FileFormatError(f"{label}: class {classes - 1}, expected below {num_classes}")
    writer.write_nodes("labels", cut_rows(table), table.shape, table.dtype.name, node_type)
    writer.task = Task(
        node_type=node_type,
        num_classes=num_classes or classes,
        multi_label=multi_label,
        metric=metric or ("rocauc" if multi_label else "accuracy"),
    )


def _as_classes(labels: NDArray[Any], label: str) -> NDArray[np.int64]:
    floats = labels.dtype.kind == "f"
    known = ~np.isnan(labels) if floats else np.ones(len(labels), bool)
    wrong = known & (labels >= _MOST_CLASSES)
    if floats:
        wrong |= known & (labels != np.floor(labels))
    if wrong.any():
        node = int(np.argmax(wrong))
        raise FileFormatError(
            f"{label}: labels are not whole numbers below {_MOST_CLASSES}: node {node} has "
            f"{labels[node]}; expected classes from 0, and below 0 or NaN where unknown"
        )
    return (np.where(known, labels, -1) if floats else labels).astype(np.int64)


def write_ids(
    writer: DatasetWriter,
    name: Literal["train", "val", "test"],
    ids: NDArray[Any],
    *,
    label: str,
    num_nodes: int,
    node_type: str = NODE_TYPE,
) -> None:
    """Writes the table train, val or test: (n,) int64 node ids, from ids or a (nodes,) mask.

    Raises:
        FileFormatError: an id outside the nodes, or one that is there twice.
    """
    if ids.dtype == np.bool_ and ids.ndim == 1:
        _check_rows(label, len(ids), num_nodes, "entries of a mask")
        ids = np.flatnonzero(ids)
    if ids.dtype.kind not in "iu" or ids.ndim != 1:
        raise FileFormatError(
            f"{label}: {ids.dtype} of shape {ids.shape}, expected (n,) node ids or a mask"
        )
    ids = ids.astype(np.int64)
    if len(ids) and not 0 <= ids.min() <= ids.max() < num_nodes:
        wrong = int(np.argmax((ids < 0) | (ids >= num_nodes)))
        raise FileFormatError(
            f"{label}: id {ids[wrong]} at position {wrong} is outside the nodes [0, {num_nodes})"
        )
    values, counts = np.unique(ids, return_counts=True)
    if len(values) < len(ids):
        raise FileFormatError(
            f"{label}: id {values[counts > 1][0]} is there {counts[counts > 1][0]} times, expected "
            "once"
        )
    writer.write_nodes(name, cut_rows(ids), ids.shape, "int64", node_type)


def write_node_table(
    writer: DatasetWriter,
    name: str,
    rows: NDArray[Any],
    *,
    label: str,
    num_nodes: int,
    node_type: str = NODE_TYPE,
) -> None:
    """Writes another table with a row for each node, such as time."""
    _check_rows(label, len(rows), num_nodes, "rows")
    writer.write_nodes(name, cut_rows(rows), rows.shape, rows.dtype.name, node_type)


def write_edge_attribute(
    writer: DatasetWriter,
    name: str,
    rows: NDArray[Any],
    *,
    label: str,
    edge_type: EdgeType = EDGE_TYPE,
) -> None:
    """Writes a table edge_… in CSC order from rows in the source's order.

    ``write_csc`` must have run with ``keep_order``. float64 becomes float32, but for times.

    Raises:
        FileFormatError: another number of rows than edges, or no numbers.
    """
    from gnnsys.convert.csc import permute_rows

    dtype = rows.dtype.name
    if dtype == "float64" and name in _FLOATS:
        dtype = "float32"
    if not is_dtype(dtype):
        raise FileFormatError(f"{label}: {rows.dtype}, expected numbers")
    order = writer.open_edges("edge_id", edge_type)
    wanted = int(order.max(initial=-1)) + 1
    if len(rows) != wanted:
        raise FileFormatError(f"{label}: {len(rows)} rows != {wanted} edges")
    read = permute_rows(rows, order)
    writer.write_edges(
        name,
        lambda first: (block.astype(dtype, copy=False) for block in read(first)),
        (len(order), *rows.shape[1:]),
        dtype,
        edge_type,
    )


def _check_rows(label: str, found: int, wanted: int, what: str) -> None:
    if found != wanted:
        raise FileFormatError(f"{label}: {found} {what} != {wanted} nodes")

"""What every converter does: open the folder, write features, labels, splits and edges."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.convert.arrays import ArraySource, MatrixRows, ReadRows, WidenedRows, widen
from gnnsys.convert.csc import EdgeReader, EdgeSort, permute_rows, write_csc
from gnnsys.convert.gaps import WithoutGaps
from gnnsys.convert.spec import ConvertOptions
from gnnsys.convert.stored_rows import QUANTISED, StoredRows
from gnnsys.dataset.format import (
    EDGE_TYPE,
    NODE_TYPE,
    EdgeType,
    Task,
    edge_folder,
    is_dtype,
    node_folder,
)
from gnnsys.dataset.tables import check_nodes
from gnnsys.dataset.writer import DatasetWriter, cut_rows
from gnnsys.errors import ArgumentError, FileFormatError, MissingFileError, StorageError
from gnnsys.system.sizes import size_text

__all__ = ["MOST_CLASSES", "Conversion", "ConvertOptions", "as_targets"]

_log = logging.getLogger(__name__)
_FEATURE_TYPES = (
    "float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool",
)  # fmt: skip
_FLOATS = ("edge_features", "edge_weight")
MOST_CLASSES = 1 << 31


class Conversion(DatasetWriter):
    """A dataset folder in the making, which is continued only from the same files and options.

    Args:
        path: of the folder to make.
        options: of the conversion.
        name: of the dataset.
        kind: of the source: edge-list, pyg, ogb, graphbolt, …
        files: that are read; their sizes and times of change tell whether they are the same.
        heterogeneous: whether the graph has several types.
        way_out: what to do instead of ``options.undirected``, which is for one type.
        more: other options that change the result, JSON-able.

    Raises:
        ArgumentError: ``options.undirected`` for several types; and as ``DatasetWriter``.
        MissingFileError, FileFormatError: files that cannot be read.
    """

    def __init__(
        self,
        path: Path,
        options: ConvertOptions,
        *,
        name: str,
        kind: str,
        files: Iterable[Path],
        heterogeneous: bool = False,
        way_out: str = "leave it out",
        **more: Any,
    ) -> None:
        if heterogeneous and options.undirected:
            raise ArgumentError(f"{name}: undirected is for graphs of one type; {way_out}")
        sizes = [_size_of(Path(file)) for file in files]
        chosen = {"dtype": options.dtype, "undirected": options.undirected, **more}
        if options.nan != "refuse":
            chosen["nan_features"] = options.nan
        if options.overflow != "refuse":
            chosen["allow_overflow"] = True
        if options.regression:
            chosen["regression"] = True
        if options.dtype in QUANTISED:
            if options.nan == "keep":
                raise ArgumentError(
                    f"--nan keep: {options.dtype} has no NaN and no infinite values; replace them "
                    "by --nan zero or --nan mean, or store --dtype float16"
                )
            chosen["scale"] = options.scale
        self.options = options
        super().__init__(
            path,
            name=name,
            heterogeneous=heterogeneous,
            fingerprint=json.dumps([kind, name, sizes, chosen], sort_keys=True, default=str),
            source={"kind": kind, "files": [Path(file).name for file, _, _ in sizes], **chosen},
            progress=options.progress,
        )

    # Nodes, whose type is declared ----------------------------------------------------------------

    def write_features(
        self,
        source: ArraySource,
        label: str,
        node_type: str = NODE_TYPE,
        *,
        bits: bool = False,
        exact: bool = False,
        names: Sequence[str] = (),
    ) -> None:
        """Writes the table features; float64 becomes float32 unless the options say otherwise.

        Args:
            source: (nodes, …) rows.
            label: what to call them in messages.
            node_type: whose.
            bits: whether they are the uint16 of bfloat16.
            exact: whether to keep float64 and types that no store delivers.
            names: of the columns, for messages.

        Raises:
            FileFormatError: another number of rows than nodes, a type that no store delivers, NaN
                that the options refuse, or values beyond the type they are stored in.
        """
        self._check_rows(label, source.shape[0], node_type, "feature rows")
        found = "bfloat16" if bits else source.dtype.name
        if found not in (*_FEATURE_TYPES, "bfloat16") and not exact:
            raise FileFormatError(
                f"{label}: features of {source.dtype}, expected {', '.join(_FEATURE_TYPES)}"
            )
        dtype = "float32" if found == "float64" and not exact else found
        if self.options.dtype != "keep" and "float" in found:
            dtype = self.options.dtype

        rows, keep = source, self.options.nan == "keep" or "float" not in found
        as_found = dtype == found and not (bits and not keep)
        if bits and not as_found:
            rows = WidenedRows(rows)
        if not keep:
            rows = WithoutGaps(rows, label, self.options.nan, names)
        if as_found:
            self.write_nodes("features", rows.blocks, source.shape, dtype, node_type)
            return
        stored = self._as_stored(rows, label, dtype)
        place = node_folder(self.heterogeneous, node_type) + "features"
        read = partial(stored.write_to, self, place)
        self.write_nodes("features", read, source.shape, stored.encoding, node_type)
        stored.tell(self, place)

    def write_edge_features(
        self, source: ArraySource, label: str, edge_type: EdgeType = EDGE_TYPE
    ) -> None:
        """Writes the table edge_features of floats as the options say.

        Args:
            source: (edges, …) rows in CSC order.
            label: what to call them in messages.
            edge_type: whose.

        Raises:
            FileFormatError: values that cannot be stored so.
        """
        if self.options.nan != "keep":
            source = WithoutGaps(source, f"{label}, in CSC order", self.options.nan)
        stored = self._as_stored(source, label, self.options.dtype)
        place = edge_folder(self.heterogeneous, edge_type) + "edge_features"
        read = partial(stored.write_to, self, place)
        self.write_edges("edge_features", read, source.shape, stored.encoding, edge_type)
        stored.tell(self, place)

    def _as_stored(self, rows: ArraySource, label: str, dtype: str) -> StoredRows:
        return StoredRows(rows, label, dtype, self.options.scale, self.options.overflow)

    def check_room(self, source: ArraySource, label: str) -> None:
        """Tells how large sparse rows become, and refuses what the disk has no room for.

        Raises:
            StorageError: more bytes than are free.
        """
        size = int(np.prod(source.shape, dtype=np.int64)) * source.dtype.itemsize
        free = shutil.disk_usage(self.partial).free
        told = f"{label}: sparse, of shape {source.shape}; dense it takes {size_text(size)}"
        if size > free:
            raise StorageError(f"{told}, but {size_text(free)} are free; choose another disk")
        _log.warning("%s", told)

    def write_labels(
        self,
        labels: NDArray[Any],
        label: str,
        node_type: str = NODE_TYPE,
        *,
        num_classes: int | None = None,
        metric: str | None = None,
    ) -> None:
        """Writes the table labels and sets the task.

        Args:
            labels: (nodes,) or (nodes, 1) classes from 0, below 0 or NaN where unknown; or
                (nodes, labels) of 0 and 1, one column a label. Where the options say regression,
                (nodes,) or (nodes, 1) numbers, NaN where unknown.
            label: what to call them in messages.
            node_type: whose.
            num_classes: of labels in one column; None for one more than the greatest.
            metric: None for rocauc where there are several labels, rmse where they are numbers,
                else accuracy.

        Raises:
            FileFormatError: another number of labels than nodes, or labels that are no classes, or
                no numbers.
        """
        self._check_rows(label, len(labels), node_type, "labels")
        if labels.ndim > 2 or labels.dtype.kind not in "iubf":
            raise FileFormatError(
                f"{label}: {labels.dtype} of shape {labels.shape}, expected classes or columns of "
                "0 and 1"
            )
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if self.options.regression:
            self._write_numbers(labels, label, node_type)
            return
        multi_label = labels.ndim == 2
        table: NDArray[Any]
        if multi_label:
            table = np.asarray(labels).astype(np.float32)
            if not np.isin(table[~np.isnan(table)], (0, 1)).all():
                raise FileFormatError(
                    f"{label}: several columns of labels, expected 0 or 1 in each"
                )
            classes = labels.shape[1]
        else:
            table = _as_classes(labels, label)
            classes = int(table.max(initial=-1)) + 1
            if num_classes is not None and classes > num_classes:
                raise FileFormatError(f"{label}: class {classes - 1}, expected below {num_classes}")
        self.write_nodes("labels", cut_rows(table), table.shape, table.dtype.name, node_type)
        self.task = Task(
            node_type=node_type,
            num_classes=classes if multi_label or num_classes is None else num_classes,
            multi_label=multi_label,
            metric=metric or ("rocauc" if multi_label else "accuracy"),
        )

    def _write_numbers(self, labels: NDArray[Any], label: str, node_type: str) -> None:
        """The labels of a regression."""
        if labels.ndim != 1:
            raise FileFormatError(
                f"{label}: {labels.dtype} of shape {labels.shape}, expected a number for each node "
                "for --regression"
            )
        table = as_targets(labels, label, "node")
        self.write_nodes("labels", cut_rows(table), table.shape, table.dtype.name, node_type)
        self.task = Task(node_type=node_type, num_classes=1, regression=True, metric="rmse")

    def write_split(
        self, name: str, ids: NDArray[Any], label: str, node_type: str = NODE_TYPE
    ) -> None:
        """Writes the table train, val or test: (n,) int64 node ids, from ids or a (nodes,) mask.

        Raises:
            FileFormatError: an id outside the nodes, or one that is there twice.
        """
        if ids.dtype == np.bool_ and ids.ndim == 1:
            self._check_rows(label, len(ids), node_type, "entries of a mask")
            ids = np.flatnonzero(ids)
        if ids.dtype.kind not in "iu" or ids.ndim != 1:
            raise FileFormatError(
                f"{label}: {ids.dtype} of shape {ids.shape}, expected (n,) node ids or a mask"
            )
        ids = ids.astype(np.int64)
        check_nodes(ids, self.num_nodes(node_type), label)
        values, counts = np.unique(ids, return_counts=True)
        if len(values) < len(ids):
            raise FileFormatError(
                f"{label}: id {values[counts > 1][0]} is there {counts[counts > 1][0]} times, "
                "expected once"
            )
        self.write_nodes(name, cut_rows(ids), ids.shape, "int64", node_type)

    def write_table(
        self,
        name: str,
        rows: NDArray[Any],
        label: str,
        node_type: str = NODE_TYPE,
        *,
        stored: str | None = None,
    ) -> None:
        """Writes another table with a row for each node; ``stored`` as in ``write_edge_rows``.

        Raises:
            FileFormatError: another number of rows than nodes, or several times of one.
        """
        self._check_rows(label, len(rows), node_type, "rows")
        if name == "time":
            rows = _one_time_each(rows, label, "node")
        dtype = stored or rows.dtype.name
        self.write_nodes(name, MatrixRows(rows).blocks, rows.shape, dtype, node_type)

    def _check_rows(self, label: str, found: int, node_type: str, what: str) -> None:
        if found != self.num_nodes(node_type):
            raise FileFormatError(f"{label}: {found} {what} != {self.num_nodes(node_type)} nodes")

    # Edges ----------------------------------------------------------------------------------------

    def write_csc(
        self,
        read: EdgeReader,
        label: str,
        edge_type: EdgeType = EDGE_TYPE,
        *,
        keep_order: bool = False,
        both_ways: bool = False,
        counted: str = "",
    ) -> None:
        """Sorts edges by ``gnnsys.convert.csc.write_csc``, as the options say.

        Args:
            read: the edges.
            label: what to call them in messages.
            edge_type: theirs.
            keep_order: write edge_id, for ``write_edge_rows``.
            both_ways: the edges have their reverses already.
            counted: the file whose rows are the nodes.
        """
        job = EdgeSort(
            writer=self,
            label=label,
            edge_type=edge_type,
            undirected=self.options.undirected and not both_ways,
            keep_order=keep_order,
            memory=self.options.memory,
            threads=self.options.threads,
            counted=counted,
        )
        write_csc(job, read)

    def write_edge_rows(
        self,
        name: str,
        rows: NDArray[Any],
        label: str,
        edge_type: EdgeType = EDGE_TYPE,
        *,
        stored: str | None = None,
        shared: int = 1,
    ) -> None:
        """Writes a table edge_… in CSC order from rows in the source's order.

        Args:
            name: of the table.
            rows: (edges, …).
            label: what to call them in messages.
            edge_type: whose; ``write_csc`` must have run with ``keep_order``.
            stored: element type; None for that of ``rows``, but float32 for float64, which is for
                times only.
            shared: edges, one after another, that have a row together.

        Raises:
            FileFormatError: another number of rows than edges, no numbers, or several times of an
                edge.
        """
        if name == "edge_time":
            rows = _one_time_each(rows, label, "edge")
        dtype = stored or rows.dtype.name
        if stored is None and dtype == "float64" and name in _FLOATS:
            dtype = "float32"
        if not is_dtype(dtype):
            raise FileFormatError(f"{label}: {rows.dtype}, expected numbers")
        order = self.open_edges("edge_id", edge_type)
        wanted = (int(order.max(initial=-1)) + 1) // shared
        if len(rows) != wanted:
            raise FileFormatError(f"{label}: {len(rows)} rows != {wanted} edges")
        shape = (len(order), *rows.shape[1:])
        if name == "edge_features" and self.options.dtype != "keep" and "float" in dtype:
            floats = widen(rows) if dtype == "bfloat16" else rows
            read = permute_rows(floats, order, shared, floats.dtype.name)
            self.write_edge_features(ReadRows(read, shape, floats.dtype), label, edge_type)
            return
        read = permute_rows(rows, order, shared, dtype)
        self.write_edges(name, read, shape, dtype, edge_type)


def _one_time_each(times: NDArray[Any], label: str, of: str) -> NDArray[Any]:
    """(n,) of these, or of (n, 1)."""
    if times.ndim == 2 and times.shape[1] == 1:
        return times[:, 0]
    if times.ndim != 1:
        raise FileFormatError(
            f"{label}: {times.shape} are times, expected one for each {of}, ({len(times)},); give "
            "them another name, or leave them out"
        )
    return times


def _size_of(file: Path) -> tuple[str, int, int]:
    try:
        found = file.stat()
    except FileNotFoundError as error:
        raise MissingFileError(f"{file}: no such file") from error
    except OSError as error:
        raise FileFormatError(f"{file}: cannot be read ({error.strerror})") from error
    return str(file), found.st_size, found.st_mtime_ns


def as_targets(labels: NDArray[Any], label: str, what: str) -> NDArray[np.float32]:
    """The (n,) labels of a regression, as they are stored.

    Args:
        labels: numbers, NaN where unknown.
        label: what to call them in messages.
        what: has one of them each, for messages.

    Raises:
        FileFormatError: numbers that float32 does not hold.
    """
    with np.errstate(over="ignore"):
        table = labels.astype(np.float32)
    if np.isinf(table).any():
        place = int(np.argmax(np.isinf(table)))
        raise FileFormatError(
            f"{label}: {what} {place} has {labels[place]}, expected numbers that float32 can hold, "
            "and NaN where unknown"
        )
    return table


def _as_classes(labels: NDArray[Any], label: str) -> NDArray[np.int64]:
    floats = labels.dtype.kind == "f"
    known = ~np.isnan(labels) if floats else np.ones(len(labels), bool)
    wrong = known & (labels >= MOST_CLASSES)
    if floats:
        wrong |= known & (labels != np.floor(labels))
    if wrong.any():
        node = int(np.argmax(wrong))
        raise FileFormatError(
            f"{label}: labels are not whole numbers below {MOST_CLASSES}: node {node} has "
            f"{labels[node]}; expected classes from 0, and below 0 or NaN where unknown; give "
            "--regression where they are numbers to be predicted"
        )
    return (np.where(known, labels, -1) if floats else labels).astype(np.int64)

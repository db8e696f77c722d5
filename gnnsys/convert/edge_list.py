"""Edge lists in .npy, .npz, Parquet, CSV or text, with features, labels and splits beside them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.convert.arrays import ArraySource, as_matrix
from gnnsys.convert.common import Conversion, ConvertOptions
from gnnsys.convert.edge_files import EdgeFile, open_edges
from gnnsys.convert.node_table import NodeColumns, NodeTable, write_names
from gnnsys.convert.spec import EdgeListSpec
from gnnsys.convert.tables import open_array, read_whole
from gnnsys.errors import ArgumentError

__all__ = ["EdgeList", "EdgeListSpec", "convert_edge_list", "open_edge_list", "write_edge_list"]


def convert_edge_list(spec: EdgeListSpec, path: Path, options: ConvertOptions) -> Path:
    """Makes a dataset folder of an edge list.

    Args:
        spec: the files.
        path: of the folder to make.
        options: of the conversion.

    Returns:
        ``path``.

    Raises:
        MissingFileError, FileFormatError: a file that is not there, damaged, or does not fit.
        ArgumentError: options that contradict each other.
    """
    return write_edge_list(open_edge_list(spec), path, options)


@dataclass(frozen=True, slots=True)
class EdgeList:
    """An edge list and what belongs to it, open."""

    spec: EdgeListSpec
    edges: EdgeFile
    nodes: NodeTable | None
    named: bool
    """Whether nodes have names, or numbers that are not theirs."""

    def describe(self) -> dict[str, dict[str, Any]]:
        """How each file was understood, by its path; the edges with the first of them."""
        ends = self.edges.ends
        about = dict(self.edges.about)
        if ends is not None:
            about |= {"source": ends[0], "target": ends[1]}
        attributes = self.spec.edge_files()
        about |= {name: part for name, part in attributes.items() if part in self.edges.columns}
        used = {*(ends or ()), *attributes.values()}
        left = [name for name in self.edges.columns if name not in used]
        if left:
            about["columns, left out"] = left
        about["ids"] = "names" if self.named else "numbers from 0"
        about["first edges"] = self.edges.first(3)
        told = {str(self.spec.edges): about}
        if self.nodes is not None:
            told[str(self.spec.nodes)] = self.nodes.describe()
        for part in ("features", "labels", "train", "val", "test"):
            path = getattr(self.spec, part)
            if path is not None:
                source = _open(self.spec, path)
                told[str(path)] = {part: f"{source.dtype} of shape {source.shape}"}
        return told


def open_edge_list(spec: EdgeListSpec) -> EdgeList:
    """Opens an edge list and decides how it is read; raises as ``convert_edge_list``."""
    _check_options(spec)
    edges = open_edges(spec)
    nodes = _open_nodes(spec)
    named = spec.ids == "names" or (spec.ids == "auto" and (edges.has_strings or nodes is not None))
    if edges.has_strings and not named:
        raise ArgumentError(f"{spec.edges}: ids are strings; leave out --ids dense")
    by_row = [spec.features, spec.labels, spec.train, spec.val, spec.test]
    if named and nodes is None and any(by_row):
        raise ArgumentError(
            f"{spec.edges}: nodes have names, so --features, --labels, --train, --val and --test "
            "need --nodes FILE with the name of each row"
        )
    if named and spec.num_nodes is not None:
        raise ArgumentError(f"--num-nodes {spec.num_nodes}: nodes have names, which are counted")
    if nodes is not None and not named:
        nodes.check_dense()
    return EdgeList(spec, edges, nodes, named)


def _open_nodes(spec: EdgeListSpec) -> NodeTable | None:
    columns = NodeColumns(id=spec.id_column, label=spec.label_column, features=spec.feature_columns)
    if spec.nodes is not None:
        return NodeTable(spec.nodes, spec.table_options(of_edges=False), columns)
    if columns != NodeColumns():
        raise ArgumentError(
            "--id-column, --label-column and --feature-columns are of --nodes FILE, which is not "
            "given"
        )
    return None


def write_edge_list(source: EdgeList, path: Path, options: ConvertOptions) -> Path:
    """Makes a dataset folder; as ``convert_edge_list``."""
    spec = source.spec
    with Conversion(
        path, options, name=spec.name, kind="edge-list", files=spec.files(), **_about(spec)
    ) as writer:
        _write(writer, spec, source.edges, source.nodes, source.named)
        return writer.commit()


def _check_options(spec: EdgeListSpec) -> None:
    if spec.num_nodes is not None and spec.num_nodes < 0:
        raise ArgumentError(f"--num-nodes {spec.num_nodes}: expected at least 0")
    if spec.num_nodes is not None and spec.nodes is not None:
        raise ArgumentError("--num-nodes and --nodes exclude each other: the table has a row each")
    if spec.random_split is not None:
        _check_shares(spec.random_split)


def _about(spec: EdgeListSpec) -> dict[str, Any]:
    """The options that make the dataset what it is, for graph.json: files by name only."""
    values = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    files = {name for name, value in values.items() if isinstance(value, Path)}
    files |= spec.edge_files().keys()
    return {
        name: Path(value).name if name in files else str(value)
        for name, value in values.items()
        if value is not None and name not in ("edges", "name")
    }


def _write(
    writer: Conversion,
    spec: EdgeListSpec,
    edges: EdgeFile,
    nodes: NodeTable | None,
    named: bool,
) -> None:
    attributes = spec.edge_files()
    names = None
    count, counted = _known_nodes(spec, edges, nodes)
    if named:
        names = nodes.names(edges.has_strings) if nodes else edges.find_names(writer.options.memory)
        count = len(names)
    if count is not None:
        writer.add_nodes(count)
    keep_order = spec.keep_order or bool(attributes)
    writer.write_csc(edges.reader(names), str(spec.edges), keep_order=keep_order, counted=counted)
    for table, part in attributes.items():
        rows = edges.attribute(part, writer.scratch / table, times=table == "edge_time")
        writer.write_edge_rows(table, rows, part)
    _write_nodes(writer, spec, nodes)
    if names is not None:
        write_names(writer, names)


def _known_nodes(
    spec: EdgeListSpec, edges: EdgeFile, nodes: NodeTable | None
) -> tuple[int | None, str]:
    """The number of nodes, where it is told, and the file whose rows they are."""
    if spec.num_nodes is not None:
        return spec.num_nodes, ""
    if nodes is not None:
        return len(nodes), str(spec.nodes)
    if edges.num_nodes is not None:
        return edges.num_nodes, ""
    for part in (spec.features, spec.labels):
        if part:
            return int(_open(spec, part).shape[0]), str(part)
    return None, ""


def _open(spec: EdgeListSpec, part: Path) -> ArraySource:
    return open_array(part, spec.table_options(of_edges=False))


def _write_nodes(writer: Conversion, spec: EdgeListSpec, nodes: NodeTable | None) -> None:
    if spec.features:
        writer.write_features(as_matrix(_open(spec, spec.features)), str(spec.features))
    elif nodes is not None and nodes.feature_columns:
        writer.write_features(nodes.features(), str(spec.nodes), names=nodes.feature_columns)
    labels = None
    if spec.labels:
        labels = read_whole(_open(spec, spec.labels))
        if writer.options.regression and labels.dtype.kind in "iub":
            labels = labels.astype(np.float64)  # a number below 0 is one, too
        writer.write_labels(labels, str(spec.labels))
    elif nodes is not None and nodes.has("label"):
        regression = writer.options.regression
        labels, classes = (nodes.values(), []) if regression else nodes.labels()
        writer.write_labels(labels, str(spec.nodes))
        if classes:
            writer.source["classes"] = classes
    if nodes is not None and nodes.has("time"):
        writer.write_table("time", nodes.times(), str(spec.nodes))
    _write_splits(writer, spec, nodes, labels)


def _write_splits(
    writer: Conversion, spec: EdgeListSpec, nodes: NodeTable | None, labels: NDArray[Any] | None
) -> None:
    given = {"train": spec.train, "val": spec.val, "test": spec.test}
    in_table = nodes.splits() if nodes is not None and nodes.has("split") else {}
    ways = [any(given.values()), bool(in_table), spec.random_split is not None]
    if sum(ways) > 1:
        raise ArgumentError(
            "--train, --val and --test, the column split of --nodes, and --random-split exclude "
            "each other; give one"
        )
    for part, path in given.items():
        if path is not None:
            writer.write_split(part, read_whole(_open(spec, path)), str(path))
    for part, ids in in_table.items():
        writer.write_split(part, ids, str(spec.nodes))
    if spec.random_split is not None:
        drawn = draw_split(labels, writer.num_nodes(), spec.random_split, spec.seed)
        for part, ids in zip(given, drawn, strict=True):
            writer.write_split(part, ids, "--random-split")


def draw_split(
    labels: NDArray[Any] | None, count: int, shares: tuple[float, float, float], seed: int
) -> list[NDArray[np.int64]]:
    """Random nodes to train on, to validate and to test on, among those with a label.

    >>> [len(part) for part in draw_split(None, 10, (0.5, 0.2, 0.3), seed=0)]
    [5, 2, 3]
    """
    _check_shares(shares)
    known = np.arange(count)
    if labels is not None:
        table = labels.reshape(count, -1)
        has_label = ~np.isnan(table) if table.dtype.kind == "f" else table >= 0
        known = np.flatnonzero(has_label.any(axis=1))
    order = np.random.default_rng(seed).permutation(known)
    ends = np.round(np.cumsum(shares) * len(order)).astype(int)
    return [np.sort(part) for part in np.split(order, ends)[:3]]


def _check_shares(shares: tuple[float, float, float]) -> None:
    if not (min(shares) >= 0 and sum(shares) <= 1 + 1e-9):
        raise ArgumentError(
            f"--random-split {shares}: expected three shares from 0 up, together at most 1"
        )

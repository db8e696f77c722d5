"""Edge lists in .npy, .npz, Parquet, CSV or text, with features, labels and splits beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gnnsys.convert.arrays import as_matrix, open_array, split_member
from gnnsys.convert.common import (
    ConvertOptions,
    open_writer,
    write_edge_attribute,
    write_features,
    write_ids,
    write_labels,
)
from gnnsys.convert.csc import write_csc
from gnnsys.convert.edge_files import EdgeFile, open_edges
from gnnsys.convert.node_table import NodeTable, write_names
from gnnsys.dataset.writer import DatasetWriter, cut_rows
from gnnsys.errors import ArgumentError

__all__ = ["EdgeListSpec", "convert_edge_list"]

_ATTRIBUTES = ("edge_features", "edge_weight", "edge_time")


@dataclass(frozen=True, kw_only=True, slots=True)
class EdgeListSpec:
    """An edge list and what belongs to it; every path may be any kind ``open_array`` takes."""

    edges: Path
    """.npy or .npz of (2, edges) or (edges, 2); .parquet, .csv, .tsv or .txt with two columns."""

    name: str

    columns: tuple[str, str] | None = None
    """Of sources and targets; None for those with usual names, else the first two."""

    header: bool | None = None
    """Whether text begins with the columns' names; None to look."""

    ids: Literal["auto", "dense", "names"] = "auto"
    """dense: ids are numbers from 0; names: any numbers or strings, numbered as they appear or as
    ``nodes`` lists them; auto: names for strings or where there is ``nodes``, else dense."""

    nodes: Path | None = None
    """Table with a row for each node: id first, and columns label, split, time, others features."""

    num_nodes: int | None = None
    """None for one more than the greatest id, or the rows of nodes, features or labels."""

    features: Path | None = None
    labels: Path | None = None
    train: Path | None = None
    val: Path | None = None
    test: Path | None = None

    edge_features: str | None = None
    """A file with a row for each edge, or a column of the edge list; likewise the next two."""

    edge_weight: str | None = None
    edge_time: str | None = None

    random_split: tuple[float, float, float] | None = None
    """Shares of the labelled nodes to train on, to validate and to test on."""

    seed: int = 0
    """Of the random split."""

    keep_order: bool = False
    """Write edge_id: the number of each edge in the list."""

    def files(self) -> list[Path]:
        """All that are read."""
        parts = [
            self.edges,
            self.nodes,
            self.features,
            self.labels,
            self.train,
            self.val,
            self.test,
        ]
        files = [split_member(part)[0] for part in parts if part is not None]
        attributes = [split_member(part)[0] for part in self.edge_files().values()]
        return files + [file for file in attributes if file.is_file()]

    def edge_files(self) -> dict[str, str]:
        """The edge attributes asked for, by table."""
        parts = {name: getattr(self, name) for name in _ATTRIBUTES}
        return {name: part for name, part in parts.items() if part is not None}


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
    _check_options(spec)
    edges = open_edges(spec.edges, spec.columns, spec.header, as_names=spec.ids == "names")
    nodes = NodeTable(spec.nodes) if spec.nodes else None
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
    with open_writer(
        path, name=spec.name, kind="edge-list", files=spec.files(), options=options, **_about(spec)
    ) as writer:
        _write(writer, spec, edges, nodes, named, options)
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
    files = {name for name, value in values.items() if isinstance(value, Path)} | {*_ATTRIBUTES}
    return {
        name: Path(value).name if name in files else str(value)
        for name, value in values.items()
        if value is not None and name not in ("edges", "name")
    }


def _write(
    writer: DatasetWriter,
    spec: EdgeListSpec,
    edges: EdgeFile,
    nodes: NodeTable | None,
    named: bool,
    options: ConvertOptions,
) -> None:
    attributes = spec.edge_files()
    names = None
    count = _known_nodes(spec, nodes)
    if named:
        names = nodes.names(edges.has_strings) if nodes else edges.find_names(options.memory)
        count = len(names)
    if count is not None:
        writer.add_nodes(count)
    write_csc(
        writer,
        edges.reader(names),
        label=str(spec.edges),
        num_sources=count,
        num_targets=count,
        undirected=options.undirected,
        keep_order=spec.keep_order or bool(attributes),
        memory=options.memory,
        threads=options.threads,
    )
    for table, part in attributes.items():
        rows = edges.attribute(part, writer.scratch / table)
        write_edge_attribute(writer, table, rows, label=part)
    _write_nodes(writer, spec, nodes, writer.num_nodes(), options)
    if names is not None:
        write_names(writer, names)


def _known_nodes(spec: EdgeListSpec, nodes: NodeTable | None) -> int | None:
    if spec.num_nodes is not None:
        return spec.num_nodes
    if nodes is not None:
        return len(nodes)
    return next(
        (int(open_array(part).shape[0]) for part in (spec.features, spec.labels) if part), None
    )


def _write_nodes(
    writer: DatasetWriter,
    spec: EdgeListSpec,
    nodes: NodeTable | None,
    count: int,
    options: ConvertOptions,
) -> None:
    if spec.features:
        source, label = as_matrix(open_array(spec.features)), str(spec.features)
        write_features(writer, source, options, label=label, num_nodes=count)
    elif nodes is not None and nodes.feature_columns:
        write_features(writer, nodes.features(), options, label=str(spec.nodes), num_nodes=count)
    labels = None
    if spec.labels:
        labels = _read_whole(spec.labels)
        write_labels(writer, labels, label=str(spec.labels), num_nodes=count)
    elif nodes is not None and nodes.has("label"):
        labels, classes = nodes.labels()
        write_labels(writer, labels, label=str(spec.nodes), num_nodes=count)
        if classes:
            writer.source["classes"] = classes
    if nodes is not None and nodes.has("time"):
        times = nodes.times()
        writer.write_nodes("time", cut_rows(times), times.shape, times.dtype.name)
    _write_splits(writer, spec, nodes, labels, count)


def _write_splits(
    writer: DatasetWriter,
    spec: EdgeListSpec,
    nodes: NodeTable | None,
    labels: NDArray[Any] | None,
    count: int,
) -> None:
    given = {"train": spec.train, "val": spec.val, "test": spec.test}
    in_table = nodes.splits() if nodes is not None and nodes.has("split") else {}
    ways = [any(given.values()), bool(in_table), spec.random_split is not None]
    if sum(ways) > 1:
        raise ArgumentError(
            "--train, --val and --test, the column split of --nodes, and --random-split exclude "
            "each other; give one"
        )
    found: list[tuple[Literal["train", "val", "test"], NDArray[Any], str]] = []
    parts: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")
    for part in parts:
        path = given[part]
        if path is not None:
            found.append((part, _read_whole(path), str(path)))
        elif part in in_table:
            found.append((part, in_table[part], str(spec.nodes)))
    if spec.random_split is not None:
        drawn = draw_split(labels, count, spec.random_split, spec.seed)
        found += [(part, ids, "--random-split") for part, ids in zip(parts, drawn, strict=True)]
    for part, ids, label in found:
        write_ids(writer, part, ids, label=label, num_nodes=count)


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


def _read_whole(path: Path) -> NDArray[Any]:
    source = open_array(path)
    blocks: Iterator[NDArray[Any]] = source.blocks()
    return np.concatenate([np.empty((0, *source.shape[1:]), source.dtype), *blocks])

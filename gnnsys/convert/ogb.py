"""Raw folders of OGB's node property datasets to dataset folders, without the package ogb.

The layout is that of ``ogb.io.read_graph_raw`` and ``ogb.nodeproppred`` (github snap-stanford/ogb):
text for most datasets, two .npz files for papers100M, a folder for each type for mag. What
``master.csv`` there says of a dataset stands in ``_DATASETS``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.convert.arrays import ArraySource, NpzMember, npz_members, open_array
from gnnsys.convert.common import (
    ConvertOptions,
    open_writer,
    write_features,
    write_ids,
    write_labels,
    write_node_table,
)
from gnnsys.convert.csc import EdgeReader, write_csc
from gnnsys.convert.ogb_raw import (
    binary_edges,
    need,
    one_graph,
    read_binary_labels,
    read_columns,
    read_count,
    read_ints,
    read_row,
    read_triplets,
    read_type_counts,
    text_edges,
)
from gnnsys.dataset.format import EDGE_TYPE, NODE_TYPE, EdgeType
from gnnsys.dataset.writer import DatasetWriter
from gnnsys.errors import ArgumentError, FileFormatError, MissingFileError
from gnnsys.system.files import write_at

__all__ = ["NAMES", "convert_ogb", "is_ogb"]

_BLOCK_BYTES = 8 << 20
_SPLITS = (("train", "train"), ("val", "valid"), ("test", "test"))
_NODE_TABLES = {"node_year": "time", "node_species": "species", "species": "species"}


@dataclass(frozen=True, slots=True)
class _Dataset:
    """What the raw files do not say."""

    scheme: str
    """Name of the official split."""

    num_classes: int | None
    """None where each column is a label."""

    inverse: bool = False
    """The files hold one direction of every edge."""

    metric: str = "accuracy"


_DATASETS = {
    "ogbn-arxiv": _Dataset("time", 40),
    "ogbn-products": _Dataset("sales_ranking", 47, inverse=True),
    "ogbn-proteins": _Dataset("species", None, inverse=True, metric="rocauc"),
    "ogbn-papers100M": _Dataset("time", 172),
    "ogbn-mag": _Dataset("time", 349),
}
NAMES = tuple(_DATASETS)
"""Datasets that ``convert_ogb`` knows."""

# A file of each of the three layouts that the other two lack.
_TEXT, _BINARY, _TYPES = "edge.csv.gz", "data.npz", "triplet-type-list.csv.gz"


def is_ogb(folder: Path) -> bool:
    """Whether a folder holds the raw files of an OGB dataset."""
    return any((folder / "raw" / file).is_file() for file in (_TEXT, _BINARY, _TYPES))


def convert_ogb(name: str, root: Path, path: Path, options: ConvertOptions) -> Path:
    """Makes a dataset folder of the raw files of an OGB dataset.

    Edges are those of OGB's own loaders: products and proteins get the reverse of every edge, edge
    2k + 1 being that of edge 2k; the others are directed, as in OGB, unless
    ``options.undirected``. Node years become the table time, and labels that are NaN -1.

    Args:
        name: one of ``NAMES``, or of the folders that hold them: arxiv, ogbn_arxiv, …
        root: holds the dataset's folder, or is it; the folder holds ``raw`` and ``split``.
        path: of the folder to make.
        options: of the conversion; ``undirected`` adds nothing to products and proteins.

    Raises:
        ArgumentError: an unknown name, or ``undirected`` for a graph of several types.
        MissingFileError: raw files that are not there.
        FileFormatError: raw files that are damaged, or do not fit one another.

    >>> options = ConvertOptions()
    >>> convert_ogb("arxiv", Path("nowhere"), Path("out"), options)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    gnnsys.errors.MissingFileError: nowhere: no edge.csv.gz, data.npz or ...
    """
    name = f"ogbn-{name.replace('_', '-').removeprefix('ogbn-').removesuffix('-bin')}"
    if name not in _DATASETS:
        raise ArgumentError(f"dataset {name!r} is unknown: expected one of {', '.join(NAMES)}")
    folder = _find_folder(name, root)
    dataset = _DATASETS[name]
    typed = (folder / "raw" / _TYPES).is_file()
    if typed and options.undirected:
        raise ArgumentError(f"{name}: undirected is for graphs of one type; leave it out")
    places = (folder / "raw", folder / "split" / dataset.scheme)
    files = [
        file for place in places for file in place.rglob("*") if file.suffix in (".gz", ".npz")
    ]
    with open_writer(
        path, name=name, kind="ogb", files=sorted(files), options=options, heterogeneous=typed
    ) as writer:
        job = _Job(writer, options, dataset, folder)
        if typed:
            _convert_types(job)
        elif (folder / "raw" / _BINARY).is_file():
            _convert_binary(job)
        else:
            _convert_text(job)
        return writer.commit()


def _find_folder(name: str, root: Path) -> Path:
    short = name.removeprefix("ogbn-")
    names = (f"ogbn_{short}", short, name, f"{short}-bin", ".")
    places = [root / place for place in names]
    for place in places:
        if is_ogb(place):
            return place
    looked = ", ".join(str(place / "raw") for place in places)
    raise MissingFileError(
        f"{root}: no {_TEXT}, {_BINARY} or {_TYPES} in any of {looked}; give --root the folder "
        f"that holds ogbn_{short}, or let ogb's NodePropPredDataset download {name} there"
    )


@dataclass(frozen=True, slots=True)
class _Job:
    writer: DatasetWriter
    options: ConvertOptions
    dataset: _Dataset
    folder: Path

    def raw(self, *parts: str) -> Path:
        return self.folder.joinpath("raw", *parts)

    def split(self, *parts: str) -> Path:
        return self.folder.joinpath("split", self.dataset.scheme, *parts)


# The three layouts --------------------------------------------------------------------------------


def _convert_text(job: _Job) -> None:
    nodes = read_count(job.raw("num-node-list.csv.gz"))
    edges = read_count(job.raw("num-edge-list.csv.gz"))
    job.writer.add_nodes(nodes)
    _write_text_nodes(job, job.raw(), nodes, NODE_TYPE)
    _write_text_labels(job, job.raw("node-label.csv.gz"), job.split(), nodes, NODE_TYPE)
    _write_text_edges(job, job.raw(), edges, (nodes, nodes), EDGE_TYPE)


def _convert_types(job: _Job) -> None:
    counts = read_type_counts(job.raw("num-node-dict.csv.gz"))
    for kind, count in counts.items():
        job.writer.add_nodes(count, kind)
    features = read_row(job.raw("nodetype-has-feat.csv.gz"))
    labels = read_row(job.raw("nodetype-has-label.csv.gz"))
    for kind, count in counts.items():
        if features.get(kind) == "True":
            need(job.raw("node-feat", kind, "node-feat.csv.gz"))
        _write_text_nodes(job, job.raw("node-feat", kind), count, kind)
        if labels.get(kind) == "True":
            file = job.raw("node-label", kind, "node-label.csv.gz")
            _write_text_labels(job, file, job.split(kind), count, kind)
    for edge_type in read_triplets(job.raw(_TYPES), counts):
        folder = job.raw("relations", "___".join(edge_type))
        sizes = counts[edge_type[0]], counts[edge_type[2]]
        edges = read_count(folder / "num-edge-list.csv.gz")
        _write_text_edges(job, folder, edges, sizes, edge_type)


def _convert_binary(job: _Job) -> None:
    file = job.raw(_BINARY)
    nodes, edges = (
        int(one_graph(np.concatenate(list(NpzMember(file, key).blocks())).ravel(), file))
        for key in ("num_nodes_list", "num_edges_list")
    )
    job.writer.add_nodes(nodes)
    members = npz_members(file)
    if "node_feat" in members:
        features = NpzMember(file, "node_feat")
        label = f"{file}:node_feat"
        write_features(job.writer, features, job.options, label=label, num_nodes=nodes)
    for key in sorted(_NODE_TABLES.keys() & members):
        _write_binary_table(job.writer, NpzMember(file, key), _NODE_TABLES[key], nodes, file)
    labels = read_binary_labels(job.raw("node-label.npz"))
    _write_labels(job, labels, job.raw("node-label.npz"), job.split(), nodes, NODE_TYPE)
    index = NpzMember(file, "edge_index", any_order=True)
    if index.shape != (2, edges) or index.dtype.kind not in "iu":
        raise FileFormatError(
            f"{file}:edge_index: {index.dtype} {index.shape}, expected integers (2, {edges})"
        )
    _write_csc(job, binary_edges(index, edges), f"{file}:edge_index", (nodes, nodes), EDGE_TYPE)


def _write_binary_table(
    writer: DatasetWriter, source: NpzMember, name: str, nodes: int, file: Path
) -> None:
    if source.shape not in ((nodes,), (nodes, 1)):
        raise FileFormatError(f"{file}: {name} has the shape {source.shape} != {nodes} nodes")

    def read(first: int) -> Iterator[NDArray[Any]]:
        return (block.reshape(-1) for block in source.blocks(first))

    writer.write_nodes(name, read, (nodes,), source.dtype.name)


# Nodes --------------------------------------------------------------------------------------------


def _write_text_nodes(job: _Job, folder: Path, nodes: int, node_type: str) -> None:
    features = folder / "node-feat.csv.gz"
    if features.is_file():
        write_features(
            job.writer, open_array(features), job.options, label=str(features), num_nodes=nodes,
            node_type=node_type,
        )  # fmt: skip
    for name, table in _NODE_TABLES.items():
        file = folder / f"{name}.csv.gz"
        if file.is_file():
            rows = read_ints(file)
            write_node_table(
                job.writer, table, rows, label=str(file), num_nodes=nodes, node_type=node_type
            )


def _write_text_labels(job: _Job, file: Path, split: Path, nodes: int, node_type: str) -> None:
    parts = [np.stack(columns, axis=1) for columns in read_columns(file, "float64")]
    labels = np.concatenate(parts) if parts else np.empty((0, 1))
    _write_labels(job, labels, file, split, nodes, node_type)


def _write_labels(
    job: _Job, labels: NDArray[Any], file: Path, split: Path, nodes: int, node_type: str
) -> None:
    dataset = job.dataset
    write_labels(
        job.writer, labels, label=str(file), num_nodes=nodes, node_type=node_type,
        num_classes=dataset.num_classes, metric=dataset.metric,
    )  # fmt: skip
    for part, name in _SPLITS:
        ids = read_ints(split / f"{name}.csv.gz")
        label = str(split / f"{name}.csv.gz")
        write_ids(job.writer, part, ids, label=label, num_nodes=nodes, node_type=node_type)  # type: ignore[arg-type]


# Edges --------------------------------------------------------------------------------------------


def _write_text_edges(
    job: _Job, folder: Path, edges: int, sizes: tuple[int, int], edge_type: EdgeType
) -> None:
    file = need(folder / _TEXT)
    tables = {
        "edge_features": folder / "edge-feat.csv.gz",
        "edge_reltype": folder / "edge_reltype.csv.gz",
    }
    tables = {name: table for name, table in tables.items() if table.is_file()}
    read = text_edges(file, edges, job.dataset.inverse)
    _write_csc(job, read, str(file), sizes, edge_type, keep_order=bool(tables))
    for name, table in tables.items():
        _write_edge_table(job, name, open_array(table), table, edges, edge_type)


def _write_csc(
    job: _Job,
    read: EdgeReader,
    label: str,
    sizes: tuple[int, int],
    edge_type: EdgeType,
    keep_order: bool = False,
) -> None:
    write_csc(
        job.writer,
        read,
        label=label,
        num_sources=sizes[0],
        num_targets=sizes[1],
        edge_type=edge_type,
        undirected=job.options.undirected and not job.dataset.inverse,
        keep_order=keep_order,
        memory=job.options.memory,
        threads=job.options.threads,
    )


def _write_edge_table(
    job: _Job, name: str, source: ArraySource, file: Path, edges: int, edge_type: EdgeType
) -> None:
    """Rows of a file of edges in CSC order; an edge and its reverse have the same row."""
    if source.shape[0] != edges:
        raise FileFormatError(f"{file}: {source.shape[0]} rows != {edges} edges")
    writer = job.writer
    staged = writer.scratch / "edge_rows"
    dtype = np.dtype(np.float32) if source.dtype.kind == "f" else source.dtype  # as in OGB

    def stage() -> bool:
        # Text cannot be read in any order, so its numbers are laid out in a file first.
        at = 0
        for block in source.blocks():
            rows = block.astype(dtype, copy=False)
            write_at(staged, at, rows)
            at += rows.nbytes
        return True

    writer.step(f"stage {name} {edge_type!r}", stage)
    order = writer.open_edges("edge_id", edge_type)

    def read(first: int) -> Iterator[NDArray[Any]]:
        if first == len(order):
            return
        rows = np.memmap(staged, dtype, "r", shape=source.shape)
        step = max(1, _BLOCK_BYTES // rows[:1].nbytes)
        for start in range(first, len(order), step):
            yield np.asarray(rows[order[start : start + step] // (1 + job.dataset.inverse)])

    shape = (len(order), *source.shape[1:])
    writer.write_edges(name, read, shape, dtype.name, edge_type)
    staged.unlink(missing_ok=True)

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

from gnnsys.convert.arrays import NpzMember, npz_members
from gnnsys.convert.common import Conversion, ConvertOptions
from gnnsys.convert.edge_files import read_columns, read_matrix, read_rows, spool_array
from gnnsys.convert.ogb_raw import (
    need,
    one_graph,
    read_binary_labels,
    read_count,
    read_ints,
    read_row,
    read_triplets,
    read_type_counts,
)
from gnnsys.convert.tables import open_array, read_whole
from gnnsys.dataset.format import EDGE_TYPE, NODE_TYPE, EdgeType
from gnnsys.errors import ArgumentError, FileFormatError, MissingFileError

__all__ = ["NAMES", "convert_ogb", "is_ogb"]

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
    places = (folder / "raw", folder / "split" / dataset.scheme)
    files = [
        file for place in places for file in place.rglob("*") if file.suffix in (".gz", ".npz")
    ]
    with Conversion(
        path, options, name=name, kind="ogb", files=sorted(files), heterogeneous=typed
    ) as writer:
        job = _Job(writer, dataset, folder)
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
    writer: Conversion
    dataset: _Dataset
    folder: Path

    def raw(self, *parts: str) -> Path:
        return self.folder.joinpath("raw", *parts)

    def split(self, *parts: str) -> Path:
        return self.folder.joinpath("split", self.dataset.scheme, *parts)


# The three layouts --------------------------------------------------------------------------------


def _convert_text(job: _Job) -> None:
    job.writer.add_nodes(read_count(job.raw("num-node-list.csv.gz")))
    _write_text_nodes(job, job.raw(), NODE_TYPE)
    _write_text_labels(job, job.raw("node-label.csv.gz"), job.split(), NODE_TYPE)
    _write_text_edges(job, job.raw(), EDGE_TYPE)


def _convert_types(job: _Job) -> None:
    counts = read_type_counts(job.raw("num-node-dict.csv.gz"))
    for kind, count in counts.items():
        job.writer.add_nodes(count, kind)
    features = read_row(job.raw("nodetype-has-feat.csv.gz"))
    labels = read_row(job.raw("nodetype-has-label.csv.gz"))
    for kind in counts:
        if features.get(kind) == "True":
            need(job.raw("node-feat", kind, "node-feat.csv.gz"))
        _write_text_nodes(job, job.raw("node-feat", kind), kind)
        if labels.get(kind) == "True":
            file = job.raw("node-label", kind, "node-label.csv.gz")
            _write_text_labels(job, file, job.split(kind), kind)
    for edge_type in read_triplets(job.raw(_TYPES), counts):
        _write_text_edges(job, job.raw("relations", "___".join(edge_type)), edge_type)


def _convert_binary(job: _Job) -> None:
    file, writer = job.raw(_BINARY), job.writer
    nodes, edges = (
        one_graph(read_whole(NpzMember(file, key)).ravel(), file)
        for key in ("num_nodes_list", "num_edges_list")
    )
    writer.add_nodes(nodes)
    members = npz_members(file)
    if "node_feat" in members:
        writer.write_features(NpzMember(file, "node_feat"), f"{file}:node_feat")
    for key in sorted(_NODE_TABLES.keys() & members):
        _write_binary_table(writer, NpzMember(file, key), _NODE_TABLES[key], nodes, file)
    labels = job.raw("node-label.npz")
    _write_labels(job, read_binary_labels(labels), labels, job.split(), NODE_TYPE)
    index = NpzMember(file, "edge_index", any_order=True)
    if index.shape != (2, edges) or index.dtype.kind not in "iu":
        raise FileFormatError(
            f"{file}:edge_index: {index.dtype} {index.shape}, expected integers (2, {edges})"
        )
    read = read_matrix(file, index)
    writer.write_csc(read, f"{file}:edge_index", both_ways=job.dataset.inverse)


def _write_binary_table(
    writer: Conversion, source: NpzMember, name: str, nodes: int, file: Path
) -> None:
    if source.shape not in ((nodes,), (nodes, 1)):
        raise FileFormatError(f"{file}: {name} has the shape {source.shape} != {nodes} nodes")

    def read(first: int) -> Iterator[NDArray[Any]]:
        return (block.reshape(-1) for block in source.blocks(first))

    writer.write_nodes(name, read, (nodes,), source.dtype.name)


def _write_text_nodes(job: _Job, folder: Path, node_type: str) -> None:
    features = folder / "node-feat.csv.gz"
    if features.is_file():
        job.writer.write_features(open_array(features), str(features), node_type)
    for name, table in _NODE_TABLES.items():
        file = folder / f"{name}.csv.gz"
        if file.is_file():
            job.writer.write_table(table, read_ints(file), str(file), node_type)


def _write_text_labels(job: _Job, file: Path, split: Path, node_type: str) -> None:
    parts = [np.stack(columns, axis=1) for columns in read_columns(need(file), "float64")]
    labels = np.concatenate(parts) if parts else np.empty((0, 1))
    _write_labels(job, labels, file, split, node_type)


def _write_labels(job: _Job, labels: NDArray[Any], file: Path, split: Path, node_type: str) -> None:
    classes, metric = job.dataset.num_classes, job.dataset.metric
    job.writer.write_labels(labels, str(file), node_type, num_classes=classes, metric=metric)
    for part, name in _SPLITS:
        ids = split / f"{name}.csv.gz"
        job.writer.write_split(part, read_ints(ids), str(ids), node_type)


def _write_text_edges(job: _Job, folder: Path, edge_type: EdgeType) -> None:
    edges = read_count(folder / "num-edge-list.csv.gz")
    file = need(folder / _TEXT)
    tables = {
        "edge_features": folder / "edge-feat.csv.gz",
        "edge_reltype": folder / "edge_reltype.csv.gz",
    }
    tables = {name: table for name, table in tables.items() if table.is_file()}
    inverse = job.dataset.inverse
    job.writer.write_csc(
        read_rows(file, edges, inverse), str(file), edge_type,
        keep_order=bool(tables), both_ways=inverse,
    )  # fmt: skip
    for name, table in tables.items():
        # Text cannot be read in any order, so its numbers are laid out in a file first.
        staged = job.writer.scratch / "edge_rows"
        rows = spool_array(open_array(table), staged)
        # An edge and its reverse have the same row.
        job.writer.write_edge_rows(name, rows, str(table), edge_type, shared=1 + inverse)
        staged.unlink(missing_ok=True)

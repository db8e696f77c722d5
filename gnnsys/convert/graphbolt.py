"""GraphBolt's ``OnDiskDataset`` folders to dataset folders, so that they can be made again.

``graph.json`` keeps the text of ``metadata.yaml`` and, for every file that it names, which table
holds what was in it (``source["graphbolt"]``): ``export_graphbolt`` writes the same arrays again.
What the dataset folder has no table for becomes a table ``gb_NNNN``.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gnnsys.convert.arrays import MatrixRows, as_matrix
from gnnsys.convert.common import Conversion, ConvertOptions
from gnnsys.convert.csc import cut_edges
from gnnsys.convert.edge_files import read_rows
from gnnsys.convert.graphbolt_arrays import EntryArray, open_entry
from gnnsys.convert.graphbolt_metadata import METADATA, EdgeEntry, Entry, Metadata, Record
from gnnsys.convert.graphbolt_task import (
    NodeSet,
    assemble_labels,
    find_node_sets,
    is_same,
    labels_of,
)
from gnnsys.dataset.format import EdgeType
from gnnsys.errors import FileFormatError

__all__ = ["convert_graphbolt", "is_graphbolt"]

_OWN_NODE_TABLES = {"features", "labels", "train", "val", "test"}


def is_graphbolt(source: Path) -> bool:
    """Whether a folder is the base folder of an ``OnDiskDataset``."""
    return (source / METADATA).is_file()


def convert_graphbolt(folder: Path, path: Path, options: ConvertOptions) -> Path:
    """Makes a dataset folder of a GraphBolt folder.

    The node feature ``feat`` becomes features, others tables of their names; edge features become
    edge_features and edge_NAME in CSC order; seeds and labels of the first task that classifies
    nodes train, val, test and labels, -1 where they are not known. ``export_graphbolt`` gives every
    file back as it was; with ``options.dtype`` the features as they were stored, with
    ``options.undirected`` a new GraphBolt folder.

    Args:
        folder: holds ``metadata.yaml``.
        path: of the folder to make.
        options: of the conversion; features keep their element type, also float64, unless it says
            otherwise.

    Raises:
        MissingFileError: no ``metadata.yaml``, or no file that it names.
        FileFormatError: metadata or arrays that are damaged, or do not fit one another.
        ArgumentError: ``options.undirected`` for a graph of several types.

    >>> import tempfile
    >>> import numpy as np
    >>> folder = Path(tempfile.mkdtemp())
    >>> np.save(folder / "edges.npy", np.array([[0, 1, 2], [1, 2, 0]]))
    >>> _ = (folder / "metadata.yaml").write_text(
    ...     "graph: {nodes: [{num: 3}], edges: [{format: numpy, path: edges.npy}]}"
    ... )
    >>> path = convert_graphbolt(folder, folder / "ring", ConvertOptions())
    >>> np.load(path / "indices.npy")
    array([2, 0, 1], dtype=int32)
    """
    metadata = Metadata(folder)
    files = [folder / METADATA, *sorted({folder / entry.path for entry in metadata.files()})]
    with Conversion(
        path, options, name=metadata.name, kind="graphbolt", files=files,
        heterogeneous=metadata.heterogeneous,
    ) as writer:  # fmt: skip
        job = _Job(writer, folder, metadata)
        for node_type, count in metadata.nodes.items():
            writer.add_nodes(count, node_type)
        for edge_type, entry in metadata.edges.items():
            job.write_edges(edge_type, entry)
        for owner, file in metadata.features:
            job.write_feature(owner, file)
        job.write_tasks()
        if not options.undirected:
            files_made = [asdict(record) for record in job.records.values()]
            writer.source["graphbolt"] = {"metadata": metadata.text, "files": files_made}
        return writer.commit()


class _Job:
    """Writes the tables and notes which of them holds what of which file."""

    def __init__(self, writer: Conversion, folder: Path, metadata: Metadata) -> None:
        self._writer, self._folder, self._metadata = writer, folder, metadata
        self._names: set[tuple[Any, str]] = set()
        self.records: dict[str, Record] = {}
        """By path."""

    def _record(self, described: dict[str, Any], **how: Any) -> None:
        # A file that stands in several places is noted once.
        self.records.setdefault(described["path"], Record(**described, **how))

    def write_edges(self, edge_type: EdgeType, entry: EdgeEntry) -> None:
        """Sorts the edges of a type; edge_id tells the order that they came in."""
        file = self._folder / entry.path
        if entry.format == "csv":
            read = read_rows(file)
            described = {"path": entry.path, "format": "csv", "dtype": "<i8", "shape": []}
        else:
            array = open_entry(self._folder, entry)
            if array.rows.shape[:1] != (2,) or array.rows.ndim != 2 or array.dtype[0] not in "iu":
                raise FileFormatError(
                    f"{file}: {array.dtype} {array.rows.shape}, expected integers (2, edges)"
                )
            read, described = cut_edges(array.rows), array.file
        self._record(described, holds="edges", of=edge_type, table="indices")
        self._writer.write_csc(read, str(file), edge_type, keep_order=True)

    def write_feature(self, owner: str | EdgeType | None, file: Entry) -> None:
        """Writes a node feature, an edge feature in CSC order, or a feature of the whole graph."""
        if file.path in self.records:
            return
        array = open_entry(self._folder, file)
        if owner is None:
            self._keep(next(iter(self._metadata.nodes)), array)
        elif isinstance(owner, str):
            self._write_node_feature(owner, str(file.name), array)
        else:
            self._write_edge_feature(owner, str(file.name), array)

    def _write_node_feature(self, node_type: str, name: str, array: EntryArray) -> None:
        taken = () if name == "feat" else _OWN_NODE_TABLES
        table = self._choose_name(node_type, "features" if name == "feat" else name, taken)
        if table == "features":
            # GraphBolt takes a feature of one dimension for a column too.
            rows, bits = as_matrix(MatrixRows(array.rows)), array.dtype == "bfloat16"
            self._writer.write_features(rows, array.label, node_type, bits=bits, exact=True)
        else:
            self._writer.write_table(table, array.rows, array.label, node_type, stored=array.dtype)
        self._record(array.file, holds="node_table", of=node_type, table=table)

    def _write_edge_feature(self, edge_type: EdgeType, name: str, array: EntryArray) -> None:
        wanted = "edge_features" if name == "feat" else f"edge_{name}"
        table = self._choose_name(edge_type, wanted, {"edge_id"}, "edge_gb_")
        self._writer.write_edge_rows(table, array.rows, array.label, edge_type, stored=array.dtype)
        self._record(array.file, holds="edge_rows", of=edge_type, table=table)

    def _choose_name(
        self,
        owner: str | EdgeType,
        name: str,
        taken: Container[str] = (),
        other: str = "gb_",
    ) -> str:
        """The name, where it can be a file's and is free; else the next of ``gb_0000``, …"""
        free = name not in taken and (owner, name) not in self._names
        if not re.fullmatch(r"\w{1,100}", name, re.ASCII) or name.startswith(other) or not free:
            name = f"{other}{len(self._names):04d}"
        self._names.add((owner, name))
        return name

    def _keep(self, owner: str | EdgeType, array: EntryArray) -> None:
        """Keeps a file's array as it is, of any shape."""
        name = self._choose_name(owner, "gb_")
        if isinstance(owner, str):
            self._writer.write_nodes(name, array.read(), array.rows.shape, array.dtype, owner)
            self._record(array.file, holds="node_table", of=owner, table=name)
        else:
            self._writer.write_edges(name, array.read(), array.rows.shape, array.dtype, owner)
            self._record(array.file, holds="edge_table", of=owner, table=name)

    # Tasks ----------------------------------------------------------------------------------------

    def write_tasks(self) -> None:
        """Makes splits and labels of the first task that has them, and keeps the others' files."""
        for task in self._metadata.tasks:
            found = find_node_sets(self._folder, task, self._writer.options.regression)
            if found:
                self._write_node_task(found, task.num_classes)
                break
        for task in self._metadata.tasks:
            for part in task.parts:
                for entry in part.data.values():
                    if entry.path not in self.records:
                        self._keep(part.owner, open_entry(self._folder, entry))

    def _write_node_task(self, sets: list[NodeSet], num_classes: int | None) -> None:
        node_type = sets[0].node_type
        for part in sets:
            self._writer.write_split(part.split, part.seeds.rows, part.seeds.label, node_type)
            self._record(part.seeds.file, holds="node_table", of=node_type, table=part.split)
        regression = self._writer.options.regression
        table = assemble_labels(sets, self._metadata.nodes[node_type], regression)
        label = next(part.labels.label for part in sets if part.labels)
        self._writer.write_labels(table, label, node_type, num_classes=num_classes)
        for part in sets:
            if part.labels and is_same(labels_of(part, table), part.labels.rows):
                self._record(part.labels.file, holds="labels", of=node_type, table=part.split)

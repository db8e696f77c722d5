"""Dataset folders to GraphBolt's ``OnDiskDataset`` folders.

A folder that ``convert_graphbolt`` made is turned back into the same files; of any other, a new
``metadata.yaml`` is written. Arrays pass through in blocks; edges that must go back to their old
order are gathered range by range, so that memory is bounded and every file is written from front
to back.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.convert.graphbolt_files import (
    BLOCK_BYTES,
    Blocks,
    Edges,
    cast,
    take,
    write_array,
    write_csv,
)
from gnnsys.convert.graphbolt_metadata import METADATA, Kept, Record, check_relative
from gnnsys.convert.yaml_files import require_yaml
from gnnsys.dataset.format import EdgeType, Table, edge_folder, is_seed_table, node_folder
from gnnsys.dataset.importance import SCORE_TABLE
from gnnsys.dataset.tables import DatasetTables
from gnnsys.dataset.writer import cut_rows
from gnnsys.errors import ArgumentError, FileFormatError, UnsupportedError
from gnnsys.system.files import as_storage_error, sync
from gnnsys.system.progress import Progress
from gnnsys.system.records import as_record
from gnnsys.system.scratch import ScratchFolder

__all__ = ["export_graphbolt"]

_OLD_TORCH = {"uint16": "int32", "uint32": "int64", "uint64": "int64"}  # what DGL's torch lacks
_SPLITS = {"train_set": "train", "validation_set": "val", "test_set": "test"}


def export_graphbolt(
    folder: Path,
    target: Path,
    *,
    memory: int = 1 << 30,
    progress: Progress = lambda what, done, total: None,
) -> Path:
    """Writes a dataset folder as a folder that ``dgl.graphbolt.OnDiskDataset`` opens.

    What ``convert_graphbolt`` made comes back file by file: arrays of equal values, type and order,
    and the same ``metadata.yaml``. From any other folder go out: the edges in CSC order, features
    as the feature ``feat``, labels as ``label``, further tables under their names without
    ``edge_``, and train, val and test with their labels as a task. bfloat16 becomes float32, which
    GraphBolt can read.

    Args:
        folder: made by ``gnnsys convert`` or ``gnnsys generate``.
        target: the folder to make; must not exist, or be empty.
        memory: bytes for putting edges back in order.
        progress: is told which file is written, how many are, and of how many.

    Raises:
        ArgumentError: ``target`` is in use.
        MissingFileError, FileFormatError: ``folder`` is not whole.
        UnsupportedError: a type's name has a colon, with which GraphBolt separates names; or
            features that are quantised.
        StorageError: ``target`` cannot be written.

    >>> import tempfile, torch
    >>> from torch_geometric.data import Data
    >>> from gnnsys.convert.pyg import ConvertOptions, convert_pyg
    >>> place = Path(tempfile.mkdtemp())
    >>> ring = Data(edge_index=torch.tensor([[0, 1, 2], [1, 2, 0]]), num_nodes=3)
    >>> ours = convert_pyg(ring, place / "ring", ConvertOptions(), name="ring")
    >>> np.load(export_graphbolt(ours, place / "graphbolt") / "edges" / "edges.npy").tolist()
    [[2, 0, 1], [0, 1, 2]]
    """
    folder, target = Path(folder), Path(target).absolute()
    dataset = DatasetTables(folder)
    if dataset.manifest.is_quantised:
        raise UnsupportedError(
            f"{folder}: has features in whole numbers with a scale, which GraphBolt cannot read; "
            "make a folder of floats first: gnnsys convert FOLDER OTHER --dtype float32"
        )
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        raise ArgumentError(
            f"{target}: exists already and is not overwritten; remove it or give another name"
        )
    with as_storage_error(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = ScratchFolder(f".{target.name}.partial-", target.parent)
        made = scratch.path / "graphbolt"
        made.mkdir()
    with closing(scratch):
        exporter = _Exporter(dataset, made, memory, progress)
        if "graphbolt" in dataset.manifest.source:
            exporter.restore(dataset.manifest.source["graphbolt"])
        else:
            exporter.compose()
        with as_storage_error(target):
            for path in (made, *made.rglob("*")):
                sync(path)
            os.rename(made, target)
            sync(target.parent)
    return target


class _Exporter:
    """Writes the files of one GraphBolt folder."""

    def __init__(
        self, dataset: DatasetTables, target: Path, memory: int, progress: Progress
    ) -> None:
        self._dataset, self._target = dataset, target
        self._memory, self._progress = memory, progress

    def _write_metadata(self, text: str) -> None:
        path = self._target / METADATA
        with as_storage_error(path):
            path.write_text(text, encoding="utf-8")

    # What convert_graphbolt noted -----------------------------------------------------------------

    def restore(self, kept: Any) -> None:
        """Writes the files that a GraphBolt folder was converted from."""
        place = f"{self._dataset.path / 'graph.json'}: source.graphbolt"
        known = as_record(kept, Kept, place, "convert the source again")
        owners = [*self._dataset.node_types, *self._dataset.edge_types]
        for number, record in enumerate(known.files):
            check_relative(record.path, f"{place}: path")
            if record.of not in owners:
                raise FileFormatError(f"{place}: {record.path} is of {record.of}, not in the graph")
            self._progress(record.path, number, len(known.files))
            path = self._target / record.path
            if record.format == "csv":
                of: Any = record.of
                write_csv(path, *(self._ordered_edges(of, end) for end in (0, 1)))
            else:
                blocks = cast(*self._stored_blocks(record), record.dtype)
                write_array(path, blocks, record.shape, record.dtype, record.format)
        self._write_metadata(known.metadata)

    def _stored_blocks(self, record: Record) -> tuple[Blocks, str]:
        """What a file held, with the element type of the table that holds it now."""
        dataset = self._dataset
        of: Any = record.of
        if record.holds == "edges":
            ends = (self._ordered_edges(of, end) for end in (0, 1))
            return itertools.chain.from_iterable(ends), "int64"
        if record.holds == "labels":
            labels = dataset.node_table("labels", of)
            return take(labels, dataset.node_table(record.table, of)), labels.dtype.name
        rows = dataset.edge_table(record.table, of)  # or of a node type
        owners: dict[Any, Any] = {**dataset.manifest.nodes, **dataset.manifest.edges}
        dtype = owners[of].tables[record.table].encoding.dtype
        if record.holds != "edge_rows":
            return cut_rows(rows)(0), dtype
        return self._order(of, lambda a, b: rows[a:b], rows.shape[1:], rows.dtype), dtype

    def _order(
        self,
        edge_type: EdgeType,
        rows_of: Callable[[int, int], NDArray[Any]],
        row: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> Blocks:
        """Rows in CSC order back in the order of edge_id: range by range of it."""
        ids = self._dataset.edge_table("edge_id", edge_type)
        row_bytes = max(1, math.prod(row) * dtype.itemsize)
        room, step = max(1, self._memory // row_bytes), max(1, BLOCK_BYTES // max(8, row_bytes))
        for low in range(0, len(ids), room):
            high = min(len(ids), low + room)
            buffer = np.empty((high - low, *row), dtype)
            found = 0
            for start in range(0, len(ids), step):
                part = np.asarray(ids[start : start + step])
                chosen = np.flatnonzero((part >= low) & (part < high))
                buffer[part[chosen] - low] = rows_of(start, start + len(part))[chosen]
                found += len(chosen)
            if found != high - low:
                raise FileFormatError(
                    f"{self._dataset.path}: edge_id of {edge_type} names {found} of the edges "
                    f"[{low}, {high}), expected each once; convert the source again"
                )
            yield buffer

    def _ordered_edges(self, edge_type: EdgeType, end: int) -> Blocks:
        """Sources (0) or targets (1) of the edges in their old order, int64."""
        edges = Edges(self._dataset, edge_type)
        rows_of = (edges.sources, edges.targets)[end]
        return self._order(edge_type, rows_of, (), np.dtype(np.int64))

    # A new folder ---------------------------------------------------------------------------------

    def compose(self) -> None:
        """Writes the files and ``metadata.yaml`` of a folder that came from elsewhere."""
        dataset = self._dataset
        yaml = require_yaml(str(self._target))
        self._check_names()
        features = list(self._compose_features())
        nodes = [
            self._typed(node_type, num=dataset.num_nodes(node_type))
            for node_type in dataset.node_types
        ]
        edges = [self._compose_edges(edge_type) for edge_type in dataset.edge_types]
        content = {
            "dataset_name": dataset.name,
            "graph": {"nodes": nodes, "edges": edges},
            "feature_data": features,
            "tasks": self._compose_tasks(),
        }
        self._write_metadata(yaml.safe_dump(content, sort_keys=False))

    def _check_names(self) -> None:
        parts = [part for edge_type in self._dataset.edge_types for part in edge_type]
        wrong = [part for part in [*self._dataset.node_types, *parts] if ":" in part]
        if wrong and self._dataset.heterogeneous:
            raise UnsupportedError(
                f"{self._dataset.path}: the type {wrong[0]!r} has a colon, with which GraphBolt "
                "separates names; rename it where the graph comes from"
            )

    def _typed(self, owner: str | EdgeType, **entry: Any) -> dict[str, Any]:
        """An entry of the metadata, with its type where the graph has several."""
        name = owner if isinstance(owner, str) else ":".join(owner)
        return ({"type": name} if self._dataset.heterogeneous else {}) | entry

    def _place(self, owner: str | EdgeType, name: str) -> str:
        if isinstance(owner, str):
            return (node_folder(self._dataset.heterogeneous, owner) or "nodes/") + name
        return (edge_folder(self._dataset.heterogeneous, owner) or "edges/") + name

    def _compose_edges(self, edge_type: EdgeType) -> dict[str, Any]:
        edges = Edges(self._dataset, edge_type)
        count = self._dataset.num_edges(edge_type)
        step = BLOCK_BYTES // 8
        blocks = (
            rows_of(start, min(count, start + step))
            for rows_of in (edges.sources, edges.targets)
            for start in range(0, count, step)
        )
        path = self._place(edge_type, "edges.npy")
        write_array(self._target / path, blocks, (2, count), "<i8", "numpy")
        return self._typed(edge_type, format="numpy", path=path)

    def _compose_features(self) -> Iterator[dict[str, Any]]:
        names = {"features": "feat", "labels": "label"}
        for node_type, nodes in self._dataset.manifest.nodes.items():
            for name, table in nodes.tables.items():
                if name in (*_SPLITS.values(), SCORE_TABLE) or name.startswith(("gb_", "node_id_")):
                    continue
                if is_seed_table(name):
                    continue
                if table.shape[0] == nodes.count:
                    rows = self._dataset.node_table(name, node_type)
                    short = names.get(name, name)
                    short = name if short in nodes.tables else short
                    entry = self._typed(node_type, name=short)
                    path = self._place(node_type, f"{name}.npy")
                    yield {"domain": "node", **entry, **self._compose_table(path, rows, table)}
        for edge_type, edges in self._dataset.manifest.edges.items():
            for name, table in edges.tables.items():
                if not name.startswith("edge_") or name == "edge_id":
                    continue
                short = "feat" if name == "edge_features" else name.removeprefix("edge_")
                short = name if f"edge_{short}" in edges.tables.keys() - {name} else short
                rows = self._dataset.edge_table(name, edge_type)
                entry = self._typed(edge_type, name=short)
                path = self._place(edge_type, f"{name}.npy")
                yield {"domain": "edge", **entry, **self._compose_table(path, rows, table)}

    def _compose_table(self, path: str, rows: NDArray[Any], table: Table) -> dict[str, Any]:
        stored = table.encoding.dtype
        dtype = np.dtype("float32" if stored == "bfloat16" else _OLD_TORCH.get(stored, stored)).str
        blocks = cast(cut_rows(rows)(0), stored, dtype)
        write_array(self._target / path, blocks, table.shape, dtype, "numpy")
        return {"format": "numpy", "in_memory": False, "path": path}

    def _compose_tasks(self) -> list[dict[str, Any]]:
        dataset, task = self._dataset, self._dataset.task
        split_types = [kind for kind in dataset.node_types if dataset.has("train", kind)]
        node_type = task.node_type if task else next(iter(split_types), None)
        if node_type is None or not any(dataset.has(s, node_type) for s in _SPLITS.values()):
            return []
        regression = task is not None and task.regression
        name = "node_regression" if regression else "node_classification"
        content: dict[str, Any] = {"name": name}
        if task and not regression:
            content["num_classes"] = task.num_classes
        for key, split in _SPLITS.items():
            if dataset.has(split, node_type):
                content[key] = [self._typed(node_type, data=self._compose_set(split, node_type))]
        return [content]

    def _compose_set(self, split: str, node_type: str) -> list[dict[str, Any]]:
        ids = self._dataset.split_ids(split, node_type)
        arrays = {"seeds": (cut_rows(ids)(0), ids.shape, ids.dtype.str)}
        if self._dataset.has("labels", node_type):
            labels = self._dataset.node_table("labels", node_type)
            shape = (*ids.shape, *labels.shape[1:])
            arrays["labels"] = (take(labels, ids), shape, labels.dtype.str)
        data = []
        for name, (blocks, shape, dtype) in arrays.items():
            path = self._place(node_type, f"{split}-{name}.npy")
            write_array(self._target / path, blocks, shape, dtype, "numpy")
            data.append({"name": name, "format": "numpy", "path": path})
        return data

"""Tasks of a RelBench folder to seeds: nodes, times and labels, in the tables of a node type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.convert.common import MOST_CLASSES, Conversion, as_targets
from gnnsys.convert.dialect import require_pyarrow
from gnnsys.convert.relational_keys import Keys
from gnnsys.convert.relational_table import read_times
from gnnsys.convert.relbench_manifest import SPLITS, RelBenchManifest, TaskEntry
from gnnsys.convert.tables import ParquetTable
from gnnsys.convert.values import as_plain, is_list, is_string, number_type, to_rows
from gnnsys.dataset.writer import cut_rows
from gnnsys.errors import FileFormatError

__all__ = ["TaskWriter"]

_BLOCK_ROWS = 1 << 20


@dataclass(slots=True)
class _Split:
    """The rows of one split."""

    nodes: NDArray[np.int64]
    time: NDArray[np.int64] | None
    labels: NDArray[Any] | None
    targets: tuple[NDArray[np.int64], NDArray[np.int64]] | None
    """Ids, and where those of each row end."""


class TaskWriter:
    """Writes the seeds of one task.

    Args:
        writer: of the dataset folder.
        manifest: of the RelBench folder.
        name: of the task.
        keys: by table.
        drop: whether rows of absent nodes are left out; else they are errors.
    """

    def __init__(
        self,
        writer: Conversion,
        manifest: RelBenchManifest,
        name: str,
        keys: dict[str, Keys],
        drop: bool,
    ) -> None:
        self._writer, self._manifest, self._name, self._keys = writer, manifest, name, keys
        self._task: TaskEntry = manifest.tasks[name]
        self._drop = drop
        self._classes: list[str] | None = None
        self._width: int | None = None
        """Labels of a row, where it has several."""
        self.dropped = 0
        """Rows left out."""
        self.unknown = 0
        """Labels that are words of no class."""

    def write(self) -> dict[str, Any]:
        """Writes all splits; returns what ``graph.json`` says of the task."""
        task = self._task
        node_type = str(task.src_entity_table if task.of_links else task.entity_table)
        rows: dict[str, int] = {}
        splits: dict[str, _Split] = {}
        for split in SPLITS:
            path = self._manifest.split_path(self._name, split)
            if path.is_file():
                splits[split] = found = self._read(path)
                rows[split] = len(found.nodes)
                self._write_split(split, node_type, found)
        about: dict[str, Any] = {"task_type": task.task_type, "node_type": node_type, "rows": rows}
        if task.of_links:
            about["target_type"] = task.dst_entity_table
        if self._classes is not None:
            about["classes"] = self._classes
        if len(self._manifest.tasks) == 1:
            about["is_of_folder"] = self._write_node_tables(node_type, splits)
        return about

    # Reading --------------------------------------------------------------------------------------

    def _read(self, path: Path) -> _Split:
        task, table = self._task, ParquetTable(path)
        entity_type = str(task.src_entity_table if task.of_links else task.entity_table)
        named = task.src_entity_col if task.of_links else task.entity_col
        entity = str(named or self._manifest.tables[entity_type].pkey)
        target = task.dst_entity_col if task.of_links else task.target_col
        time = task.time_col
        if time is None and task.kind == "autocomplete":
            time = self._manifest.tables[entity_type].time_col
        for column in (entity, time):
            if column is not None and column not in table.names:
                raise FileFormatError(
                    f"{path}: no column {column}, which the task's manifest names; it has "
                    f"{', '.join(table.names)}"
                )
        nodes = self._read_nodes(path, table, entity, entity_type)
        known = nodes >= 0
        times = self._read_times(path, table, time) if time is not None else None
        labels = targets = None
        if target not in table.names and path != self._manifest.split_path(self._name, "test"):
            raise FileFormatError(
                f"{path}: no column {target}, which the task's manifest names; it has "
                f"{', '.join(table.names)}; only those of a test may be kept back"
            )
        if target in table.names:
            if task.of_links:
                targets = self._read_targets(path, table, str(target), known)
            else:
                labels = self._read_labels(path, table, str(target))[known]
        return _Split(nodes[known], None if times is None else times[known], labels, targets)

    def _read_nodes(
        self, path: Path, table: ParquetTable, column: str, node_type: str
    ) -> NDArray[np.int64]:
        """The node of each row, below 0 where there is none."""
        row, parts = 0, [np.empty(0, np.int64)]
        for batch in table.batches([column], _BLOCK_ROWS):
            values = batch.column(0)
            found = self._keys[node_type].find(path, column, values, row)
            self._note_absent(path, column, values, found, row + np.arange(len(found)), node_type)
            parts.append(found)
            row += batch.num_rows
        return np.concatenate(parts)

    def _note_absent(
        self,
        path: Path,
        column: str,
        values: Any,
        found: NDArray[np.int64],
        rows: NDArray[np.int64],
        node_type: str,
    ) -> None:
        wrong = found < 0
        self.dropped += int(wrong.sum())
        if wrong.any() and not self._drop:
            place = int(np.argmax(wrong))
            raise FileFormatError(
                f"{path}: row {rows[place]} has {values[place].as_py()!r} in column {column}, "
                f"which no row of {node_type} has for its primary key; --dangling drop leaves such "
                "rows out"
            )

    def _read_times(self, path: Path, table: ParquetTable, column: str) -> NDArray[np.int64]:
        row, parts = 0, [np.empty(0, np.int64)]
        for batch in table.batches([column], _BLOCK_ROWS):
            values = batch.column(0)
            if values.null_count:
                place = row + int(np.argmax(values.is_null().to_numpy(zero_copy_only=False)))
                raise FileFormatError(
                    f"{path}: row {place} has no time in column {column}, at which is predicted; "
                    "give it one, or leave the row out"
                )
            parts.append(read_times(path, column, values, row))
            row += batch.num_rows
        return np.concatenate(parts)

    def _read_column(self, path: Path, table: ParquetTable, column: str) -> Any:
        pa = require_pyarrow(str(path))
        batches = table.batches([column], _BLOCK_ROWS)
        arrays = [as_plain(path, column, batch.column(0)) for batch in batches]
        kind = table.schema.field(column).type
        return pa.chunked_array(arrays).combine_chunks() if arrays else pa.array([], kind)

    def _read_targets(
        self, path: Path, table: ParquetTable, column: str, known: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids of the nodes that each row leads to, and where those of each row end."""
        pa = require_pyarrow(str(path))
        node_type = str(self._task.dst_entity_table)
        lists = self._read_column(path, table, column)
        if is_list(pa, lists.type):
            values, of = lists.flatten(), pa.compute.list_parent_indices(lists).to_numpy()
        else:
            values, of = lists, np.arange(len(lists))
        ids = self._keys[node_type].find(path, column, values, 0)
        kept = known[of]
        values, ids, of = values.filter(pa.array(kept)), ids[kept], of[kept]
        self._note_absent(path, column, values, ids, of, node_type)
        there = ids >= 0
        counts = np.bincount(of[there], minlength=len(known))[known]
        return ids[there], np.cumsum(counts)

    def _read_labels(self, path: Path, table: ParquetTable, column: str) -> NDArray[Any]:
        values = self._read_column(path, table, column)
        kind = self._task.task_type
        if kind == "multilabel_classification":
            return self._read_label_lists(path, column, values)
        if is_string(values.type) and kind != "regression":
            return self._number_classes(path, column, values.to_pylist())
        pa = require_pyarrow(str(path))
        types = pa.types
        of_numbers = (types.is_integer, types.is_floating, types.is_boolean, types.is_null)
        if not any(is_it(values.type) for is_it in of_numbers):
            raise FileFormatError(
                f"{path}: column {column} holds {values.type}, expected numbers for {kind}"
            )
        numbers = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        if kind == "regression":
            return as_targets(numbers, f"{path}, column {column}", "row")
        known = ~np.isnan(numbers)
        binary = kind == "binary_classification"
        most = 1 if binary else MOST_CLASSES - 1
        wrong = known & ((numbers < 0) | (numbers > most) | (numbers != np.floor(numbers)))
        if wrong.any():
            row = int(np.argmax(wrong))
            expected = "0 or 1" if binary else f"classes from 0 to {most}"
            raise FileFormatError(
                f"{path}: row {row} has {numbers[row]} in column {column}, expected {expected}, "
                "and nothing where it is unknown"
            )
        return np.where(known, numbers, -1).astype(np.int64)

    def _read_label_lists(self, path: Path, column: str, values: Any) -> NDArray[np.float32]:
        """A list for each row, of as many labels as the first split has; NaN where unknown."""
        pa = require_pyarrow(str(path))
        if pa.types.is_null(values.type):  # as pandas writes a column without a value
            values = values.cast(pa.list_(pa.float32()))
        if not is_list(pa, values.type) or number_type(pa, values.type) is None:
            raise FileFormatError(
                f"{path}: column {column} holds {values.type}, expected lists of 0 and 1 for "
                f"{self._task.task_type}"
            )
        lists = values.drop_null()
        if self._width is None and len(lists):
            self._width = len(lists[0])
        if not self._width:
            raise FileFormatError(
                f"{path}: column {column} has no label, expected lists of 0 and 1; fill them in"
            )
        labels = to_rows(path, column, values, row=0, width=self._width, missing=np.nan)
        wrong = ~np.isin(labels, (0, 1)) & ~np.isnan(labels)
        if wrong.any():
            row, label = np.argwhere(wrong)[0].tolist()
            raise FileFormatError(
                f"{path}: row {row} has {labels[row, label]} in column {column}, expected 0 or 1 "
                "in each list, and nothing where it is unknown"
            )
        return labels

    def _number_classes(
        self, path: Path, column: str, words: Sequence[str | None]
    ) -> NDArray[np.int64]:
        """Classes that are words, by those of the first split; others are unknown."""
        if self._classes is None:
            self._classes = sorted({word for word in words if word is not None})
        binary = self._task.task_type == "binary_classification"
        if binary and len(self._classes) > 2:
            raise FileFormatError(
                f"{path}: column {column} holds {len(self._classes)} classes "
                f"({', '.join(map(repr, self._classes[:3]))}, ...), expected 2 for "
                f"{self._task.task_type}; mend the file, or make it multiclass_classification"
            )
        numbers = {word: number for number, word in enumerate(self._classes)}
        self.unknown += sum(word is not None and word not in numbers for word in words)
        return np.array([-1 if w is None else numbers.get(w, -1) for w in words], np.int64)

    # Writing --------------------------------------------------------------------------------------

    def _write_split(self, split: str, node_type: str, found: _Split) -> None:
        ids, ends = found.targets or (None, None)
        tables = {
            "nodes": found.nodes, "time": found.time, "labels": found.labels, "targets": ids,
            "ends": ends,
        }  # fmt: skip
        for what, rows in tables.items():
            if rows is not None:
                name = f"{split}.{self._name}.{what}"
                shape, dtype = rows.shape, rows.dtype.name
                self._writer.write_nodes(name, cut_rows(rows), shape, dtype, node_type)

    def _write_node_tables(self, node_type: str, splits: dict[str, _Split]) -> bool:
        """Writes labels, train, val and test where the task asks for classes of each node once, and
        nothing has a time, which those who take these tables for seeds might not sample by; returns
        whether it does."""
        timed = any(table.time_col for table in self._manifest.tables.values())
        if timed or self._task.of_links or self._task.task_type == "regression":
            return False
        every = splits.values()
        labelled = [(each.nodes, each.labels) for each in every if each.labels is not None]
        nodes = np.concatenate([each.nodes for each in every])
        if not labelled or len(np.unique(nodes)) < len(nodes):
            return False
        some = labelled[0][1]
        shape = (self._writer.num_nodes(node_type), *some.shape[1:])
        table = np.full(shape, np.nan if some.dtype.kind == "f" else -1, some.dtype)
        for of, labels in labelled:
            table[of] = labels
        binary = self._task.task_type == "binary_classification"
        self._writer.write_labels(
            table, f"task {self._name}", node_type,
            num_classes=2 if binary else None, metric="rocauc" if binary else None,
        )  # fmt: skip
        for split, each in splits.items():
            self._writer.write_split(split, each.nodes, f"task {self._name}, {split}", node_type)
        return True

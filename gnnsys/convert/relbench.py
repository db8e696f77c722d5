"""RelBench folders to dataset folders: a relational database as a graph, out of core.

A table becomes a node type, a row a node. A column of foreign keys becomes two edge types, named as
RelBench names them: (TABLE, f2p_COLUMN, OTHER) from each row to the row that it refers to, and
(OTHER, rev_f2p_COLUMN, TABLE) back. The other columns become features
(``gnnsys.convert.relational_columns``), whose statistics are those of rows up to the database's
val_timestamp; the time column is a feature and the table time.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from gnnsys.convert.common import Conversion, ConvertOptions
from gnnsys.convert.node_table import write_names
from gnnsys.convert.relational_keys import ForeignKeys, Keys
from gnnsys.convert.relational_table import RelationalTable
from gnnsys.convert.relbench_manifest import MANIFEST, RelBenchManifest
from gnnsys.convert.relbench_tasks import TaskWriter
from gnnsys.convert.spec import RelationalParts
from gnnsys.errors import ArgumentError, FileFormatError

__all__ = ["convert_relbench", "is_relbench"]

_log = logging.getLogger(__name__)


def is_relbench(source: Path) -> bool:
    """Whether a folder is laid out as RelBench does."""
    return (source / MANIFEST).is_file() and (source / "db").is_dir()


def convert_relbench(
    folder: Path,
    path: Path,
    options: ConvertOptions,
    parts: RelationalParts | None = None,
    *,
    name: str | None = None,
) -> Path:
    """Makes a dataset folder of a relational database.

    Tables are read in blocks of rows, several times; memory holds the keys that are not row
    numbers, and the rows of one task. Rows stand in the order of their times.

    Args:
        folder: holds ``manifest.yaml``, ``db`` and, where there are any, ``tasks``.
        path: of the folder to make.
        options: of the conversion.
        parts: how the database is read; None for the defaults.
        name: of the dataset; None for the database's.

    Raises:
        MissingFileError: a file that a manifest names is not there.
        FileFormatError: manifests or tables that do not fit one another; keys of absent rows,
            unless they are dropped; rows that are not in the order of their times.
        ArgumentError: there is no such task, ``options.undirected``, or ``options.nan`` of mean.
        TooLargeError: more keys that are no row numbers, of all tables, than fit in
            ``options.memory``.

    >>> import tempfile
    >>> import pyarrow as pa
    >>> from pyarrow import parquet
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "db").mkdir()
    >>> users = pa.table({"id": [0, 1], "age": [20.0, 40.0]})
    >>> orders = pa.table({"user": [1, 1, 0], "price": [1.0, 2.0, 6.0]})
    >>> parquet.write_table(users, folder / "db" / "users.parquet")
    >>> parquet.write_table(orders, folder / "db" / "orders.parquet")
    >>> _ = (folder / "manifest.yaml").write_text(
    ...     "val_timestamp: '2020-01-01'\\n"
    ...     "tables: {users: {pkey: id}, orders: {fkeys: {user: users}}}"
    ... )
    >>> from gnnsys.dataset.tables import DatasetTables
    >>> made = DatasetTables(convert_relbench(folder, folder / "graph", ConvertOptions()))
    >>> made.node_table("features", "users").tolist()
    [[-1.0], [1.0]]
    >>> made.edge_table("indices", ("users", "rev_f2p_user", "orders")).tolist()
    [1, 1, 0]
    """
    parts = parts or RelationalParts()
    if options.nan == "mean":
        raise ArgumentError(
            "--nan mean: means of all rows tell of those after val_timestamp; replace what is NaN "
            "in embeddings by --nan zero"
        )
    manifest = RelBenchManifest(folder, parts.task)
    given = {key: value for key, value in dataclasses.asdict(parts).items() if value is not None}
    with Conversion(
        path, options, name=name or manifest.name, kind="relbench", files=manifest.files(),
        heterogeneous=True, way_out="its edge types have their reverses already", **given,
    ) as writer:  # fmt: skip
        _Job(writer, manifest, parts).write()
        return writer.commit()


class _Job:
    """Writes the tables of one database."""

    def __init__(
        self, writer: Conversion, manifest: RelBenchManifest, parts: RelationalParts
    ) -> None:
        self._writer, self._manifest, self._parts = writer, manifest, parts
        hidden = {pair for task in manifest.tasks.values() for pair in task.hidden()}
        self._hidden = {
            name: {column for table, column in hidden if table == name} for name in manifest.tables
        }
        self._tables = {
            name: RelationalTable(
                manifest.table_path(name),
                pkey=entry.pkey,
                fkeys=set(entry.keys),
                time=entry.time_col,
                hidden=self._hidden[name],
                cut=manifest.cut,
                categories=parts.categories,
            )
            for name, entry in manifest.tables.items()
        }
        manifest.check_columns({name: table.table.names for name, table in self._tables.items()})

    def write(self) -> None:
        """Nodes, then edges, then tasks."""
        source = self._writer.source
        for name, table in self._tables.items():
            self._writer.add_nodes(table.rows, name)
        source["columns"] = {name: self._write_nodes(name) for name in self._tables}
        keys = self._read_keys()
        references = [self._write_edges(name, keys) for name in self._tables]
        source["references"] = {key: told for each in references for key, told in each.items()}
        source["tasks"] = {name: self._write_task(name, keys) for name in self._manifest.tasks}

    def _write_nodes(self, name: str) -> dict[str, Any]:
        """Features and times; returns what the columns became."""
        table, writer = self._tables[name], self._writer
        if table.has_times:
            writer.write_nodes("time", table.times, (table.rows,), "int64", name)
            without = table.count_without_time()
            if without:
                _log.warning(
                    "%s: %d of %d rows have no time, so that no seed with a time has them for "
                    "neighbours",
                    table.path, without, table.rows,
                )  # fmt: skip
        taken = table.take_statistics()
        if table.rows and not taken:
            _log.warning(
                "%s: no row is as early as val_timestamp, so that nothing is known of its columns: "
                "numbers stay as they are, and no value has a category",
                table.path,
            )
        features = table.features()
        if features.shape[1]:
            names = table.feature_names()
            writer.write_features(features, str(table.path), name, names=names)
        told = table.about()
        left = [f"{column} ({each['why']})" for column, each in told.items() if "why" in each]
        if left:
            _log.warning("%s: columns left out: %s", table.path, ", ".join(left))
        return told

    def _read_keys(self) -> dict[str, Keys]:
        """Of the tables that any other or a task refers to."""
        used = {other for entry in self._manifest.tables.values() for other in entry.keys.values()}
        for task in self._manifest.tasks.values():
            tables = (task.entity_table, task.src_entity_table, task.dst_entity_table)
            used |= {table for table in tables if table is not None}
        found = {}
        memory = self._writer.options.memory
        for name in sorted(used):
            table, pkey = self._tables[name], str(self._manifest.tables[name].pkey)
            found[name] = keys = Keys(table.path, table.table, pkey, memory)
            if keys.names is not None:
                memory -= keys.names.num_bytes
                write_names(self._writer, keys.names, name)
        return found

    def _write_edges(self, name: str, keys: dict[str, Keys]) -> dict[str, dict[str, int]]:
        """Those of a table's foreign keys; returns how many rows refer to what, by column."""
        told: dict[str, dict[str, int]] = {}
        table, writer = self._tables[name], self._writer
        for column, other in self._manifest.tables[name].keys.items():
            if column in self._hidden[name]:
                continue
            refers = ForeignKeys(table.path, table.table, column, keys[other])
            found, absent, first = refers.count()
            if absent:
                what = (
                    f"{table.path}: {absent} of {table.rows} keys in column {column} refer to rows "
                    f"that {other} does not have, the first {first}"
                )
                if self._parts.dangling == "refuse":
                    raise FileFormatError(f"{what}; --dangling drop leaves these edges out")
                _log.warning("%s; dropped", what)
            told[f"{name}.{column}"] = {
                "rows": table.rows, "edges": found, "absent": absent,
                "empty": table.rows - found - absent,
            }  # fmt: skip
            label = f"{table.path}, column {column}"
            writer.write_csc(refers.edges, label, (name, f"f2p_{column}", other))
            writer.write_csc(refers.reversed_edges, label, (other, f"rev_f2p_{column}", name))
        return told

    def _write_task(self, name: str, keys: dict[str, Keys]) -> dict[str, Any]:
        drop = self._parts.dangling == "drop"
        task = TaskWriter(self._writer, self._manifest, name, keys, drop)
        about = task.write()
        if task.unknown:
            _log.warning(
                "task %s: %d labels are words that the first split does not have, and so unknown",
                name, task.unknown,
            )  # fmt: skip
            about["unknown"] = task.unknown
        if task.dropped:
            _log.warning(
                "task %s: %d rows or targets whose keys are of no row are dropped",
                name, task.dropped,
            )  # fmt: skip
            about["dropped"] = task.dropped
        return about

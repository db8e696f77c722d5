"""What the manifests of a RelBench folder say. Pure but for looking which files are there.

The format is that of RelBench 3 (github.com/stanford-star/relbench, "Bring your own data"):
``manifest.yaml`` names tables, keys and times, ``db/TABLE.parquet`` holds their rows, and
``tasks/TASK`` a manifest and the rows of each split.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Literal

from gnnsys.convert.yaml_files import read_yaml
from gnnsys.errors import ArgumentError, FileFormatError, MissingFileError, UnsupportedError
from gnnsys.system.records import as_record

__all__ = ["MANIFEST", "SPLITS", "RelBenchManifest", "TableEntry", "TaskEntry", "TaskType"]

MANIFEST = "manifest.yaml"
"""Name of the file in a RelBench folder, and in that of each task."""

SPLITS = ("train", "val", "test")

TaskType = Literal[
    "binary_classification",
    "multiclass_classification",
    "multilabel_classification",
    "regression",
    "recommendation",
    "link_prediction",
]
"""What is predicted; link_prediction is recommendation by its name before RelBench 3."""

_LINKS = ("recommendation", "link_prediction")
_VERSION = 1
_TASK_NAME = re.compile(r"[\w-]{1,100}", re.ASCII)
_WAY_OUT = "mend the file"


@dataclass(frozen=True, kw_only=True)
class TableEntry:
    """One of the tables."""

    pkey: str | None = None
    """Column of its primary key."""

    time_col: str | None = None
    """Column that says when each row came to be."""

    fkeys: dict[str, str] | None = None
    """The table that each column of foreign keys refers to."""

    @property
    def keys(self) -> dict[str, str]:
        """``fkeys``, or nothing."""
        return self.fkeys or {}


@dataclass(frozen=True, kw_only=True)
class _Content:
    tables: dict[str, TableEntry]
    val_timestamp: Any
    name: Any = None
    manifest_version: int = _VERSION


@dataclass(frozen=True, kw_only=True)
class TaskEntry:
    """One of the tasks; see RelBench for the fields of its manifest."""

    task_type: TaskType
    kind: Literal["forecast", "autocomplete", "external"]
    entity_table: str | None = None
    entity_col: str | None = None
    target_col: str | None = None
    time_col: str | None = None
    src_entity_table: str | None = None
    src_entity_col: str | None = None
    dst_entity_table: str | None = None
    dst_entity_col: str | None = None
    remove_columns: list[tuple[str, str]] = field(default_factory=list)

    @property
    def of_links(self) -> bool:
        """Whether rows of another table are predicted, not a value."""
        return self.task_type in _LINKS

    def hidden(self) -> set[tuple[str, str]]:
        """Tables and columns that a model must not see."""
        hidden = set(self.remove_columns)
        if self.kind == "autocomplete" and self.entity_table and self.target_col:
            hidden.add((self.entity_table, self.target_col))
        return hidden


class RelBenchManifest:
    """``manifest.yaml`` and those of the tasks, held against each other and the files there.

    Args:
        folder: that holds it.
        task: the only task to take; None for all.

    Raises:
        MissingFileError: a manifest or a file that it names is not there.
        FileFormatError: it is not YAML, lacks keys, or names what is not there.
        ArgumentError: there is no such task.
        UnsupportedError: a newer version.
    """

    def __init__(self, folder: Path, task: str | None = None) -> None:
        self._folder, self._path = folder, folder / MANIFEST
        _, read = read_yaml(self._path, "RelBench")
        content = as_record(read, _Content, str(self._path), _WAY_OUT)
        if content.manifest_version != _VERSION:
            raise UnsupportedError(
                f"{self._path}: manifest_version {content.manifest_version}, this gnnsys reads "
                f"{_VERSION}; write that version"
            )
        self.name = str(content.name or folder.name)
        self.tables = content.tables
        if not self.tables:
            raise self._fault("tables names none, expected at least one")
        for name in self.tables:
            self._check_table(name)
        self.cut = self._parse_time(content.val_timestamp)
        """Microseconds since 1970; what is later is for validation and tests."""
        self.tasks = self._read_tasks(task)
        """By name."""

    def table_path(self, table: str) -> Path:
        """Of the rows of a table: a file, or a folder of parts."""
        return self._folder / "db" / f"{table}.parquet"

    def split_path(self, task: str, split: str) -> Path:
        """Of the rows of a split, which may not be there."""
        return self._folder / "tasks" / task / f"{split}.parquet"

    def files(self) -> list[Path]:
        """All that are read."""
        manifests = [self._path, *map(self._task_path, self.tasks)]
        places = [self.table_path(name) for name in self.tables]
        splits = [self.split_path(name, split) for name in self.tasks for split in SPLITS]
        parts = [file for place in places for file in [place, *sorted(place.rglob("*"))]]
        return [file for file in [*manifests, *parts, *splits] if file.is_file()]

    def check_columns(self, columns: Mapping[str, Sequence[str]]) -> None:
        """Checks that what tasks hide is there.

        Args:
            columns: that each table has.

        Raises:
            FileFormatError: a column that is not there.
        """
        for name, task in self.tasks.items():
            for table, column in task.remove_columns:
                if column not in columns[table]:
                    raise FileFormatError(
                        f"{self._task_path(name)}: remove_columns names column {column!r} of "
                        f"{table}, expected one of {', '.join(columns[table])}; {_WAY_OUT}"
                    )

    def _task_path(self, task: str) -> Path:
        return self._folder / "tasks" / task / MANIFEST

    def _fault(self, what: str) -> FileFormatError:
        return FileFormatError(f"{self._path}: {what}; {_WAY_OUT}")

    def _check_table(self, name: str) -> None:
        if not name or "/" in name or name.startswith("."):
            raise self._fault(f"tables names {name!r}, expected the name of a file in db")
        if not self.table_path(name).exists():
            raise MissingFileError(
                f"{self.table_path(name)}: no such file, but {self._path} names it"
            )
        for column, other in self.tables[name].keys.items():
            place = f"tables.{name}.fkeys.{column}"
            if other not in self.tables:
                raise self._fault(f"{place} is {other!r}, expected one of {', '.join(self.tables)}")
            if self.tables[other].pkey is None:
                raise self._fault(f"{place} is {other!r}, which has no pkey to refer to")

    def _parse_time(self, value: Any) -> int:
        """Microseconds since 1970; in UTC where no zone is given."""
        try:  # YAML makes dates and times of some; Python 3.10 does not know Z
            time = datetime.fromisoformat(str(value).replace("Z", "+00:00"))
        except ValueError:
            raise self._fault(
                f"val_timestamp is {value!r}, expected a time such as '2005-01-01'"
            ) from None
        zoned = time if time.tzinfo else time.replace(tzinfo=timezone.utc)
        return (zoned - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(microseconds=1)

    # Tasks ----------------------------------------------------------------------------------------

    def _read_tasks(self, only: str | None) -> dict[str, TaskEntry]:
        found = sorted(each.parent.name for each in self._folder.glob(f"tasks/*/{MANIFEST}"))
        if only is not None and only not in found:
            raise ArgumentError(
                f"--task {only}: {self._folder} has {', '.join(found) or 'no tasks'}; choose one "
                "of these, or leave it out"
            )
        return {name: self._read_task(name) for name in ([only] if only else found)}

    def _read_task(self, name: str) -> TaskEntry:
        path = self._task_path(name)
        if not _TASK_NAME.fullmatch(name):
            raise FileFormatError(
                f"{path.parent}: a task of this name, expected letters, digits, _ and -; rename it"
            )
        _, read = read_yaml(path, "RelBench")
        task = as_record(read, TaskEntry, str(path), _WAY_OUT)
        wanted: Sequence[str] = ("entity_table", "target_col")
        if task.of_links:
            wanted = ("src_entity_table", "src_entity_col", "dst_entity_table", "dst_entity_col")
        for key in wanted:
            if getattr(task, key) is None:
                raise FileFormatError(f"{path}: no {key}; {_WAY_OUT}")
        for key in ("entity_table", "src_entity_table", "dst_entity_table"):
            table = getattr(task, key)
            if table is not None and table not in self.tables:
                known = ", ".join(self.tables)
                raise FileFormatError(
                    f"{path}: {key} is {table!r}, expected one of {known}; {_WAY_OUT}"
                )
            if table is not None and self.tables[table].pkey is None:
                raise FileFormatError(f"{path}: {key} is {table!r}, which has no pkey; {_WAY_OUT}")
        for table, column in task.remove_columns:
            if table not in self.tables:
                raise FileFormatError(
                    f"{path}: remove_columns names column {column!r} of {table!r}, expected a "
                    f"column of one of {', '.join(self.tables)}; {_WAY_OUT}"
                )
        if not any(self.split_path(name, split).is_file() for split in SPLITS):
            raise MissingFileError(
                f"{path.parent}: no train.parquet, val.parquet or test.parquet, but there is "
                f"{MANIFEST}; write the task's rows there, or remove it"
            )
        return task

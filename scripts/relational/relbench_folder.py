"""Writes tables of pandas as a RelBench 3 folder.

As RelBench wants it, primary keys become 0, 1, … in the order of the rows, which are sorted by
time, and foreign keys those numbers, or nothing where no row is meant.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

__all__ = ["Table", "Task", "run_writer", "write_folder"]


@dataclass(kw_only=True)
class Table:
    """A table, and what its columns are."""

    frame: pd.DataFrame
    pkey: str | None = None
    time_col: str | None = None
    fkeys: dict[str, str] = field(default_factory=dict)
    """The table that each column refers to."""


@dataclass(kw_only=True)
class Task:
    """A task; rows from val_timestamp on are for validation, from test_timestamp for the test."""

    about: dict[str, Any]
    """Of its manifest; the name is added."""

    rows: pd.DataFrame
    """entity_col, with primary keys as the tables have them; time_col; target_col."""


def write_folder(
    folder: Path,
    name: str,
    tables: Mapping[str, Table],
    tasks: Mapping[str, Task],
    *,
    val_timestamp: str,
    test_timestamp: str,
) -> Path:
    """Writes a folder, which must not exist; it appears when it is complete."""
    if folder.exists():
        raise FileExistsError(f"{folder}: exists already; remove it or give another name")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "db").mkdir(parents=True)
    numbers = {key: _number(table) for key, table in tables.items()}
    for key, table in tables.items():
        frame = table.frame
        for column, other in table.fkeys.items():
            frame[column] = _refer(frame[column], numbers[other])
        if table.pkey is not None:
            frame[table.pkey] = range(len(frame))
        frame.to_parquet(partial / "db" / f"{key}.parquet", index=False)
    about = {
        key: {"pkey": table.pkey, "time_col": table.time_col, "fkeys": table.fkeys}
        for key, table in tables.items()
    }
    cuts = {"val_timestamp": val_timestamp, "test_timestamp": test_timestamp}
    content = {"name": name, "manifest_version": 1, **cuts, "tables": about}
    _write_yaml(partial / "manifest.yaml", content)
    val, test = pd.Timestamp(val_timestamp), pd.Timestamp(test_timestamp)
    for key, task in tasks.items():
        place = partial / "tasks" / key
        place.mkdir(parents=True)
        _write_yaml(place / "manifest.yaml", {"name": key, **task.about, "manifest_version": 1})
        entity, time = task.about["entity_col"], task.about["time_col"]
        rows = task.rows.sort_values([time, entity], kind="stable")
        rows[entity] = _refer(rows[entity], numbers[task.about["entity_table"]])
        ends = {"train": rows[time] < val, "test": rows[time] >= test}
        ends["val"] = ~ends["train"] & ~ends["test"]
        for split, chosen in ends.items():
            rows[chosen].to_parquet(place / f"{split}.parquet", index=False)
    partial.rename(folder)
    return folder


def run_writer(
    write: Callable[[Path], Path], description: str | None, arguments: list[str] | None
) -> int:
    """Writes the folder that the command line names; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="to make")
    try:
        folder = write(parser.parse_args(arguments).folder)
    except (ModuleNotFoundError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {folder}")
    return 0


def _number(table: Table) -> pd.Series:
    """Sorts the rows; returns the number of each, by its primary key."""
    if table.time_col is not None:
        table.frame = table.frame.sort_values(table.time_col, kind="stable")
    table.frame = table.frame.reset_index(drop=True)
    if table.pkey is None:
        return pd.Series(dtype="Int64")
    keys = pd.Index(table.frame[table.pkey])
    if keys.hasnans or keys.has_duplicates:
        raise ValueError(f"column {table.pkey}: keys that are missing or there twice")
    return pd.Series(range(len(keys)), index=keys, dtype="Int64")


def _refer(keys: pd.Series, numbers: pd.Series) -> pd.Series:
    return keys.map(numbers).astype("Int64")


def _write_yaml(path: Path, content: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")

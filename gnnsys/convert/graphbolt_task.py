"""Seeds and labels of a GraphBolt task that classifies nodes, as one table of labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gnnsys.convert.graphbolt_arrays import EntryArray, open_entry
from gnnsys.convert.graphbolt_metadata import SetPart, Task
from gnnsys.errors import FileFormatError

__all__ = ["NodeSet", "assemble_labels", "find_node_sets", "is_same", "labels_of"]


@dataclass(frozen=True, slots=True)
class NodeSet:
    """Nodes to classify."""

    node_type: str
    split: Literal["train", "val", "test"]
    seeds: EntryArray
    """(n,) node ids."""

    labels: EntryArray | None
    """(n,) or (n, 1) classes, or (n, labels)."""


def find_node_sets(folder: Path, task: Task, regression: bool = False) -> list[NodeSet]:
    """The sets of the first node type of a task, where they hold nodes and classes, or numbers."""
    owner = next((part.owner for part in task.parts), None)
    parts = [part for part in task.parts if part.owner == owner]
    names = [part.split for part in parts]
    if not isinstance(owner, str) or len(set(names)) < len(names):
        return []
    sets = []
    for part in parts:
        found = _find_node_set(folder, part, regression)
        if found is None:
            return []
        sets.append(found)
    return sets if any(part.labels for part in sets) else []


def _find_node_set(folder: Path, part: SetPart, regression: bool) -> NodeSet | None:
    entry = part.data.get("seeds", part.data.get("seed_nodes"))
    if entry is None:
        return None
    seeds = open_entry(folder, entry)
    if seeds.rows.ndim != 1 or seeds.dtype[0] not in "iu":
        return None
    labels = open_entry(folder, part.data["labels"]) if "labels" in part.data else None
    if labels is not None:
        if len(labels.rows) != len(seeds.rows):
            raise FileFormatError(
                f"{labels.label}: {len(labels.rows)} labels != {len(seeds.rows)} seeds in "
                f"{seeds.label}"
            )
        fit = _are_numbers if regression else _are_classes
        if labels.rows.ndim > 2 or labels.dtype == "bfloat16" or not fit(labels.rows):
            return None
    return NodeSet(str(part.owner), part.split, seeds, labels)  # type: ignore[arg-type]


def _are_numbers(rows: NDArray[Any]) -> bool:
    return rows.dtype.kind in "iubf" and _width(rows) == 1


def _are_classes(rows: NDArray[Any]) -> bool:
    known = rows[~np.isnan(rows)] if rows.dtype.kind == "f" else rows
    several = rows.ndim == 2 and rows.shape[1] > 1
    whole = rows.dtype.kind in "iub" or (rows.dtype.kind == "f" and (known % 1 == 0).all())
    return bool(whole and (not several or np.isin(known, (0, 1)).all()))


def assemble_labels(sets: list[NodeSet], count: int, regression: bool = False) -> NDArray[Any]:
    """(nodes,) int64, -1 where unknown; or (nodes, labels) float32, or (nodes,) float32 numbers,
    NaN where unknown."""
    widths = {_width(part.labels.rows) for part in sets if part.labels}
    if len(widths) > 1:
        label = next(part.labels.label for part in sets if part.labels)
        raise FileFormatError(f"{label}: {sorted(widths)} labels a node in different sets")
    width = widths.pop()
    classes = width == 1 and not regression
    shape = (count,) if width == 1 else (count, width)
    table = np.full(shape, -1, np.int64) if classes else np.full(shape, np.nan, np.float32)
    seen = np.zeros(count, bool)
    for part in sets:
        if part.labels is None:
            continue
        ids = np.asarray(part.seeds.rows)
        rows = part.labels.rows.reshape(-1) if width == 1 else part.labels.rows
        if classes and rows.dtype.kind == "f":
            rows = np.where(np.isnan(rows), -1, np.nan_to_num(rows))
        rows = rows.astype(table.dtype)
        other = seen[ids] & ~_equal(table[ids], rows)
        if other.any():
            wrong = int(np.argmax(other))
            raise FileFormatError(
                f"{part.labels.label}: node {ids[wrong]} has the label {rows[wrong]}, but "
                f"{table[ids[wrong]]} in another set"
            )
        table[ids], seen[ids] = rows, True
    return table


def _width(rows: NDArray[Any]) -> int:
    return 1 if rows.ndim == 1 else rows.shape[1]


def _equal(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.bool_]:
    same = (left == right) | ((left != left) & (right != right))
    return same if same.ndim == 1 else same.all(axis=1)


def labels_of(part: NodeSet, table: NDArray[Any]) -> NDArray[Any]:
    """What an export makes of the table."""
    assert part.labels is not None
    with np.errstate(invalid="ignore"):
        rows = table[np.asarray(part.seeds.rows)].astype(part.labels.rows.dtype)
    return rows.reshape(part.labels.rows.shape)


def is_same(left: NDArray[Any], right: NDArray[Any]) -> bool:
    """Whether all elements are equal; NaN equals NaN."""
    return bool(((left == right) | ((left != left) & (right != right))).all())

"""Predictions as one table, .csv or .parquet: ids, and classes by name with their probabilities, or
numbers; or the best targets of links."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gnnsys.convert.dialect import require_pyarrow
from gnnsys.dataset.node_ids import NodeIds
from gnnsys.system.files import as_storage_error
from gnnsys.training.metrics import Kind

__all__ = ["TABLES", "write_link_table", "write_table"]

TABLES = (".csv", ".parquet")
"""Endings of names of tables."""

_ROWS = 1 << 16


def write_table(
    path: Path,
    nodes: NDArray[np.int64],
    scores: NDArray[Any],
    *,
    kind: Kind,
    ids: NodeIds | None = None,
    classes: Sequence[str] | None = None,
    times: NDArray[np.int64] | None = None,
) -> tuple[int, int]:
    """Writes a row for each node and returns the table's shape.

    With one label a node, the columns are ``id``, ``class`` and ``p_CLASS`` for each class, which
    sum to one (softmax); with several, ``id`` and, for each label, ``LABEL`` (0 or 1) and
    ``p_LABEL`` (sigmoid); with numbers, ``id`` and ``value``. ``time`` follows ``id`` where nodes
    have times.

    Args:
        path: its name ends as one of ``TABLES``; made anew.
        nodes: (n,) node numbers.
        scores: (n, classes) logits, or (n, 1) numbers.
        kind: what the labels are.
        ids: (nodes of the graph,) what nodes are called; None for their numbers.
        classes: names of the classes, or labels; None for their numbers.
        times: (n,) at which was predicted.

    Raises:
        StorageError: it cannot be written.
    """
    names = [str(name) for name in classes or range(scores.shape[1])]

    def columns(some: slice) -> dict[str, Any]:
        made: dict[str, Any] = {"id": nodes[some] if ids is None else ids[nodes[some]]}
        if times is not None:
            made["time"] = times[some]
        return {**made, **dict(_columns(scores[some], kind, names))}

    return _write(path, (columns(some) for some in _slices(len(nodes), _ROWS)))


def write_link_table(
    path: Path,
    nodes: NDArray[np.int64],
    targets: NDArray[np.int64],
    scores: NDArray[Any],
    *,
    source_ids: NodeIds | None = None,
    target_ids: NodeIds | None = None,
) -> tuple[int, int]:
    """Writes a row for each of the best targets of sources and returns the table's shape.

    The columns are ``source``, ``target``, ``rank``, from 1 on, and ``score``.

    Args:
        path: its name ends as one of ``TABLES``; made anew.
        nodes: (n,) numbers of sources.
        targets: (n, k) those of their best targets, -1 where there are no more.
        scores: (n, k).
        source_ids: what sources are called; None for their numbers; ``target_ids`` likewise.

    Raises:
        StorageError: it cannot be written.
    """

    def columns(some: slice) -> dict[str, Any]:
        best = targets[some]
        row, rank = (best >= 0).nonzero()
        source, target = nodes[some][row], best[row, rank]
        return {
            "source": source if source_ids is None else source_ids[source],
            "target": target if target_ids is None else target_ids[target],
            "rank": rank + 1,
            "score": scores[some][row, rank],
        }

    step = max(1, _ROWS // max(1, targets.shape[1]))
    return _write(path, (columns(some) for some in _slices(len(nodes), step)))


def _slices(count: int, step: int) -> Iterator[slice]:
    """One at least, of which columns are known."""
    return (slice(first, first + step) for first in range(0, max(1, count), step))


def _write(path: Path, blocks: Iterator[dict[str, Any]]) -> tuple[int, int]:
    """Writes blocks of columns; returns how many rows and columns they had."""
    pa = require_pyarrow(f"--out {path.name}")
    writer: Any = None
    shape = 0, 0
    with as_storage_error(path):
        try:
            for columns in blocks:
                table = pa.table(columns)
                if writer is None:
                    make = pa.csv.CSVWriter if path.suffix == ".csv" else pa.parquet.ParquetWriter
                    writer = make(str(path), table.schema)
                writer.write_table(table)
                shape = shape[0] + table.num_rows, table.num_columns
        finally:
            if writer is not None:
                writer.close()
    return shape


def _columns(scores: NDArray[Any], kind: Kind, names: list[str]) -> Iterator[tuple[str, Any]]:
    logits = torch.from_numpy(np.array(scores, np.float32))
    if kind == "values":
        yield "value", logits[:, 0].numpy()
        return
    if kind == "classes":
        chosen = logits.argmax(1).numpy()
        yield "class", np.array(names, object)[chosen]
    for number, (name, p) in enumerate(
        zip(names, (logits.sigmoid() if kind == "labels" else logits.softmax(1)).T, strict=True)
    ):
        if kind == "labels":
            yield name, (logits[:, number] > 0).to(torch.uint8).numpy()
        yield f"p_{name}", p.numpy()

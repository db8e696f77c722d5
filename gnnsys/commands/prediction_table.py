"""Predictions as one table, .csv or .parquet: ids, and classes by name with their probabilities, or
numbers."""

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

__all__ = ["TABLES", "write_table"]

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
) -> list[int]:
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
    pa = require_pyarrow(f"--out {path.name}")
    names = [str(name) for name in classes or range(scores.shape[1])]
    writer: Any = None
    with as_storage_error(path):
        try:
            for first in range(0, max(1, len(nodes)), _ROWS):
                some = slice(first, first + _ROWS)
                columns: dict[str, Any] = {"id": nodes[some] if ids is None else ids[nodes[some]]}
                if times is not None:
                    columns["time"] = times[some]
                columns |= _columns(scores[some], kind, names)
                table = pa.table(columns)
                if writer is None:
                    make = pa.csv.CSVWriter if path.suffix == ".csv" else pa.parquet.ParquetWriter
                    writer = make(str(path), table.schema)
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()
    return [len(nodes), len(columns)]


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

"""Readers of the files in the raw folders of OGB's datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.convert.arrays import NpzMember
from gnnsys.convert.edge_files import read_columns
from gnnsys.convert.text import TextTable
from gnnsys.dataset.format import EdgeType
from gnnsys.errors import FileFormatError, MissingFileError

__all__ = [
    "need",
    "one_graph",
    "read_binary_labels",
    "read_count",
    "read_ints",
    "read_row",
    "read_triplets",
    "read_type_counts",
]


def need(file: Path) -> Path:
    """The same path, or MissingFileError."""
    if not file.is_file():
        raise MissingFileError(
            f"{file}: no such file; fetch the dataset again with ogb's NodePropPredDataset"
        )
    return file


def read_ints(file: Path) -> NDArray[np.int64]:
    """(rows,): the first column of a file of whole numbers."""
    parts = [columns[0] for columns in read_columns(need(file), "int64")]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def read_count(file: Path) -> int:
    """The only number in a file."""
    return int(one_graph(read_ints(file), file))


def one_graph(counts: NDArray[Any], file: Path) -> int:
    """The only entry of (graphs,) sizes."""
    if len(counts) != 1:
        raise FileFormatError(f"{file}: the sizes of {len(counts)} graphs, expected 1")
    return int(counts[0])


def read_row(file: Path) -> dict[str, str]:
    """A row of values under its header, as text."""
    rows = [
        row for batch in TextTable(need(file), header=True).batches() for row in batch.to_pylist()
    ]
    if len(rows) != 1:
        raise FileFormatError(f"{file}: {len(rows)} rows below the header, expected 1")
    return {key: str(value) for key, value in rows[0].items()}


def read_type_counts(file: Path) -> dict[str, int]:
    """Number of nodes of each type, by the type's name."""
    row = read_row(file)
    wrong = [f"{kind} {count}" for kind, count in row.items() if not count.isdecimal()]
    if wrong:
        raise FileFormatError(f"{file}: {', '.join(wrong)}; expected numbers of nodes")
    return {kind: int(count) for kind, count in sorted(row.items())}


def read_triplets(file: Path, counts: dict[str, int]) -> list[EdgeType]:
    """Edge types, between node types of ``counts``."""
    triplets = []
    for batch in TextTable(need(file), header=False).batches():
        for row in batch.to_pylist():
            parts = tuple(str(part) for part in row.values())
            if len(parts) != 3 or parts[0] not in counts or parts[2] not in counts:
                raise FileFormatError(
                    f"{file}: {parts}, expected source, relation, target with types of "
                    f"{', '.join(counts)}"
                )
            triplets.append(parts)
    return sorted(triplets)


def read_binary_labels(file: Path) -> NDArray[np.int32]:
    """(nodes,) classes, -1 where the file says NaN."""
    source = NpzMember(need(file), "node_label")
    if source.shape[1:] not in ((), (1,)):
        raise FileFormatError(f"{file}: node_label is {source.shape}, expected (nodes, 1)")
    labels = np.empty(source.shape[0], np.int32)
    at = 0
    for block in source.blocks():
        flat = block.reshape(-1)
        known = np.isfinite(flat)
        part = labels[at : at + len(flat)]
        part[...] = np.where(known, flat, -1)
        if not np.array_equal(part[known], flat[known]):
            raise FileFormatError(f"{file}: labels are not whole numbers; expected classes from 0")
        at += len(flat)
    return labels

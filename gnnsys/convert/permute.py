"""Tables in another order of their rows, in bounded memory: by ranges that rows are written to.

A table that fits in memory is gathered as it lies. A larger one is read once from its beginning to
its end, and each row goes to the range of the new table that it belongs to, in a scratch file; the
ranges are then put in order one after another. It is noted how far that is, so that a killed
conversion goes on there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.dataset.writer import DatasetWriter, RowReader
from gnnsys.system.files import read_file, write_at

__all__ = ["Permutation", "permuted_rows"]

_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Permutation:
    """Where the rows of a table are to stand."""

    order: NDArray[Any]
    """(rows,) for each new row, which one it was; may be mapped."""

    group_of: Callable[[int, int], NDArray[Any]]
    """Given a first old row and the one after the last, the new group of each."""

    starts: NDArray[np.int64] | None = None
    """(groups + 1,) the first new row of each group, ascending; None where a group is one row."""


def permuted_rows(
    writer: DatasetWriter, key: str, rows: NDArray[Any], to: Permutation, memory: int
) -> RowReader:
    """Reads ``rows[to.order]``.

    Args:
        writer: whose scratch folder and notes are used.
        key: what to call the table in them.
        rows: mapped.
        to: the order.
        memory: bytes for rows that are put in order; a group is never divided.
    """
    row_bytes = math.prod(rows.shape[1:]) * rows.dtype.itemsize
    step = max(1, _BLOCK_BYTES // max(8, row_bytes))
    # Beside a range of rows, the numbers of its rows three times.
    bounds = _cut(to.starts, len(rows), max(1, memory // (row_bytes + 24)))
    path = writer.scratch / f"{key.replace('/', '__')}.rows"

    def read(first: int) -> Iterator[NDArray[Any]]:
        if len(bounds) <= 2:
            for start in range(first, len(rows), step):
                yield rows[to.order[start : start + step]]
            return
        _distribute(writer, key, rows, to, bounds, path)
        for low, high in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            if high <= first:
                continue
            # Rows of a range lie in the file in their old order.
            places = np.empty(high - low, np.int64)
            places[np.argsort(to.order[low:high], kind="stable")] = np.arange(high - low)
            count = (high - low) * math.prod(rows.shape[1:])
            found = read_file(path, rows.dtype, count, low * row_bytes)
            found = found.reshape(high - low, *rows.shape[1:])
            for start in range(max(first, low) - low, high - low, step):
                yield found[places[start : start + step]]
            del found, places
        path.unlink(missing_ok=True)

    return read


def _cut(starts: NDArray[np.int64] | None, rows: int, room: int) -> NDArray[np.int64]:
    """Bounds of ranges of whole groups that have at most ``room`` rows, or are one group."""
    if starts is None or rows <= room:
        return np.append(np.arange(0, rows, room), rows)
    bounds = [0]
    while bounds[-1] < len(starts) - 1:
        last = int(np.searchsorted(starts, starts[bounds[-1]] + room, side="right")) - 1
        bounds.append(max(last, bounds[-1] + 1))
    return starts[bounds]


def _distribute(
    writer: DatasetWriter,
    key: str,
    rows: NDArray[Any],
    to: Permutation,
    bounds: NDArray[np.int64],
    path: Path,
) -> None:
    """Writes each row to the range that it belongs to."""
    note, ranges = f"distribute {key}", bounds.tolist()
    noted: dict[str, Any] = writer.recall(note, {"bounds": None})
    if noted["bounds"] != ranges or not path.exists():  # killed with other memory, or at its end
        noted = {"bounds": ranges, "rows": 0, "next": ranges[:-1]}
    row_bytes = math.prod(rows.shape[1:]) * rows.dtype.itemsize
    step = max(1, _BLOCK_BYTES // max(8, row_bytes))
    for start in range(noted["rows"], len(rows), step):
        end = min(start + step, len(rows))
        firsts = to.group_of(start, end)
        if to.starts is not None:
            firsts = to.starts[firsts]
        into = np.searchsorted(bounds, firsts, side="right") - 1
        block = rows[start:end][np.argsort(into, kind="stable")]
        sizes = np.bincount(into)
        begin = 0
        for number in np.flatnonzero(sizes).tolist():
            size = int(sizes[number])
            at = noted["next"][number]
            write_at(path, at * row_bytes, block[begin : begin + size])
            noted["next"][number] = at + size
            begin += size
        noted["rows"] = end
        writer.note(note, noted)
        writer.report(note, end, len(rows))

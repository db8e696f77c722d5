"""Writes the files of a GraphBolt folder in blocks, from front to back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.convert.arrays import widen
from gnnsys.convert.dialect import require_pyarrow
from gnnsys.convert.stored_rows import encode
from gnnsys.dataset.format import EdgeType
from gnnsys.dataset.tables import DatasetTables, check_nodes
from gnnsys.errors import StorageError
from gnnsys.system.files import as_storage_error, write_whole

__all__ = ["BLOCK_BYTES", "Blocks", "Edges", "cast", "take", "write_array", "write_csv"]

BLOCK_BYTES = 8 << 20

Blocks = Iterator[NDArray[Any]]


class Edges:
    """Ends of the edges of a type, by place in the CSC.

    Raises:
        FileFormatError: an indptr that does not ascend; later, a source outside the nodes.
    """

    def __init__(self, dataset: DatasetTables, edge_type: EdgeType) -> None:
        self._indptr = dataset.indptr(edge_type)
        self._indices = dataset.edge_table("indices", edge_type)
        self._nodes = dataset.num_nodes(edge_type[0])
        self._label = f"{dataset.path}: indices of {edge_type}"

    def sources(self, start: int, end: int) -> NDArray[np.int64]:
        """Of the edges [start, end)."""
        sources = self._indices[start:end].astype(np.int64)
        check_nodes(sources, self._nodes, self._label, start)
        return sources

    def targets(self, start: int, end: int) -> NDArray[np.int64]:
        """Likewise."""
        first = int(np.searchsorted(self._indptr, start, side="right")) - 1
        last = int(np.searchsorted(self._indptr, end, side="left"))
        ends = self._indptr[first : last + 1].clip(start, end)
        return np.repeat(np.arange(first, last), ends[1:] - ends[:-1])


def take(rows: NDArray[Any], ids: NDArray[Any]) -> Blocks:
    """``rows[ids]`` in blocks."""
    step = max(1, BLOCK_BYTES // max(1, rows[:1].nbytes))
    for start in range(0, len(ids), step):
        yield rows[ids[start : start + step]]


def cast(blocks: Blocks, stored: str, wanted: str) -> Blocks:
    """Blocks of a table in the element type of a file; bfloat16 as its bits on either side."""
    for block in blocks:
        if stored == wanted:
            yield block
            continue
        if stored == "bfloat16":
            block = widen(block)
        yield encode(block, wanted) if wanted == "bfloat16" else block.astype(wanted, copy=False)


def write_array(path: Path, blocks: Blocks, shape: Sequence[int], dtype: str, kind: str) -> None:
    """Writes blocks whose elements follow one another as those of an array of the shape."""
    bits = np.dtype(np.uint16 if dtype == "bfloat16" else dtype)
    place = path if kind == "numpy" else path.with_name(path.name + ".new")
    header = {"descr": bits.str, "fortran_order": False, "shape": tuple(shape)}
    with as_storage_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(place, "wb", buffering=0) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for block in blocks:
                data = np.ascontiguousarray(block).reshape(-1)
                write_whole(file, data.view(np.uint8).data)
    if kind != "numpy":
        _write_tensor(path, place, dtype)


def _write_tensor(path: Path, place: Path, dtype: str) -> None:
    """Turns a .npy file into one of ``torch.save``, without loading it."""
    import torch

    # Mapped for writing to memory only: torch has no read-only tensors.
    tensor = torch.from_numpy(np.load(place, mmap_mode="c"))
    try:
        torch.save(tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor, path)
    except (RuntimeError, OSError) as error:
        reason = str(error).split("\n")[0]
        raise StorageError(f"{path}: cannot be written ({reason}); make room there") from error
    place.unlink()


def write_csv(path: Path, sources: Blocks, targets: Blocks) -> None:
    """Writes rows of source,target without a header."""
    arrow = require_pyarrow(str(path))
    schema = arrow.schema([("src", arrow.int64()), ("dst", arrow.int64())])
    options = arrow.csv.WriteOptions(include_header=False)
    with as_storage_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Compressed where the name says so, as pandas reads it.
        with (
            arrow.output_stream(str(path), compression="detect") as stream,
            arrow.csv.CSVWriter(stream, schema, write_options=options) as writer,
        ):
            for pair in zip(sources, targets, strict=True):
                writer.write(arrow.record_batch(list(pair), schema=schema))

"""Writes dataset folders: in blocks, resumable, and nothing under the final name before the end.

Work goes on in ``NAME.partial`` beside the target: the dataset grows in ``data``, which gets the
final name when it is complete; ``state.json`` says which steps and how many rows of the table in
hand are done; ``scratch`` is the conversion's own; ``lock`` keeps other processes out. After a kill
the same call goes on where the last one was; after an error the partial folder is removed.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.dataset.format import (
    CHECKSUM_CHUNK,
    EDGE_TYPE,
    MANIFEST,
    NODE_TYPE,
    EdgeSet,
    EdgeType,
    Encoding,
    Manifest,
    NodeSet,
    Shard,
    Table,
    Task,
    edge_folder,
    is_dtype,
    node_folder,
)
from gnnsys.errors import ArgumentError, DTypeError
from gnnsys.system.files import (
    as_storage_error,
    lock_file,
    lock_holder,
    npy_header,
    replace_file,
    sync,
    write_whole,
)
from gnnsys.system.progress import Progress

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["NOTES", "DatasetWriter", "RowReader", "cut_rows"]

RowReader = Callable[[int], Iterator[NDArray[Any]]]
"""Given the first row wanted, yields the rows from there on in blocks of any length."""

NOTES = ("nan", "overflow", "round_trip")
"""What ``source`` of ``graph.json`` says of tables, by their places, where there is any."""

_SAVE_BYTES = 64 << 20  # of a table between two notes of how far it is
_BLOCK_BYTES = 8 << 20


def cut_rows(array: NDArray[Any]) -> RowReader:
    """Reads an array, mapped or not, in blocks of bounded size.

    >>> [block.tolist() for block in cut_rows(np.arange(3))(1)]
    [[1, 2]]
    """
    row_bytes = max(1, math.prod(array.shape[1:]) * array.dtype.itemsize)
    step = max(1, _BLOCK_BYTES // row_bytes)

    def read(first: int) -> Iterator[NDArray[Any]]:
        for start in range(first, len(array), step):
            yield np.asarray(array[start : start + step])

    return read


@dataclass(slots=True)
class _TableState:
    """How far a table is; saved while it is written."""

    rows: int = 0
    nan: int = 0
    crc: int = 0
    filled: int = 0
    """Bytes of the current checksum chunk."""
    crc32: list[str] = field(default_factory=list)

    def add(self, data: memoryview) -> None:
        while len(data):
            part = data[: CHECKSUM_CHUNK - self.filled]
            self.crc = zlib.crc32(part, self.crc)
            self.filled += len(part)
            data = data[len(part) :]
            if self.filled == CHECKSUM_CHUNK:
                self.close_chunk()

    def close_chunk(self) -> None:
        self.crc32.append(f"{self.crc:08x}")
        self.crc = self.filled = 0


class DatasetWriter:
    """Makes one dataset folder; use it in a ``with`` statement and end with ``commit()``.

    Args:
        path: of the folder; must not exist, or be empty.
        name: of the dataset.
        heterogeneous: whether it has several node or edge types.
        fingerprint: what is converted and how; a partial folder with the same one is continued.
        source: for ``graph.json``: where the dataset came from.
        progress: is told how far each table is.

    Raises:
        ArgumentError: ``path`` is in use, or ``NAME.partial`` is another conversion's or no
            conversion's at all.
        StorageError: the folder cannot be written.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "tiny"
    >>> with DatasetWriter(folder, name="tiny") as writer:
    ...     writer.add_nodes(2)
    ...     writer.add_edges(1)
    ...     writer.write_edges("indptr", cut_rows(np.array([0, 0, 1])), (3,), "int64")
    ...     writer.write_edges("indices", cut_rows(np.array([0], np.int32)), (1,), "int32")
    ...     writer.commit() == folder
    True
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        name: str,
        heterogeneous: bool = False,
        fingerprint: str = "",
        source: dict[str, Any] | None = None,
        progress: Progress = lambda what, done, total: None,
    ) -> None:
        self.path = Path(path).absolute()
        with as_storage_error(self.path):
            self._refuse_overwriting()
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.scratch = self.partial / "scratch"
        self._data = self.partial / "data"
        self.source = dict(source or {})
        self.task: Task | None = None
        self.nan: dict[str, int] = {}
        """NaN elements by table, where there are any."""
        self.overflow: dict[str, int] = {}
        """Likewise finite elements that are stored as infinite ones."""
        self.round_trip: dict[str, dict[str, float]] = {}
        """By table, of those that lost digits: the greatest difference (max) and the root of the
        mean square (rms), as shares of the greatest magnitude in the row, or in the column where
        columns have scales."""
        self._name = name
        self.heterogeneous = heterogeneous
        self.report = progress
        self._nodes: dict[str, NodeSet] = {}
        self._edges: dict[EdgeType, EdgeSet] = {}
        self._state: dict[str, Any] = {"fingerprint": fingerprint, "steps": {}, "tables": {}}
        with as_storage_error(self.partial):
            self._open_partial()

    # What the graph is made of --------------------------------------------------------------------

    def add_nodes(self, count: int, node_type: str = NODE_TYPE) -> None:
        """Declares the nodes of a type."""
        self._nodes[node_type] = NodeSet(count=count)

    def add_edges(self, count: int, edge_type: EdgeType = EDGE_TYPE) -> None:
        """Declares the edges of a type."""
        self._edges[edge_type] = EdgeSet(count=count)

    def write_nodes(
        self,
        name: str,
        read: RowReader,
        shape: Sequence[int],
        dtype: str | Encoding,
        node_type: str = NODE_TYPE,
    ) -> None:
        """Writes a table of a node type: features, labels, train, val, test, time, …

        Args:
            name: of the table and of its file.
            read: its rows, in blocks.
            shape: (rows, …).
            dtype: numpy's name, or "bfloat16" for blocks of uint16; or the encoding of rows that
                are quantised, for blocks of their (n, row_stride) uint8.
            node_type: whose.
        """
        place = node_folder(self.heterogeneous, node_type) + name
        self._nodes[node_type].tables[name] = self._write(place, read, tuple(shape), dtype)

    def write_edges(
        self,
        name: str,
        read: RowReader,
        shape: Sequence[int],
        dtype: str | Encoding,
        edge_type: EdgeType = EDGE_TYPE,
    ) -> None:
        """Writes a table of an edge type: indptr, indices, and edge_… tables in CSC order."""
        place = edge_folder(self.heterogeneous, edge_type) + name
        self._edges[edge_type].tables[name] = self._write(place, read, tuple(shape), dtype)

    def num_nodes(self, node_type: str = NODE_TYPE) -> int:
        """Nodes of a type that is declared."""
        return self._nodes[node_type].count

    def has_nodes(self, node_type: str) -> bool:
        """Whether a type is declared."""
        return node_type in self._nodes

    def open_edges(self, name: str, edge_type: EdgeType = EDGE_TYPE) -> NDArray[Any]:
        """A table that is written already, mapped."""
        place = edge_folder(self.heterogeneous, edge_type) + name
        return np.load(self._data / f"{place}.npy", mmap_mode="r")

    def note(self, key: str, value: Any) -> None:
        """Remembers how far a step is; ``recall`` gives it back after a kill."""
        self._state["steps"][key] = value
        self.save_state()

    def keep(self, key: str, value: Any) -> None:
        """Remembers what belongs to the rows of a table that are given next, and with them."""
        self._state["steps"][key] = value

    def recall(self, key: str, default: Any) -> Any:
        """What was noted."""
        return self._state["steps"].get(key, default)

    def forget(self, key: str) -> None:
        """Undoes ``note``."""
        self._state["steps"].pop(key, None)
        self.save_state()

    def commit(self) -> Path:
        """Writes ``graph.json`` and gives the folder its name."""
        manifest = Manifest(
            name=self._name,
            heterogeneous=self.heterogeneous,
            nodes=self._nodes,
            edges=self._edges,
            task=self.task,
            source=self.source | {key: getattr(self, key) for key in NOTES if getattr(self, key)},
        )
        with as_storage_error(self.partial):
            (self._data / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
            for place in (self._data, *self._data.rglob("*")):
                sync(place)
            os.rename(self._data, self.path)
            sync(self.path.parent)
        self._remove_partial()
        return self.path

    # Files ----------------------------------------------------------------------------------------

    def save_state(self) -> None:
        """Notes on disk what is done."""
        replace_file(self.partial / "state.json", json.dumps(self._state).encode())

    def _write(
        self, place: str, read: RowReader, shape: tuple[int, ...], dtype: str | Encoding
    ) -> Table:
        if isinstance(dtype, str) and not is_dtype(dtype):
            raise DTypeError(f"{place}: elements of type {dtype}, expected numbers or bytes")
        encoding = Encoding.of(dtype, shape) if isinstance(dtype, str) else dtype
        in_file = encoding.file_shape(shape)
        header = npy_header(in_file, encoding.file_dtype)
        state = _TableState(**self._state["tables"].get(place, {}))
        path = self._data / f"{place}.npy"
        with as_storage_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        with open(path, "r+b", buffering=0) as file:
            with as_storage_error(path):
                noted = len(header) + state.rows * encoding.row_stride
                if file.seek(0, os.SEEK_END) < noted:
                    state, noted = _TableState(), len(header)  # a power failure took rows along
                file.truncate(noted)
                file.seek(0)
                write_whole(file, header)
                file.seek(noted)
            self._fill(file, place, read, in_file, encoding, state)
        if state.nan:
            self.nan[place] = state.nan
        if state.filled:
            state.close_chunk()
        shard = Shard(
            path=f"{place}.npy",
            rows=shape[0],
            bytes=len(header) + shape[0] * encoding.row_stride,
            crc32=tuple(state.crc32),
        )
        return Table(shape=shape, encoding=encoding, shards=(shard,))

    def _fill(
        self,
        file: FileIO,
        place: str,
        read: RowReader,
        shape: tuple[int, ...],
        encoding: Encoding,
        state: _TableState,
    ) -> None:
        dtype = encoding.file_dtype
        unsaved = 0
        self.report(place, state.rows, shape[0])
        for block in read(state.rows) if state.rows < shape[0] else ():
            if block.dtype != dtype or block.shape[1:] != shape[1:]:
                raise ArgumentError(
                    f"{place}: a block of {block.dtype} {block.shape}, expected {dtype} rows of "
                    f"{shape[1:]}"
                )
            state.rows += len(block)
            if state.rows > shape[0]:
                raise ArgumentError(f"{place}: more than the {shape[0]} rows expected")
            data = np.ascontiguousarray(block).reshape(-1).view(np.uint8).data
            state.nan += _count_nan(block, encoding)
            with as_storage_error(self._data / f"{place}.npy"):
                write_whole(file, data)
            state.add(data)
            unsaved += len(data)
            if unsaved >= _SAVE_BYTES:
                self._save_table(place, state)
                unsaved = 0
            self.report(place, state.rows, shape[0])
            del block, data  # they may hold on to what the next block takes the place of
        if state.rows != shape[0]:
            raise ArgumentError(f"{place}: {state.rows} rows, expected {shape[0]}")
        self._save_table(place, state)

    def _save_table(self, place: str, state: _TableState) -> None:
        self._state["tables"][place] = asdict(state)
        self.save_state()

    def _refuse_overwriting(self) -> None:
        if os.path.lexists(self.path) and not _is_empty_folder(self.path):
            raise ArgumentError(
                f"{self.path}: exists already and is not overwritten; remove it or give another "
                "name"
            )

    def _open_partial(self) -> None:
        begun = self.partial / "state.json"
        found = {place.name for place in self.partial.iterdir()} if self.partial.is_dir() else set()
        if "state.json" not in found and found - {"lock", "state.json.new"}:
            raise self._not_ours()
        place = self.partial / "lock"
        lock = lock_file(place)
        if lock is None:
            raise ArgumentError(
                f"{self.partial}: {lock_holder(place)} is writing it; wait, or give another name"
            )
        self._lock = lock
        fresh = not begun.exists()
        try:
            self._refuse_overwriting()  # the process that had the lock may have finished meanwhile
            if fresh or not self._go_on(begun):
                self.save_state()
                self.scratch.mkdir(exist_ok=True)
                self._data.mkdir()  # last: a kill before it leaves nothing to go on with
        except BaseException:
            if fresh:
                self._remove_partial()
            lock.close()
            raise

    def _go_on(self, begun: Path) -> bool:
        """Takes over what a killed conversion noted, if there is anything left to do."""
        try:
            found = json.loads(begun.read_text(encoding="utf-8"))
            fingerprint = found["fingerprint"]
        except (ValueError, KeyError, TypeError):
            raise self._not_ours() from None
        if fingerprint != self._state["fingerprint"]:
            raise ArgumentError(
                f"{self.partial}: an unfinished conversion of another source or with other "
                "options; finish that one, or remove the folder"
            )
        if not self._data.is_dir():  # killed as it began, or just after the data got its name
            return False
        self._state = found
        return True

    def _remove_partial(self) -> None:
        # Without data there is nothing to go on with, so a kill from here on does no harm.
        removed = self.partial / "removed"
        with suppress(OSError):
            os.rename(self._data, removed)
        for folder in (removed, self.scratch, self.partial):
            shutil.rmtree(folder, ignore_errors=True)

    def _not_ours(self) -> ArgumentError:
        return ArgumentError(
            f"{self.partial}: holds something else than an unfinished conversion; {self.path} is "
            "made there, so move it away or give another name"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception):
            self._remove_partial()
        self._lock.close()


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def _count_nan(block: NDArray[Any], encoding: Encoding) -> int:
    if encoding.dtype == "bfloat16":
        return int(((block & 0x7FFF) > 0x7F80).sum())
    return int(np.isnan(block).sum()) if block.dtype.kind in "fc" else 0

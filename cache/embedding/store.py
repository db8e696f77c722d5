"""``EmbeddingStore``: trainable rows and their optimiser's state, in files behind a cache."""

from __future__ import annotations

import operator
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from gnnsys.cache.arena import rows_of
from gnnsys.cache.embedding.directory import RowDirectory
from gnnsys.cache.embedding.files import RowFiles
from gnnsys.cache.embedding.records import CachedRecords
from gnnsys.cache.embedding.table import DTYPES, TableHeader, create_files, remove_files
from gnnsys.cache.making import check_memory
from gnnsys.choices import Storage
from gnnsys.counters import Counters
from gnnsys.errors import ArgumentError, DTypeError, UnsupportedError
from gnnsys.memory.alloc import pooled
from gnnsys.memory.encoding import Encoding
from gnnsys.memory.gate import Gate
from gnnsys.memory.ids import RowIds, check_ascending, check_bounds, check_ids
from gnnsys.memory.store import Store, check_out, check_range, check_write
from gnnsys.system.budget import EMBEDDINGS
from gnnsys.system.threads import num_threads

__all__ = ["EmbeddingStore"]

_MOST_ROWS = 1 << 28


class EmbeddingStore(Store):
    """Rows that are trained, each with the state of its optimiser, in a folder behind a cache.

    What changes stays in memory until its slot is needed, and then goes to a log beside the table.
    ``save`` makes a new version of the table; until then it is the last one to whoever opens the
    folder, however this process ends. Whatever the size of the cache, rows are bit for bit those of
    a table in memory. Safe for threads; one process at a time has a table open. ``counters`` has
    the rows that were gathered, of the tiers "cache" and "file"; of "file" also those that were
    read to be written.

    Args:
        folder: of the table; ``create`` makes one.
        cache: records to hold, as a number, a share of all (a float up to 1.0), or bytes as a text
            ("800MB"). Besides, each row of the table takes 4 bytes and each that is cached 10.
        threads: that move rows; 0 for all cores this process may use.
        storage: how the files are read; see ``FileStore``.

    Raises:
        MissingFileError, FileFormatError: there is no table in the folder, or it is not whole.
        StorageError: another process has it open.
        ArgumentError, TooLargeError: a cache of no row, or larger than the memory available.

    >>> import tempfile
    >>> folder = os.path.join(tempfile.mkdtemp(), "users")
    >>> store = EmbeddingStore.create(folder, (5, 2), state={"sum": 0.0}, cache=3)
    >>> def add_one(piece, rows, state):
    ...     rows += 1
    ...     state["sum"] += 0.5
    >>> store.update(torch.tensor([0, 4]), add_one)
    >>> store.gather(torch.tensor([0, 1]))
    tensor([[1., 1.],
            [0., 0.]])
    >>> store.gather_state(torch.tensor([4]))
    {'sum': tensor([[0.5000, 0.5000]])}
    >>> store.save()
    1
    >>> store.close()
    """

    tier = "cache"

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        cache: int | float | str,
        threads: int = 0,
        storage: Storage = "auto",
    ) -> None:
        threads = num_threads(threads)
        self._files = files = RowFiles(Path(folder).absolute(), storage)
        header = files.header
        try:
            self.capacity = _capacity_of(cache, header)
            self._records = CachedRecords(files, self.capacity, threads)
        except BaseException:
            files.close()
            raise
        self.shape = torch.Size((header.rows, header.dim))
        self.encoding = Encoding(DTYPES[header.dtype], DTYPES[header.dtype])
        self.path, self.depth = files.table.path, files.table.depth
        self.counters = Counters()
        self._gate = Gate(str(files.folder))
        self._lock = threading.RLock()
        self._process = os.getpid()

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        shape: Sequence[int],
        *,
        state: Mapping[str, float] | None = None,
        dtype: torch.dtype = torch.float32,
        initial: Callable[[int, int], Tensor] | None = None,
        cache: int | float | str,
        threads: int = 0,
        storage: Storage = "auto",
    ) -> EmbeddingStore:
        """Makes a table and opens it.

        Args:
            folder: that does not exist yet.
            shape: (rows, elements of a row).
            state: names of what an optimiser keeps for each element, and what that begins with:
                {"sum": 0.0} for Adagrad, {"exp_avg": 0.0, "exp_avg_sq": 0.0} for Adam.
            dtype: torch.float32 or torch.float64.
            initial: gives rows ``[first, last)``, called in the order of the rows, with ranges of a
                multiple of 16 rows but for the last; None for zeros.
            cache, threads, storage: see the class.

        Raises:
            ArgumentError, DTypeError: a shape or dtype that cannot be used.
            StorageError: the folder is there already, or the disk is full.
            Whatever is raised, no folder is left that was not there.
        """
        names = {value: name for name, value in DTYPES.items()}
        if dtype not in names:
            raise DTypeError(f"dtype: {dtype}, expected torch.float32 or torch.float64")
        try:
            rows, dim = map(operator.index, shape)
        except (TypeError, ValueError):
            rows = dim = 0
        if min(rows, dim) < 1 or rows > _MOST_ROWS:
            raise ArgumentError(
                f"shape: {shape}, expected (rows, elements of a row), each at least 1, and at most "
                f"{_MOST_ROWS} rows"
            )
        try:
            kept = {str(name): float(start) for name, start in dict(state or {}).items()}
        except (TypeError, ValueError) as error:
            raise ArgumentError(
                f"state: {state!r}, expected names and the numbers that they begin with, as "
                "{'sum': 0.0}"
            ) from error
        header = TableHeader(rows=rows, dim=dim, dtype=names[dtype], state=kept)
        _capacity_of(cache, header)
        num_threads(threads)
        create_files(Path(folder).absolute(), header, initial)
        try:
            return cls(folder, cache=cache, threads=threads, storage=storage)
        except BaseException:
            remove_files(Path(folder).absolute())
            raise

    @property
    def state_names(self) -> tuple[str, ...]:
        """Of what an optimiser keeps for each element of a row."""
        return tuple(self._files.header.state)

    @property
    def id(self) -> str:
        """Tells tables apart, wherever they are moved."""
        return self._files.header.id

    @property
    def version(self) -> int:
        """Of the table on disk: how often it was saved."""
        return self._files.header.version

    @property
    def folder(self) -> Path:
        """Of the table."""
        return self._files.folder

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One thread at a time is inside; what was interrupted before has been ended then."""
        if self._process != os.getpid():
            raise UnsupportedError(
                f"{self.folder}: was opened by process {self._process}, and this is a fork of it "
                f"({os.getpid()}); use the table there, or close it there and open it here"
            )
        with self._gate, self._lock:
            if self._files.is_rewritten:
                self._records.take_rewritten()
            yield

    # Reading -------------------------------------------------------------------------------------

    def gather(self, ids: Tensor, out: Tensor | None = None, stream: Any = None) -> Tensor:
        """See ``Store.gather``.

        Raises:
            StorageError: a row cannot be read, or one that has to leave the cache cannot be written
                because the disk is full. No row is lost then.
        """
        del stream
        wanted = check_ids(ids)
        if out is None:
            out = pooled((len(wanted), self.shape[1]), self.dtype)
        check_out(out, len(wanted), self.shape, self.dtype)
        target = out if out.is_contiguous() else torch.empty(out.shape, dtype=out.dtype)
        self._gather(wanted, [target], first=0)
        return out if target is out else out.copy_(target)

    def gather_state(self, ids: Tensor) -> dict[str, Tensor]:
        """The state of rows: for each name a tensor of the shape of ``gather(ids)``.

        Raises:
            As ``gather``.
        """
        wanted = check_ids(ids)
        fields = [pooled((len(wanted), self.shape[1]), self.dtype) for _ in self.state_names]
        self._gather(wanted, fields, first=1)
        return dict(zip(self.state_names, fields, strict=True))

    def _gather(self, ids: RowIds, outs: list[Tensor], first: int) -> None:
        """Copies parts of the records from part ``first`` on, row i to row i of each output."""
        with self._alone():
            check_bounds(ids, self.shape[0])
            numbers = ids.numpy()
            ahead = self._records.take_ahead(numbers)
            for start in range(0, len(numbers), self.capacity):
                piece = slice(start, start + self.capacity)
                slots = self._records.directory.find(numbers[piece])
                missed = int((slots < 0).sum())
                slots = self._records.bring(numbers[piece], slots, ahead)
                self._records.slots.take(slots, [out[piece] for out in outs], first)
                if first == 0:
                    self._count(len(slots) - missed, missed)

    def read_range(self, first: int, last: int, out: Tensor | None = None) -> Tensor:
        """See ``Store.read_range``; the cache stays as it is."""
        check_range(first, last, self.shape[0])
        if out is None:
            out = torch.empty(last - first, self.shape[1], dtype=self.dtype)
        check_out(out, last - first, self.shape, self.dtype)
        step, missed = self._records.piece_rows, 0
        with self._alone():
            for start in range(first, last, step):
                ids = np.arange(start, min(start + step, last))
                rows = torch.empty(len(ids), self.shape[1], dtype=self.dtype)
                missed += self._records.read(ids, rows)
                out[start - first : start - first + len(ids)] = rows
        self._count(last - first - missed, missed)
        return out

    def _count(self, hits: int, missed: int) -> None:
        self.counters.add("cache", hits, hits * self.row_bytes)
        self.counters.add("file", missed, missed * self.row_bytes)

    def prefetch(self, ids: Tensor) -> None:
        """Begins to read what a coming ``gather`` of these very ids will need from the disk.

        Changes speed only: rows that are trained meanwhile are gathered as they are then. Up to two
        batches are read ahead, each row of them with the page of 4 KiB it lies on.

        Raises:
            RowIndexError, DTypeError, ArgumentError: as ``gather``.
        """
        wanted = check_ids(ids)
        with self._alone():
            check_bounds(wanted, self.shape[0])
            self._records.read_ahead(wanted.numpy().astype(np.int64))

    # Writing -------------------------------------------------------------------------------------

    def write(self, ids: Tensor, rows: Tensor) -> None:
        """See ``Store.write``; the state of the rows stays as it is.

        Raises:
            StorageError: as of ``gather``; of more rows than the cache holds some may be written.
        """
        wanted, dense = check_write(ids, rows, self.shape, self.encoding)
        with self._alone():
            for piece, slots, missed in self._records.to_write(wanted):
                self._count(0, missed)
                self._records.slots.put(slots, [dense[piece]])

    def update(
        self, ids: Tensor, change: Callable[[slice, Tensor, dict[str, Tensor]], None]
    ) -> None:
        """Changes rows and their state together, as an optimiser does.

        Args:
            ids: (n,) int32 or int64 on the CPU, strictly ascending, each in ``[0, rows)``.
            change: called as ``change(piece, rows, state)`` for each piece of the ids that the
                cache holds together, mostly once; it changes the (m, …) rows and, for each name,
                the (m, …) state of ``ids[piece]`` in place. What it raises leaves the piece as it
                was.

        Raises:
            RowIndexError, DTypeError, ArgumentError: ids that cannot be used.
            StorageError: as of ``gather``; pieces before are changed.
        """
        wanted = RowIds(check_ids(ids).long())
        check_ascending(wanted.numpy(), self.shape[0])
        names = self.state_names
        with self._alone():
            for piece, slots, missed in self._records.to_write(wanted):
                self._count(0, missed)
                shape = (len(slots), self.shape[1])
                fields = [pooled(shape, self.dtype) for _ in range(1 + len(names))]
                self._records.slots.take(slots, fields)
                change(piece, fields[0], dict(zip(names, fields[1:], strict=True)))
                self._records.slots.put(slots, fields)

    # Versions ------------------------------------------------------------------------------------

    def save(self) -> int:
        """Makes all that was written since the last version the next one; returns its number.

        A process that is killed meanwhile leaves the one or the other, whole.

        Raises:
            ArgumentError: a version is prepared.
            StorageError: the disk is full; nothing is lost, and the table is the last version, or
                the next one that is not all in its file yet: see ``commit``.
        """
        with self._alone():
            self.prepare()
            try:
                return self.commit()
            except BaseException:
                self._files.withdraw()  # where it was not decided
                raise

    def prepare(self) -> int:
        """Writes the next version beside the table, durably, and returns its number.

        ``commit`` makes it the table's, ``withdraw`` takes it back; until then no row can be
        written. In between, whoever saves more than this table notes the number in a file of its
        own: after a crash ``restore`` with the number noted brings back this version or the one
        before.

        Raises:
            ArgumentError: one is prepared already, maybe by a process that was killed.
            StorageError: the disk is full; nothing is prepared and nothing lost.
        """
        with self._alone():
            return self._records.prepare()

    def withdraw(self) -> None:
        """Takes back what ``prepare`` prepared, if anything; rows stay as they are."""
        with self._alone():
            self._files.withdraw()

    def decide(self) -> None:
        """The part of ``commit`` that makes a killed process leave the prepared version.

        Raises:
            ArgumentError: none is prepared.
            StorageError: the disk failed.
        """
        with self._alone():
            if not self._files.is_prepared:
                raise ArgumentError(f"{self.folder}: no version is prepared; call prepare() first")
            self._files.decide()

    def commit(self) -> int:
        """Makes the prepared version the table's; returns its number.

        Raises:
            ArgumentError: none is prepared.
            StorageError: the disk failed. Once it is decided, the next call that needs it, or who
                opens the table next, goes on with it.
        """
        with self._alone():
            if not self._files.is_decided:
                self.decide()
            self._records.finish_commit()
            return self.version

    def check_version(self, version: int) -> None:
        """Raises ArgumentError for a version that ``restore`` cannot bring back."""
        with self._alone():
            self._records.finish_commit()
            self._files.check_version(version)

    def restore(self, version: int) -> None:
        """Goes back to a version: the table's, or the one that is prepared.

        All that was written since is dropped. What is interrupted is to be called again.

        Raises:
            ArgumentError: it is neither.
        """
        with self._alone():
            self.check_version(version)
            if version != self.version:
                self.commit()
            self._records.drop_changes()

    def with_dtype(self, dtype: torch.dtype) -> EmbeddingStore:
        """Itself; rows that are trained are delivered as they are stored.

        Raises:
            UnsupportedError: another dtype.
        """
        if dtype != self.dtype:
            raise UnsupportedError(
                f"dtype: {dtype}; the rows of {self.folder} are trained as {self.dtype}: cast what "
                "was gathered"
            )
        return self

    def close(self) -> None:
        """Lets go of memory and files. What was written since the last ``save`` is lost."""
        if self._gate.close() and self._process == os.getpid():
            self._records.forget_ahead()
            self._files.close()
            del self._records

    def __reduce__(self) -> NoReturn:
        raise UnsupportedError(
            f"{self.folder}: one process has a table open, so that it is not pickled; pass its "
            "folder on, and open it there once it is closed here"
        )

    def __repr__(self) -> str:
        return (
            f"EmbeddingStore({str(self.folder)!r}, {tuple(self.shape)}, {self.dtype}, "
            f"state={self.state_names}, cache={self.capacity})"
        )


def _capacity_of(cache: int | float | str, header: TableHeader) -> int:
    capacity = rows_of(cache, header.rows, header.record_bytes, "cache")
    if capacity < 1:
        raise ArgumentError(
            f"cache: {cache!r} holds no record of {header.record_bytes} bytes; give more"
        )
    beside = RowDirectory.bytes_of(header.rows, capacity)
    check_memory(capacity, 0, header.record_bytes, beside=beside, name=EMBEDDINGS)
    return capacity

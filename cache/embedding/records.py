"""``CachedRecords``: records of an embedding table in slots and files, and moves between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.cache.embedding.directory import RowDirectory
from gnnsys.cache.embedding.files import RowFiles, RowReads
from gnnsys.cache.embedding.slots import RecordSlots
from gnnsys.cache.embedding.table import DTYPES
from gnnsys.errors import ArgumentError
from gnnsys.memory.alloc import pooled
from gnnsys.memory.ids import RowIds
from gnnsys.system.budget import EMBEDDING_READS, EMBEDDINGS, process_budget

__all__ = ["CachedRecords"]

_MOST_AHEAD = 2
_PAGE = 4096
_PIECE_BYTES = 8 << 20
_ROW_BYTES = 64  # of ids, cells and addresses of a row that is moved
_BLOCK_ROWS = 1 << 20


class CachedRecords:
    """Records in slots, which go to the log where those are needed, and to the table by versions.

    Whatever fails or is interrupted, each row is where the directory says; a log that was rewritten
    and a version that was decided wait in ``files`` to be taken by ``take_rewritten`` and
    ``finish_commit``, which may be done again. One thread at a time uses it.

    Args:
        files: of the table.
        capacity: number of slots.
        threads: that move records.

    Raises:
        TooLargeError: the system does not hand out so much memory.
    """

    def __init__(self, files: RowFiles, capacity: int, threads: int) -> None:
        header = files.header
        self.files, self.capacity = files, capacity
        self.slots = RecordSlots(capacity, header.row_bytes, 1 + len(header.state), threads)
        self.directory = RowDirectory(header.rows, capacity)
        self.ahead: deque[tuple[NDArray[np.int64], RowReads]] = deque()
        self.piece_rows = max(1, _PIECE_BYTES // max(header.record_bytes, _ROW_BYTES))
        self._dtype = DTYPES[header.dtype]
        nbytes = RowDirectory.bytes_of(header.rows, capacity)
        process_budget().hold(EMBEDDINGS, nbytes, self.directory)

    # Reading -------------------------------------------------------------------------------------

    def read(self, ids: NDArray[np.int64], rows: Tensor) -> int:
        """Copies rows, whose ids ascend, and moves none; returns how many were in no slot."""
        places = self.directory.places[ids]
        missing = places < 0
        sources = self.slots.addresses(places)
        reads = self.files.start(ids[missing], places[missing])
        sources[missing] = reads.wait()
        self.slots.read_rows(sources, rows)
        return int(missing.sum())

    def read_ahead(self, ids: NDArray[np.int64]) -> None:
        """Begins to read those of the rows that are in no slot."""
        places = self.directory.find(ids)
        missing = np.unique(ids[places < 0])
        reads = self.files.start(missing, self.directory.places[missing])
        if self.files.table.storage != "mmap":
            pages = 1 + self.files.header.record_bytes // _PAGE
            process_budget().hold(EMBEDDING_READS, len(missing) * pages * _PAGE, reads)
        self.ahead.append((ids, reads))
        if len(self.ahead) > _MOST_AHEAD:
            self.ahead.popleft()[1].cancel()

    def take_ahead(self, ids: NDArray[Any]) -> RowReads | None:
        """The reads that were begun for these very ids."""
        for place, (asked, reads) in enumerate(self.ahead):
            if np.array_equal(asked, ids):
                for _ in range(place):
                    self.ahead.popleft()[1].cancel()
                self.ahead.popleft()
                # Seen now: once the log is rewritten, a changed record may lie in such a place.
                reads.newest = reads.places == self.directory.places[reads.ids]
                return reads
        return None

    def forget_ahead(self) -> None:
        """Lets go of all reads ahead."""
        while self.ahead:
            self.ahead.popleft()[1].cancel()

    def bring(
        self, ids: NDArray[Any], slots: NDArray[np.int32], ahead: RowReads | None = None
    ) -> NDArray[np.int32]:
        """(n,) slots of rows, at most as many as there are slots, brought in where they are not.

        Whatever fails, each row is where the directory says.

        Args:
            slots: (n,) their places.
            ahead: reads that were started for them.
        """
        missed = slots < 0
        if missed.any():
            self._fill(np.unique(ids[missed]).astype(np.int64), slots[~missed], ahead)
            slots = self.directory.places[ids]
        return slots

    def _fill(
        self, ids: NDArray[np.int64], kept: NDArray[np.int32], ahead: RowReads | None
    ) -> None:
        self.finish_commit()
        if self.files.is_log_full and not self.files.is_prepared:
            self._rewrite_log()
        directory = self.directory
        places = directory.places[ids]
        sources = np.zeros(len(ids), np.int64)
        found = np.zeros(len(ids), np.bool_)
        if ahead is not None and len(ahead.ids):
            at = np.minimum(np.searchsorted(ahead.ids, ids), len(ahead.ids) - 1)
            found = (ahead.ids[at] == ids) & ahead.newest[at]
        reads = self.files.start(ids[~found], places[~found])
        try:
            chosen = directory.choose(len(ids), kept)
            self._write_back(chosen[directory.dirty[chosen]])
            sources[~found] = reads.wait()
            if ahead is not None and found.any():
                sources[found] = ahead.wait()[at[found]]
        except BaseException:
            reads.cancel()
            raise
        directory.vacate(chosen)
        self.slots.load(chosen, sources)
        directory.enter(chosen, ids)

    # Writing -------------------------------------------------------------------------------------

    def to_write(self, ids: RowIds) -> Iterator[tuple[slice, NDArray[np.int32], int]]:
        """Pieces of distinct ids, the slots in which they are changed before the next piece, and
        how many were in none."""
        numbers = ids.numpy()
        self.finish_commit()
        self.check_unprepared()
        for start in range(0, len(numbers), self.capacity):
            piece = slice(start, min(start + self.capacity, len(numbers)))
            # They do not count as asked for again: they were, when they were gathered.
            places = self.directory.places[numbers[piece]]
            slots = self.bring(numbers[piece], places)
            self.directory.dirty[slots] = True
            yield piece, slots, int((places < 0).sum())

    def _write_back(self, slots: NDArray[np.int64]) -> None:
        """Appends records of slots to the log; they are clean then."""
        step = self.piece_rows
        for start in range(0, len(slots), step):
            some = slots[start : start + step]
            records = pooled((len(some), self.files.header.width), self._dtype)
            self.slots.unload(some, records)
            self.directory.clean(some, self.files.append(records))

    def _rewrite_log(self) -> None:
        self.forget_ahead()
        self.directory.count_on_slots()
        self.files.rewrite_log(self.directory.logged(self.piece_rows))
        self.take_rewritten()

    def take_rewritten(self) -> None:
        """Does the same again where it was interrupted."""
        self.directory.move_in_log(self.piece_rows, self.files.rewritten_at)
        self.files.take_rewritten()

    # Versions ------------------------------------------------------------------------------------

    def prepare(self) -> int:
        """See ``EmbeddingStore.prepare``."""
        self.finish_commit()
        self.check_unprepared()
        if self.files.is_log_full:
            self._rewrite_log()
        directory = self.directory
        dirty = np.flatnonzero(directory.dirty)
        self._write_back(dirty[np.argsort(directory.row_of[dirty])])
        rows = len(directory.places)
        blocks = (
            directory.on_disk(first, min(first + _BLOCK_ROWS, rows))
            for first in range(0, rows, _BLOCK_ROWS)
        )
        return self.files.prepare(blocks)

    def check_unprepared(self) -> None:
        """Raises ArgumentError while a version is prepared."""
        if self.files.is_prepared:
            raise ArgumentError(
                f"{self.files.folder}: version {self.files.header.version + 1} is prepared; before "
                "rows are written, load the checkpoint that was saved last, or decide by commit(), "
                "withdraw() or restore(version)"
            )

    def finish_commit(self) -> None:
        """Ends a commit that was decided; does all of it again where it was interrupted."""
        if self.files.is_decided:
            self.forget_ahead()
            self.files.apply()
            self.directory.forget_log()
            self.files.forget_decision()

    def drop_changes(self) -> None:
        """Goes back to the version of the table."""
        self.forget_ahead()
        self.files.withdraw()
        self.directory.clear()
        self.files.drop_log()

"""The file that a graph's neighbours lie in, and how a sampler reads it.

Owns ``NeighborFile``. Invariant: however it is read, a sampler draws the same batches.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from gnnsys.choices import Storage
from gnnsys.errors import StorageError
from gnnsys.memory.direct_rows import best_depth, direct_mode
from gnnsys.memory.table_file import TableFile
from gnnsys.system.extension import core
from gnnsys.system.files import advise

__all__ = ["BLOCK_BYTES", "NeighborFile"]

_DEPTH = 512
"""Reads in flight by io_uring, on a queue of their own: who draws a hop waits for all of them, and
the thread that reads is woken less often than by the few that keep the disk busy."""

BLOCK_BYTES = 4096
"""Of neighbours that are in memory together."""


class NeighborFile:
    """The neighbours of a ``CSC`` in their file, which is mapped until ``read_past_cache``.

    Args:
        path: of a .npy file, (edges,) int32 or int64.
        indices: that file, as ``map_npy`` maps it.

    Raises:
        MissingFileError, FileFormatError: the file is not there, or not what its header says.

    >>> import os, tempfile
    >>> from gnnsys.system.files import map_npy
    >>> path = Path(tempfile.mkdtemp()) / "indices.npy"
    >>> np.save(path, np.arange(3000, dtype=np.int32))
    >>> file = NeighborFile(path, map_npy(path))
    >>> file.read_past_cache()
    >>> file.mode, file.keep(np.array([0, 1]))
    ('read', 8192)
    """

    mode: Literal["mmap", "mmap-random", "read"] = "mmap"
    """How it is read; see ``--topology`` of ``gnnsys train``."""

    native: core.NeighborFile | None = None
    """What native samplers read with, where neighbours are not mapped."""

    def __init__(self, path: Path, indices: NDArray[Any]) -> None:
        self._table = TableFile([str(path)])
        self._area: Any = indices.base
        self.nbytes = self._table.nbytes

    @property
    def per_block(self) -> int:
        """Neighbours of a block."""
        return BLOCK_BYTES // self._table.row_bytes

    def check_size(self) -> None:
        """Raises FileFormatError where the file became shorter: who reads a mapping past the end of
        its file is killed."""
        self._table.check_size()

    def read_at_random(self) -> None:
        """Maps it without read-ahead: a page that is read brings no others."""
        advise(self._area, mmap.MADV_RANDOM)
        self.mode = "mmap-random"

    def read_past_cache(self, storage: Storage = "auto") -> None:
        """Reads the pages of neighbours that are drawn past the page cache from now on.

        Args:
            storage: "uring" or "pread"; otherwise "uring" where the kernel has it, else "pread".

        Raises:
            UnsupportedError: "uring" was asked for where there is no io_uring.
        """
        depth = best_depth(self._table)
        uring = direct_mode(storage, max(depth, _DEPTH)) == "uring"
        if uring:
            depth = max(depth, _DEPTH)
        shard = self._table.shards[0]
        self.native = core.NeighborFile(
            shard.path, shard.handle, shard.rows, shard.offset, shard.stored == torch.int64, uring,
            depth,
        )  # fmt: skip
        self.mode = "read"

    def keep(self, blocks: NDArray[np.int64]) -> int:
        """Brings neighbours into memory, where ``read_past_cache`` was called; returns their bytes.

        Args:
            blocks: (n,) ascending numbers of blocks of 4096 bytes, below ``native.blocks``.

        Raises:
            StorageError, FileFormatError: they cannot be read.
        """
        assert self.native is not None
        try:
            self.native.keep(blocks)
        except StorageError:
            self.check_size()
            raise
        return len(blocks) * BLOCK_BYTES

    def counts(self) -> dict[str, float]:
        """What samplers read so far; empty where neighbours are mapped, which nobody counts.

        ``topology_kept`` and ``topology_read``: neighbours served from memory and from the file;
        of the file, ``topology_requests``, ``topology_pages`` (of 4096 bytes),
        ``topology_bytes_read`` and ``topology_wait_seconds``.
        """
        if self.native is None:
            return {}
        kept, read, requests, pages, nbytes, nanoseconds = self.native.counts()
        return {
            "topology_kept": kept,
            "topology_read": read,
            "topology_requests": requests,
            "topology_pages": pages,
            "topology_bytes_read": nbytes,
            "topology_wait_seconds": nanoseconds * 1e-9,
        }

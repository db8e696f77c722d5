"""Stores: the rows of one feature matrix in one kind of memory.

Owns the ``Store`` protocol, the stores that hold rows (host memory, a file) and memory for
generated tables. Imports ``errors``, ``counters`` and torch, never a cache, a loader or the unified
tensor. Invariant: whatever the store, ``store.gather(ids)`` equals ``features[ids]`` bit for bit,
and every row served is counted by tier.
"""

from gnnsys.memory.alloc import empty, keep_freed_memory
from gnnsys.memory.encoding import Quantised
from gnnsys.memory.file import FileStore
from gnnsys.memory.host import HostStore
from gnnsys.memory.reads import PendingRows, Reads, ReadStats, StagedRows, Storage
from gnnsys.memory.store import Store
from gnnsys.system.machine import available_memory

__all__ = [
    "FileStore",
    "HostStore",
    "PendingRows",
    "Quantised",
    "ReadStats",
    "Reads",
    "StagedRows",
    "Storage",
    "Store",
    "available_memory",
    "empty",
    "keep_freed_memory",
]

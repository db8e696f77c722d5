"""The table ``static_score`` of a dataset folder: how important each node's row is.

Owns how it is added to a folder that exists and what ``graph.json`` says of it. Invariant: whoever
opens the folder meanwhile, or after a kill, finds the old score or the new one, whole.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.dataset.format import (
    CHECKSUM_CHUNK,
    MANIFEST,
    NODE_TYPE,
    Encoding,
    Manifest,
    NodeSet,
    Shard,
    Table,
    read_manifest,
)
from gnnsys.errors import ArgumentError, UnsupportedError
from gnnsys.system.files import as_storage_error, npy_header, replace_file, sync

__all__ = ["SCORE_TABLE", "store_score", "without_score"]

SCORE_TABLE = "static_score"
"""Name of the table, and of what the manifest's ``source`` says about it."""

_FILES = ("static_score.npy", "static_score.1.npy")  # a new score goes where the old one is not
_DTYPE = np.dtype("<u2")


def store_score(folder: Path, scores: NDArray[np.uint16], kind: str, **about: Any) -> Path:
    """Adds an importance to a homogeneous dataset folder; it replaces one that is there.

    Args:
        folder: of the dataset.
        scores: (nodes,), greater for rows that are asked for more often.
        kind: degree, pagerank or presample.
        about: what else ``graph.json`` is to say of it, as JSON can hold it.

    Returns:
        The table's file.

    Raises:
        MissingFileError, FileFormatError: no dataset folder.
        UnsupportedError: the graph is heterogeneous.
        ArgumentError: not one score for each node.
        StorageError: the folder cannot be written.
    """
    with _alone(folder):
        manifest = read_manifest(folder)
        if manifest.heterogeneous:
            raise UnsupportedError(
                f"{folder}: heterogeneous; importance is of homogeneous graphs so far"
            )
        nodes = manifest.nodes[NODE_TYPE]
        if scores.shape != (nodes.count,):
            raise ArgumentError(f"scores: shape {scores.shape}, expected ({nodes.count},)")
        old = nodes.tables.get(SCORE_TABLE)
        used = [shard.path for shard in old.shards] if old else []
        name = next(name for name in _FILES if name not in used)
        table = _write(folder / name, name, scores)
        new = dataclasses.replace(
            manifest,
            nodes={
                NODE_TYPE: NodeSet(count=nodes.count, tables=nodes.tables | {SCORE_TABLE: table})
            },
            source=manifest.source | {SCORE_TABLE: {"kind": kind, **about}},
        )
        replace_file(folder / MANIFEST, new.to_json().encode())
        with as_storage_error(folder):
            sync(folder)
            for path in used:
                (folder / path).unlink(missing_ok=True)
    return folder / name


def without_score(manifest: Manifest) -> Manifest:
    """The manifest as it is without an importance, which changes no result of any run."""
    nodes = {
        node_type: NodeSet(
            count=node_set.count,
            tables={k: table for k, table in node_set.tables.items() if k != SCORE_TABLE},
        )
        for node_type, node_set in manifest.nodes.items()
    }
    source = {key: value for key, value in manifest.source.items() if key != SCORE_TABLE}
    return dataclasses.replace(manifest, nodes=nodes, source=source)


def _write(path: Path, name: str, scores: NDArray[np.uint16]) -> Table:
    data = np.ascontiguousarray(scores, _DTYPE).tobytes()
    header = npy_header(scores.shape, _DTYPE)
    replace_file(path, header + data)
    crc32 = tuple(
        f"{zlib.crc32(data[start : start + CHECKSUM_CHUNK]):08x}"
        for start in range(0, len(data), CHECKSUM_CHUNK)
    )
    shard = Shard(path=name, rows=len(scores), bytes=len(header) + len(data), crc32=crc32)
    encoding = Encoding.of("uint16", scores.shape)
    return Table(shape=scores.shape, encoding=encoding, shards=(shard,))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process changes the folder's manifest inside the ``with``."""
    if not folder.is_dir():
        read_manifest(folder)  # raises what says so
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)

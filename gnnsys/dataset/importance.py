"""The tables ``static_score`` of a dataset folder: how important each node's row is.

Owns how they are added to a folder that exists and what ``graph.json`` says of them. Invariant:
whoever opens the folder meanwhile, or after a kill, finds the old score or the new one, whole.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnsys.dataset.format import (
    CHECKSUM_CHUNK,
    MANIFEST,
    Encoding,
    Manifest,
    NodeSet,
    Shard,
    Table,
    node_folder,
    read_manifest,
)
from gnnsys.errors import ArgumentError
from gnnsys.system.files import as_storage_error, npy_header, replace_file, sync

__all__ = ["SCORE_TABLE", "store_score", "without_score"]

SCORE_TABLE = "static_score"
"""Name of the table, and of what the manifest's ``source`` says about it."""

_FILES = ("static_score.npy", "static_score.1.npy")  # a new score goes where the old one is not
_DTYPE = np.dtype("<u2")


def store_score(
    folder: Path, scores: Mapping[str, NDArray[np.uint16]], kind: str, **about: Any
) -> dict[str, Path]:
    """Adds an importance to a dataset folder; it replaces one that is there.

    Args:
        folder: of the dataset.
        scores: (nodes,) of each node type whose rows are ranked, greater for rows that are asked
            for more often; of a homogeneous graph of ``NODE_TYPE``.
        kind: degree, pagerank or presample.
        about: what else ``graph.json`` is to say of it, as JSON can hold it.

    Returns:
        The file of each type.

    Raises:
        MissingFileError, FileFormatError: no dataset folder.
        ArgumentError: a type that there is not, or not one score for each of its nodes.
        StorageError: the folder cannot be written.
    """
    with _alone(folder):
        manifest = read_manifest(folder)
        for node_type, each in scores.items():
            _check_scores(folder, manifest, node_type, each)
        old = [each.tables.get(SCORE_TABLE) for each in manifest.nodes.values()]
        used = [shard.path for table in old if table is not None for shard in table.shards]
        tables: dict[str, Table] = {}
        for node_type, each in scores.items():
            place = node_folder(manifest.heterogeneous, node_type)
            name = next(place + name for name in _FILES if place + name not in used)
            tables[node_type] = _write(folder / name, name, each)
        replace_file(folder / MANIFEST, _with_scores(manifest, tables, {"kind": kind, **about}))
        with as_storage_error(folder):
            sync(folder)
            for path in used:
                (folder / path).unlink(missing_ok=True)
    return {node_type: folder / table.shards[0].path for node_type, table in tables.items()}


def _with_scores(manifest: Manifest, tables: Mapping[str, Table], about: dict[str, Any]) -> bytes:
    """The manifest's text with these tables and no others of importance."""
    bare = without_score(manifest)
    nodes = dict(bare.nodes)
    for node_type, table in tables.items():
        old = nodes[node_type]
        nodes[node_type] = NodeSet(count=old.count, tables=old.tables | {SCORE_TABLE: table})
    new = dataclasses.replace(bare, nodes=nodes, source=bare.source | {SCORE_TABLE: about})
    return new.to_json().encode()


def _check_scores(
    folder: Path, manifest: Manifest, node_type: str, scores: NDArray[np.uint16]
) -> None:
    if node_type not in manifest.nodes:
        raise ArgumentError(
            f"scores: of {node_type!r}, but the node types of {folder} are "
            f"{', '.join(manifest.nodes)}"
        )
    count = manifest.nodes[node_type].count
    if scores.shape != (count,):
        of = f" of {node_type!r}" if manifest.heterogeneous else ""
        raise ArgumentError(f"scores: shape {scores.shape}{of}, expected ({count},)")


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

"""Reads a feature table in one way, in a process of its own: python table_readers.py TABLE_FOLDER

numpy and torch over a mapped file, as users of PyG write it, and gnnsys with and without its cache.
"""

from __future__ import annotations

import dataclasses
import mmap
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from protocol import open_channel
from table_job import Read, Request, serve_reader
from torch import Tensor

import gnnsys
from gnnsys.cache.making import staging_bytes
from gnnsys.cache.packed.plans import RecordedPlans, record_plans
from gnnsys.cache.packed.rows import pack_rows
from gnnsys.cache.store import CachedStore
from gnnsys.memory import FileStore
from gnnsys.system.scratch import ScratchFolder

Opened = tuple[Read, Callable[[], dict[str, Any]]]


def _open_map(folder: Path, random: bool) -> NDArray[np.float32]:
    table = np.load(folder / "feat.npy", mmap_mode="r")
    if random:
        table._mmap.madvise(mmap.MADV_RANDOM)
    return table


def _open_numpy(folder: Path, random: bool) -> Opened:
    table = _open_map(folder, random)
    return lambda number, ids: torch.from_numpy(table[ids.numpy()]), dict


def _open_torch(folder: Path) -> Opened:
    table = torch.from_numpy(_open_map(folder, random=True))
    return lambda number, ids: torch.index_select(table, 0, ids), dict


def _open_store(folder: Path, request: Request) -> FileStore:
    return FileStore(folder / "feat.npy", storage=request["storage"])


def _open_uncached(folder: Path, request: Request) -> Opened:
    store = _open_store(folder, request)
    return lambda number, ids: store.gather(ids), lambda: {"storage": store.storage}


def _new_cache(folder: Path, request: Request) -> CachedStore:
    scores = np.load(request["scores"]) if request["scores"] else None
    window = request["window"]
    return CachedStore(
        _open_store(folder, request),
        cache=request["cache_rows"],
        policy=request["policy"],
        window="auto" if window is None else window,
        scores=scores,
    )


def _open_cached(folder: Path, request: Request, lists: list[Tensor]) -> Opened:
    return _read_cached(_new_cache(folder, request), lists)


def _read_cached(store: CachedStore, lists: list[Tensor]) -> Opened:
    tickets: deque[Any] = deque()
    announced = 0

    def read(number: int, ids: Tensor) -> Tensor:
        nonlocal announced
        while announced < min(len(lists), number + 1 + store.lookahead):
            tickets.append(store.announce(lists[announced]))
            announced += 1
        return store.gather(ids, ticket=tickets.popleft())

    def describe() -> dict[str, Any]:
        found: dict[str, Any] = {"storage": store.source.storage, "window": store.window}
        return {**found, **dataclasses.asdict(store.stats)}

    return read, describe


def _open_packed(folder: Path, request: Request, lists: list[Tensor]) -> Opened:
    store = _new_cache(folder, request)
    scratch = ScratchFolder("gnnsys-bench-packed-", folder.parent)
    planner, ids = store.make_planner(len(lists)), (each.numpy() for each in lists)
    record_plans(scratch.path, planner, ids, ahead_bytes=request["ahead_bytes"])
    plans, file = RecordedPlans(scratch.path), scratch.path / "rows.bin"
    pack_rows(store.source, plans, len(plans), file, memory=staging_bytes(1 << 30))
    rows = int(plans.first_reads[-1]), store.row_bytes
    packed = FileStore(file, encoding=torch.uint8, shape=rows, storage=request["storage"])
    store.follow(plans, packed, len(plans), 0)
    read, describe = _read_cached(store, lists)

    def and_packed() -> dict[str, Any]:
        return {**describe(), "packed_bytes": rows[0] * rows[1], "scratch": str(scratch.path)}

    return read, and_packed


def main() -> None:
    """Serves until standard input ends."""
    channel = open_channel()
    folder = Path(sys.argv[1])

    def open_reader(request: Request, lists: list[Tensor]) -> Opened:
        readers: dict[str, Callable[[], Opened]] = {
            "np.memmap": lambda: _open_numpy(folder, random=False),
            "np.memmap random": lambda: _open_numpy(folder, random=True),
            "torch random": lambda: _open_torch(folder),
            "gnnsys uncached": lambda: _open_uncached(folder, request),
            "gnnsys": lambda: _open_cached(folder, request, lists),
            "gnnsys packed": lambda: _open_packed(folder, request, lists),
        }
        return readers[request["reader"]]()

    serve_reader(channel, folder, open_reader, {"gnnsys": gnnsys.__version__})


if __name__ == "__main__":
    main()

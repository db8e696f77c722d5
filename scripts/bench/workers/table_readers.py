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
from gnnsys.cache.store import CachedStore
from gnnsys.memory import FileStore

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


def _open_cached(folder: Path, request: Request, lists: list[Tensor]) -> Opened:
    scores = np.load(request["scores"]) if request["scores"] else None
    window = request["window"]
    store = CachedStore(
        _open_store(folder, request),
        cache=request["cache_rows"],
        policy=request["policy"],
        window="auto" if window is None else window,
        scores=scores,
    )
    tickets: deque[Any] = deque()
    announced = 0

    def read(number: int, ids: Tensor) -> Tensor:
        nonlocal announced
        while announced < min(len(lists), number + 1 + store.lookahead):
            tickets.append(store.announce(lists[announced]))
            announced += 1
        return store.gather(ids, ticket=tickets.popleft())

    def describe() -> dict[str, Any]:
        found = {"storage": store.source.storage, "window": store.window}
        return {**found, **dataclasses.asdict(store.stats)}

    return read, describe


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
        }
        return readers[request["reader"]]()

    serve_reader(channel, folder, open_reader, {"gnnsys": gnnsys.__version__})


if __name__ == "__main__":
    main()

"""Measures both ways by which a device gets rows of host memory."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from statistics import median

import torch

from gnnsys.memory.alloc import empty
from gnnsys.memory.host import HostStore
from gnnsys.memory.mapped import MappedStore
from gnnsys.system.gpu import Device
from gnnsys.system.gpu.way import WAYS, Speed, WayProfile

__all__ = ["measure_ways"]

_SIZES = tuple(64 << k for k in range(10))  # to 32 KiB
_REPEATS = 5


def measure_ways(
    device: Device, *, sizes: tuple[int, ...] = _SIZES, table: int = 1 << 30, batch: int = 64 << 20
) -> WayProfile:
    """Gathers random rows of a table in host memory by both ways; the median of 5, after one more.

    Args:
        device: that gets them.
        sizes: bytes of rows, multiples of 4.
        table: bytes that they are drawn from.
        batch: bytes of a gather.

    Raises:
        DeviceError, ResourceError: the device cannot read host memory.
    """
    whole = empty((table // 4,)).fill_(1.0)
    speeds = []
    for size in sizes:
        source = HostStore(whole[: table // size * size // 4].view(-1, size // 4))
        random = torch.Generator().manual_seed(size)
        ids = torch.randint(len(whole) * 4 // size, (batch // size,), generator=random)
        found = {}
        for way in WAYS:
            store = MappedStore(source, device, way)
            found[way] = batch / median(_times(store, ids))
        speeds.append(Speed(size, found["zero-copy"], found["staged"]))
    return WayProfile(speeds, datetime.now(timezone.utc).isoformat(timespec="seconds"))


def _times(store: MappedStore, ids: torch.Tensor) -> list[float]:
    seconds = []
    for _ in range(_REPEATS + 1):
        began = time.perf_counter()
        rows = store.gather(ids)
        if rows.is_cuda:
            torch.cuda.synchronize(rows.device)
        seconds.append(time.perf_counter() - began)
    return seconds[1:]

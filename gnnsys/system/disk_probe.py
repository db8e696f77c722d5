"""What the disk of a file can do: measured once, stored per disk (``profiles``)."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone

import numpy as np

from gnnsys.errors import ArgumentError
from gnnsys.system.extension import core
from gnnsys.system.machine import mount_of, queue_of, read_text
from gnnsys.system.profiles import load_profile, save_profile

__all__ = ["LEAST_BYTES", "DiskProfile", "load", "measure", "measure_folder", "save"]

_log = logging.getLogger(__name__)

LEAST_BYTES = 256 << 20
"""Of a file that tells something about its disk."""

_PAGE = 4096
_DEPTHS = (64, 128, 256)  # fewer gain nothing: waiting reads cost a disk little
_ENOUGH = 0.95  # of the best rate, for a depth to be chosen
_BATCHES = 16  # lists of pages that take turns
_SCAN_PAGES = (32 << 20) // _PAGE
_WRITE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class DiskProfile:
    """What a disk answered when it was probed."""

    iops: float
    """Random reads of 4 KiB a second at `depth`."""

    bandwidth: float
    """Bytes a second of sequential reads of 1 MiB."""

    latency: float
    """Seconds that one random read of 4 KiB takes with no other in flight."""

    depth: int
    """Reads in flight from which more gain little."""

    when: str
    """Time of the probe, ISO 8601 in UTC."""

    disk: str
    """Which one: a name for people."""


def load(path: str | os.PathLike[str]) -> DiskProfile | None:
    """The stored profile of the disk that holds ``path``; None where it was not probed.

    >>> import tempfile
    >>> profile = load(tempfile.gettempdir())
    >>> profile is None or profile.iops > 0
    True
    """
    try:
        found = load_profile("disks", disk_name(path))
        return None if found is None else DiskProfile(**found)
    except (OSError, TypeError) as error:  # no such path; a profile of another form
        _log.info("%s: no profile of its disk can be read (%s)", path, error)
        return None


def save(path: str | os.PathLike[str], profile: DiskProfile) -> bool:
    """Stores the profile of the disk that holds ``path``; whether it could be written."""
    try:
        return save_profile("disks", disk_name(path), asdict(profile))
    except OSError as error:
        _log.info("%s: the profile of its disk is not kept: %s", path, error)
        return False


def disk_name(path: str | os.PathLike[str]) -> str:
    """The disk that holds ``path``: its name and what tells it from others of that name."""
    kind, source = mount_of(path)
    device = os.stat(path).st_dev
    queue = queue_of(device, source)
    if queue is None:
        return f"{kind} {source} {device}"
    disk = queue.parent
    marks = (read_text(disk / name) for name in ("serial", "device/serial", "wwid", "size"))
    return " ".join([disk.name, *filter(None, marks)])


def measure(path: str | os.PathLike[str], seconds: float = 1.0) -> DiskProfile:
    """Reads a file at random past the page cache and says what its disk can do.

    Args:
        path: of a file, best of at least `LEAST_BYTES`, none of them a hole.
        seconds: that it takes, about.

    Raises:
        ArgumentError: the file has less than one page.
        OSError: it cannot be opened or read.
    """
    step = seconds / (len(_DEPTHS) + 2)
    handle = os.open(path, os.O_RDONLY)
    try:
        pages = os.fstat(handle).st_size // _PAGE
        if pages == 0:
            raise ArgumentError(f"{path}: less than {_PAGE} bytes, too few to probe its disk")
        iops = {depth: _random_reads(handle, pages, depth, step) for depth in _DEPTHS}
        latency = 1 / _random_reads(handle, pages, 1, step)
        bandwidth = _sequential_bytes(handle, pages, step)
    finally:
        os.close(handle)
    best = max(iops.values())
    depth = min(depth for depth, found in iops.items() if found >= _ENOUGH * best)
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return DiskProfile(iops[depth], bandwidth, latency, depth, when, disk_name(path))


def measure_folder(path: str | os.PathLike[str]) -> DiskProfile:
    """The same for the disk of a folder, with a file that is written there and removed."""
    with tempfile.NamedTemporaryFile(prefix=".gnnsys-probe-", dir=path) as file:
        block = os.urandom(_WRITE_BYTES)  # disks may not read what compresses to nothing
        for _ in range(LEAST_BYTES // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return measure(file.name)


def _reader(handle: int, pages: int, depth: int) -> core.FileReader:
    uring = core.has_uring and core.find_uring_fault(depth) == 0
    return core.FileReader([(handle, pages, 0)], _PAGE, uring, depth, 1, _PAGE)


def _random_reads(handle: int, pages: int, depth: int, seconds: float) -> float:
    """Pages a second, with `depth` reads in flight."""
    reader, draw = _reader(handle, pages, depth), np.random.default_rng(depth)
    batches = [np.unique(draw.integers(0, pages, 4 * depth)) for _ in range(_BATCHES)]
    reader.start(batches[-1]).wait()
    read, turn, start = 0, 0, time.perf_counter()
    ahead = reader.start(batches[0])
    while time.perf_counter() - start < seconds:
        turn += 1
        job, ahead = ahead, reader.start(batches[turn % _BATCHES])
        _check(job.wait())
        read += job.pages
    _check(ahead.wait())
    return (read + ahead.pages) / (time.perf_counter() - start)


def _sequential_bytes(handle: int, pages: int, seconds: float) -> float:
    """Bytes a second of a scan."""
    reader, count = _reader(handle, pages, 16), min(pages, _SCAN_PAGES)
    out = np.empty(count * _PAGE, np.uint8)
    read, first, start = 0, 0, time.perf_counter()
    while read == 0 or time.perf_counter() - start < seconds:
        _check(reader.read_range(first, count, out.ctypes.data))
        read += len(out)
        first = first + count if first + 2 * count <= pages else 0
    return read / (time.perf_counter() - start)


def _check(fault: tuple[int, int, int] | None) -> None:
    if fault is not None:
        code = fault[2] or errno.EIO
        raise OSError(code, f"{os.strerror(code)} at byte {fault[1]}")

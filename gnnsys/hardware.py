"""What a machine can move: its disk and its memory, described in a file or measured here."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from gnnsys import disk_probe
from gnnsys.config_data import parse_bytes
from gnnsys.errors import ArgumentError, FileFormatError, MissingFileError
from gnnsys.memory import FileStore
from gnnsys.memory.direct_rows import uring_refusal

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Hardware", "measure_hardware", "read_hardware"]

_TABLES = {"disk": ("iops", "bandwidth"), "memory": ("bandwidth",)}
_PAGE = 4096
_PROBE_PAGES = 4096
_PROBE_BYTES = 32 << 20
_PROBE_SECONDS = 0.3
_COPY_BYTES = 128 << 20  # more than the caches of a processor hold


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """Speeds that bound how fast features are read."""

    name: str
    """For people."""

    disk_iops: float
    """Random reads of 4 KiB a second, at the best queue depth."""

    disk_bandwidth: float
    """Bytes a second that the disk reads."""

    memory_bandwidth: float
    """Bytes a second that are copied from memory to memory, by all cores."""


def read_hardware(path: str | os.PathLike[str]) -> Hardware:
    """Reads a description such as::

        name = "a server"

        [disk]
        iops = 85_000
        bandwidth = "0.9GB"

        [memory]
        bandwidth = "10GB"

    Bandwidths are bytes a second, as a number or with a unit of powers of 1024.

    Raises:
        MissingFileError, FileFormatError: no such file, or not TOML.
        ArgumentError: a key that is unknown or missing, or a value that is no speed.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "server.toml"
    >>> _ = path.write_text("disk = {iops = 1e5, bandwidth = 1e9}\\nmemory.bandwidth = '8GB'")
    >>> read_hardware(path).memory_bandwidth
    8589934592.0
    """
    place = Path(path)
    try:
        content = tomllib.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFileError(
            f"--hardware {place}: no such file; describe the machine there, or give this"
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise FileFormatError(f"{place}: not TOML ({error})") from error
    _check_keys(place, "", content, ("name", *_TABLES))
    speeds = {}
    for table, keys in _TABLES.items():
        entry = content.get(table, {})
        if not isinstance(entry, dict):
            raise ArgumentError(f"{place}: {table} is {entry!r}, expected a table [{table}]")
        _check_keys(place, f"{table}.", entry, keys)
        for key in keys:
            speeds[f"{table}_{key}"] = _speed(place, f"{table}.{key}", entry.get(key))
    return Hardware(name=str(content.get("name", place.stem)), **speeds)


def _check_keys(place: Path, prefix: str, entry: dict[str, Any], known: tuple[str, ...]) -> None:
    for key in entry:
        if key not in known:
            raise ArgumentError(
                f"{place}: {prefix}{key} is unknown; expected "
                f"{', '.join(prefix + each for each in known)}"
            )


def _speed(place: Path, key: str, value: Any) -> float:
    if value is None:
        raise ArgumentError(f"{place}: no {key}; the estimate needs it")
    if isinstance(value, str) and key.endswith("bandwidth"):
        value = parse_bytes(value, f"{place}: {key}")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        unit = "bytes a second, such as 2e9 or '2GB'" if key.endswith("bandwidth") else "a number"
        raise ArgumentError(f"{place}: {key} is {value!r}, expected {unit}, above 0")
    return float(value)


def measure_hardware(file: str | os.PathLike[str]) -> Hardware:
    """This machine, with the disk that holds a file.

    Args:
        file: what its disk is measured with, for half a second, unless a profile of it is stored.

    Raises:
        ArgumentError: a file of less than a page, which tells nothing.
    """
    profile = disk_probe.load(file)
    if profile is not None:
        name, iops, bandwidth = profile.disk, profile.iops, profile.bandwidth
    else:
        name, (iops, bandwidth) = f"the disk of {file}", _disk_speeds(file)
    return Hardware(
        name=f"this machine, {name}",
        disk_iops=iops,
        disk_bandwidth=bandwidth,
        memory_bandwidth=_copy_speed(),
    )


def _disk_speeds(file: str | os.PathLike[str]) -> tuple[float, float]:
    """Reads of single pages a second, and bytes a second of sequential reads, past the page cache.

    Small files are read over and over.
    """
    pages = os.path.getsize(file) // _PAGE
    if pages == 0:
        raise ArgumentError(
            f"{file}: too small to measure its disk with; describe the disk in a file and name it "
            "with --hardware"
        )
    storage: Literal["uring", "pread"] = "pread" if uring_refusal() else "uring"
    store = FileStore(file, encoding=torch.uint8, shape=(pages, _PAGE), storage=storage)
    with closing(store):
        ids = torch.randint(pages, (min(pages, _PROBE_PAGES),))
        count = min(pages, _PROBE_BYTES // _PAGE)
        iops = _per_second(len(ids.unique()), lambda: store.gather(ids))
        return iops, _per_second(count * _PAGE, lambda: store.read_range(0, count))


def _per_second(amount: int, work: Callable[[], object]) -> float:
    """How much is done a second by doing it again and again for a while."""
    begun, done = time.perf_counter(), 0
    while (took := time.perf_counter() - begun) < _PROBE_SECONDS:
        work()
        done += amount
    return done / took


def _copy_speed() -> float:
    """Bytes a second of the fastest of a few copies by torch's threads."""
    source = torch.ones(_COPY_BYTES // 8, dtype=torch.float64)
    target = torch.empty_like(source)
    fastest = math.inf
    for _ in range(4):  # the first one gets the target's pages
        begun = time.perf_counter()
        target.copy_(source)
        fastest = min(fastest, time.perf_counter() - begun)
    return _COPY_BYTES / fastest

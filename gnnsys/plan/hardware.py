"""What a machine can move: its disk and its memory, described in a file or measured here."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from gnnsys.errors import ArgumentError, StorageError
from gnnsys.system import disk_probe
from gnnsys.system.records import read_toml
from gnnsys.system.sizes import parse_bytes

__all__ = ["Cluster", "Hardware", "measure_hardware", "read_cluster", "read_hardware"]

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Speeds that bound how fast ranks train together. All ranks are alike."""

    name: str
    """For people."""

    memory_bandwidth: float
    """Bytes a second that a rank reads and writes: of its GPU, or its share of the host's."""

    compute_flops: float
    """Additions and multiplications a second of a rank, in products of large matrices."""

    network_bandwidth: float
    """Bytes a second that a rank sends."""

    network_latency: float
    """Seconds that a message takes besides."""


_Speeds = TypeVar("_Speeds", bound=Hardware | Cluster)


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
    return _read(path, Hardware)


def read_cluster(path: str | os.PathLike[str]) -> Cluster:
    """Reads a description such as::

        name = "8 GPUs"

        [memory]
        bandwidth = "2000GB"

        [compute]
        flops = 50e12

        [network]
        bandwidth = "12GB"
        latency = 20e-6

    It may be of the same file as ``read_hardware`` reads; raises as that does.
    """
    return _read(path, Cluster)


def _read(path: str | os.PathLike[str], kind: type[_Speeds]) -> _Speeds:
    place = Path(path)
    content = read_toml(place, f"--hardware {place}", "describe the machine there, or give this")
    known: dict[str, tuple[str, ...]] = {}
    for field in (*dataclasses.fields(Hardware), *dataclasses.fields(Cluster)):
        table, _, key = field.name.partition("_")
        known[table] = tuple(dict.fromkeys((*known.get(table, ()), key)))
    _check_keys(place, "", content, tuple(known))
    for table in known.keys() - {"name"}:
        entry = content.get(table, {})
        if not isinstance(entry, dict):
            raise ArgumentError(f"{place}: {table} is {entry!r}, expected a table [{table}]")
        _check_keys(place, f"{table}.", entry, known[table])
    speeds = {}
    for field in dataclasses.fields(kind)[1:]:
        table, _, key = field.name.partition("_")
        value = content.get(table, {}).get(key)
        speeds[field.name] = _speed(place, f"{table}.{key}", value)
    return kind(name=str(content.get("name", place.stem)), **speeds)


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
        file: what its disk is measured with, for a second, unless a profile of it is stored.

    Raises:
        ArgumentError: a file of less than a page, which tells nothing.
        StorageError: the file cannot be read.
    """
    profile = disk_probe.load(file) or _probe(file)
    return Hardware(
        name=f"this machine, {profile.disk}",
        disk_iops=profile.iops,
        disk_bandwidth=profile.bandwidth,
        memory_bandwidth=_copy_speed(),
    )


def _probe(file: str | os.PathLike[str]) -> disk_probe.DiskProfile:
    try:
        return disk_probe.measure(file)
    except OSError as error:
        raise StorageError(
            f"{file}: its disk cannot be measured ({error.strerror}); describe the machine in a "
            "file and name it with --hardware"
        ) from error


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

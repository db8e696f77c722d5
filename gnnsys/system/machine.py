"""What the kernel says of this machine: memory, cgroups, mounts and disks.

Imports the standard library only, so that the doctor can use it in a broken install. Linux; what a
kernel does not say is None or "".
"""

from __future__ import annotations

import errno
import os
import platform
import re
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "available_memory",
    "cgroup_values",
    "cpu_flags",
    "cpu_model",
    "cpu_quota",
    "meminfo",
    "memory_limit",
    "mount_of",
    "queue_of",
    "read_text",
    "usable_cores",
]

_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


def available_memory(own: Path = _CGROUP, top: Path = _CGROUPS) -> int:
    """Bytes that this process can still take: of the machine, and of its tightest cgroup.

    Page cache that a cgroup holds is counted as free, since the kernel takes it back.

    >>> available_memory() > 0
    True
    """
    return max(0, min([meminfo("MemAvailable"), *_cgroup_rests(own, top)]))


def meminfo(key: str) -> int:
    """Bytes that ``/proc/meminfo`` has under a name, such as MemTotal."""
    info = dict(line.split(":", 1) for line in read_text(Path("/proc/meminfo")).splitlines())
    return int(info[key].split()[0]) << 10


def memory_limit(own: Path = _CGROUP, top: Path = _CGROUPS) -> int | None:
    """Bytes that the tightest cgroup allows; None without a limit."""
    names = ("memory.max", "memory.limit_in_bytes")
    texts = [text for name in names for text in cgroup_values("memory", (name,), own, top)]
    return min((int(text) for text in texts if text.isdigit()), default=None)


def cpu_quota(own: Path = _CGROUP, top: Path = _CGROUPS) -> float | None:
    """CPUs' worth of time that the tightest cgroup allows; None without a limit."""
    v1 = cgroup_values("cpu", ("cpu.cfs_quota_us", "cpu.cfs_period_us"), own, top)
    pairs = [text.split() for text in v1 + cgroup_values("cpu", ("cpu.max",), own, top)]
    # no limit is "max" in v2 and -1 in v1
    quotas = [int(pair[0]) / int(pair[1]) for pair in pairs if pair and pair[0].isdigit()]
    return min(quotas, default=None)


def usable_cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except OSError:  # a sandbox may refuse to tell
        return os.cpu_count() or 1


def cgroup_values(
    controller: str, files: Iterable[str], own: Path = _CGROUP, top: Path = _CGROUPS
) -> list[str]:
    """What `files` hold in this process's cgroup and its ancestors, in cgroup v2 and v1."""
    folders = _cgroup_folders(controller, own, top)
    return [" ".join(read_text(folder / name) for name in files) for folder in folders]


def cpu_model() -> str:
    """Name of the processor, as well as this system knows it."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """What the processor can do, in the kernel's words; empty where the kernel does not say."""
    return (_cpuinfo("flags") or _cpuinfo("Features")).split()


def _cpuinfo(key: str) -> str:
    found = re.search(rf"^{key}\s*:\s*(.*)$", read_text(Path("/proc/cpuinfo")), re.MULTILINE)
    return found[1] if found else ""


def mount_of(path: str | os.PathLike[str]) -> tuple[str, str]:
    """The type of the file system that holds `path`, and the device or share it is on."""
    real, found = Path(path).resolve(strict=True), ("", "unknown", "unknown")
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        before, after = os.fsdecode(line).split(" - ", 1)  # optional fields end at the dash
        point, kind, source = (
            re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)
            for field in (before.split(" ")[4], *after.split(" ")[:2])
        )
        # of two mounts on one point the later hides the earlier
        if real.is_relative_to(point) and len(point) >= len(found[0]):
            found = (point, kind, source)
    return found[1:]


def queue_of(device: int, source: str) -> Path | None:
    """The queue settings of a disk in sysfs, or None where no block device is behind it.

    Args:
        device: ``st_dev`` of a file on it.
        source: device or share that is mounted, of `mount_of`.
    """
    if os.major(device) == 0 and source.startswith("/dev/"):  # btrfs hides its device
        device = os.stat(source).st_rdev
    block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    queue = (block.parent if (block / "partition").exists() else block) / "queue"
    return queue if queue.is_dir() else None


def read_text(path: Path) -> str:
    """The text of a kernel file, or "" where this kernel does not have it.

    Raises:
        OSError: this process has as many files open as it may.
    """
    try:
        return path.read_text().strip()
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        return ""


def _cgroup_folders(controller: str, own: Path, top: Path) -> list[Path]:
    folders = []
    for line in read_text(own).splitlines():
        _, controllers, folder = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = top / controller if controllers else top  # only v2 names no controllers
        bottom = base / folder.lstrip("/")  # absent in a container that sees its own part only
        folders += [each for each in (bottom, *bottom.parents) if each.is_relative_to(base)]
    return folders


def _cgroup_rests(own: Path, top: Path) -> list[int]:
    """Bytes that each cgroup with a limit leaves."""
    rests = []
    for folder in _cgroup_folders("memory", own, top):
        for limit, usage, prefix in (
            ("memory.max", "memory.current", ""),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        ):
            allowed, used = read_text(folder / limit), read_text(folder / usage)
            if allowed.isdigit() and used.isdigit():
                lines = read_text(folder / "memory.stat").splitlines()
                stat = dict(line.split(" ", 1) for line in lines)
                cached = sum(
                    int(stat.get(f"{prefix}{age}_file", 0)) for age in ("active", "inactive")
                )
                rests.append(int(allowed) - max(0, int(used) - cached))
    return rests

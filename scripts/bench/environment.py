"""What a figure depends on: the machine, the system's settings and the versions at work."""

from __future__ import annotations

import importlib
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import psutil

__all__ = ["describe_environment", "huge_bytes", "last_level_cache_bytes"]

_ROOT = Path(__file__).resolve().parents[2]
_CPU = Path("/sys/devices/system/cpu")
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")
_PACKAGES = ("torch", "torch_geometric", "numpy", "gnnsys")
_GUESSED_CACHE_BYTES = 64 << 20


def describe_environment() -> dict[str, Any]:
    """The environment as JSON; None stands for what this machine does not tell."""
    memory = psutil.virtual_memory()
    return {
        "cpu": {
            "model": _cpu_model(),
            "logical_cores": os.cpu_count(),
            "usable_cores": len(os.sched_getaffinity(0)),
            "last_level_cache_bytes": _read_cache_bytes(),
            "governor": _read(_CPU / "cpu0/cpufreq/scaling_governor"),
            "load_average": os.getloadavg(),
        },
        "memory": {"total_bytes": memory.total, "available_bytes": memory.available},
        "kernel": platform.release(),
        "transparent_huge_pages": {
            "enabled": _chosen(_read(_HUGE_PAGES / "enabled")),
            "defrag": _chosen(_read(_HUGE_PAGES / "defrag")),
        },
        "versions": {"python": platform.python_version(), **_versions()},
        "source": _source(),
    }


def last_level_cache_bytes() -> int:
    """Size of the largest CPU cache, or a generous guess."""
    return _read_cache_bytes() or _GUESSED_CACHE_BYTES


def huge_bytes(address: int, nbytes: int) -> int | None:
    """How many of the ``nbytes`` at ``address`` lie on huge pages now; None if nobody tells."""
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return None
    found, inside = 0, False
    for line in lines:
        area = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if area:
            inside = int(area[1], 16) < address + nbytes and address < int(area[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            found += int(line.split()[1]) << 10
    return min(found, nbytes)  # the kernel may have merged the area with a neighbour


def _versions() -> dict[str, str | None]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.import_module(name).__version__
        except ImportError:
            found[name] = None
    return found


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _chosen(setting: str | None) -> str | None:
    found = re.search(r"\[(\w+)\]", setting or "")
    return found[1] if found else None


def _cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _read(Path("/proc/cpuinfo")) or "", re.MULTILINE)
    return found[1] if found else platform.machine()


def _read_cache_bytes() -> int | None:
    sizes = [_read(path) for path in _CPU.glob("cpu0/cache/index*/size")]
    units = {"K": 10, "M": 20, "G": 30}
    return max((int(size[:-1]) << units[size[-1]] for size in sizes if size), default=None)


def _source() -> dict[str, Any] | None:
    """The checkout's commit, and whether files differ from it."""
    try:
        commit = _git("rev-parse", "HEAD")
        return {"commit": commit, "modified": bool(_git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(_ROOT), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    return done.stdout.strip()

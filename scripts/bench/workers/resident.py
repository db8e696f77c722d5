"""Resident memory of this process, as the kernel counts it.

Standard library only: peers' environments have no gnnsys.
"""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

__all__ = ["peak_bytes", "restart_peak", "settled_bytes"]


def settled_bytes() -> int:
    """What is resident once freed memory, which would serve what comes next unseen, is given
    back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _read_status("VmRSS")


def restart_peak() -> None:
    """Lets ``peak_bytes`` tell of what is resident from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most that was resident since ``restart_peak``."""
    return _read_status("VmHWM")


def _read_status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {name}")
    return int(found[1]) << 10

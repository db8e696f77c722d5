"""What the disk of a file can do: measured once, stored per disk.

Profiles lie in ``$XDG_CACHE_HOME/gnnsys/disks`` (``~/.cache`` without it), one JSON file a disk.
Where they cannot be written, gnnsys goes on without.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from gnnsys.errors import GnnsysError
from gnnsys.files import replace_file
from gnnsys.machine import mount_of, queue_of, read_text

__all__ = ["DiskProfile", "load", "save"]

_log = logging.getLogger(__name__)


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
        return DiskProfile(**json.loads(_place(path).read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        _log.info("%s: the stored profile of its disk cannot be read (%s)", path, error)
        return None


def save(path: str | os.PathLike[str], profile: DiskProfile) -> bool:
    """Stores the profile of the disk that holds ``path``; whether it could be written."""
    place = _place(path)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        replace_file(place, json.dumps(asdict(profile), indent=2).encode())
    except (OSError, GnnsysError) as error:
        _log.info("the profile of the disk of %s is not kept: %s", path, error)
        return False
    return True


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


def _place(path: str | os.PathLike[str]) -> Path:
    top = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    key = hashlib.sha256(disk_name(path).encode()).hexdigest()[:16]
    return Path(top) / "gnnsys" / "disks" / f"{key}.json"

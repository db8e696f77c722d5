"""What was measured of a piece of hardware, kept in a JSON file each.

They lie in ``$XDG_CACHE_HOME/gnnsys`` (``~/.cache/gnnsys`` without it), a folder for each kind.
Where they cannot be written, gnnsys goes on without.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from gnnsys.errors import GnnsysError
from gnnsys.system.files import replace_file
from gnnsys.system.records import json_text

__all__ = ["load_profile", "save_profile", "user_cache"]

_log = logging.getLogger(__name__)


def user_cache() -> Path:
    """The folder of what gnnsys may make again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gnnsys"


def load_profile(kind: str, name: str) -> dict[str, Any] | None:
    """What was saved of that piece of hardware; None where nothing was, or nothing can be read.

    >>> load_profile("disks", "one that was never probed") is None
    True
    """
    try:
        found = json.loads(_place(kind, name).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        _log.info("%s: the stored profile cannot be read (%s)", name, error)
        return None
    return found if isinstance(found, dict) else None


def save_profile(kind: str, name: str, profile: dict[str, Any]) -> bool:
    """Saves it; whether it could be written."""
    place = _place(kind, name)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        replace_file(place, json_text(profile, indent=2).encode())
    except (OSError, GnnsysError) as error:
        _log.info("%s: its profile is not kept: %s", name, error)
        return False
    return True


def _place(kind: str, name: str) -> Path:
    key = hashlib.sha256(name.encode()).hexdigest()[:16]
    return user_cache() / kind / f"{key}.json"

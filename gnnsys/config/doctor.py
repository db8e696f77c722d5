"""Options of ``gnnsys doctor``."""

from __future__ import annotations

from dataclasses import dataclass

from gnnsys.choices import Folder

__all__ = ["DoctorConfig"]


@dataclass(kw_only=True, slots=True)
class DoctorConfig:
    """Show what this machine offers and what gnnsys uses because of it.

    Examples:
        gnnsys doctor
        gnnsys doctor --path /mnt/ssd --json
        gnnsys doctor --path /mnt/ssd --probe
    """

    path: Folder = "."
    """Folder whose disk is examined."""

    json: bool = False
    """Print one JSON object instead of a table."""

    probe: bool = False
    """Measure the disk anew, with a file of 256 MiB that is written to the folder and removed, and
    keep what was found for the choice of the depth of reads."""

"""Options of ``gnnsys info``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

__all__ = ["InfoConfig"]


@dataclass(kw_only=True, slots=True)
class InfoConfig:
    """Show what a dataset folder holds.

    Examples:
        gnnsys info my-graph
        gnnsys info my-graph --verify
    """

    path: Annotated[str, tyro.conf.Positional]
    """The folder."""

    verify: bool = False
    """Read everything and compare it with its checksums."""

    json: bool = False
    """Print one JSON object instead of tables."""

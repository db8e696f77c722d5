"""Options of ``gnnsys report``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from gnnsys.choices import File

__all__ = ["ReportConfig"]


@dataclass(kw_only=True, slots=True)
class ReportConfig:
    """Make one HTML page of a run: curves, throughput, bytes by tier, configuration.

    Examples:
        gnnsys report run1
    """

    run: Annotated[str, tyro.conf.Positional]
    """Folder that gnnsys train --out made; the run may still be going on."""

    out: File | None = None
    """The page. Default: RUN/report.html."""

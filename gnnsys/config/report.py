"""Options of ``gnnsys report``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from gnnsys.choices import File

__all__ = ["ReportConfig"]


@dataclass(kw_only=True, slots=True)
class ReportConfig:
    """Make one HTML page of a run, or of several side by side.

    Of one run: curves, throughput, bytes by tier, where the time went, configuration. Of several:
    scores, time and memory of each, their curves over epochs, steps or time, the options that
    differ. Of runs of gnnsys cluster: losses and scores by seed, sizes of clusters, the picture.

    Examples:
        gnnsys report run1
        gnnsys report run1 run2 run3 --out compared.html
        gnnsys report run1 run2 --json
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders that gnnsys train or cluster made by --out; a run may still be going on."""

    out: File | None = None
    """The page. Default: RUN/report.html; comparison.html here for several runs; none with
    --json."""

    json: bool = False
    """Print the numbers as JSON."""

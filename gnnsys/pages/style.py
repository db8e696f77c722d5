"""How figures look: on pages, whose style sheet has their colours, and on white paper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from cycler import cycler

__all__ = ["CARD", "MUTED", "SERIES", "VARIABLES", "page_looks", "paper_looks"]

# Colours that stand for the variables of the style sheet, which has a light and a dark set.
_INK, MUTED, _GRID, CARD = "#123401", "#123402", "#123403", "#123404"
SERIES = [f"#12341{place}" for place in range(6)]
"""Of series; further ones start again. Inside ``page_looks`` they are C0, C1, …, too."""

VARIABLES = {
    _INK: "--ink",
    MUTED: "--muted",
    _GRID: "--grid",
    CARD: "--card",
    **{color: f"--series-{place}" for place, color in enumerate(SERIES, 1)},
}
"""What is written into a page for each of the colours."""

_PAGE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same layout on every machine
    "font.size": 10.5,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.formatter.use_mathtext": False,
    "axes.prop_cycle": cycler(color=SERIES),
    "axes.unicode_minus": False,
    "figure.facecolor": "none",
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
}


@contextmanager
def page_looks() -> Iterator[None]:
    """Figures of a page are made and finished inside this; it leaves the process as it was."""
    with paper_looks(_PAGE):
        yield


@contextmanager
def paper_looks(looks: Mapping[Any, Any] | None = None) -> Iterator[None]:
    """Likewise, of a picture: dark on white, with matplotlib's own colours.

    Args:
        looks: what differs from matplotlib's defaults, as in its ``rcParams``.
    """
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(looks or {})
        yield

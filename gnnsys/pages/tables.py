"""Tables of texts, which a page shows as sections and a terminal by rich."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import rich.table
from rich.markup import escape

__all__ = ["TextTable", "on_terminal", "pairs_on_terminal"]


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table of texts, of which a page makes a section."""

    title: str

    head: Sequence[str]
    """Names of the columns."""

    rows: Sequence[Sequence[str]]
    """Their first text names the row."""


def on_terminal(table: TextTable, caption: str | None = None) -> rich.table.Table:
    """The table as rich draws it, with all columns but the first to the right."""
    drawn = rich.table.Table(title=escape(table.title), title_justify="left", caption=caption)
    for place, name in enumerate(table.head):
        # On a narrow terminal long numbers are broken, not lost.
        justify: Literal["left", "right"] = "right" if place else "left"
        drawn.add_column(escape(name), justify=justify, overflow="fold")
    for row in table.rows:
        drawn.add_row(*map(escape, row))
    return drawn


def pairs_on_terminal(title: str, pairs: Iterable[tuple[str, str]]) -> rich.table.Table:
    """Names and what is told of each, without a head."""
    drawn = rich.table.Table(title=escape(title), show_header=False)
    for name, told in pairs:
        drawn.add_row(escape(name), escape(told))
    return drawn

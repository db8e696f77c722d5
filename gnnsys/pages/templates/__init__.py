"""The HTML pages: jinja2 templates, in which every text is escaped, and the style sheet."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

__all__ = ["render"]


def render(template: str, **values: Any) -> str:
    """A whole page, which needs no other file.

    Args:
        template: its name in this folder, without ``.html.j2``.
        values: what it shows: texts, which are escaped; charts; ``pages.tables.TextTable``.

    Example::

        render("plan", title="A plan", about="", notes=[], charts=[], tables=[])
    """
    return _templates().get_template(f"{template}.html.j2").render(values)


@cache
def _templates() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,  # a value that is missing is a fault, not an empty text
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )

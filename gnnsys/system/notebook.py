"""What objects show in a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

__all__ = ["facts_as_html"]


def facts_as_html(title: str, facts: Mapping[str, str]) -> str:
    """A table of names and what is said of each.

    >>> facts_as_html("UnifiedTensor", {"rows": "3 < 4"})
    '<table><caption>UnifiedTensor</caption><tr><th>rows</th><td>3 &lt; 4</td></tr></table>'
    """
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in facts.items()
    )
    return f"<table><caption>{escape(title)}</caption>{rows}</table>"

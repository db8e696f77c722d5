"""The style sheet of a report, for light and dark screens and for paper, and its table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["STYLE", "html_page", "numbers_table", "page_header"]

STYLE = """\
:root {
  color-scheme: light dark;
  --page: #f5f6f8; --card: #ffffff; --edge: #e2e5ea;
  --ink: #1b212b; --muted: #5d6878; --grid: #e4e7ec;
  --good: #11704f; --good-back: #dff3ea; --warning: #8a4b00; --warning-back: #fdefd8;
  --series-1: #2563c9; --series-2: #d9660a; --series-3: #0f8a6c;
  --series-4: #8250c4; --series-5: #c9355e; --series-6: #6b7a12;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #12151a; --card: #1b2027; --edge: #2c333d;
    --ink: #e6e9ee; --muted: #9aa5b4; --grid: #303843;
    --good: #6fdcb2; --good-back: #143a2e; --warning: #ffc27a; --warning-back: #43300f;
    --series-1: #6ea8ff; --series-2: #ffa04d; --series-3: #3fcfa4;
    --series-4: #b897f5; --series-5: #ff7d9c; --series-6: #c3d04a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
    "Liberation Sans", sans-serif;
}
main { max-width: 1180px; margin: 0 auto; padding: 32px 24px 48px; }
h1 { margin: 0; font-size: 28px; line-height: 1.25; letter-spacing: -0.01em; }
h2 { margin: 36px 0 12px; font-size: 18px; }
h3 { margin: 0; font-size: 15px; }
header p { margin: 4px 0 0; color: var(--muted); }
h1, header p, td, th, .keys li { overflow-wrap: anywhere; }
small { font-size: 13px; font-weight: 400; color: var(--muted); }
.state {
  display: inline-block; margin-left: 8px; padding: 2px 12px; border-radius: 99px;
  font-size: 14px; font-weight: 600; letter-spacing: 0; vertical-align: 4px; white-space: nowrap;
}
.good { color: var(--good); background: var(--good-back); }
.warning { color: var(--warning); background: var(--warning-back); }
.card {
  margin: 0; padding: 16px 18px; background: var(--card);
  border: 1px solid var(--edge); border-radius: 10px;
}
.notices {
  margin: 20px 0 0; padding: 12px 18px; list-style: none; background: var(--card);
  border: 1px solid var(--edge); border-left: 4px solid var(--series-2); border-radius: 10px;
}
.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 1px;
  margin: 24px 0 0; overflow: hidden; background: var(--edge);
  border: 1px solid var(--edge); border-radius: 10px;
}
.tiles div { padding: 14px 18px; background: var(--card); }
.tiles dt { font-size: 13px; color: var(--muted); }
.tiles dd { margin: 2px 0 0; font-size: 22px; font-weight: 600; line-height: 1.3; }
.tiles small { display: block; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(430px, 100%), 1fr));
  gap: 16px; }
.summary { margin: 0; font-size: 13px; color: var(--muted); }
figcaption { margin-bottom: 6px; }
.keys {
  display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 6px 0 0; padding: 0;
  list-style: none; font-size: 13px; min-height: 20px;
}
.keys i { display: inline-block; width: 16px; margin-right: 6px; vertical-align: middle; }
.keys .line { border-top: 3px solid var(--color); border-radius: 2px; }
.keys .faint { border-top: 2px solid var(--color); opacity: 0.5; }
.keys .dashed { border-top: 2px dashed var(--color); }
.keys .area { height: 10px; background: var(--color); border-radius: 2px; opacity: 0.85; }
.keys .band { height: 10px; background: var(--color); border-radius: 2px; opacity: 0.25; }
.keys .ring { width: 11px; height: 11px; border: 2px solid var(--color); border-radius: 50%; }
figure svg { display: block; width: 100%; height: auto; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figure svg text { font-family: inherit !important; font-variant-numeric: tabular-nums; }
.empty { margin: 48px 0; text-align: center; color: var(--muted); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; }
th { text-align: left; font-weight: 400; color: var(--muted); vertical-align: top; }
td, th { padding: 5px 0 5px 20px; }
td:first-child, th:first-child { padding-left: 0; }
tbody tr, .pairs tr { border-top: 1px solid var(--edge); }
.pairs tr:first-child { border-top: 0; }
.numbers { width: 100%; font-variant-numeric: tabular-nums; }
.numbers td, .numbers th { text-align: right; white-space: nowrap; }
.numbers th:first-child { text-align: left; }
.numbers tbody th { color: var(--ink); }
.pairs { width: 100%; margin-top: 8px; }
.pairs th { width: 40%; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(430px, 100%), 1fr));
  gap: 16px; align-items: start; }
.facts > div > .card + .card { margin-top: 16px; }
footer { margin-top: 32px; font-size: 13px; color: var(--muted); }
summary { cursor: pointer; }
details[open] summary { margin-bottom: 10px; }
@media (max-width: 560px) {
  main { padding: 20px 12px 32px; }
  .card { padding: 14px 12px; }
}
@media print {
  body { background: none; }
  .card, .tiles { break-inside: avoid; }
}
"""


def html_page(title: str, body: str, footer: str = "") -> str:
    """A whole page in the style of reports.

    Args:
        title: of the window, as text.
        body, footer: as HTML.
    """
    end = f"\n<footer>{footer}</footer>" if footer else ""
    return f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
{STYLE}</style>
</head>
<body>
<main>
{body}{end}
</main>
</body>
</html>
"""


def page_header(title: str, about: str) -> str:
    """The head of a page that shows a plan or a schedule; both as text."""
    return f"<header>\n<h1>{escape(title)}</h1>\n<p>{escape(about)}</p>\n</header>"


def numbers_table(head: Iterable[str], body: Iterable[Sequence[str]]) -> str:
    """A table of plain texts whose first column names the row."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(value)}</td>" for value in values)
        + "</tr>\n"
        for name, *values in body
    )
    return (
        f'<div class="scroll"><table class="numbers">\n<thead><tr>{top}</tr></thead>\n'
        f"<tbody>\n{rows}</tbody>\n</table></div>"
    )

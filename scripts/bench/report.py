"""Prints a benchmark's tables and writes its JSON file."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from harness import Measured, Rate

__all__ = ["print_case", "print_head", "print_peers", "read_lines", "write_json"]

_PLAIN_WIDTH = 160  # of what goes to a file or a pipe, where lines must not be broken

_console = Console() if sys.stdout.isatty() else Console(width=_PLAIN_WIDTH, color_system=None)


def print_head(
    name: str, rounds: int, quick: bool, cache_state: str, environment: dict[str, Any]
) -> None:
    """States what the tables below were measured with."""
    cpu, memory = environment["cpu"], environment["memory"]
    versions = ", ".join(f"{key} {value}" for key, value in environment["versions"].items())
    lines = [
        f"{name}: {rounds} rounds after a warm-up" + (" (QUICK: not to be cited)" * quick),
        f"cpu: {cpu['model']}, {cpu['usable_cores']} of {cpu['logical_cores']} cores, "
        f"governor {cpu['governor'] or 'unknown'}, load {cpu['load_average'][0]:.2f}",
        f"memory: {memory['total_bytes'] / 2**30:.0f} GiB, huge pages "
        f"{environment['transparent_huge_pages']['enabled']}; kernel {environment['kernel']}",
        f"versions: {versions}",
        f"cache: {cache_state}",
        "÷ base: median of the rounds' ratios (ratio of the medians); above 1 is faster than it",
    ]
    _console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def print_peers(peers: dict[str, Any]) -> None:
    """One line for each peer that was asked for."""
    for name, found in peers.items():
        if "error" in found:
            line = f"peer {name}: LEFT OUT: {found['error']}"
        else:
            line = f"peer {name}: " + ", ".join(f"{key} {value}" for key, value in found.items())
        _console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_case(measured: Measured) -> None:
    """A table for each rate, and a line for each implementation that failed."""
    labels = ", ".join(f"{key} {value}" for key, value in measured.case.labels.items())
    for rate in measured.case.rates:
        title = f"{labels}: {rate.unit}"
        plain = not _console.is_terminal
        table = Table(box=None if plain else box.SIMPLE_HEAD, pad_edge=False)
        _fill(table, measured, rate)
        _console.print()
        _console.print(title, markup=False, highlight=False, soft_wrap=True)
        _console.print(table)
    for name, error in measured.errors.items():
        _console.print(f"{name}: FAILED: {error}", markup=False, highlight=False, soft_wrap=True)


def _fill(table: Table, measured: Measured, rate: Rate) -> None:
    names = [implementation.name for implementation in measured.case.implementations]
    rows = {name: measured.summary(name, rate) for name in names}
    bases = [base for base in measured.case.bases if rows.get(base)]
    table.add_column("implementation", no_wrap=True)
    for column in ("median", "min", "max", *(f"÷ {escape(base)}" for base in bases)):
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in rows.items():
        if row:
            figures = [_figure(row[key]) for key in ("median", "min", "max")]
            table.add_row(escape(name), *figures, *(_ratio(row["ratios"], base) for base in bases))


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _ratio(ratios: dict[str, Any], base: str) -> str:
    if base not in ratios:
        return "-"
    found = ratios[base]
    return f"{found['median_of_ratios']:.2f} ({found['ratio_of_medians']:.2f})"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; none if it is not there yet."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_json(path: Path, described: dict[str, Any]) -> None:
    """Writes under a temporary name first, so that a file is whole or not there."""
    described = {"command": shlex.join([sys.executable, *sys.argv]), **described}
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(described, indent=1) + "\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _console.print(f"\nwrote {path}", markup=False, highlight=False, soft_wrap=True)

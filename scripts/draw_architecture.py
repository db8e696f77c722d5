#!/usr/bin/env python3
"""Draws docs/architecture.svg: the rooms of gnnsys on their floors, and who imports whom.

Rooms and arrows are read from the imports in the code. A room stands one floor above the highest
that it imports; an arrow is left out where others lead there, too.
"""

from __future__ import annotations

import ast
import sys
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "architecture.svg"
FACE = {"__init__", "__main__", "_version", "_core"}
BOX, GAP, FLOOR, MARGIN = (116, 30), 18, 78, 24  # pixels: a room, between rooms, floors, border

Stop = tuple[int, str]
"""A floor, and the room there or the name of an arrow that passes."""


def room_arrows() -> dict[str, set[str]]:
    """Which rooms each room imports, in functions and for type checkers, too."""
    arrows: dict[str, set[str]] = {}
    for folder in ("gnnsys", "loaders", "cache", "pipeline"):
        for path in (ROOT / folder).rglob("*.py"):
            inside = (
                path.relative_to(ROOT / "gnnsys").with_suffix("") if folder == "gnnsys" else path
            )
            room = inside.parts[0] if folder == "gnnsys" else folder
            if room not in FACE:
                arrows.setdefault(room, set()).update(imported_rooms(path))
    return {room: found & arrows.keys() - {room} for room, found in arrows.items()}


def imported_rooms(path: Path) -> set[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("gnnsys.")}


def floors(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Rooms from the ground floor up; on a floor none imports another."""
    level: dict[str, int] = {}
    for room in TopologicalSorter(arrows).static_order():
        level[room] = 1 + max((level[other] for other in arrows[room]), default=-1)
    return [sorted(r for r in level if level[r] == n) for n in range(max(level.values()) + 1)]


def reduced(arrows: dict[str, set[str]]) -> dict[str, set[str]]:
    """Without the arrows that say nothing new: those to rooms that lie behind another arrow."""
    behind: dict[str, set[str]] = {}
    for room in TopologicalSorter(arrows).static_order():
        behind[room] = arrows[room].union(*(behind[other] for other in arrows[room]))
    return {
        room: found - set().union(*(behind[other] for other in found))
        for room, found in arrows.items()
    }


def routes(plan: list[list[str]], arrows: dict[str, set[str]]) -> list[list[Stop]]:
    """Each arrow from its room to the other, with a stop on every floor that it passes through."""
    floor = {room: number for number, rooms in enumerate(plan) for room in rooms}
    return [
        [
            (floor[room], room),
            *((n, f"{room} {other}") for n in range(floor[room] - 1, floor[other], -1)),
            (floor[other], other),
        ]
        for room in sorted(arrows)
        for other in sorted(arrows[room])
    ]


def place(plan: list[list[str]], ways: list[list[Stop]]) -> dict[Stop, float]:
    """The middle of each stop: near those that it leads to, and beside the others of its floor."""
    floors_of = [[(n, room) for room in rooms] for n, rooms in enumerate(plan)]
    near: dict[Stop, list[Stop]] = {stop: [] for stops in floors_of for stop in stops}
    for way in ways:
        for stop in way[1:-1]:
            floors_of[stop[0]].append(stop)
            near[stop] = []
        for upper, lower in pairwise(way):
            near[upper].append(lower)
            near[lower].append(upper)
    middle = {
        stop: (position + 0.5 - len(stops) / 2) * (BOX[0] + GAP)
        for stops in floors_of
        for position, stop in enumerate(stops)
    }
    for sweep in range(40):
        for stops in floors_of if sweep % 2 else reversed(floors_of):
            wish = {s: fmean([middle[o] for o in near[s]] or [middle[s]]) for s in stops}
            ordered = sorted(stops, key=lambda stop: (wish[stop], stop))
            right = -float("inf")
            for stop in ordered:
                half = (BOX[0] if stop[1] in plan[stop[0]] else 0) / 2
                middle[stop] = max(wish[stop], right + GAP + half)
                right = middle[stop] + half
            shift = fmean(middle[stop] - wish[stop] for stop in stops)
            for stop in stops:
                middle[stop] -= shift
    left = min(middle.values()) - BOX[0] / 2 - MARGIN
    return {stop: x - left for stop, x in middle.items()}


def draw() -> str:
    arrows = room_arrows()
    plan = floors(arrows)
    ways = routes(plan, reduced(arrows))
    middle = place(plan, ways)
    top = [MARGIN + FLOOR * (len(plan) - 1 - number) for number in range(len(plan))]
    width = max(middle.values()) + BOX[0] / 2 + MARGIN
    height = top[0] + BOX[1] + MARGIN
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        'font-family="sans-serif" font-size="12">',
        "<title>Rooms of gnnsys: each imports those that its arrows lead to</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#5b6b82"/></marker></defs>',
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
    ]
    for y in top[::2]:
        y -= (FLOOR - BOX[1]) // 2
        out.append(f'<rect y="{y}" width="{width:.0f}" height="{FLOOR}" fill="#f3f5f8"/>')
    for way in ways:
        path = f"M{middle[way[0]]:.0f} {top[way[0][0]] + BOX[1]}"
        for upper, lower in pairwise(way):
            x, y, to_x, to_y = middle[upper], top[upper[0]] + BOX[1], middle[lower], top[lower[0]]
            half = (y + to_y) / 2
            path += f"C{x:.0f} {half:.0f} {to_x:.0f} {half:.0f} {to_x:.0f} {to_y}"
            path += "" if lower is way[-1] else f"v{BOX[1]}"
        out.append(
            f'<path d="{path}" fill="none" stroke="#5b6b82" stroke-width="1.2" '
            'marker-end="url(#tip)"/>'
        )
    for number, rooms in enumerate(plan):
        for room in rooms:
            x, y = middle[number, room], top[number]
            out.append(
                f'<rect x="{x - BOX[0] / 2:.0f}" y="{y}" width="{BOX[0]}" height="{BOX[1]}" rx="5" '
                'fill="#dce8f7" stroke="#33517a"/>'
                f'<text x="{x:.0f}" y="{y + 19}" text-anchor="middle" fill="#14233a">{room}</text>'
            )
    return "\n".join([*out, "</svg>", ""])


if __name__ == "__main__":
    if sys.argv[1:] == ["--print"]:
        sys.stdout.write(draw())
    else:
        TARGET.write_text(draw())

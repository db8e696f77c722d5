"""The report of scripts/gpu_check as a page of tables, in Markdown."""

from __future__ import annotations

from typing import Any

__all__ = ["page"]

_SIZES = "row bytes"
"""The label of cases that becomes columns."""
_DRIVER_STEPS = ("compile", "plain", "memcheck", "racecheck", "synccheck")


def page(report: dict[str, Any]) -> list[str]:
    """Its lines: what became of the steps, and the figures of those that have some.

    Args:
        report: as it is written in JSON.
    """
    lines = ["# gpu_check", ""]
    if report["device"] != "cuda":
        lines += ["**No GPU: rehearsed on the CPU. No figure here is a GPU's.**", ""]
    steps = [
        [step["name"], step["state"], f"{step['seconds']:.1f}", "; ".join(step["notes"])]
        for step in report["steps"]
    ]
    lines += [", ".join(f"{name} {found}" for name, found in report["machine"].items() if found)]
    lines += ["", *_table(["step", "state", "seconds", "notes"], steps)]
    for step in report["steps"]:
        if step["name"] == "drivers" and step["found"]:
            lines += ["", "## drivers", "", *_driver_table(step["found"])]
        if "cases" in step["found"]:
            lines += ["", f"## {step['name']}", "", *_benchmark_tables(step["found"]["cases"])]
    return lines


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(c.replace("\n", "; ").replace("|", "/") for c in cells) + " |"

    return [line(head), line(["---"] * len(head)), *map(line, rows)]


def _driver_table(found: dict[str, dict[str, Any]]) -> list[str]:
    def cell(result: dict[str, Any] | None) -> str:
        return "" if result is None else "FAILED" if result["error"] else f"{result['seconds']:.1f}"

    rows = [[name, *(cell(each.get(key)) for key in _DRIVER_STEPS)] for name, each in found.items()]
    return _table(["seconds", *_DRIVER_STEPS], rows)


def _benchmark_tables(cases: list[dict[str, Any]]) -> list[str]:
    """A table for each group of cases: a row for each way, a column for each size of rows."""
    lines: list[str] = []
    groups: dict[str, list[dict[str, Any]]] = {}
    for case in cases:
        name = ", ".join(f"{key} {value}" for key, value in case["labels"].items() if key != _SIZES)
        groups.setdefault(name, []).append(case)
    for name, group in groups.items():
        base, ways = group[0]["bases"][0], group[0]["implementations"]
        rows = [
            [way["name"], *(_figure(case["implementations"][i], base) for case in group)]
            for i, way in enumerate(ways)
        ]
        sizes = [str(case["labels"].get(_SIZES, "median")) for case in group]
        head = [_SIZES if _SIZES in group[0]["labels"] else "way", *sizes]
        units = {
            summary["unit"] for summary in (_first_rate(way) for way in ways) if summary
        }  # of which there is one
        lines += [f"{name}: {', '.join(units)} (÷ {base})", "", *_table(head, rows), ""]
    return lines


def _first_rate(way: dict[str, Any]) -> dict[str, Any]:
    return next(iter(way["summaries"].values()))


def _figure(way: dict[str, Any], base: str) -> str:
    """The median, and the ratio to the base."""
    summary = _first_rate(way)
    if not summary:
        return "FAILED"
    ratio = summary["ratios"].get(base)
    return f"{summary['median']:.4g}" + (f" ({ratio['median_of_ratios']:.2f})" if ratio else "")

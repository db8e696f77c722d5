"""What ``gnnsys plan --parallel`` says to people: notes and a table."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape

from gnnsys.pages import numbers
from gnnsys.pages.tables import TextTable, on_terminal

__all__ = ["describe_plan", "notes_on_splits", "print_parallel_plan", "split_cells"]

_CAPTION = "bytes of an epoch by all ranks; memory, times of the rank that needs most"
_MUCH_IDLE = 0.25
_SENT = {
    "layer": "sent between stages",
    "graph": "sent between ways",
    "weight": "sent for weights",
    "control": "sent for control",
    "total": "sent in all",
}
_TIMES = {
    "computing": "computing",
    "halo": "exchange of rows",
    "weights": "sum of gradients",
    "seconds": "epoch",
}


def describe_plan(plan: dict[str, Any]) -> str:
    """The plan's subject in a line."""
    return (
        f"{plan['dataset']}: {plan['nodes']:,} nodes, {plan['edges']:,} edges; {plan['model']}, "
        f"{plan['layers']} layers of {plan['hidden']}; {plan['ranks']} ranks"
    )


def notes_on_splits(plan: dict[str, Any]) -> list[str]:
    """What the numbers mean, in sentences."""
    splits = {row["mode"]: row for row in plan["splits"]}
    notes = []
    for row in plan["splits"]:
        if row["bubble"] > _MUCH_IDLE:
            notes.append(
                f"{row['stages']} stages stand idle {row['bubble']:.0%} of the time with "
                f"{row['chunks']} chunks: take more chunks, or fewer stages"
            )
    pipeline = splits.get("pipeline")
    if pipeline and pipeline["reduction"] and pipeline["reduction"] < 1:
        notes.append(
            "the pipeline sends more than graph parallelism: the graph's parts have few neighbours "
            "in others, so that graph parallelism is the better choice"
        )
    if plan["model"] == "gcnii" and (pipeline or "hybrid" in splits):
        notes.append("between stages, GCNII's first rows and their gradients travel, too")
    times = [row for row in plan["splits"] if row["time"]]
    if times:
        best = min(times, key=lambda row: row["time"]["seconds"])
        name = f"{best['mode']} of {best['stages']} stages x {best['ways']} ways"
        notes.append(f"fastest here: {name}, {numbers.duration(best['time']['seconds'])}")
    if pipeline or "hybrid" in splits:
        notes.append(
            "chunks read what others were some epochs ago: compare the accuracy with that of one "
            "process, and see docs/pipeline.md where it falls behind; graph parallelism is exact"
        )
    return notes


def split_cells(plan: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table: a column for each split."""
    splits = plan["splits"]
    rows = [
        ["stages x ways", *(f"{row['stages']} x {row['ways']}" for row in splits)],
        ["chunks", *(str(row["chunks"]) for row in splits)],
    ]
    for kind, label in _SENT.items():
        rows.append([label, *(numbers.traffic(row["bytes"][kind]) for row in splits)])
    told = [f"{row['reduction']:.2f}x" if row["reduction"] else "" for row in splits]
    rows += [
        ["less than graph", *told],
        ["slots", *(str(row["slots"]) for row in splits)],
        ["bubble", *(f"{row['bubble']:.1%}" for row in splits)],
        ["memory of a rank", *(numbers.memory(row["memory"]["total"]) for row in splits)],
    ]
    times = [row["time"] for row in splits]
    if all(times):
        rows += [
            [label, *(numbers.duration(each[key]) for each in times)]
            for key, label in _TIMES.items()
        ]
        rows.append(["idle", *(f"{each['idle']:.1%}" for each in times)])
    return ["", *(row["mode"] for row in splits)], rows


def print_parallel_plan(plan: dict[str, Any], console: Console) -> None:
    """Shows a plan to people."""
    console.print(on_terminal(TextTable(describe_plan(plan), *split_cells(plan)), _CAPTION))
    for note in plan["notes"]:
        console.print(f"- {escape(note)}")

"""What ``gnnsys plan`` says: the facts of one simulated cache, notes, and tables for people."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gnnsys.cache.simulator import SimulationResult
from gnnsys.features.statistics import memory_rows
from gnnsys.pages import numbers
from gnnsys.plan.caches import Case
from gnnsys.plan.estimate import Traffic, estimate_epoch
from gnnsys.plan.hardware import Hardware

__all__ = ["case_facts", "notes_on", "precisions", "print_plan", "reading"]

_LOOK_AHEAD = ("hybrid", "lookahead", "hybrid-pvp")
_LITTLE = 0.01  # of hit ratio: less than this is not worth a window


def case_facts(
    case: Case,
    result: SimulationResult,
    hardware: Hardware,
    epoch_batches: int,
    step_seconds: float,
) -> dict[str, Any]:
    """A cache and how it did, scaled to an epoch of so many batches."""
    scale = epoch_batches / result.batches
    traffic = Traffic(
        rows=result.rows * scale,
        rows_read=result.misses * scale,
        pages_read=result.pages * scale,
        bytes_read=result.bytes_read * scale,
        row_bytes=case.row_bytes,
    )
    estimate = estimate_epoch(traffic, hardware, batches=epoch_batches, step_seconds=step_seconds)
    return {
        **dataclasses.asdict(case),
        "hit_ratio": result.hit_ratio,
        "hits": result.hits,
        "victim_hits": result.victim_hits,
        "misses": result.misses,
        "copies": result.copies,
        "bypasses": result.bypasses,
        "drops": result.drops,
        "epoch": {**dataclasses.asdict(traffic), "reads": traffic.reads},
        "estimate": {
            **dataclasses.asdict(estimate),
            "seconds": estimate.seconds,
            "limit": estimate.limit,
        },
    }


def notes_on(plan: dict[str, Any]) -> list[str]:
    """What the numbers mean, in sentences."""
    notes = []
    whole, little, victims = [], [], []
    for budget in plan["budgets"]:
        cases = budget["cases"]
        planned = cases["planned"]
        gain = planned["hit_ratio"] - cases["static"]["hit_ratio"]
        if planned["capacity"] >= plan["rows"]:
            whole.append(budget["budget"])
        elif plan["policy"] in _LOOK_AHEAD and gain < _LITTLE:
            little.append(f"{budget['budget']} ({gain:+.1%})")
        if "one cache" in cases:
            pair = f"{planned['hit_ratio']:.1%} against {cases['one cache']['hit_ratio']:.1%}"
            victims.append(f"{budget['budget']}: {pair}")
    if whole:
        notes.append(f"{', '.join(whole)}: all features fit; the disk is read to fill the cache.")
    if little:
        notes.append(
            f"{', '.join(little)}: {plan['policy']} with a window of {plan['window']} gains little "
            "over static, which keeps the most important rows: looking ahead does not pay."
        )
    if victims:
        notes.append(
            "A victim buffer pays where device memory is the cache. On a CPU-only run it is just "
            f"more cache; hits with it against the same bytes as cache: {'; '.join(victims)}."
        )
    if plan["score"] != "none":
        seconds = (
            max(budget["cases"]["planned"]["capacity"] for budget in plan["budgets"])
            * plan["row_bytes"]
            / plan["hardware"]["disk_bandwidth"]
        )
        notes.append(
            f"The largest cache is filled once, before the first batch, in about "
            f"{numbers.duration(seconds)}; epochs do not count it."
        )
    if plan["trace"] is None and plan["batches"] < plan["epoch_batches"]:
        notes.append(
            f"Planned for {plan['batches']:,} of an epoch's {plan['epoch_batches']:,} batches."
        )
    if len(precisions(plan)) > 1:
        notes.append(
            "Other precisions are what gnnsys convert --dtype would write, which loses digits; "
            "int8 is not written by this version."
        )
    if not plan["step_time_ms"]:
        notes.append("Computing is left out; --step-time compares it with reading.")
    return notes


def print_plan(plan: dict[str, Any], console: Console) -> None:
    """Prints the plan as tables."""
    console.print(_head(plan))
    console.print(_budgets(plan))
    console.print(_epochs(plan))
    if len(precisions(plan)) > 1:
        console.print(_what_if(plan))
    console.print(_memory(plan))
    for note in plan["notes"]:
        console.print(f"[bold]*[/] {escape(note)}", highlight=False)


def _head(plan: dict[str, Any]) -> Table:
    table = Table(title=escape(f"cache plan of {plan['dataset']}"), show_header=False)
    table.add_row(
        "features",
        f"{plan['rows']:,} rows of {plan['row_bytes']:,} bytes ({plan['dtype']}), "
        f"{numbers.memory(plan['feature_bytes'])}",
    )
    source = (
        escape(plan["trace"])
        if plan["trace"]
        else f"sampled with fanouts {','.join(map(str, plan['fanouts']))}"
    )
    table.add_row("batches", f"{plan['batches']:,} of {plan['ids']:,} rows: {source}")
    table.add_row(
        "rows touched",
        f"{plan['rows_touched']:,}, {plan['rows_touched'] / max(1, plan['rows']):.1%} of all",
    )
    table.add_row(
        "epoch",
        f"{plan['epoch_batches']:,} batches of {plan['batch_size']:,} seeds: {plan['seeds']}",
    )
    table.add_row("policy", f"{plan['policy']}, window {plan['window']}, score {plan['score']}")
    machine = plan["hardware"]
    table.add_row(
        "hardware",
        escape(
            f"{machine['name']}: disk {numbers.rate(machine['disk_iops'])} reads/s, "
            f"{numbers.traffic(machine['disk_bandwidth'])}/s, memory "
            f"{numbers.traffic(machine['memory_bandwidth'])}/s"
        ),
    )
    return table


def _memory(plan: dict[str, Any]) -> Table:
    table = Table(title="memory of a training run, --cache auto", title_justify="left")
    table.add_column("for")
    table.add_column("bytes", justify="right")
    for name, told in memory_rows(plan["memory"]):
        table.add_row(escape(name.removeprefix("memory: ")), told)
    return table


def _budgets(plan: dict[str, Any]) -> Table:
    table = _numbers("rows served without the disk", "budget", "rows cached", "of the touched")
    for name in (plan["policy"], "static", "bound"):
        table.add_column(name, justify="right")
    touched = max(1, plan["rows_touched"])
    for budget in plan["budgets"]:
        cases = budget["cases"]
        capacity = cases["planned"]["capacity"]
        table.add_row(
            escape(budget["budget"]),
            numbers.count(capacity),
            f"{min(1, capacity / touched):.0%}",
            *(f"{cases[role]['hit_ratio']:.1%}" for role in ("planned", "static", "belady")),
        )
    return table


def _epochs(plan: dict[str, Any]) -> Table:
    table = _numbers("an epoch", "budget", "rows read", "reads", "bytes", "time")
    table.add_column("limit")
    for budget in plan["budgets"]:
        planned = budget["cases"]["planned"]
        table.add_row(escape(budget["budget"]), *reading(planned), planned["estimate"]["limit"])
    return table


def _numbers(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=name == "time")
    return table


def _what_if(plan: dict[str, Any]) -> Table:
    title = "an epoch, if features were stored in another precision"
    names = ("rows cached", "hits", "reads", "bytes", "time")
    table = _numbers(title, "budget", "stored", *names)
    for budget in plan["budgets"]:
        for role in precisions(plan):
            case = budget["cases"][role]
            table.add_row(
                escape(budget["budget"]),
                case["dtype"],
                numbers.count(case["capacity"]),
                f"{case['hit_ratio']:.1%}",
                *reading(case)[1:],
            )
        table.add_section()
    return table


def reading(case: dict[str, Any]) -> list[str]:
    """Rows, reads and bytes from the disk in an epoch, and its time."""
    epoch = case["epoch"]
    return [
        numbers.count(epoch["rows_read"]),
        numbers.count(epoch["reads"]),
        numbers.traffic(epoch["bytes_read"]),
        numbers.duration(case["estimate"]["seconds"]),
    ]


def precisions(plan: dict[str, Any]) -> list[str]:
    """Roles of the cases of a budget that differ in how features are stored, today's first."""
    cases = plan["budgets"][0]["cases"]
    return [role for role in cases if role == "planned" or role == cases[role]["dtype"]]

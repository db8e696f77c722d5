"""What ``gnnsys plan`` says: the facts of one simulated cache, notes, and tables for people."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.console import Console
from rich.markup import escape

from gnnsys.cache.simulator import SimulationResult
from gnnsys.features.statistics import memory_rows
from gnnsys.pages import numbers
from gnnsys.pages.tables import TextTable, on_terminal, pairs_on_terminal
from gnnsys.plan.caches import Case
from gnnsys.plan.estimate import Traffic, estimate_epoch
from gnnsys.plan.hardware import Hardware
from gnnsys.plan.packing import packing_table

__all__ = ["case_facts", "notes_on", "plan_tables", "precisions", "print_plan"]

_LOOK_AHEAD = ("hybrid", "lookahead", "hybrid-pvp")
_COUNTS = ("hit_ratio", "hits", "victim_hits", "misses", "copies", "bypasses", "drops")
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
        **{name: getattr(result, name) for name in _COUNTS},
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
            "Other precisions are what gnnsys convert --dtype writes, which loses digits; rows of "
            "int8 and int4 begin with a scale of 4 bytes."
        )
    if plan["evaluation"] is not None:
        notes.append(f"Evaluation after an epoch: {plan['evaluation']['why']}.")
    if not plan["step_time_ms"]:
        notes.append("Computing is left out; --step-time compares it with reading.")
    return notes


def plan_tables(plan: dict[str, Any]) -> list[TextTable]:
    """What a terminal and a page show of every budget."""
    made = [_served(plan), _epochs(plan)]
    made += [packing_table(plan) if plan["ranks"] is None else _of_ranks(plan)]
    return [*made, _what_if(plan)] if len(precisions(plan)) > 1 else made


def print_plan(plan: dict[str, Any], console: Console) -> None:
    """Prints the plan as tables."""
    console.print(pairs_on_terminal(f"cache plan of {plan['dataset']}", _head(plan)))
    for table in plan_tables(plan):
        console.print(on_terminal(table))
    names = list(memory_rows(plan["memory"]))
    ranks = plan["memory"]["ranks"]
    title = f"Memory of a training run{f' on {ranks} ranks' if ranks > 1 else ''}, --cache auto"
    console.print(on_terminal(TextTable(title, ("for", "bytes"), names)))
    for note in plan["notes"]:
        console.print(f"[bold]*[/] {escape(note)}", highlight=False)


def _head(plan: dict[str, Any]) -> list[tuple[str, str]]:
    machine = plan["hardware"]
    source = plan["trace"] or f"sampled with fanouts {','.join(map(str, plan['fanouts']))}"
    return [
        (
            "features",
            f"{plan['rows']:,} rows of {plan['row_bytes']:,} bytes ({plan['dtype']}), "
            f"{numbers.memory(plan['feature_bytes'])}",
        ),
        ("batches", f"{plan['batches']:,} of {plan['ids']:,} rows: {source}"),
        (
            "rows touched",
            f"{plan['rows_touched']:,}, {plan['rows_touched'] / max(1, plan['rows']):.1%} of all",
        ),
        (
            "epoch",
            f"{plan['epoch_batches']:,} batches of {plan['batch_size']:,} seeds: {plan['seeds']}",
        ),
        ("policy", f"{plan['policy']}, window {plan['window']}, importance {plan['score']}"),
        (
            "hardware",
            f"{machine['name']}: disk {numbers.rate(machine['disk_iops'])} reads/s, "
            f"{numbers.traffic(machine['disk_bandwidth'])}/s, memory "
            f"{numbers.traffic(machine['memory_bandwidth'])}/s",
        ),
    ]


def _served(plan: dict[str, Any]) -> TextTable:
    head = ("budget", "rows cached", "of the touched", plan["policy"], "static", "bound")
    body = []
    for budget in plan["budgets"]:
        cases = budget["cases"]
        capacity = cases["planned"]["capacity"]
        shares = [f"{cases[role]['hit_ratio']:.1%}" for role in ("planned", "static", "belady")]
        touched = f"{min(1, capacity / max(1, plan['rows_touched'])):.0%}"
        body.append([budget["budget"], numbers.count(capacity), touched, *shares])
    return TextTable("Rows served without the disk", head, body)


def _epochs(plan: dict[str, Any]) -> TextTable:
    planned = [(budget["budget"], budget["cases"]["planned"]) for budget in plan["budgets"]]
    body = [[text, *_reading(case), case["estimate"]["limit"]] for text, case in planned]
    return TextTable("An epoch", ("budget", "rows read", "reads", "bytes", "time", "limit"), body)


def _of_ranks(plan: dict[str, Any]) -> TextTable:
    body = []
    for budget in plan["budgets"]:
        shared, private = budget["cases"]["shared"], budget["cases"]["private"]
        hits = [f"{1 - case['misses'] / max(1, plan['ids']):.1%}" for case in (shared, private)]
        fewer = private["epoch"]["bytes_read"] / max(1, shared["epoch"]["bytes_read"])
        body.append(
            [
                budget["budget"],
                hits[0],
                *_reading(shared)[1:3],
                hits[1],
                *_reading(private)[1:3],
                f"{fewer:.2f}x",
            ]
        )
    head = ("budget", "shared: hits", "reads", "bytes", "one each: hits", "reads", "bytes", "saves")
    return TextTable(f"An epoch on {plan['ranks']} ranks, which divide the budget", head, body)


def _what_if(plan: dict[str, Any]) -> TextTable:
    body = [
        [
            budget["budget"],
            case["dtype"],
            numbers.count(case["capacity"]),
            f"{case['hit_ratio']:.1%}",
            *_reading(case)[1:],
        ]
        for budget in plan["budgets"]
        for case in (budget["cases"][role] for role in precisions(plan))
    ]
    head = ("budget", "stored", "rows cached", "hits", "reads", "bytes", "time")
    return TextTable("An epoch, if features were stored in another precision", head, body)


def _reading(case: dict[str, Any]) -> list[str]:
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

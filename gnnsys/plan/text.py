"""What ``gnnsys plan`` says: notes, and tables for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape

from gnnsys.features.statistics import memory_rows
from gnnsys.pages import numbers
from gnnsys.pages.tables import TextTable, on_terminal, pairs_on_terminal
from gnnsys.plan.caches import PRECISIONS
from gnnsys.plan.packing import packing_table

__all__ = ["features_text", "notes_on", "plan_tables", "precisions", "print_plan", "stored_as"]

_LOOK_AHEAD = ("hybrid", "lookahead", "hybrid-pvp")
_LITTLE = 0.01  # of hit ratio: less than this is not worth a window


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
        largest = max(budget["cases"]["planned"]["cache_bytes"] for budget in plan["budgets"])
        seconds = largest / plan["hardware"]["disk_bandwidth"]
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
    if "tables" in plan:
        by = "bytes" if plan["score"] == "none" else "importance for their bytes"
        notes.append(
            f"The rows of all types share a budget by their {by}, whatever the policy; the bound "
            "is that of caches of these sizes."
        )
    if plan["evaluation"] is not None:
        notes.append(f"Evaluation after an epoch: {plan['evaluation']['why']}.")
    if not plan["step_time_ms"]:
        notes.append("Computing is left out; --step-time compares it with reading.")
    return notes


def plan_tables(plan: dict[str, Any]) -> list[TextTable]:
    """What a terminal and a page show of every budget."""
    made = [_served(plan), _epochs(plan)]
    if "tables" in plan:
        made.append(_of_types(plan))
    else:
        made.append(packing_table(plan) if plan["ranks"] is None else _of_ranks(plan))
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
        *_graph(plan),
        ("features", features_text(plan)),
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


def _graph(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The types of a heterogeneous graph."""
    for kind, count in plan.get("node_types", {}).items():
        table = plan["tables"].get(kind)
        told = "no features" if table is None else f"features: {features_text(table)}"
        yield f"nodes {kind}", f"{count:,}, {told}"
    for kind, count in plan.get("edge_types", {}).items():
        yield f"edges {kind.replace(',', ' ')}", f"{count:,}"


def features_text(sizes: dict[str, Any]) -> str:
    """Rows and bytes of a table of features, or of those of several types together.

    >>> features_text({"rows": 3, "row_bytes": 8, "dtype": "float32", "feature_bytes": 24})
    '3 rows of 8 bytes (float32), 24 bytes'
    """
    size = numbers.memory(sizes["feature_bytes"])
    if "tables" in sizes:
        return f"{sizes['rows']:,} rows of {len(sizes['tables'])} node types, {size}"
    return f"{sizes['rows']:,} rows of {sizes['row_bytes']:,} bytes ({sizes['dtype']}), {size}"


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


def _of_types(plan: dict[str, Any]) -> TextTable:
    body = []
    for budget in plan["budgets"]:
        planned = budget["cases"]["planned"]
        for kind, each in planned["tables"].items():
            body.append([budget["budget"], kind, *_part(each, plan["tables"][kind])])
        body.append([budget["budget"], "all", *_part(planned, plan)])
    head = ("budget", "type", "rows cached", "of its rows", "memory", "hits", "rows read", "missed")
    return TextTable("How types divide the cache, and what an epoch misses", head, body)


def _part(case: dict[str, Any], sizes: dict[str, Any]) -> list[str]:
    """What a type, or all of them, has of a cache."""
    return [
        numbers.count(case["capacity"]),
        f"{case['capacity'] / max(1, sizes['rows']):.1%}",
        numbers.memory(case["cache_bytes"]),
        f"{case['hit_ratio']:.1%}",
        numbers.count(case["epoch"]["rows_read"]),
        numbers.traffic(case["epoch"]["bytes_missed"]),
    ]


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
            stored_as(plan, role),
            numbers.count(case["capacity"]),
            f"{case['hit_ratio']:.1%}",
            *_reading(case)[1:],
        ]
        for budget in plan["budgets"]
        for role in precisions(plan)
        for case in [budget["cases"][role]]
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
    return [role for role in cases if role == "planned" or role in PRECISIONS]


def stored_as(plan: dict[str, Any], role: str) -> str:
    """How features are stored in a case: today, of types that differ, in several ways."""
    if role != "planned":
        return role
    dtypes = {each["dtype"] for each in plan.get("tables", {"": plan}).values()}
    return dtypes.pop() if len(dtypes) == 1 else "as today"

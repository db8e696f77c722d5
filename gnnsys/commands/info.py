"""``gnnsys info``: what a dataset folder holds, as tables or as JSON."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from gnnsys.config.info import InfoConfig
from gnnsys.dataset.format import HELD_OUT, EdgeType, Table
from gnnsys.dataset.importance import SCORE_TABLE
from gnnsys.dataset.tables import DatasetTables
from gnnsys.system.progress import work_progress
from gnnsys.system.records import json_text

__all__ = ["describe_dataset", "print_tables", "run_command"]


def run_command(config: InfoConfig) -> int:
    """Prints what the folder holds, after checking all of it where that is asked for."""
    dataset = DatasetTables(Path(config.path))
    if config.verify:
        with work_progress() as progress:
            dataset.verify(progress)
    if config.json:
        print(json_text({**describe_dataset(dataset), "verified": config.verify}))
        return 0
    print_tables(dataset, Console())
    if config.verify:
        print("every table fits its checksums")
    return 0


def describe_dataset(dataset: DatasetTables) -> dict[str, Any]:
    """The folder as JSON: counts, tables, degrees, tasks, source."""
    manifest = dataset.manifest
    return {
        "path": str(dataset.path),
        "name": dataset.name,
        "heterogeneous": dataset.heterogeneous,
        "task": None if dataset.task is None else asdict(dataset.task),
        "nodes": {
            node_type: {"count": nodes.count, "tables": _tables(nodes.tables)}
            for node_type, nodes in manifest.nodes.items()
        },
        "edges": [
            {
                "type": list(edge_type),
                "count": edges.count,
                "in_degree": _degrees(dataset, edge_type),
                "tables": _tables(edges.tables),
            }
            for edge_type, edges in manifest.edges.items()
        ],
        "tasks": manifest.source.get("tasks", {}),
        "order": manifest.source.get("order", "none"),
        "source": manifest.source,
    }


def _tables(tables: dict[str, Table]) -> dict[str, Any]:
    return {
        name: {
            "shape": list(table.shape),
            "dtype": table.encoding.dtype,
            "scale": table.encoding.scale,
            "row_bytes": table.encoding.row_stride,
            "bytes": sum(shard.bytes for shard in table.shards),
            "files": [shard.path for shard in table.shards],
        }
        for name, table in tables.items()
    }


def _degrees(dataset: DatasetTables, edge_type: EdgeType) -> dict[str, float]:
    degree = np.diff(dataset.edge_table("indptr", edge_type))
    if len(degree) == 0:
        return {}
    return {
        "mean": float(degree.mean()),
        "median": float(np.median(degree)),
        "max": int(degree.max()),
        "zero": int((degree == 0).sum()),
    }


def print_tables(dataset: DatasetTables, console: Console) -> None:
    """Prints what ``describe_dataset`` says for people."""
    facts = describe_dataset(dataset)
    head = RichTable(title=escape(f"{facts['name']}: {facts['path']}"), show_header=False)
    for node_type, nodes in facts["nodes"].items():
        head.add_row(f"nodes{_of(dataset, node_type)}", f"{nodes['count']:,}")
    for edges in facts["edges"]:
        degree = edges["in_degree"]
        told = (
            f", in-degree mean {degree['mean']:.1f}, median {degree['median']:.0f}, "
            f"max {degree['max']:,}, none: {degree['zero']:,} nodes"
            if degree
            else ""
        )
        head.add_row(f"edges{_of(dataset, ' '.join(edges['type']))}", f"{edges['count']:,}{told}")
    if facts["task"]:
        metric = escape(facts["task"]["metric"])
        kind = "labels a node" if facts["task"]["multi_label"] else "classes"
        outputs = f"{facts['task']['num_classes']} {kind}"
        outputs = "regression" if facts["task"]["regression"] else outputs
        head.add_row("task", f"{outputs}, {metric}")
    for name, about in facts["tasks"].items():
        head.add_row(f"task {escape(name)}", _task(about))
    for name, count in facts["source"].get("nan", {}).items():
        head.add_row(f"[yellow]NaN in {escape(name)}[/]", f"[yellow]{count:,}[/]")
    for name, count in facts["source"].get("overflow", {}).items():
        head.add_row(f"[yellow]infinite in {escape(name)}[/]", f"[yellow]{count:,}[/]")
    for name, change in facts["source"].get("round_trip", {}).items():
        told = f"max {change['max']:.2%}, rms {change['rms']:.2%} of the greatest magnitude"
        head.add_row(f"changed in {escape(name)}", told)
    about = dataset.manifest.source.get(SCORE_TABLE)
    if isinstance(about, dict):
        said = [f"{key} {_listed(value)}" for key, value in about.items() if key != "kind"]
        head.add_row("importance", escape(", ".join([str(about.get("kind")), *said])))
    for held in facts["source"].get(HELD_OUT, []):
        head.add_row(f"held out{_of(dataset, ' '.join(held['edge_type']))}", _held(held))
    head.add_row("order of nodes", escape(str(facts["order"])))
    head.add_row("source", escape(str(facts["source"].get("kind", "unknown"))))
    console.print(head)
    tables = RichTable("file", "shape", "dtype", "bytes a row", "bytes")
    for owner in [*facts["nodes"].values(), *facts["edges"]]:
        for table in owner["tables"].values():
            shape = " x ".join(f"{size:,}" for size in table["shape"])
            tables.add_row(
                escape(", ".join(table["files"])),
                shape,
                table["dtype"] + (f", scale by {table['scale']}" if table["scale"] else ""),
                f"{table['row_bytes']:,}",
                f"{table['bytes']:,}",
            )
    console.print(tables)


def _task(about: dict[str, Any]) -> str:
    to = f" to {about['target_type']}" if "target_type" in about else ""
    rows = ", ".join(f"{part} {count:,}" for part, count in about["rows"].items())
    told = f"{about['task_type'].replace('_', ' ')} of {about['node_type']}{to}, rows: {rows}"
    return escape(told)


def _held(about: dict[str, Any]) -> str:
    told = f"val {about['val']:,}, test {about['test']:,}, left to train {about['train']:,} links, "
    told += "the newest" if about["by"] == "time" else f"drawn by seed {about['seed']}"
    for reverse in about["reverses"]:
        told += f"; {reverse['edges']:,} reverses of {' '.join(reverse['edge_type'])} taken out"
    return escape(told)


def _listed(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _of(dataset: DatasetTables, what: str) -> str:
    return escape(f" {what}") if dataset.heterogeneous else ""

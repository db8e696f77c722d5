"""Folders as runs leave them, made by hand, and the pages of reports as a parser reads them."""

from __future__ import annotations

import json
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

Records = list[dict[str, Any]]
TIERS = {"device": 0.5, "host": 0.3, "file": 0.2}
BATCHES = 20


def records(epochs: int = 3, *, name: str = "demo", metric: str = "accuracy") -> Records:
    """Of a finished run: 20 batches of 100 seeds and 1000 rows of 512 bytes an epoch, 0.1 s each,
    and 1 s of evaluation after the epoch. The second epoch is the best."""
    made: Records = [
        {
            "kind": "start",
            "time": 1_750_000_000.0,
            "dataset": {"name": name, "nodes": 20_000, "edges": 320_000, "features": 128},
            "metric": metric,
            "parameters": 17_226,
            "versions": {"gnnsys": "0.1.0", "torch": "2.13.0+cpu"},
            "machine": {"cpu": "A processor", "cores": 2, "memory_bytes": 16 << 30},
            "config": {"dataset": name, "model": "sage", "fanouts": [15, 10], "patience": None},
        }
    ]
    seconds = 0.0
    for epoch in range(1, epochs + 1):
        for batch in range(1, BATCHES + 1):
            seconds += 0.1
            step = (epoch - 1) * BATCHES + batch
            counts = served(step, seconds)
            made.append(
                {"kind": "step", "epoch": epoch, "batch": batch, "step": step, **counts}
                | {"loss": 2.0 * 0.98**step}
            )
        seconds += 1.0
        made.append(
            {"kind": "epoch", "epoch": epoch, "step": step, **served(step, seconds)}
            | {"loss": 2.0 / epoch, "best_epoch": min(epoch, 2)}
            | {"val": score(metric, epoch, 0.8), "test": score(metric, epoch, 0.75)}
            | {"epoch_seconds": 2.0, "eval_seconds": 1.0}
        )
    result = {**served(epochs * BATCHES, seconds), "best_epoch": 2, "peak_rss": 3 << 29}
    made.append({"kind": "end", "time": 1_750_000_100.0, "reason": "done", "result": result})
    return made


def served(step: int, seconds: float) -> dict[str, Any]:
    rows = {tier: int(1000 * share) * step for tier, share in TIERS.items()}
    sizes = {tier: 512 * number for tier, number in rows.items()}
    return {"seconds": seconds, "seeds": 100 * step, "rows": rows, "bytes": sizes, "rss": 1 << 30}


def with_loading(made: Records) -> Records:
    """With 0.02 s of waiting for each batch, which counts from the beginning of an epoch."""
    for record in made[1:-1]:
        batch = record.get("batch", BATCHES)
        record["load_seconds"] = 0.02 * batch
    made[-1]["result"]["load_seconds"] = 0.02 * made[-2]["step"]
    return made


def score(metric: str, epoch: int, best: float) -> dict[str, float]:
    return {metric: best - abs(epoch - 2) / 10}


def write_run(folder: Path, made: Records, rest: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in made)
    (folder / "metrics.jsonl").write_text(lines + rest)
    return folder


class Page(HTMLParser):
    """The text of each element of a page, and its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.title = ""
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.tables: list[list[list[str]]] = []
        self.pieces: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]
        self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if "title" in self._open and "svg" not in self._open:
            self.title += data
        elif "style" not in self._open:
            self.pieces.append(data)
            if self._open and self._open[-1] in ("td", "th"):
                self.tables[-1][-1][-1] += data

    def table(self, corner: str) -> dict[str, list[str]]:
        """The rows of the table whose first cell is ``corner``, by their own first cell."""
        found = next(table for table in self.tables if table[0][0] == corner)
        return {row[0]: row[1:] for row in found}

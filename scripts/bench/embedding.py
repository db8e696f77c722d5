"""Training an embedding larger than memory: ``gnnsys.nn`` against ``torch.nn`` in memory.

Every turn is a new process that trains the same batches of edges: a row for each end, a product for
each edge and for one that is none, sparse gradients. That in a folder runs under a memory limit
that counts the page cache. Losses must be the same bit for bit.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

from harness import (
    WARM_UP,
    Case,
    CheckError,
    Implementation,
    Rate,
    Sample,
    add_options,
    check_options,
    run_benchmark,
    run_entry,
)
from memory_group import ask_limited
from options import make_parser, positive

_WORKER = Path(__file__).resolve().parent / "workers" / "embedding_job.py"
_MEMORY, _FOLDER = "torch in memory", "gnnsys in a folder"
_EXAMPLES = """
FOLDER is made where it is not there: rows * dim * 4 * (1 + what the optimiser keeps) bytes. The
limit is of all memory of the process.

examples:
  python scripts/bench/embedding.py TABLE --rows-log2 24 --dim 64 --limit-mib 1024 --cache 480MB
  python scripts/bench/embedding.py SMALL --quick --rows-log2 12 --limit-mib 0 --cache 100
"""


class Turns:
    """The two ways, each of whose turns is a process of its own."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.notes: dict[str, Any] = {"peak_bytes": [], "rows": []}
        self._options = options
        self._losses: set[str] = set()
        self._request = {
            "rows": 1 << options.rows_log2,
            "dim": options.dim,
            "optimizer": options.optimizer,
            "cache": int(options.cache) if options.cache.isdecimal() else options.cache,
            "threads": options.threads,
            "ids": options.ids,
            "batch": options.batch_size,
            "warm": options.warm,
            "batches": options.batches,
        }
        answer, _ = self._ask({"job": "make"}, 0)
        self.notes["libraries_bytes"] = answer["bytes"]

    def implement(self, name: str) -> Implementation:
        """A way to train; its losses are checked in every turn."""
        return Implementation(name=name, check=lambda: None, run=partial(self._run, name))

    def _ask(self, request: dict[str, Any], limit: int) -> tuple[dict[str, Any], int | None]:
        command = [sys.executable, _WORKER, self._options.folder]
        return ask_limited(command, {**self._request, **request}, limit)

    def _run(self, name: str, number: int) -> Sample:
        if number == WARM_UP:  # a new process would not be warmer for it
            return Sample(seconds=0, cpu_seconds=0, amounts={})
        in_memory = name == _MEMORY
        limit = 0 if in_memory else self._options.limit_mib << 20
        request = {"job": "train", "mode": "memory" if in_memory else "folder"}
        answer, peak = self._ask(request, limit)
        self._losses.add(answer["losses"])
        if len(self._losses) > 1:
            raise CheckError(f"round {number}: losses differ from those of the other way")
        if not in_memory:
            self.notes["peak_bytes"].append(peak)
            self.notes["rows"].append(answer["rows"])
        return Sample(
            seconds=answer["seconds"],
            cpu_seconds=answer["cpu_seconds"],
            amounts={"batches": self._options.batches},
        )

    def line(self) -> str:
        """What the ways read and had."""
        rows = {
            tier: statistics.median(each.get(tier, 0) for each in self.notes["rows"])
            for tier in ("cache", "file")
        }
        share = rows["file"] / max(1, sum(rows.values()))
        peaks = [peak for peak in self.notes["peak_bytes"] if peak is not None]
        peak = f"; {statistics.median(peaks) / 2**20:,.0f} MiB at most" if peaks else ""
        return f"{_FOLDER}: {share:.1%} of the rows looked up were read from the file{peak}"


def run(options: argparse.Namespace) -> None:
    """Measures what the options say."""
    turns = Turns(options)
    case = Case(
        labels={
            "rows": f"2^{options.rows_log2}",
            "dim": options.dim,
            "optimizer": options.optimizer,
            "ids": options.ids,
            "batch": options.batch_size,
            "cache": options.cache,
            "limit MiB": options.limit_mib or "none",
            "threads": options.threads,
        },
        rates=(Rate(amount="batches", unit="batches/s"),),
        bases=(_MEMORY,),
        implementations=[turns.implement(_MEMORY), turns.implement(_FOLDER)],
    )
    state = f"{options.warm} batches are trained before those that are timed"
    run_benchmark("embedding", [case], options, cache_state=state, notes=turns.notes)
    print(turns.line())


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = make_parser("embedding.py", __doc__, _EXAMPLES)
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="of the table; made where it is not there")
    add("--rows-log2", type=positive, default=24, metavar="K", help="2^K rows; default 24")
    add("--dim", type=positive, default=64, help="elements of a row; default 64")
    add("--optimizer", choices=["adagrad", "sparse_adam"], default="adagrad")
    add("--ids", choices=["zipf", "uniform"], default="zipf", help="how ids are drawn")
    add("--batch-size", type=positive, default=4096, help="edges; three rows each; default 4096")
    add("--batches", type=positive, default=200, help="timed; default 200")
    add("--warm", type=int, default=200, help="batches before; default 200")
    add("--cache", default="480MB", help="of the table, as of EmbeddingStore; default 480MB")
    add("--limit-mib", type=int, default=1024, metavar="MIB", help="default 1024; 0: no limit")
    add("--threads", type=positive, default=len(os.sched_getaffinity(0)), help="default all cores")
    add_options(parser)
    options = parser.parse_args(arguments)
    check_options(options)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    return run_entry("embedding.py", lambda: run(parse_options(arguments)))


if __name__ == "__main__":
    sys.exit(main())

"""Reading features that lie on a disk, larger than memory, on fixed lists of rows.

The lists are the distinct nodes of sampled mini-batches. Every reader runs on the same lists, each
time in a new process, under a memory limit that counts its share of the page cache.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from disk import LIMIT_RATE, Disk, add_disk_options
from feature_table import FeatureTable, find_table, score_rows
from harness import (
    WARM_UP,
    BenchError,
    Case,
    CheckError,
    Implementation,
    Rate,
    Sample,
    run_benchmark,
    run_entry,
)
from memory_group import ask_limited
from minibatch import add_graph_options, check_workload_options, interpreter
from numpy.typing import NDArray
from options import make_parser, positive

from gnnsys.cache.planner import Planner

_HERE = Path(__file__).resolve().parent
_PACKED = "gnnsys packed"
_READERS = ("gnnsys", _PACKED, "gnnsys uncached", "np.memmap random", "np.memmap", "torch random")
_GRAPHBOLT = "GraphBolt"
_EPOCHS = (1, 5)
"""With the same batches, for which rows are packed once."""
_EXAMPLES = """
TABLE holds feat.npy and ids.npz; a folder that does not exist is made from an R-MAT graph. Each
round begins with a sequential O_DIRECT pass over the table, which primes the disk, and with fio's
random reads of 4 KiB at depth 128. The disk's limit is fio's reads a second divided by the pages of
4 KiB that must be read for a batch: those of the rows that the plan misses, or of all distinct rows
where nothing is cached.

examples:
  python scripts/bench/rmat.py graph22 --scale 22
  python scripts/bench/out_of_core.py table22 --scale 22 --graph-dir graph22 --json ooc.json
  python scripts/bench/out_of_core.py table22 --scale 22 --graph-dir graph22 --readers gnnsys
  python scripts/bench/out_of_core.py table12 --scale 12 --dim 64 --batch-size 32 --batches 4 \\
      --cache-mib 0.1 --limit-mib 0 --quick
"""


class Turns:
    """The readers of a table, each of whose turns is a process of its own.

    Args:
        table: that they read.
        options: of the command line.
        scores: (rows,) uint16 of the cache, or None.
        scratch: an existing folder.
    """

    def __init__(
        self,
        table: FeatureTable,
        options: argparse.Namespace,
        scores: NDArray[np.uint16] | None,
        scratch: Path,
    ) -> None:
        self.table = table
        self.records: dict[str, list[dict[str, Any]]] = {}
        """By reader, what is known of each turn beside its sample."""
        self.disk = Disk(table.file, options.fio_seconds)
        self._options = options
        self._scores = scores
        self._scores_file = scratch / "scores.npy"
        self._planned: dict[tuple[int, int], list[int]] = {}
        if scores is not None:
            np.save(self._scores_file, scores)

    def implement(self, name: str) -> Implementation:
        """A reader."""
        return Implementation(
            name=name,
            check=partial(self._check, name),
            run=partial(self._run, name),
            is_peer=name == _GRAPHBOLT,
        )

    def _check(self, name: str) -> None:
        answer, _ = self._ask(name, "check")
        if answer["wrong"]:
            raise CheckError(f"{answer['wrong']} rows of the first list are wrong")

    def _run(self, name: str, number: int) -> Sample:
        if number == WARM_UP:  # a new process would not be warmer for it
            return Sample(seconds=0, cpu_seconds=0, amounts={})
        answer, peak = self._ask(name, "read")
        amounts, after = answer["amounts"], answer["after"]
        pages = self._pages_needed(after)[: amounts["batches"]]
        amounts["pages_needed"] = sum(pages)
        amounts.update(self.disk.amounts(number, sum(pages)))
        record = {"round": number, "pages_needed": statistics.mean(pages), "peak_bytes": peak}
        counts = {
            key: value - answer["before"][key]
            for key, value in after.items()
            if isinstance(value, (int, float)) and key in answer["before"]
        }
        if name == _PACKED:
            record["packing_seconds"] = amounts["open_seconds"]
            seconds = answer["seconds"], amounts["open_seconds"]
            for epochs in _EPOCHS:
                paid = amounts["batches"] * epochs / (seconds[0] * epochs + seconds[1])
                record[f"batches a second, packed once in {epochs}"] = paid
        self.records.setdefault(name, []).append({**record, "state": after, "counts": counts})
        return Sample(seconds=answer["seconds"], cpu_seconds=answer["cpu_seconds"], amounts=amounts)

    def _ask(self, name: str, job: str) -> tuple[dict[str, Any], int | None]:
        """The answer of a new process, and the most memory that it took under a limit."""
        options = self._options
        python, script = sys.executable, "table_readers.py"
        if name == _GRAPHBOLT:
            python, script = options.graphbolt, "graphbolt_table.py"
        request = {
            "job": job,
            "reader": name,
            "warm": options.warm,
            "batches": options.batches,
            "most_seconds": options.most_seconds,
            "threads": options.threads,
            "cache_bytes": options.cache_bytes,
            "cache_rows": options.cache_bytes // self.table.row_bytes,
            "policy": options.policy,
            "window": options.window,
            "storage": options.storage,
            "ahead_bytes": options.ahead_mib << 20,
            "scores": str(self._scores_file) if self._scores is not None else None,
        }
        command = [python, _HERE / "workers" / script, self.table.folder]
        return ask_limited(command, request, options.limit_mib << 20)

    def _pages_needed(self, state: dict[str, Any]) -> list[int]:
        """For each timed batch the pages that hold what must be read."""
        capacity, window = state.get("capacity", 0), state.get("window", 0)
        key = (capacity, window)
        if key not in self._planned:
            missed = self._plan(capacity, window) if capacity else self.table.lists
            first = self._options.warm
            timed = missed[first : first + self._options.batches]
            self._planned[key] = [self.table.pages(rows) for rows in timed]
        return self._planned[key]

    def _plan(self, capacity: int, window: int) -> list[NDArray[np.int64]]:
        """The rows of each batch that the cache must miss."""
        policy, scores = self._options.policy, self._scores
        lists = self.table.lists[: self._options.warm + self._options.batches]
        planner = Planner(self.table.rows, capacity, policy=policy, window=window, scores=scores)
        for ids in lists:
            planner.announce(ids)
        return [planner.plan().reads for _ in lists]


def _summary_line(name: str, records: list[dict[str, Any]]) -> str:
    """The medians of what is known of a reader beside its speed."""

    def median(figure: Callable[[dict[str, Any]], float | None]) -> float | None:
        values = [value for record in records if (value := figure(record)) is not None]
        return statistics.median(values) if values else None

    parts = [f"{median(lambda r: r['pages_needed']):,.0f} pages a batch must be read"]
    if "hits" in records[0]["counts"]:
        ratio = median(lambda r: r["counts"]["hits"] / max(1, r["counts"]["rows"]))
        pages = median(lambda r: r["counts"]["pages"] / max(1, r["counts"]["batches"]))
        parts += [f"{pages:,.0f} were", f"hit ratio {ratio:.3f}"]
    for key in ("storage", "window", "capacity"):
        if key in records[0]["state"]:
            parts.append(f"{key} {records[0]['state'][key]}")
    if "packing_seconds" in records[0]:
        parts.append(f"packed in {median(lambda r: r['packing_seconds']):.1f} s")
        for epochs in _EPOCHS:
            key = f"batches a second, packed once in {epochs}"
            parts.append(f"{median(lambda r, key=key: r[key]):.1f} {key} epochs")
    peak = median(lambda r: r["peak_bytes"])
    if peak is not None:
        parts.append(f"at most {peak / 2**20:,.0f} MiB of memory")
    return f"{name}: " + ", ".join(parts)


def run(options: argparse.Namespace) -> None:
    """Measures what the options say."""
    with tempfile.TemporaryDirectory() as scratch:
        table = find_table(options, Path(scratch))
        kind, scores = score_rows(table, options, Path(scratch))
        turns = Turns(table, options, scores, Path(scratch))
        readers = [*options.readers, *([_GRAPHBOLT] if options.graphbolt else [])]
        rates = [
            Rate(amount="batches", unit="batches/s"),
            Rate(amount="bytes_read", unit="MB/s from the disk", scale=1e6),
        ]
        if options.fio_seconds:
            rates.insert(1, LIMIT_RATE)
        case = Case(
            labels={
                "rows": table.rows,
                "row bytes": table.row_bytes,
                "batches": f"{options.warm} warm and {options.batches} timed",
                "cache MiB": options.cache_mib,
                "limit MiB": options.limit_mib or "none",
                "policy": options.policy,
                "scores": kind,
            },
            rates=tuple(rates),
            bases=tuple(name for name in readers if name != "gnnsys") or ("gnnsys",),
            implementations=[turns.implement(name) for name in readers],
            prepare=turns.disk.prepare,
        )
        notes = {
            "table": str(table.folder),
            "scores": kind,
            "rows_per_batch": statistics.mean(map(len, table.lists)),
            "disk": turns.disk.as_dict(),
            "readers": turns.records,
        }
        run_benchmark(
            "out_of_core",
            [case],
            options,
            cache_state=f"{turns.disk.describe()}; its page cache dropped before each turn",
            notes=notes,
        )
        for name, records in turns.records.items():
            print(_summary_line(name, records))
        print(turns.disk.summary_line())


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = make_parser("out_of_core.py", __doc__, _EXAMPLES)
    add = parser.add_argument
    add("table", type=Path, metavar="TABLE", help="folder of the table; made if it does not exist")
    add("--dim", type=positive, default=512, help="float32 of a row to make; default 512")
    add_graph_options(parser, batches=64, fanouts=[[10, 5]])
    add("--warm", type=positive, default=12, help="batches before the timed ones; default 12")
    add("--cache-mib", type=float, default=512, metavar="MIB", help="of the caches; default 512")
    add("--limit-mib", type=int, default=1024, metavar="MIB", help="default 1024; 0: no limit")
    add("--threads", type=positive, default=len(os.sched_getaffinity(0)), help="default all cores")
    add("--ahead-mib", type=positive, default=256, metavar="MIB",
        help="for batches that wait to be planned before they are packed; default 256")  # fmt: skip
    add("--policy", default="hybrid", help="of gnnsys' cache; default hybrid")
    add("--window", type=positive, help="of gnnsys' cache; default auto")
    add("--storage", default="auto", help="of gnnsys: auto, uring, pread or mmap; default auto")
    add(
        "--scores",
        choices=("degree", "frequency", "none"),
        default="degree",
        help="of gnnsys' cache: how often a node is a neighbour in the graph, how often a row is "
        "in lists that are not read, or none and no prefill; default degree",
    )
    add(
        "--readers",
        type=lambda text: text.split(","),
        default=list(_READERS),
        metavar="NAME,…",
        help=f"default {','.join(_READERS)}",
    )
    add(
        "--graphbolt",
        type=interpreter,
        metavar="PYTHON",
        help="of an environment whose GraphBolt has DiskBasedFeature",
    )
    add(
        "--most-seconds",
        type=float,
        default=60,
        metavar="S",
        help="a reader's warm-up and its timed part begin no batch after it; default 60",
    )
    add_disk_options(parser)
    options = parser.parse_args(arguments)
    check_workload_options(options)
    if len(options.fanouts) > 1:
        raise BenchError("--fanouts: given twice; a table's lists have one")
    unknown = sorted(set(options.readers) - set(_READERS))
    if unknown:
        raise BenchError(f"--readers {','.join(unknown)}: expected some of {', '.join(_READERS)}")
    options.cache_bytes = int(options.cache_mib * 2**20)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    return run_entry("out_of_core.py", lambda: run(parse_options(arguments)))


if __name__ == "__main__":
    sys.exit(main())

"""Training with features on a disk against training with all of them in memory, sampling included.

Every turn is a new process that trains a new model on the same batches; losses must be the same bit
for bit. "cached" has a cache that is smaller than the table, and a memory limit that counts the
page cache; "all cached" has room for every row and shows what the cache itself costs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from disk import LIMIT_RATE, Disk, add_disk_options
from harness import (
    WARM_UP,
    BenchError,
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

import gnnsys
from gnnsys.errors import GnnsysError

_WORKER = Path(__file__).resolve().parent / "workers" / "folder_training.py"
_IN_MEMORY, _CACHED, _ALL_CACHED = "in memory", "cached", "all cached"
_EXAMPLES = """
FOLDER is a dataset folder with features, labels and a training split. Each round trains on the
first batches of another epoch. It begins with one sequential O_DIRECT pass over the features, which
primes the disk, and with fio's random reads of 4 KiB at depth 128; the disk's limit is fio's reads
a second divided by the pages of 4 KiB read for a batch.

examples:
  gnnsys generate rmat rmat22 --scale 22 --features 512
  python scripts/bench/out_of_core_training.py rmat22 --cache 512MiB --limit-mib 2048 --json t.json
  gnnsys generate rmat rmat12 --scale 12 --features 16
  python scripts/bench/out_of_core_training.py rmat12 --quick --batches 4 --batch-size 64 \\
      --cache 64KiB --limit-mib 0
"""


class Turns:
    """The ways to train, each of whose turns is a process of its own.

    Args:
        dataset: a folder.
        options: of the command line.
    """

    def __init__(self, dataset: gnnsys.Dataset, options: argparse.Namespace) -> None:
        self.records: dict[str, list[dict[str, Any]]] = {}
        """By name, what is known of each turn beside its sample."""
        self.disk = Disk(feature_file(dataset), options.fio_seconds)
        self._folder = dataset.path
        self._options = options
        self._losses: dict[int, tuple[str, list[str]]] = {}

    def implement(self, name: str, cache: str | float | None, limit_mib: int) -> Implementation:
        """A way to train; its losses are checked in every turn."""
        run = partial(self._run, name, cache, limit_mib << 20)
        return Implementation(name=name, check=lambda: None, run=run)

    def _run(self, name: str, cache: str | float | None, limit: int, number: int) -> Sample:
        if number == WARM_UP:  # a new process would not be warmer for it
            return Sample(seconds=0, cpu_seconds=0, amounts={})
        options = self._options
        request = {
            "job": "train",
            "cache": cache,
            "epoch": number,
            "warm": options.warm,
            "batches": options.batches,
            "batch_size": options.batch_size,
            "fanouts": options.fanouts,
            "hidden": options.hidden,
            "threads": options.threads,
            "storage": options.storage,
            "policy": options.policy,
            "window": options.window,
        }
        answer, peak = ask_limited([sys.executable, _WORKER, self._folder], request, limit)
        self._check(name, number, answer["losses"])
        amounts, counts = answer["amounts"], answer["counts"]
        amounts.update(self.disk.amounts(number, counts.get("pages", 0)))
        record = {"round": number, "peak_bytes": peak, "counts": counts}
        self.records.setdefault(name, []).append(record)
        return Sample(seconds=answer["seconds"], cpu_seconds=answer["cpu_seconds"], amounts=amounts)

    def _check(self, name: str, number: int, losses: list[str]) -> None:
        """Raises CheckError unless the losses are those of the others in this round."""
        wanted = self._options.warm + self._options.batches
        if len(losses) != wanted:
            raise BenchError(
                f"an epoch has {len(losses)} batches < --warm {self._options.warm} + --batches "
                f"{self._options.batches}"
            )
        other, expected = self._losses.setdefault(number, (name, losses))
        differing = [k for k in range(wanted) if losses[k] != expected[k]]
        if differing:
            k = differing[0]
            raise CheckError(
                f"{len(differing)} of {wanted} losses differ from those of {other!r}, first that "
                f"of batch {k}: {float.fromhex(losses[k])} != {float.fromhex(expected[k])}"
            )


def feature_file(dataset: gnnsys.Dataset) -> Path:
    """The file of the features.

    Raises:
        BenchError: there are none, or they lie in several files.
    """
    table = dataset.node_table("features") if dataset.has("features") else None
    if not isinstance(table, np.memmap):
        raise BenchError(f"{dataset.path}: has no features in one file; gnnsys generate makes some")
    return Path(table.filename)


def _summary_line(name: str, records: list[dict[str, Any]], batches: int) -> str:
    def median(key: str) -> float:
        return statistics.median(record["counts"][key] for record in records)

    parts = []
    if records[0]["counts"]:
        parts += [
            f"hit ratio {median('hits') / median('rows'):.3f}",
            f"{median('pages') / batches:,.0f} pages read a batch",
            f"{median('io_wait_seconds'):.2f} s waited for the disk",
        ]
    if records[0]["peak_bytes"] is not None:
        peak = statistics.median(record["peak_bytes"] for record in records)
        parts.append(f"at most {peak / 2**20:,.0f} MiB of memory")
    return f"{name}: " + (", ".join(parts) or "no cache")


def run(options: argparse.Namespace) -> None:
    """Measures what the options say."""
    try:
        dataset = gnnsys.open_dataset(options.folder)
    except GnnsysError as error:
        raise BenchError(str(error)) from error
    turns = Turns(dataset, options)
    rates = [Rate(amount="batches", unit="batches/s")]
    if options.fio_seconds:
        rates.append(LIMIT_RATE)
    case = Case(
        labels={
            "nodes": dataset.num_nodes(),
            "fanouts": options.fanouts,
            "batch": options.batch_size,
            "batches": f"{options.warm} warm and {options.batches} timed",
            "cache": options.cache,
            "limit MiB": options.limit_mib or "none",
            "threads": options.threads,
        },
        rates=tuple(rates),
        bases=(_IN_MEMORY,),
        implementations=[
            turns.implement(_IN_MEMORY, None, 0),
            turns.implement(_CACHED, options.cache, options.limit_mib),
            turns.implement(_ALL_CACHED, 1.0, 0),
        ],
        prepare=turns.disk.prepare,
    )
    run_benchmark(
        "out_of_core_training",
        [case],
        options,
        cache_state=f"{turns.disk.describe()}; caches filled by scores before the first batch",
        notes={"disk": turns.disk.as_dict(), "turns": turns.records},
    )
    for name, records in turns.records.items():
        print(_summary_line(name, records, options.batches))
    print(turns.disk.summary_line())


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = make_parser("out_of_core_training.py", __doc__, _EXAMPLES)
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="a dataset folder")
    add("--cache", default="512MiB", help="of 'cached', in bytes; default 512MiB")
    add("--limit-mib", type=int, default=2048, metavar="MIB", help="of 'cached'; 0: no limit")
    add("--fanouts", type=positive, nargs="+", default=[10, 5], metavar="N", help="default 10 5")
    add("--batch-size", type=positive, default=1024, help="seeds per batch; default 1024")
    add("--warm", type=positive, default=12, help="batches before the timed ones; default 12")
    add("--batches", type=positive, default=64, help="timed in a turn; default 64")
    add("--hidden", type=positive, default=64, help="width of the model; default 64")
    add("--threads", type=positive, default=len(os.sched_getaffinity(0)), help="default all cores")
    add("--policy", default="hybrid", help="default hybrid")
    add("--window", type=positive, help="default auto")
    add("--storage", default="auto", help="auto, uring, pread or mmap; default auto")
    add_disk_options(parser)
    add_options(parser)
    options = parser.parse_args(arguments)
    check_options(options)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    return run_entry("out_of_core_training.py", lambda: run(parse_options(arguments)))


if __name__ == "__main__":
    sys.exit(main())

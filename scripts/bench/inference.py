"""Exact inference of all nodes past memory: rows read in sequence against neighbours' gathered.

Every turn is a new process that computes the same GraphSAGE, under a memory limit that counts the
page cache; layers lie in files. Results must be the same to 1e-5 of the largest, and those of rows
in sequence the same bit for bit in every turn.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from disk import Disk, add_disk_options
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
from out_of_core_training import feature_file

import gnnsys
from gnnsys.errors import GnnsysError

_WORKER = Path(__file__).resolve().parent / "workers" / "inference_job.py"
_GATHER, _SEQUENTIAL = "gather", "sequential"
_TOLERANCE = 1e-5
_EXAMPLES = """
FOLDER is a dataset folder with features. The limit is of what a process has beside its libraries:
their anonymous memory, measured before, is added to it. Each round begins with one sequential
O_DIRECT pass over the features, which primes the disk.

examples:
  gnnsys generate rmat rmat20 --scale 20
  python scripts/bench/inference.py rmat20 --hidden 256 --limit-mib 256 --json inference.json
  gnnsys generate rmat rmat12 --scale 12 --features 16
  python scripts/bench/inference.py rmat12 --quick --hidden 32 --limit-mib 0
"""


class Turns:
    """The ways to read, each of whose turns is a process of its own.

    Args:
        dataset: a folder.
        options: of the command line.
        results: a folder for them.
    """

    def __init__(self, dataset: gnnsys.Dataset, options: argparse.Namespace, results: Path) -> None:
        self.peaks: dict[str, list[int | None]] = {}
        """By name, the most memory of each turn."""
        self.disk = Disk(feature_file(dataset), options.fio_seconds)
        self._folder = dataset.path
        self._options, self._results = options, results
        self._digests: set[str] = set()
        self._libraries = 0
        if options.limit_mib:
            answer, _ = self._ask({"job": "libraries"}, 0)
            self._libraries = answer["bytes"]

    def implement(self, mode: str) -> Implementation:
        """A way to read; its results are checked in every turn."""
        return Implementation(name=mode, check=lambda: None, run=partial(self._run, mode))

    def _ask(self, request: dict[str, Any], limit: int) -> tuple[dict[str, Any], int | None]:
        return ask_limited([sys.executable, _WORKER, self._folder], request, limit)

    def _run(self, mode: str, number: int) -> Sample:
        if number == WARM_UP:  # a new process would not be warmer for it
            return Sample(seconds=0, cpu_seconds=0, amounts={})
        options = self._options
        out = self._place(mode)
        request = {
            "job": "infer",
            "mode": mode,
            "layers": options.layers,
            "hidden": options.hidden,
            "threads": options.threads,
            "block_bytes": options.block_mib << 20,
            "out": str(out),
        }
        limit = self._libraries + (options.limit_mib << 20) if options.limit_mib else 0
        answer, peak = self._ask(request, limit)
        self.peaks.setdefault(mode, []).append(peak)
        self._check(mode, number)
        return Sample(
            seconds=answer["seconds"],
            cpu_seconds=answer["cpu_seconds"],
            amounts={"nodes": answer["nodes"]},
        )

    def _place(self, mode: str) -> Path:
        return self._results / f"outputs-{mode}.npy"

    def _check(self, mode: str, number: int) -> None:
        """Raises CheckError where results differ from those of the other way, or of before."""
        if mode == _SEQUENTIAL:
            self._digests.add(hashlib.sha256(self._place(mode).read_bytes()).hexdigest())
            if len(self._digests) > 1:
                raise CheckError(f"{mode}: round {number} gave other bits than those before")
        if all(self._place(each).exists() for each in (_GATHER, _SEQUENTIAL)):
            found, wanted = (np.load(self._place(each)) for each in (_SEQUENTIAL, _GATHER))
            difference = float(np.abs(found - wanted).max() / np.abs(wanted).max())
            if not difference <= _TOLERANCE:
                raise CheckError(f"results differ by {difference:.2g} of the largest one")

    def lines(self) -> list[str]:
        """The memory that each way had."""
        found = []
        for name, peaks in self.peaks.items():
            known = [peak for peak in peaks if peak is not None]
            if known:
                most = statistics.median(known) - self._libraries
                found.append(f"{name}: {most / 2**20:,.0f} MiB of memory beside the libraries'")
        return found


def run(options: argparse.Namespace) -> None:
    """Measures what the options say."""
    try:
        dataset = gnnsys.open_dataset(options.folder)
    except GnnsysError as error:
        raise BenchError(str(error)) from error
    place = options.out or dataset.path.parent
    with tempfile.TemporaryDirectory(prefix=".inference-", dir=place) as results:
        _compare(dataset, Turns(dataset, options, Path(results)), options)


def _compare(dataset: gnnsys.Dataset, turns: Turns, options: argparse.Namespace) -> None:
    layer = dataset.num_nodes() * options.hidden * 4
    case = Case(
        labels={
            "nodes": dataset.num_nodes(),
            "edges": dataset.graph().num_edges,
            "layers": options.layers,
            "hidden": options.hidden,
            "layer MiB": layer >> 20,
            "limit MiB": options.limit_mib or "none",
            "threads": options.threads,
        },
        rates=(Rate(amount="nodes", unit="nodes/s"),),
        bases=(_GATHER,),
        implementations=[turns.implement(_GATHER), turns.implement(_SEQUENTIAL)],
        prepare=turns.disk.prepare,
    )
    run_benchmark(
        "inference",
        [case],
        options,
        cache_state=turns.disk.describe(),
        notes={"disk": turns.disk.as_dict(), "peak_bytes": turns.peaks},
    )
    for line in [*turns.lines(), turns.disk.summary_line()]:
        print(line)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = make_parser("inference.py", __doc__, _EXAMPLES)
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="a dataset folder")
    add("--hidden", type=positive, default=256, help="width of the model; default 256")
    add("--layers", type=positive, default=2, help="default 2")
    add("--limit-mib", type=int, default=256, metavar="MIB", help="default 256; 0: no limit")
    add(
        "--block-mib", type=positive, default=64, metavar="MIB", help="of gathered rows; default 64"
    )
    add("--out", type=Path, metavar="FOLDER", help="for layers and results; default that of FOLDER")
    add("--threads", type=positive, default=len(os.sched_getaffinity(0)), help="default all cores")
    add_disk_options(parser)
    add_options(parser)
    options = parser.parse_args(arguments)
    check_options(options)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    return run_entry("inference.py", lambda: run(parse_options(arguments)))


if __name__ == "__main__":
    sys.exit(main())

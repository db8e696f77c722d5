"""Edge lists to CSC on disk: `gnnsys convert` and scipy, each in a process of its own.

A run reads a file of random edges and writes indptr and indices as .npy files, start of Python
included. scipy (pandas reads text for it) keeps everything in memory and merges repeated edges,
which random ones nearly never are; it is the base, not a limit. Peak memory of each stands in the
notes.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from harness import (
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
from options import make_parser, positive

_EXAMPLES = """examples:
  python scripts/bench/convert.py --json convert.json
  python scripts/bench/convert.py --edges 2000000 --quick
"""

_EDGES_A_NODE = 16
_CHECK_EDGES = 2_000_000
_SCIPY = """
import sys
import numpy as np
import scipy.sparse

source, target, nodes, out = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
if source.endswith(".npz"):
    ends = np.load(source)["edge_index"]
    ends = ends[0], ends[1]
elif source.endswith(".csv"):
    import pandas
    table = pandas.read_csv(source)
    ends = tuple(table[name].to_numpy() for name in ("source", "target"))
else:
    import pyarrow.parquet
    table = pyarrow.parquet.read_table(source)
    ends = tuple(table.column(name).to_numpy() for name in ("source", "target"))
ones = np.ones(len(ends[0]), np.int8)
matrix = scipy.sparse.coo_matrix((ones, ends), shape=(nodes, nodes)).tocsc()
np.save(out + "-indptr.npy", matrix.indptr)
np.save(out + "-indices.npy", matrix.indices)
"""


class Workload:
    """Files of random edges, and what the conversions of them took."""

    def __init__(self, folder: Path, edges: int, memory: str) -> None:
        self.folder = folder
        self.edges = edges
        self.memory = memory
        self.peaks: dict[str, int] = {}

    def nodes(self, edges: int) -> int:
        return max(2, edges // _EDGES_A_NODE)

    def make(self, kind: str, edges: int) -> Path:
        """A file of that many edges; the same for the same numbers."""
        path = self.folder / f"edges-{edges}.{kind}"
        if path.exists():
            return path
        draw = np.random.default_rng(0)
        ends = draw.integers(0, self.nodes(edges), (2, edges))
        if kind == "npz":
            np.savez(path, edge_index=ends)
        else:
            import pyarrow.csv
            import pyarrow.parquet

            table = pyarrow.table({"source": ends[0], "target": ends[1]})
            write = pyarrow.csv.write_csv if kind == "csv" else pyarrow.parquet.write_table
            write(table, path)
        return path

    def convert(self, path: Path, edges: int) -> Path:
        out = self.folder / "gnnsys"
        shutil.rmtree(out, ignore_errors=True)
        nodes = str(self.nodes(edges))
        options = ["--num-nodes", nodes, "--memory", self.memory, "--json"]
        self._run("gnnsys", ["-m", "gnnsys", "convert", str(path), str(out), *options])
        return out

    def scipy(self, path: Path, edges: int) -> Path:
        out = self.folder / "scipy"
        self._run("scipy", ["-c", _SCIPY, str(path), "-", str(self.nodes(edges)), str(out)])
        return out

    def _run(self, name: str, arguments: list[str]) -> None:
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            cwd=self.folder,
        )  # fmt: skip
        assert process.stderr is not None
        told = process.stderr.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise BenchError(f"{name}: exit status {process.returncode}: {told[-500:]}")
        self.peaks[name] = max(self.peaks.get(name, 0), usage.ru_maxrss << 10)


def make_case(work: Workload, kind: str) -> Case:
    """One kind of file."""

    def check_ours() -> None:
        small = work.make(kind, min(work.edges, _CHECK_EDGES))
        edges = min(work.edges, _CHECK_EDGES)
        ours, theirs = work.convert(small, edges), work.scipy(small, edges)
        ends = np.load(work.make("npz", edges))["edge_index"]
        order = np.lexsort(ends)
        if not np.array_equal(np.load(ours / "indices.npy"), ends[0][order]):
            raise CheckError("indices are not the sources sorted by target and source")
        degree = np.bincount(ends[1], minlength=work.nodes(edges))
        if not np.array_equal(np.diff(np.load(ours / "indptr.npy")), degree):
            raise CheckError("indptr does not count the edges of each target")
        merged = np.load(f"{theirs}-indices.npy")
        if not edges // 2 < len(merged) <= edges:
            raise CheckError("scipy read other edges")
        work.peaks.clear()

    def timed_process(convert: Any, number: int) -> Sample:
        path = work.make(kind, work.edges)
        path.read_bytes()  # warm: reading the source is not what is compared
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        convert(path, work.edges)
        seconds = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Sample(seconds=seconds, cpu_seconds=cpu, amounts={"edges": work.edges})

    return Case(
        labels={"file": kind, "edges": work.edges, "memory": work.memory},
        rates=(Rate(amount="edges", unit="million edges/s", scale=1e6),),
        bases=("scipy",),
        implementations=[
            Implementation(
                name="gnnsys convert", check=check_ours, run=partial(timed_process, work.convert)
            ),
            Implementation(
                name="scipy", check=lambda: None, run=partial(timed_process, work.scipy)
            ),
        ],
    )


def make_cases(work: Workload, notes: dict[str, Any]) -> Iterator[Case]:
    """A case for each kind of file, with the peak memory noted after each."""
    for kind in ("npz", "parquet", "csv"):
        yield make_case(work, kind)
        notes["peak_rss_bytes"][kind] = dict(work.peaks)
        for name, peak in work.peaks.items():
            print(f"peak memory of {name}, {kind}: {peak / (1 << 30):.2f} GiB")


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = make_parser("convert.py", __doc__, _EXAMPLES)
    parser.add_argument("--edges", type=positive, default=10**8, help="default 10^8")
    parser.add_argument("--memory", default="2GB", help="of gnnsys convert; default 2GB")
    parser.add_argument("--folder", type=Path, help="scratch; default a temporary one")
    add_options(parser)
    options = parser.parse_args(arguments)
    check_options(options)
    return options


def run(options: argparse.Namespace) -> None:
    """Measures what the options say."""
    notes: dict[str, Any] = {"peak_rss_bytes": {}}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        run_benchmark(
            "convert",
            make_cases(Workload(Path(folder), options.edges, options.memory), notes),
            options,
            cache_state="source file in the page cache; results are written through it",
            notes=notes,
        )


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    return run_entry("convert.py", lambda: run(parse_options(arguments)))


if __name__ == "__main__":
    sys.exit(main())

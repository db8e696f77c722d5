"""Random row gather from host memory: gnnsys against a plain C loop, torch and numpy."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import huge_bytes, last_level_cache_bytes
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
    timed,
)
from options import make_parser, positive, positive_list
from reference_loop import ReferenceLoop
from torch import Tensor

import gnnsys
import gnnsys.memory

_WORD = 4  # bytes of a table element
_SCATTER = 2654435769  # odd, so that no two words of a table of up to 16 GiB are equal
_LOOP = "C loop, int64 ids"
_LOOP_UINT32 = "C loop, uint32 ids"
_TORCH = "torch.index_select"
_EXAMPLES = """
Output: "reused" gathers into one buffer again and again; "fresh" asks for a new output each time,
which gnnsys serves from its pool, and letting go of it is timed too. GB/s counts payload once.
numpy has one thread, so it is measured with 1 thread only.

examples:
  python scripts/bench/gather.py --json gather.json
  python scripts/bench/gather.py --rows 64,512,4096 --threads 1,2 --rounds 9
  python scripts/bench/gather.py --quick --table-mib 64 --payload-mib 8 --rows 512
"""

Job = Callable[[], Tensor]


class Workload:
    """The table, the ids of the round, the reused output, and what the result must be."""

    def __init__(self, table_bytes: int, payload_bytes: int, seed: int) -> None:
        self._table = _make_table(table_bytes)
        self._out = gnnsys.memory.empty((payload_bytes,), torch.uint8)
        self._seed = seed
        self._flush = np.ones(2 * last_level_cache_bytes(), np.uint8)
        self.huge_bytes = huge_bytes(self._table.data_ptr(), table_bytes)
        self._expected: Tensor | None = None

    def resize_rows(self, row_bytes: int) -> None:
        """Cuts table and output into rows of that many bytes."""
        words = row_bytes // _WORD
        self.table = self._table[: len(self._table) // words * words].view(-1, words)
        payload = self._out[: len(self._out) // row_bytes * row_bytes]
        self.out = payload.view(torch.float32).view(-1, words)
        self.ids = np.empty(len(self.out), np.int64)
        self.ids_uint32 = np.empty(len(self.out), np.uint32)
        self.torch_ids = torch.from_numpy(self.ids)

    def draw(self, number: int) -> None:
        """New ids, for round ``number``; the first and the last row are among them."""
        self._expected = None
        rng = np.random.default_rng((self._seed, number))
        self.ids[:] = rng.integers(0, len(self.table), len(self.ids))
        self.ids[0], self.ids[-1] = 0, len(self.table) - 1
        self.ids_uint32[:] = self.ids

    def check(self, job: Job) -> None:
        """Compares what ``job`` gathers bit for bit with numpy's indexing."""
        if self._expected is None:
            self._expected = torch.from_numpy(self.table.numpy()[self.ids])
        self.out.view(torch.uint8).fill_(0xA5)  # a job that writes nothing must not pass
        found, expected = job(), self._expected
        if found.shape != expected.shape or found.dtype != expected.dtype:
            raise CheckError(
                f"gathers {tuple(found.shape)} {found.dtype} instead of "
                f"{tuple(expected.shape)} {expected.dtype}"
            )
        wrong = (found.view(torch.int32) != expected.view(torch.int32)).any(dim=1)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise CheckError(
                f"{int(wrong.sum())} of {len(wrong)} rows are wrong, the first at position {row} "
                f"(id {self.ids[row]})"
            )

    def time(self, job: Job) -> Sample:
        """Times ``job`` with the CPU caches emptied of table and output."""
        self._flush.max()
        return timed(job, bytes=self.out.numel() * _WORD)


def _make_table(nbytes: int) -> Tensor:
    table = gnnsys.memory.empty((nbytes // _WORD,), torch.float32)
    words = table.numpy().view(np.uint32)
    block = np.arange(1 << 20, dtype=np.uint32) * np.uint32(_SCATTER)
    for start in range(0, len(words), len(block)):
        part = words[start : start + len(block)]
        np.add(block[: len(part)], np.uint32(start * _SCATTER % 2**32), out=part)
    return table


def make_case(
    work: Workload, loop: ReferenceLoop, row_bytes: int, threads: int, output: str
) -> Case:
    """The implementations for one size of rows, number of threads and kind of output."""
    work.resize_rows(row_bytes)
    torch.set_num_threads(threads)
    jobs = (_reused_jobs if output == "reused" else _fresh_jobs)(work, loop, threads)
    bases = [base for base in (_LOOP, _LOOP_UINT32, _TORCH) if base in jobs]
    return Case(
        labels={"row bytes": row_bytes, "threads": threads, "output": output},
        rates=(Rate(amount="bytes", unit="GB/s", scale=1e9),),
        bases=tuple(bases),
        implementations=[_implement(work, name, job) for name, job in jobs.items()],
        prepare=work.draw,
    )


def _implement(work: Workload, name: str, job: Job) -> Implementation:
    return Implementation(
        name=name, check=lambda: work.check(job), run=lambda number: work.time(job)
    )


def _reused_jobs(work: Workload, loop: ReferenceLoop, threads: int) -> dict[str, Job]:
    store = gnnsys.memory.HostStore(work.table, threads=threads)
    table, out, ids = work.table, work.out, work.torch_ids
    jobs: dict[str, Job] = {
        "gnnsys HostStore": lambda: store.gather(ids, out=out),
        _LOOP: lambda: loop.gather(table, work.ids, out, threads),
        _LOOP_UINT32: lambda: loop.gather(table, work.ids_uint32, out, threads),
        _TORCH: lambda: torch.index_select(table, 0, ids, out=out),
    }
    if threads == 1:
        rows, to = table.numpy(), out.numpy()

        def take() -> Tensor:
            np.take(rows, work.ids, axis=0, out=to, mode="clip")  # else numpy buffers the output
            return out

        jobs["numpy.take"] = take
    return jobs


def _fresh_jobs(work: Workload, loop: ReferenceLoop, threads: int) -> dict[str, Job]:
    store = gnnsys.memory.HostStore(work.table, threads=threads)
    unified = gnnsys.unified(work.table, device="cpu", threads=threads)
    table, ids = work.table, work.torch_ids
    jobs: dict[str, Job] = {
        "gnnsys HostStore": lambda: store.gather(ids),
        "gnnsys UnifiedTensor": lambda: unified[ids],
        _LOOP: lambda: loop.gather(table, work.ids, work.out, threads),  # the limit: reused output
        _TORCH: lambda: torch.index_select(table, 0, ids),
    }
    if threads == 1:
        rows = table.numpy()
        jobs["numpy.take"] = lambda: torch.from_numpy(np.take(rows, work.ids, axis=0))
    return jobs


def make_cases(
    work: Workload, loop: ReferenceLoop, options: argparse.Namespace, notes: dict[str, Any]
) -> Iterator[Case]:
    """One case after the other, for every size of rows, number of threads and kind of output."""
    for row_bytes in options.rows:
        for threads in options.threads:
            for output in ("reused", "fresh"):
                yield make_case(work, loop, row_bytes, threads, output)
        notes["c_loop_streams"][row_bytes] = loop.streams(work.out)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = make_parser("gather.py", __doc__, _EXAMPLES)
    parser.add_argument("--table-mib", type=positive, default=4096, help="default 4096")
    parser.add_argument(
        "--payload-mib", type=positive, default=512, help="gathered by a run; default 512"
    )
    parser.add_argument(
        "--rows",
        type=positive_list,
        default=[64, 256, 512, 1024, 4096],
        metavar="BYTES,…",
        help="row bytes, multiples of 4; default 64,256,512,1024,4096",
    )
    parser.add_argument(
        "--threads", type=positive_list, default=[1, 2], metavar="N,…", help="default 1,2"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the ids; default 0")
    add_options(parser)
    options = parser.parse_args(arguments)
    check_options(options)
    _check_sizes(options)
    return options


def _check_sizes(options: argparse.Namespace) -> None:
    if options.seed < 0:
        raise BenchError(f"--seed {options.seed} < 0: give 0 or more")
    for row_bytes in options.rows:
        if row_bytes % _WORD:
            raise BenchError(f"--rows {row_bytes}: not a multiple of {_WORD}, a float32")
        if row_bytes > min(options.table_mib, options.payload_mib) << 20:
            raise BenchError(f"--rows {row_bytes}: longer than the table or the payload")
        if (options.table_mib << 20) // row_bytes >= 2**32:
            raise BenchError(f"--rows {row_bytes}: more rows than uint32 ids name; --table-mib")


def run(options: argparse.Namespace) -> None:
    """Measures what the options say."""
    with tempfile.TemporaryDirectory() as folder:
        loop = ReferenceLoop(Path(folder))
    work = Workload(options.table_mib << 20, options.payload_mib << 20, options.seed)
    notes: dict[str, Any] = {
        "table_bytes_on_huge_pages": work.huge_bytes,
        "c_compiler": loop.version,
        "c_flags": loop.flags,
        "c_loop_streams": {},
    }
    print(f"table: {options.table_mib} MiB, {_describe_pages(work.huge_bytes)}")
    run_benchmark(
        "gather",
        make_cases(work, loop, options, notes),
        options,
        cache_state=(
            "table and output resident in memory; CPU caches cold, swept by reading "
            f"{2 * last_level_cache_bytes() >> 20} MiB before each sample"
        ),
        notes=notes,
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    return run_entry("gather.py", lambda: run(parse_options(arguments)))


def _describe_pages(huge: int | None) -> str:
    if huge is None:
        return "not known how much of it is on huge pages"
    return f"{huge >> 20} MiB of it on huge pages"


if __name__ == "__main__":
    sys.exit(main())

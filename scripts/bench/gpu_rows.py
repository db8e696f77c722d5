"""Rows out of a table by a kernel: from registered, pinned and device memory, against copies.

What counts is the share of the copy that the same link or memory reaches within the run.
"""

from __future__ import annotations

import argparse
import itertools
import mmap
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from environment import huge_bytes
from gpu_device import Gpu, add_device_option, implement
from harness import (
    BenchError,
    Case,
    CheckError,
    Implementation,
    Rate,
    add_options,
    check_options,
    run_benchmark,
    run_entry,
)
from options import make_parser, positive, positive_list
from torch import Tensor

import gnnsys
from gnnsys.system.gpu.kernels import MOST_BLOCKS, Faults, Rows, gather_rows

_RATES = (Rate(amount="bytes", unit="GB/s of rows", scale=1e9),)
_HOST, _DEVICE = "copy from host", "copy on device"
_SMALL_PAGES_ROWS = (128, 512, 4096)  # bytes of the rows that pages are compared by
_EXAMPLES = """
Each case has a size of rows, sorted or drawn ids, and huge or small pages of the table. Bases: one
large copy from pinned memory, and one within the device's memory. `staged` gathers by the CPU into
pinned memory and copies that.

examples:
  python scripts/bench/gpu_rows.py --json rows.json
  python scripts/bench/gpu_rows.py --quick --device simt --table-mib 1 --payload-mib 1 --rows 64,512
"""


class Table:
    """Rows in host memory whose pages are huge or small, each word another.

    Args:
        nbytes: of all rows.
        huge: which pages.
    """

    def __init__(self, nbytes: int, huge: bool) -> None:
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # shared memory has rules of its own
        self._memory = mmap.mmap(-1, nbytes, flags=private)
        self._memory.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
        self.words = torch.frombuffer(self._memory, dtype=torch.int32)
        torch.arange(len(self.words), out=self.words, dtype=torch.int32)
        found = huge_bytes(self.words.data_ptr(), nbytes)
        self.huge_share = None if found is None else found / nbytes


class Work:
    """Gathers of one case, all of the same ids into the same output.

    Args:
        gpu: that gathers.
        table: of all cases.
        row_bytes: of a row; payload_bytes: of a gather.
        is_sorted: whether ids ascend.
    """

    def __init__(
        self, gpu: Gpu, table: Table, row_bytes: int, payload_bytes: int, is_sorted: bool
    ) -> None:
        self._gpu, self._is_sorted = gpu, is_sorted
        self.rows = table.words.view(-1, row_bytes // 4)
        self._count = payload_bytes // row_bytes
        self.nbytes = self._count * row_bytes
        self._out = torch.empty(
            self._count, self.rows.shape[1], dtype=torch.int32, device=gpu.torch_device
        )
        self._staging = gpu.pinned(torch.empty(self._out.shape, dtype=torch.int32))
        self._faults = Faults(gpu.torch_device)
        self._unified = gnnsys.unified(self.rows, device=gpu.name)
        self.prepare(0)

    def prepare(self, number: int) -> None:
        """Other ids in each round."""
        draw = torch.Generator().manual_seed(number)
        self.ids = torch.randint(len(self.rows), (self._count,), generator=draw)
        if self._is_sorted:
            self.ids = self.ids.sort().values
        self._device_ids = self.ids.to(self._gpu.torch_device)

    def gather(self, rows: Rows, blocks: int) -> Tensor:
        """By the kernel, on at most so many blocks."""
        gather_rows(
            self._gpu.device, rows, self._device_ids, self._out, self._faults, most_blocks=blocks
        )
        return self._out

    def gather_registered(self, blocks: int) -> Tensor:
        """From the table where it is."""
        return self.gather(Rows.of(self.rows), blocks)

    def gather_unified(self) -> Tensor:
        """As a user does, the output being new and ids on the host."""
        return self._unified[self.ids]

    def stage(self) -> Tensor:
        """By the CPU into pinned memory, and one copy."""
        torch.index_select(self.rows, 0, self.ids, out=self._staging)
        return self._out.copy_(self._staging, non_blocking=True)

    def copy_from_host(self) -> Tensor:
        """As many bytes, in one piece."""
        return self._out.copy_(self._staging, non_blocking=True)

    def implementations(
        self, pinned: Tensor, device: Tensor, caps: list[int]
    ) -> list[Implementation]:
        """All ways; ``pinned`` and ``device`` hold the words of the table, too."""
        shape = self.rows.shape
        pinned_rows, device_rows = (Rows.of(words.view(shape)) for words in (pinned, device))
        source = torch.empty_like(self._out)

        def way(name: str, gather: Callable[[], Tensor]) -> Implementation:
            def check() -> None:
                expected = self.rows[self.ids].to(self._gpu.torch_device)
                if name not in (_HOST, _DEVICE) and not torch.equal(gather(), expected):
                    raise CheckError("rows are not those of the table")
                self._faults.raise_found()

            def job() -> dict[str, float]:
                gather()
                return {"bytes": self.nbytes}

            return implement(name, lambda number: self._gpu.timed(job), check)

        ways = [way(_HOST, self.copy_from_host), way(_DEVICE, lambda: self._out.copy_(source))]
        for blocks in caps:
            ways.append(
                way(f"registered, {blocks} blocks", partial(self.gather_registered, blocks))
            )
        for blocks in (MOST_BLOCKS, caps[-1]):
            ways += [
                way(f"pinned, {blocks} blocks", partial(self.gather, pinned_rows, blocks)),
                way(f"device, {blocks} blocks", partial(self.gather, device_rows, blocks)),
            ]
        return [
            *ways,
            way(
                "device, torch.index_select",
                lambda: torch.index_select(device.view(shape), 0, self._device_ids, out=self._out),
            ),
            way("gnnsys.unified", self.gather_unified),
            way("staged", self.stage),
        ]


def make_cases(options: argparse.Namespace, gpu: Gpu, notes: dict[str, Any]) -> Iterator[Case]:
    """One table of each kind of pages after the other."""
    nbytes, pinned, device = options.table_mib << 20, None, None
    for pages in ("huge", "4 KiB"):
        table = Table(nbytes, pages == "huge")
        notes[f"share on huge pages, {pages} asked for"] = table.huge_share
        if pinned is None:
            pinned = gpu.pinned(table.words).copy_(table.words)
            device = table.words.to(gpu.torch_device, copy=True)
        with ExitStack() as stack:
            gpu.register(table.words, stack)
            for row_bytes, order in itertools.product(options.rows, ("drawn", "sorted")):
                if pages != "huge" and (order == "sorted" or row_bytes not in _SMALL_PAGES_ROWS):
                    continue
                payload = options.payload_mib << 20
                work = Work(gpu, table, row_bytes, payload, order == "sorted")
                yield Case(
                    labels={"row bytes": row_bytes, "ids": order, "pages": pages},
                    rates=_RATES,
                    bases=(_HOST, _DEVICE),
                    implementations=work.implementations(pinned, device, options.blocks),
                    prepare=work.prepare,
                )


def run(options: argparse.Namespace) -> None:
    """Measures what the options say."""
    gpu = Gpu(options.device)
    notes: dict[str, Any] = gpu.describe()
    run_benchmark(
        "gpu_rows",
        make_cases(options, gpu, notes),
        options,
        cache_state="other rows in each round, of a table larger than all caches",
        notes=notes,
    )


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = make_parser("gpu_rows.py", __doc__, _EXAMPLES)
    add = parser.add_argument
    add_device_option(parser)
    add("--table-mib", type=positive, default=4096, help="default 4096")
    add("--payload-mib", type=positive, default=256, help="of a gather; default 256")
    add("--rows", type=positive_list, default=[64 << k for k in range(8)], metavar="BYTES,…")
    add("--blocks", type=positive_list, default=[16, 64, 256, 1024, 4096], metavar="N,…",
        help="most blocks of a launch; default 16,64,256,1024,4096")  # fmt: skip
    add_options(parser)
    options = parser.parse_args(arguments)
    check_options(options)
    for row_bytes in options.rows:
        if row_bytes % 4 != 0 or row_bytes > options.payload_mib << 20:
            raise BenchError(f"--rows {row_bytes}: not a multiple of 4, or longer than the payload")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    return run_entry("gpu_rows.py", lambda: run(parse_options(arguments)))


if __name__ == "__main__":
    sys.exit(main())

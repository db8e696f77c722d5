"""Random rows out of a file on a disk: gnnsys' FileStore against fio and numpy's memmap."""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
from numpy.typing import NDArray
from options import make_parser, positive, positive_list

from gnnsys.memory import FileStore, Reads
from gnnsys.memory.direct_rows import uring_refusal
from gnnsys.system.machine import mount_of, queue_of, read_text

_PAGE = 4096
_FIO = "fio"
_MEMMAP = "numpy memmap, MADV_RANDOM"
_AHEAD = 2  # batches under way beside the one that is waited for
_EXAMPLES = """
Output: reads of 4 KiB a second. "reads" of gnnsys start rows and wait for them, batch by batch, as
a cache does; "gather" copies them to a tensor besides.

examples:
  python scripts/bench/file_reads.py --folder /mnt/ssd --json file_reads.json
  python scripts/bench/file_reads.py --quick --folder . --file-mib 64 --reads 4096
"""


class Workload:
    """The file, whose rows are its pages, and the lists of rows of a round."""

    def __init__(self, path: Path, pages: int, reads: int, batch: int, seed: int) -> None:
        self.path, self.pages, self.batch, self.seed = path, pages, batch, seed
        self._batches = max(1, reads // batch)
        self.lists: list[NDArray[np.int64]] = []

    def draw(self, number: int) -> None:
        """New lists, for round ``number``."""
        rng = np.random.default_rng((self.seed, number))
        size = min(self.batch, self.pages)
        self.lists = [
            np.sort(rng.choice(self.pages, size, replace=False)) for _ in range(self._batches)
        ]

    @property
    def reads(self) -> int:
        return sum(map(len, self.lists))

    def time(self, job: Callable[[], object]) -> Sample:
        """Times ``job`` with nothing of the file in the page cache."""
        drop_cached(self.path)
        return timed(job, reads=self.reads)

    def check(self, rows: NDArray[np.uint8]) -> None:
        """Compares the rows of the first list with what the kernel reads of the file."""
        with open(self.path, "rb") as file:
            for place, row in zip(self.lists[0], rows, strict=True):
                if row.tobytes() != os.pread(file.fileno(), _PAGE, int(place) * _PAGE):
                    raise CheckError(f"row {place} is not what the file holds")


def drop_cached(path: Path) -> None:
    """Lets the page cache go of a file."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def make_file(path: Path, mib: int) -> None:
    """Writes random bytes, which no disk can compress."""
    rng = np.random.default_rng(0)
    with open(path, "wb") as file:
        for _ in range(mib):
            file.write(rng.bytes(1 << 20))
        os.fsync(file.fileno())


def prime(path: Path) -> None:
    """Reads a file once from end to end past the page cache: cold cloud disks answer slowly."""
    pages, step = os.path.getsize(path) // _PAGE, (64 << 20) // _PAGE
    store = open_store(path, pages, "pread", 16)
    for first in range(0, pages, step):
        store.read_range(first, min(first + step, pages))
    store.close()


def open_store(path: Path, pages: int, storage: str, depth: int) -> FileStore:
    """The file as a table of its pages."""
    shape = (pages, _PAGE)
    return FileStore(path, shape=shape, encoding=torch.uint8, storage=storage, depth=depth)


def make_case(work: Workload, depth: int) -> Case:
    """The implementations at one number of reads in flight."""
    implementations = []
    if shutil.which("fio"):
        fio = Implementation(
            name=_FIO,
            check=lambda: None,
            run=lambda number: run_fio(work, depth, number),
            is_peer=True,
        )
        implementations.append(fio)
    for storage in ("pread",) if uring_refusal(depth) else ("uring", "pread"):
        store = open_store(work.path, work.pages, storage, depth)
        implementations += [_reads(work, store), _gather(work, store)]
    implementations += [_mapped_store(work), _memmap(work)]
    return Case(
        labels={"depth": depth, "batch": work.batch},
        rates=(Rate(amount="reads", unit="reads/s"),),
        bases=tuple(each.name for each in (implementations[0], implementations[-1])),
        implementations=implementations,
        prepare=work.draw,
    )


def _reads(work: Workload, store: FileStore) -> Implementation:
    def check() -> None:
        staged = store.start_reads(Reads(work.lists[0])).wait()
        places = (staged.address + staged.offsets).tolist()
        rows = b"".join(ctypes.string_at(place, _PAGE) for place in places)
        work.check(np.frombuffer(rows, np.uint8).reshape(-1, _PAGE))

    def run() -> None:
        under_way: deque[Any] = deque()
        for ids in work.lists:
            under_way.append(store.start_reads(Reads(ids)))
            if len(under_way) > _AHEAD:
                under_way.popleft().wait()
        for pending in under_way:
            pending.wait()

    name = f"gnnsys {store.storage}, reads"
    return Implementation(name=name, check=check, run=lambda number: work.time(run))


def _gather(work: Workload, store: FileStore) -> Implementation:
    out = torch.empty(work.batch, _PAGE, dtype=torch.uint8)

    def run() -> None:
        for ids in work.lists:
            store.gather(torch.from_numpy(ids), out=out[: len(ids)])

    return Implementation(
        name=f"gnnsys {store.storage}, gather",
        check=lambda: work.check(store.gather(torch.from_numpy(work.lists[0])).numpy()),
        run=lambda number: work.time(run),
    )


def _mapped_store(work: Workload) -> Implementation:
    def run(some: list[NDArray[np.int64]]) -> torch.Tensor:
        # Opened for each run: what is mapped stays in the page cache.
        store = open_store(work.path, work.pages, "mmap", 0)
        for ids in some:
            rows = store.gather(torch.from_numpy(ids))
        store.close()
        return rows

    return Implementation(
        name="gnnsys mmap, gather",
        check=lambda: work.check(run(work.lists[:1]).numpy()),
        run=lambda number: work.time(lambda: run(work.lists)),
    )


def _memmap(work: Workload) -> Implementation:
    def run(some: list[NDArray[np.int64]]) -> NDArray[np.uint8]:
        with open(work.path, "rb") as file:
            area = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        area.madvise(mmap.MADV_RANDOM)
        table = np.frombuffer(area, np.uint8).reshape(work.pages, _PAGE)
        for ids in some:
            rows = table[ids]
        return rows

    return Implementation(
        name=_MEMMAP,
        check=lambda: work.check(run(work.lists[:1])),
        run=lambda number: work.time(lambda: run(work.lists)),
    )


def run_fio(work: Workload, depth: int, number: int) -> Sample:
    """Random reads of as many pages by fio."""
    command = [
        "fio", "--name=reads", f"--filename={work.path}", "--readonly", "--rw=randread",
        f"--bs={_PAGE}", "--direct=1", "--ioengine=io_uring", f"--iodepth={depth}",
        f"--size={work.pages * _PAGE}", f"--io_size={work.reads * _PAGE}",
        f"--randseed={work.seed + number}", "--output-format=json",
    ]  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise BenchError(f"fio: {done.stderr.strip() or done.stdout.strip()}")
    read = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["read"]
    return Sample(
        seconds=max(read["runtime"], 1) / 1000,
        cpu_seconds=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        amounts={"reads": read["total_ios"]},
    )


def describe_disk(path: Path) -> dict[str, Any]:
    """File system, device and read-ahead of the disk of a file."""
    kind, source = mount_of(path)
    queue = queue_of(os.stat(path).st_dev, source)
    ahead = "" if queue is None else read_text(queue / "read_ahead_kb")
    return {"file_system": kind, "device": source, "read_ahead_kb": ahead}


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = make_parser("file_reads.py", __doc__, _EXAMPLES)
    parser.add_argument(
        "--folder", type=Path, required=True, help="on the disk; the file goes there, for the run"
    )
    parser.add_argument("--file-mib", type=positive, default=2048, help="default 2048")
    parser.add_argument("--reads", type=positive, default=131072, help="of a run; default 131072")
    parser.add_argument("--batch", type=positive, default=4096, help="rows; default 4096")
    parser.add_argument(
        "--depths", type=positive_list, default=[128], metavar="N,…", help="default 128"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the rows; default 0")
    add_options(parser)
    options = parser.parse_args(arguments)
    check_options(options)
    if not options.folder.is_dir():
        raise BenchError(f"--folder {options.folder}: no such folder; make it first")
    if options.seed < 0:
        raise BenchError(f"--seed {options.seed} < 0: give 0 or more")
    return options


def run(options: argparse.Namespace) -> None:
    """Measures what the options say."""
    with tempfile.TemporaryDirectory(prefix=".file_reads-", dir=options.folder) as folder:
        path = Path(folder) / "pages"
        make_file(path, options.file_mib)
        prime(path)
        pages = (options.file_mib << 20) // _PAGE
        work = Workload(path, pages, options.reads, options.batch, options.seed)
        notes = {"disk": describe_disk(path), "fio": _fio_version()}
        print(f"file: {options.file_mib} MiB, {notes['disk']}")

        def cases() -> Iterator[Case]:
            for depth in options.depths:
                yield make_case(work, depth)

        run_benchmark(
            "file_reads",
            cases(),
            options,
            cache_state=(
                "disk primed by one sequential pass past the page cache; the file is dropped from "
                "the page cache before each sample"
            ),
            notes=notes,
        )


def _fio_version() -> str | None:
    if shutil.which("fio") is None:
        return None
    return subprocess.run(["fio", "--version"], capture_output=True, text=True).stdout.strip()


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    return run_entry("file_reads.py", lambda: run(parse_options(arguments)))


if __name__ == "__main__":
    sys.exit(main())

"""What belongs to the process: threads, pooled memory, queues that read files."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from gnnsys.memory import FileStore, HostStore
from gnnsys.memory.direct_rows import uring_refusal
from gnnsys.memory.reads import Reads

RunForked = Callable[..., "subprocess.CompletedProcess[str]"]

DIRECT = ["pread"] + ([] if uring_refusal() else ["uring"])
VALUES = np.random.default_rng(0).standard_normal((20_000, 64), dtype=np.float32)
IDS = torch.from_numpy(np.random.default_rng(1).integers(0, len(VALUES), 20_000))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", VALUES)
    return tmp_path / "x.npy"


@pytest.mark.parametrize("storage", ["host", "mmap", *DIRECT])
def test_many_stores_take_no_more_threads_rings_and_memory_than_one(
    storage: str, path: Path, run_forked: RunForked
) -> None:
    script = """
        import os, sys
        import numpy as np, torch
        from gnnsys.memory import FileStore, HostStore
        from gnnsys.system.extension import core

        storage, path = sys.argv[1:]
        torch.set_num_threads(1)
        x = torch.from_numpy(np.load(path))
        ids = torch.randint(0, len(x), (20_000,))
        expected = x[ids]

        def is_own(task):
            try:  # the kernel's workers of a ring come and go
                return not open(f"/proc/self/task/{task}/comm").read().startswith("iou-")
            except OSError:  # it is gone
                return False

        def held():
            threads = sum(map(is_own, os.listdir("/proc/self/task")))
            links = ["/proc/self/fd/" + name for name in os.listdir("/proc/self/fd")]
            rings = sum("io_uring" in os.readlink(l) for l in links if os.path.islink(l))
            return threads, rings, core.runtime_bytes()["retained"]

        stores, counts = [], []
        for _ in range(64):
            if storage == "host":
                stores.append(HostStore(x, threads=3))
            else:
                stores.append(FileStore(path, storage=storage, threads=3, depth=16))
            assert torch.equal(stores[-1].gather(ids), expected)
            counts.append(held())
        assert counts[-1][:2] == counts[0][:2], counts
        assert counts[-1][2] <= 3 * counts[0][2], counts  # staging may be let go a moment later
        for store in stores[1:]:
            store.close()
        assert torch.equal(stores[0].gather(ids), expected)
    """
    ran = run_forked(script, Path("/"), storage, path)
    assert ran.returncode == 0, ran.stderr


def test_what_is_kept_is_bounded_and_named(path: Path, run_forked: RunForked) -> None:
    script = """
        import sys
        import time
        import numpy as np
        import torch
        from gnnsys.memory import FileStore, HostStore
        from gnnsys.memory.reads import Reads
        from gnnsys.system.extension import core

        host = HostStore(torch.arange(1_000_000).view(-1, 10))
        store = FileStore(sys.argv[1], storage="pread")
        assert core.runtime_bytes() == {"outputs": 0, "staging": 0, "retained": 0}
        staged = store.start_reads(Reads(np.arange(20_000))).wait()
        rows = host.gather(torch.arange(100_000))
        found = core.runtime_bytes()
        assert 8_000_000 <= found["outputs"] <= 10_000_000, found
        assert 5_000_000 <= found["staging"] <= 7_000_000, found
        assert found["retained"] == 0
        del staged, rows
        deadline = time.monotonic() + 30
        while core.runtime_bytes()["staging"]:  # the thread that read lets go a moment later
            assert time.monotonic() < deadline
        found = core.runtime_bytes()
        assert found["outputs"] == 0
        assert 13_000_000 <= found["retained"] <= 17_000_000, found
        core.set_retention(10_000_000)
        assert core.runtime_bytes()["retained"] <= 10_000_000
        for number in range(1, 100):  # of many sizes
            outputs = [host.gather(torch.arange(1000 * number)) for _ in range(3)]
            del outputs
            assert core.runtime_bytes()["retained"] <= 10_000_000
        core.set_retention(0)
        assert core.runtime_bytes() == {"outputs": 0, "staging": 0, "retained": 0}
    """
    ran = run_forked(script, Path("/"), path)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("storage", DIRECT)
def test_files_that_close_while_others_are_read_leave_them_alone(
    storage: str, tmp_path: Path
) -> None:
    """Each thread reads through a store of its own, and opens and closes others meanwhile."""
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", VALUES + number)

    def work(number: int) -> bool:
        path, expected = tmp_path / f"{number}.npy", VALUES[IDS] + number
        mine = FileStore(path, storage=storage, threads=2, depth=16)
        right = True
        for _ in range(12):
            other = FileStore(path, storage=storage, threads=2, depth=16)
            pending = other.start_reads(Reads(np.arange(0, 20_000, 7)))
            right &= np.array_equal(mine.gather(IDS).numpy(), expected)
            other.close()  # with its reads under way
            pending.wait()
            right &= np.array_equal(mine.read_range(5, 900).numpy(), VALUES[5:900] + number)
        return right

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_stores_gather_at_once_from_many_threads() -> None:
    def work(number: int) -> bool:
        store = HostStore(torch.from_numpy(VALUES + number), threads=1 + number % 5)
        return all(
            np.array_equal(store.gather(IDS).numpy(), VALUES[IDS] + number) for _ in range(10)
        )

    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(work, range(12)))


def test_the_process_ends_while_rows_are_read(path: Path, run_forked: RunForked) -> None:
    script = """
        import sys
        import numpy as np
        from gnnsys.memory import FileStore
        from gnnsys.memory.reads import Reads
        stores = [FileStore(sys.argv[1], storage=mode, threads=4) for mode in sys.argv[2].split()]
        pending = [s.start_reads(Reads(np.arange(20_000))) for s in stores for _ in range(20)]
    """
    ran = run_forked(script, path.parent, path, " ".join(DIRECT))
    assert ran.returncode == 0, ran.stderr

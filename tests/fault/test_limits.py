"""A system that is short of threads, open files or memory: one clear error, or it works."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest

from gnnsys.memory.direct_rows import uring_refusal

DIRECT = ["pread"] + ([] if uring_refusal() else ["uring"])
_ROOT = Path("/sys/fs/cgroup")

Run = Callable[..., subprocess.CompletedProcess[str]]

# What a child runs first. `limit(room)` then leaves it room for so many threads more, or bytes.
_START = """
    import os, resource, sys
    from pathlib import Path
    import numpy as np, torch
    import gnnsys
    from gnnsys.errors import GnnsysError, ResourceError
    from gnnsys.memory import FileStore, HostStore

    torch.set_num_threads(1)
    values = np.load("x.npy")
    x = torch.from_numpy(values)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, len(x), 20_000))
    expected = HostStore(x, threads=1).gather(ids)
    assert torch.equal(HostStore(x, threads=1).gather(ids), x[ids])

    def status(name):
        line = [l for l in open("/proc/self/status") if l.startswith(name + ":")]
        return int(line[0].split()[1])

    def limit_pids(room):
        group = Path(sys.argv[1])
        (group / "cgroup.procs").write_text(str(os.getpid()))
        (group / "pids.max").write_text(str(int((group / "pids.current").read_text()) + room))

    def limit_nproc(room):
        if os.getuid() == 0:  # root is not limited
            os.setuid(100_000 + os.getpid())  # a user that has nothing else running
        most = status("Threads") + room
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))

    def limit_as(room):
        most = (status("VmSize") << 10) + (room + 3 << 23)  # stacks of 8 MiB
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    def check(make):
        try:
            assert torch.equal(make().gather(ids), expected)
        except ResourceError as error:
            print("ResourceError:", error)
        except MemoryError as error:
            print("MemoryError:", error)
        else:
            print("works")
"""


def run_process(text: str, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs the text of a script in a process that starts anew."""
    command = [sys.executable, "-c", text, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder)


def run_script(script: str, folder: Path, *arguments: object, run: Run = run_process) -> list[str]:
    """The lines that a child prints, which must come to its end."""
    ran = run(dedent(_START) + dedent(script), folder, *arguments)
    assert ran.returncode == 0, f"exit status {ran.returncode}: {ran.stderr[-2000:]}"
    return ran.stdout.splitlines() + ran.stderr.splitlines()


@pytest.fixture
def table() -> Iterator[Path]:
    """A folder with ``x.npy``: (30,000, 64) float32, that other users may read, unlike tmp_path."""
    values = np.random.default_rng(1).standard_normal((30_000, 64), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        np.save(Path(folder) / "x.npy", values)
        yield Path(folder)


@pytest.fixture
def pids_group() -> Iterator[Path]:
    """A control group that counts processes; a machine that permits none skips the test."""
    name = f"gnnsys-test-{uuid.uuid4().hex}"
    folder = None
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "pids" in controllers.split(","):
            folder = _ROOT / "pids" / path.lstrip("/") / name
            break
        if controllers == "":
            folder = _ROOT / path.lstrip("/") / name
    try:
        assert folder is not None
        folder.mkdir()
        (folder / "pids.max").write_text("max")
    except OSError as error:
        if folder is not None and folder.exists():
            folder.rmdir()
        pytest.skip(f"the number of processes cannot be limited here: {error}")
    yield folder
    folder.rmdir()


@pytest.fixture(params=["pids", "nproc", "as"])
def limit(request: pytest.FixtureRequest) -> tuple[str, Any, Run]:
    """A limit of threads, what the script needs to set it, and how it is run: a fork has more
    address space to begin with than a process that starts anew."""
    kind = request.param
    group = request.getfixturevalue("pids_group") if kind == "pids" else ""
    return kind, group, run_process if kind == "as" else request.getfixturevalue("run_forked")


ADVICE = "could be started (Resource temporarily unavailable); give fewer (threads=1 starts none)"


@pytest.mark.parametrize("room", [0, 1, 5])
def test_threads_that_gather_are_refused_by_one_error(
    limit: tuple[str, Any, Run], room: int, table: Path
) -> None:
    kind, group, run = limit
    script = f"""
        limit_{kind}({room})
        check(lambda: HostStore(x, threads=64))
        check(lambda: FileStore("x.npy", threads=64, storage="mmap"))
        check(lambda: HostStore(x, threads=1))
        check(lambda: HostStore(x, threads=2))
    """
    lines = run_script(script, table, group, run=run)
    for line in lines[:2]:
        assert line.startswith("ResourceError: 63 threads were asked for and "), lines
        assert ADVICE in line
        assert "pids.max of the control group, ulimit -u, or ulimit -v" in line
    assert lines[2] == "works", lines
    # Threads that could be started were not in vain.
    assert lines[3] == "works" or room == 0, lines


@pytest.mark.parametrize("room", [0, 1, 2, 20])
@pytest.mark.parametrize("storage", DIRECT)
def test_threads_that_read_files_are_refused_by_one_error_or_are_fewer(
    storage: str, limit: tuple[str, Any, Run], room: int, table: Path
) -> None:
    kind, group, run = limit
    script = f"""
        limit_{kind}({room})
        for _ in range(2):
            check(lambda: FileStore("x.npy", threads=1, storage="{storage}", depth=100))
    """
    lines = run_script(script, table, group, run=run)
    for line in lines[:2]:
        if line != "works" and not (kind == "as" and line.startswith("MemoryError")):
            assert line.startswith("ResourceError: "), lines
            assert ADVICE in line or "io_uring could not start a thread of the kernel" in line
    assert lines[0] == "works" or room < 2 or kind == "as", lines
    told = [line for line in lines if "depth: 100, but files are read by" in line]
    assert len(told) == (storage == "pread" and "works" in lines), lines


def test_a_pool_of_threads_that_reads_has_a_bound_that_is_told_once(
    table: Path, run_forked: Run
) -> None:
    script = """
        for _ in range(2):
            stores = [FileStore("x.npy", threads=1, storage="pread", depth=4096) for _ in "ab"]
            for store in stores:
                check(lambda: store)
            print(status("Threads") < 200)
            for store in stores:
                store.close()
    """
    lines = run_script(script, table, run=run_forked)
    assert lines[:6] == ["works", "works", "True"] * 2
    assert lines[6:] == ["depth: 4096, but files are read by 128 threads (no more are made)"]


@pytest.mark.parametrize("storage", ["mmap", *DIRECT])
def test_files_that_cannot_be_opened_leave_the_others_as_they_are(
    storage: str, table: Path, run_forked: Run
) -> None:
    script = f"""
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        stores = []
        try:
            for _ in range(100):
                stores.append(FileStore("x.npy", threads=2, storage="{storage}", depth=16))
                assert torch.equal(stores[-1].gather(ids), expected)
            print("works")
        except ResourceError as error:
            print("ResourceError:", error)
        for store in stores:
            assert torch.equal(store.gather(ids), expected)
        print(len(stores))
        stores.pop().close()
        check(lambda: FileStore("x.npy", threads=2, storage="{storage}", depth=16))
    """
    lines = run_script(script, table, run=run_forked)
    if lines[0] != "works":
        assert lines[0].startswith("ResourceError: "), lines
        assert "Too many open files" in lines[0]
        assert "ulimit -n" in lines[0]
    assert int(lines[1]) >= 10
    assert lines[2] == "works", lines


@pytest.mark.parametrize("storage", ["mmap", *DIRECT])
def test_many_stores_gather_within_a_small_control_group(
    storage: str, memory_group: Any, table: Path, run_forked: Run
) -> None:
    memory_group.set_limit(300 << 20)
    script = f"""
        (Path(sys.argv[1]) / "cgroup.procs").write_text(str(os.getpid()))
        stores = [FileStore("x.npy", storage="{storage}", threads=2) for _ in range(64)]
        for store in stores:
            assert torch.equal(store.gather(ids), expected)
        print("works")
    """
    assert run_script(script, table, memory_group.folder, run=run_forked)[0] == "works"


def test_memory_that_the_system_refuses_is_a_memory_error(table: Path) -> None:
    script = """
        store = HostStore(x, threads=4)
        store.gather(ids)
        limit_as(2)
        many = torch.zeros(1, dtype=torch.int64).expand(1 << 20).contiguous()
        for _ in range(3):
            try:
                store.gather(many)
            except MemoryError as error:
                print("MemoryError")
        check(lambda: store)
    """
    assert run_script(script, table)[:4] == ["MemoryError"] * 3 + ["works"]

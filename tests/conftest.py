"""Fixtures that several test modules share."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

_DATA = "GNNSYS_TEST_DATA"


@pytest.fixture(scope="session")
def real_graphs() -> Path:
    """The folder of real graphs, read-only; a test without it is skipped."""
    folder = Path(os.environ.get(_DATA, Path(__file__).parents[1] / ".." / "shared" / "data"))
    if not (folder / "Cora" / "raw").is_dir():
        pytest.skip(f"no real graphs at {folder}: name their folder in {_DATA}")
    return folder.resolve()


@dataclass(frozen=True)
class MemoryGroup:
    """A control group of its own, of either version."""

    folder: Path
    limit: str
    peak: str

    def set_limit(self, nbytes: int) -> None:
        (self.folder / self.limit).write_text(str(nbytes))

    def peak_bytes(self) -> int:
        return int((self.folder / self.peak).read_text())


@pytest.fixture
def memory_group() -> Iterator[MemoryGroup]:
    """A group to run a process in under a limit; a machine that permits none skips the test."""
    name = f"gnnsys-test-{uuid.uuid4().hex}"
    group = None
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            folder = Path(f"/sys/fs/cgroup/memory{path}") / name
            group = MemoryGroup(folder, "memory.limit_in_bytes", "memory.max_usage_in_bytes")
            break
        if controllers == "":
            folder = Path(f"/sys/fs/cgroup{path}") / name
            group = MemoryGroup(folder, "memory.max", "memory.peak")
    try:
        assert group is not None
        group.folder.mkdir()
        group.set_limit(1 << 40)
    except OSError as error:
        if group.folder.exists():
            group.folder.rmdir()
        pytest.skip(f"no memory limit can be set here: {error}")
    yield group
    group.folder.rmdir()

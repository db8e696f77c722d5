"""What is read of the kernel's files."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from gnnsys.system.machine import available_memory


def test_available_memory_is_that_of_the_machine_without_a_limit(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/\n")
    found, machine = available_memory(own, tmp_path), psutil.virtual_memory()
    assert found == pytest.approx(machine.available, abs=0.1 * machine.total)


@pytest.mark.parametrize("version", [1, 2])
def test_available_memory_is_what_the_tightest_cgroup_leaves(version: int, tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("3:memory:/a/b\n" if version == 1 else "0::/a/b\n")
    folder = tmp_path / "memory/a" if version == 1 else tmp_path / "a"
    limit, usage, prefix = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        if version == 1
        else ("memory.max", "memory.current", "")
    )
    (folder / "b").mkdir(parents=True)
    for place, allowed, used in ((folder, 9000, 5000), (folder / "b", 1 << 60, 4000)):
        (place / limit).write_text(f"{allowed}\n")
        (place / usage).write_text(f"{used}\n")
        # The kernel takes back what it keeps of files.
        (place / "memory.stat").write_text(
            f"anon 3\n{prefix}inactive_file 700\n{prefix}active_file 300\n"
        )
    assert available_memory(own, tmp_path) == 9000 - (5000 - 1000)
    (folder / usage).write_text("99999\n")  # over its limit
    assert available_memory(own, tmp_path) == 0

"""``--memory``: a run keeps to it, and its table says where the memory went."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gnnsys.generate import generate_rmat

MIB = 1 << 20
OPTIONS = ["--epochs", "1", "--fanouts", "10", "5", "--json"]
_ENTER = (
    "import os, sys; open(sys.argv[1] + '/cgroup.procs', 'w').write(str(os.getpid())); "
    "sys.argv[1:] = sys.argv[2:]; from gnnsys.commands.cli import main; sys.exit(main())"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2^18 nodes with 256 MiB of features, on few of which is trained."""
    path = tmp_path_factory.mktemp("data") / "g"
    return generate_rmat(path, scale=18, features=256, classes=5, train=0.1, val=0.05)


@pytest.fixture(scope="module")
def planned(folder: Path) -> dict[str, Any]:
    """The table of ``gnnsys plan``, whose libraries tell how large this torch is."""
    command = [sys.executable, "-m", "gnnsys", "plan", str(folder), "--memory", "2GB", "--json"]
    command += ["--fanouts", "10,5", "--batches", "2", "--budget", "5%"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd="/", check=True)
    memory: dict[str, Any] = json.loads(done.stdout)["memory"]
    return memory


def run_in(group: Any, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _ENTER, str(group.folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, cwd="/")


def test_a_run_stays_below_its_memory_and_near_its_table(
    memory_group: Any, folder: Path, planned: dict[str, Any]
) -> None:
    libraries = ("libraries", "libraries, mapped")
    limit = 336 * MIB + sum(planned["names"][name]["planned"] for name in libraries)
    done = run_in(memory_group, "train", str(folder), "--memory", str(limit), *OPTIONS)
    assert done.returncode == 0, done.stderr
    memory = json.loads(done.stdout)["memory"]
    table = sum(max(each.values()) for each in memory["names"].values())
    assert memory["total"] == limit
    assert memory["names"]["cache rows"]["held"] > 0
    assert memory["peak"] < limit
    assert abs(memory["peak"] - table) <= 0.1 * table, memory


def test_a_memory_too_small_is_refused_with_the_table(
    folder: Path, tmp_path: Path, run_forked: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    command = "import sys; from gnnsys.commands.cli import main; sys.exit(main())"
    done = run_forked(command, tmp_path, "train", str(folder), "--memory", "300MB", *OPTIONS)
    assert done.returncode == 2
    assert "planned > --memory 300 MiB; give more memory" in done.stderr
    assert "  libraries" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_small_control_group_is_an_error_or_a_run_never_a_kill(
    memory_group: Any, folder: Path, planned: dict[str, Any]
) -> None:
    limit = planned["names"]["libraries"]["planned"] // MIB - 16  # in MiB
    memory_group.set_limit(limit * MIB)
    done = run_in(memory_group, "train", str(folder), *OPTIONS)
    assert done.returncode in (0, 2), (done.returncode, done.stderr)
    if done.returncode == 2:
        assert f"the control group ({limit} MiB) leaves" in done.stderr


def test_a_plan_tells_the_table_beforehand(planned: dict[str, Any]) -> None:
    assert planned["total"] == 2 << 30
    nodes = 1 << 18
    assert planned["names"]["labels, mapped"]["planned"] == 8 * nodes
    assert planned["names"]["topology: offsets, mapped"]["planned"] == 8 * (nodes + 1)
    assert sum(each["planned"] for each in planned["names"].values()) <= planned["total"]

"""Fixtures of the tests of scripts/bench."""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

_BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"
_KEYS = {
    "format",
    "benchmark",
    "command",
    "started",
    "finished",
    "options",
    "rounds",
    "warm_up_rounds",
    "quick",
    "cache_state",
    "environment",
    "peers",
    "notes",
    "cases",
}


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """The modules of scripts/bench, which import each other by plain names."""
    before = set(sys.modules)
    sys.path.insert(0, str(_BENCH))
    names = ("harness", "report", "peers", "sample_check", "gather")
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    sys.path.remove(str(_BENCH))
    for name in set(sys.modules) - before:
        module_file = getattr(sys.modules[name], "__file__", None)
        if module_file and Path(module_file).is_relative_to(_BENCH):
            del sys.modules[name]


@pytest.fixture
def run_entry(
    bench: SimpleNamespace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs an entry of scripts/bench as its command line does, but in this process."""

    def run(entry: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        path, threads = str(_BENCH / entry), torch.get_num_threads()
        monkeypatch.setattr(sys, "argv", [path, *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(path, run_name="__main__")
        torch.set_num_threads(threads)
        return subprocess.CompletedProcess(sys.argv, int(end.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def check_report() -> Callable[..., dict]:
    """Checks what an entry wrote in 2 rounds, all implementations having worked; returns it."""

    def check(path: Path, benchmark: str) -> dict:
        rounds = 2
        found = json.loads(path.read_text())
        assert found.keys() == _KEYS
        assert found["benchmark"] == benchmark
        assert found["quick"] is True
        assert found["rounds"] == rounds
        environment = found["environment"]
        assert environment["cpu"]["usable_cores"] >= 1
        assert environment["versions"].keys() == {
            "python",
            "torch",
            "torch_geometric",
            "numpy",
            "gnnsys",
        }
        assert all(environment["versions"].values())
        for case in found["cases"]:
            assert len(case["order"]) == rounds
            for implementation in case["implementations"]:
                assert implementation["error"] is None
                samples = implementation["samples"]
                assert [sample["round"] for sample in samples] == list(range(1, rounds + 1))
                assert all(sample["seconds"] > 0 for sample in samples)
                for summary in implementation["summaries"].values():
                    assert summary["min"] <= summary["median"] <= summary["max"]
                    assert summary["ratios"].keys() == set(case["bases"])
        assert list(path.parent.glob(f".{path.name}*")) == []
        return found

    return check


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a folder that the processes of a test run share, in whichever of them comes first."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def get(name: str, make: Callable[[Path], None]) -> Path:
        folder = shared / name
        with open(shared / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (shared / f"{name}.made").exists():
                folder.mkdir(exist_ok=True)
                make(folder)
                (shared / f"{name}.made").touch()
        return folder

    return get

"""scripts/gpu_check without a GPU: steps that go wrong stop no other; figures become tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/gpu_check"


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module; it looks at no machine."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    loader = SourceFileLoader("gpu_check", str(SCRIPT))
    spec = spec_from_loader("gpu_check", loader)
    assert spec is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_check", module)  # dataclasses look there
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader.exec_module(module)
    monkeypatch.setattr(module, "look", lambda check, step: None)
    return module


def test_steps_that_go_wrong_stop_no_other(
    gpu_check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks(check: Any, step: Any) -> None:
        raise gpu_check.Skipped("no | tool")

    def hangs(check: Any, step: Any) -> None:
        check.python("-c", "print('begun', flush=True); import time; time.sleep(60)", limit=1.0)

    def dies(check: Any, step: Any) -> None:
        check.python("-c", "import sys; sys.exit('broken\\nin two lines')", limit=60)

    def works(check: Any, step: Any) -> None:
        step.found = json.loads(check.python("-c", "print('{\"a\": 1}')", limit=60))

    steps = {"lacks": lacks, "hangs": hangs, "dies": dies, "works": works}
    monkeypatch.setattr(gpu_check, "STEPS", steps)
    options = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    assert gpu_check.main(options) == 1
    report = json.loads((tmp_path / "out/gpu_check.json").read_text())
    found = {step["name"]: step for step in report["steps"]}
    states = {name: step["state"] for name, step in found.items()}
    assert states == {
        "machine": "ok", "lacks": "skipped", "hangs": "failed", "dies": "failed", "works": "ok"
    }  # fmt: skip
    assert found["lacks"]["notes"] == ["no | tool"]
    assert found["hangs"]["notes"] == ["stopped after 1 s: begun"]
    assert 1 <= found["hangs"]["seconds"] < 30
    assert found["dies"]["notes"] == ["exit status 1: broken\nin two lines"]
    assert found["works"]["found"] == {"a": 1}
    page = (tmp_path / "out/gpu_check.md").read_text()
    assert "No figure here is a GPU's" in page
    assert "| failed |" in page
    assert "no / tool" in page
    assert "in two lines" in (tmp_path / "out/gpu_check.log").read_text()

    monkeypatch.setattr(gpu_check, "STEPS", {"works": works})
    assert gpu_check.main(options) == gpu_check.NO_GPU


@pytest.mark.slow
def test_rows_are_measured_and_shown(
    gpu_check: ModuleType, tmp_path: Path, run_entry: Callable[..., Any],
    check_report: Callable[..., dict[str, Any]],
) -> None:  # fmt: skip
    sizes = gpu_check.BENCHMARKS["rows"][1]
    path = tmp_path / "rows.json"
    done = run_entry("gpu_rows.py", "--quick", "--device", "simt", *sizes, "--json", str(path))
    assert done.returncode == 0, done.stderr
    found = check_report(path, "gpu_rows")
    step = {"name": "rows", "state": "ok", "seconds": 1.0, "notes": [], "found": found}
    lines = gpu_check.page({"device": "simt", "machine": {}, "steps": [step]})
    (table, *_) = [i for i, line in enumerate(lines) if line == "| row bytes | 64 | 512 |"]
    ways = [line.split(" | ")[0] for line in lines[table + 2 : table + 12]]
    assert ways == [f"| {way['name']}" for way in found["cases"][0]["implementations"]]
    assert "(1.00)" in lines[table + 2]

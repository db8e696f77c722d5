"""The benchmark of row orders counts what a cache of the same bytes must read."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from gnnsys.commands.cli import main
from gnnsys.generate import generate_community


def test_orders_of_rows_and_seeds_are_compared(
    bench: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row_order = importlib.import_module("row_order")
    folder = generate_community(tmp_path / "g", nodes=4000, classes=20, features=64)
    assert main(["convert", str(folder), str(tmp_path / "c"), "--order", "community"]) == 0
    sizes = ["--batch", "8", "--warm", "3", "--batches", "120", "--rounds", "1"]
    options = ["--storage", "pread", "--cache", "100KB", "--seed-blocks", "1,8"]
    report = tmp_path / "report.json"
    folders = [str(folder), str(tmp_path / "c")]
    assert row_order.main([*folders, *sizes, *options, "--json", str(report)]) == 0
    cases = {
        (case["order"], case["seed_block"]): case
        for case in json.loads(report.read_text())["cases"]
    }
    assert list(cases) == [("none", 1), ("none", 8), ("community", 1), ("community", 8)]
    assert cases["none", 1]["neighbouring_rows_of_one_class"] < 0.1
    assert cases["community", 1]["neighbouring_rows_of_one_class"] > 0.9
    together, apart = (cases["community", block]["median"] for block in (8, 1))
    assert together["pages"] < 0.9 * apart["pages"]
    assert together["reads"] < 0.9 * apart["reads"]
    assert row_order.main([*folders, *sizes[:-2], "--batches", "1000"]) == 2
    assert "an epoch has 250" in capsys.readouterr().err

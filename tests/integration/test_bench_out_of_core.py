"""The out-of-core benchmarks run, count what must be read, and find what is wrong."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import gnnsys
from gnnsys.generate import generate_rmat


@pytest.fixture(scope="module")
def modules(bench: SimpleNamespace) -> SimpleNamespace:
    pytest.importorskip("numba")
    names = ("disk", "feature_table", "memory_group", "out_of_core", "out_of_core_training")
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


SMALL = ["--quick", "--rounds", "1", "--warm", "2", "--batches", "3", "--threads", "1", "--no-fio"]


@pytest.mark.slow
def test_readers_read_the_same_lists_and_the_plan_says_what_must_be_read(
    modules: SimpleNamespace, tmp_path: Path
) -> None:
    table, report = tmp_path / "table", tmp_path / "ooc.json"
    sizes = ["--scale", "10", "--degree", "8", "--dim", "512", "--batch-size", "16"]
    readers = "gnnsys,np.memmap random"
    options = ["--cache-mib", "0.25", "--limit-mib", "0", "--storage", "pread"]
    graph = ["--graph-dir", str(tmp_path / "graph")]
    arguments = [str(table), *SMALL, *sizes, *options, *graph, "--readers", readers]
    assert modules.out_of_core.main([*arguments, "--json", str(report)]) == 0
    found = json.loads(report.read_text())
    (case,) = found["cases"]
    samples = {one["name"]: one["samples"][0]["amounts"] for one in case["implementations"]}
    lists = modules.feature_table.open_table(table).lists[2:5]
    distinct = sum(len(np.unique(rows // 2)) for rows in lists)  # two rows of 2 KiB a page
    for name in readers.split(","):
        assert samples[name]["rows"] == sum(map(len, lists))
        assert samples[name]["batches"] == 3
        if name != "gnnsys":
            assert samples[name]["pages_needed"] == distinct
    (record,) = found["notes"]["readers"]["gnnsys"]
    assert record["state"]["capacity"] == 128
    assert record["counts"]["pages"] == samples["gnnsys"]["pages_needed"] < distinct


@pytest.mark.slow
def test_trainings_in_and_out_of_memory_have_the_same_losses(
    modules: SimpleNamespace, tmp_path: Path
) -> None:
    folder = generate_rmat(tmp_path / "g", scale=10, features=16, classes=4)
    options = ["--cache", "16KiB", "--limit-mib", "0", "--batch-size", "64", "--fanouts", "3", "2"]
    assert modules.out_of_core_training.main([str(folder), *SMALL, *options]) == 0


def test_a_loss_that_differs_ends_the_benchmark(modules: SimpleNamespace, tmp_path: Path) -> None:
    folder = generate_rmat(tmp_path / "g", scale=8, features=4, classes=2)
    options = SimpleNamespace(warm=1, batches=1, fio_seconds=0)
    turns = modules.out_of_core_training.Turns(gnnsys.open_dataset(folder), options)
    turns._check("in memory", 1, [(0.5).hex(), (0.25).hex()])
    turns._check("cached", 1, [(0.5).hex(), (0.25).hex()])
    with pytest.raises(Exception, match=r"1 of 2 losses differ .* batch 1: 0\.5 != 0\.25"):
        turns._check("cached", 1, [(0.5).hex(), (0.5).hex()])


def test_pages_are_those_that_hold_the_rows(modules: SimpleNamespace, tmp_path: Path) -> None:
    rows = np.array([0, 1, 2, 7, 40], np.int64)
    for row_bytes in (4, 512, 4096, 6000):
        table = modules.feature_table.FeatureTable(tmp_path, 64, row_bytes, 128, [])
        touched = {
            byte // 4096
            for row in rows.tolist()
            for byte in range(128 + row * row_bytes, 128 + (row + 1) * row_bytes)
        }
        assert table.pages(rows) == len(touched)
    assert table.pages(rows[:0]) == 0


@pytest.mark.slow
def test_a_worker_is_held_to_its_limit(modules: SimpleNamespace, tmp_path: Path) -> None:
    workers = Path(modules.memory_group.__file__).parent / "workers"
    script = tmp_path / "worker.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(workers)!r})\n"
        "from protocol import open_channel, serve\n"
        "take = lambda ask: {'taken': len(b'x' * ask['bytes'])}\n"
        "serve(open_channel(), {}, {'take': take})\n"
    )
    command = [sys.executable, script]

    def ask(megabytes: int) -> tuple[dict[str, int], int | None]:
        request = {"job": "take", "bytes": megabytes << 20}
        return modules.memory_group.ask_limited(command, request, 64 << 20)

    try:
        answer, peak = ask(32)
    except modules.out_of_core.BenchError as error:
        pytest.skip(str(error))
    assert answer == {"taken": 32 << 20}
    assert peak is None or 32 << 20 <= peak <= 64 << 20
    with pytest.raises(modules.out_of_core.BenchError, match="exit status -9"):
        ask(128)


@pytest.mark.parametrize(
    ("entry", "arguments", "message"),
    [
        ("out_of_core", ["no/such/place/table"], "its parent folder does not exist"),
        ("out_of_core", ["t", "--readers", "gnnsys,dgl"], "--readers dgl: expected some of"),
        ("out_of_core", ["t", "--fanouts", "5", "--fanouts", "3"], "--fanouts: given twice"),
        ("out_of_core", ["."], "not a table with lists"),
        ("out_of_core_training", ["."], "graph.json"),
        ("out_of_core_training", [".", "--rounds", "2"], "--rounds 2 < 5"),
    ],
)
def test_bad_input_is_refused_with_the_way_out(
    modules: SimpleNamespace,
    entry: str,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--scale", "4", "--batch-size", "2"] if entry == "out_of_core" else []
    assert getattr(modules, entry).main([*arguments, *small]) == 2
    assert message in capsys.readouterr().err

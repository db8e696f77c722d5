"""gnnsys plan on heterogeneous folders: its caches are the reference planner's and a run's."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import gnnsys
from gnnsys.commands.cli import main
from gnnsys.features.options import FeatureOptions
from gnnsys.features.setup import setup_features

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "property"))
from planner_reference import ReferencePlanner
from typed_graphs import AUTHORS, PAPERS, VENUES, make_typed, requests, write_twins, write_typed

pytestmark = pytest.mark.usefixtures("one_thread")

BATCHES, WINDOW = 7, 2
STRIDES = {"author": 5 * 4, "paper": 9 * 4}
COUNTS = ("hits", "victim_hits", "misses", "copies", "bypasses", "drops")
MACHINE = 'name = "s"\ndisk = {iops = 1000, bandwidth = "1MB"}\nmemory.bandwidth = 1e9\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_typed(tmp_path_factory.mktemp("g") / "g")


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    (tmp_path / "s.toml").write_text(MACHINE)
    words = f"--fanouts 3,2 --batch-size 16 --batches {BATCHES} --window {WINDOW} --hardware"
    return [*words.split(), str(tmp_path / "s.toml")]


def planned(
    folder: Path, options: list[str], capsys: pytest.CaptureFixture[str], *more: str
) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["plan", str(folder), *options, "--json", *more]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def degrees() -> dict[str, NDArray[np.int64]]:
    data = make_typed()
    nodes = {"author": AUTHORS, "paper": PAPERS}
    found = {kind: np.zeros(count, np.int64) for kind, count in nodes.items()}
    for source, relation, target in data.edge_types:
        if source in found:
            edges = data[source, relation, target].edge_index[0].numpy()
            found[source] += np.bincount(edges, minlength=nodes[source])
    return found


def ranked() -> dict[str, NDArray[np.uint16]]:
    """Importance by degree: places among the different degrees of both types."""
    found = degrees()
    different = np.unique(np.concatenate([*found.values()]))
    return {
        kind: (np.searchsorted(different, each) * 65535 // (len(different) - 1)).astype(np.uint16)
        for kind, each in found.items()
    }


def divided(nbytes: int, strides: dict[str, int]) -> dict[str, int]:
    """Rows one by one, that of the greatest value for its bytes first, while they fit; those of a
    value and type that do not all fit as far as they do."""
    values = [
        (-(int(each) + 1) / strides[kind], place, kind)
        for place, (kind, scores) in enumerate(ranked().items())
        for each in scores
    ]
    rows, before = {"author": 0, "paper": 0}, 0
    for _, _, kind in sorted(values):
        if before + strides[kind] <= nbytes:
            rows[kind] += 1
        before += strides[kind]
    return rows


def served(
    batches: list[NDArray[np.int64]], rows: int, capacity: int, scores: Any, **options: Any
) -> dict[str, int]:
    """Hits and misses of the planner in plain Python."""
    planner = ReferencePlanner(rows, capacity, scores=scores, **options)
    counts = {"hits": 0, "misses": 0}
    for now in range(len(batches)):
        while planner.announced < min(len(batches), now + 1 + planner.window):
            planner.announce(batches[planner.announced])
        plan = planner.plan()
        planner.commit(now)
        counts["hits"] += len(plan.hits)
        counts["misses"] += len(plan.fills)
    return counts


def test_caches_of_all_types_are_those_of_the_reference_over_the_loaders_requests(
    folder: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned(folder, options, capsys, "--budget", "1000", "30%")
    recorded = requests(folder, "author", [3, 2], 16, seed=0)[:BATCHES]
    share = AUTHORS * 3 // 10 * 20 + PAPERS * 3 // 10 * 36
    assert [budget["bytes"] for budget in plan["budgets"]] == [1000, share]
    policies = {
        "planned": {"policy": "hybrid", "window": WINDOW},
        "static": {"policy": "static", "window": WINDOW},
        "belady": {"policy": "lookahead", "window": BATCHES},
    }
    for budget in plan["budgets"]:
        for role, how in policies.items():
            capacities = divided(budget["bytes"], STRIDES)
            case, totals = budget["cases"][role], dict.fromkeys(("hits", "misses"), 0)
            missed = 0.0
            for kind, scores in ranked().items():
                found = case["tables"][kind]
                ids = [batch[kind] for batch in recorded]
                wanted = served(ids, len(scores), capacities[kind], scores, **how)
                assert found["capacity"] == capacities[kind]
                assert {name: found[name] for name in wanted} == wanted
                assert found["hit_ratio"] == wanted["hits"] / sum(map(len, ids))
                epoch = wanted["misses"] * STRIDES[kind] * 4 / BATCHES
                assert found["epoch"]["bytes_missed"] == pytest.approx(epoch, rel=1e-12)
                missed += found["epoch"]["bytes_missed"]
                totals = {name: totals[name] + wanted[name] for name in totals}
            assert {name: case[name] for name in totals} == totals
            assert case["hit_ratio"] == totals["hits"] / plan["ids"]
            assert case["epoch"]["bytes_missed"] == missed
        for dtype, strides in (("float16", (10, 18)), ("int4", (7, 9))):  # codes and a scale
            rows = divided(budget["bytes"], dict(zip(STRIDES, strides, strict=True)))
            tables = budget["cases"][dtype]["tables"]
            assert {kind: each["capacity"] for kind, each in tables.items()} == rows


def test_sizes_and_the_time_of_an_epoch_are_those_of_all_types(
    folder: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned(folder, options, capsys, "--budget", "1KB", "--step-time", "1")
    recorded = requests(folder, "author", [3, 2], 16, seed=0)[:BATCHES]
    touched = {
        kind: len(np.unique(np.concatenate([b[kind] for b in recorded]))) for kind in STRIDES
    }
    assert plan["node_types"] == {"author": AUTHORS, "paper": PAPERS, "venue": VENUES}
    assert plan["edge_types"]["paper,at,venue"] == PAPERS
    assert (plan["target"], plan["epoch_batches"]) == ("author", 4)
    assert {kind: each["rows_touched"] for kind, each in plan["tables"].items()} == touched
    assert plan["feature_bytes"] == AUTHORS * 20 + PAPERS * 36
    case = plan["budgets"][0]["cases"]["planned"]
    for part in ("disk_reads", "disk_bytes", "memory"):
        total = sum(each["estimate"][part] for each in case["tables"].values())
        assert case["estimate"][part] == total
    assert case["estimate"]["compute"] == 4 * 0.001
    assert case["estimate"]["seconds"] == case["estimate"]["disk_bytes"]
    names = plan["memory"]["names"]
    assert names["embeddings of nodes"]["planned"] == VENUES * 64 * 4 * 6
    assert names["features, mapped"]["planned"] == plan["feature_bytes"]


def test_a_loader_reads_what_is_planned(
    folder: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """By a policy that does not ask how far ahead the loader is."""
    dataset = gnnsys.open_dataset(folder)
    for score in ("degree", "none"):
        more = ["--batches", "4", "--budget", "1500", "--score", score, "--policy", "static"]
        tables = planned(folder, [*options, *more], capsys)["budgets"][0]["cases"]["planned"]
        chosen = FeatureOptions(cache="1500B", score=score, storage="pread", policy="static")
        features, graphs = dataset.stores(edge_features=False, **setup_features(dataset, chosen))
        loader = gnnsys.NeighborLoader(
            (features, graphs), [3, 2], ("author", dataset.split("train")), batch_size=16,
            shuffle=True, seed=0,
        )  # fmt: skip
        assert len([*loader]) == 4
        for kind, each in tables["tables"].items():
            store = features.table(kind, "x").store
            assert store.capacity == each["capacity"]
            rows = store.counters.as_dict()["rows"]
            assert (rows.get("cache", 0), rows["file"]) == (each["hits"], each["misses"])


def test_a_folder_of_one_type_is_planned_as_the_homogeneous_one(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    alone, twin = write_twins(tmp_path)
    budgets = ["--budget", "10%,1KB", "--score", "presample"]
    plain, typed = (planned(each, options, capsys, *budgets) for each in (alone, twin))
    for one, other in zip(plain["budgets"], typed["budgets"], strict=True):
        assert one["bytes"] == other["bytes"]
        assert one["cases"].keys() == other["cases"].keys()
        for role, case in other["cases"].items():
            (table,) = case["tables"].values()
            assert one["cases"][role] == table | {"table": "node"}
            for name in ("hit_ratio", "capacity", "cache_bytes", "estimate", *COUNTS):
                assert case[name] == table[name]
    for name in ("rows", "feature_bytes", "rows_touched", "ids", "epoch_batches", "score"):
        assert plain[name] == typed[name]


def test_types_that_no_batch_reaches_or_without_nodes_are_planned(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_typed()
    data["island"].x, data["nobody"].x = torch.rand(9, 2), torch.rand(0, 2)
    made, budget = write_typed(tmp_path / "g", data), ["--score", "presample", "--budget", "100%"]
    case = planned(made, options, capsys, *budget)["budgets"][0]["cases"]["planned"]
    assert case["misses"] == 0
    assert {kind: each["capacity"] for kind, each in case["tables"].items()} == {
        "author": AUTHORS, "paper": PAPERS, "island": 9, "nobody": 0,
    }  # fmt: skip


def test_defaults_for_less_than_a_row_of_each_type_are_left_out(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """5 % has a row of each by their rows, though not of the smallest by its part of the bytes."""
    data = make_typed()
    data["island"].x = torch.rand(20, 1)
    made = write_typed(tmp_path / "g", data)
    plan = planned(made, options, capsys, "--score", "none")
    assert [budget["budget"] for budget in plan["budgets"]] == ["5%", "10%", "25%"]
    assert plan["notes"][-1] == "Left out, for less than a row of each table of features: 1%."
    rows = {kind: each["capacity"] for kind, each in cases_of(plan["budgets"][0]).items()}
    assert rows == {"author": 7, "paper": 4, "island": 1}
    assert main(["plan", str(made), *options, "--budget", "1%"]) == 2
    assert "--budget 1%: 56 bytes, less than one row of each of 3 tables, 60" in (
        capsys.readouterr().err
    )


def cases_of(budget: dict[str, Any]) -> dict[str, Any]:
    tables: dict[str, Any] = budget["cases"]["planned"]["tables"]
    return tables


def test_budgets_for_a_row_of_each_as_stored_are_planned_in_wider_rows(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_typed()
    data["author"].x, data["paper"].x = data["author"].x.half(), data["paper"].x.half()
    plan = planned(write_typed(tmp_path / "g", data), options, capsys, "--budget", "28")
    (budget,) = plan["budgets"]
    assert budget["cases"]["float32"]["capacity"] == 0


def test_features_without_rows_are_no_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_typed()
    for kind in ("author", "paper"):
        data[kind].num_nodes = len(data[kind].x)
        del data[kind].x
    data["nobody"].x = torch.rand(0, 2)
    assert main(["plan", str(write_typed(tmp_path / "g", data))]) == 2
    assert "its features have no rows to cache" in capsys.readouterr().err


@pytest.mark.parametrize("cache", ["0.1%", "0B"])
def test_a_cache_of_training_that_is_too_small_is_named(
    folder: Path, cache: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(folder), "--model", "rgcn", "--cache", cache]) == 2
    assert f"--cache {cache}: 0 bytes, less than one row of each of 2 tables, 56; give more" in (
        capsys.readouterr().err
    )


def test_tables_and_pictures_name_the_types(
    folder: Path, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "200")
    page = tmp_path / "p.html"
    assert main(["plan", str(folder), *options, "--budget", "20%", "--picture", str(page)]) == 0
    out, drawn = capsys.readouterr().out, page.read_text()
    for words in (
        "100, features: 100 rows of 36 bytes (float32)",
        "4, no features",
        "author writes paper",
        "250 rows of 2 node types",
        "training nodes of type author",
        "the bound is that of caches of these sizes",
    ):
        assert words in out
    for words in ("How types divide the cache", "250 rows of 2 node types", "float32 as stored"):
        assert words in drawn
    assert drawn.count("<svg") == 2


def test_what_cannot_be_planned_of_types_is_told(
    folder: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for more, message in (
        (["--target", "editor"], "expected one of author, paper, venue"),
        (["--ranks", "4"], "--ranks 4: is for homogeneous graphs"),
        (["--victim-buffer", "1KB"], "--victim-buffer 1KB: is for homogeneous graphs"),
        (["--trace", "t"], "--trace t: is for homogeneous graphs"),
        (["--topology", "read"], "--topology read: is for homogeneous graphs"),
        (["--eval", "neighborhoods"], "give layerwise or sampled"),
        (["--budget", "55"], "55 bytes, less than one row of each of 2 tables, 56; give more"),
    ):
        assert main(["plan", str(folder), *options, *more]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert main(["plan", str(folder), "--parallel", "all", "--ranks", "2"]) == 2
    assert "--parallel all: is for homogeneous graphs" in capsys.readouterr().err

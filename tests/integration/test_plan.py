"""gnnsys plan: its numbers are the simulator's, its pictures real, its errors tell the way out."""

from __future__ import annotations

import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from gnnsys.cache.importance import rank_normalised
from gnnsys.cache.shared.simulator import simulate_ranks
from gnnsys.cache.simulator import simulate
from gnnsys.cache.trace import TraceWriter
from gnnsys.commands.cli import main
from gnnsys.config.plan import PlanConfig
from gnnsys.dataset.folder import open_dataset
from gnnsys.dataset.writer import DatasetWriter, cut_rows
from gnnsys.errors import ArgumentError, FileFormatError, MissingFileError, StorageError
from gnnsys.features.importance import importance
from gnnsys.features.replay import sampled_ids
from gnnsys.generate import generate_rmat
from gnnsys.plan.estimate import Traffic, estimate_epoch
from gnnsys.plan.hardware import Hardware, measure_hardware, read_hardware
from gnnsys.system import disk_probe
from gnnsys.system.disk_probe import DiskProfile

NODES, COLUMNS = 512, 96  # rows of 384 bytes: some lie on two pages
ROW = COLUMNS * 4
BATCHES, SEEDS, FANOUTS = 16, 12, [3, 2]
MACHINE = """
name = "a server"
disk = {iops = 1000, bandwidth = "1MB"}
memory.bandwidth = 1e9
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("g") / "g"
    return generate_rmat(path, scale=9, features=COLUMNS, classes=3, train=0.3, threads=1)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    path = tmp_path / "server.toml"
    path.write_text(MACHINE)
    return path


@pytest.fixture
def options(folder: Path, machine: Path) -> list[str]:
    """Of a short plan, but for its budgets."""
    sizes = ["--batches", str(BATCHES), "--batch-size", str(SEEDS), "--fanouts", "3,2"]
    return ["plan", str(folder), *sizes, "--hardware", str(machine), "--threads", "2"]


def sampled(folder: Path, seed: int = 0) -> list[Any]:
    dataset = open_dataset(folder)
    run = sampled_ids(
        dataset.graph(),
        dataset.split("train"),
        FANOUTS,
        batch_size=SEEDS,
        batches=BATCHES,
        seed=seed,
        threads=1,
    )
    return list(run)


def degree_scores(folder: Path) -> Any:
    return rank_normalised(importance("degree", open_dataset(folder).graph()))


def planned(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_cache_of_a_plan_is_the_simulators(
    folder: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    budgets = ["--budget", "10KB,25%", "60000", "--victim-buffer", "5KB", "--window", "4"]
    plan = planned([*options, *budgets], capsys)
    trace, scores = sampled(folder), degree_scores(folder)
    assert [budget["bytes"] for budget in plan["budgets"]] == [10 << 10, 128 * ROW, 60_000]
    int8, int4 = 4 + ROW // 4, 4 + -(-ROW // 8)  # a scale and codes
    for budget in plan["budgets"]:
        size, victim = budget["bytes"], 5 << 10
        wanted = {
            "planned": ("hybrid", size // ROW, ROW, victim // ROW),
            "static": ("static", (size + victim) // ROW, ROW, 0),
            "belady": ("belady", (size + victim) // ROW, ROW, 0),
            "one cache": ("hybrid", (size + victim) // ROW, ROW, 0),
            "float16": ("hybrid", size // (ROW // 2), ROW // 2, victim // (ROW // 2)),
            "int8": ("hybrid", size // int8, int8, victim // int8),
            "int4": ("hybrid", size // int4, int4, victim // int4),
        }
        assert budget["cases"].keys() == wanted.keys()
        for role, (policy, capacity, row_bytes, cells) in wanted.items():
            found = budget["cases"][role]
            by_hand = simulate(
                trace,
                policy,
                min(NODES, capacity),
                4,
                num_rows=NODES,
                scores=scores,
                victim_cells=cells,
                row_bytes=row_bytes,
            )
            for name in ("hits", "victim_hits", "misses", "copies", "bypasses", "drops"):
                assert found[name] == getattr(by_hand, name), (role, name)
            assert found["hit_ratio"] == (by_hand.rows - by_hand.misses) / by_hand.rows
            scale = plan["epoch_batches"] / BATCHES
            assert found["epoch"]["bytes_read"] == by_hand.bytes_read * scale
            assert found["row_bytes"] == row_bytes
            assert found["victim_cells"] == cells
        packed = budget["cases"]["belady"]["misses"] * scale * ROW
        assert budget["packing"]["bytes"] == packed
        assert budget["packing"]["pass_seconds"] == (NODES * ROW + packed) / (1 << 20)


def test_caches_of_ranks_are_the_simulators(
    folder: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    epoch = -(-len(open_dataset(folder).split("train")) // SEEDS)
    assert epoch % 3, "the last step of an epoch is to be a part of one"
    options += ["--budget", "10%", "--window", "4"]
    of_one = planned([*options, "--ranks", "1"], capsys)
    alone = of_one["budgets"][0]["cases"]
    for shared in ("shared", "private"):
        assert alone[shared] == alone["planned"] | {"role": shared}
    plan = planned([*options, "--ranks", "3"], capsys)
    for role in ("shared", "private"):
        by_hand = simulate_ranks(
            sampled(folder),
            "hybrid",
            NODES // 10,
            4,
            ranks=3,
            shared=role == "shared",
            epoch=epoch,
            num_rows=NODES,
            scores=degree_scores(folder),
            row_bytes=ROW,
        )
        found = plan["budgets"][0]["cases"][role]
        assert found["misses"] == by_hand.misses
        assert found["epoch"]["bytes_read"] == by_hand.bytes_read * epoch / BATCHES
    one, all_ranks = of_one["memory"]["names"], plan["memory"]["names"]
    for name in ("topology: offsets, mapped", "topology: neighbours, mapped", "labels, mapped"):
        assert all_ranks[name] == one[name]
    for name in ("sampler maps", "batches under way"):
        assert all_ranks[name]["planned"] == 3 * one[name]["planned"]
    assert main([*options, "--ranks", "3"]) == 0
    out = capsys.readouterr().out
    assert "An epoch on 3 ranks" in out
    assert "Memory of a training run on 3 ranks" in out


def test_static_hits_are_the_rows_with_the_highest_scores(
    folder: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned([*options, "--budget", "10%", "--policy", "static"], capsys)
    trace, scores = sampled(folder), degree_scores(folder)
    kept = sorted(range(NODES), key=lambda row: (-int(scores[row]), row))[: NODES // 10]
    hits = sum(int(np.isin(ids, kept).sum()) for ids in trace)
    rows = sum(map(len, trace))
    case = plan["budgets"][0]["cases"]["planned"]
    assert case["hits"] == hits
    assert case["misses"] == rows - hits
    missed = [ids[~np.isin(ids, kept)] for ids in trace]
    pages = 0
    for ids in missed:
        first, last = ids * ROW // 4096, (ids * ROW + ROW - 1) // 4096
        pages += len({*first.tolist(), *last.tolist()})
    assert case["epoch"]["pages_read"] * BATCHES / plan["epoch_batches"] == pytest.approx(pages)


def test_an_epoch_is_as_long_as_its_slowest_part(
    folder: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    seeds = len(open_dataset(folder).split("train"))
    plan = planned([*options, "--budget", "10%", "--step-time", "2000"], capsys)
    case = plan["budgets"][0]["cases"]["planned"]
    epoch, estimate = case["epoch"], case["estimate"]
    assert plan["epoch_batches"] == -(-seeds // SEEDS)
    assert epoch["rows"] == plan["ids"] * plan["epoch_batches"] / BATCHES
    assert estimate["disk_reads"] == min(epoch["rows_read"], epoch["pages_read"]) / 1000
    assert estimate["disk_bytes"] == epoch["bytes_read"] / (1 << 20)
    assert estimate["memory"] == (epoch["rows"] + epoch["rows_read"]) * ROW / 1e9
    assert estimate["compute"] == plan["epoch_batches"] * 2
    assert estimate["seconds"] == estimate["compute"]
    assert estimate["limit"] == "computing"


@pytest.mark.parametrize(
    ("slowest", "limit"),
    [
        ("disk_iops", "disk reads"),
        ("disk_bandwidth", "disk bandwidth"),
        ("memory_bandwidth", "memory bandwidth"),
    ],
)
def test_what_is_slowest_is_the_limit(slowest: str, limit: str) -> None:
    speeds = {"disk_iops": 1e9, "disk_bandwidth": 1e9, "memory_bandwidth": 1e9} | {slowest: 1.0}
    traffic = Traffic(rows=10, rows_read=5, pages_read=3, bytes_read=12288, row_bytes=100)
    estimate = estimate_epoch(traffic, Hardware(name="", **speeds), batches=1)
    assert estimate.limit == limit
    assert estimate.seconds == {"disk_iops": 3, "disk_bandwidth": 12288}.get(slowest, 1500)


def test_a_recorded_trace_is_planned_as_the_batches_it_holds(
    folder: Path, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.trace"
    with TraceWriter(path, NODES) as writer:
        for ids in sampled(folder):
            writer.add(ids)
    sampled_plan = planned([*options, "--budget", "5%"], capsys)
    replayed = planned([*options, "--budget", "5%", "--trace", str(path)], capsys)
    assert replayed["budgets"] == sampled_plan["budgets"]
    assert replayed["rows_touched"] == len(np.unique(np.concatenate(sampled(folder))))
    fewer = [*options, "--budget", "5%", "--trace", str(path), "--batches", "3"]
    assert planned(fewer, capsys)["ids"] == sum(len(ids) for ids in sampled(folder)[:3])


def test_the_score_is_the_one_asked_for_or_stored(
    options: list[str], tmp_path: Path, machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = generate_rmat(tmp_path / "g", scale=9, features=COLUMNS, classes=3, threads=1)
    options[1] = str(path)
    options += ["--budget", "5%"]
    assert planned(options, capsys)["score"] == "degree"
    assert main(["score", str(path), "--score", "pagerank"]) == 0
    stored = planned(options, capsys)
    assert stored["score"] == "pagerank"
    again = planned([*options, "--score", "pagerank"], capsys)
    for plan in (again, stored):
        del plan["memory"]  # of this process and machine, which go on changing
    assert again == stored
    degree = planned([*options, "--score", "degree"], capsys)
    assert degree["budgets"] != stored["budgets"]
    cold = planned([*options, "--score", "none"], capsys)
    assert cold["score"] == "none"
    first = cold["budgets"][0]["cases"]
    assert first["planned"]["hits"] < degree["budgets"][0]["cases"]["planned"]["hits"]
    presampled = planned([*options, "--score", "presample"], capsys)
    assert presampled["score"] == "presample"
    assert not {"gnnsys-plan-"} & {place.name for place in tmp_path.iterdir()}


def test_tables_say_what_limits_and_what_a_victim_buffer_is(
    options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main([*options, "--budget", "5%,100%", "--victim-buffer", "4KB"]) == 0
    out = capsys.readouterr().out
    for words in (
        "a server: disk 1,000 reads/s",
        "sampled with fanouts 3,2",
        "batches of 12 seeds: training nodes",
        "disk bandwidth",
        "float16",
        "just more cache",
        "100%: all features fit",
        "--step-time",
    ):
        assert words in out


class Page(HTMLParser):
    """Counts tags and collects texts and addresses."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_pictures_are_real(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options += ["--budget", "5%,10%"]
    assert main([*options, "--picture", str(tmp_path / "plan.png")]) == 0
    pixels = matplotlib.image.imread(io.BytesIO((tmp_path / "plan.png").read_bytes()), "png")
    assert pixels.shape[0] > 300
    assert pixels.shape[1] > 1000
    assert pixels[..., :3].std() > 0.05  # something is drawn
    plan = planned([*options, "--picture", str(tmp_path / "plan.html")], capsys)
    page = Page((tmp_path / "plan.html").read_text())
    assert page.tags.count("svg") == 2
    assert page.tags.count("table") == 4
    assert all(address.startswith("#") for address in page.addresses)
    words = " ".join(page.text)
    assert f"{plan['budgets'][1]['cases']['belady']['hit_ratio']:.1%}" in words
    assert "bound (Belady)" in words
    assert "#1234" not in (tmp_path / "plan.html").read_text()  # every colour is the page's
    assert sorted(place.name for place in tmp_path.iterdir()) == [
        "plan.html",
        "plan.png",
        "server.toml",
    ]


def test_what_cannot_be_planned_is_told(
    options: list[str], tmp_path: Path, machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with TraceWriter(tmp_path / "other.trace", 5) as writer:
        writer.add([1])
    with TraceWriter(tmp_path / "empty.trace", NODES):
        pass
    with DatasetWriter(tmp_path / "typed", name="typed", heterogeneous=True) as writer:
        writer.add_nodes(3, "a")
        typed = writer.commit()
    with DatasetWriter(tmp_path / "bare", name="bare") as writer:
        writer.add_nodes(2)
        writer.add_edges(0)
        writer.write_edges("indptr", cut_rows(np.zeros(3, np.int64)), (3,), "int64")
        writer.write_edges("indices", cut_rows(np.zeros(0, np.int32)), (0,), "int32")
        bare = writer.commit()
    cases = [
        (["plan", str(tmp_path / "none")], "no such file"),
        (["plan", str(typed), "--target", "a"], "no features to cache"),
        (["plan", "demo", "--target", "a"], "demo has nodes of one type"),
        (["plan", str(bare)], "no features to cache"),
        ([*options, "--trace", str(tmp_path / "none")], "no such file"),
        ([*options, "--trace", str(machine)], "not a trace"),
        ([*options, "--trace", str(tmp_path / "other.trace")], "table of 5 rows"),
        ([*options, "--trace", str(tmp_path / "empty.trace")], "holds no batch"),
        ([*options, "--budget", "383"], "less than a row of 384"),
        ([*options, "--budget", "0.1%"], "less than a row of 384"),
        ([*options, "--budget", "101%"], "at most 100%"),
        ([*options, "--budget", "1GB,,2GB"], "expected a number of bytes"),
        ([*options, "--victim-buffer", "many"], "--victim-buffer many"),
        ([*options, "--hardware", str(tmp_path / "none.toml")], "describe the machine"),
        (
            [*options, "--budget", "5%", "--picture", str(tmp_path / "no" / "p.png")],
            "no such folder",
        ),
    ]
    for arguments, message in cases:
        assert main(arguments) == 2, arguments
        assert message in capsys.readouterr().err, arguments


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"window": -1}, "--window -1"),
        ({"batches": 0}, "--batches 0"),
        ({"step_time": float("nan")}, "--step-time nan"),
        ({"picture": "plan.svg"}, "in .png or .html"),
        ({"fanouts": ("3,x",)}, "--fanouts 3,x"),
    ],
)
def test_options_out_of_range_are_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        PlanConfig(dataset="g", **option)


def test_a_description_of_hardware_is_checked_key_by_key(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text(MACHINE)
    assert read_hardware(path) == Hardware(
        name="a server", disk_iops=1e3, disk_bandwidth=1 << 20, memory_bandwidth=1e9
    )
    cases = [
        (MACHINE + "speed = 3", "speed is unknown; expected name, disk, memory"),
        ("disk.iops = 1\ndisk.gbs = 2", "disk.gbs is unknown; expected disk.iops, disk.bandwidth"),
        ("disk.iops = 1", "no disk.bandwidth"),
        ("disk = 3", "disk is 3, expected a table"),
        ("disk.iops = '1k'", "disk.iops is '1k', expected a number"),
        ("disk.iops = true", "disk.iops is True"),
        ("disk.iops = 0", "disk.iops is 0, expected a number, above 0"),
        ("disk = {iops = 1, bandwidth = inf}", "disk.bandwidth is inf"),
        ("disk = {iops = 1, bandwidth = 'fast'}", "fast: expected a number of bytes"),
    ]
    for content, message in cases:
        path.write_text(content)
        with pytest.raises(ArgumentError) as caught:
            read_hardware(path)
        assert message in str(caught.value)
        assert str(path) in str(caught.value)
    path.write_text("disk = [")
    with pytest.raises(FileFormatError, match="not TOML"):
        read_hardware(path)
    with pytest.raises(MissingFileError, match="no such file"):
        read_hardware(tmp_path / "none")


def test_this_machine_is_measured(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = measure_hardware(folder / "features.npy")
    assert found.disk_iops > 0
    assert found.disk_bandwidth > 0
    assert found.memory_bandwidth > 1e8


def test_a_stored_profile_of_the_disk_is_used(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    profile = DiskProfile(
        iops=123.0, bandwidth=4.5e6, latency=1e-3, depth=8, when="2026-01-01", disk="some disk"
    )
    assert disk_probe.save(folder / "features.npy", profile)
    found = measure_hardware(folder / "features.npy")
    assert (found.disk_iops, found.disk_bandwidth) == (123.0, 4.5e6)
    assert "some disk" in found.name


def test_what_cannot_be_measured_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "small").write_bytes(b"x")
    with pytest.raises(ArgumentError, match="too few to probe"):
        measure_hardware(tmp_path / "small")
    with pytest.raises(StorageError, match=r"none: its disk cannot be measured .*--hardware"):
        measure_hardware(tmp_path / "none")


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    out = capsys.readouterr().out
    assert "gnnsys plan my-graph --fanouts 15,10,5 --budget 1GB,2GB,4GB" in out
    assert "--victim-buffer" in out

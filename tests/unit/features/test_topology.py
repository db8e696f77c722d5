"""How neighbours are read: chosen within the memory, losses the same, told where it fails."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gnnsys
from gnnsys.config.plan import PlanConfig
from gnnsys.config.predict import PredictConfig
from gnnsys.config.train import TrainConfig
from gnnsys.errors import ArgumentError
from gnnsys.features import topology
from gnnsys.features.options import FeatureOptions, TopologyOptions
from gnnsys.features.statistics import FeatureStats, stats_rows
from gnnsys.features.topology import MappingWatch, graph_to_sample, open_topology, plan_topology
from gnnsys.generate import generate_community, generate_rmat
from gnnsys.system.budget import process_budget
from gnnsys.training.loop import run_training

KEPT, MAPPED = "topology: neighbours in memory", "topology: neighbours, mapped"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("topology") / "g"
    return generate_community(place, nodes=3000, degree=12, classes=4, features=8)


def planned(folder: Path, left: int, cache: str = "none", **options: Any) -> dict[str, int]:
    """What plan_topology reserves where the process has so many bytes left."""
    dataset = gnnsys.open_dataset(folder)
    with process_budget().run(left) as budget:
        for entry in budget.table():  # of other tests, held until they are collected
            budget.total = (budget.total or 0) + entry.held
        plan_topology(
            dataset, TopologyOptions(**options), FeatureOptions(cache=cache, storage="pread")
        )
        return {entry.name: entry.planned for entry in budget.table()}


def test_neighbours_are_mapped_where_they_fit_else_what_fits_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbytes = gnnsys.open_dataset(folder).graph().indices.nbytes
    assert planned(folder, 1 << 30)[MAPPED] == nbytes
    assert planned(folder, 1 << 30)[KEPT] == 0
    much = planned(folder, 1 << 30, topology="read")
    assert (much[MAPPED], much[KEPT]) == (0, nbytes)
    given = planned(folder, 1 << 30, topology_memory="8KB")
    assert (given[MAPPED], given[KEPT]) == (0, 8192)
    for mode in ("mmap", "mmap-random"):
        assert planned(folder, 1 << 20, topology=mode)[MAPPED] == nbytes
    # A cache without a size leaves neighbours half of what there is, not less than it needs itself.
    monkeypatch.setattr(topology, "_STAGED", 0)
    half = planned(folder, 100_000, cache="auto")
    assert half[MAPPED] == 0
    assert half[KEPT] == int(0.9 * (50_000 - nbytes // 4096 * 4))
    rows = 3000 * 8 * 4
    assert planned(folder, rows + nbytes, cache="auto")[MAPPED] == nbytes
    assert planned(folder, rows + nbytes - 1, cache="auto")[MAPPED] == 0


def test_losses_do_not_depend_on_how_neighbours_are_read(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    results = {}
    for mode, more in (
        ("mmap", {}),
        ("mmap-random", {}),
        ("read", {"topology_memory": "40KB"}),
        ("auto", {"topology_memory": "0", "eval": "sampled"}),
    ):
        config = TrainConfig(
            dataset=str(folder), fanouts=(5, 3), batch_size=256, epochs=1, device="cpu",
            threads=1, out=str(tmp_path / mode), topology=mode, **more,
        )  # fmt: skip
        with caplog.at_level(logging.WARNING):
            results[mode] = run_training(config)
    assert len({result.history[-1].loss for result in results.values()}) == 1
    assert (
        len({results[mode].best_val["accuracy"] for mode in ("mmap", "mmap-random", "read")}) == 1
    )
    assert not any("topology" in name for name in results["mmap"].reads)
    reads = results["read"].reads
    assert reads["topology_kept"] > 0 < reads["topology_read"]
    assert reads["topology_bytes_read"] <= 4096 * reads["topology_pages"]
    assert results["auto"].reads["topology_kept"] == 0
    assert results["read"].memory["names"][KEPT] == {"planned": 40960, "held": 40960}
    told = json.loads((tmp_path / "read" / "result.json").read_text())
    assert told["reads"] == reads
    assert "--topology auto: 0 bytes of the 14" in caplog.text
    table = dict(stats_rows(FeatureStats(seconds=1, reads=reads)))
    assert table["neighbours from memory"].startswith(f"{reads['topology_kept']:,}")
    assert "reads of neighbours" in table


def test_the_blocks_that_stay_are_those_drawn_from_most(tmp_path: Path) -> None:
    dataset = gnnsys.open_dataset(generate_rmat(tmp_path / "g", scale=13, edge_factor=16))
    seeds = torch.from_numpy(np.random.default_rng(0).permutation(1 << 13)[:500])

    def share(blocks: np.ndarray[Any, Any] | None = None) -> float:
        """Of the neighbours drawn, those from blocks that stay; None: as they are chosen."""
        graph = dataset.graph()
        options = TopologyOptions(topology="read", topology_memory="128KB")
        open_topology(dataset, graph, options, fanouts=(4, 4))
        if blocks is not None:
            graph.file.keep(blocks)
        gnnsys.NeighborSampler(graph, [4, 4]).sample(seeds, 0)
        counts = graph.file.counts()
        return counts["topology_kept"] / (counts["topology_kept"] + counts["topology_read"])

    # Counted by edge, where all are in memory: the most that 32 blocks can serve.
    graph = dataset.graph()
    drawn = gnnsys.NeighborSampler(graph, [4, 4]).sample(seeds, 0).edge
    of_blocks = np.bincount(drawn.numpy() // 1024, minlength=128)
    best = np.sort(np.argsort(of_blocks)[-32:])
    assert share(best) == pytest.approx(of_blocks[best].sum() / len(drawn))
    others = [np.arange(first, 128, 4) for first in range(4)]
    assert sum(map(share, others)) == pytest.approx(1)
    assert share(np.empty(0, np.int64)) == 0
    assert share() > 1.2 * max(map(share, others))
    assert share() > 0.8 * share(best)  # which this one batch happened to draw from


@pytest.mark.parametrize("kind", [TrainConfig, PredictConfig, PlanConfig])
def test_options_that_contradict_each_other_are_refused(kind: type[Any]) -> None:
    first = {"run": "r"} if kind is PredictConfig else {"dataset": "d"}
    with pytest.raises(ArgumentError, match="--topology-memory 1GB: for neighbours that are read"):
        kind(**first, topology="mmap", topology_memory="1GB")
    with pytest.raises(ArgumentError, match="--topology-memory many: expected a number of bytes"):
        kind(**first, topology_memory="many")


def test_options_of_a_file_are_refused_where_there_is_none() -> None:
    with pytest.raises(ArgumentError, match="--topology read: for neighbours in a file, but"):
        TrainConfig(dataset="d", full_batch=True, topology="read")
    with pytest.raises(ArgumentError, match="--sampler gpu: maps the neighbours, but"):
        TrainConfig(dataset="d", sampler="gpu", device="simt", topology="read")
    with pytest.raises(ArgumentError, match="--topology-memory 1GB: for neighbours in a file"):
        TopologyOptions(topology_memory="1GB").check_without_file("cora has its in memory")


def test_a_mapping_that_is_read_again_and_again_is_told_of_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = gnnsys.open_dataset(folder).graph().file
    faults = iter(range(0, 1 << 20, 100_000))
    monkeypatch.setattr(topology, "_major_faults", lambda: next(faults))
    with process_budget().run(1):
        watch = MappingWatch(file)
        notes = [note for _ in range(40) if (note := watch.look())]
    assert len(notes) == 1
    assert "6,250 pages a batch" in notes[0]
    assert "--topology read" in notes[0]
    with process_budget().run(None):  # it fits: first reads of a cold file
        assert not any(MappingWatch(file).look() for _ in range(40))
    assert MappingWatch(None).look() is None


def test_a_large_graph_is_read_where_a_few_batches_are_drawn(folder: Path) -> None:
    dataset = gnnsys.open_dataset(folder)
    assert graph_to_sample(dataset).file.mode == "mmap"
    with process_budget().run(1):
        assert graph_to_sample(dataset).file.mode == "read"

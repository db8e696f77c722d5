"""``gnnsys report`` of clustering runs."""

from __future__ import annotations

import base64
import json
import re
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gnnsys.clustering.runs import run_clustering
from gnnsys.commands.cli import main
from gnnsys.config.cluster import ClusterConfig
from gnnsys.config.train import TrainConfig
from gnnsys.generate import generate_community
from gnnsys.pages import numbers
from gnnsys.training.loop import run_training

sys.path.insert(0, str(Path(__file__).parent))
from run_folders import Page

_OPTIONS: dict[str, Any] = {
    "hidden": (8,), "dim": 3, "pretrain_epochs": 2, "warm_epochs": 2, "epochs": 4, "seeds": 3
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a graph, a run over it with a picture, and one over sampled batches."""
    folder = tmp_path_factory.mktemp("runs")
    graph = generate_community(folder / "g", nodes=300, classes=3, features=6, degree=5, signal=2.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    options = {"dataset": str(graph), **_OPTIONS}
    run_clustering(ClusterConfig(**options, out=str(folder / "a"), plot=str(folder / "a.png")))
    options |= {"select": "modularity", "batch_size": 100, "fanout": 3}
    run_clustering(ClusterConfig(**options, out=str(folder / "b")))
    torch.set_num_threads(threads)
    return folder


def page_of(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> Page:
    assert main(["report", str(folder), *more]) == 0
    path = Path(capsys.readouterr().out.strip())
    return Page(path.read_text(encoding="utf-8"))


def result_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def test_the_page_tells_what_the_result_tells(runs: Path, capsys) -> None:
    result = result_of(runs / "a")
    page = page_of(runs / "a", capsys)
    assert page.title == "3 clusters of community: done"
    assert "300 nodes" in page.text
    table = page.table("of the clusters")
    for name, title in (("acc", "Accuracy"), ("nmi", "NMI"), ("ari", "ARI"), ("f1", "Macro F1")):
        for place, which in enumerate(("selected", "last")):
            told = result["summary"][which][name]
            expected = f"{numbers.metric(told['mean'])} ± {numbers.metric(told['std'])}"
            assert table[title][place] == expected
    losses = [seed["selected"]["loss"] for seed in result["seeds"]]
    mean, deviation = statistics.mean(losses), statistics.stdev(losses)
    assert table["Loss"][0] == f"{numbers.metric(mean)} ± {numbers.metric(deviation)}"
    seeds = page.table("seed")
    for seed in result["seeds"]:
        assert seeds[str(seed["seed"])][0] == f"{seed['selected']['epoch']} of 4"
    sizes = page.table("cluster")
    assignments = np.load(runs / "a" / "assignments.npy")
    counts = np.bincount(assignments, minlength=3).tolist()
    assert [int(sizes[str(cluster)][0]) for cluster in range(3)] == counts
    options = page.table("dataset")
    assert options["hidden"] == ["8"]
    assert "command" not in options


def test_each_part_and_metric_has_a_curve_with_its_selected_epoch(runs: Path, capsys) -> None:
    common = ["Loss", "Contrastive loss", "Clustering loss"]
    scores = ["Accuracy", "NMI", "ARI", "Macro F1"]
    for run, titles in (("a", common + scores), ("b", [*common, "Modularity", *scores])):
        page = page_of(runs / run, capsys)
        drawn = [value for name, value in page.attributes if name == "aria-label"]
        assert drawn[1 if "Notes" in drawn[0] else 0 :] == [
            f"{title} over epochs, of seed 0, seed 1, seed 2" for title in titles
        ]
        assert page.text.count("selected epoch") >= len(titles)
        assert not re.search(r"(?:src|href)=\"(?!data:|#)", page.html)


def test_the_picture_is_the_one_of_the_run(runs: Path, capsys) -> None:
    page = page_of(runs / "a", capsys)
    (source,) = [value for name, value in page.attributes if name == "src"]
    kind, _, data = source.partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == (runs / "a.png").read_bytes()
    assert page_of(runs / "b", capsys).tags["img"] == 0


def test_a_run_that_goes_on_is_shown_so_far(runs: Path, tmp_path: Path, capsys) -> None:
    lines = (runs / "a" / "metrics.jsonl").read_text().splitlines(keepends=True)
    for count in range(1, len(lines)):
        run = tmp_path / str(count)
        run.mkdir()
        (run / "metrics.jsonl").write_text("".join(lines[:count]) + lines[count][:7])
        if count > 9 and count % 3:
            continue
        page = page_of(run, capsys)
        assert page.title == "3 clusters of community: not ended"
        assert "This run has not ended" in page.text
        assert "its last line was cut off" in page.text
        epochs = [json.loads(line) for line in lines[:count] if '"kind": "epoch"' in line]
        assert ("No epochs yet" in page.text) == (not epochs)
        if epochs:
            told = page.table("seed")[str(epochs[-1]["seed"])]
            assert told[0] == f"{epochs[-1]['selected']} of {epochs[-1]['epoch']}"
            selected = epochs[epochs[-1]["selected"] - epochs[-1]["epoch"] - 1]
            assert told[1] == numbers.metric(selected["loss"])


def test_a_run_that_was_resumed_says_so(runs: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "more"
    shutil.copytree(runs / "a", run)
    assert main(["cluster", "--resume", str(run), "--seeds", "4"]) == 0
    capsys.readouterr()
    page = page_of(run, capsys)
    assert "Resumed from a checkpoint once." in page.text
    assert len(page.table("seed")) == 5


def test_clustering_runs_are_compared(runs: Path, tmp_path: Path, capsys) -> None:
    folders = [str(runs / "a"), str(runs / "b")]
    page = page_of(runs / "a", capsys, str(runs / "b"), "--out", str(tmp_path / "c.html"))
    assert page.title == "2 clustering runs compared"
    table = page.table("run")
    head = table["run"]
    for name in ("a", "b"):
        told = result_of(runs / name)["summary"]["selected"]["nmi"]
        expected = f"{numbers.metric(told['mean'])} ± {numbers.metric(told['std'])}"
        assert table[name][head.index("NMI")] == expected
    assert page.table("option")["batch_size"] == ["—", "100"]
    assert main(["report", *folders, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for told, name in zip(found["runs"], ("a", "b"), strict=True):
        result = result_of(runs / name)
        for which in ("selected", "last"):
            for metric, each in result["summary"][which].items():
                assert told["summary"][which][metric] == pytest.approx(each)
        assert [seed["sizes"] for seed in told["seeds"]] == [s["sizes"] for s in result["seeds"]]
    assert set(found["options"]["differ"]) >= {"batch_size", "select", "fanout"}


def test_runs_of_both_commands_and_damaged_files_are_one_line(
    runs: Path, tmp_path: Path, capsys
) -> None:
    trained = str(tmp_path / "trained")
    run_training(TrainConfig(dataset=str(runs / "g"), epochs=1, fanouts=(2, 2), out=trained))
    for more in ([], ["--json"]):
        assert main(["report", str(runs / "a"), trained, *more]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "a: of gnnsys cluster, which cannot be compared with runs of gnnsys train" in line
    run = tmp_path / "damaged"
    shutil.copytree(runs / "a", run)
    (run / "embedding.png").write_bytes(b"no picture")
    assert main(["report", str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{run / 'embedding.png'}: not a PNG picture" in line
    records = run / "metrics.jsonl"
    text = records.read_text()
    records.write_text(text.replace('"selected": 0', '"selected": "x"', 1))
    assert main(["report", str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "selected is 'x', expected an integer" in line

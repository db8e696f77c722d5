"""gnnsys score on heterogeneous folders: what is stored is counted on the graph without types."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gnnsys
from gnnsys.commands.cli import main
from gnnsys.config.train import TrainConfig
from gnnsys.dataset.importance import store_score
from gnnsys.errors import ArgumentError
from gnnsys.features.importance import importance_of_types
from gnnsys.training.datasets import load_dataset
from gnnsys.training.loop import run_training

sys.path.insert(0, str(Path(__file__).parent))
from typed_graphs import AUTHORS, PAPERS, VENUES, make_typed, requests, write_twins, write_typed

pytestmark = pytest.mark.usefixtures("one_thread")

NODES = AUTHORS + PAPERS + VENUES
SAMPLING = ["--fanouts", "3,2", "--batch-size", "16", "--batches", "7", "--seed", "4"]


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_typed(tmp_path_factory.mktemp("g") / "g")


@pytest.fixture
def folder(_made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(_made, tmp_path / "g"))


def union_edges() -> NDArray[np.int64]:
    """(2, edges) of the graph in which all nodes, of the types one after another, are of one."""
    return make_typed().to_homogeneous(add_node_type=False).edge_index.numpy()


def degrees() -> NDArray[np.int64]:
    return np.bincount(union_edges()[0], minlength=NODES)[: AUTHORS + PAPERS]


def walked() -> NDArray[np.float64]:
    """Reverse PageRank by a dense matrix."""
    sources, targets = union_edges()
    walk = np.zeros((NODES, NODES))
    np.add.at(walk, (sources, targets), 1.0)
    into = walk.sum(axis=0)
    walk = np.where(into > 0, walk / np.maximum(into, 1), 1 / NODES)
    rank = np.full(NODES, 1 / NODES)
    for _ in range(20):
        rank = 0.85 * walk @ rank + 0.15 / NODES
    return rank[: AUTHORS + PAPERS]


def asked_for(folder: Path) -> NDArray[np.int64]:
    """In how many of the first 7 batches of the loader each row is."""
    counts, begins = np.zeros(AUTHORS + PAPERS, np.int64), {"author": 0, "paper": AUTHORS}
    for batch in requests(folder, "author", [3, 2], 16, seed=4)[:7]:
        for kind, begin in begins.items():
            counts[begin + batch[kind]] += 1
    return counts


def dense_ranks(ordered: list[Any]) -> list[int]:
    different = {value: place for place, value in enumerate(sorted(set(ordered)))}
    return [different[value] * 65535 // (len(different) - 1) for value in ordered]


def stored(folder: Path) -> NDArray[np.uint16]:
    dataset = gnnsys.open_dataset(folder)
    dataset.verify()
    assert dataset.static_score("venue") is None
    found = [dataset.static_score(kind) for kind in ("author", "paper")]
    return np.concatenate([each[1] for each in found if each is not None])


@pytest.mark.parametrize("kind", ["degree", "pagerank", "presample"])
def test_what_is_stored_are_ranks_over_the_rows_of_all_types(
    folder: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {*folder.rglob("*")}
    assert main(["score", str(folder), "--score", kind, "--json", *SAMPLING]) == 0
    facts = json.loads(capsys.readouterr().out)
    wanted: NDArray[Any]
    wanted = (
        degrees() if kind == "degree" else walked() if kind == "pagerank" else asked_for(folder)
    )
    if kind == "pagerank":
        found = importance_of_types("pagerank", gnnsys.open_dataset(folder))
        values = np.concatenate([*found.values()])
        np.testing.assert_allclose(values, wanted, rtol=1e-12)
        assert stored(folder).tolist() == dense_ranks(values.tolist())
    elif kind == "presample":
        pairs = zip(wanted.tolist(), degrees().tolist(), strict=True)
        assert stored(folder).tolist() == dense_ranks([*pairs])
    else:
        assert stored(folder).tolist() == dense_ranks(wanted.tolist())
    assert gnnsys.open_dataset(folder).score_kind() == kind
    assert (facts["nodes"], facts["zero"]) == (AUTHORS + PAPERS, (wanted == 0).sum())
    assert facts["types"]["paper"]["share"] == pytest.approx(wanted[AUTHORS:].sum() / wanted.sum())
    assert {Path(each["file"]) for each in facts["types"].values()} == {*folder.rglob("*")} - before
    assert facts.get("target") == ("author" if kind == "presample" else None)


def test_a_folder_of_one_type_has_the_importance_of_the_homogeneous_one(tmp_path: Path) -> None:
    folders = write_twins(tmp_path)
    for kind in ("degree", "pagerank", "presample"):
        scores = []
        for folder, node_type in zip(folders, ("node", "paper"), strict=True):
            assert main(["score", str(folder), "--score", kind, *SAMPLING]) == 0
            found = gnnsys.open_dataset(folder).static_score(node_type)
            assert found is not None
            scores.append(found[1].tolist())
        assert scores[0] == scores[1]


def test_a_new_importance_replaces_that_of_all_types_and_no_run_notices(folder: Path) -> None:
    text, files = (folder / "graph.json").read_text(), {*folder.rglob("*")}
    digest = load_dataset(str(folder), device="cpu").digest
    for kind in ("degree", "pagerank", "degree"):
        assert main(["score", str(folder), "--score", kind]) == 0
        assert len({*folder.rglob("*")} - files) == 2
        assert load_dataset(str(folder), device="cpu").digest == digest
    store_score(folder, {}, "degree")
    assert gnnsys.open_dataset(folder).score_kind() is None
    assert {*folder.rglob("*")} == files
    assert json.loads((folder / "graph.json").read_text())["nodes"] == json.loads(text)["nodes"]
    with pytest.raises(ArgumentError, match=r"shape \(3,\) of 'paper', expected \(100,\)"):
        store_score(folder, {"paper": np.zeros(3, np.uint16)}, "degree")
    with pytest.raises(ArgumentError, match=r"of 'shop', but the node types of .* are author, "):
        store_score(folder, {"shop": np.zeros(3, np.uint16)}, "degree")


def test_training_reads_what_is_stored_and_computes_what_is_not(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="gnnsys.features.setup")

    def losses(score: Any, cache: str = "25%") -> list[float]:
        caplog.clear()
        config = TrainConfig(
            dataset=str(folder), model="rgcn", epochs=1, batch_size=16, hidden=8, fanouts=(3, 2),
            device="cpu", cache=cache, score=score, storage="pread" if cache != "none" else "mmap",
        )  # fmt: skip
        return [record.loss for record in run_training(config).history]

    expected = losses("auto", "none")
    assert losses("auto") == expected
    assert "--score auto: computed in" in caplog.text
    for kind in ("presample", "pagerank"):
        assert losses(kind) == expected
        assert f"--score {kind}: computed in" in caplog.text
        assert ("--score presample --target author stores" in caplog.text) == (kind == "presample")
        assert main(["score", str(folder), "--score", kind, *SAMPLING]) == 0
        for choice in ("auto", kind):
            assert losses(choice) == expected
            assert "computed" not in caplog.text


def test_batches_around_another_type_are_sampled_where_it_is_the_target(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["score", str(folder), "--target", "paper", "--fanouts", "1", "--batches", "3"]) == 0
    )
    assert "all nodes of type paper, for no training" in capsys.readouterr().out
    assert main(["info", str(folder)]) == 0
    assert "presample, target paper" in " ".join(capsys.readouterr().out.split())


def test_what_types_cannot_be_scored_is_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_typed()
    del data["author"].y
    unnamed = write_typed(tmp_path / "unnamed", data)
    for arguments, message in (
        ([str(folder), "--target", "editor"], "expected one of author, paper, venue"),
        ([str(unnamed)], "give --target, one of author, paper, venue"),
    ):
        assert main(["score", *arguments]) == 2
        assert message in " ".join(capsys.readouterr().err.split())

"""gnnsys score: the stored table is what the functions compute, and the folder stays whole."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gnnsys.commands.cli import main
from gnnsys.config.score import ScoreConfig
from gnnsys.dataset.folder import open_dataset
from gnnsys.dataset.format import NODE_TYPE, read_manifest
from gnnsys.dataset.importance import store_score, without_score
from gnnsys.dataset.writer import DatasetWriter, cut_rows
from gnnsys.errors import ArgumentError, StorageError
from gnnsys.features.importance import importance
from gnnsys.generate import generate_rmat
from gnnsys.training.datasets import load_dataset


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("g") / "g"
    return generate_rmat(path, scale=9, features=4, classes=3, train=0.5, val=0.2, threads=1)


@pytest.fixture
def folder(_made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(_made, tmp_path / "g"))


@pytest.fixture
def typed(tmp_path: Path) -> Path:
    """A heterogeneous dataset without edges."""
    with DatasetWriter(tmp_path / "typed", name="typed", heterogeneous=True) as writer:
        for node_type in ("a", "b"):
            writer.add_nodes(3, node_type)
        return writer.commit()


@pytest.mark.parametrize("kind", ["degree", "pagerank", "presample"])
def test_the_score_that_is_stored_is_the_ranks_of_what_is_computed(
    folder: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["score", str(folder), "--score", kind, "--json", "--threads", "1"]
    command += ["--fanouts", "4,3", "--batch-size", "50", "--batches", "9", "--seed", "3"]
    assert main(command) == 0
    facts = json.loads(capsys.readouterr().out)
    dataset = open_dataset(folder)
    dataset.verify()
    found_kind, scores = dataset.static_score() or ("", np.empty(0))
    options = {"seeds": dataset.split("train"), "fanouts": [4, 3], "batch_size": 50}
    values = importance(kind, dataset.graph(), **options, batches=9, seed=3)
    assert found_kind == kind == facts["score"]
    ties = np.bincount(dataset.graph().indices, minlength=512)
    ordered = [*zip(values, ties, strict=True)] if kind == "presample" else [*values]
    different = {value: place for place, value in enumerate(sorted(set(ordered)))}
    last = len(different) - 1
    assert scores.tolist() == [different[value] * 65535 // last for value in ordered]
    assert facts["nodes"] == len(scores) == 512
    assert facts["zero"] == (values == 0).sum()
    top = np.sort(values)[::-1][:51].sum() / values.sum()  # 10 % of 512
    assert facts["top"]["0.1"] == pytest.approx(top)
    assert Path(facts["file"]).is_file()
    assert ("fanouts" in facts) == (kind == "presample")


def test_a_new_score_replaces_the_old_one_and_its_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {place.name for place in folder.iterdir()}
    for kind in ("degree", "pagerank", "degree"):
        assert main(["score", str(folder), "--score", kind]) == 0
        assert (open_dataset(folder).static_score() or [""])[0] == kind
        assert len({place.name for place in folder.iterdir()} - before) == 1
    assert main(["info", str(folder), "--verify"]) == 0
    out = capsys.readouterr().out
    assert "importance" in out
    assert "static_score.npy" in out


def test_a_score_changes_neither_the_training_data_nor_whether_a_run_fits(folder: Path) -> None:
    text = (folder / "graph.json").read_text()
    assert without_score(read_manifest(folder)).to_json() == text
    digest = load_dataset(str(folder)).digest
    assert digest.endswith(f"{zlib.crc32(text.encode()):08x}")
    store_score(folder, {NODE_TYPE: np.arange(512, dtype=np.uint16)}, "degree")
    assert (folder / "graph.json").read_text() != text
    assert without_score(read_manifest(folder)).to_json() == text
    assert load_dataset(str(folder)).digest == digest


def test_a_kill_before_the_end_leaves_the_old_score(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gnnsys.dataset import importance as folder_scores

    first, second = (np.full(512, value, np.uint16) for value in (1, 2))
    store_score(folder, {NODE_TYPE: first}, "degree")

    class Killed(BaseException):
        pass

    def die_at_the_manifest(path: Path, data: bytes) -> None:
        if path.name == "graph.json":
            raise Killed
        original(path, data)

    original = folder_scores.replace_file
    with monkeypatch.context() as patch:
        patch.setattr(folder_scores, "replace_file", die_at_the_manifest)
        with pytest.raises(Killed):
            store_score(folder, {NODE_TYPE: second}, "pagerank")
    dataset = open_dataset(folder)
    dataset.verify()
    kind, scores = dataset.static_score() or ("", first)
    assert kind == "degree"
    assert (scores == 1).all()
    store_score(folder, {NODE_TYPE: second}, "pagerank")
    open_dataset(folder).verify()
    assert len([*folder.glob("static_score*")]) == 1


def test_a_folder_without_a_score_says_so(folder: Path, typed: Path) -> None:
    assert open_dataset(folder).static_score() is None
    assert open_dataset(typed).static_score() is None


def test_what_cannot_be_scored_is_told(
    folder: Path, typed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [
        ([str(tmp_path / "none")], "no such file"),
        ([str(typed)], "no node type has features"),
    ]
    for arguments, message in cases:
        assert main(["score", *arguments]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ArgumentError, match=r"shape \(3,\), expected \(512,\)"):
        store_score(folder, {NODE_TYPE: np.zeros(3, np.uint16)}, "degree")
    assert open_dataset(folder).static_score() is None


def test_all_nodes_are_seeds_where_no_training_nodes_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with DatasetWriter(tmp_path / "bare", name="bare") as writer:
        writer.add_nodes(2)
        writer.add_edges(1)
        writer.write_edges("indptr", cut_rows(np.array([0, 1, 1])), (3,), "int64")
        writer.write_edges("indices", cut_rows(np.array([1], np.int32)), (1,), "int32")
        bare = writer.commit()
    assert main(["score", str(bare), "--batch-size", "1", "--batches", "4"]) == 0
    assert "all nodes, for no training nodes" in capsys.readouterr().out
    found = open_dataset(bare).static_score()
    assert found is not None
    # Node 1 is in both batches of each epoch: as a neighbour of node 0, and by itself.
    assert found[1].tolist() == [0, 65535]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fanouts": ("3,x",)}, "--fanouts 3,x: expected numbers"),
        ({"fanouts": ("3", "0")}, "--fanouts 3,0: each is -1"),
        ({"batches": 0}, "--batches 0: expected at least 1"),
        ({"batch_size": 0}, "--batch-size 0: expected at least 1"),
        ({"threads": -1}, "--threads -1: expected at least 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ScoreConfig(dataset="g", **options)


def test_a_file_in_the_way_is_named(folder: Path) -> None:
    (folder / "static_score.npy").mkdir()
    with pytest.raises(StorageError, match=r"static_score\.npy: cannot be written"):
        store_score(folder, {NODE_TYPE: np.zeros(512, np.uint16)}, "degree")
    assert open_dataset(folder).static_score() is None


def test_the_exported_dataset_has_no_score_as_a_feature(folder: Path, tmp_path: Path) -> None:
    store_score(folder, {NODE_TYPE: np.zeros(512, np.uint16)}, "degree")
    exported = tmp_path / "graphbolt"
    assert main(["convert", str(folder), str(exported), "--to", "graphbolt"]) == 0
    assert "static_score" not in (exported / "metadata.yaml").read_text()


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["score", "--help"])
    assert "gnnsys score my-graph --fanouts 15,10,5" in capsys.readouterr().out

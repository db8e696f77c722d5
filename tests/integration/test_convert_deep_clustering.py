"""Graphs of the deep clustering literature: real folders, and damaged ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse

from gnnsys.convert.common import ConvertOptions
from gnnsys.convert.deep_clustering import convert_deep_clustering, is_deep_clustering
from gnnsys.dataset.format import EDGE_TYPE, NODE_TYPE, read_manifest
from gnnsys.errors import ArgumentError, FileFormatError, GnnsysError, MissingFileError

OPTIONS = ConvertOptions(threads=1)
# Of PROVENANCE.txt: nodes, features, classes; edges there are of one direction, except for usps.
REAL = {
    "acm": (3025, 1870, 3, 2 * 13128),
    "dblp": (4057, 334, 4, 2 * 3528),
    "usps": (9298, 256, 10, None),
}


def edges_of(path: Path) -> set[tuple[int, int]]:
    indptr, indices = np.load(path / "indptr.npy"), np.load(path / "indices.npy")
    target = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    pairs = list(zip(indices.tolist(), target.tolist(), strict=True))
    assert len(pairs) == len(set(pairs)), "an edge is there twice"
    return set(pairs)


@pytest.mark.parametrize("name", REAL)
def test_real_folders(name: str, real_graphs: Path, tmp_path: Path) -> None:
    source = real_graphs / "DeepClustering" / name
    assert is_deep_clustering(source)
    path = convert_deep_clustering(source, tmp_path / "out", OPTIONS)
    manifest = read_manifest(path)
    nodes, width, classes, edges = REAL[name]
    assert manifest.name == name
    assert manifest.nodes[NODE_TYPE].tables.keys() == {"features", "labels"}
    features = np.load(path / "features.npy")
    assert features.shape == (nodes, width)
    if name == "usps":
        with np.load(source / "usps_feat.npz") as archive:
            expected = (archive["x"] / 2000).astype(np.float32)
    else:
        expected = scipy.sparse.load_npz(source / f"{name}_feat.npz").toarray().astype(np.float32)
    np.testing.assert_array_equal(features, expected)
    labels = np.loadtxt(source / f"{name}_label.txt", dtype=np.int64)
    np.testing.assert_array_equal(np.load(path / "labels.npy"), labels)
    assert manifest.task is not None
    assert manifest.task.num_classes == classes
    lines = np.loadtxt(next(source.glob("*_graph.txt")), dtype=np.int64).tolist()
    found = edges_of(path)
    assert found == {(s, t) for s, t in lines} | {(t, s) for s, t in lines}
    assert edges in (None, len(found))


def make(folder: Path) -> Path:
    folder.mkdir()
    rows = scipy.sparse.csr_matrix(np.array([[1, 0, 2], [0, 0, 0], [0, 3, 0], [4, 0, 0.5]]))
    scipy.sparse.save_npz(folder / "toy_feat.npz", rows)
    (folder / "toy_label.txt").write_text("0\n1\n1\n0\n")
    (folder / "toy_graph.txt").write_text("0 1\n1 0\n2 3\n3 3\n2 3\n")
    return folder


def test_edges_go_both_ways_once_and_self_loops_stay(tmp_path: Path) -> None:
    path = convert_deep_clustering(make(tmp_path / "toy"), tmp_path / "out", OPTIONS)
    assert edges_of(path) == {(0, 1), (1, 0), (2, 3), (3, 2), (3, 3)}
    assert read_manifest(path).edges[EDGE_TYPE].count == 5
    np.testing.assert_array_equal(np.load(path / "features.npy")[3], [4, 0, 0.5])


def test_blocks_of_rows_make_the_same_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "toy")
    whole = convert_deep_clustering(folder, tmp_path / "whole", OPTIONS)
    monkeypatch.setattr("gnnsys.convert.deep_clustering._ROWS", 3)
    parts = convert_deep_clustering(folder, tmp_path / "parts", OPTIONS)
    assert (whole / "features.npy").read_bytes() == (parts / "features.npy").read_bytes()


def test_one_of_several_graphs(tmp_path: Path) -> None:
    folder = make(tmp_path / "toy")
    (folder / "toy3_graph.txt").write_text("0 3\n")
    with pytest.raises(ArgumentError, match=r"toy3_graph.txt, toy_graph.txt; say which"):
        convert_deep_clustering(folder, tmp_path / "out", OPTIONS)
    path = convert_deep_clustering(folder, tmp_path / "out", OPTIONS, graph="toy3_graph.txt")
    assert edges_of(path) == {(0, 3), (3, 0)}


def save_features(folder: Path, **changes: Any) -> None:
    with np.load(folder / "toy_feat.npz") as archive:
        arrays = {name: archive[name] for name in archive.files} | changes
    np.savez(folder / "toy_feat.npz", **{k: v for k, v in arrays.items() if v is not None})


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-60])


DAMAGE: dict[str, tuple[Callable[[Path], Any], type[GnnsysError], str]] = {
    "no graph": (lambda f: (f / "toy_graph.txt").unlink(), MissingFileError, "toy_graph.txt: no"),
    "no labels": (lambda f: (f / "toy_label.txt").unlink(), MissingFileError, "toy_label.txt: no"),
    "no features": (
        lambda f: (f / "toy_feat.npz").unlink(),
        MissingFileError,
        "none; ",
    ),
    "cut features": (
        lambda f: cut(f / "toy_feat.npz"),
        FileFormatError,
        "feat.npz: not a whole",
    ),
    "no indptr": (lambda f: save_features(f, indptr=None), FileFormatError, "'indptr"),
    "wrong indptr": (
        lambda f: save_features(f, indptr=np.array([0, 9, 2, 3, 5])),
        FileFormatError,
        "not a matrix of rows",
    ),
    "column outside": (
        lambda f: save_features(f, indices=np.array([0, 2, 1, 0, 3])),
        FileFormatError,
        "not a matrix of rows",
    ),
    "other format": (
        lambda f: save_features(f, format=np.array(b"csc")),
        FileFormatError,
        "expected scipy.sparse CSR",
    ),
    "labels too few": (
        lambda f: (f / "toy_label.txt").write_text("0\n1\n"),
        FileFormatError,
        "2 labels != 4 nodes",
    ),
    "edge outside": (
        lambda f: (f / "toy_graph.txt").write_text("0 1\n0 4\n"),
        FileFormatError,
        r"edge 1 is \[0, 4\], outside the nodes \[0, 4\)",
    ),
    "text": (
        lambda f: (f / "toy_graph.txt").write_text("0 1\na b\n"),
        FileFormatError,
        "toy_graph.txt: not lines of whole numbers",
    ),
    "binary": (
        lambda f: (f / "toy_label.txt").write_bytes(b"\xff\xfe\x00"),
        FileFormatError,
        "toy_label.txt: not lines of whole numbers",
    ),
    "three columns": (
        lambda f: (f / "toy_graph.txt").write_text("0 1 2\n"),
        FileFormatError,
        "3 numbers a line, expected 2",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_folders_are_one_error_and_leave_nothing(what: str, tmp_path: Path) -> None:
    damage, error, message = DAMAGE[what]
    damage(make(tmp_path / "toy"))
    with pytest.raises(error, match=message):
        convert_deep_clustering(tmp_path / "toy", tmp_path / "out", OPTIONS)
    assert [place.name for place in tmp_path.iterdir()] == ["toy"]


def test_other_folders_are_not_taken_for_one(tmp_path: Path) -> None:
    folder = make(tmp_path / "toy")
    assert is_deep_clustering(folder)
    assert not is_deep_clustering(tmp_path)
    assert not is_deep_clustering(folder / "toy_graph.txt")
    shutil.copy(folder / "toy_feat.npz", folder / "more_feat.npz")
    assert not is_deep_clustering(folder)

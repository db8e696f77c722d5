"""Generated folders: what is in them, that it is the same every time, and what it takes to make."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from numpy.typing import NDArray
from scipy import stats
from sklearn.linear_model import LogisticRegression

from gnnsys.dataset.format import read_manifest
from gnnsys.errors import ArgumentError
from gnnsys.generate import blocks, community, generate_community, generate_rmat, rmat
from gnnsys.generate.rmat import _alias_table
from gnnsys.rng import stream_key
from gnnsys.system.extension import core

RMAT = {"scale": 10, "edge_factor": 16, "features": 8, "classes": 5, "seed": 3}
COMMUNITY = {"nodes": 3001, "classes": 7, "degree": 9, "features": 20, "seed": 3}
BOTH = pytest.mark.parametrize(
    ("write", "options"), [(generate_rmat, RMAT), (generate_community, COMMUNITY)]
)


def table(folder: Path, name: str) -> NDArray[Any]:
    return np.load(folder / f"{name}.npy", mmap_mode="r")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def ends_of(folder: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sources and targets, in the order of the CSC."""
    degrees = np.diff(table(folder, "indptr"))
    return np.asarray(table(folder, "indices"), np.int64), np.repeat(
        np.arange(len(degrees)), degrees
    )


def check_csc(folder: Path, source: NDArray[Any], target: NDArray[Any], num_nodes: int) -> None:
    # scipy adds edges that repeat up to one, whose value then is their number.
    matrix = scipy.sparse.coo_matrix(
        (np.ones(len(source), np.int64), (source, target)), (num_nodes, num_nodes)
    ).tocsc()
    matrix.sort_indices()
    starts = np.concatenate([[0], np.cumsum(matrix.data)])
    assert np.array_equal(table(folder, "indptr"), starts[matrix.indptr])
    assert np.array_equal(table(folder, "indices"), np.repeat(matrix.indices, matrix.data))


# R-MAT --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("undirected", [False, True])
@pytest.mark.parametrize("memory", [1 << 20, 1 << 30])
def test_rmat_folder_is_the_csc_of_its_edges(tmp_path, undirected, memory):
    folder = generate_rmat(
        tmp_path / "g", scale=13, seed=7, features=0, undirected=undirected, memory=memory
    )
    edge_key, id_key = (stream_key(7, stream, 0, 2**64 - 2) for stream in (0, 1))
    alias = _alias_table(0.57, 0.19, 0.19)
    source, target = np.empty((2, 16 << 13), np.int32)
    core.draw_rmat_edges(edge_key, id_key, 13, alias, 0, source, target, 1)
    if undirected:
        kept = source != target
        source, target = np.r_[source, target[kept]], np.r_[target, source[kept]]
    check_csc(folder, source, target, 1 << 13)
    assert table(folder, "indices").dtype == np.int32
    assert sorted(content(folder)) == ["graph.json", "indices.npy", "indptr.npy"]
    manifest = read_manifest(folder)
    assert manifest.task is None
    assert manifest.edges["node", "to", "node"].count == len(source)


def test_rmat_features_are_standard_normal_and_labels_uniform(tmp_path):
    folder = generate_rmat(tmp_path / "g", scale=16, edge_factor=1, features=10, classes=6)
    features, labels = table(folder, "features"), table(folder, "labels")
    assert features.shape == (1 << 16, 10)
    assert features.dtype == np.float32
    assert stats.kstest(np.asarray(features[::3]).reshape(-1), "norm").pvalue > 1e-3
    assert len(np.unique(features[:, 0])) > 0.99 * len(features)
    assert labels.shape == (1 << 16,)
    assert stats.chisquare(np.bincount(labels, minlength=6)).pvalue > 1e-3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_features_are_stored_in_the_type_asked_for(tmp_path, dtype):
    exact = table(generate_rmat(tmp_path / "exact", scale=6, features=32), "features")
    folder = generate_rmat(tmp_path / "short", scale=6, features=32, dtype=dtype)
    stored = np.array(table(folder, "features"))
    if dtype == "bfloat16":
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    assert np.allclose(stored, exact, rtol=2**-8, atol=1e-6)
    assert read_manifest(folder).nodes["node"].tables["features"].encoding.dtype == dtype


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_the_smallest_graphs_are_graphs(tmp_path, scale):
    folder = generate_rmat(tmp_path / "g", scale=scale, edge_factor=1, features=1, classes=1)
    assert table(folder, "indptr")[-1] == 1 << scale
    splits = np.concatenate([table(folder, name) for name in ("train", "val", "test")])
    assert sorted(splits.tolist()) == list(range(1 << scale))


# Communities --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def communities(tmp_path_factory):
    """10,000 nodes with all other options as they come."""
    return generate_community(tmp_path_factory.mktemp("community") / "g", nodes=10_000)


@pytest.mark.parametrize("within", [0.0, 0.65, 1.0])
def test_edges_stay_within_a_community_as_often_as_asked(tmp_path, within):
    folder = generate_community(
        tmp_path / "g", nodes=30_007, classes=7, within=within, features=1, seed=5
    )
    labels = table(folder, "labels")
    source, target = ends_of(folder)
    inside = int((labels[source] == labels[target]).sum())
    # Communities differ by a node at most: by chance an edge stays inside in 1 of 7 cases.
    expected = within + (1 - within) / 7
    spread = (len(source) * expected * (1 - expected)) ** 0.5
    assert abs(inside - len(source) * expected) <= 4 * spread


def test_every_node_has_its_in_neighbours_and_any_node_is_one(communities):
    assert (np.diff(table(communities, "indptr")) == 16).all()
    source, _ = ends_of(communities)
    times = np.bincount(source, minlength=10_000)
    # Those of the uniform and of the community's draws together are binomial.
    assert abs(times.var() / times.mean() - 1) < 0.06
    quarters = np.bincount(source // 2500, minlength=4)
    assert stats.chisquare(quarters).pvalue > 1e-3


def test_communities_are_of_one_size_and_spread_over_the_ids(tmp_path):
    folder = generate_community(tmp_path / "g", **COMMUNITY)
    labels = np.array(table(folder, "labels"))
    sizes = np.bincount(labels, minlength=7)
    assert sizes.max() - sizes.min() <= 1
    assert stats.chisquare(np.bincount(labels[:1500], minlength=7)).pvalue > 1e-3
    # As often as by chance, the next node is of the same community.
    same = (labels[1:] == labels[:-1]).sum()
    assert stats.binomtest(int(same), 3000, 1 / 7).pvalue > 1e-3


def test_labels_are_in_the_neighbours_and_hardly_in_the_features(communities):
    features, labels = np.array(table(communities, "features")), table(communities, "labels")
    source, target = ends_of(communities)
    mean = scipy.sparse.csr_matrix((np.full(len(source), 1 / 16), (target, source)))

    def accuracy(inputs: NDArray[Any]) -> float:
        train, test = table(communities, "train"), table(communities, "test")
        scaled = inputs / inputs.std()
        model = LogisticRegression(tol=1e-3).fit(scaled[train], labels[train])
        return model.score(scaled[test], labels[test])

    assert accuracy(features) < 0.3
    assert accuracy(mean @ features) > 0.5
    assert accuracy(mean @ (mean @ features)) > 0.9


def test_community_folder_is_sorted(communities):
    source, target = ends_of(communities)
    check_csc(communities, source, target, 10_000)


# Both ---------------------------------------------------------------------------------------------


@BOTH
def test_splits_are_the_shares_asked_for_and_a_partition(tmp_path, write, options):
    folder = write(tmp_path / "g", train=0.3, val=0.5, **options)
    labels = table(folder, "labels")
    train, val, test = (np.array(table(folder, name)) for name in ("train", "val", "test"))
    assert (len(train), len(val)) == (round(0.3 * len(labels)), round(0.5 * len(labels)))
    assert np.array_equal(np.sort(np.r_[train, val, test]), np.arange(len(labels)))
    assert stats.kstest(train / len(labels), "uniform").pvalue > 1e-3
    assert stats.chisquare(*_label_shares(labels, train)).pvalue > 1e-3


@BOTH
def test_a_share_for_the_test_leaves_the_other_nodes_out(tmp_path, write, options):
    whole = write(tmp_path / "whole", train=0.3, val=0.5, **options)
    folder = write(tmp_path / "g", train=0.3, val=0.5, test=0.1, **options)
    nodes = len(table(folder, "labels"))
    assert read_manifest(folder).source["test"] == 0.1
    for name in ("train", "val", "test"):
        count = round({"train": 0.3, "val": 0.5, "test": 0.1}[name] * nodes)
        assert np.array_equal(table(folder, name), table(whole, name)[:count])
    with pytest.raises(ArgumentError, match=r"train \+ val \+ test is 0.3 \+ 0.5 \+ 0.4 = "):
        write(tmp_path / "more", train=0.3, val=0.5, test=0.4, **options)


def _label_shares(labels: NDArray[Any], part: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    return np.bincount(labels[part]), np.bincount(labels) * (len(part) / len(labels))


@BOTH
def test_the_folder_says_what_it_is(tmp_path, write, options):
    folder = write(tmp_path / "g", **options)
    manifest = read_manifest(folder)
    assert not manifest.heterogeneous
    assert manifest.task is not None
    assert manifest.task.num_classes == options["classes"]
    assert manifest.source["kind"] == write.__name__.removeprefix("generate_")
    assert manifest.source.items() >= options.items()
    assert manifest.source["dtype"] == "float32"
    assert manifest.nodes["node"].tables.keys() == {"features", "labels", "train", "val", "test"}


@BOTH
def test_neither_threads_nor_memory_nor_place_change_a_byte(tmp_path, monkeypatch, write, options):
    # Several blocks of each kind, so that threads can get in each other's way.
    monkeypatch.setattr(blocks, "_BLOCK_VALUES", 2000)
    monkeypatch.setattr(blocks, "_BLOCK_NODES", 100)
    monkeypatch.setattr(community, "_BLOCK_EDGES", 2000)
    expected = content(write(tmp_path / "one", threads=1, **options))
    monkeypatch.setattr(rmat, "_BLOCK_EDGES", (1000, 1000))
    assert content(write(tmp_path / "three", threads=3, **options)) == expected
    assert content(write(tmp_path / "small", threads=3, memory=1 << 20, **options)) == expected
    assert content(write(tmp_path / "again", **options)) == expected


@BOTH
@pytest.mark.parametrize("name", ["indices", "features", "labels", "train"])
def test_another_seed_gives_another_graph(tmp_path, write, options, name):
    first = table(write(tmp_path / "first", **options), name)
    other = table(write(tmp_path / "other", **{**options, "seed": 2**64 - 1}), name)
    size = min(len(first), len(other))
    assert (first[:size] == other[:size]).mean() < 0.3


@BOTH
def test_a_folder_that_exists_is_not_overwritten(tmp_path, write, options):
    before = content(write(tmp_path / "g", **options))
    with pytest.raises(ArgumentError, match="exists already"):
        write(tmp_path / "g", **options)
    assert content(tmp_path / "g") == before
    assert list(tmp_path.iterdir()) == [tmp_path / "g"]


@BOTH
def test_progress_reaches_the_end_of_every_table(tmp_path, write, options):
    last = {}
    write(
        tmp_path / "g",
        progress=lambda what, done, total: last.update({what: (done, total)}),
        **options,
    )
    for name in ("indptr", "indices", "features", "labels", "train", "val", "test"):
        assert last[name][0] == last[name][1] > 0


SHARED_FAULTS = [
    ("seed", -1),
    ("seed", 2**64),
    ("seed", 0.5),
    ("train", -0.1),
    ("train", float("nan")),
    ("val", 1.1),
    ("val", 0.9),
    ("dtype", "float64"),
    ("memory", 1000),
    ("threads", -1),
    ("features", -1),
    ("features", 2.0),
]


@pytest.mark.parametrize(
    ("write", "name", "value"),
    [
        *((generate_rmat, *fault) for fault in SHARED_FAULTS),
        *((generate_community, *fault) for fault in SHARED_FAULTS),
        (generate_rmat, "scale", 0),
        (generate_rmat, "scale", 41),
        (generate_rmat, "scale", True),
        (generate_rmat, "edge_factor", 0),
        (generate_rmat, "a", 0),
        (generate_rmat, "b", 1.5),
        (generate_rmat, "c", 0.25),
        (generate_rmat, "classes", -1),
        (generate_community, "nodes", 0),
        (generate_community, "classes", 0),
        (generate_community, "classes", 100_001),
        (generate_community, "degree", 0),
        (generate_community, "features", 0),
        (generate_community, "within", 1.01),
        (generate_community, "signal", -0.1),
        (generate_community, "signal", float("inf")),
    ],
)
def test_what_cannot_be_used_is_an_error_that_names_it(tmp_path, write, name, value):
    options = {"scale": 5} if write is generate_rmat else {}
    with pytest.raises(ArgumentError, match=rf"\b{name}\b.*{value!r}.*expected"):
        write(tmp_path / "g", **{**options, name: value})
    assert not any(tmp_path.iterdir())


# Kills and memory ---------------------------------------------------------------------------------

_KILLED = """
import os, signal, sys
import gnnsys.dataset.writer
from gnnsys.generate import *

gnnsys.dataset.writer._SAVE_BYTES = 1 << 16  # tables of this test are small
seen = set()

def progress(what, done, total):
    if what not in seen:
        seen.add(what)
        print(what, done, sep=":", flush=True)
    if what == sys.argv[2] and done:
        os.kill(os.getpid(), signal.SIGKILL)

CALL(sys.argv[1], memory=1 << 20, threads=2, progress=progress, **OPTIONS)
"""


@pytest.mark.parametrize(
    ("write", "options"),
    [
        (generate_rmat, {"scale": 14, "features": 32, "classes": 5}),
        (generate_community, {"nodes": 80_000, "features": 8}),
    ],
)
def test_a_killed_call_goes_on_to_the_same_bytes(tmp_path, write, options):
    script = _KILLED.replace("CALL", write.__name__).replace("OPTIONS", repr(options))

    def run(stage: str) -> tuple[int, dict[str, int]]:
        """The exit status, and how far each stage was when it was first told of."""
        command = [sys.executable, "-c", script, str(tmp_path / "killed"), stage]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120, cwd=tmp_path)
        firsts = (line.split(":") for line in done.stdout.splitlines())
        return done.returncode, {what: int(rows) for what, rows in firsts}

    killed: list[str] = []
    for stage in ("read edges", "count edges", "split edges", "indices", "features", "val"):
        status, firsts = run(stage)
        assert status == -signal.SIGKILL
        assert stage in firsts
        # It goes on where it was, but for the counts, which lie in memory.
        assert all(firsts[what] > 0 for what in killed if what in firsts and what != "count edges")
        assert stage in ("read edges", "count edges") or "read edges" not in firsts
        killed.append(stage)
        assert not (tmp_path / "killed").exists()
    assert run("nothing")[0] == 0
    assert content(tmp_path / "killed") == content(write(tmp_path / "whole", **options))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_killed_call_is_not_continued_with_other_options(tmp_path):
    script = _KILLED.replace("CALL", "generate_rmat").replace("OPTIONS", "dict(scale=10)")
    command = [sys.executable, "-c", script, str(tmp_path / "g"), "features"]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(ArgumentError, match="unfinished conversion"):
        generate_rmat(tmp_path / "g", scale=10, seed=1)
    generate_rmat(tmp_path / "g", scale=10)


_MEASURED = """
import sys
from gnnsys.generate import *

def peak():
    # Not getrusage: its peak is that of the process before exec, where that was greater.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))

seen = set()

def progress(what, done, total):
    seen.add(what)

before = peak()
CALL(sys.argv[1], memory=int(sys.argv[2]), progress=progress, **OPTIONS)
print(peak() - before, "split edges" in seen)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    ("write", "options"),
    [
        (generate_rmat, {"scale": 18, "edge_factor": 32, "features": 64}),
        (generate_community, {"nodes": 1 << 18, "degree": 32, "features": 64}),
    ],
)
def test_memory_is_bounded(tmp_path, write, options):
    script = _MEASURED.replace("CALL", write.__name__).replace("OPTIONS", repr(options))

    def run(memory: int) -> tuple[int, bool]:
        command = [sys.executable, "-c", script, str(tmp_path / str(memory)), str(memory)]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, timeout=120, check=True, cwd=tmp_path
        )
        growth, split = done.stdout.split()
        return int(growth), split == "True"

    # 8 Mi edges take 96 MiB to sort, the features 64 MiB. Beside the memory given there are 16
    # bytes for each of 256 Ki nodes and some blocks in hand.
    growth, split = run(32 << 20)
    assert split
    assert growth < 64 << 20
    growth, split = run(1 << 30)
    assert not split
    assert growth > 96 << 20

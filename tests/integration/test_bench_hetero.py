"""The benchmark of batches with types: it runs, and its check finds what is wrong."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

FANOUTS = [3, 2]


@pytest.fixture(scope="module")
def loading(bench):
    pytest.importorskip("numba")
    return importlib.import_module("hetero_loading")


@pytest.fixture(scope="module")
def folder(loading, tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "graph"
    loading.make_typed(path, loading.TypedSpec(scale=9, dim=loading.DIM))
    return path


@pytest.fixture(scope="module")
def graph(loading, folder):
    return loading.open_typed(folder, loading.TypedSpec(scale=9))


@pytest.fixture(scope="module")
def features(graph, folder):
    return {name: np.load(folder / f"{name}.npy") for name in graph.spec.num_nodes}


def test_graph_has_the_shape_of_dblp_and_edges_both_ways(graph):
    nodes = graph.spec.num_nodes
    assert sum(nodes.values()) == 1 << 9
    assert nodes["paper"] / nodes["author"] == pytest.approx(14328 / 4057, rel=0.02)
    for (source, relation, target), (indptr, indices) in graph.relations.items():
        assert len(indptr) == nodes[target] + 1
        assert len(indices) == indptr[-1] == graph.spec.num_edges[source, relation, target]
        assert indices.max() < nodes[source]
        pairs = np.stack([indices, np.repeat(np.arange(nodes[target]), np.diff(indptr))])
        back_indptr, back = graph.relations[target, relation, source]
        reverse = np.stack([np.repeat(np.arange(nodes[source]), np.diff(back_indptr)), back])
        order, back_order = (np.lexsort(each[::-1]) for each in (pairs, reverse))
        assert np.array_equal(pairs[:, order], reverse[:, back_order])
    degrees = np.diff(graph.relations["term", "to", "paper"][0])
    assert degrees.max() > 5 * degrees.mean()  # skewed


@pytest.mark.slow
def test_entry_runs_without_peers(tmp_path, folder, run_entry, check_report):
    report = tmp_path / "hetero.json"
    small = ["--scale", "9", "--batch-size", "16", "--batches", "2", "--threads", "1"]
    more = ["--fanouts", "3", "2", "--graph-dir", str(folder), "--json", str(report)]
    done = run_entry("hetero_loading.py", "--quick", *small, *more)
    assert done.returncode == 0, done.stderr
    ((implementation,),) = [
        case["implementations"] for case in check_report(report, "hetero_loading")["cases"]
    ]
    for sample in implementation["samples"]:
        amounts = sample["amounts"]
        assert amounts["batches"] == 2
        assert amounts["bytes"] == amounts["nodes"] * 128 * 4


def test_a_folder_of_another_kind_is_refused(bench, loading, tmp_path, capsys):
    rmat = importlib.import_module("rmat")
    rmat.make_rmat(tmp_path / "plain", rmat.RmatSpec(scale=9, dim=loading.DIM))
    assert loading.main(["--scale", "9", "--graph-dir", str(tmp_path / "plain")]) == 2
    assert "shape None != dblp" in capsys.readouterr().err


def spoil_a_feature(batch):
    batch["x term"][0, 5] += 1


def swap_seeds(batch):
    for name in ("node author", "x author"):
        batch[name][[0, 1]] = batch[name][[1, 0]]


def repeat_a_node(batch):
    for name in ("node paper", "x paper"):
        batch[name][1] = batch[name][0]


def leave_out_a_first_edge(batch):
    batch["first paper_to_author"] -= 1


def leave_out_an_edge(batch):
    for name in ("row", "col", "edge"):
        batch[f"{name} term_to_paper"] = batch[f"{name} term_to_paper"][:-1]


def repeat_an_edge(batch):
    for name in ("row", "col", "edge"):
        batch[f"{name} term_to_paper"][1] = batch[f"{name} term_to_paper"][0]


def name_another_source(batch):
    batch["row term_to_paper"][0] = batch["row term_to_paper"].max() - batch["row term_to_paper"][0]


def name_another_target(batch):
    col = batch["col term_to_paper"]
    col[0] = col[-1]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_a_feature, "features of term"),
        (swap_seeds, "seeds"),
        (repeat_a_node, "a node of paper occurs twice"),
        (leave_out_a_first_edge, "the first hop has"),
        (leave_out_an_edge, "too many edges, or too few"),
        (repeat_an_edge, "an edge occurs twice"),
        (name_another_source, "another source"),
        (name_another_target, "another target"),
    ],
)
def test_check_finds_faults(bench, loading, graph, features, spoil, message):
    seeds = graph.seeds[:16]
    data = loading.make_data(graph, features)
    sampled = loading.LoaderPass(
        data, loading.PassWork(graph, FANOUTS, 16, 1, 1), 1, loading.SEED_TYPE
    ).first_batch()
    batch = {name: array.copy() for name, array in loading.export(sampled).items()}
    loading.check_typed_batch(graph, features, seeds, FANOUTS, batch)
    spoil(batch)
    with pytest.raises(bench.harness.CheckError, match=message):
        loading.check_typed_batch(graph, features, seeds, FANOUTS, batch)

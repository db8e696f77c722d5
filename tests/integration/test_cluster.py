"""``gnnsys cluster`` from the command line to its files."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from matplotlib.image import imread
from sklearn.metrics import f1_score

from gnnsys.clustering.metrics import cluster_metrics
from gnnsys.commands.cli import main
from gnnsys.dataset.folder import open_dataset
from gnnsys.generate import generate_community

SMALL = ["--hidden", "32", "16", "--dim", "4", "--pretrain-epochs", "4", "--epochs", "8"]
SMALL += ["--warm-epochs", "4"]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("graph") / "community"
    return str(generate_community(folder, nodes=500, classes=3, features=12, degree=8, signal=2.0))


def cluster(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["cluster", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("encoder", ["mlp", "sage", "gcn"])
@pytest.mark.parametrize("batches", [[], ["--batch-size", "200", "--fanout", "5"]])
def test_communities_are_found(graph: str, capsys, encoder: str, batches: list[str]) -> None:
    result = cluster(capsys, graph, *SMALL, "--encoder", encoder, *batches)
    (seed,) = result["seeds"]
    assert result["clusters"] == 3
    assert len(seed["losses"]) == len(seed["acc"]) == 9
    assert seed["selected"]["epoch"] == int(np.argmin(seed["losses"]))
    assert seed["last"]["acc"] == seed["acc"][-1]
    assert seed["selected"]["acc"] == seed["acc"][seed["selected"]["epoch"]]
    assert seed["selected"]["acc"] > 0.6  # the largest class has 0.34
    assert seed["losses"][-1] < seed["losses"][0]


def test_files_hold_what_is_told_and_new_nodes_are_clustered(graph, capsys, tmp_path) -> None:
    run, picture = tmp_path / "run", tmp_path / "picture.png"
    options = [*SMALL, "--seeds", "2", "--starts", "2", "--normalize", "l2", "--out", str(run)]
    result = cluster(capsys, graph, *options, "--plot", str(picture))
    assert json.loads((run / "result.json").read_text()) == result
    dataset = open_dataset(graph)
    assignments = np.load(run / "assignments.npy")
    scores = cluster_metrics(np.array(dataset.node_table("labels")), assignments)
    told = result["seeds"][0]["selected"]
    assert {name: told[name] for name in scores} == scores
    assert np.load(run / "embeddings.npy").shape == (500, 4)
    accuracies = [seed["selected"]["acc"] for seed in result["seeds"]]
    assert result["summary"]["selected"]["acc"] == pytest.approx(
        {"mean": np.mean(accuracies), "std": np.std(accuracies, ddof=1)}
    )
    assert imread(picture).std() > 0.05
    np.save(tmp_path / "x.npy", dataset.features(device="cpu").materialize().numpy()[::7])
    options = ["--assign", str(tmp_path / "x.npy"), "--run", str(run)]
    assert main(["cluster", *options, "--out", str(tmp_path / "new.npy")]) == 0
    assert (np.load(tmp_path / "new.npy") == assignments[::7]).all()


def test_the_same_seed_gives_the_same_losses(graph: str, capsys) -> None:
    for batches in ([], ["--batch-size", "128"]):
        options = [graph, *SMALL, "--seed", "3", *batches]
        first, second = (cluster(capsys, *options)["seeds"][0]["losses"] for _ in range(2))
        assert first == second


def test_the_unit_of_features_does_not_count(tmp_path: Path, capsys) -> None:
    options = {"nodes": 200, "classes": 3, "features": 9, "degree": 6, "signal": 2.0}
    folder = generate_community(tmp_path / "graph", **options)
    losses = []
    for factor in (1, 2**-12):
        np.load(folder / "features.npy", mmap_mode="r+")[:] *= np.float32(factor)
        losses.append(cluster(capsys, str(folder), *SMALL)["seeds"][0]["losses"])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("loss", "batches"),
    [("pamc", []), ("scgc", []), ("cca-ssg", []), ("grace", ["--batch-size", "200"])],
)
def test_any_contrastive_loss_may_come_first(graph: str, capsys, loss: str, batches) -> None:
    options = [graph, *SMALL, "--loss", loss, *batches]
    without = cluster(capsys, *options, "--warm-epochs", "0")
    result = cluster(capsys, *options, "--warm-epochs", "40", "--warm-clusters", "6")
    (seed,), (start,) = result["seeds"], without["seeds"]
    assert seed["selected"]["acc"] > 0.5  # the largest class has 0.34
    assert seed["contrastive"][0] < start["contrastive"][0]
    assert np.isfinite(seed["losses"]).all()


def test_batches_may_have_fewer_nodes_than_clusters(graph: str, capsys) -> None:
    options = ["--k", "60", "--batch-size", "20", "--fanout", "1", "--epochs", "2"]
    result = cluster(capsys, graph, *SMALL, *options)
    assert np.isfinite(result["seeds"][0]["losses"]).all()


def test_the_dense_form_is_the_exact_mode(graph: str, capsys) -> None:
    forms = ["--loss", "scgc"], ["--mode", "exact"]
    first, second = (cluster(capsys, graph, *SMALL, *form)["seeds"][0]["losses"] for form in forms)
    assert first == pytest.approx(second, rel=1e-4)


def test_epochs_may_be_selected_by_labels_or_be_the_last(graph: str, capsys) -> None:
    (by_labels,) = cluster(capsys, graph, *SMALL, "--select", "labels")["seeds"]
    assert by_labels["selected"]["acc"] == max(by_labels["acc"])
    (last,) = cluster(capsys, graph, *SMALL, "--select", "last")["seeds"]
    assert last["selected"] == last["last"]


@pytest.mark.parametrize("batches", [[], ["--batch-size", "200", "--fanout", "5"]])
def test_epochs_may_be_selected_by_modularity(graph: str, capsys, tmp_path, batches) -> None:
    out = tmp_path / "run"
    options = ["--select", "modularity", "--starts", "2", "--out", str(out), *batches]
    (seed,) = cluster(capsys, graph, *SMALL, *options)["seeds"]
    assert seed["selected"]["modularity"] >= seed["last"]["modularity"]
    clusters = np.load(out / "assignments.npy")
    sources, targets = open_dataset(graph).to_data(device="cpu").edge_index.tolist()
    network = nx.MultiGraph(zip(sources, targets, strict=True))
    parts = [set(np.flatnonzero(clusters == k)) & set(network) for k in range(3)]
    wanted = nx.community.modularity(network, parts)
    assert seed["selected"]["modularity"] == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("name", ["acm", "dblp", "citeseer"])
def test_graphs_of_the_literature_are_read_by_name(real_graphs: Path, capsys, name: str) -> None:
    options = ["--hidden", "8", "--dim", "3", "--epochs", "1", "--pretrain-epochs", "1"]
    options += ["--warm-epochs", "1"]
    result = cluster(capsys, name, "--root", str(real_graphs), *options)
    wanted = {"acm": (3025, 26256, 3), "dblp": (4057, 7056, 4), "citeseer": (3327, 9104, 6)}[name]
    assert (result["nodes"], result["edges"], result["clusters"]) == wanted
    assert result["options"]["alpha"] == {"acm": 0.5, "dblp": 2.0, "citeseer": 2.0}[name]


def test_a_table_tells_mean_and_deviation(graph: str, capsys) -> None:
    assert main(["cluster", graph, *SMALL, "--seeds", "2"]) == 0
    out = capsys.readouterr().out
    assert "3 clusters of community, mean of 2 seeds" in out
    assert re.search(r"ACC +│ +\d\d\.\d\d ± \d+\.\d\d │ +\d\d\.\d\d ± \d+\.\d\d │", out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--k", "501"], r"--k 501 > 500 nodes"),
        (["--warm-clusters", "501"], r"--warm-clusters 501 > 500 nodes"),
        (["--encoder", "gcn", "--normalize", "l2"], r"--normalize l2: goes with --encoder mlp"),
        (["--augment", "1"], r"--augment 1.0: expected 0 up to 1"),
        (["--warm-epochs", "-1"], r"--warm-epochs -1: expected at least 0"),
        (["--k", "0"], r"--k 0: expected at least 1"),
        (["--tau", "0"], r"--tau 0.0: expected above 0"),
        (["--alpha", "0", "--beta", "0"], r"expected a loss to train"),
        (["--alpha", "-1"], r"--alpha -1.0"),
        (["--plot", "a.pdf"], r"--plot a.pdf: expected a name in .png"),
        (["--plot", "no/where.png"], r"--plot no/where.png: cannot be written"),
        (["--order", "5", "--max-pairs", "1000"], r"order\(5\): .* has \d+ entries, more than"),
        (["--run", "run"], r"--run: goes with --assign"),
        (
            ["--lr", "1e30"],
            r"are NaN or infinite, of seed 0; try a lower --lr than 1e\+30",
        ),
    ],
)
def test_bad_options_are_refused(graph: str, capsys, tmp_path, options, message: str) -> None:
    out = tmp_path / "run"
    try:
        status = main(["cluster", graph, *SMALL, "--out", str(out), *options])
    except SystemExit as exit:
        status = exit.code
    assert status == 2
    told = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert re.search(message, told), told
    assert not out.exists()


def test_other_bad_input_is_refused(graph: str, capsys, tmp_path: Path) -> None:
    def refused(message: str, *arguments: str) -> None:
        try:
            status = main(["cluster", *arguments])
        except SystemExit as exit:
            status = exit.code
        told = " ".join(capsys.readouterr().err.replace("│", " ").split())
        assert status == 2
        assert re.search(message, told), told

    refused(r"a dataset to cluster is missing")
    refused(r"dataset 'unknown' is unknown: expected one of acm", "unknown")
    refused(r"acm_feat.npz: no such file", "acm", "--root", str(tmp_path))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    refused(r"full: holds files already", graph, "--out", str(tmp_path / "full"))
    rows = tmp_path / "x.npy"
    np.save(rows, np.ones((3, 5), np.float32))
    run, to = str(tmp_path / "run"), ["--out", str(tmp_path / "new.npy")]
    assign = ["--assign", str(rows), "--run", run]
    refused(r"--assign .*: goes with --run RUN and --out FILE", graph, *assign, *to)
    refused(r"encoder.json: no such file", *assign, *to)
    assert main(["cluster", graph, *SMALL, "--encoder", "sage", "--out", run]) == 0
    refused(r"its encoder is sage, which needs the graph", *assign, *to)
    mlp = str(tmp_path / "mlp")
    assert main(["cluster", graph, *SMALL, "--out", mlp]) == 0
    refused(r"\(3, 5\), expected \(n, 12\)", "--assign", str(rows), "--run", mlp, *to)
    (tmp_path / "mlp" / "model.safetensors").write_bytes(b"damaged")
    np.save(rows, np.ones((3, 12), np.float32))
    refused(
        r"model.safetensors: not a whole safetensors file", "--assign", str(rows), "--run", mlp, *to
    )
    assert not (tmp_path / "new.npy").exists()


def test_scores_are_the_best_over_all_pairings() -> None:
    draw = np.random.default_rng(4)
    for _ in range(10):
        labels, clusters = draw.integers(0, 4, 60), draw.integers(0, 4, 60)
        labels[:5] = -1
        y, c = labels[5:], clusters[5:]
        paired = [np.array(names)[c] for names in itertools.permutations(range(4))]
        scores = cluster_metrics(labels, clusters)
        best = max(float((each == y).mean()) for each in paired)
        assert scores["acc"] == best
        assert scores["f1"] in [
            pytest.approx(f1_score(y, each, average="macro"))
            for each in paired
            if float((each == y).mean()) == best
        ]
    assert torch.equal(torch.tensor(labels[:5]), torch.full((5,), -1))

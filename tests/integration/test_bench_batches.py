"""The benchmarks of whole mini-batches: they run, and their checks find what is wrong."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gnnsys import NeighborLoader

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"
SMALL = ["--quick", "--scale", "9", "--batch-size", "32", "--batches", "2", "--threads", "1"]
FANOUTS = [3, 2]


@pytest.fixture(scope="module")
def passes(bench):
    pytest.importorskip("numba")
    return importlib.import_module("passes")


@pytest.fixture(scope="module")
def folder(passes, tmp_path_factory):
    """Of a graph with features, as rmat.py makes it."""
    rmat = importlib.import_module("rmat")
    path = tmp_path_factory.mktemp("bench") / "graph"
    rmat.make_rmat(path, rmat.RmatSpec(scale=9, dim=passes.DIM))
    return path


@pytest.fixture(scope="module")
def work(passes, folder):
    rmat = importlib.import_module("rmat")
    graph = rmat.open_rmat(folder, rmat.RmatSpec(scale=9))
    return passes.PassWork(graph, FANOUTS, batch_size=16, batches=2, rounds=2)


@pytest.fixture(scope="module")
def data(passes, work, folder):
    labels = np.random.default_rng(3).integers(16, size=work.graph.spec.num_nodes)
    return passes.make_data(work.graph, np.load(folder / "features.npy"), torch.from_numpy(labels))


@pytest.mark.slow
def test_loading_entry_runs_without_peers(tmp_path, folder, run_entry, check_report):
    report = tmp_path / "loading.json"
    more = ["--fanouts", "4", "3", "--windows", "2", "--json", str(report)]
    done = run_entry("loading.py", *SMALL, "--graph-dir", str(folder), *more)
    assert done.returncode == 0, done.stderr
    found = check_report(report, "loading")
    ((implementation,),) = [case["implementations"] for case in found["cases"]]
    for sample in implementation["samples"]:
        amounts = sample["amounts"]
        assert amounts["batches"] == 2
        assert amounts["bytes"] == amounts["nodes"] * 128 * 4
    (memory,) = found["notes"]["memory"]
    assert memory["window"] == 2
    assert memory["largest_batch_bytes"] > 32 * 128 * 4
    assert memory["peak_bytes"] >= memory["before_bytes"] > (512 * 128 * 4)


@pytest.mark.slow
def test_training_entry_runs_without_peers(tmp_path, folder, run_entry, check_report):
    report = tmp_path / "training.json"
    more = ["--fanouts", "4", "3", "--bf16-labor", "--json", str(report)]
    done = run_entry("training.py", *SMALL, "--graph-dir", str(folder), *more)
    assert done.returncode == 0, done.stderr
    (case,) = check_report(report, "training")["cases"]
    names = [implementation["name"] for implementation in case["implementations"]]
    ours = ["stock", "trimmed", "fused", "trimmed+fused"]
    assert names == [*(f"gnnsys {name}" for name in ours), "gnnsys", "gnnsys bf16+labor"]
    edges = [
        [sample["amounts"]["edges"] for sample in implementation["samples"]]
        for implementation in case["implementations"]
    ]
    assert all(each == edges[0] for each in edges[:5])  # the same batches


def test_rounds_take_successive_batches_whatever_the_turn(passes, work, data):
    loading = passes.LoaderPass(data, work, threads=1)
    seeds = {}
    for number in (2, 1):
        found = seeds[number] = []
        loading.run(number, lambda batch, found=found: found.append(batch.n_id[:16]))
    for number, found in seeds.items():
        assert len(found) == passes.WARM_BATCHES + work.batches
        assert torch.equal(torch.cat(found), work.seeds(work.first(number), len(found)))
    assert work.first(2) == work.first(1) + len(seeds[1]) + passes.AHEAD_BATCHES


def test_three_ways_to_run_graph_sage_agree(data, work):
    sage = importlib.import_module("workers.sage")
    loader = NeighborLoader(data, FANOUTS, work.seeds(0), batch_size=16)
    batch = next(iter(loader))
    unaware = batch.clone()  # as a sampler leaves it that does not count hops
    del unaware.num_sampled_nodes, unaware.num_sampled_edges
    for value in (batch, unaware):
        value.x = value.x.double()
    model = sage.make_sage(data.x.shape[1], 8, 4, layers=2).double()
    expected = model(batch.x, batch.edge_index)[:16]
    assert expected.abs().max() > 0.01
    for name, forward in sage.FORWARDS.items():
        for given in (batch, unaware):
            out = forward(model, given)[:16]
            torch.testing.assert_close(out, expected, rtol=0, atol=1e-12, msg=name)


def test_hops_without_edges_are_counted(bench):
    sage = importlib.import_module("workers.sage")
    from torch_geometric.data import Data

    lonely = Data(edge_index=torch.empty(2, 0, dtype=torch.int64), batch_size=3)
    assert sage._count_hops(lonely, 2) == ([3, 0, 0], [0, 0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scale", "10"], "holds another graph (scale 9 != 10)"),
        (["--scale", "9"], "--batch-size 1024 > "),
    ],
)
def test_graph_that_does_not_fit_is_refused(bench, folder, arguments, message, capsys):
    loading = importlib.import_module("loading")
    assert loading.main([*arguments, "--graph-dir", str(folder)]) == 2
    assert message in capsys.readouterr().err


def test_graph_without_features_is_refused_where_they_are_gathered(bench, folder):
    rmat = importlib.import_module("rmat")
    with pytest.raises(bench.harness.BenchError, match="dim 128 != 64"):
        rmat.open_rmat(folder, rmat.RmatSpec(scale=9, dim=64))


def spoil_a_feature(batch):
    batch["x"][3, 5] += 1


def give_other_zeros(batch):
    batch["x"][2] = np.where(batch["x"][2] == 0, -0.0, batch["x"][2])


def swap_seeds(batch):
    for name in ("node", "x"):
        batch[name][[0, 1]] = batch[name][[1, 0]]


def forget_a_row(batch):
    batch["x"] = batch["x"][:-1]


def widen(batch):
    batch["x"] = batch["x"].astype(np.float64)


@pytest.mark.parametrize(
    "spoil", [spoil_a_feature, give_other_zeros, swap_seeds, forget_a_row, widen]
)
def test_check_of_loaded_batches_finds_faults(bench, passes, work, data, spoil):
    loading = importlib.import_module("loading")
    features = data.x.numpy().copy()
    nodes = work.seeds(0).numpy()
    features[nodes[2], :4] = 0.0
    batch = {"node": nodes.astype(np.int32), "x": features[nodes]}
    loading.check_batch(work, features, batch)
    spoil(batch)
    with pytest.raises(bench.harness.CheckError, match="wrong batch"):
        loading.check_batch(work, features, batch)


def test_check_of_models_finds_wrong_outputs_and_wrong_gradients(bench, passes, work, data):
    training = importlib.import_module("training")
    checker = training.Checker(passes.LoaderPass(data, work, threads=1), layers=2)
    plain = training.FORWARDS["plain"]
    checker.check(training.make_model(2), plain, 1e-5)

    def drop_an_edge(model, batch):
        return model(batch.x, batch.edge_index[:, 1:])

    def halve_gradients(model, batch):
        out = plain(model, batch)
        return (out + out.detach()) / 2

    for forward in (drop_an_edge, halve_gradients):
        with pytest.raises(bench.harness.CheckError, match="wrong model"):
            checker.check(training.make_model(2), forward, 1e-5)


WORKER = """
import sys
sys.path.insert(0, {workers!r})
from protocol import open_channel
channel = open_channel()
import torch
from batches_job import BatchPeer, serve_batches

def open_batches(request):
    for number in range(request["first"], request["first"] + request["count"]):
        yield torch.full((request["batch_size"],), float(number))

def make_step(request):
    return lambda batch: batch.mean() / request["lr"]

peer = BatchPeer(
    open=open_batches,
    measure=lambda batch: {{"nodes": len(batch), "edges": 0, "bytes": batch.sum().item()}},
    export=lambda batch: {{"x": batch}},
    make_step=make_step,
)
serve_batches(channel, peer, {{"peer": "1"}})
"""


@pytest.mark.slow
def test_peers_time_the_batches_after_the_warm_ones(bench, passes, work, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(workers=str(BENCH / "workers")))
    with bench.peers.Peer(Path(sys.executable), script) as peer:
        assert peer.ready["peer"] == "1"
        runs = passes.PeerPass(peer, work, 1, {"model": "m", "lr": 2.0})
        for job in ("load", "train"):
            sample = runs.implement("name", job, check=lambda: None).run(1)
            first = work.first(1) + passes.WARM_BATCHES
            size = work.batch_size
            assert sample.amounts == {
                "batches": 2,
                "nodes": 2 * size,
                "edges": 0,
                "bytes": size * (first + first + 1),
            }
        assert runs.ask("loss", number=1, models=["a"]) == {"a": work.first(1) / 2.0}
        file = tmp_path / "batch.npz"
        runs.ask("export", number=1, file=str(file))
        with np.load(file) as found:
            assert (found["x"] == work.first(1)).all()


def test_accuracy_entry_compares_two_sides_seed_by_seed(bench, tmp_path, capsys):
    accuracy = importlib.import_module("accuracy")
    report = tmp_path / "accuracy.json"
    small = ["--community=--nodes 300 --features 8", "--train=--epochs 1 --hidden 8", "--seeds=2"]
    assert accuracy.main([*small, "--changed=--lr 1e-9", "--json", str(report)]) == 0
    (result,) = json.loads(report.read_text())["results"]
    base, changed = result["scores"]["base"], result["scores"]["changed"]
    assert len(base) == len(changed) == 2
    assert all(0 < score < 1 for score in base + changed)
    assert result["options"]["changed"].endswith("--lr 1e-9")
    assert f"changed - base = {result['difference']:+.4f}" in capsys.readouterr().out


def test_accuracy_entry_ends_with_the_run_that_fails(bench, capsys):
    accuracy = importlib.import_module("accuracy")
    assert accuracy.main(["--community=--nodes 1", "--changed="]) == 2
    assert "exit status 2" in capsys.readouterr().err


def test_accuracy_summary_is_that_of_numpy_over_differences_of_a_seed(bench):
    accuracy = importlib.import_module("accuracy")
    draw = np.random.default_rng(1)
    base, changed = draw.random((2, 10))
    summary = accuracy.summarize({"base": list(base), "changed": list(changed)})
    differences = changed - base
    assert summary["difference"] == pytest.approx(differences.mean())
    assert summary["standard_error"] == pytest.approx(differences.std(ddof=1) / 10**0.5)
    assert summary["sides"]["base"]["std"] == pytest.approx(base.std(ddof=1))

"""The benchmark of relational layers: its graphs are right, and its sides compute the same."""

from __future__ import annotations

import gzip
import importlib
import json

import numpy as np
import pytest
import scipy.sparse
import torch

SIZES = {"width": 8, "heads": 2, "depth": 2}


@pytest.fixture(scope="module")
def graphs(bench):
    pytest.importorskip("numba")
    return importlib.import_module("relational_graphs")


@pytest.fixture(scope="module")
def layers(graphs):
    return importlib.import_module("workers.relational_layers")


@pytest.fixture(scope="module")
def graph(graphs):
    """Two types of nodes and three relations, the last one without edges."""
    rng = np.random.default_rng(0)
    edge_type = torch.from_numpy(rng.integers(0, 2, 60))
    source, target = torch.from_numpy(rng.integers(0, 10, (2, 60)))
    edge_index = torch.stack([source + 10 * edge_type, target + 10 * (1 - edge_type)])
    ends = torch.tensor([[0, 1], [1, 0], [1, 1]])
    return graphs.RelationGraph(edge_index, edge_type, ends, torch.tensor([0, 10, 20]))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Data sets of a few lines."""
    root = tmp_path_factory.mktemp("data")
    entities = root / "Entities" / "aifb" / "raw"
    facts = root / "KG" / "WN18RR" / "raw"
    dblp = root / "DBLP_hetero" / "raw"
    for folder in (entities, facts, dblp):
        folder.mkdir(parents=True)
    with gzip.open(entities / "aifb_stripped.nt.gz", "wt") as file:
        file.write('<c> <p> "one two." .\n<a> <q> <c> .\n<a> <q> <c> .\n<c> <p> <b> .\n\n')
    for part in ("train", "valid", "test"):
        (facts / f"{part}.txt").write_text("x\tr\ty\ny\ts\tx\n")
    scipy.sparse.save_npz(dblp / "adjM.npz", scipy.sparse.csr_array(np.eye(4)[[2, 3, 0, 1]]))
    np.save(dblp / "node_types.npy", np.array([0, 0, 1, 1]))
    return root


def test_triples_are_read_once_and_in_both_directions(graphs, root):
    found = graphs.make_graph("aifb", root, 0)  # nodes: "one two.", <a>, <b>, <c>; p, q by size
    assert found.edge_index.tolist() == [[0, 1, 2, 3, 3, 3], [3, 3, 3, 0, 1, 2]]
    assert found.edge_type.tolist() == [1, 2, 1, 0, 3, 0]
    assert found.num_relations == 4


def test_facts_and_types_are_read(graphs, root):
    facts = graphs.make_graph("wn18rr", root, 0)
    assert facts.edge_index.tolist() == [[0, 1, 1, 0], [1, 0, 0, 1]]
    assert facts.edge_type.tolist() == [0, 1, 2, 3]
    dblp = graphs.make_graph("dblp", root, 0)
    assert dblp.node_ptr.tolist() == [0, 2, 4]
    found = {kind: edges.tolist() for kind, edges in dblp.relations().items()}
    assert found == {
        ("type0", "relation0", "type1"): [[0, 1], [0, 1]],
        ("type1", "relation1", "type0"): [[0, 1], [0, 1]],
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("zipf:10:0:5", "expected aifb, mutag, bgs-like"),
        ("cora", "or zipf:EDGES:RELATIONS:NODES"),
        ("mutag", "mutag_stripped.nt.gz: no such file; --root names the folder"),
    ],
)
def test_graph_that_is_not_there_is_refused(bench, graphs, root, name, message):
    with pytest.raises(bench.harness.BenchError, match=message):
        graphs.make_graph(name, root, 0)


def test_part_keeps_types_and_relations(graph, tmp_path):
    part = graph.part(15)
    assert part.num_edges == 15
    assert part.num_nodes == len(part.edge_index.unique())
    first = part.node_ptr[1]
    types = (part.edge_index >= first).long()
    assert torch.equal(types, graph.ends[part.edge_type].t())
    part.save(tmp_path / "part.npz")
    loaded = type(part).load(tmp_path / "part.npz")
    assert torch.equal(loaded.edge_index, part.edge_index)
    assert torch.equal(loaded.node_ptr, part.node_ptr)


@pytest.mark.parametrize("kind", ["rgcn", "rgat", "hgt"])
def test_all_sides_compute_the_same(layers, graph, kind):
    x = torch.randn(20, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made = layers.make_layers(kind, "PyG", graph, **SIZES)
    weights = made.state_dict()
    expected = made.double()(x)
    for side in layers.CLASSES[kind]:
        for renew in (False, True):
            model = layers.make_layers(kind, side, graph, **SIZES, renew=renew)
            model.load_state_dict(weights)
            torch.testing.assert_close(model.double()(x), expected, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("one_thread")  # as the request has it
def test_worker_runs_and_leaves_the_weights(layers, graph, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(layers.__file__).rpartition("/")[0])
    module = importlib.import_module("relational_job")
    made = layers.make_layers("rgcn", "PyG", graph, **SIZES)
    graph.save(tmp_path / "graph.npz")
    np.savez(tmp_path / "weights.npz", **{k: v.numpy() for k, v in made.state_dict().items()})
    job = module.ModelJob(lambda *given: made)
    request = {"graph": tmp_path / "graph.npz", "weights": tmp_path / "weights.npz", "threads": 1}
    job.open({**request, "width": 8})
    job.export({"file": tmp_path / "before.npy"})
    found = job.peak({"what": "step"})
    assert found["peak_bytes"] >= found["before_bytes"] > 1 << 20
    assert job.run({"what": "step", "least_seconds": 0.01})["runs"] >= 1
    assert job.run({"what": "forward", "least_seconds": 0})["runs"] == 1
    job.export({"file": tmp_path / "after.npy"})
    before, after = (np.load(tmp_path / f"{name}.npy") for name in ("before", "after"))
    assert before.shape == (20, 8)
    assert np.array_equal(before, after)


SMALL = [
    *("--quick", "--graphs", "zipf:1200:5:200", "--layers", "rgcn", "--width", "8"),
    *("--threads", "1", "--least-seconds", "0.01", "--limit-mib", "0"),
]


@pytest.mark.slow
def test_entry_runs_without_dgl(tmp_path, run_entry, check_report, graphs):
    report = tmp_path / "relational.json"
    done = run_entry("relational.py", *SMALL, "--sides", "--json", str(report))
    assert done.returncode == 0, done.stderr
    step, forward = check_report(report, "relational")["cases"]
    names = [each["name"] for each in step["implementations"]]
    assert names == ["gnnsys"]  # the others are tested below
    assert forward["labels"]["job"] == "forward"
    for each in json.loads(report.read_text())["notes"]["figures"]:
        assert each["peak_bytes"] >= each["before_bytes"] > 0
        assert len(each["cpu_seconds"]) == 2
        assert each["difference"] == 0


class Here:
    """A side's worker without a process."""

    def __init__(self, job, fault):
        self.job, self.fault = job, fault

    def ask(self, request):
        if self.fault is not None:
            raise self.fault
        return getattr(self.job, request["job"])(request)


@pytest.fixture
def run_here(bench, layers, graphs, tmp_path, monkeypatch, capsys):
    """Runs the entry with workers in this process; sides may give wrong outputs or be killed."""
    monkeypatch.syspath_prepend(str(layers.__file__).rpartition("/")[0])
    job, entry = importlib.import_module("relational_job"), importlib.import_module("relational")

    def start(self, wrong, killed):
        def make(graph, request, weights):
            sizes = {name: request[name] for name in ("width", "heads", "depth", "renew")}
            model = layers.make_layers(request["kind"], request["side"], graph, **sizes)
            model.load_state_dict(weights)
            if self.side == wrong:
                torch.nn.init.ones_(model.convs[0].bias)
            return model

        fault = bench.peers.PeerError("died, exit status -9") if self.side == killed else None
        return Here(job.ModelJob(make), fault)

    def run(wrong=None, killed=None):
        monkeypatch.setattr(entry.Contestant, "_start", lambda self: start(self, wrong, killed))
        report, threads = tmp_path / "relational.json", torch.get_num_threads()
        sides = ["--sides", "PyG", "gnnsys new graph"]
        status = entry.main([*SMALL, *sides, "--json", str(report)])
        torch.set_num_threads(threads)
        return status, json.loads(report.read_text()) if report.exists() else None, capsys

    return run


def test_sides_take_turns_and_agree(run_here):
    status, told, _ = run_here()
    assert status == 0
    assert [each["side"] for each in told["notes"]["figures"]] == [
        "gnnsys", "PyG", "gnnsys new graph"] * 2  # fmt: skip
    assert all(each["difference"] < 1e-5 for each in told["notes"]["figures"])
    assert all(len(each["seconds"]) == 2 for each in told["notes"]["figures"])


def test_a_peer_that_is_wrong_and_gnnsys_without_memory_are_reported(run_here):
    status, told, capsys = run_here(wrong="PyG", killed="gnnsys")
    assert status == 0
    for case in told["cases"]:
        errors = {each["name"]: each["error"] for each in case["implementations"]}
        assert errors.pop("gnnsys") == "out of memory (limit none)"
        assert errors.pop("PyG").startswith("outputs on part differ by")
        assert errors == {"gnnsys new graph": None}
    assert len(told["cases"]) == 2
    assert capsys.readouterr().out.count("-, -, -; not compared") == 2


def test_gnnsys_that_is_wrong_ends_the_run(run_here):
    status, told, capsys = run_here(wrong="gnnsys new graph")
    assert (status, told) == (2, None)  # no case was done
    assert "outputs on part differ by" in capsys.readouterr().err

"""The benchmarks run, check what they time and write what they measured. No timing is judged."""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from gnnsys.loaders import CSC, NeighborSampler

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_gather_entry_writes_all_samples(tmp_path, run_entry, check_report):
    report = tmp_path / "gather.json"
    sizes = ["--table-mib", "8", "--payload-mib", "1", "--rows", "12,64", "--threads", "1,2"]
    done = run_entry("gather.py", "--quick", *sizes, "--json", str(report))
    assert done.returncode == 0, done.stderr
    found = check_report(report, "gather")
    assert len(found["cases"]) == 2 * 2 * 2  # rows, threads, outputs
    assert "÷ torch.index_select" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.slow
def test_file_reads_entry_writes_all_samples(tmp_path, run_entry, check_report):
    report = tmp_path / "file_reads.json"
    sizes = ["--file-mib", "4", "--reads", "512", "--batch", "128", "--depths", "4,16"]
    folder = ["--folder", str(tmp_path)]
    done = run_entry("file_reads.py", "--quick", *sizes, *folder, "--json", str(report))
    assert done.returncode == 0, done.stderr
    found = check_report(report, "file_reads")
    assert [case["labels"]["depth"] for case in found["cases"]] == [4, 16]
    for implementation in found["cases"][0]["implementations"]:
        assert {each["amounts"]["reads"] for each in implementation["samples"]} == {512}
    assert [each.name for each in tmp_path.iterdir()] == ["file_reads.json"]


@pytest.mark.slow
def test_sampling_entry_runs_without_peers(tmp_path, run_entry, check_report):
    pytest.importorskip("numba")
    report, graph = tmp_path / "sampling.json", tmp_path / "graph"
    sizes = ["--scale", "10", "--batch-size", "64", "--batches", "2", "--fanouts", "5", "-1"]
    common = [
        "--quick",
        *sizes,
        "--least-seconds",
        "0",
        "--graph-dir",
        str(graph),
        "--json",
        str(report),
    ]
    done = run_entry("sampling.py", *common)
    assert done.returncode == 0, done.stderr
    found = check_report(report, "sampling")
    by_threads = [case["implementations"][0]["samples"] for case in found["cases"]]
    edges = [[sample["amounts"]["edges"] for sample in samples] for samples in by_threads]
    assert edges[0] == edges[1]  # the same batches with 1 thread and with 2

    other = run_entry("sampling.py", *common, "--seed", "2")
    assert other.returncode == 2
    assert "seed 1 != 2" in other.stderr


@pytest.mark.slow
def test_dead_peer_is_reported_and_the_others_go_on(tmp_path, run_entry, check_report):
    pytest.importorskip("numba")
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no module named peer >&2\nexit 3\n")
    python.chmod(0o755)
    report = tmp_path / "sampling.json"
    sizes = ["--scale", "8", "--batch-size", "16", "--batches", "1", "--threads", "1"]
    done = run_entry("sampling.py", "--quick", *sizes, "--pyg", str(python), "--json", str(report))
    assert done.returncode == 0, done.stderr
    assert "peer PyG: LEFT OUT" in done.stdout
    found = check_report(report, "sampling")
    assert found["peers"]["PyG"] == {"error": "died, exit status 3: no module named peer"}
    assert [impl["name"] for impl in found["cases"][0]["implementations"]] == ["gnnsys"]


@pytest.mark.parametrize(
    ("entry", "arguments", "message"),
    [
        ("gather", ["--rounds", "3"], "--rounds 3 < 5"),
        ("gather", ["--rows", "63"], "--rows 63: not a multiple of 4"),
        ("gather", ["--rows", "64,64"], "'64,64' names a value twice"),
        ("gather", ["--table-mib", "0"], "'0' is not a whole number of at least 1"),
        ("gather", ["--table-mib", "1", "--rows", "2097152"], "longer than the table"),
        ("gather", ["--json", "no/such/folder/x.json"], "its folder does not exist"),
        ("sampling", ["--fanouts", "5", "0"], "--fanouts [5, 0]"),
        ("sampling", ["--least-seconds", "nan"], "--least-seconds nan"),
        ("sampling", ["--scale", "31"], "scale 31: expected 1 to 30"),
        ("sampling", ["--dgl", "no/such/python"], "'no/such/python' is not a program"),
        ("sampling", ["--graph-dir", str(BENCH)], "rmat.py makes such a folder"),
        ("loading", ["--graph-dir", str(BENCH)], "rmat.py makes such a folder"),
        ("loading", ["--windows", "0"], "'0' is not a whole number of at least 1"),
        ("relational", ["--width", "6", "--heads", "4"], "--width 6: not a multiple of --heads 4"),
        ("relational", ["--limit-mib", "-1"], "--limit-mib -1: expected MiB, or 0"),
        ("relational", ["--least-seconds", "nan"], "--least-seconds nan: expected seconds"),
        ("relational", ["--sides", "PyG", "PyG"], "--sides PyG PyG: names one twice"),
        ("relational", ["--graphs", "zipf:9:2:5", "wn18rr"], "raw/train.txt: no such file"),
        ("relational", ["--graphs", "dblp", "--root", "no"], "adjM.npz: no such file; --root"),
        ("fused_layers", ["--inputs", "rmat", "cora", "--root", "no"], "--inputs cora: no/"),
        ("training", ["--fanouts", "5", "--fanouts", "-2"], "--fanouts [-2]"),
        ("accuracy", ["--seeds", "1"], "--seeds 1 < 2"),
        ("communication", ["--root", "no", "--layers", "4"], "--layers 4 < --ranks 8"),
        ("pipeline_accuracy", ["--out", "runs.jsonl"], "--root: name the folder of the datasets"),
        ("accuracy", ["--json", "no/such/folder/x.json"], "its folder does not exist"),
        ("rmat", [str(BENCH)], "exists; remove it"),
        ("rmat", ["no/such/folder/graph"], "its parent folder does not exist"),
        ("rmat", ["graph", "--seed", "-1"], "seed -1"),
    ],
)
def test_bad_input_is_refused_with_the_way_out(bench, entry, arguments, message, capsys):
    if entry != "gather":
        pytest.importorskip("numba")
    try:
        status = importlib.import_module(entry).main(arguments)
    except SystemExit as exit:  # argparse
        status = exit.code
    assert status == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_rmat_is_the_same_graph_each_time_and_in_order(tmp_path, run_entry):
    pytest.importorskip("numba")
    for name in ("one", "two"):
        done = run_entry("rmat.py", str(tmp_path / name), "--scale", "8", "--dim", "3")
        assert done.returncode == 0, done.stderr
    arrays = [
        [np.load(tmp_path / name / f"{array}.npy") for name in ("one", "two")]
        for array in ("indptr", "indices", "seeds", "features")
    ]
    assert all(np.array_equal(one, two) for one, two in arrays)
    indptr, indices, seeds, features = (one for one, _ in arrays)
    assert indptr[-1] == len(indices) == 256 * 16
    assert all((np.diff(indices[a:b]) >= 0).all() for a, b in pairwise(indptr))
    assert sorted(seeds) == np.flatnonzero(np.diff(indptr)).tolist()
    assert features.shape == (256, 3)


def make_implementation(bench, name, log, seconds=1.0, fails=None, **options):
    def check():
        log.append(("check", name))
        if fails == "check":
            raise bench.harness.CheckError("1 of 2 rows is wrong")

    def run(number):
        log.append((number, name))
        if fails == number:
            raise bench.peers.PeerError("died")
        amounts = {"rows": 6.0}
        return bench.harness.Sample(seconds=seconds, cpu_seconds=seconds, amounts=amounts)

    return bench.harness.Implementation(name=name, check=check, run=run, **options)


def make_case(bench, *implementations):
    return bench.harness.Case(
        labels={"threads": 1},
        rates=(bench.harness.Rate(amount="rows", unit="rows/s"),),
        bases=("b",),
        implementations=list(implementations),
    )


def test_all_are_checked_and_warmed_up_before_turns_rotate(bench):
    log = []
    case = make_case(bench, *(make_implementation(bench, name, log) for name in "abc"))
    bench.harness.measure(case, rounds=3)
    before, rounds = log[:6], log[6:]
    assert before == [("check", name) for name in "abc"] + [(0, name) for name in "abc"]
    assert rounds == [(1 + i // 3, name) for i, name in enumerate("abcbcacab")]


def test_ratios_are_of_rates_within_the_run(bench):
    log = []
    fast = make_implementation(bench, "a", log, seconds=0.5)
    slow = make_implementation(bench, "b", log, seconds=2.0)
    case = make_case(bench, fast, slow)
    summary = bench.harness.measure(case, rounds=5).summary("a", case.rates[0])
    assert (summary["median"], summary["min"], summary["max"]) == (12.0, 12.0, 12.0)
    assert summary["ratios"]["b"]["median_of_ratios"] == 4.0
    assert summary["ratios"]["b"]["ratio_of_medians"] == 4.0
    assert summary["ratios"]["b"]["by_round"] == dict.fromkeys(range(1, 6), 4.0)


def test_wrong_implementation_ends_the_benchmark_before_anything_is_timed(bench):
    log = []
    right = make_implementation(bench, "b", log)
    wrong = make_implementation(bench, "a", log, fails="check")
    with pytest.raises(bench.harness.CheckError, match=r"a \(threads 1\): 1 of 2 rows is wrong"):
        bench.harness.measure(make_case(bench, right, wrong), rounds=5)
    assert log == [("check", "b"), ("check", "a")]


@pytest.mark.parametrize(("fails", "samples"), [("check", 0), (0, 0), (1, 0), (3, 2)])
def test_failing_peer_keeps_its_samples_and_the_others_go_on(bench, fails, samples, capsys):
    log = []
    ours = make_implementation(bench, "a", log)
    peer = make_implementation(bench, "b", log, fails=fails, is_peer=True)
    measured = bench.harness.measure(make_case(bench, ours, peer), rounds=5)
    assert len(measured.samples["a"]) == 5
    assert len(measured.samples.get("b", {})) == samples
    assert measured.errors.keys() == {"b"}
    json.dumps(measured.as_dict())
    bench.report.print_case(measured)


@pytest.mark.parametrize(
    ("rounds", "quick", "outcome"),
    [(4, False, None), (None, False, 5), (None, True, 2), (1, True, 1)],
)
def test_fewer_than_five_rounds_only_for_a_trial(bench, rounds, quick, outcome):
    options = argparse.Namespace(rounds=rounds, quick=quick, json=None)
    if outcome is None:
        with pytest.raises(bench.harness.BenchError, match="--rounds 4 < 5"):
            bench.harness.check_options(options)
    else:
        bench.harness.check_options(options)
        assert options.rounds == outcome


def test_gather_check_finds_a_wrong_row_and_a_job_that_writes_nothing(bench):
    work = bench.gather.Workload(1 << 20, 1 << 14, seed=0)
    work.resize_rows(64)
    work.draw(0)
    work.check(lambda: work.table[work.torch_ids])

    def shifted():
        rows = work.table[work.torch_ids]
        rows[7] = work.table[work.torch_ids[7] - 1]
        return rows

    for wrong in (shifted, lambda: work.out, lambda: work.table[work.torch_ids[1:]]):
        with pytest.raises(bench.harness.CheckError):
            work.check(wrong)


WORKER = """
import os, sys
sys.path.insert(0, {workers!r})
from protocol import open_channel, serve
channel = open_channel()
print("a library greets")
os.system("echo a child greets")

def job(request):
    print("a library talks")
    if request["n"] == 0:
        raise ValueError("no work")
    if request["n"] < 0:
        print("last words", file=sys.stderr)
        os._exit(9)
    return {{"n": request["n"] + 1}}

serve(channel, {{"version": "1"}}, {{"job": job}})
"""


def start_peer(bench, folder, script, **options):
    path = folder / "worker.py"
    path.write_text(script)
    return bench.peers.Peer(Path(sys.executable), path, **options)


@pytest.mark.slow
def test_prints_of_a_peer_do_not_break_the_protocol(bench, tmp_path):
    script = WORKER.format(workers=str(BENCH / "workers"))
    with start_peer(bench, tmp_path, script) as peer:
        assert peer.ready == {"version": "1"}
        assert peer.ask({"job": "job", "n": 1}) == {"n": 2}
        with pytest.raises(bench.peers.PeerError, match="ValueError: no work"):
            peer.ask({"job": "job", "n": 0})
        large = {"job": "job", "n": 5, "padding": "x" * 300_000}  # more than a pipe holds
        assert peer.ask(large) == {"n": 6}


@pytest.mark.slow
def test_peer_that_dies_says_so_now_and_later(bench, tmp_path):
    script = WORKER.format(workers=str(BENCH / "workers"))
    with start_peer(bench, tmp_path, script) as peer:
        for _ in range(2):
            with pytest.raises(bench.peers.PeerError, match=r"exit status 9: .*last words"):
                peer.ask({"job": "job", "n": -1})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("print('hello')\ninput()\n", "not the protocol"),
        ("print('[1]')\ninput()\n", "not the protocol"),
        ("import time; time.sleep(100)", "no answer within 1 s"),
        ("import no_such_peer", "exit status 1: .*no_such_peer"),
        ("import os, time; os.close(0); print('{\"result\": {}}')", None),
    ],
)
def test_peer_that_does_not_follow_the_protocol_is_an_error(bench, tmp_path, script, message):
    if message is None:
        with start_peer(bench, tmp_path, script) as peer, pytest.raises(bench.peers.PeerError):
            peer.ask({"job": "job", "padding": "x" * 300_000})
    else:
        with pytest.raises(bench.peers.PeerError, match=message):
            start_peer(bench, tmp_path, script, timeout=1 if "sleep" in script else 60)


@pytest.fixture(scope="module")
def graph():
    rng = np.random.default_rng(5)
    indptr = np.concatenate(([0], np.cumsum(rng.integers(0, 12, 300))))
    indices = rng.integers(0, 300, indptr[-1]).astype(np.int32)
    for begin, end in pairwise(indptr):
        indices[begin:end].sort()
    return indptr, indices


FANOUTS = [4, 3, -1]


def draw_batch(graph, seeds):
    indptr, indices = graph
    csc = CSC(torch.from_numpy(indptr), torch.from_numpy(indices))
    out = NeighborSampler(csc, FANOUTS).sample(torch.from_numpy(seeds), group=0)
    batch = {name: getattr(out, name).numpy().copy() for name in ("node", "row", "col", "edge")}
    batch["nodes_per_hop"] = np.array(out.num_sampled_nodes)
    batch["edges_per_hop"] = np.array(out.num_sampled_edges)
    return batch


def test_check_of_new_nodes_accepts_our_batches(bench, graph):
    seeds = np.random.default_rng(0).permutation(300)[:20]
    bench.sample_check.check_new_nodes_expanded(*graph, seeds, FANOUTS, draw_batch(graph, seeds))


def forget_last_edge(batch):
    for name in ("row", "col", "edge"):
        batch[name] = batch[name][:-1]


def repeat_an_edge(batch):
    batch["edge"][1] = batch["edge"][0]
    batch["row"][1] = batch["row"][0]


def change_source(batch):
    batch["row"][3] = (batch["row"][3] + 1) % len(batch["node"])


def change_target(batch):
    batch["col"][0] += 1


def swap_seeds(batch):
    batch["node"][[0, 1]] = batch["node"][[1, 0]]


def name_outside_edge(batch):
    batch["edge"][0] = -1


def add_lonely_node(batch):
    missing = np.setdiff1d(np.arange(300), batch["node"])
    batch["node"] = np.append(batch["node"], missing[:1])


def miscount_nodes(batch):
    batch["nodes_per_hop"][1] += 1


@pytest.mark.parametrize(
    "spoil",
    [
        forget_last_edge,
        repeat_an_edge,
        change_source,
        change_target,
        swap_seeds,
        name_outside_edge,
        add_lonely_node,
        miscount_nodes,
    ],
)
def test_check_of_new_nodes_finds_faults(bench, graph, spoil):
    seeds = np.random.default_rng(0).permutation(300)[:6]
    batch = draw_batch(graph, seeds)
    spoil(batch)
    with pytest.raises(bench.harness.CheckError, match="wrong sample"):
        bench.sample_check.check_new_nodes_expanded(*graph, seeds, FANOUTS, batch)


def expand_all_nodes(graph, seeds):
    """What GraphBolt's worker exports, drawn here by taking a node's first edges."""
    indptr, indices = graph
    batch, nodes = {}, seeds
    for hop, fanout in enumerate(FANOUTS):
        degrees = indptr[nodes + 1] - indptr[nodes]
        counts = degrees if fanout < 0 else np.minimum(degrees, fanout)
        drawn = [indices[indptr[v] : indptr[v] + n] for v, n in zip(nodes, counts, strict=True)]
        sources = np.concatenate(drawn).astype(np.int64)
        batch[f"targets{hop}"], batch[f"counts{hop}"] = nodes, counts
        batch[f"sources{hop}"], batch[f"compacted{hop}"] = sources, sources.copy()
        nodes = np.concatenate((nodes, np.setdiff1d(sources, nodes)))
    return batch


def test_check_of_all_nodes_finds_faults(bench, graph):
    check = bench.sample_check.check_all_nodes_expanded
    seeds = np.random.default_rng(1).permutation(300)[:10]
    check(*graph, seeds, FANOUTS, expand_all_nodes(graph, seeds))
    for name, change in (
        ("sources1", lambda values: values[0:1].repeat(len(values))),
        ("sources0", lambda values: (values + 1) % 300),
        ("compacted2", lambda values: values[::-1]),
        ("counts2", lambda values: values - 1),
        ("targets1", lambda values: np.sort(values)[::-1] // 2),
    ):
        batch = expand_all_nodes(graph, seeds)
        batch[name] = change(batch[name])
        with pytest.raises(bench.harness.CheckError, match="wrong sample"):
            check(*graph, seeds, FANOUTS, batch)

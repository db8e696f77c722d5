"""The meta-node contrastive loss against the dense form: time, kept bytes and peak memory.

scaling: forward and backward on given embeddings, over the number of nodes, with exponents fitted
to time, to the bytes that autograd keeps and to peak memory. step: a training step of the published
encoder at 10,000 nodes. datasets: the same on real graphs. Every figure of memory comes from a
process of its own; steps that are compared take turns in one process.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from environment import describe_environment
from harness import BenchError, check_json, run_entry
from options import make_parser, positive, positive_list
from report import write_json
from torch import Tensor

from gnnsys.clustering.encoders import make_encoder
from gnnsys.clustering.graph import open_graph
from gnnsys.config.cluster import ClusterConfig
from gnnsys.losses import PositivePairs, dense_contrastive_loss, influence_adjacency, pamc_loss

_EXAMPLES = """
examples:
  python scripts/bench/contrastive.py --json contrastive.json --plot contrastive.png
  python scripts/bench/contrastive.py --parts datasets --root data
  python scripts/bench/contrastive.py --parts scaling --sizes 1000,10000 --forms paper dense
"""
_FORMS = ("paper", "weighted", "moment1", "moment2", "node", "exact", "dense")
_QUADRATIC = ("exact", "dense")
_STEP_NODES, _STEP_FEATURES, _STEP_CLUSTERS = 10_000, 256, 10  # about those of usps
_HIDDEN, _DIM = (500, 500, 2000), 10
_DATASETS = ("acm", "dblp", "usps", "citeseer")
_ROUNDS = 5


# In a process of its own --------------------------------------------------------------------------


def work(job: dict[str, Any]) -> dict[str, Any]:
    """One job of a child process."""
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    return {"loss": _work_loss, "step": _work_step}[job["kind"]](job)


def _work_loss(job: dict[str, Any]) -> dict[str, Any]:
    """Forward and backward of one form on random embeddings."""
    nodes, form = job["nodes"], job["form"]
    z = torch.randn(nodes, job["width"], requires_grad=True)
    row = torch.arange(nodes).repeat_interleave(job["degree"])
    edges = torch.stack([row, torch.randint(0, nodes, row.shape)])
    weight = torch.rand(len(row))
    of = torch.randint(0, job["clusters"], (nodes,))
    begun = time.perf_counter()
    pairs = None if form == "dense" else PositivePairs(edges, weight, nodes)
    sorting = time.perf_counter() - begun
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def loss() -> Tensor:
        if pairs is None:
            return dense_contrastive_loss(z, edges, weight, 0.5)
        return pamc_loss(z, pairs, None, of, job["clusters"], 0.5, form)

    before = _resident()
    seconds = []
    for _ in range(job["rounds"]):
        z.grad = None
        begun = time.perf_counter()
        loss().backward()
        seconds.append(time.perf_counter() - begun)
    peak = _peak()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss()
    return {
        "seconds": seconds,
        "sorting_seconds": sorting,
        "kept_bytes": sum(kept.values()),
        "peak_bytes": max(0, peak - before),
        "peak_rss": peak,
    }


def _work_step(job: dict[str, Any]) -> dict[str, Any]:
    """Peak memory of a training step with one loss, or with none but the sum of the embedding."""
    step = _steps(*_random_step())[job["form"]]
    for _ in range(3):
        step()
    return {"peak_rss": _peak()}


def _random_step() -> tuple[Tensor, Tensor, Tensor, int, float]:
    """Features, pairs of nodes with weights, clusters and tau, of the size of usps."""
    row = torch.arange(_STEP_NODES).repeat_interleave(3)
    edges = torch.stack([row, (row + torch.randint(1, 20, row.shape)) % _STEP_NODES])
    pairs, weight = influence_adjacency(edges, _STEP_NODES, 4)
    return torch.rand(_STEP_NODES, _STEP_FEATURES), pairs, weight, _STEP_CLUSTERS, 0.5


def _steps(
    x: Tensor, edges: Tensor, weight: Tensor, clusters: int, tau: float
) -> dict[str, Callable[[], None]]:
    """Training steps of the published encoder by the loss they have."""
    torch.manual_seed(0)
    encoder = make_encoder("mlp", x.shape[1], _HIDDEN, _DIM)
    optimizer = torch.optim.Adam(encoder.parameters(), 1e-3)
    of = torch.randint(0, clusters, (len(x),))
    pairs = PositivePairs(edges, weight, len(x))
    losses: dict[str, Callable[[Tensor], Tensor]] = {
        "none": lambda z: z.sum(),
        "paper": lambda z: pamc_loss(z, pairs, None, of, clusters, tau),
        "dense": lambda z: dense_contrastive_loss(z, edges, weight, tau),
    }

    def step_of(loss: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        def step() -> None:
            optimizer.zero_grad()
            loss(encoder(x)).backward()
            optimizer.step()

        return step

    return {name: step_of(loss) for name, loss in losses.items()}


def _resident() -> int:
    """Bytes now; the peak counts from here on, where the kernel lets it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return psutil.Process().memory_info().rss


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise BenchError("/proc/self/status has no VmHWM")


def _in_child(job: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, "--worker", json.dumps(job)], capture_output=True, text=True
    )
    if done.returncode != 0:
        raise BenchError(f"{job}: failed with {done.returncode}: {done.stderr[-600:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# Parts --------------------------------------------------------------------------------------------


def scaling(options: argparse.Namespace) -> dict[str, Any]:
    """All forms over all sizes, as far as memory and patience reach."""
    cases: list[dict[str, Any]] = []
    for form in options.forms:
        for nodes in options.sizes:
            case = {"form": form, "nodes": nodes}
            job = {
                "kind": "loss", **case, "width": options.width,
                "degree": options.degree, "clusters": min(options.clusters, nodes),
                "rounds": options.rounds, "threads": options.threads,
            }  # fmt: skip
            reason = _reason_to_skip(form, nodes, cases)
            try:
                case |= {"left_out": reason} if reason else _in_child(job)
            except BenchError as error:  # such as a child that memory did not suffice for
                case["left_out"] = str(error)
            cases.append(case)
            print(_case_line(case), flush=True)
    exponents = {
        form: _exponents([c for c in cases if c["form"] == form]) for form in options.forms
    }
    for form, found in exponents.items():
        told = "  ".join(f"{name} {value:.3f}" for name, value in found.items())
        print(f"{form:9} exponents over the two largest sizes: {told}")
    return {"cases": cases, "exponents": exponents}


def _case_line(case: dict[str, Any]) -> str:
    if "left_out" in case:
        return f"{case['form']:9} {case['nodes']:>9,}  left out: {case['left_out']}"
    return (
        f"{case['form']:9} {case['nodes']:>9,}  {statistics.median(case['seconds']):8.3f} s  kept "
        f"{case['kept_bytes'] / 2**20:9.1f} MiB  peak above {case['peak_bytes'] / 2**20:9.1f} MiB  "
        f"RSS {case['peak_rss'] / 2**30:.2f} GiB  sorting {case['sorting_seconds']:.2f} s"
    )


def _reason_to_skip(form: str, nodes: int, cases: list[dict[str, Any]]) -> str:
    if form not in _QUADRATIC:
        return ""
    needed = 4 * 4 * nodes**2  # a few matrices of float32 at once
    if form == "dense" and needed > psutil.virtual_memory().available:
        return f"needs about {needed / 2**30:.0f} GiB"
    before = [case for case in cases if case["form"] == form and "seconds" in case]
    if before:
        last = before[-1]
        expected = statistics.median(last["seconds"]) * (nodes / last["nodes"]) ** 2
        if expected > 120:
            return f"would take about {expected:.0f} s each"
    return ""


def _exponents(cases: list[dict[str, Any]]) -> dict[str, float]:
    """Slopes between the two largest sizes, in logarithms."""
    done = [case for case in cases if "seconds" in case][-2:]
    if len(done) < 2:
        return {}
    ratio = math.log(done[1]["nodes"] / done[0]["nodes"])
    values = {
        "time": [statistics.median(case["seconds"]) for case in done],
        "kept": [case["kept_bytes"] for case in done],
        "peak": [max(1, case["peak_bytes"]) for case in done],
    }
    return {name: math.log(b / a) / ratio for name, (a, b) in values.items()}


def step(options: argparse.Namespace) -> dict[str, Any]:
    """Memory and time of a training step at the size of usps."""
    peaks = {
        form: statistics.median(
            _in_child({"kind": "step", "form": form, "threads": options.threads})["peak_rss"]
            for _ in range(options.rounds)
        )
        for form in ("none", "paper", "dense")
    }
    # About 0, or below, where the loss fits into what the encoder's own backward needs later.
    above = {form: peaks[form] - peaks["none"] for form in ("paper", "dense")}
    times = _take_turns(_steps(*_random_step()), options.rounds)
    found = {"peak_rss": peaks, "above_encoder": above, "seconds": times, **_ratios(times)}
    print(
        f"step at {_STEP_NODES:,} nodes: peak above that of the encoder alone: paper "
        f"{above['paper'] / 2**20:.0f} MiB, dense {above['dense'] / 2**20:.0f} MiB; {_told(times)}"
    )
    return found


def datasets(options: argparse.Namespace) -> dict[str, Any]:
    """An epoch of each dataset."""
    found = {}
    for name in _DATASETS:
        config = ClusterConfig(dataset=name, root=str(options.root)).filled_in()
        with open_graph(config) as graph:
            x = graph.data.x.materialize().float()
            order, tau = config.order or 1, config.tau or 1.0
            pairs, weight = influence_adjacency(graph.data.edge_index, graph.num_nodes, order)
            steps = _steps(x, pairs, weight, graph.num_classes or 2, tau)
        times = _take_turns(steps, options.rounds)
        found[name] = {"nodes": len(x), "pairs": len(weight), "seconds": times, **_ratios(times)}
        print(f"{name:9} {len(x):>7,} nodes {len(weight):>9,} pairs: {_told(times)}", flush=True)
    return found


def _take_turns(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            begun = time.perf_counter()
            steps[name]()
            if number:  # the first is the warm-up
                times[name].append(time.perf_counter() - begun)
    return times


def _ratios(times: dict[str, list[float]]) -> dict[str, float]:
    pairs = zip(times["dense"], times["paper"], strict=True)
    return {"dense_over_paper": statistics.median(dense / paper for dense, paper in pairs)}


def _told(times: dict[str, list[float]]) -> str:
    medians = {name: statistics.median(values) for name, values in times.items()}
    return (
        f"seconds: encoder alone {medians['none']:.3f}, paper {medians['paper']:.3f}, dense "
        f"{medians['dense']:.3f}: {_ratios(times)['dense_over_paper']:.2f} times"
    )


def draw(path: Path, cases: list[dict[str, Any]]) -> None:
    """Time, kept bytes and peak memory over the nodes, in logarithms."""
    from matplotlib.figure import Figure  # which the processes that are measured do without

    figure = Figure((13, 4.2), layout="constrained")
    about = {
        "seconds": ("forward and backward, s", statistics.median),
        "kept_bytes": ("kept for backward, bytes", float),
        "peak_bytes": ("peak above what was there, bytes", float),
    }
    for place, (key, (title, value)) in enumerate(about.items()):
        axes = figure.add_subplot(1, 3, place + 1)
        for form in dict.fromkeys(case["form"] for case in cases):
            done = [case for case in cases if case["form"] == form and key in case]
            axes.plot([c["nodes"] for c in done], [value(c[key]) for c in done], "o-", label=form)
        axes.set(xscale="log", yscale="log", xlabel="nodes", title=title)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


def run(options: argparse.Namespace) -> None:
    """All parts that are asked for."""
    found: dict[str, Any] = {}
    if "scaling" in options.parts:
        found["scaling"] = scaling(options)
        if options.plot is not None:
            draw(options.plot, found["scaling"]["cases"])
    if "step" in options.parts:
        found["step"] = step(options)
    if "datasets" in options.parts:
        found["datasets"] = datasets(options)
    if options.json is not None:
        described = {
            "format": 1,
            "benchmark": "contrastive",
            "environment": describe_environment(),
            "threads": options.threads,
            **found,
        }
        write_json(options.json, described)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = make_parser("contrastive.py", __doc__, _EXAMPLES)
    add = parser.add_argument
    parts = ("scaling", "step", "datasets")
    add(
        "--parts",
        nargs="+",
        choices=parts,
        default=["scaling", "step"],
        help="default: the first two",
    )
    add("--root", type=Path, default=Path("data"), help="of datasets, as gnnsys cluster has it")
    add("--forms", nargs="+", choices=_FORMS, default=list(_FORMS), help="default: all")
    add("--sizes", type=positive_list, default=[1000, 10_000, 100_000, 1_000_000], help="nodes")
    add("--width", type=positive, default=64, help="of embeddings; default 64")
    add("--clusters", type=positive, default=100, help="default 100")
    add("--degree", type=positive, default=16, help="pairs of a node; default 16")
    add("--rounds", type=positive, default=_ROUNDS, help="default 5")
    add("--threads", type=positive, default=os.cpu_count(), help="of torch; default: all cores")
    add("--json", type=Path, metavar="FILE", help="write figures and environment to FILE")
    add("--plot", type=Path, metavar="FILE", help="a picture of the scaling, .png")
    add("--worker", metavar="JOB", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    check_json(options.json)
    return options


def main(arguments: list[str] | None = None) -> int:
    """The entry."""
    options = parse_options(arguments)
    if options.worker is not None:
        print(json.dumps(work(json.loads(options.worker))))
        return 0
    return run_entry("contrastive.py", lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())

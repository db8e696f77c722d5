"""Hit ratios of all cache policies on traces of sampled mini-batches, no time measured.

The first half of a trace gives the score to every policy alike: the frequency of each node and,
where it is equal, the out-degree. The cache starts filled by it, and the second half is counted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import describe_environment
from harness import BenchError, check_json, run_entry
from numpy.typing import NDArray
from options import make_parser, positive, positive_list
from report import write_json

import gnnsys
from gnnsys.cache.simulator import simulate
from gnnsys.features.importance import ranked_importance
from gnnsys.features.replay import sampled_ids
from gnnsys.generate import generate_community, generate_rmat
from gnnsys.loaders import CSC

_BASELINES = ["lru", "lfu", "static", "sieve", "s3fifo"]
_WIDE = 64
_RUNS: list[tuple[str, Any, int, bool]] = [  # name, policy, window, prefilled
    *((policy, policy, 0, True) for policy in _BASELINES),
    ("lookahead 16 cold", "lookahead", 16, False),
    ("hybrid 16", "hybrid", 16, True),
    (f"hybrid {_WIDE}", "hybrid", _WIDE, True),
    ("belady", "belady", 0, True),
]
_EXAMPLES = """
Graphs: rmat20 (any scale), community20 (log2 of its nodes), or the path of an .npz with (n, 2)
undirected `edges`, such as the one of WorldHighways.

examples:
  python scripts/bench/hit_ratio.py rmat20 rmat22 community20 --json hit_ratio.json
  python scripts/bench/hit_ratio.py ../shared/data/WorldHighways/graph.npz
"""


def load_graph(name: str) -> CSC:
    """The graph of a name on the command line."""
    for kind in ("rmat", "community"):
        if not (name.startswith(kind) and name[len(kind) :].isdigit()):
            continue
        scale = int(name[len(kind) :])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "graph"
            if kind == "rmat":
                generate_rmat(path, scale=scale, features=1, seed=1)
            else:
                generate_community(path, nodes=1 << scale, classes=64, features=1, seed=1)
            graph = gnnsys.open_dataset(path).graph()
            return CSC(graph.indptr.clone(), graph.indices.clone())
    if not Path(name).is_file():
        raise BenchError(f"{name}: neither rmatN nor communityN nor a file")
    edges = torch.from_numpy(np.load(name)["edges"].astype(np.int64)).T
    both = torch.cat([edges, edges.flip(0)], dim=1)
    return CSC.from_edge_index(both, int(both.max()) + 1)


def compare(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """All policies on one graph at all capacities, printed as a table."""
    graph = load_graph(name)
    nodes = graph.num_nodes
    fanouts = options.fanouts
    run = sampled_ids(
        graph, torch.arange(nodes), fanouts, batch_size=options.batch, batches=options.batches
    )
    trace = [ids.astype(np.int32) for ids in run]
    half = len(trace) // 2
    counts = np.bincount(np.concatenate(trace[:half]), minlength=nodes)
    scores = ranked_importance("presample", counts, graph)
    touched = np.diff(graph.indptr.numpy()) > 0
    touched[graph.indices.numpy()] = True
    reachable = int(touched.sum())
    rows = sum(map(len, trace[half:]))
    print(
        f"\n{name}: {nodes} rows, {reachable} of them touch an edge; {len(trace) - half} batches "
        f"of {rows // (len(trace) - half)} rows counted"
    )
    print("capacity            " + "".join(f"{run[0]:>18}" for run in _RUNS))
    cases = []
    for share in options.capacities:
        for base, total in [("all rows", nodes), ("reachable rows", reachable)]:
            case = _case(trace[half:], scores, int(share / 100 * total))
            cases.append({"share": share, "of": base, **case})
            ratios = "".join(f"{case['hit_ratio'][run[0]]:18.4f}" for run in _RUNS)
            print(f"{share:3} % {base:15}{ratios}", flush=True)
            for line in _judge(case):
                print(f"      {line}", flush=True)
    return {"graph": name, "rows": nodes, "reachable": reachable, "cases": cases}


def _case(
    trace: list[NDArray[np.int32]], scores: NDArray[np.uint16], capacity: int
) -> dict[str, Any]:
    found = {
        name: simulate(
            trace, policy, capacity, window, num_rows=len(scores), scores=scores, prefill=prefill
        )
        for name, policy, window, prefill in _RUNS
    }
    return {
        "capacity": capacity,
        "hit_ratio": {name: result.hit_ratio for name, result in found.items()},
        "misses": {name: result.misses for name, result in found.items()},
    }


def _judge(case: dict[str, Any]) -> list[str]:
    ratio, misses = case["hit_ratio"], case["misses"]
    best = max(_BASELINES, key=lambda name: ratio[name])
    wide = f"hybrid {_WIDE}"

    def fewer(name: str) -> float:
        return 1 - misses[wide] / misses[name] if misses[name] else 0.0

    return [
        f"{wide}: {ratio[wide] / max(ratio['belady'], 1e-12):.1%} of Belady's hit ratio; misses "
        f"fewer than static {fewer('static'):.1%}, than sieve {fewer('sieve'):.1%}",
        *(
            f"{name} LOSES to {best}: {ratio[name]:.4f} < {ratio[best]:.4f}"
            for name in ("hybrid 16", wide)
            if ratio[name] < ratio[best]
        ),
    ]


def main(arguments: list[str] | None = None) -> int:
    """Runs the comparison from the command line; returns the exit status."""
    parser = make_parser("hit_ratio.py", __doc__, _EXAMPLES)
    parser.add_argument("graphs", nargs="+", metavar="GRAPH")
    parser.add_argument("--fanouts", type=_fanouts, default=[10, 5], help="default 10,5")
    parser.add_argument("--batch", type=positive, default=1024, help="seeds; default 1024")
    parser.add_argument("--batches", type=positive, default=400, help="default 400")
    parser.add_argument(
        "--capacities", type=positive_list, default=[1, 5, 10, 25], help="per cent of the rows"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all counts to FILE")
    options = parser.parse_args(arguments)

    def job() -> None:
        check_json(options.json)
        if options.batches < 2:
            raise BenchError(f"--batches {options.batches} < 2: half of them give the score")
        results = [compare(name, options) for name in options.graphs]
        if options.json is not None:
            described = {"environment": describe_environment(), "graphs": results}
            write_json(options.json, described)

    return run_entry("hit_ratio.py", job)


def _fanouts(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())

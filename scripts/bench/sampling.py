"""Neighbour sampling on an R-MAT graph: gnnsys against DGL's GraphBolt and PyTorch Geometric."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import BenchError, Case, Implementation, Rate, Sample, run_benchmark, run_entry, timed
from minibatch import (
    PeerKind,
    Workload,
    add_workload_options,
    check_workload_options,
    find_graph,
    start_peers,
)
from options import make_parser
from peers import Peer
from sample_check import check_all_nodes_expanded, check_new_nodes_expanded

from gnnsys.loaders import CSC, NeighborSampler

_WARM_SECONDS = 0.2  # after a pause the scheduler needs so long to spread threads over cores
_RATES = (
    Rate(amount="edges", unit="million edges/s", scale=1e6),
    Rate(amount="batches", unit="batches/s"),
)
_EXAMPLES = """
Peers are found by the python of the environment that holds them (scripts/bench/peer_env makes such
environments); without --dgl and --pyg gnnsys runs alone. In a round all sample the same batches of
seeds, fast samplers some more; the next round starts further on. GraphBolt expands all nodes so far
in every hop, gnnsys and PyG only the new ones: compare edges/s where the work is meant, batches/s
where the batch is. PyG samples on one thread.

examples:
  python scripts/bench/sampling.py --dgl dgl/bin/python --pyg pyg/bin/python --json sampling.json
  python scripts/bench/sampling.py --scale 22 --graph-dir graph22 --dgl dgl/bin/python
  python scripts/bench/sampling.py --quick --scale 12 --batches 2
"""


@dataclass(frozen=True, slots=True)
class SamplingWork(Workload):
    """What is sampled, and for how long."""

    least_seconds: float

    def first(self, number: int) -> int:
        """The batch that round ``number`` starts with."""
        return number * self.batches

    def warm_first(self, number: int) -> int:
        """The batch that its warm-up starts with: half the seeds away."""
        return self.first(number) + len(self.graph.seeds) // self.batch_size // 2


_PEERS = {
    # The first has the ids that DGL's own data sets have, the second is its faster choice.
    "GraphBolt int64": PeerKind("dgl", "graphbolt.py", ("int64",)),
    "GraphBolt int32": PeerKind("dgl", "graphbolt.py", ("int32",)),
    "PyG": PeerKind("pyg", "pyg.py"),
}
_CHECKS = {
    "GraphBolt int64": check_all_nodes_expanded,
    "GraphBolt int32": check_all_nodes_expanded,
    "PyG": check_new_nodes_expanded,
}


def make_case(
    work: SamplingWork, peers: dict[str, Peer], exchange: Path, threads: int, labels: dict[str, Any]
) -> Case:
    """gnnsys and the peers that started, with that many threads each."""
    bases = tuple(peers) or ("gnnsys",)
    return Case(
        labels={"threads": threads, **labels},
        rates=_RATES,
        bases=bases,
        implementations=[
            _implement_ours(work, threads),
            *(_implement_peer(work, name, peer, exchange, threads) for name, peer in peers.items()),
        ],
    )


def _implement_ours(work: SamplingWork, threads: int) -> Implementation:
    graph = CSC(torch.from_numpy(work.graph.indptr), torch.from_numpy(work.graph.indices))
    sampler = NeighborSampler(graph, work.fanouts, threads=threads)

    def check() -> None:
        out = sampler.sample(work.seeds(0), group=0, epoch=0)
        batch = {name: getattr(out, name).numpy() for name in ("node", "row", "col", "edge")}
        batch["nodes_per_hop"] = np.asarray(out.num_sampled_nodes)
        batch["edges_per_hop"] = np.asarray(out.num_sampled_edges)
        _check_sample(work, check_new_nodes_expanded, batch)

    def sample_until(
        number: int, first: int, batches: int, least_seconds: float
    ) -> dict[str, float]:
        start, done, edges = time.perf_counter(), 0, 0
        while done < batches or time.perf_counter() - start < least_seconds:
            out = sampler.sample(work.seeds(first + done), group=first + done, epoch=number)
            edges += out.row.numel()
            done += 1
        return {"edges": edges, "batches": done}

    def run(number: int) -> Sample:
        sample_until(number, work.warm_first(number), 1, _WARM_SECONDS)
        first = work.first(number)
        amounts: dict[str, float] = {}
        sample = timed(
            lambda: amounts.update(sample_until(number, first, work.batches, work.least_seconds))
        )
        sample.amounts = amounts
        return sample

    return Implementation(name="gnnsys", check=check, run=run)


def _implement_peer(
    work: SamplingWork, name: str, peer: Peer, exchange: Path, threads: int
) -> Implementation:
    shared = {"threads": threads, "fanouts": work.fanouts, "batch_size": work.batch_size}
    durations = {"warm_seconds": _WARM_SECONDS, "least_seconds": work.least_seconds}

    def check() -> None:
        file = exchange / f"{name}.npz"
        peer.ask({"job": "export", "first": 0, "file": str(file), **shared})
        with np.load(file) as batch:
            _check_sample(work, _CHECKS[name], dict(batch))

    def run(number: int) -> Sample:
        first = {"first": work.first(number), "warm_first": work.warm_first(number)}
        request = {"job": "sample", "batches": work.batches, **first, **shared, **durations}
        return Sample(**peer.ask(request))

    return Implementation(name=name, check=check, run=run, is_peer=True)


def _check_sample(work: SamplingWork, check: Callable[..., None], batch: dict[str, Any]) -> None:
    graph = work.graph
    check(graph.indptr, graph.indices, work.seeds(0).numpy(), work.fanouts, batch)


def run(options: argparse.Namespace) -> None:
    """Measures what the options say."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        folder, graph = find_graph(options, Path(scratch))
        peers, records = start_peers(_PEERS, options, folder, stack)

        def make_cases() -> Iterator[Case]:
            for fanouts, threads in itertools.product(options.fanouts, options.threads):
                size, batches = options.batch_size, options.batches
                work = SamplingWork(graph, fanouts, size, batches, options.least_seconds)
                labels = {"scale": options.scale, "fanouts": fanouts, "batch": size}
                yield make_case(work, peers, Path(scratch), threads, labels)

        run_benchmark(
            "sampling",
            make_cases(),
            options,
            cache_state=(
                f"graph resident in memory; CPU caches warm from {_WARM_SECONDS} s of sampling "
                "other seeds before each timed run"
            ),
            notes={"nodes": graph.spec.num_nodes, "edges": graph.spec.num_edges},
            peers=records,
        )


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = make_parser("sampling.py", __doc__, _EXAMPLES)
    add_workload_options(parser, batches=20, fanouts=[[15, 10, 5]])
    parser.add_argument(
        "--least-seconds",
        type=float,
        default=0.5,
        metavar="S",
        help="a timed run goes on with further batches until it took so long; default 0.5",
    )
    options = parser.parse_args(arguments)
    check_workload_options(options)
    if not 0 <= options.least_seconds < math.inf:
        raise BenchError(f"--least-seconds {options.least_seconds}: expected 0 or more")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    return run_entry("sampling.py", lambda: run(parse_options(arguments)))


if __name__ == "__main__":
    sys.exit(main())

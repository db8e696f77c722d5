"""Neighbour sampling on an R-MAT graph: gnnsys against DGL's GraphBolt and PyTorch Geometric."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import (
    BenchError,
    Case,
    Implementation,
    Rate,
    Sample,
    add_options,
    check_options,
    run_benchmark,
    timed,
)
from options import positive, positive_list
from peers import Peer, PeerError
from rmat import RmatGraph, RmatSpec, make_rmat, open_rmat
from sample_check import check_all_nodes_expanded, check_new_nodes_expanded
from torch import Tensor

from gnnsys.loaders import CSC, NeighborSampler

_WORKERS = Path(__file__).resolve().parent / "workers"
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
class Workload:
    """The graph, and what is sampled from it."""

    graph: RmatGraph
    fanouts: list[int]
    batch_size: int
    batches: int
    least_seconds: float

    def batch(self, number: int) -> Tensor:
        """Seeds of a batch; after the last seed comes the first. Workers do the same."""
        positions = np.arange(number * self.batch_size, (number + 1) * self.batch_size)
        return torch.from_numpy(np.take(self.graph.seeds, positions, mode="wrap"))

    def first(self, number: int) -> int:
        """The batch that round ``number`` starts with."""
        return number * self.batches

    def warm_first(self, number: int) -> int:
        """The batch that its warm-up starts with: half the seeds away."""
        return self.first(number) + len(self.graph.seeds) // self.batch_size // 2


@dataclass(frozen=True, slots=True)
class PeerKind:
    """How a peer is started, and what its samples must look like."""

    environment: str
    """Option that names the python of its environment."""
    script: str
    arguments: tuple[str, ...]
    check: Callable[..., None]


_PEERS = {
    # The first has the ids that DGL's own data sets have, the second is its faster choice.
    "GraphBolt int64": PeerKind("dgl", "graphbolt.py", ("int64",), check_all_nodes_expanded),
    "GraphBolt int32": PeerKind("dgl", "graphbolt.py", ("int32",), check_all_nodes_expanded),
    "PyG": PeerKind("pyg", "pyg.py", (), check_new_nodes_expanded),
}


def make_case(
    work: Workload, peers: dict[str, Peer], exchange: Path, threads: int, labels: dict[str, Any]
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


def _implement_ours(work: Workload, threads: int) -> Implementation:
    graph = CSC(torch.from_numpy(work.graph.indptr), torch.from_numpy(work.graph.indices))
    sampler = NeighborSampler(graph, work.fanouts, threads=threads)

    def check() -> None:
        out = sampler.sample(work.batch(0), group=0, epoch=0)
        batch = {name: getattr(out, name).numpy() for name in ("node", "row", "col", "edge")}
        batch["nodes_per_hop"] = np.asarray(out.num_sampled_nodes)
        batch["edges_per_hop"] = np.asarray(out.num_sampled_edges)
        _check_sample(work, check_new_nodes_expanded, batch)

    def sample_until(
        number: int, first: int, batches: int, least_seconds: float
    ) -> dict[str, float]:
        start, done, edges = time.perf_counter(), 0, 0
        while done < batches or time.perf_counter() - start < least_seconds:
            out = sampler.sample(work.batch(first + done), group=first + done, epoch=number)
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
    work: Workload, name: str, peer: Peer, exchange: Path, threads: int
) -> Implementation:
    shared = {"threads": threads, "fanouts": work.fanouts, "batch_size": work.batch_size}
    durations = {"warm_seconds": _WARM_SECONDS, "least_seconds": work.least_seconds}

    def check() -> None:
        file = exchange / f"{name}.npz"
        peer.ask({"job": "export", "first": 0, "file": str(file), **shared})
        with np.load(file) as batch:
            _check_sample(work, _PEERS[name].check, dict(batch))

    def run(number: int) -> Sample:
        first = {"first": work.first(number), "warm_first": work.warm_first(number)}
        request = {"job": "sample", "batches": work.batches, **first, **shared, **durations}
        return Sample(**peer.ask(request))

    return Implementation(name=name, check=check, run=run, is_peer=True)


def _check_sample(work: Workload, check: Callable[..., None], batch: dict[str, Any]) -> None:
    graph = work.graph
    check(graph.indptr, graph.indices, work.batch(0).numpy(), work.fanouts, batch)


def start_peers(
    pythons: dict[str, Path | None], folder: Path, stack: contextlib.ExitStack
) -> tuple[dict[str, Peer], dict[str, Any]]:
    """Starts workers; returns those that are ready, and what is known of all that were asked for.

    Args:
        pythons: by the name of the environment; None where it was not given.
        folder: of the graph.
        stack: that ends the workers.
    """
    peers, records = {}, {}
    for name, kind in _PEERS.items():
        python = pythons[kind.environment]
        if python is None:
            continue
        try:
            peer = Peer(python, _WORKERS / kind.script, [str(folder), *kind.arguments])
        except PeerError as error:
            records[name] = {"error": str(error)}
        else:
            peers[name] = stack.enter_context(peer)
            records[name] = peer.ready
    return peers, records


def find_graph(options: argparse.Namespace, scratch: Path) -> tuple[Path, RmatGraph]:
    """Opens the graph in ``--graph-dir``, or makes it there or in ``scratch``."""
    spec = RmatSpec(scale=options.scale, degree=options.degree, seed=options.seed)
    folder = options.graph_dir or scratch / "graph"
    if folder.exists():
        graph = open_rmat(folder, spec)
    else:
        print(f"making the graph in {folder}", flush=True)
        graph = make_rmat(folder, spec)
    if len(graph.seeds) < options.batch_size:
        raise BenchError(
            f"--batch-size {options.batch_size} > {len(graph.seeds)} nodes with in-neighbours at "
            f"--scale {options.scale}"
        )
    return folder, graph


def run(options: argparse.Namespace) -> None:
    """Measures what the options say."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        folder, graph = find_graph(options, Path(scratch))
        work = Workload(
            graph, options.fanouts, options.batch_size, options.batches, options.least_seconds
        )
        pythons = {"dgl": options.dgl, "pyg": options.pyg}
        peers, records = start_peers(pythons, folder, stack)
        labels = {"scale": options.scale, "fanouts": options.fanouts, "batch": options.batch_size}

        def make_cases() -> Iterator[Case]:
            for threads in options.threads:
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


def _interpreter(text: str) -> Path:
    # Not resolved: a virtual environment's python is a link whose own place matters.
    path = Path(text).absolute()
    if not path.is_file() or not os.access(path, os.X_OK):
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a program; give bin/python of the peer's environment"
        )
    return path


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = argparse.ArgumentParser(
        prog="sampling.py",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--scale", type=positive, default=20, help="log2 of the nodes; default 20")
    add("--degree", type=positive, default=16, help="edges per node; default 16")
    add(
        "--fanouts",
        type=int,
        nargs="+",
        default=[15, 10, 5],
        metavar="N",
        help="neighbours per node and hop, nearest the seeds first, -1 for all; default 15 10 5",
    )
    add("--batch-size", type=positive, default=1024, help="seeds per batch; default 1024")
    add("--batches", type=positive, default=20, help="per timed run, at least; default 20")
    add(
        "--least-seconds",
        type=float,
        default=0.5,
        metavar="S",
        help="a timed run goes on with further batches until it took so long; default 0.5",
    )
    add("--threads", type=positive_list, default=[1, 2], metavar="N,…", help="default 1,2")
    add("--seed", type=int, default=1, help="of the graph; default 1")
    add("--dgl", type=_interpreter, metavar="PYTHON", help="of an environment with DGL")
    add("--pyg", type=_interpreter, metavar="PYTHON", help="of one with pyg-lib or torch-sparse")
    add(
        "--graph-dir",
        type=Path,
        metavar="DIR",
        help="keep the graph there for the next run; without it, it is made anew",
    )
    add_options(parser)
    options = parser.parse_args(arguments)
    check_options(options)
    if not 0 <= options.least_seconds < math.inf:
        raise BenchError(f"--least-seconds {options.least_seconds}: expected 0 or more")
    if any(fanout == 0 or fanout < -1 for fanout in options.fanouts):
        raise BenchError(f"--fanouts {options.fanouts}: each is -1 (all neighbours) or at least 1")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    try:
        run(parse_options(arguments))
    except BenchError as error:
        print(f"sampling.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

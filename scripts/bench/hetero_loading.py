"""Loading mini-batches of a graph with types, with all features gathered: gnnsys and GraphBolt."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import BenchError, Case, Implementation, Rate, run_benchmark, run_entry
from minibatch import PeerKind, check_workload_options, start_peers
from numpy.typing import NDArray
from options import make_parser
from passes import CACHE_STATE, DIM, LoaderPass, PassWork, PeerPass, add_pass_options
from peers import Peer
from torch_geometric.data import HeteroData
from typed_check import check_typed_batch
from typed_rmat import SEED_TYPE, TypedGraph, TypedSpec, make_typed, open_typed

_PEERS = {"GraphBolt": PeerKind("dgl", "graphbolt_typed.py")}
_IDS = ("int64", "int32")  # those of DGL's own data sets, and its faster choice
_RATES = (
    Rate(amount="batches", unit="batches/s"),
    Rate(amount="edges", unit="million edges/s", scale=1e6),
    Rate(amount="bytes", unit="GB of features/s", scale=1e9),
)
_EXAMPLES = """
The graph has the types of DBLP (typed_rmat.py), features of float32 x 128 for each type and seeds
of one. Fanouts hold for each edge type. GraphBolt expands all nodes so far in every hop, gnnsys
only the new ones: compare edges/s where the work is meant, batches/s where the batch is.

examples:
  python scripts/bench/hetero_loading.py --dgl dgl/bin/python --json hetero.json
  python scripts/bench/hetero_loading.py --quick --scale 12 --batch-size 64 --batches 2
"""

Features = Mapping[str, NDArray[np.float32]]


def make_data(graph: TypedGraph, features: Features) -> HeteroData:
    """The graph as a user of PyG holds it, edges sorted by target."""
    data = HeteroData()
    for name, rows in features.items():
        data[name].x = torch.from_numpy(rows)
    for kind, (indptr, indices) in graph.relations.items():
        targets = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
        data[kind].edge_index = torch.from_numpy(np.stack([indices, targets]))
    return data


def export(batch: HeteroData) -> dict[str, NDArray[Any]]:
    """What ``check_typed_batch`` wants of a batch of PyG."""
    arrays = {}
    for name in batch.node_types:
        arrays[f"node {name}"] = batch[name].n_id.numpy()
        arrays[f"x {name}"] = batch[name].x.numpy()
        arrays[f"hops {name}"] = np.asarray(batch[name].num_sampled_nodes)
    for kind in batch.edge_types:
        edges, name = batch[kind], "_".join(kind)
        arrays[f"row {name}"], arrays[f"col {name}"] = edges.edge_index.numpy()
        arrays[f"edge {name}"] = edges.e_id.numpy()
        arrays[f"first {name}"] = np.asarray(edges.num_sampled_edges[0])
    return arrays


def implement_ours(data: HeteroData, work: PassWork, threads: int) -> Implementation:
    """gnnsys' loader as it is by default."""
    loading = LoaderPass(data, work, threads, seed_type=SEED_TYPE)

    def check() -> None:
        features = {name: data[name].x.numpy() for name in data.node_types}
        seeds = work.seeds(0).numpy()
        batch = export(loading.first_batch())
        check_typed_batch(work.graph, features, seeds, work.fanouts, batch)

    return Implementation(name="gnnsys", check=check, run=loading.run)


def implement_peers(
    peers: Mapping[str, Peer],
    work: PassWork,
    features: Features,
    threads: int,
    workers: list[int],
    exchange: Path,
) -> Iterator[Implementation]:
    """The peers that started, each with every type of ids and number of loader processes."""
    for number, (name, peer), ids in itertools.product(workers, peers.items(), _IDS):
        full_name = f"{name} {ids}, {number} workers" if number else f"{name} {ids}"
        runs = PeerPass(peer, work, threads, {"workers": number, "ids": ids})

        def check(runs: PeerPass = runs, file: Path = exchange / f"{full_name}.npz") -> None:
            runs.ask("export", file=str(file))
            with np.load(file) as batch:
                seeds = work.seeds(0).numpy()
                check_typed_batch(work.graph, features, seeds, work.fanouts, dict(batch))
            file.unlink()

        yield runs.implement(full_name, "load", check)


def find_graph(options: argparse.Namespace, scratch: Path) -> tuple[Path, TypedGraph]:
    """Opens the graph in ``--graph-dir``, or makes it there or in ``scratch``."""
    spec = TypedSpec(scale=options.scale, seed=options.seed, dim=DIM)
    folder = options.graph_dir or scratch / "graph"
    if folder.exists():
        graph = open_typed(folder, spec)
    else:
        print(f"making the graph in {folder}", flush=True)
        graph = make_typed(folder, spec)
    if len(graph.seeds) < options.batch_size:
        raise BenchError(
            f"--batch-size {options.batch_size} > {len(graph.seeds)} nodes of type {SEED_TYPE} "
            f"with in-neighbours at --scale {options.scale}"
        )
    return folder, graph


def run(options: argparse.Namespace) -> None:
    """Measures what the options say."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        folder, graph = find_graph(options, Path(scratch))
        peers, records = start_peers(_PEERS, options, folder, stack)
        features = {name: np.load(folder / f"{name}.npy") for name in graph.spec.num_nodes}
        data = make_data(graph, features)
        edges = {"_".join(kind): count for kind, count in graph.spec.num_edges.items()}
        notes = {"nodes": graph.spec.num_nodes, "edges": edges}
        bases = [f"{name} {ids}" for name, ids in itertools.product(peers, _IDS)]

        def make_cases() -> Iterator[Case]:
            for fanouts, threads in itertools.product(options.fanouts, options.threads):
                size = options.batch_size
                work = PassWork(graph, fanouts, size, options.batches, options.rounds)
                torch.set_num_threads(threads)
                workers = [0, *options.workers]
                theirs = implement_peers(peers, work, features, threads, workers, Path(scratch))
                labels = {"scale": options.scale, "fanouts": fanouts, "batch": size}
                yield Case(
                    labels={"threads": threads, **labels},
                    rates=_RATES,
                    bases=tuple(bases) or ("gnnsys",),
                    implementations=[implement_ours(data, work, threads), *theirs],
                )

        run_benchmark(
            "hetero_loading",
            make_cases(),
            options,
            cache_state=CACHE_STATE,
            notes=notes,
            peers=records,
        )


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = make_parser("hetero_loading.py", __doc__, _EXAMPLES)
    add_pass_options(parser, batches=40, typed=True)
    options = parser.parse_args(arguments)
    check_workload_options(options)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    return run_entry("hetero_loading.py", lambda: run(parse_options(arguments)))


if __name__ == "__main__":
    sys.exit(main())

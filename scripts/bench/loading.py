"""Loading mini-batches, sampled and with their features gathered: gnnsys, GraphBolt and PyG."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Case, CheckError, Implementation, Rate, run_benchmark, run_entry
from loader_memory import measure_memory, memory_line
from minibatch import check_workload_options, find_graph, start_peers
from numpy.typing import NDArray
from options import make_parser, positive_list
from passes import (
    CACHE_STATE,
    DIM,
    PEERS,
    LoaderPass,
    PassWork,
    PeerPass,
    add_pass_options,
    make_data,
)
from peers import Peer
from sample_check import check_new_nodes_expanded
from torch_geometric.data import Data

_PIPES: dict[str, tuple[str, dict[str, Any]]] = {
    # By the peer and its settings. DGL's own data sets have int64 ids, int32 is its faster choice.
    "GraphBolt int64": ("GraphBolt", {"ids": "int64"}),
    "GraphBolt int32": ("GraphBolt", {"ids": "int32"}),
    "PyG": ("PyG", {}),
}
_RATES = (
    Rate(amount="batches", unit="batches/s"),
    Rate(amount="bytes", unit="GB of features/s", scale=1e9),
)
_EXAMPLES = """
Features are float32 x 128. Peers are found by the python of the environment that holds them
(scripts/bench/peer_env makes such environments); without --dgl and --pyg gnnsys runs alone. Peers
load in the consumer's process, and with --workers also in so many processes beside it; gnnsys
always uses threads of one process. GraphBolt expands all nodes so far in every hop, so its batches
are larger from equal fanouts: GB/s counts that, batches/s does not.

examples:
  python scripts/bench/loading.py --dgl dgl/bin/python --pyg pyg/bin/python --json loading.json
  python scripts/bench/loading.py --scale 22 --graph-dir graph22 --dgl dgl/bin/python --workers 2
  python scripts/bench/loading.py --quick --scale 12 --batches 2
"""


def check_batch(
    work: PassWork, features: NDArray[np.float32], batch: dict[str, NDArray[Any]]
) -> None:
    """Compares a first batch with graph and features.

    Args:
        work: whose round 0 it belongs to.
        features: (nodes, dim) of the graph.
        batch: "node" ids and "x" their features; where it has edges ("row", "col", "edge"), what
            ``check_new_nodes_expanded`` wants.

    Raises:
        CheckError: the batch is wrong.
    """
    seeds = work.seeds(0).numpy()
    node, x = batch["node"].astype(np.int64), batch["x"]
    if not np.array_equal(node[: len(seeds)], seeds):
        raise CheckError("wrong batch: the seeds are not its first nodes")
    expected = features[node]
    same = x.shape == expected.shape and x.dtype == expected.dtype
    if not same or x.tobytes() != expected.tobytes():
        raise CheckError("wrong batch: its features are not features[nodes] bit for bit")
    if "row" in batch:
        graph = work.graph
        check_new_nodes_expanded(graph.indptr, graph.indices, seeds, work.fanouts, batch)


def implement_ours(data: Data, work: PassWork, threads: int) -> Implementation:
    """gnnsys' loader as it is by default."""
    loading = LoaderPass(data, work, threads)

    def check() -> None:
        batch = loading.first_batch()
        row, col = batch.edge_index
        tensors = {"node": batch.n_id, "row": row, "col": col, "edge": batch.e_id, "x": batch.x}
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        arrays["nodes_per_hop"] = np.asarray(batch.num_sampled_nodes)
        arrays["edges_per_hop"] = np.asarray(batch.num_sampled_edges)
        check_batch(work, data.x.numpy(), arrays)

    return Implementation(name="gnnsys", check=check, run=loading.run)


def implement_peers(
    peers: dict[str, Peer],
    work: PassWork,
    features: NDArray[np.float32],
    threads: int,
    workers: list[int],
    exchange: Path,
) -> Iterator[Implementation]:
    """The peers that started, each with every number of loader processes."""
    for number, (name, (peer, settings)) in itertools.product(workers, _PIPES.items()):
        if peer not in peers:
            continue
        full_name = f"{name}, {number} workers" if number else name
        runs = PeerPass(peers[peer], work, threads, {"workers": number, **settings})

        def check(runs: PeerPass = runs, file: Path = exchange / f"{full_name}.npz") -> None:
            runs.ask("export", file=str(file))
            with np.load(file) as batch:
                check_batch(work, features, dict(batch))
            file.unlink()

        yield runs.implement(full_name, "load", check)


def run(options: argparse.Namespace) -> None:
    """Measures what the options say."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        folder, graph = find_graph(options, Path(scratch), DIM)
        peers, records = start_peers(PEERS, options, folder, stack)
        features = np.load(folder / "features.npy")
        data = make_data(graph, features, labels=None)
        memory: list[dict[str, Any]] = []
        notes = {"nodes": graph.spec.num_nodes, "edges": graph.spec.num_edges, "memory": memory}

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
                    bases=tuple(name for name, (peer, _) in _PIPES.items() if peer in peers)
                    or ("gnnsys",),
                    implementations=[implement_ours(data, work, threads), *theirs],
                )
                for window in options.windows:
                    memory.append(measure_memory(folder, work, threads, window))
                    print(memory_line(memory[-1]), flush=True)

        run_benchmark(
            "loading",
            make_cases(),
            options,
            cache_state=CACHE_STATE,
            notes=notes,
            peers=records,
        )


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = make_parser("loading.py", __doc__, _EXAMPLES)
    add_pass_options(parser, batches=40)
    parser.add_argument(
        "--windows",
        type=positive_list,
        default=[4, 8],
        metavar="N,…",
        help="batches that gnnsys samples ahead where its memory is measured; default 4,8",
    )
    options = parser.parse_args(arguments)
    check_workload_options(options)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    return run_entry("loading.py", lambda: run(parse_options(arguments)))


if __name__ == "__main__":
    sys.exit(main())

"""Training GraphSAGE end to end on sampled mini-batches: gnnsys against DGL and PyG."""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from harness import Case, CheckError, Implementation, Rate, run_benchmark, run_entry
from minibatch import check_workload_options, find_graph, start_peers
from options import make_parser
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
from torch import Tensor
from torch_geometric.data import Data
from workers.sage import FORWARDS, make_sage, make_step

import gnnsys
from gnnsys.training.models import NodeClassifier

_CLASSES = 16
_HIDDEN = 128
_LEARNING_RATE = 1e-3
_MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    # By the peer, its model and the settings of its loader.
    "DGL": ("GraphBolt", "blocks", {"ids": "int32"}),
    "PyG plain": ("PyG", "plain", {}),
    "PyG trimmed": ("PyG", "trimmed", {}),
    "PyG CSR": ("PyG", "csr", {}),
}
_RATES = (Rate(amount="batches", unit="batches/s"),)
_BASES = ("DGL", "PyG CSR", "PyG plain")
# Allowed errors relative to float64, by norm: on the default batches rounding makes 5e-7 in float32
# and 0.07 in bfloat16, most of it in gradients where it turns the sign of a ReLU's input.
_FLOAT32_ERROR = 1e-5
_BFLOAT16_ERROR = 0.1
_EXAMPLES = f"""
GraphSAGE with a layer for each hop, {_HIDDEN} hidden and float32 x {DIM} input features and
{_CLASSES} classes, trained by Adam; the time is that of whole steps, loading included. All but DGL
train one model:

  gnnsys stock    PyG's GraphSAGE unchanged, on the batches of gnnsys.NeighborLoader
  gnnsys trimmed  the same, given PyG's own arguments num_sampled_nodes_per_hop and ..edges..
  gnnsys fused, gnnsys trimmed+fused   these two after gnnsys.fuse(model)
  gnnsys          gnnsys.training.models.NodeClassifier: a layer computes what later ones need
  gnnsys bf16+labor   that under autocast to bfloat16, on LABOR-sampled batches: other arithmetic
                  and other batches, not for comparisons at equal work (--bf16-labor)
  DGL             dgl.nn.SAGEConv on the blocks of GraphBolt's data pipe, ids of int32
  PyG plain, PyG trimmed   as above, on the batches of PyG's NeighborLoader
  PyG CSR         the same model trimmed by hand, aggregating with torch's sparse matrices

With --keep-freed-memory this process, not the peers', calls gnnsys.keep_freed_memory() first.

Peers are found by the python of the environment that holds them (scripts/bench/peer_env makes such
environments); without --dgl and --pyg gnnsys runs alone.

examples:
  python scripts/bench/training.py --dgl dgl/bin/python --pyg pyg/bin/python --json training.json
  python scripts/bench/training.py --scale 22 --graph-dir graph22 --dgl dgl/bin/python --bf16-labor
  python scripts/bench/training.py --quick --scale 12 --batches 2
"""

Forward = Callable[[Any, Any], Tensor]


class Checker:
    """Compares models with PyG's plain one in float64 on the first batch of a loader.

    What is compared are the outputs for the seeds and the gradients of the loss.
    """

    def __init__(self, loading: LoaderPass, layers: int) -> None:
        self._loading = loading
        self._layers = layers

    @cached_property
    def _batch(self) -> Data:
        return self._loading.first_batch()

    @cached_property
    def _expected(self) -> dict[str, Tensor]:
        exact = copy.copy(self._batch)
        exact.x = self._batch.x.double()
        return _outputs(make_model(self._layers).double(), FORWARDS["plain"], exact)

    def check(self, model: torch.nn.Module, forward: Forward, tolerance: float) -> None:
        """Raises CheckError unless outputs and gradients are those of the plain model.

        Args:
            model: with the weights of ``make_model``.
            forward: gives the class scores of a batch's nodes.
            tolerance: norm of an error, relative to the norm of what is expected.
        """
        found = _outputs(copy.deepcopy(model), forward, self._batch)
        for name, expected in self._expected.items():
            error = ((found[name] - expected).norm() / expected.norm()).item()
            if not error <= tolerance:
                raise CheckError(
                    f"wrong model: {name} differs from that of the plain model by {error:.2g} of "
                    f"its norm, {tolerance:g} is allowed"
                )


def _outputs(model: torch.nn.Module, forward: Forward, batch: Data) -> dict[str, Tensor]:
    out = forward(model, batch)[: batch.batch_size]
    F.cross_entropy(out, batch.y[: batch.batch_size]).backward()
    gradients = {
        f"the gradient of {name.removeprefix('gnn.')}": parameter.grad
        for name, parameter in model.named_parameters()
    }
    return {"the output": out.detach(), **gradients}


def make_model(layers: int) -> torch.nn.Module:
    """PyG's GraphSAGE, with the same weights each time."""
    return make_sage(DIM, _HIDDEN, _CLASSES, layers)


def make_fused(layers: int) -> torch.nn.Module:
    """The same with fused layers."""
    return gnnsys.fuse(make_model(layers))


def make_classifier(layers: int) -> NodeClassifier:
    """gnnsys' model with the weights of ``make_model``."""
    model = NodeClassifier(
        "sage", in_channels=DIM, hidden=_HIDDEN, out_channels=_CLASSES, layers=layers, dropout=0.0
    )
    model.gnn.load_state_dict(make_model(layers).state_dict())
    return model


def _classify(model: NodeClassifier, batch: Data) -> Tensor:
    return model(batch.x, batch.edge_index, batch.num_sampled_nodes, batch.num_sampled_edges)


def _classify_in_bfloat16(model: NodeClassifier, batch: Data) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return _classify(model, batch).float()


def implement_ours(loading: LoaderPass, checker: Checker, layers: int) -> Iterator[Implementation]:
    """The models of one loader's batches."""
    yield implement("gnnsys stock", loading, checker, make_model(layers), FORWARDS["plain"])
    yield implement("gnnsys trimmed", loading, checker, make_model(layers), FORWARDS["trimmed"])
    yield implement("gnnsys fused", loading, checker, make_fused(layers), FORWARDS["plain"])
    fused, forward = make_fused(layers), FORWARDS["trimmed"]
    yield implement("gnnsys trimmed+fused", loading, checker, fused, forward)
    yield implement("gnnsys", loading, checker, make_classifier(layers), _classify)


def implement_bf16_labor(data: Data, work: PassWork, threads: int) -> Implementation:
    """gnnsys' model under autocast, on batches of its own."""
    loading = LoaderPass(data, work, threads, sampling="labor")
    layers = len(work.fanouts)
    model, checker = make_classifier(layers), Checker(loading, layers)
    forward, tolerance = _classify_in_bfloat16, _BFLOAT16_ERROR
    return implement("gnnsys bf16+labor", loading, checker, model, forward, tolerance)


def implement(
    name: str,
    loading: LoaderPass,
    checker: Checker,
    model: torch.nn.Module,
    forward: Forward,
    tolerance: float = _FLOAT32_ERROR,
) -> Implementation:
    """A model that trains on gnnsys' batches."""
    step = make_step(model, forward, _LEARNING_RATE)
    return Implementation(
        name=name,
        check=lambda: checker.check(model, forward, tolerance),
        run=lambda number: loading.run(number, step),
    )


def implement_peers(
    peers: dict[str, Peer], work: PassWork, checker: Checker, threads: int, workers: list[int]
) -> Iterator[Implementation]:
    """The models of the peers that started, each with every number of loader processes."""
    network = {"hidden": _HIDDEN, "classes": _CLASSES, "lr": _LEARNING_RATE}
    for number, (name, (peer, model, settings)) in itertools.product(workers, _MODELS.items()):
        if peer not in peers:
            continue
        runs = PeerPass(
            peers[peer],
            work,
            threads,
            {"workers": number, "model": model, **network, **settings},
        )

        def check(runs: PeerPass = runs, model: str = model) -> None:
            if model in FORWARDS:
                checker.check(make_model(len(work.fanouts)), FORWARDS[model], _FLOAT32_ERROR)
            losses = runs.ask("loss", models=[model, "plain"] if model in FORWARDS else [model])
            loss = losses[model]
            expected = losses.get("plain", loss)
            if not (math.isfinite(loss) and math.isclose(loss, expected, rel_tol=_FLOAT32_ERROR)):
                raise CheckError(f"wrong model: its first loss is {loss}, that of plain {expected}")

        yield runs.implement(f"{name}, {number} workers" if number else name, "train", check)


def make_case(
    data: Data, work: PassWork, peers: dict[str, Peer], threads: int, options: argparse.Namespace
) -> Case:
    """gnnsys and the peers that started, with that many threads each."""
    torch.set_num_threads(threads)
    layers = len(work.fanouts)
    loading = LoaderPass(data, work, threads)
    checker = Checker(loading, layers)
    ours = list(implement_ours(loading, checker, layers))
    if options.bf16_labor:
        ours.append(implement_bf16_labor(data, work, threads))
    theirs = list(implement_peers(peers, work, checker, threads, [0, *options.workers]))
    names = {one.name for one in theirs}
    labels = {"scale": options.scale, "fanouts": work.fanouts, "batch": work.batch_size}
    return Case(
        labels={"threads": threads, **labels},
        rates=_RATES,
        bases=tuple(base for base in _BASES if base in names) or ("gnnsys stock",),
        implementations=ours + theirs,
    )


def run(options: argparse.Namespace) -> None:
    """Measures what the options say."""
    if options.keep_freed_memory:
        gnnsys.keep_freed_memory()
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        folder, graph = find_graph(options, Path(scratch), DIM)
        draw = np.random.default_rng((options.seed, 2))
        labels = draw.integers(_CLASSES, size=graph.spec.num_nodes)
        labels_file = Path(scratch) / "labels.npy"
        np.save(labels_file, labels)
        kinds = {name: replace(kind, arguments=(str(labels_file),)) for name, kind in PEERS.items()}
        peers, records = start_peers(kinds, options, folder, stack)
        data = make_data(graph, np.load(folder / "features.npy"), torch.from_numpy(labels))

        def make_cases() -> Iterator[Case]:
            for fanouts, threads in itertools.product(options.fanouts, options.threads):
                work = PassWork(graph, fanouts, options.batch_size, options.batches, options.rounds)
                yield make_case(data, work, peers, threads, options)

        run_benchmark(
            "training",
            make_cases(),
            options,
            cache_state=CACHE_STATE,
            notes={
                "nodes": graph.spec.num_nodes,
                "edges": graph.spec.num_edges,
                "features": DIM,
                "hidden": _HIDDEN,
                "classes": _CLASSES,
                "learning_rate": _LEARNING_RATE,
                "keep_freed_memory": options.keep_freed_memory,
            },
            peers=records,
        )


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = make_parser("training.py", __doc__, _EXAMPLES)
    add_pass_options(parser, batches=10)
    parser.add_argument(
        "--bf16-labor",
        action="store_true",
        help="measure gnnsys with autocast to bfloat16 and LABOR sampling too",
    )
    parser.add_argument(
        "--keep-freed-memory",
        action="store_true",
        help="let gnnsys' process keep freed memory, as gnnsys train does",
    )
    options = parser.parse_args(arguments)
    check_workload_options(options)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    return run_entry("training.py", lambda: run(parse_options(arguments)))


if __name__ == "__main__":
    sys.exit(main())

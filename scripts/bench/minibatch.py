"""What the benchmarks of mini-batches share: their options, the graph, its seeds and the peers."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import BenchError, add_options, check_options
from options import positive, positive_list
from peers import Peer, PeerError
from rmat import RmatGraph, RmatSpec, make_rmat, open_rmat
from torch import Tensor
from typed_rmat import TypedGraph

__all__ = [
    "PeerKind",
    "Workload",
    "add_graph_options",
    "add_workload_options",
    "check_workload_options",
    "find_graph",
    "interpreter",
    "start_peers",
]

_WORKERS = Path(__file__).resolve().parent / "workers"


@dataclass(frozen=True, slots=True)
class Workload:
    """The graph, and what is sampled from it."""

    graph: RmatGraph | TypedGraph
    fanouts: list[int]
    batch_size: int
    batches: int
    """Timed in a round."""

    def seeds(self, number: int, batches: int = 1) -> Tensor:
        """Seeds of successive batches; after the last seed comes the first. Workers do the same."""
        positions = np.arange(number * self.batch_size, (number + batches) * self.batch_size)
        return torch.from_numpy(np.take(self.graph.seeds, positions, mode="wrap"))


@dataclass(frozen=True, slots=True)
class PeerKind:
    """How a peer's worker is started."""

    environment: str
    """Option that names the python of its environment."""
    script: str
    arguments: tuple[str, ...] = ()


def start_peers(
    kinds: Mapping[str, PeerKind],
    options: argparse.Namespace,
    folder: Path,
    stack: contextlib.ExitStack,
) -> tuple[dict[str, Peer], dict[str, Any]]:
    """Starts workers; returns those that are ready, and what is known of all that were asked for.

    Args:
        kinds: by the name of the peer; left out where its environment was not given.
        options: with the pythons of the environments.
        folder: of the graph.
        stack: that ends the workers.
    """
    peers, records = {}, {}
    for name, kind in kinds.items():
        python = getattr(options, kind.environment)
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


def find_graph(options: argparse.Namespace, scratch: Path, dim: int = 0) -> tuple[Path, RmatGraph]:
    """Opens the graph in ``--graph-dir``, or makes it there or in ``scratch``.

    Args:
        options: with those of ``add_graph_options``.
        scratch: an existing folder.
        dim: features of a node that the folder must hold; 0 where they do not matter.
    """
    spec = RmatSpec(scale=options.scale, degree=options.degree, seed=options.seed, dim=dim)
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


def add_graph_options(
    parser: argparse.ArgumentParser,
    *,
    batches: int,
    fanouts: list[list[int]],
    typed: bool = False,
) -> None:
    """The options of the graph, of what is sampled from it, and of the harness.

    Args:
        parser: that takes them.
        batches: default of ``--batches``.
        fanouts: default of ``--fanouts``.
        typed: whether it is a graph of ``typed_rmat``, which has the degrees of its types.
    """
    add = parser.add_argument
    add("--scale", type=positive, default=20, help="log2 of the nodes; default 20")
    if not typed:
        add("--degree", type=positive, default=16, help="edges per node; default 16")
    add(
        "--fanouts",
        type=int,
        nargs="+",
        action="append",
        metavar="N",
        help="neighbours per node and hop, nearest the seeds first, -1 for all; give it again for "
        f"a further case; default {' and '.join(' '.join(map(str, one)) for one in fanouts)}",
    )
    add("--batch-size", type=positive, default=1024, help="seeds per batch; default 1024")
    add("--batches", type=positive, default=batches, help=f"per timed run; default {batches}")
    add("--seed", type=int, default=1, help="of the graph; default 1")
    add(
        "--graph-dir",
        type=Path,
        metavar="DIR",
        help="keep the graph there for the next run; without it, it is made anew",
    )
    add_options(parser)
    parser.set_defaults(default_fanouts=fanouts)


def add_workload_options(
    parser: argparse.ArgumentParser,
    *,
    batches: int,
    fanouts: list[list[int]],
    typed: bool = False,
) -> None:
    """Those of ``add_graph_options``, with threads and peers."""
    add_graph_options(parser, batches=batches, fanouts=fanouts, typed=typed)
    add = parser.add_argument
    add("--threads", type=positive_list, default=[1, 2], metavar="N,…", help="default 1,2")
    add("--dgl", type=interpreter, metavar="PYTHON", help="of an environment with DGL")
    if not typed:
        add("--pyg", type=interpreter, metavar="PYTHON", help="of one with pyg-lib or torch-sparse")


def check_workload_options(options: argparse.Namespace) -> None:
    """Completes and checks the options of ``add_graph_options``.

    Raises:
        BenchError: a fanout that says nothing, or what ``harness.check_options`` refuses.
    """
    check_options(options)
    default = vars(options).pop("default_fanouts")
    options.fanouts = options.fanouts or default
    for fanouts in options.fanouts:
        if any(fanout == 0 or fanout < -1 for fanout in fanouts):
            raise BenchError(f"--fanouts {fanouts}: each is -1 (all neighbours) or at least 1")


def interpreter(text: str) -> Path:
    """The python of a peer's environment."""
    # Not resolved: a virtual environment's python is a link whose own place matters.
    path = Path(text).absolute()
    if not path.is_file() or not os.access(path, os.X_OK):
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a program; give bin/python of the peer's environment"
        )
    return path

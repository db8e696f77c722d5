"""Passes over mini-batches: those of gnnsys' loader in this process, those of peers in theirs.

In a round every implementation gets the same seeds: ``WARM_BATCHES`` before the clock starts, those
that are timed, and ``AHEAD_BATCHES`` that are not awaited. What a loader had ready when the clock
started it can have ready again when the clock stops, and starting threads or processes is no part
of the figure.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from harness import Implementation, Sample, timed
from minibatch import PeerKind, Workload, add_workload_options
from numpy.typing import NDArray
from options import positive_list
from peers import Peer
from rmat import RmatGraph
from torch import Tensor
from torch_geometric.data import Data, HeteroData

from gnnsys import NeighborLoader

__all__ = [
    "AHEAD_BATCHES",
    "CACHE_STATE",
    "DIM",
    "PEERS",
    "WARM_BATCHES",
    "LoaderPass",
    "PassWork",
    "PeerPass",
    "add_pass_options",
    "make_data",
]

DIM = 128
WARM_BATCHES = 4
AHEAD_BATCHES = 8  # as many as the largest window measured here
PEERS = {
    "GraphBolt": PeerKind("dgl", "graphbolt_batches.py"),
    "PyG": PeerKind("pyg", "pyg_batches.py"),
}
CACHE_STATE = (
    f"graph and features resident in memory; {WARM_BATCHES} batches of the same pass precede the "
    "timed ones"
)


@dataclass(frozen=True, slots=True)
class PassWork(Workload):
    """The graph, and the batches that a pass goes over."""

    rounds: int
    """Timed ones."""

    @property
    def pass_batches(self) -> int:
        """Batches of a pass, those included that are not timed."""
        return WARM_BATCHES + self.batches + AHEAD_BATCHES

    def first(self, number: int) -> int:
        """The batch that the pass of round ``number`` starts with."""
        return number * self.pass_batches


def make_data(graph: RmatGraph, features: NDArray[np.float32], labels: Tensor | None) -> Data:
    """The graph as a user of PyG holds it, edges sorted by target."""
    nodes = graph.spec.num_nodes
    targets = np.repeat(np.arange(nodes), np.diff(graph.indptr))
    edge_index = torch.from_numpy(np.stack([graph.indices, targets]))
    return Data(torch.from_numpy(features), edge_index, y=labels, num_nodes=nodes)


class LoaderPass:
    """gnnsys' loader over the batches of all rounds.

    Args:
        data: of ``make_data``.
        work: what to load.
        threads: of the loader.
        seed_type: of the seeds, where nodes have types.
        **options: of ``NeighborLoader``.
    """

    def __init__(
        self,
        data: Data | HeteroData,
        work: PassWork,
        threads: int,
        seed_type: str | None = None,
        **options: Any,
    ) -> None:
        self._work = work
        seeds = work.seeds(0, work.first(work.rounds + 1))
        self._loader = NeighborLoader(
            data,
            work.fanouts,
            input_nodes=seeds if seed_type is None else (seed_type, seeds),
            batch_size=work.batch_size,
            is_sorted=True,
            threads=threads,
            **options,
        )

    def first_batch(self) -> Any:
        """The first batch of round 0."""
        self._loader.set_epoch(0)
        return next(iter(self._loader))

    def run(self, number: int, consume: Callable[[Any], object] = lambda batch: None) -> Sample:
        """Times ``consume`` on the batches of a round, their loading included."""
        self._loader.set_epoch(number, first_batch=self._work.first(number))
        batches = iter(self._loader)
        for _ in range(WARM_BATCHES):
            consume(next(batches))
        amounts: Counter[str] = Counter()

        def job() -> None:
            for _ in range(self._work.batches):
                batch = next(batches)
                consume(batch)
                rows = [store.x for store in batch.node_stores]
                amounts.update(
                    batches=1,
                    nodes=sum(map(len, rows)),
                    edges=batch.num_edges,
                    bytes=sum(x.nbytes for x in rows),
                )

        sample = timed(job)
        sample.amounts = dict(amounts)
        return sample


@dataclass(frozen=True, slots=True)
class PeerPass:
    """A peer's passes over the batches of the same seeds."""

    peer: Peer
    work: PassWork
    threads: int
    settings: dict[str, Any]
    """What else the peer's jobs want to know."""

    def ask(self, job: str, number: int = 0, **more: Any) -> dict[str, Any]:
        """Lets the peer do a job on the batches of a round."""
        return self.peer.ask(
            {
                "job": job,
                "threads": self.threads,
                "fanouts": self.work.fanouts,
                "batch_size": self.work.batch_size,
                "first": self.work.first(number),
                "warm": WARM_BATCHES,
                "batches": self.work.batches,
                "ahead": AHEAD_BATCHES,
                **self.settings,
                **more,
            }
        )

    def implement(self, name: str, job: str, check: Callable[[], None]) -> Implementation:
        """The peer's ``job`` as an implementation to measure."""
        return Implementation(
            name=name,
            check=check,
            run=lambda number: Sample(**self.ask(job, number)),
            is_peer=True,
        )


def add_pass_options(parser: argparse.ArgumentParser, *, batches: int, typed: bool = False) -> None:
    """Those of ``add_workload_options`` and what else benchmarks of loaders share."""
    fanouts = [[15, 10, 5], [25, 10]]
    add_workload_options(parser, batches=batches, fanouts=fanouts, typed=typed)
    parser.add_argument(
        "--workers",
        type=positive_list,
        default=[],
        metavar="N,…",
        help="measure peers with so many loader processes too",
    )

"""GraphSAGE trained on a device, features in host memory: how its rows get there.

The batches are the same for all. In the first case they are sampled beforehand, so that what
differs is the way of the rows alone; in the second a loader samples and gathers while the model
trains.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_device import Gpu, add_device_option, implement
from harness import Case, CheckError, Implementation, Rate, run_benchmark, run_entry
from minibatch import add_graph_options, check_workload_options, find_graph
from options import make_parser
from passes import AHEAD_BATCHES, DIM, LoaderPass, PassWork, make_data
from torch import Tensor
from torch_geometric.data import Data
from workers.sage import FORWARDS, make_sage, make_step

import gnnsys
from gnnsys.cache import CachedStore
from gnnsys.loaders import CSC, NeighborSampler
from gnnsys.memory import HostStore
from gnnsys.unified_tensor import UnifiedTensor

_HIDDEN, _CLASSES, _LR = 128, 16, 0.003
_CACHED = 0.2
_STAGED = "CPU gather + copy"
_RATES = (
    Rate(amount="batches", unit="batches/s"),
    Rate(amount="bytes", unit="GB of features/s", scale=1e9),
)
_EXAMPLES = """
`CPU gather + copy` is what PyG's NeighborLoader does: torch.index_select into pinned memory, then a
copy.

examples:
  python scripts/bench/gpu_training.py --json training.json
  python scripts/bench/gpu_training.py --quick --device simt --scale 8 --batch-size 16 --batches 2
"""

Fetch = Callable[[list[Data]], Iterator[Tensor]]
"""Rows of batches, one batch after the other, on the device."""


@dataclass(frozen=True, slots=True)
class Ways:
    """The ways of rows to the device.

    Args:
        gpu: that trains.
        x: (nodes, DIM) in host memory.
        unified: the same rows.
        degrees: (nodes,) how often rows will be needed.
    """

    gpu: Gpu
    x: Tensor
    unified: UnifiedTensor
    degrees: Tensor

    def all(self) -> dict[str, Fetch]:
        """By name."""
        return {
            _STAGED: self._staged(),
            "zero-copy": self._unified(),
            f"cache of {_CACHED:.0%} on the device": self._cached(),
            "all on the device": self._resident(),
        }

    def _staged(self) -> Fetch:
        def fetch(batches: list[Data]) -> Iterator[Tensor]:
            for batch in batches:
                rows = self.gpu.pinned(torch.empty(len(batch.n_id), self.x.shape[1]))
                torch.index_select(self.x, 0, batch.n_id, out=rows)
                yield rows.to(self.gpu.torch_device, non_blocking=True)

        return fetch

    def _unified(self) -> Fetch:
        return lambda batches: (self.unified[batch.n_id] for batch in batches)

    def _resident(self) -> Fetch:
        x = self.x.to(self.gpu.torch_device)
        return lambda batches: (x[batch.n_id.to(x.device)] for batch in batches)

    def _cached(self) -> Fetch:
        store = CachedStore(
            HostStore(self.x), cache=_CACHED, scores=self.degrees, device=self.gpu.name
        )

        def fetch(batches: list[Data]) -> Iterator[Tensor]:
            tickets: list[Any] = []
            for number, batch in enumerate(batches):
                for ahead in batches[len(tickets) : number + 1 + store.lookahead]:
                    tickets.append(store.announce(ahead.n_id))
                yield store.gather(batch.n_id, ticket=tickets[number]).to(self.gpu.torch_device)

        return fetch


class Sampled:
    """Batches of a round, sampled beforehand; edges and labels are on the device.

    Args:
        gpu: that trains.
        work: what is sampled.
        labels: (nodes,).
    """

    def __init__(self, gpu: Gpu, work: PassWork, labels: Tensor) -> None:
        graph = CSC(torch.from_numpy(work.graph.indptr), torch.from_numpy(work.graph.indices))
        self._sampler = NeighborSampler(graph, work.fanouts)
        self._gpu, self._work, self._labels = gpu, work, labels
        self.batches: list[Data] = []

    def prepare(self, number: int) -> None:
        """Samples those of a round."""
        first = number * self._work.batches
        self.batches = [self._sample(first + i) for i in range(self._work.batches)]

    def _sample(self, number: int) -> Data:
        seeds, device = self._work.seeds(number), self._gpu.torch_device
        out = self._sampler.sample(seeds, group=number, epoch=0)
        return Data(
            n_id=out.node,
            edge_index=torch.stack([out.row, out.col]).to(device),
            y=self._labels[seeds].to(device),
            batch_size=len(seeds),
        )


def sampled_case(
    gpu: Gpu, work: PassWork, x: Tensor, unified: UnifiedTensor, labels: Tensor, **about: Any
) -> Case:
    """The ways of rows, batches being there."""
    sampled = Sampled(gpu, work, labels)
    degrees = torch.from_numpy(np.bincount(work.graph.indices, minlength=len(x)))

    def way(name: str, fetch: Fetch) -> Implementation:
        step = _make_step(gpu, work)

        def check() -> None:
            first = sampled.batches[:1]
            for batch, rows in zip(first, fetch(first), strict=True):
                if not torch.equal(rows.cpu(), x[batch.n_id]):
                    raise CheckError("rows are not those of the features")

        def train() -> dict[str, float]:
            nbytes = 0
            for batch, rows in zip(sampled.batches, fetch(sampled.batches), strict=True):
                batch.x = rows
                step(batch)
                del batch.x
                nbytes += rows.nbytes
            return {"batches": len(sampled.batches), "bytes": nbytes}

        return implement(name, lambda number: gpu.timed(train), check)

    return Case(
        labels={"batches": "sampled beforehand", **about},
        rates=_RATES,
        bases=(_STAGED,),
        implementations=[
            way(name, fetch) for name, fetch in Ways(gpu, x, unified, degrees).all().items()
        ],
        prepare=sampled.prepare,
    )


def loader_case(
    gpu: Gpu, work: PassWork, x: Tensor, unified: UnifiedTensor, labels: Tensor, **about: Any
) -> Case:
    """Loaders of gnnsys, whose features are a tensor or unified."""
    plain = make_data(work.graph, x.numpy(), labels)
    other = make_data(work.graph, x.numpy(), labels)
    other.x = unified

    def way(name: str, data: Data, **options: Any) -> Implementation:
        step = _make_step(gpu, work)
        loader = LoaderPass(data, work, 0, **options)

        def consume(batch: Data) -> None:
            step(batch.to(gpu.torch_device, non_blocking=True)).item()

        return implement(name, lambda number: loader.run(number, consume))

    def sampler() -> NeighborSampler:
        return NeighborSampler(plain, work.fanouts, is_sorted=True, device=gpu.name)

    return Case(
        labels={"batches": "from a loader", **about},
        rates=_RATES,
        bases=(_STAGED,),
        implementations=[
            way(_STAGED, plain, pin_memory=gpu.is_cuda),
            way("zero-copy", other),
            way("zero-copy, kernels sample", other, neighbor_sampler=sampler()),
        ],
    )


def _make_step(gpu: Gpu, work: PassWork) -> Callable[[Data], Tensor]:
    model = make_sage(DIM, _HIDDEN, _CLASSES, len(work.fanouts)).to(gpu.torch_device)
    return make_step(model, FORWARDS["plain"], _LR)


def run(options: argparse.Namespace) -> None:
    """Measures what the options say."""
    gpu = Gpu(options.device)
    with tempfile.TemporaryDirectory() as scratch:
        _, graph = find_graph(options, Path(scratch))
        draw = torch.Generator().manual_seed(options.seed)
        x = torch.randn(graph.spec.num_nodes, DIM, generator=draw)
        unified = gnnsys.unified(x, device=gpu.name)
        labels = torch.randint(_CLASSES, (len(x),), generator=draw)

        def make_cases() -> Iterator[Case]:
            for fanouts in options.fanouts:
                work = PassWork(graph, fanouts, options.batch_size, options.batches, options.rounds)
                about = {
                    "scale": options.scale, "fanouts": fanouts, "batch": options.batch_size
                }  # fmt: skip
                yield sampled_case(gpu, work, x, unified, labels, **about)
                yield loader_case(gpu, work, x, unified, labels, **about)

        run_benchmark(
            "gpu_training",
            make_cases(),
            options,
            cache_state=(
                "features resident in host memory; the cache keeps its rows from round to round; "
                f"of loaders {AHEAD_BATCHES} batches are not awaited"
            ),
            notes={
                "dim": DIM, "hidden": _HIDDEN, "nodes": graph.spec.num_nodes,
                "edges": graph.spec.num_edges, **gpu.describe(),
            },
        )  # fmt: skip


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = make_parser("gpu_training.py", __doc__, _EXAMPLES)
    add_graph_options(parser, batches=20, fanouts=[[15, 10, 5]])
    add_device_option(parser)
    options = parser.parse_args(arguments)
    check_workload_options(options)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    return run_entry("gpu_training.py", lambda: run(parse_options(arguments)))


if __name__ == "__main__":
    sys.exit(main())

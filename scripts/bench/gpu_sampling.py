"""Neighbour sampling on an R-MAT graph: by kernels, and by the CPU's sampler, the same batches."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from gpu_device import Gpu, add_device_option, implement
from harness import Case, CheckError, Implementation, Rate, run_benchmark, run_entry
from minibatch import Workload, add_graph_options, check_workload_options, find_graph
from options import make_parser

from gnnsys.loaders import CSC, NeighborSampler

_RATES = (
    Rate(amount="edges", unit="million edges/s", scale=1e6),
    Rate(amount="batches", unit="batches/s"),
)
_CPU = "CPU sampler"
_EXAMPLES = """
All cores of the CPU sample beside the kernels; the time of a batch ends when it is there.

examples:
  python scripts/bench/gpu_sampling.py --scale 22 --json sampling.json
  python scripts/bench/gpu_sampling.py --quick --device simt --scale 8 --batch-size 16 --batches 1
"""


def make_case(gpu: Gpu, work: Workload, scale: int) -> Case:
    """Both samplers on one graph."""
    graph = CSC(torch.from_numpy(work.graph.indptr), torch.from_numpy(work.graph.indices))
    cpu = NeighborSampler(graph, work.fanouts)

    def way(name: str, device: str) -> Implementation:
        sampler = NeighborSampler(graph, work.fanouts, device=device)

        def sample(number: int) -> dict[str, float]:
            amounts: Counter[str] = Counter()
            for batch in range(number * work.batches, (number + 1) * work.batches):
                out = sampler.sample(work.seeds(batch), group=batch, epoch=number)
                amounts.update(batches=1, edges=out.row.numel())
            return amounts

        def check() -> None:
            found, expected = (
                each.sample(work.seeds(0), group=0, epoch=0) for each in (sampler, cpu)
            )
            for part in ("node", "row", "col", "edge"):
                if not torch.equal(getattr(found, part).cpu(), getattr(expected, part)):
                    raise CheckError(f"{part}: not that of the CPU's sampler")

        return implement(name, lambda number: gpu.timed(partial(sample, number)), check)

    return Case(
        labels={"scale": scale, "fanouts": work.fanouts, "batch": work.batch_size},
        rates=_RATES,
        bases=(_CPU,),
        implementations=[way(_CPU, "cpu"), way("kernels", gpu.name)],
    )


def run(options: argparse.Namespace) -> None:
    """Measures what the options say."""
    gpu = Gpu(options.device)
    with tempfile.TemporaryDirectory() as scratch:
        _, graph = find_graph(options, Path(scratch))

        def make_cases() -> Iterator[Case]:
            for fanouts in options.fanouts:
                work = Workload(graph, fanouts, options.batch_size, options.batches)
                yield make_case(gpu, work, options.scale)

        run_benchmark(
            "gpu_sampling",
            make_cases(),
            options,
            cache_state="graph resident; other seeds are sampled in each round",
            notes={"nodes": graph.spec.num_nodes, "edges": graph.spec.num_edges, **gpu.describe()},
        )


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = make_parser("gpu_sampling.py", __doc__, _EXAMPLES)
    add_graph_options(parser, batches=20, fanouts=[[15, 10, 5]])
    add_device_option(parser)
    options = parser.parse_args(arguments)
    check_workload_options(options)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    return run_entry("gpu_sampling.py", lambda: run(parse_options(arguments)))


if __name__ == "__main__":
    sys.exit(main())

"""Training steps of PyG's layers, as they are and after gnnsys.fuse, on the same batches."""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from harness import (
    BenchError,
    Case,
    CheckError,
    Implementation,
    Rate,
    Sample,
    run_benchmark,
    run_entry,
    timed,
)
from minibatch import add_graph_options, check_workload_options, find_graph
from options import make_parser, positive, positive_list
from passes import make_data
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GATv2Conv, GCNConv, SAGEConv, TransformerConv

import gnnsys
from gnnsys.dataset.named import NAMED, find_folder, load_raw
from gnnsys.errors import MissingFileError

_DIM = 128
_CLASSES = 16
_LEARNING_RATE = 1e-3
_TOLERANCE = 1e-5
_LAYERS: dict[str, Callable[..., nn.Module]] = {
    # heads * channels come out
    "gcn": lambda before, heads, channels: GCNConv(before, heads * channels),
    "gat": lambda before, heads, channels: GATConv(before, channels, heads),
    "gatv2": lambda before, heads, channels: GATv2Conv(before, channels, heads),
    "transformer": lambda before, heads, channels: TransformerConv(before, channels, heads),
    "sage": lambda before, heads, channels: SAGEConv(before, heads * channels),
}
_RATES = (
    Rate(amount="cpu_steps", unit="steps per CPU second"),
    Rate(amount="steps", unit="steps/s"),
)
_BASE = "PyG"
_EXAMPLES = f"""
Two layers with ReLU between them, {_CLASSES} classes where the data has none of its own, cross
entropy and Adam; of attention, --heads heads in the first layer. A step is forward, backward and
optimizer.

  rmat      batches of gnnsys.NeighborLoader on an R-MAT graph with {_DIM} features, sampled before
            the clock starts; in each round other tensors, so that nothing is known of their edges
  pubmed, tolokers, …   epochs of full-batch training; edges are the same tensors each time

"difference" is the largest one of the models' outputs before training, and of the gradients of
their parameters, relative to the largest output and the largest gradient.

examples:
  python scripts/bench/fused_layers.py --root data --keep-freed-memory --json fused_layers.json
  python scripts/bench/fused_layers.py --inputs tolokers --models gcn gat --root data --threads 1
  python scripts/bench/fused_layers.py --quick --inputs rmat --scale 12 --batches 2
"""


@dataclass(frozen=True, slots=True)
class Batch:
    """What a step computes with."""

    x: Tensor
    """(n, features)."""
    edge_index: Tensor
    """(2, e)."""
    y: Tensor
    """(seeds,) classes."""
    seeds: Tensor | slice
    """Rows of x whose outputs count."""

    def with_new_edges(self) -> Batch:
        """The same with edges of which nothing is known."""
        return Batch(self.x, self.edge_index.clone(), self.y, self.seeds)


class Net(nn.Module):
    """Two layers of one kind."""

    def __init__(self, kind: str, features: int, hidden: int, heads: int, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        make = _LAYERS[kind]
        self.first = make(features, heads, hidden // heads)
        self.last = make(hidden, 1, classes)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """(n, features) to (n, classes)."""
        return self.last(F.relu(self.first(x, edge_index)), edge_index)


class Training:
    """One kind of network on one list of batches, plain and fused."""

    def __init__(self, make: Callable[[], Net], batches: list[Batch], steps: int) -> None:
        self._make, self._known, self._steps = make, batches, steps
        self._batches = batches

    def renew(self, number: int) -> None:
        """Lets nothing be known of the edges in this round."""
        self._batches = [batch.with_new_edges() for batch in self._known]

    @cached_property
    def differences(self) -> dict[str, float]:
        """The largest ones of outputs and of gradients, relative to the largest of each."""
        plain, fused = (self._compute(model) for model in (self._make(), gnnsys.fuse(self._make())))
        return {
            name: float((fused[name] - value).abs().max() / value.abs().max())
            for name, value in plain.items()
        }

    def _compute(self, model: nn.Module) -> dict[str, Tensor]:
        """Outputs on the first batch, and the gradients of all parameters by its loss."""
        batch = self._known[0]
        out = model(batch.x, batch.edge_index)
        F.cross_entropy(out[batch.seeds], batch.y).backward()
        gradients = [each.grad.flatten() for each in model.parameters()]
        return {"outputs": out.detach(), "gradients": torch.cat(gradients)}

    def check(self) -> None:
        """Raises CheckError where outputs or gradients differ by more than rounding."""
        for name, difference in self.differences.items():
            if not difference <= _TOLERANCE:
                raise CheckError(
                    f"wrong model: {name} differ by {difference:.2g} of the largest, "
                    f"{_TOLERANCE:g} is allowed"
                )

    def implement(self, name: str, model: nn.Module) -> Implementation:
        """Steps of a model, which goes on learning from round to round."""
        optimizer = torch.optim.Adam(model.parameters(), lr=_LEARNING_RATE)

        def job() -> None:
            for batch in itertools.islice(itertools.cycle(self._batches), self._steps):
                optimizer.zero_grad()
                out = model(batch.x, batch.edge_index)[batch.seeds]
                F.cross_entropy(out, batch.y).backward()
                optimizer.step()

        def run(number: int) -> Sample:
            sample = timed(job, steps=self._steps)
            # Rates are by wall time.
            sample.amounts["cpu_steps"] = self._steps * sample.seconds / sample.cpu_seconds
            return sample

        return Implementation(name=name, check=self.check, run=run)


def make_case(
    labels: dict[str, Any], batches: list[Batch], kind: str, options: argparse.Namespace
) -> Case:
    """PyG and gnnsys on these batches."""
    classes = max(_CLASSES, *(int(batch.y.max()) + 1 for batch in batches))
    shape = (batches[0].x.shape[1], options.hidden, options.heads, classes)
    training = Training(lambda: Net(kind, *shape), batches, options.batches)
    is_full = labels["input"] != "rmat"
    return Case(
        labels={"model": kind, **labels, "difference": f"{max(training.differences.values()):.1e}"},
        rates=_RATES,
        bases=(_BASE,),
        implementations=[
            training.implement(_BASE, Net(kind, *shape)),
            training.implement("gnnsys.fuse", gnnsys.fuse(Net(kind, *shape))),
        ],
        prepare=(lambda number: None) if is_full else training.renew,
    )


def sample_batches(options: argparse.Namespace, fanouts: list[int], scratch: Path) -> list[Batch]:
    """Of the R-MAT graph."""
    folder, graph = find_graph(options, scratch, _DIM)
    draw = np.random.default_rng((options.seed, 2))
    labels = torch.from_numpy(draw.integers(_CLASSES, size=graph.spec.num_nodes))
    data = make_data(graph, np.load(folder / "features.npy"), labels)
    count, size = options.batches, options.batch_size
    seeds = torch.from_numpy(np.resize(graph.seeds, count * size))
    loader = gnnsys.NeighborLoader(
        data, fanouts, input_nodes=seeds, batch_size=size, is_sorted=True
    )
    return [Batch(one.x, one.edge_index, one.y[:size], slice(size)) for one in loader]


def full_batch(name: str, root: Path) -> Batch:
    """All of a dataset, whose first training nodes count."""
    data = load_raw(name, NAMED[name], root)
    mask = data.train_mask if data.train_mask.dim() == 1 else data.train_mask[:, 0]
    seeds = mask.nonzero()[:, 0]
    return Batch(data.x, data.edge_index, data.y[seeds], seeds)


def make_inputs(
    options: argparse.Namespace, scratch: Path
) -> Iterator[tuple[dict[str, Any], list[Batch]]]:
    """What cases are told by, and their batches."""
    for name in options.inputs:
        if name != "rmat":
            yield {"input": name}, [full_batch(name, options.root)]
            continue
        for fanouts in options.fanouts:
            labels = {"input": name, "scale": options.scale, "fanouts": fanouts}
            yield {**labels, "batch": options.batch_size}, sample_batches(options, fanouts, scratch)


def run(options: argparse.Namespace) -> None:
    """Measures what the options say."""
    if options.keep_freed_memory:
        gnnsys.keep_freed_memory()

    def make_cases(scratch: Path) -> Iterator[Case]:
        for labels, batches in make_inputs(options, scratch):
            for kind, threads in itertools.product(options.models, options.threads):
                torch.set_num_threads(threads)
                sizes = {"nodes": len(batches[0].x), "edges": batches[0].edge_index.size(1)}
                yield make_case({**labels, **sizes, "threads": threads}, batches, kind, options)

    with tempfile.TemporaryDirectory() as scratch:
        run_benchmark(
            "fused_layers",
            make_cases(Path(scratch)),
            options,
            cache_state="batches in memory; a round of the same steps precedes the timed ones",
            notes={
                "hidden": options.hidden,
                "heads": options.heads,
                "learning_rate": _LEARNING_RATE,
            },
        )


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = make_parser("fused_layers.py", __doc__, _EXAMPLES)
    add_graph_options(parser, batches=5, fanouts=[[15, 10]])
    add = parser.add_argument
    inputs = ["rmat", *NAMED]
    add(
        "--inputs",
        nargs="+",
        choices=inputs,
        default=["rmat", "pubmed", "tolokers"],
        metavar="NAME",
        help=f"of {', '.join(inputs)}; default rmat pubmed tolokers",
    )
    add(
        "--models",
        nargs="+",
        choices=_LAYERS,
        default=[*_LAYERS],
        metavar="NAME",
        help=f"of {', '.join(_LAYERS)}; default all",
    )
    add(
        "--root",
        type=Path,
        default=Path("data"),
        metavar="DIR",
        help="of datasets, as PyG lays them out; default data",
    )
    add("--hidden", type=positive, default=128, help="columns between the layers; default 128")
    add("--heads", type=positive, default=8, help="of attention, first layer; default 8")
    add("--threads", type=positive_list, default=[1, 2], metavar="N,…", help="default 1,2")
    add(
        "--keep-freed-memory",
        action="store_true",
        help="keep freed memory, as gnnsys train does; without it, what PyG's large tensors cost "
        "depends on what the process has freed before",
    )
    options = parser.parse_args(arguments)
    check_workload_options(options)
    if options.hidden % options.heads:
        raise BenchError(f"--hidden {options.hidden}: not a multiple of --heads {options.heads}")
    for name in options.inputs:
        if name != "rmat":
            try:
                find_folder(name, NAMED[name], options.root)
            except MissingFileError as error:
                raise BenchError(f"--inputs {name}: {error}") from error
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    return run_entry("fused_layers.py", lambda: run(parse_options(arguments)))


if __name__ == "__main__":
    sys.exit(main())

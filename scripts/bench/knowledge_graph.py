"""DistMult over an RGCN on a knowledge graph: mini-batches against full-graph training in PyG.

Both sides train the same model for as many epochs and steps: a step takes a batch of facts in
either direction, draws other tails for each and learns to tell them apart. One side samples the
neighbours of a batch by ``gnnsys.LinkNeighborLoader``; the other, PyG and torch alone, encodes the
whole graph in each step. On both, no edge between the ends of a fact of the batch is a message.
What is told is the filtered mean reciprocal rank of the test facts over all entities, with all
training facts as messages.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import describe_environment
from harness import BenchError, check_json, run_entry
from options import make_parser, positive
from report import write_json
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.nn import FastRGCNConv

import gnnsys
from gnnsys.losses import link_info_nce_loss
from gnnsys.training import known_answers, rank_links, rank_metrics

_PARTS = ("train", "valid", "test")
_EXAMPLES = """
FOLDER holds train.txt, valid.txt and test.txt (or .txt.gz), lines of head, relation and tail, as
PyG downloads WordNet18RR and FB15k_237 to raw/.

example:
  python scripts/bench/knowledge_graph.py data/WN18RR/raw --seeds 3 --json kg.json
"""


@dataclass
class Facts:
    """A knowledge graph, whose facts are there in both directions."""

    num_nodes: int
    num_relations: int
    """Twice those of the files: relation r of a fact is r + half of them in the other direction."""
    parts: dict[str, Tensor]
    """(3, facts) head, relation and tail."""

    @property
    def graph(self) -> Data:
        """What messages run along: the training facts."""
        head, relation, tail = self.parts["train"]
        return Data(
            edge_index=torch.stack([head, tail]), edge_type=relation, num_nodes=self.num_nodes
        )


def find_facts(folder: Path) -> list[Path]:
    """The three files.

    Raises:
        BenchError: one is not there.
    """
    paths = []
    for part in _PARTS:
        found = [folder / f"{part}.txt{end}" for end in ("", ".gz")]
        path = next((path for path in found if path.exists()), None)
        if path is None:
            raise BenchError(f"{found[0]}: no such file; name the folder raw of a dataset")
        paths.append(path)
    return paths


def read_facts(folder: Path) -> Facts:
    """Reads the three files.

    Raises:
        BenchError: one is not there, or does not have three words a line.
    """
    words = []
    for path in find_facts(folder):
        table = np.loadtxt(path, dtype=str, ndmin=2, comments=None)
        if table.shape[1] != 3:
            raise BenchError(f"{path}: {table.shape[1]} words a line, expected 3")
        words.append(table)
    every = np.concatenate(words)
    nodes, ends = np.unique(every[:, ::2], return_inverse=True)
    relations, kinds = np.unique(every[:, 1], return_inverse=True)
    head, tail = torch.from_numpy(ends.reshape(-1, 2)).t()
    kind = torch.from_numpy(kinds)
    there = torch.stack([head, kind, tail]).split([len(part) for part in words], 1)
    parts = {
        part: torch.cat([facts, facts.flip(0) + torch.tensor([[0], [len(relations)], [0]])], 1)
        for part, facts in zip(_PARTS, there, strict=True)
    }
    return Facts(len(nodes), 2 * len(relations), parts)


class Model(torch.nn.Module):
    """Embeddings of entities through RGCN layers; facts are scored by DistMult."""

    def __init__(self, facts: Facts, channels: int, layers: int) -> None:
        super().__init__()
        self.entities = torch.nn.Parameter(torch.empty(facts.num_nodes, channels))
        self.relations = torch.nn.Parameter(torch.empty(facts.num_relations, channels))
        torch.nn.init.xavier_uniform_(self.entities)
        torch.nn.init.xavier_uniform_(self.relations)
        self.layers = torch.nn.ModuleList(
            FastRGCNConv(channels, channels, facts.num_relations, num_blocks=channels // 8)
            for _ in range(layers)
        )

    def encode(self, nodes: Tensor | None, edge_index: Tensor, edge_type: Tensor) -> Tensor:
        """(nodes, channels) of some or all nodes."""
        x = self.entities if nodes is None else self.entities[nodes]
        for layer in self.layers:
            x = x + layer(x.relu(), edge_index, edge_type)
        return x

    def loss(
        self, z: Tensor, head: Tensor, relation: Tensor, tail: Tensor, other: Tensor
    ) -> Tensor:
        """Of facts, (n,), against other tails, (n, k)."""
        query = z[head] * self.relations[relation]
        positive = (query * z[tail]).sum(1)
        negative = torch.einsum("nd,nkd->nk", query, z[other])
        return link_info_nce_loss(positive, negative)


Step = Callable[[Model], Tensor]
"""The loss of a batch."""


def mini_batches(
    facts: Facts, options: argparse.Namespace, seed: int
) -> Callable[[], Iterator[Step]]:
    """Steps of an epoch over sampled neighbours."""
    head, relation, tail = facts.parts["train"]
    loader = gnnsys.LinkNeighborLoader(
        facts.graph,
        options.fanouts,
        torch.stack([head, tail]),
        neg_sampling={"mode": "triplet", "amount": options.negatives},
        hide_links=True,
        batch_size=options.batch_size,
        shuffle=True,
        seed=seed,
    )

    def epoch() -> Iterator[Step]:
        for batch in loader:
            yield lambda model, batch=batch: model.loss(
                model.encode(batch.n_id, batch.edge_index, batch.edge_type),
                batch.src_index,
                relation[batch.input_id],
                batch.dst_pos_index,
                batch.dst_neg_index.view(len(batch.input_id), -1),
            )

    return epoch


def full_graph(
    facts: Facts, options: argparse.Namespace, seed: int
) -> Callable[[], Iterator[Step]]:
    """Steps of an epoch over the whole graph, without gnnsys."""
    graph, train = facts.graph, facts.parts["train"]
    draw = torch.Generator().manual_seed(seed)
    low, high = graph.edge_index.aminmax(dim=0)
    pair = low * facts.num_nodes + high  # the same both ways

    def step(model: Model, places: Tensor) -> Tensor:
        head, relation, tail = train[:, places]
        kept = ~torch.isin(pair, pair[places])
        z = model.encode(None, graph.edge_index[:, kept], graph.edge_type[kept])
        shape = (len(places), options.negatives)
        other = torch.randint(facts.num_nodes, shape, generator=draw)
        return model.loss(z, head, relation, tail, other)

    def epoch() -> Iterator[Step]:
        order = torch.randperm(train.shape[1], generator=draw)
        for places in order.split(options.batch_size):
            yield lambda model, places=places: step(model, places)

    return epoch


_SIDES = {"mini-batches": mini_batches, "full graph": full_graph}


def train(facts: Facts, side: str, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Trains a model and judges it on the test facts."""
    torch.manual_seed(seed)
    model = Model(facts, options.channels, len(options.fanouts))
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr)
    epoch = _SIDES[side](facts, options, seed)
    began, losses = time.perf_counter(), []
    for _ in range(options.epochs):
        losses.append([])
        for step in epoch():
            optimizer.zero_grad()
            loss = step(model)
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    seconds = time.perf_counter() - began
    return {
        "side": side,
        "seed": seed,
        "seconds": seconds,
        "losses": [statistics.mean(each) for each in losses],
        **judge(model, facts),
    }


@torch.no_grad()
def judge(model: Model, facts: Facts) -> dict[str, float]:
    """Filtered ranks of the tails of test facts, which are there in both directions."""
    graph = facts.graph
    z = model.encode(None, graph.edge_index, graph.edge_type)
    head, relation, tail = facts.parts["test"]
    known = known_answers(torch.stack([head, relation]), torch.cat([*facts.parts.values()], 1))
    return rank_metrics(rank_links(z[head] * model.relations[relation], z, tail, known=known))


def run(options: argparse.Namespace) -> None:
    """Trains both sides with every seed."""
    facts = read_facts(options.folder)
    counts = ", ".join(f"{name} {part.shape[1] // 2}" for name, part in facts.parts.items())
    print(f"{facts.num_nodes} entities, {facts.num_relations // 2} relations; facts: {counts}")
    runs = []
    for seed in range(options.seeds):
        for side in _SIDES:
            runs.append(found := train(facts, side, options, seed))
            print(
                f"seed {seed}, {side:12} MRR {found['mrr']:.4f}, hits@10 {found['hits@10']:.4f}, "
                f"loss {found['losses'][-1]:.4f}, {found['seconds']:.0f} s",
                flush=True,
            )
    means = {
        side: statistics.mean(each["mrr"] for each in runs if each["side"] == side)
        for side in _SIDES
    }
    difference = means["mini-batches"] - means["full graph"]
    print(
        "; ".join(f"{side}: mean MRR {mean:.4f}" for side, mean in means.items())
        + f"; difference {difference:+.4f}"
    )
    if options.json is not None:
        told = {name: str(value) for name, value in vars(options).items()}
        described = {
            "format": 1,
            "benchmark": "knowledge_graph",
            "environment": describe_environment(),
            "options": told,
            "runs": runs,
            "means": means,
            "difference": difference,
        }
        write_json(options.json, described)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = make_parser("knowledge_graph.py", __doc__, _EXAMPLES)
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="of the facts")
    add("--epochs", type=positive, default=20, help="default 20")
    add("--seeds", type=positive, default=3, help="runs of each side; default 3")
    add("--batch-size", type=positive, default=8192, help="directed facts of a step; default 8192")
    add("--channels", type=positive, default=64, help="a multiple of 8; default 64")
    add("--negatives", type=positive, default=4, help="other tails for each fact; default 4")
    add(
        "--fanouts", type=positive, nargs="+", default=[10, 10], help="of each layer; default 10 10"
    )
    add("--lr", type=float, default=0.01, help="of Adam; default 0.01")
    add("--threads", type=positive, help="of torch; default all cores")
    add("--json", type=Path, metavar="FILE", help="write results and environment to FILE")
    options = parser.parse_args(arguments)
    if options.channels % 8:
        raise BenchError(f"--channels {options.channels}: expected a multiple of 8")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    check_json(options.json)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the comparison; returns the exit status."""
    return run_entry("knowledge_graph.py", lambda: run(parse_options(arguments)))


if __name__ == "__main__":
    sys.exit(main())

"""Accuracy of ``gnnsys train`` on a heterogeneous graph, against full-graph training in plain PyG.

Both train the same model of PyG's layers, from the same weights, by the same optimizer, for as many
steps. One takes sampled mini-batches of a dataset folder, by ``gnnsys train``; the other takes the
whole graph in every step. Both are scored on the whole graph as often: after each epoch of
mini-batches. Told is the accuracy of the test nodes at the best validation score.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from environment import describe_environment
from harness import check_json, run_entry
from options import make_parser, positive
from report import write_json

from gnnsys.config.resolve import resolve
from gnnsys.config.train import TrainConfig
from gnnsys.convert.common import ConvertOptions
from gnnsys.convert.pyg import convert_pyg_name
from gnnsys.training.datasets import NodeDataset, load_run_dataset
from gnnsys.training.loop import run_training
from gnnsys.training.models import make_model
from gnnsys.training.optimisation import make_optimizer, sparse_weights

_EXAMPLES = """
ROOT/DBLP/raw, or ROOT/DBLP_hetero/raw, holds the dataset as PyG downloads it. A step of hgt on the
full graph takes a second or two; 5 seeds of it take about 20 minutes.

examples:
  python scripts/bench/hetero_accuracy.py --root data --json hetero_accuracy.json
  python scripts/bench/hetero_accuracy.py --root data --models hgt --batch-size 100 \\
      --fanouts 20 15 --lr 0.01
"""


def train_full_graph(config: TrainConfig) -> float:
    """The test accuracy of the model of a run, trained on the whole graph in memory."""
    run = resolve(config)
    dataset = load_run_dataset(run)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = make_model(run, dataset)
        optimizer = make_optimizer(config, model.parameters(), sparse_weights(model))
        graph = _whole_graph(dataset)
        best = (-1.0, 0.0)
        task = dataset.node_task
        batches = math.ceil(len(task.train) / config.batch_size)
        for _ in range(config.epochs or 0):
            for _ in range(batches):
                model.train()
                optimizer.zero_grad()
                out = model(*graph)[task.train]
                F.cross_entropy(out, task.labels[task.train]).backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                right = model(*graph).argmax(1) == task.labels
            scores = [float(right[part].float().mean()) for part in (task.val, task.test)]
            if scores[0] > best[0]:
                best = scores[0], scores[1]
    dataset.close()
    return best[1]


def _whole_graph(dataset: NodeDataset) -> tuple[dict[Any, Any], ...]:
    """Features, edges and ids, by type."""
    x = {kind: table.materialize() for kind, table in dataset.tables.items()}
    edges = {
        kind: torch.stack([graph.indices.long(), graph.targets()])
        for kind, graph in dataset.graphs.items()
    }
    return x, edges, {kind: torch.arange(count) for kind, count in dataset.num_nodes.items()}


def compare(folder: Path, model: str, options: argparse.Namespace) -> dict[str, Any]:
    """Trains both ways with every seed and prints how they compare."""
    scores: dict[str, list[float]] = {"gnnsys": [], "full graph": []}
    for seed in range(options.seeds):
        config = TrainConfig(
            dataset=str(folder), model=model, seed=seed, device="cpu", epochs=options.epochs,
            batch_size=options.batch_size, fanouts=tuple(options.fanouts),
            layers=len(options.fanouts), lr=options.lr, weight_decay=options.weight_decay,
            eval="layerwise",
        )  # fmt: skip
        scores["gnnsys"].append(run_training(config).best_test["accuracy"])
        scores["full graph"].append(train_full_graph(config))
        last = ", ".join(f"{side} {values[-1]:.4f}" for side, values in scores.items())
        print(f"{model}, seed {seed}: {last}", flush=True)
    means = {side: statistics.mean(values) for side, values in scores.items()}
    print(
        f"{model}: gnnsys - full graph = {means['gnnsys'] - means['full graph']:+.4f}", flush=True
    )
    return {"model": model, "scores": scores, "means": means}


def run(options: argparse.Namespace) -> None:
    """Trains as the options say."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = convert_pyg_name("dblp", options.root, Path(scratch) / "dblp", ConvertOptions())
        results = [compare(folder, model, options) for model in options.models]
    if options.json is not None:
        described = {
            "format": 1,
            "benchmark": "hetero_accuracy",
            "environment": describe_environment(),
            "options": {name: str(value) for name, value in vars(options).items()},
            "results": results,
        }
        write_json(options.json, described)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = make_parser("hetero_accuracy.py", __doc__, _EXAMPLES)
    add = parser.add_argument
    add("--root", type=Path, required=True, help="folder of the datasets")
    add("--models", nargs="+", choices=["rgcn", "hgt", "sage", "gat"], default=["rgcn", "hgt"])
    add("--seeds", type=positive, default=5, help="runs of each side; default 5")
    add("--epochs", type=positive, default=25, help="of mini-batches; default 25")
    add("--batch-size", type=positive, default=128, help="seeds of a mini-batch; default 128")
    add("--fanouts", type=positive, nargs="+", default=[15, 10], help="default 15 10")
    add("--lr", type=float, default=0.005, help="default 0.005")
    add("--weight-decay", type=float, default=5e-4, help="default 0.0005")
    add("--json", type=Path, metavar="FILE", help="write scores and environment to FILE")
    options = parser.parse_args(arguments)
    check_json(options.json)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the comparison; returns the exit status."""
    return run_entry("hetero_accuracy.py", lambda: run(parse_options(arguments)))


if __name__ == "__main__":
    sys.exit(main())

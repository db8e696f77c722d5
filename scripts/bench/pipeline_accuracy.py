"""Accuracy of deep models trained by pipelines, against full-graph training with the same seeds.

Full-graph training is GNNPipe with one chunk, which equals it exactly. A pipeline's weights do not
depend on the number of its stages, so each run here has one; "pipeline" is one way, "hybrid" two,
both of 8 chunks. What is reported is the test score at the best validation score.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from harness import BenchError, run_entry
from options import make_parser, positive
from report import read_lines
from torch import Tensor
from torch_geometric.data import Data

from gnnsys.pipeline import GNNPipe, deep_layers
from gnnsys.training.datasets import NodeDataset, load_dataset
from gnnsys.training.metrics import measure

_EXAMPLES = """
ROOT holds the datasets as PyG downloads them (gnnsys train --help). Finished runs are lines of the
--out file; a run that is there already is not done again, so that a list of them can be broken off
and go on. 100 epochs of 32 layers, 64 wide, take about 20 s on Cora and 5 min on Tolokers, on one
core.

examples:
  python scripts/bench/pipeline_accuracy.py --root data --datasets cora actor --out runs.jsonl
  python scripts/bench/pipeline_accuracy.py --table --out runs.jsonl
  python scripts/bench/pipeline_accuracy.py --root data --datasets actor --models gcnii \\
      --modes pipeline --period 1 --gamma 1 --label "R=1, gamma=1" --out runs.jsonl
"""


@dataclass(frozen=True, slots=True)
class Setting:
    """How a model is trained on a dataset."""

    lr: float = 0.01
    dropout: float = 0.5
    decay: float = 5e-4
    alpha: float = 0.1
    theta: float = 0.5


SETTINGS = {
    ("cora", "gcnii"): Setting(dropout=0.6),
    ("cora", "resgcn"): Setting(lr=0.005),
    ("pubmed", "gcnii"): Setting(),
    ("pubmed", "resgcn"): Setting(lr=0.005),
    ("actor", "gcnii"): Setting(alpha=0.5, theta=1.5),
    ("actor", "resgcn"): Setting(lr=0.02),
    ("tolokers", "gcnii"): Setting(dropout=0.2, decay=0.0, alpha=0.5, theta=1.0),
    ("tolokers", "resgcn"): Setting(lr=0.005, dropout=0.2, decay=0.0),
}
SEEDS = {"cora": 10, "actor": 10, "pubmed": 5, "tolokers": 2}
MODES = {"full": (1, 1), "pipeline": (1, 8), "hybrid": (2, 8)}
"""Ways and chunks."""


def load(name: str, root: Path, seed: int) -> tuple[Data, NodeDataset]:
    """A dataset, with the split of the seed where there are several."""
    split = seed % 10 if name in ("actor", "tolokers") else 0
    dataset = load_dataset(name, str(root), split=split)
    return dataset.to_data(), dataset


def train(job: dict[str, Any], root: Path, setting: Setting) -> dict[str, Any]:
    """One run; returns its line."""
    data, dataset = load(job["dataset"], root, job["seed"])
    torch.manual_seed(job["seed"])
    ways, chunks = MODES[job["mode"]]
    layers = deep_layers(
        job["model"],
        in_channels=data.x.shape[1],
        hidden=job["hidden"],
        out_channels=dataset.task.outputs,
        layers=job["layers"],
        dropout=setting.dropout,
        alpha=setting.alpha,
        theta=setting.theta,
    )
    pipe = GNNPipe(
        layers,
        data,
        ways=ways,
        chunks=chunks,
        snapshot_period=job["period"],
        boundary_gradient_scale=job["gamma"],
        shuffle=job["order"] == "shuffled",
        shuffle_factor=job["shuffle_factor"],
        history=job["history"],
        seed=job["seed"],
    )
    optimizer = torch.optim.Adam(pipe.parameters(), lr=setting.lr, weight_decay=setting.decay)
    begun, best = time.perf_counter(), (-math.inf, -math.inf, 0)
    for epoch in range(job["epochs"]):
        loss = pipe.train_epoch(optimizer)
        out = pipe.evaluate()
        val, test = (
            _score(dataset, out, nodes) for nodes in (dataset.node_task.val, dataset.node_task.test)
        )
        if val > best[0]:
            best = val, test, epoch + 1
    counts = torch.bincount(data.y[dataset.node_task.test])
    return {
        **job,
        "val": best[0],
        "test": best[1],
        "best_epoch": best[2],
        "last_loss": loss,
        "staleness": max(pipe.staleness()),
        "majority": float(counts.max() / counts.sum()),
        "seconds": round(time.perf_counter() - begun, 1),
    }


def _score(dataset: NodeDataset, out: Tensor, nodes: Tensor) -> float:
    return measure([dataset.node_task.metric], [out[nodes]], dataset.node_task.labels[nodes])[
        dataset.node_task.metric
    ]


def jobs_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All runs that the options ask for, those of a seed side by side."""
    shared = {
        name: getattr(options, name)
        for name in (
            "label", "epochs", "layers", "hidden", "period", "gamma", "order", "history",
            "shuffle_factor",
        )
    }  # fmt: skip
    return [
        {"dataset": dataset, "model": model, "mode": mode, "seed": seed, **shared}
        for dataset in options.datasets
        for seed in range(options.seeds or SEEDS[dataset])
        for model in options.models
        for mode in options.modes
    ]


def run(options: argparse.Namespace) -> None:
    """Does the runs that are not in the file yet, or prints its table."""
    if options.table:
        print_table(read_lines(options.out))
        return
    torch.set_num_threads(options.threads)
    keys = set(jobs_of(options)[0])
    done = [{key: line[key] for key in keys} for line in read_lines(options.out)]
    given = {
        name: value
        for name in ("lr", "dropout", "decay", "alpha", "theta")
        if (value := getattr(options, name)) is not None
    }
    for job in jobs_of(options):
        if job in done:
            continue
        line = train(job, options.root, replace(SETTINGS[job["dataset"], job["model"]], **given))
        with options.out.open("a") as file:
            file.write(json.dumps({**line, **given}) + "\n")
        print(json.dumps(line), flush=True)


def print_table(lines: list[dict[str, Any]]) -> None:
    """Means and deviations in percent, and differences to full-graph training, seed by seed."""
    full = {(r["dataset"], r["model"], r["seed"]): r["test"] for r in lines if r["mode"] == "full"}
    groups: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
    for line in lines:
        key = line["dataset"], line["model"], line["mode"], line["label"]
        groups.setdefault(key, []).append(line)
    print("| dataset | model | training | seeds | test | std | minus full | s.e. | majority |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for (dataset, model, mode, label), rows in groups.items():
        tests = [100 * row["test"] for row in rows]
        pairs = [
            100 * (row["test"] - full[key])
            for row in rows
            if (key := (dataset, model, row["seed"])) in full
        ]
        cells = [
            dataset, model, f"{mode} {label}".strip(), str(len(rows)),
            _mean(tests), _deviation(tests), _mean(pairs), _error(pairs),
            f"{100 * statistics.mean(row['majority'] for row in rows):.2f}",
        ]  # fmt: skip
        print(f"| {' | '.join(cells)} |")


def _mean(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f}" if values else ""


def _of_several(figure: Callable[[list[float]], float]) -> Callable[[list[float]], str]:
    return lambda values: f"{figure(values):.2f}" if len(values) > 1 else ""


_deviation = _of_several(statistics.stdev)
_error = _of_several(lambda values: statistics.stdev(values) / math.sqrt(len(values)))


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = make_parser("pipeline_accuracy.py", __doc__, _EXAMPLES)
    add = parser.add_argument
    add("--root", type=Path, help="folder of the datasets")
    add("--datasets", nargs="+", choices=list(SEEDS), default=list(SEEDS), help="default: all")
    add("--models", nargs="+", choices=["gcnii", "resgcn"], default=["gcnii", "resgcn"])
    add("--modes", nargs="+", choices=list(MODES), default=list(MODES), help="default: all")
    add("--seeds", type=positive, help="default: 10 on Cora and Actor, PubMed 5, Tolokers 2")
    add("--epochs", type=positive, default=100, help="default 100")
    add("--layers", type=positive, default=32, help="default 32")
    add("--hidden", type=positive, default=64, help="default 64")
    add("--period", type=positive, default=23, help="epochs between two snapshots, R; default 23")
    add("--gamma", type=float, default=2.0, help="scale of boundary gradients; default 2")
    add("--history", choices=["exact", "zeros"], default="exact", help="the first snapshot")
    add("--order", choices=["shuffled", "fixed"], default="shuffled", help="of the chunks")
    add("--shuffle-factor", type=positive, default=1, help="parts of METIS for each chunk")
    for name in ("lr", "dropout", "decay", "alpha", "theta"):
        add(f"--{name}", type=float, help="instead of the dataset's")
    add("--label", default="", help="a name for runs with other options than the default")
    add("--threads", type=positive, default=1, help="of torch; default 1")
    add("--out", type=Path, required=True, help="JSON lines of finished runs")
    add("--table", action="store_true", help="print what is in --out")
    options = parser.parse_args(arguments)
    if options.root is None and not options.table:
        raise BenchError("--root: name the folder of the datasets")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the comparison; returns the exit status."""
    return run_entry("pipeline_accuracy.py", lambda: run(parse_options(arguments)))


if __name__ == "__main__":
    sys.exit(main())

"""How well gnnsys cluster finds the classes of real graphs, over seeds, and what makes it so.

Each variant changes one thing of the default settings, so that the table shows what it is worth.
No run sees labels: the epoch that counts is that of the least training loss, beside the last one.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from harness import run_entry
from options import make_parser, positive
from report import read_lines

from gnnsys.clustering.metrics import LABEL_METRICS
from gnnsys.clustering.runs import run_clustering
from gnnsys.config.cluster import ClusterConfig

_EXAMPLES = """
ROOT holds the datasets as gnnsys cluster reads them. Finished runs are lines of the --out file; a
run that is there already is not done again, so that a list of them can be broken off and go on.

examples:
  python scripts/bench/clustering.py --root data --out runs.jsonl
  python scripts/bench/clustering.py --root data --datasets dblp --variants default R=2 tau=2 \\
      --seeds 5 --processes 2 --out runs.jsonl
  python scripts/bench/clustering.py --table --out runs.jsonl
"""
SDCN = {
    "usps": (78.08, 79.51, 71.84, 76.98),
    "acm": (90.45, 68.31, 73.91, 90.42),
    "dblp": (68.05, 39.50, 39.15, 67.71),
    "citeseer": (65.96, 38.71, 40.17, 63.62),
}
"""ACC, NMI, ARI and F1 in percent, as published (Bo et al.: "Structural Deep Clustering Network",
WWW 2020)."""
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "3 starts": {"starts": 3},
    "beta=0.2, 50 warm clusters": {"beta": 0.2, "warm_clusters": 50},
    "no warm-up": {"warm_epochs": 0},
    "no reconstruction": {"pretrain_epochs": 0},
    "no contrastive loss": {"alpha": 0.0, "warm_epochs": 0},
    "no clustering loss": {"beta": 0.0},
    "rows as they are": {"normalize": "none"},
    "rows by l1": {"normalize": "l1"},
    "rows by l2": {"normalize": "l2"},
    "R=1": {"order": 1},
    "R=2": {"order": 2},
    "R=3": {"order": 3},
    "R=4": {"order": 4},
    "tau=0.5": {"tau": 0.5},
    "tau=1": {"tau": 1.0},
    "tau=2": {"tau": 2.0},
    "weighted": {"mode": "weighted"},
    "moment2": {"mode": "moment2"},
    "node": {"mode": "node"},
    "exact": {"mode": "exact"},
    "scgc": {"loss": "scgc"},
    "grace": {"loss": "grace"},
    "cca-ssg": {"loss": "cca-ssg"},
    "by modularity": {"select": "modularity"},
}


def train(job: dict[str, Any], root: Path, device: str, threads: int) -> dict[str, Any]:
    """One run; returns its line."""
    torch.set_num_threads(threads)
    config = ClusterConfig(
        dataset=job["dataset"],
        root=str(root),
        seed=job["seed"],
        epochs=job["epochs"],
        device=device,  # type: ignore[arg-type]
        threads=threads,
        **VARIANTS[job["variant"]],
    )
    result = run_clustering(config)
    (seed,) = result["seeds"]
    return {**job, **{name: seed[name] for name in ("selected", "last", "seconds")}}


def run(options: argparse.Namespace) -> None:
    """Does the runs that are not in the file yet, or prints its table."""
    if options.table:
        print_table(read_lines(options.out))
        return
    jobs = [
        {"dataset": dataset, "variant": variant, "seed": seed, "epochs": options.epochs}
        for seed in range(options.seeds)
        for variant in options.variants
        for dataset in options.datasets
    ]
    done = [{name: line[name] for name in jobs[0]} for line in read_lines(options.out)]
    threads = max(1, (os.cpu_count() or 1) // options.processes)
    work = functools.partial(train, root=options.root, device=options.device, threads=threads)
    left = [job for job in jobs if job not in done]
    if not left:
        return
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for line in pool.imap_unordered(work, left):
            with options.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


def print_table(lines: list[dict[str, Any]]) -> None:
    """Means and deviations in percent."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault((line["dataset"], line["variant"]), []).append(line)
    print("| dataset | variant | seeds | epoch | ACC | NMI | ARI | F1 | ACC, last epoch |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for dataset in dict.fromkeys(dataset for dataset, _ in groups):
        told = " | ".join(f"{value:.2f}" for value in SDCN[dataset])
        print(f"| {dataset} | SDCN, published | | | {told} | |")
        for variant in (variant for name, variant in groups if name == dataset):
            rows = groups[dataset, variant]
            epoch = statistics.mean(row["selected"]["epoch"] for row in rows)
            scores = " | ".join(_told(rows, "selected", name) for name in LABEL_METRICS)
            cells = f"{len(rows)} | {epoch:.0f} | {scores} | {_told(rows, 'last', 'acc')}"
            print(f"| {dataset} | {variant} | {cells} |")


def _told(rows: list[dict[str, Any]], which: str, score: str) -> str:
    values = [100 * row[which][score] for row in rows]
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = make_parser("clustering.py", __doc__, _EXAMPLES)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FILE", help="lines of finished runs")
    add("--table", action="store_true", help="print the table of FILE, and train nothing")
    add("--root", type=Path, default=Path("data"), help="of datasets; default data")
    add("--datasets", nargs="+", choices=SDCN, default=list(SDCN), help="default: all")
    add("--variants", nargs="+", choices=VARIANTS, default=["default"], help="default: default")
    add("--seeds", type=positive, default=10, help="default 10")
    add("--epochs", type=positive, default=200, help="default 200")
    add("--processes", type=positive, default=1, help="runs at a time; default 1")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default auto")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The entry."""
    options = parse_options(arguments)
    return run_entry("clustering.py", lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())

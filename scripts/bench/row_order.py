"""What the order of rows on disk and of seeds brings: reads, pages and bytes of training batches.

The folders hold one graph under different numbers (gnnsys convert --order). Each is trained on, but
for the model: its batches are sampled, and their rows come from its features file through a cache
of the same bytes, filled by degree. Orders of nodes and of seeds take turns in each round.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from environment import describe_environment
from harness import BenchError, check_json, run_entry
from options import make_parser, positive, positive_list
from report import write_json

import gnnsys
from gnnsys.errors import GnnsysError
from gnnsys.features.importance import importance, ranked_importance

_EXAMPLES = """
examples:
  gnnsys generate community g --nodes 6250000 --classes 1000 --features 64 --dtype float16
  for order in degree community; do gnnsys convert g g-$order --order $order; done
  python scripts/bench/row_order.py g g-degree g-community --seed-blocks 1,64,1024
"""
_COUNTS = ("rows", "reads", "requests", "pages", "bytes_read")


class Folder:
    """One numbering of the graph."""

    def __init__(self, path: Path) -> None:
        self.dataset = gnnsys.open_dataset(path)
        graph = self.dataset.graph()
        self.scores = ranked_importance("degree", importance("degree", graph), graph)
        self.facts = {
            "path": str(path),
            "order": self.dataset.manifest.source.get("order", "none"),
            "edges": self.dataset.num_edges(),
            "neighbouring_rows_of_one_class": self._neighbours_alike(),
        }

    def _neighbours_alike(self) -> float | None:
        """Near 1 / classes where numbers say nothing of communities, as of shuffled ids."""
        if not self.dataset.has("labels"):
            return None
        labels = self.dataset.labels().numpy()
        return float(np.mean(labels[1:] == labels[:-1]))

    def measure(self, options: argparse.Namespace, block: int) -> dict[str, Any]:
        """Counts a batch, and batches a second, after ``options.warm`` batches."""
        stores = self.dataset.stores(
            edge_features=False,
            cache=options.cache,
            scores=self.scores,
            storage=options.storage,
            device="cpu",
        )
        loader = gnnsys.NeighborLoader(
            stores,
            options.fanouts,
            input_nodes=self.dataset.split("train"),
            batch_size=options.batch,
            shuffle=True,
            seed_block=block,
        )
        store = stores[0].table(None, "x").store
        batches = iter(loader)
        taken = sum(1 for _ in itertools.islice(batches, options.warm))
        before, began = store.stats, time.perf_counter()
        nodes = [len(batch.n_id) for batch in itertools.islice(batches, options.batches)]
        seconds, after = time.perf_counter() - began, store.stats
        batches.close()
        if len(nodes) < options.batches:
            raise BenchError(
                f"--warm {options.warm} --batches {options.batches}: an epoch has "
                f"{taken + len(nodes)}"
            )
        planned = after.batches - before.batches
        counts = {key: (getattr(after, key) - getattr(before, key)) / planned for key in _COUNTS}
        store.close()
        return {"batches_per_second": len(nodes) / seconds, **counts}


def run(options: argparse.Namespace) -> None:
    """Measures all orders and prints a line for each."""
    check_json(options.json)
    try:
        folders = [Folder(path) for path in options.folders]
    except GnnsysError as error:
        raise BenchError(str(error)) from error
    cases = list(itertools.product(folders, options.seed_blocks))
    found: list[list[dict[str, Any]]] = [[] for _ in cases]
    for _ in range(options.rounds):
        for (folder, block), records in zip(cases, found, strict=True):
            records.append(folder.measure(options, block))
    print(f"a batch of {options.batch} seeds, fanouts {options.fanouts}, cache {options.cache}:")
    heads = ("batches/s", "rows", "missed", "reads", "pages", "MB read")
    print(f"{'order':12}{'seed block':>10}" + "".join(f"{head:>12}" for head in heads))
    results = []
    for (folder, block), records in zip(cases, found, strict=True):
        median = {key: statistics.median(each[key] for each in records) for key in records[0]}
        figures = [median["batches_per_second"], *(median[key] for key in _COUNTS[:-1])]
        told = "".join(f"{value:12,.1f}" for value in (*figures, median["bytes_read"] / 1e6))
        print(f"{folder.facts['order']:12}{block:>10}{told}", flush=True)
        results.append({**folder.facts, "seed_block": block, "median": median, "rounds": records})
    for folder in folders:
        print(", ".join(f"{key} {value}" for key, value in folder.facts.items()))
    if options.json is not None:
        described = {key: value for key, value in vars(options).items() if key != "json"}
        described["folders"] = [str(path) for path in options.folders]
        about = {"environment": describe_environment(), "options": described, "cases": results}
        write_json(options.json, about)


def main(arguments: list[str] | None = None) -> int:
    """Runs the comparison from the command line; returns the exit status."""
    parser = make_parser("row_order.py", __doc__, _EXAMPLES)
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="FOLDER", help="of one graph, in some order")
    add("--seed-blocks", type=positive_list, default=[1, 64], help="of the loader; default 1,64")
    add("--fanouts", type=positive_list, default=[10, 5], help="default 10,5")
    add("--batch", type=positive, default=1024, help="seeds; default 1024")
    add("--warm", type=positive, default=70, help="batches before those counted; default 70")
    add("--batches", type=positive, default=100, help="that are counted; default 100")
    add("--cache", default="80MB", metavar="SIZE", help="default 80MB")
    add("--storage", default="auto", help="auto, uring, pread or mmap; default auto")
    add("--rounds", type=positive, default=3, help="default 3")
    add("--json", type=Path, metavar="FILE", help="write all counts to FILE")
    options = parser.parse_args(arguments)
    return run_entry("row_order.py", lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())

"""Bytes that 8 ranks send in an epoch of a 32-layer model: pipeline and hybrids against graph
parallelism, on real graphs.

Bytes are those of ``gnnsys plan --parallel``. With --run, GNNPipe also trains an epoch of each case
with all ranks in one process, at a smaller width, and its ledger must equal the plan of that width
to the byte. Two reductions are told: of rows and gradients alone, as published, and of all that is
sent, with the sum of the parameters' gradients, which the pipeline does not need.

Published for four other graphs and the same models (Chen, Chen, Qian: "GNNPipe", arXiv 2308.10087):
geometric mean 8.69, greatest 22.89.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import describe_environment
from harness import BenchError, check_json, run_entry
from options import make_parser, positive
from report import write_json
from torch_geometric.data import Data

from gnnsys.pipeline import GNNPipe, deep_layers, partition_graph
from gnnsys.pipeline.costs import Split, estimate_costs
from gnnsys.pipeline.layer_info import describe_layers
from gnnsys.pipeline.layers import as_layers
from gnnsys.pipeline.models import DEEP_MODELS
from gnnsys.pipeline.partition import Partition
from gnnsys.pipeline.schedule import default_chunks
from gnnsys.pipeline.way_graph import halo_sizes
from gnnsys.training.datasets import load_dataset

_EXAMPLES = """
ROOT holds the datasets as PyG downloads them, and any folders of .npz files with src, dst and
num_nodes, head and tail, or an (E, 2) array named edges, or Depends and Pre_Depends; such graphs
are taken as undirected. With --run, cases take some seconds each.

examples:
  python scripts/bench/communication.py --root data --run --json communication.json
  python scripts/bench/communication.py --root data --ranks 4 --layers 16 --models gcn gcnii
"""
_NAMED = ("cora", "citeseer", "pubmed", "actor", "tolokers", "minesweeper")
_FEATURES, _CLASSES = 64, 16  # of graphs that have none


def graphs(root: Path) -> Iterator[tuple[str, Data]]:
    """Every graph under a folder."""
    for name in _NAMED:
        with closing(load_dataset(name, str(root))) as dataset:
            nodes = dataset.features.shape[0]
            yield name, Data(edge_index=dataset.edge_index(), num_nodes=nodes)
    for path in sorted(root.glob("*/*.npz")):
        with np.load(path) as arrays:
            if "src" in arrays.files:
                pairs = np.stack([arrays["src"], arrays["dst"]])
            elif "edges" in arrays.files:
                pairs = arrays["edges"].T
            elif "head" in arrays.files:
                pairs = np.stack([arrays["head"], arrays["tail"]])
            elif "Depends" in arrays.files:
                pairs = np.concatenate([arrays["Depends"], arrays["Pre_Depends"]]).T
            else:
                continue
            nodes = (
                int(arrays["num_nodes"]) if "num_nodes" in arrays.files else int(pairs.max()) + 1
            )
        name = path.parent.name if path.stem == "graph" else path.stem
        yield name, Data(edge_index=undirected(pairs.astype(np.int64), nodes), num_nodes=nodes)


def undirected(pairs: np.ndarray, nodes: int) -> torch.Tensor:
    """Both directions of every edge once, without loops."""
    first, second = pairs[:, pairs[0] != pairs[1]]
    codes = np.unique(np.concatenate([first * nodes + second, second * nodes + first]))
    return torch.from_numpy(np.stack(np.divmod(codes, nodes)))


def splits(ranks: int) -> list[Split]:
    """Pipeline, hybrids, graph."""
    return [
        Split(stages, ranks // stages, default_chunks(stages, ranks // stages))
        for stages in range(ranks, 0, -1)
        if ranks % stages == 0
    ]


def measure(
    data: Data, model: str, hidden: int, options: argparse.Namespace, run: bool
) -> dict[str, dict[str, int]]:
    """Bytes of an epoch by split and kind; with ``run``, checked against a real epoch's."""
    nodes, edges = data.num_nodes, data.edge_index.shape[1]
    layers = deep_layers(
        model,
        in_channels=_FEATURES,
        hidden=hidden,
        out_channels=_CLASSES,
        layers=options.layers,
    )
    infos = describe_layers(as_layers(layers), _FEATURES)
    found = {}
    for split in splits(options.ranks):
        partition = _partition(data, split.chunks)
        costs = estimate_costs(
            infos,
            split,
            num_nodes=nodes,
            num_edges=edges,
            chunk_sizes=partition.chunk_sizes,
            halo=halo_sizes(data.edge_index, nodes, partition, split.ways),
        )
        told = {
            "layer": costs.layer_bytes,
            "graph": costs.graph_bytes,
            "weight": costs.weight_bytes,
        }
        if run:
            counted = train(data, layers, split, partition)
            if counted != told:
                raise BenchError(f"{model}, {split}: counted {counted}, planned {told}")
        found[f"{split.mode} {split.stages}x{split.ways}"] = told
    return found


def train(
    data: Data, layers: list[torch.nn.Module], split: Split, partition: Partition
) -> dict[str, int]:
    """What the ledger counts in an epoch."""
    nodes = data.num_nodes
    full = Data(x=torch.ones(nodes, _FEATURES), edge_index=data.edge_index)
    full.y, full.train_mask = torch.zeros(nodes, dtype=torch.int64), torch.ones(nodes).bool()
    pipe = GNNPipe(
        layers,
        full,
        stages=split.stages,
        ways=split.ways,
        chunks=split.chunks,
        partition=partition,
        history="zeros",
    )
    pipe.train_epoch(torch.optim.SGD(pipe.parameters(), lr=0.0))
    return {kind: pipe.ledger().get(kind, 0) for kind in ("layer", "graph", "weight")}


_PARTITIONS: dict[tuple[int, int], Partition] = {}


def _partition(data: Data, chunks: int) -> Partition:
    key = id(data.edge_index), chunks
    if key not in _PARTITIONS:
        _PARTITIONS[key] = partition_graph(data.edge_index, data.num_nodes, chunks)
    return _PARTITIONS[key]


def run(options: argparse.Namespace) -> None:
    """Plans and runs all cases, and prints their table."""
    cases: list[dict[str, Any]] = []
    for name, data in graphs(options.root):
        for model in options.models:
            real = options.run and data.num_nodes <= options.run_nodes
            if real:
                measure(data, model, options.run_hidden, options, run=True)
            planned = measure(data, model, options.hidden, options, run=False)
            cases.append(
                {
                    "graph": name,
                    "nodes": data.num_nodes,
                    "edges": data.edge_index.shape[1],
                    "model": model,
                    "bytes": planned,
                    "run": real,
                }
            )
            print(_line(cases[-1]), flush=True)
        _PARTITIONS.clear()
    summary = {
        split: {kind: _summary(cases, split, kind) for kind in ("rows", "all")}
        for split in cases[0]["bytes"]
        if not split.startswith("graph")
    }
    for split, kinds in summary.items():
        for kind, told in kinds.items():
            print(
                f"{split}, {kind}: geometric mean {told['geometric']:.2f}, arithmetic "
                f"{told['arithmetic']:.2f}, least {told['least']:.2f}, greatest "
                f"{told['greatest']:.2f} of {len(cases)} cases"
            )
    if options.json is not None:
        described = {
            "format": 1,
            "benchmark": "communication",
            "environment": describe_environment(),
            "ranks": options.ranks,
            "layers": options.layers,
            "hidden": options.hidden,
            "cases": cases,
            "summary": summary,
        }
        write_json(options.json, described)


def reduction(case: dict[str, Any], split: str, kind: str) -> float:
    """Bytes of graph parallelism over those of a split."""
    graph = next(sent for name, sent in case["bytes"].items() if name.startswith("graph"))
    own = case["bytes"][split]
    if kind == "all":
        return sum(graph.values()) / sum(own.values())
    return graph["graph"] / (own["layer"] + own["graph"])


def _line(case: dict[str, Any]) -> str:
    told = [
        f"{split} {reduction(case, split, 'rows'):.2f} ({reduction(case, split, 'all'):.2f})"
        for split in case["bytes"]
        if not split.startswith("graph")
    ]
    checked = "run" if case["run"] else "planned"
    return f"{case['graph']:16} {case['model']:7} {checked:8} " + "  ".join(told)


def _summary(cases: list[dict[str, Any]], split: str, kind: str) -> dict[str, float]:
    values = [reduction(case, split, kind) for case in cases]
    return {
        "geometric": math.exp(statistics.mean(math.log(value) for value in values)),
        "arithmetic": statistics.mean(values),
        "least": min(values),
        "greatest": max(values),
    }


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = make_parser("communication.py", __doc__, _EXAMPLES)
    add = parser.add_argument
    add("--root", type=Path, required=True, help="folder of the graphs")
    add("--ranks", type=positive, default=8, help="default 8")
    add("--layers", type=positive, default=32, help="graph layers; default 32")
    add("--hidden", type=positive, default=1000, help="width; default 1000")
    add("--models", nargs="+", choices=DEEP_MODELS, default=list(DEEP_MODELS), help="default: all")
    add("--run", action="store_true", help="check the plan against real epochs")
    add("--run-hidden", type=positive, default=4, help="width of the real epochs; default 4")
    add("--run-nodes", type=positive, default=50_000, help="largest graph to run; default 50000")
    add("--json", type=Path, metavar="FILE", help="write bytes and environment to FILE")
    options = parser.parse_args(arguments)
    if options.layers < options.ranks:
        raise BenchError(f"--layers {options.layers} < --ranks {options.ranks}: too few for stages")
    check_json(options.json)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the comparison; returns the exit status."""
    return run_entry("communication.py", lambda: run(parse_options(arguments)))


if __name__ == "__main__":
    sys.exit(main())

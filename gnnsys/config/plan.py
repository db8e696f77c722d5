"""Options of ``gnnsys plan``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import tyro

from gnnsys.choices import File, Folder, ImportanceChoice, Policy, Size, Topology
from gnnsys.config.checks import (
    FANOUTS,
    FIRST_FANOUTS,
    check_bytes,
    check_least,
    check_numbers,
    check_seed,
    given_options,
    parse_fanouts,
    written,
)
from gnnsys.errors import ArgumentError
from gnnsys.features.options import TopologyOptions
from gnnsys.system.sizes import parse_bytes, parse_bytes_or_share

__all__ = ["DEFAULT_BUDGETS", "PlanConfig"]

DEFAULT_BUDGETS = ("1%", "5%", "10%", "25%")
"""Shares of the features."""


@dataclass(kw_only=True, slots=True)
class PlanConfig:
    """Tell how well a cache of the features would do, and how long an epoch would take.

    Samples the batches of a training run, or replays recorded ones, and plans them for each budget
    as a cache would, without reading a feature.

    Examples:
        gnnsys plan my-graph --fanouts 15,10,5 --budget 1GB,2GB,4GB
        gnnsys plan my-graph --budget 10% --hardware server.toml --json
        gnnsys plan my-graph --trace run1.trace --picture plan.html
        gnnsys plan my-graph --ranks 4 --budget 10%
        gnnsys plan my-heterogeneous-graph --target paper --budget 1GB
        gnnsys plan my-graph --parallel all --ranks 8 --model gcnii --layers 32 --hidden 1000
        gnnsys plan cora --root data --parallel pipeline --ranks 4 --picture schedule.png
        gnnsys plan pubmed --root data --offload auto --layers 64 --activation-budget 100MB
    """

    sections: ClassVar[dict[str, str]] = {
        "parallel": "parallel",
        "offload": "activations",
        "root": "data",
        "budget": "memory",
        "fanouts": "batch",
        "policy": "cache",
        "hardware": "machine",
        "picture": "output",
    }

    dataset: Annotated[str, tyro.conf.Positional]
    """A dataset folder; or cora, citeseer, pubmed, actor, tolokers, minesweeper or demo, planned as
    if its features were in a file."""

    task: Annotated[str, "node|link|NAME"] = "node"
    """What is trained for. node: the classes, or numbers, of nodes; link: links of the edge type
    --target; else the name of one of the folder's tasks, see docs/relational.md."""

    target: Annotated[str, "TYPE|SRC,REL,DST"] | None = None
    """Node type that is trained on, of a heterogeneous dataset folder: batches are drawn around it;
    with --task link the edge type whose links are to be predicted. Default: the one that the
    folder, or --task, names, or that has links held out."""

    negatives: int | None = None
    """Other targets that are drawn for each link, uniformly, with a task of links. Default: 1."""

    ignore_times: bool = False
    """Plan the memory of gnnsys train --ignore-times, where a folder has times."""

    parallel: Literal["pipeline", "graph", "hybrid", "all"] | None = None
    """Instead of a cache, plan full-graph training of a deep model on several ranks: bytes sent,
    slots, idle time and memory of the pipeline, of graph parallelism and of each hybrid. Graph
    parallelism is always told, to compare with. Nothing is trained."""

    ranks: int | None = None
    """Of a mini-batch run, whose caches are planned, too: one that all share, and one each. Of
    --parallel, S * W; default 8."""

    stages: int | None = None
    """Of --parallel: only splits of so many stages, S."""

    ways: int | None = None
    """Of --parallel: only splits of so many ways, W."""

    chunks: int | None = None
    """Of --parallel: parts of the graph, K. Default: 4 for each rank; graph parallelism one for
    each way, which is exact."""

    model: Literal["gcn", "sage", "gcnii", "resgcn"] = "gcnii"
    """Of --parallel and --offload."""

    layers: int = 32
    """Graph convolutions, of --parallel and --offload."""

    hidden: int = 64
    """Width of all rows between encoder and decoder, of --parallel and --offload; of hidden layers,
    of --memory."""

    offload: Annotated[str, "auto|DIR"] | None = None
    """Instead of a cache, plan what gnnsys train --full-batch --offload moves out of memory: bytes,
    the peak, and the time that a step waits and takes, on the CPU. Three steps are run, and the
    disk of DIR is measured; auto: of temporary files."""

    activation_budget: Size | None = None
    """Bytes (2GB) of activations in memory, of --offload. Default: several, from all to an
    eighth."""

    root: Folder = "data"
    """Folder of the named datasets, as for gnnsys train."""

    budget: Annotated[tuple[str, ...], "SIZE [SIZE ...]"] = DEFAULT_BUDGETS
    """Memory for the cache, between spaces or commas: bytes (500MB, 2GB), or a share of the
    features (10%). Of several node types it is for the rows of all, as of gnnsys train. Of the
    default, those for less than a row of each type are left out."""

    memory: Size | None = None
    """Bytes (10GB) for a training run with these options, --hidden and --eval, as of gnnsys train:
    a table tells what for. Default: what the control group or the machine leaves."""

    eval: Literal["auto", "layerwise", "neighborhoods", "sampled"] = "auto"
    """Of the run that --memory is for: how it is evaluated."""

    topology: Topology = "auto"
    """How neighbours are read, as of gnnsys train: mmap, mmap-random, read or auto."""

    topology_memory: Size | None = None
    """Bytes (2GB) of neighbours that --topology read keeps in the memory of each rank, as of gnnsys
    train."""

    fanouts: Annotated[tuple[int, ...], FANOUTS] = FIRST_FANOUTS[:2]
    """Neighbours to sample per node for each hop, nearest the seeds first, between spaces or
    commas; -1 takes all."""

    batch_size: int = 1024
    """Seed nodes of a batch."""

    seed_block: int = 1
    """Training nodes with neighbouring numbers that are shuffled as one, as by gnnsys train."""

    batches: int | None = None
    """Batches to sample, over as many epochs as it takes, or to replay. Default: 200, or all of
    --trace."""

    seed: int = 0
    """Of the order of seeds and of sampling."""

    trace: File | None = None
    """A recording by gnnsys train --trace FILE, to replay instead of sampling."""

    policy: Policy = "hybrid"
    """Which rows leave first: see docs/planning.md."""

    window: int = 64
    """Batches that are known ahead."""

    score: ImportanceChoice = "auto"
    """Importance by which the cache is filled before the first batch. auto: what gnnsys score
    stored, else degree. presample: of as many batches as are planned, but others."""

    victim_buffer: Size = "0"
    """Bytes of host memory for rows that left the cache and are needed again soon."""

    hardware: Annotated[str, "this|FILE"] = "this"
    """A TOML file that describes the disk and the memory, see docs/planning.md; this: measured
    here, on the disk that holds the features. With --parallel: a file that describes computing,
    memory and the network, for the time of an epoch; this: without times."""

    step_time: float = 0.0
    """Milliseconds of computing for a batch, to compare reading with; 0 leaves it out."""

    threads: int = 0
    """Threads that sample and plan; 0 for all cores."""

    picture: File | None = None
    """File for a picture of the result: .png, or .html for a page with tables."""

    json: bool = False
    """Print one JSON object instead of tables."""

    def __post_init__(self) -> None:
        check_numbers(self)
        self.fanouts = parse_fanouts(self.fanouts)
        check_bytes("memory", self.memory)
        TopologyOptions.of(self)
        parse_bytes(self.victim_buffer, "--victim-buffer")
        self.budget = tuple(text for word in self.budget for text in word.split(","))
        if not self.budget:
            raise ArgumentError("--budget: expected bytes (500MB, 2GB) or shares (10%)")
        for text in self.budget:
            parse_bytes_or_share(text, "--budget")
        check_seed(self.seed)
        if not 0 <= self.step_time < math.inf:
            raise ArgumentError(f"--step-time {self.step_time}: expected milliseconds, or 0")
        of_parallel = ("stages", "ways", "chunks")
        check_least(
            self,
            1,
            "batch_size",
            "seed_block",
            "batches",
            "negatives",
            "layers",
            "hidden",
            "ranks",
            *of_parallel,
        )
        check_least(self, 0, "threads", "window")
        if self.parallel is not None and self.task != "node":
            raise ArgumentError(f"--task {self.task}: does not go with --parallel; leave it out")
        if self.parallel is None:
            for name in of_parallel:
                if getattr(self, name) is not None:
                    raise ArgumentError(
                        f"--{name}: goes with --parallel pipeline, graph, hybrid or all"
                    )
        self._check_offload()
        if self.picture is not None and not self.picture.endswith((".png", ".html")):
            raise ArgumentError(f"--picture {self.picture}: expected a name in .png or .html")

    def _check_offload(self) -> None:
        check_bytes("activation-budget", self.activation_budget)
        if self.offload is None:
            if self.activation_budget is not None:
                raise ArgumentError(
                    f"--activation-budget {self.activation_budget}: goes with --offload auto or DIR"
                )
            return
        if self.offload in ("", "none"):
            raise ArgumentError(f"--offload {self.offload}: expected auto or a folder")
        others = ("parallel", "ranks", "target", "trace", "picture", "task", "budget", "memory",
                  "hardware", "batches", "step_time")  # fmt: skip
        for name in given_options(self, others):
            raise ArgumentError(f"{written(self, name)}: does not go with --offload; leave it out")

"""Options of ``gnnsys score``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from gnnsys.choices import Importance
from gnnsys.config.checks import (
    FANOUTS,
    FIRST_FANOUTS,
    check_least,
    check_numbers,
    check_seed,
    parse_fanouts,
)
from gnnsys.errors import ArgumentError

__all__ = ["ScoreConfig"]


@dataclass(kw_only=True, slots=True)
class ScoreConfig:
    """Find the importance of a dataset's nodes: how often their features will be asked for.

    The importance is stored with the dataset. A cache is filled by it before training begins, and
    keeps the more important rows where it knows nothing better.

    Examples:
        gnnsys score my-graph --fanouts 15,10,5
        gnnsys score my-graph --score degree
        gnnsys score my-heterogeneous-graph --target paper --fanouts 15,10
    """

    dataset: Annotated[str, tyro.conf.Positional]
    """A dataset folder."""

    task: Annotated[str, "node|NAME"] = "node"
    """For presample: what is to be trained for. node: the classes, or numbers, of nodes; else the
    name of one of the folder's tasks, see docs/relational.md. Not of links."""

    target: Annotated[str, "TYPE"] | None = None
    """For presample: node type that is to be trained on, of a heterogeneous dataset folder.
    Default: the one that the folder, or --task, names."""

    score: Importance = "presample"
    """presample: in how many batches of a short run of the sampler a node occurs, with the training
    nodes and --fanouts. degree: in how many lists of neighbours it stands, of all edge types.
    pagerank: how often a walk is there that follows edges backwards, of whatever type. presample is
    the best where few nodes are trained on; where none are named it takes all. Of several node
    types those with features are ranked together, since their rows share a cache."""

    fanouts: Annotated[tuple[int, ...], FANOUTS] = FIRST_FANOUTS[:2]
    """For presample: neighbours to sample per node for each hop, nearest the seeds first, between
    spaces or commas; -1 takes all. As in the training to come, like the next options."""

    batch_size: int = 1024
    """Seed nodes of a batch."""

    batches: int = 200
    """Batches to sample, over as many epochs as it takes."""

    seed: int = 0
    """Of the order of seeds and of sampling. With that of the training to come, the batches are the
    first of that training."""

    threads: int = 0
    """Threads that sample; 0 for all cores."""

    json: bool = False
    """Print one JSON object instead of a table."""

    def __post_init__(self) -> None:
        check_numbers(self)
        check_least(self, 1, "batch_size", "batches")
        check_least(self, 0, "threads")
        check_seed(self.seed)
        self.fanouts = parse_fanouts(self.fanouts)
        if self.task != "node" and self.score != "presample":
            raise ArgumentError(
                f"--task {self.task}: goes with --score presample, {self.score} is the same for "
                "all tasks; leave one of them out"
            )

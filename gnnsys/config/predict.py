"""Options of ``gnnsys predict``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from gnnsys.choices import EvalReads, File, Folder, Size, Storage, Topology
from gnnsys.config.checks import check_bytes, check_least, check_numbers
from gnnsys.errors import ArgumentError
from gnnsys.features.options import TopologyOptions, parse_cache

__all__ = ["PredictConfig"]


@dataclass(kw_only=True, slots=True)
class PredictConfig:
    """Classify nodes, or predict their numbers or links, with the best weights of a run, exactly,
    layer by layer.

    Says the scores on the validation and the test nodes, or links, too, beside those of the run.

    Examples:
        gnnsys predict run1
        gnnsys predict run1 --out run1.parquet
        gnnsys predict run1 --nodes ids.npy --dataset newer-graph
        gnnsys predict links1 --top 10 --out best.parquet
    """

    run: Annotated[str, tyro.conf.Positional]
    """Folder that gnnsys train --out made."""

    nodes: File | None = None
    """File of node ids (.npy, .csv, .txt), of links those of sources; or, of runs whose seeds have
    times, .npy of two columns, nodes and the times at which to predict. Default: all nodes, each at
    its own time; of a run with --task the rows of val, then those of test."""

    top: int | None = None
    """Of a run on links: how many of the best targets of each source to write. Default: none."""

    keep_known: bool = False
    """With --top: propose links that are known, too."""

    dataset: Annotated[str, "DATASET"] | None = None
    """Dataset to classify, with the same features; of links one that has some held out, too.
    Default: that of the run."""

    root: Folder | None = None
    """Folder of named datasets. Default: that of the run."""

    out: Folder | None = None
    """Folder for predictions.npy (classes, 0 and 1 for several labels, or numbers), scores.npy,
    embeddings.npy (inputs of the last layer, where gnnsys knows the model's), nodes.npy and, where
    seeds have times, times.npy; or a .csv or .parquet file for a table with a row for each node:
    its id, time, class by name and probabilities, or its value. Of links: embeddings.TYPE.npy of
    both ends, relation.npy of --decoder distmult, and with --top nodes.npy (sources), ids.npy and
    scores.npy; or a table of source, target, rank and score. Default: RUN/predictions."""

    sampled: bool = False
    """Classify on neighbourhoods sampled with the run's --fanouts, as in training, not exactly.
    Runs whose seeds have times do."""

    eval_store: Annotated[str, "auto|ram|FOLDER"] = "auto"
    """Where the outputs of layers are kept, as of gnnsys train: ram, a folder or auto."""

    eval_reads: EvalReads = "auto"
    """How layers read their inputs, as of gnnsys train: gather, sequential or auto."""

    memory: Size | None = None
    """Bytes (10GB) of memory for the run, libraries and mapped files included, see gnnsys plan; a
    run that cannot fit is refused. Default: what the control group or the machine leaves."""

    cache: Annotated[str, "SIZE|N|SHARE|auto|none"] = "auto"
    """Memory for rows of the features, as of gnnsys train: bytes, rows, a share, none or auto."""

    storage: Storage = "auto"
    """How rows are read, as of gnnsys train."""

    topology: Topology = "auto"
    """How neighbours are read, as of gnnsys train: mmap, mmap-random, read or auto."""

    topology_memory: Size | None = None
    """Bytes (2GB) of neighbours that --topology read keeps in the memory of each rank, as of gnnsys
    train."""

    threads: int = 0
    """0 for all cores."""

    json: bool = False
    """Print the paths and shapes as one JSON object."""

    def __post_init__(self) -> None:
        check_numbers(self)
        check_least(self, 0, "threads")
        check_least(self, 1, "top")
        if self.keep_known and self.top is None:
            raise ArgumentError("--keep-known: goes with --top, which is not given")
        check_bytes("memory", self.memory)
        parse_cache(self.cache)
        TopologyOptions.of(self)

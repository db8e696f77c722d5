"""Options of the commands that make, look at and use dataset folders and runs.

Imports tyro (for its markers) and nothing that is large: ``gnnsys --help`` reads this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from gnnsys.feature_options import Storage, parse_cache
from gnnsys.sizes import parse_bytes

__all__ = [
    "CommunityConfig",
    "ConvertConfig",
    "GenerateConfig",
    "InfoConfig",
    "PredictConfig",
    "ReportConfig",
    "RmatConfig",
    "parse_bytes",
]


@dataclass(kw_only=True, slots=True)
class ConvertConfig:
    """Make a dataset folder of an edge list or of a PyG, OGB or GraphBolt dataset.

    Examples:
        gnnsys convert edges.csv my-graph --nodes nodes.csv --random-split 0.6 0.2 0.2
        gnnsys convert edges.npz my-graph --features x.npy --labels y.npy --train train.npy
        gnnsys convert cora my-cora --root data
        gnnsys convert ogbn-arxiv my-arxiv --root data
        gnnsys convert my-graph graphbolt-folder --to graphbolt
    """

    src: Annotated[str, tyro.conf.Positional]
    """An edge list (.csv, .tsv, .txt, .parquet, .npy, .npz); a PyG Data or HeteroData saved by
    torch.save (.pt); the folder of a GraphBolt OnDiskDataset, of OGB's raw files, of acm, dblp or
    usps in SDCN's layout, or of gnnsys; or a name: cora, citeseer, pubmed, actor, tolokers,
    minesweeper, dblp, ogbn-arxiv, ogbn-products, ogbn-proteins, ogbn-papers100M, ogbn-mag, or
    pyg:CLASS or pyg:CLASS/NAME for another dataset class of PyG."""

    dst: Annotated[str, tyro.conf.Positional]
    """Folder to make; must not exist. Work goes on in DST.partial: after a kill the same command
    continues it."""

    to: Literal["gnnsys", "graphbolt"] = "gnnsys"
    """Format to write. graphbolt takes a folder of gnnsys."""

    name: str | None = None
    """Of the dataset. Default: the name of DST."""

    root: str = "data"
    """Folder of named datasets, laid out as PyG's and OGB's loaders do."""

    split: int = 0
    """Which of a named dataset's splits to use."""

    columns: tuple[str, str] | None = None
    """Columns of sources and targets in a table. Default: usual names, else the first two."""

    header: Literal["auto", "yes", "no"] = "auto"
    """Whether a text file begins with column names."""

    ids: Literal["auto", "dense", "names"] = "auto"
    """dense: node ids are numbers from 0. names: any strings or numbers, numbered as they appear or
    as --nodes lists them, and kept in node_id.npy. auto: names for strings or with --nodes."""

    nodes: str | None = None
    """Table with a row for each node: the id first, then columns label, split (train, val, test),
    time, and features; or a .npy of ids."""

    num_nodes: int | None = None
    """Default: the rows of --nodes, --features or --labels, else the greatest id + 1."""

    features: str | None = None
    """Matrix with a row for each node: .npy, .npz, .csv, .parquet, .pt, or FILE.npz:NAME."""

    labels: str | None = None
    """A class for each node, or a column of 0 and 1 for each of several labels."""

    train: str | None = None
    """Ids or mask of the training nodes; likewise --val and --test."""

    val: str | None = None

    test: str | None = None

    random_split: tuple[float, float, float] | None = None
    """Shares of the labelled nodes to train on, to validate and to test on, drawn at random."""

    seed: int = 0
    """Of the random split."""

    edge_features: str | None = None
    """File with a row for each edge, or a column of the edge list; likewise --edge-weight and
    --edge-time."""

    edge_weight: str | None = None

    edge_time: str | None = None

    undirected: bool = False
    """Add the reverse of every edge that is not a self loop. Nothing is merged."""

    keep_order: bool = False
    """Write edge_id.npy: the number that each edge had in the source. It is written with features,
    weights or times of edges in any case."""

    dtype: Literal["keep", "float32", "float16", "bfloat16"] = "keep"
    """Element type that features are stored in; float64 becomes float32 unless another is given."""

    memory: str = "2GB"
    """For arrays of edges while they are sorted; 16 bytes a node come on top."""

    threads: int = 0
    """That sort; 0 for all cores."""

    json: bool = False
    """Print what was made as one JSON object on the last line of standard output."""


@dataclass(kw_only=True, slots=True)
class RmatConfig:
    """An R-MAT graph with random features and labels, for benchmarks.

    Examples:
        gnnsys generate rmat g20 --scale 20
    """

    out: Annotated[str, tyro.conf.Positional]
    """Folder to make."""

    scale: int = 16
    """The graph has 2^scale nodes."""

    edge_factor: int = 16
    """Edges a node."""

    a: float = 0.57
    """Probability of the quadrant of low sources and low targets; b, c of the next two."""

    b: float = 0.19

    c: float = 0.19

    features: int = 128
    """Random features of each node; 0 for none."""

    classes: int = 10
    """Random labels; 0 for none."""

    train: float = 0.6
    """Share of the nodes to train on."""

    val: float = 0.2
    """Share to validate on; the rest is for the test."""

    undirected: bool = False
    """Add the reverse of every edge."""

    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Element type that features are stored in."""

    seed: int = 0
    """Of everything random."""

    memory: str = "2GB"
    """For arrays of edges."""

    threads: int = 0
    """0 for all cores."""


@dataclass(kw_only=True, slots=True)
class CommunityConfig:
    """A graph of communities whose labels a GNN can learn and an MLP cannot.

    Examples:
        gnnsys generate community g --nodes 1000000 --classes 20
    """

    out: Annotated[str, tyro.conf.Positional]
    """Folder to make."""

    nodes: int = 100_000
    """Of the graph."""

    classes: int = 10
    """Communities."""

    degree: int = 16
    """In-neighbours of each node."""

    features: int = 128
    """Of each node."""

    within: float = 0.65
    """Share of neighbours drawn from the node's own community."""

    signal: float = 0.06
    """How far features point to the community: the length of its centre against noise of 1."""

    train: float = 0.5
    """Share of the nodes to train on."""

    val: float = 0.25
    """Share to validate on; the rest is for the test."""

    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Element type that features are stored in."""

    seed: int = 0
    """Of everything random."""

    memory: str = "2GB"
    """For arrays of edges."""

    threads: int = 0
    """0 for all cores."""


@dataclass(kw_only=True, slots=True)
class GenerateConfig:
    """Generate a graph as a dataset folder.

    Examples:
        gnnsys generate community g --nodes 1000000
        gnnsys generate rmat g20 --scale 20
    """

    graph: (
        Annotated[RmatConfig, tyro.conf.subcommand("rmat")]
        | Annotated[CommunityConfig, tyro.conf.subcommand("community")]
    )
    """Kind of graph."""


@dataclass(kw_only=True, slots=True)
class InfoConfig:
    """Show what a dataset folder holds.

    Examples:
        gnnsys info my-graph
        gnnsys info my-graph --verify
    """

    path: Annotated[str, tyro.conf.Positional]
    """The folder."""

    verify: bool = False
    """Read everything and compare it with its checksums."""

    json: bool = False
    """Print one JSON object instead of tables."""


@dataclass(kw_only=True, slots=True)
class PredictConfig:
    """Classify nodes with the best weights of a run, exactly, layer by layer.

    Examples:
        gnnsys predict run1
        gnnsys predict run1 --nodes ids.npy --dataset newer-graph
    """

    run: Annotated[str, tyro.conf.Positional]
    """Folder that gnnsys train --out made."""

    nodes: str | None = None
    """File of node ids (.npy, .csv, .txt). Default: all nodes."""

    dataset: str | None = None
    """Dataset to classify, with the same features. Default: that of the run."""

    root: str | None = None
    """Folder of named datasets. Default: that of the run."""

    out: str | None = None
    """Folder for predictions.npy (classes, or 0 and 1 for several labels), scores.npy,
    embeddings.npy (inputs of the last layer) and nodes.npy. Default: RUN/predictions."""

    cache: str = "auto"
    """Memory for rows of the features, as of gnnsys train: bytes, rows, a share, none or auto."""

    storage: Storage = "auto"
    """How rows are read, as of gnnsys train."""

    threads: int = 0
    """0 for all cores."""

    json: bool = False
    """Print the paths and shapes as one JSON object."""

    def __post_init__(self) -> None:
        parse_cache(self.cache)


@dataclass(kw_only=True, slots=True)
class ReportConfig:
    """Make one HTML page of a run: curves, throughput, bytes by tier, configuration.

    Examples:
        gnnsys report run1
    """

    run: Annotated[str, tyro.conf.Positional]
    """Folder that gnnsys train --out made; the run may still be going on."""

    out: str | None = None
    """The page. Default: RUN/report.html."""

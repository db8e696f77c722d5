"""Options of ``gnnsys convert``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from gnnsys.choices import FloatType

__all__ = ["ConvertConfig"]


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

    dtype: Literal["keep"] | FloatType = "keep"
    """Element type that features are stored in; float64 becomes float32 unless another is given."""

    memory: str = "2GB"
    """For arrays of edges while they are sorted; 16 bytes a node come on top."""

    threads: int = 0
    """That sort; 0 for all cores."""

    json: bool = False
    """Print what was made as one JSON object on the last line of standard output."""

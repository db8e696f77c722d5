"""Options of ``gnnsys convert``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import tyro

from gnnsys.choices import Folder, GapPolicy, Overflow, RowOrder, Scale, Size, StoredType
from gnnsys.config.checks import check_least, check_seed
from gnnsys.convert.spec import EdgeListParts, RelationalParts
from gnnsys.errors import ArgumentError
from gnnsys.system.sizes import parse_bytes

__all__ = ["ConvertConfig"]


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(RelationalParts, EdgeListParts):
    """Make a dataset folder of an edge list, of a PyG, OGB or GraphBolt dataset, or of a relational
    database.

    Examples:
        gnnsys convert edges.csv my-graph --nodes nodes.csv --random-split 0.6 0.2 0.2
        gnnsys convert edges.npz my-graph --features x.npy --labels y.npy --train train.npy
        gnnsys convert edges.csv my-graph --columns paper cited --dry-run
        gnnsys convert cora my-cora --root data
        gnnsys convert ogbn-arxiv my-arxiv --root data
        gnnsys convert relbench-folder my-graph --task driver-top3
        gnnsys convert my-graph by-community --order community
        gnnsys convert my-graph my-small-graph --dtype int8
        gnnsys convert my-graph graphbolt-folder --to graphbolt
    """

    sections: ClassVar[dict[str, str]] = {
        "columns": "edge list",
        "nodes": "node",
        "edge_features": "edge",
        "task": "relational",
        "to": "conversion",
        "json": "output",
    }

    src: Annotated[str, tyro.conf.Positional]
    """An edge list (.csv, .tsv, .txt, .parquet, .npy, .npz); a PyG Data or HeteroData saved by
    torch.save (.pt); the folder of a GraphBolt OnDiskDataset, of a RelBench database, of OGB's raw
    files, of acm, dblp or usps in SDCN's layout, or of gnnsys; or a name: cora, citeseer, pubmed,
    actor, tolokers, minesweeper, dblp, ogbn-arxiv, ogbn-products, ogbn-proteins, ogbn-papers100M,
    ogbn-mag, or pyg:CLASS or pyg:CLASS/NAME for another dataset class of PyG."""

    dst: Annotated[str, tyro.conf.Positional]
    """Folder to make; must not exist. Work goes on in DST.partial: after a kill the same command
    continues it."""

    to: Literal["gnnsys", "graphbolt"] = "gnnsys"
    """Format to write. graphbolt takes a folder of gnnsys."""

    name: Annotated[str, "NAME"] | None = None
    """Of the dataset. Default: that of a folder of gnnsys, else the name of DST."""

    root: Folder = "data"
    """Folder of named datasets, laid out as PyG's and OGB's loaders do."""

    split: int = 0
    """Which of a named dataset's splits to use."""

    undirected: bool = False
    """Add the reverse of every edge that is not a self loop. Nothing is merged."""

    regression: bool = False
    """Labels are numbers to be predicted, not classes; NaN or empty where unknown."""

    dtype: Literal["keep"] | StoredType = "keep"
    """Element type that float features of nodes and edges are stored in; float64 becomes float32
    unless another is given. int8 and int4 are whole numbers with a scale: nearly 4 and 8
    times the rows of many columns in a cache, and delivered as float32. Also for a folder of
    gnnsys, which is stored anew."""

    scale: Scale = "row"
    """With int8 and int4: row, each has its own, in 4 bytes more; or column, which takes a pass
    before."""

    overflow: Overflow = "refuse"
    """Values beyond the element type: refuse them, or allow them to become infinite, counted."""

    nan: GapPolicy = "refuse"
    """NaN and infinite values in features: refuse them; keep them, counted; or replace each by
    zero, or by the mean of its column's finite values, which takes a pass before."""

    order: RowOrder = "none"
    """Number the nodes so that rows needed together lie together: degree, by how often a node
    stands in lists of neighbours; community, by label propagation, one thread for about 25 ns an
    edge in up to 20 passes. Takes any source, also a folder of gnnsys; ids stay (node_id)."""

    memory: Size = "2GB"
    """For arrays of edges while they are sorted, and of rows; 16 bytes a node come on top, with
    --order 48."""

    threads: int = 0
    """That sort; 0 for all cores."""

    dry_run: bool = False
    """Say how an edge list and what belongs to it are understood, and stop."""

    json: bool = False
    """Print what was made as one JSON object on the last line of standard output."""

    def __post_init__(self) -> None:
        check_least(self, 0, "threads", "split", "num_nodes")
        check_seed(self.seed)
        check_least(self, 1, "categories")
        parse_bytes(self.memory, "--memory")
        if self.scale != "row" and self.dtype not in ("int8", "int4"):
            raise ArgumentError(
                f"--scale {self.scale}: goes with --dtype int8 or int4, but it is {self.dtype}"
            )

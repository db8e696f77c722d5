"""Options of ``gnnsys convert``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from gnnsys.choices import Folder, GapPolicy, Overflow, RowOrder, Scale, Size, StoredType
from gnnsys.config.checks import check_least, check_seed, given_options
from gnnsys.config.links import parse_edge_type
from gnnsys.convert.spec import EdgeListParts, HoldOut, RelationalParts
from gnnsys.errors import ArgumentError
from gnnsys.system.sizes import parse_bytes

__all__ = ["ConvertConfig"]


def _parse_shares(words: list[str]) -> tuple[float, ...]:
    text = " ".join(words).replace(",", " ")
    try:
        return tuple(map(float, text.split()))
    except ValueError:
        raise ArgumentError(
            f"--hold-out-shares {' '.join(words)}: expected two numbers, such as 0.05,0.1"
        ) from None


_SHARES = PrimitiveConstructorSpec[Any](
    nargs="*",
    metavar="VAL,TEST",
    instance_from_str=_parse_shares,
    is_instance=lambda value: isinstance(value, tuple),
    str_from_instance=lambda value: [",".join(f"{share:g}" for share in value)],
)


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
        gnnsys convert my-graph my-links --hold-out user,likes,item
        gnnsys convert my-graph graphbolt-folder --to graphbolt
    """

    sections: ClassVar[dict[str, str]] = {
        "columns": "edge list",
        "nodes": "node",
        "edge_features": "edge",
        "task": "relational",
        "to": "conversion",
        "hold_out": "links",
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

    hold_out: Annotated[tuple[str, ...], "[SRC,REL,DST]"] | None = None
    """Hold links of an edge type out of the graph, to validate on and to test on by gnnsys train
    --task link, and take their reverses out, too; no type where there is only one. Parallel edges
    go together. Takes any source, also a folder of gnnsys."""

    hold_out_shares: Annotated[tuple[float, ...], _SHARES] = (0.05, 0.1)
    """Of its edges: to validate on, and to test on."""

    hold_out_by: Literal["random", "time"] = "random"
    """random: pairs of nodes are drawn by --seed; time: the newest are to test on, those before
    them to validate on."""

    hold_out_reverses: Annotated[tuple[str, ...], "[SRC,REL,DST ...]"] | None = None
    """Edge types that hold their reverses; no type if none does. Default: rev_REL of REL, or else
    the only type that leads back."""

    json: bool = False
    """Print what was made as one JSON object on the last line of standard output."""

    def __post_init__(self) -> None:
        check_least(self, 0, "threads", "split", "num_nodes")
        check_seed(self.seed)
        check_least(self, 1, "categories")
        parse_bytes(self.memory, "--memory")
        self.links_held_out()
        if self.scale != "row" and self.dtype not in ("int8", "int4"):
            raise ArgumentError(
                f"--scale {self.scale}: goes with --dtype int8 or int4, but it is {self.dtype}"
            )

    def links_held_out(self) -> HoldOut | None:
        """Which links are held out; None where none are.

        >>> config = ConvertConfig(src="g", dst="h", hold_out=("user,likes,item",))
        >>> config.links_held_out().edge_type
        ('user', 'likes', 'item')

        Raises:
            ArgumentError: shares that leave nothing, what is no edge type, or options of links
                where none are held out.
        """
        if self.hold_out is None:
            names = ("hold_out_shares", "hold_out_by", "hold_out_reverses")
            for name in given_options(self, names):
                raise ArgumentError(
                    f"--{name.replace('_', '-')}: goes with --hold-out, which is not given"
                )
            return None
        if len(self.hold_out) > 1:
            raise ArgumentError(
                f"--hold-out {' '.join(self.hold_out)}: {len(self.hold_out)} edge types, expected "
                "one; convert what was made again for another"
            )
        types = [parse_edge_type(each, "--hold-out") for each in self.hold_out]
        reverses = self.hold_out_reverses
        return HoldOut(
            edge_type=types[0] if types else None,
            shares=self.hold_out_shares,
            by=self.hold_out_by,
            reverses=None
            if reverses is None
            else tuple(parse_edge_type(each, "--hold-out-reverses") for each in reverses),
            seed=self.seed,
        )

"""What is to be converted, and how. Imports nothing that is large."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from gnnsys.choices import GapPolicy, Overflow, Scale, StoredType
from gnnsys.convert.dialect import TableOptions
from gnnsys.convert.parts import find_parts
from gnnsys.errors import ArgumentError
from gnnsys.system.progress import Progress

__all__ = [
    "ConvertOptions",
    "EdgeListParts",
    "EdgeListSpec",
    "HoldOut",
    "RelationalParts",
    "split_member",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertOptions:
    """How to convert, whatever the source."""

    dtype: Literal["keep"] | StoredType = "keep"
    """Element type that float features, of nodes and of edges, are stored in."""

    scale: Scale = "row"
    """What has a scale of its own in int8 and int4."""

    overflow: Overflow = "refuse"
    """What to do with values beyond that type."""

    nan: GapPolicy = "refuse"
    """What to do with NaN and infinite values in features."""

    undirected: bool = False
    """Add the reverse of every edge."""

    regression: bool = False
    """Whether labels are numbers, not classes."""

    memory: int = 2 << 30
    """Bytes for arrays of edges."""

    threads: int = 0
    """That sort; 0 for all cores this process may use."""

    progress: Progress = lambda what, done, total: None
    """Is told how far the work is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HoldOut:
    """Which links are held out."""

    edge_type: tuple[str, str, str] | None = None
    """Theirs; None for the only one there is."""

    shares: tuple[float, ...] = (0.05, 0.1)
    """Of its edges: to validate on, and to test on."""

    by: Literal["random", "time"] = "random"
    """random: pairs of nodes are drawn; time: the newest are to test on, those before them to
    validate on."""

    reverses: tuple[tuple[str, str, str], ...] | None = None
    """Edge types that hold the reverses; None for ``rev_REL`` of REL, or else the only one that
    leads back."""

    seed: int = 0
    """Of the draw."""

    def __post_init__(self) -> None:
        if not (len(self.shares) == 2 and min(self.shares) > 0 and sum(self.shares) < 1):
            given = ",".join(map(str, self.shares))
            raise ArgumentError(
                f"--hold-out-shares {given}: expected a share to validate on and one to test on, "
                "each above 0, together below 1"
            )


@dataclass(frozen=True, kw_only=True)
class RelationalParts:
    """How a relational database is read."""

    task: Annotated[str, "NAME"] | None = None
    """The only task of a RelBench folder to take: columns that other tasks hide stay features.
    Default: all tasks."""

    dangling: Literal["refuse", "drop"] = "refuse"
    """Keys of a RelBench folder that refer to rows that are not there: refuse them, or drop the
    edges and the tasks' rows that they stand for, counted."""

    categories: int = 32
    """Values of a column of strings in a RelBench folder that have a column of features each, the
    most frequent ones before its val_timestamp; all others share one."""


@dataclass(frozen=True, kw_only=True)
class EdgeListParts:
    """How an edge list is read, and what belongs to it."""

    columns: Annotated[tuple[str, str], "SOURCE TARGET"] | None = None
    """Columns of sources and targets in a table: names, or f0, f1, … where it has none. Default:
    usual names, else the first two where that is clear."""

    header: Literal["auto", "yes", "no"] = "auto"
    """Whether the edge list begins with column names; and other files of text, where their rows do
    not tell it."""

    delimiter: Annotated[str, "CHARACTER"] = "auto"
    """Of columns in the edge list: a character, tab or blanks; and in other files of text, where
    their rows do not tell it."""

    encoding: Annotated[str, "NAME"] = "auto"
    """Of text, such as latin-1. Default: by its first bytes, else utf-8."""

    format: Literal["auto", "text", "mtx", "parquet", "npy", "npz"] = "auto"
    """Of the edge list. Default: by its suffix; a Matrix Market file by its first line, too."""

    ids: Literal["auto", "dense", "names"] = "auto"
    """dense: node ids are numbers from 0. names: any strings or numbers, numbered as they appear or
    as --nodes lists them, and kept (Dataset.node_ids). auto: names for strings or with --nodes."""

    nodes: Path | None = None
    """Table with a row for each node: the id first, then columns label, split (train, val, test),
    time, and features; or a .npy of ids."""

    id_column: Annotated[str, "COLUMN"] | None = None
    """Of --nodes, by name or number from 0. Default: a usual name, else the first."""

    label_column: Annotated[str, "COLUMN"] | None = None
    """Of --nodes, likewise. Default: label."""

    feature_columns: Annotated[tuple[str, ...], "COLUMN"] | None = None
    """Of --nodes, likewise, or FIRST..LAST. Default: all but the id, label, split and time."""

    num_nodes: int | None = None
    """Default: the rows of --nodes, --features or --labels, else the greatest id + 1."""

    features: Path | None = None
    """Matrix with a row for each node: .npy, .npz, .csv, .parquet, .pt, or FILE.npz:NAME."""

    labels: Path | None = None
    """A class for each node, or a column of 0 and 1 for each of several labels."""

    train: Path | None = None
    """Ids or mask of the training nodes; likewise --val and --test."""

    val: Path | None = None
    """Likewise, of those to validate on."""

    test: Path | None = None
    """Likewise, of those to test on."""

    random_split: tuple[float, float, float] | None = None
    """Shares of the labelled nodes to train on, to validate and to test on, drawn at random."""

    seed: int = 0
    """Of the random split, and of the links that are held out."""

    edge_features: Annotated[str, "FILE|COLUMN"] | None = None
    """File with a row for each edge, or a column of the edge list; likewise --edge-weight and
    --edge-time."""

    edge_weight: Annotated[str, "FILE|COLUMN"] | None = None
    """Likewise."""

    edge_time: Annotated[str, "FILE|COLUMN"] | None = None
    """Likewise."""

    keep_order: bool = False
    """Write edge_id.npy: the number that each edge had in the source. It is written with features,
    weights or times of edges in any case."""


@dataclass(frozen=True, kw_only=True)
class EdgeListSpec(EdgeListParts):
    """An edge list and what belongs to it; every path may be any kind ``open_array`` takes."""

    edges: Path
    """.npy or .npz of (2, edges) or (edges, 2); .parquet, .csv, .tsv or .txt with two columns."""

    name: str

    def table_options(self, of_edges: bool = True) -> TableOptions:
        """What is known of its text files."""
        return TableOptions(
            delimiter=self.delimiter,
            header=self.header,
            encoding=self.encoding,
            only_where_unclear=not of_edges,
        )

    def files(self) -> list[Path]:
        """All that are read."""
        parts = [self.edges, *(getattr(self, each.name) for each in dataclasses.fields(self))]
        files = [
            file
            for part in parts
            if isinstance(part, Path)
            for file in find_parts(split_member(part)[0])
        ]
        attributes = [split_member(part)[0] for part in self.edge_files().values()]
        return list(dict.fromkeys(files + [file for file in attributes if file.is_file()]))

    def edge_files(self) -> dict[str, str]:
        """The edge attributes asked for, by table."""
        parts = {
            name: getattr(self, name) for name in ("edge_features", "edge_weight", "edge_time")
        }
        return {name: part for name, part in parts.items() if part is not None}


def split_member(path: str | Path) -> tuple[Path, str]:
    """FILE.npz and NAME of FILE.npz:NAME; the path itself and '' where it names no member."""
    place, mark, member = str(path).partition(".npz:")
    return (Path(place + ".npz"), member) if mark else (Path(path), "")

"""What ``graph.json`` of a dataset folder says. Pure: reads and checks text, opens no table.

A folder holds one graph as plain .npy files. A homogeneous graph has them at the top, one with
several types keeps each node type's in ``nodes/TYPE`` and each edge type's in
``edges/SOURCE__RELATION__TARGET``. ``graph.json`` lists every table with its shape, encoding, files
and checksums.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import numpy as np
from msgspec import Meta

from gnnsys.choices import Scale
from gnnsys.errors import FileFormatError, MissingFileError
from gnnsys.rng import RNG_VERSION
from gnnsys.system.files import read_text_file
from gnnsys.system.records import as_record, json_text, place_of

__all__ = [
    "CHECKSUM_CHUNK",
    "EDGE_TYPE",
    "HELD_OUT",
    "LINK_PARTS",
    "MANIFEST",
    "NODE_TYPE",
    "VERSION",
    "Count",
    "EdgeSet",
    "EdgeType",
    "Encoding",
    "Manifest",
    "NodeSet",
    "Shard",
    "Table",
    "Task",
    "edge_folder",
    "is_dtype",
    "is_seed_table",
    "link_table",
    "node_folder",
    "read_manifest",
]

VERSION = 2
"""The newest of the format that this version reads, which is written where a table is quantised;
other folders are of version 1, which versions before 2 read."""

CHECKSUM_CHUNK = 16 << 20
"""Bytes of a table, after its header, that each checksum covers."""

MANIFEST = "graph.json"
"""Name of the file in a dataset folder."""

EdgeType = tuple[str, str, str]
"""Source node type, relation, target node type."""

NODE_TYPE = "node"
"""The node type of a homogeneous graph."""

EDGE_TYPE: EdgeType = (NODE_TYPE, "to", NODE_TYPE)
"""The edge type of a homogeneous graph."""

HELD_OUT = "held_out"
"""What ``source`` says of links that are held out: how they were drawn and how many, in an entry
for each edge type."""

LINK_PARTS = ("val", "test")
"""Links of an edge type that are held out, see ``gnnsys.dataset.links``."""

_FORMAT = "gnnsys dataset"
_OTHER_ROWS = (
    "train",
    "val",
    "test",
    "gb_",
    "node_id_text",
)  # node tables without a row for each node
_DTYPES = re.compile(
    "bool|u?int(8|16|32|64)|bfloat16|float(16|32|64)|complex(64|128)|S[1-9][0-9]{0,5}"
)
_CODES = ("int8", "int4")
_SCALE_BYTES = 4
_MOST = float(np.finfo(np.float32).max)
_WAY_OUT = "convert the source again"

Count = Annotated[int, Meta(ge=0, le=1 << 62)]
"""Of rows or bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoding:
    """How the elements of a table are stored."""

    dtype: str
    """numpy's name, or bfloat16, which the .npy file holds as uint16; of quantised rows int8 or
    int4, that of their codes."""

    scale: Scale | None = None
    """Of quantised rows, which the .npy file holds as (rows, row_stride) uint8
    (``gnnsys.memory.Quantised``): whether each row begins with its scale or ``scales`` has one for
    each column."""

    scales: tuple[float, ...] = ()
    """(columns,) or empty"""

    row_stride: Count
    """Bytes from a row to the next."""

    @classmethod
    def of(
        cls,
        dtype: str,
        shape: tuple[int, ...],
        scale: Scale | None = None,
        scales: tuple[float, ...] = (),
    ) -> Encoding:
        """That of a table of dense rows."""
        columns = math.prod(shape[1:])
        if scale is None:
            row_stride = columns * cls(dtype=dtype, row_stride=0).file_dtype.itemsize
        else:
            codes = columns if dtype == "int8" else -(-columns // 2)
            row_stride = codes + (_SCALE_BYTES if scale == "row" else 0)
        return cls(dtype=dtype, scale=scale, scales=scales, row_stride=row_stride)

    @property
    def file_dtype(self) -> np.dtype[Any]:
        """Element type in the .npy file."""
        if self.scale is not None:
            return np.dtype(np.uint8)
        return np.dtype(np.uint16 if self.dtype == "bfloat16" else self.dtype)

    def file_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the array in the .npy file of a table of ``shape`` (rows, …)."""
        return shape if self.scale is None else (shape[0], self.row_stride)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One file of a table."""

    path: str
    """Relative to the folder, or absolute where the shard lies on another disk."""

    rows: Count

    bytes: Count
    """Size of the whole file."""

    crc32: tuple[str, ...]
    """Eight hexadecimal digits for each ``CHECKSUM_CHUNK`` bytes of data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """One array of the dataset."""

    shape: tuple[Count, ...]
    encoding: Encoding
    shards: tuple[Shard, ...]

    @property
    def data_bytes(self) -> int:
        """Bytes of all rows."""
        return self.shape[0] * self.encoding.row_stride


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeSet:
    """The nodes of one type."""

    count: Count
    tables: dict[str, Table] = field(default_factory=dict)
    """By name: features, labels, train, val, test, time, node_id, static_score, …"""


@dataclass(frozen=True, kw_only=True, slots=True)
class EdgeSet:
    """The edges of one type, in CSC: the in-neighbours of each target node, ascending."""

    count: Count
    tables: dict[str, Table] = field(default_factory=dict)
    """By name: indptr, indices, and in CSC order edge_features, edge_time, edge_weight, edge_id;
    of links that are held out val.source, val.target, val.time and test.… likewise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What is to be learnt: the classes of nodes, or a number of each."""

    node_type: str
    num_classes: Count
    """Or labels of a node; 1 of a regression."""

    multi_label: bool = False
    regression: bool = False
    """Whether labels are (nodes,) float32 numbers, NaN where unknown."""

    metric: str = "accuracy"
    """One of ``gnnsys.choices.METRICS``."""


@dataclass(frozen=True, kw_only=True)
class _Graph:
    name: str
    heterogeneous: bool
    nodes: dict[str, NodeSet]
    task: Task | None = None
    source: dict[str, Any] = field(default_factory=dict)
    """Where the dataset came from, for people and for converting it back."""


@dataclass(frozen=True, kw_only=True)
class Manifest(_Graph):
    """The whole of ``graph.json``."""

    edges: dict[EdgeType, EdgeSet]

    @property
    def is_quantised(self) -> bool:
        """Whether any table has scales."""
        owners: list[NodeSet | EdgeSet] = [*self.nodes.values(), *self.edges.values()]
        return any(
            table.encoding.scale is not None for owner in owners for table in owner.tables.values()
        )

    def to_json(self) -> str:
        """The text of ``graph.json``."""
        edges = [
            {"type": list(edge_type), **asdict(edge_set)}
            for edge_type, edge_set in self.edges.items()
        ]
        content = {
            "format": _FORMAT,
            "version": VERSION if self.is_quantised else 1,
            "rng": RNG_VERSION,
            "name": self.name,
            "heterogeneous": self.heterogeneous,
            "checksum": {"kind": "crc32", "chunk_bytes": CHECKSUM_CHUNK},
            "task": _task_content(self.task),
            "nodes": {node_type: asdict(nodes) for node_type, nodes in self.nodes.items()},
            "edges": edges,
            "source": self.source,
        }
        return json_text(content, indent=1) + "\n"


def _task_content(task: Task | None) -> dict[str, Any] | None:
    """Without a word of regression where there is none, as files always had it."""
    content = None if task is None else asdict(task)
    if content is not None and not content["regression"]:
        del content["regression"]
    return content


@dataclass(frozen=True, kw_only=True, slots=True)
class _Versions:
    version: int
    rng: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Edges(EdgeSet):
    """The edges of one type as the file has them."""

    type: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Content(_Graph):
    """``graph.json`` as it stands, before its parts are held against each other."""

    edges: list[_Edges]


def is_dtype(name: str) -> bool:
    """Whether a table can have elements of that type: numbers, or bytes of fixed width."""
    return _DTYPES.fullmatch(name) is not None


def is_seed_table(name: str) -> bool:
    """Whether a node table is of the seeds of a task, SPLIT.TASK.WHAT: ``gnnsys.dataset.seeds``."""
    return name.startswith(("train.", "val.", "test."))


def link_table(part: str, what: str) -> str:
    """The edge table of a part of the links held out: ``what`` is source, target or time."""
    return f"{part}.{what}"


def node_folder(heterogeneous: bool, node_type: str) -> str:
    """Where a node type's tables lie in the folder, '' for the top."""
    return f"nodes/{_quote(node_type)}/" if heterogeneous else ""


def edge_folder(heterogeneous: bool, edge_type: EdgeType) -> str:
    """Where an edge type's tables lie in the folder, '' for the top."""
    if not heterogeneous:
        return ""
    parts = [_quote(part) for part in edge_type]
    # An underscore beside another or at an end could be read as the mark between the parts.
    unclear = any("__" in part or part != part.strip("_") for part in parts)
    return f"edges/{'__'.join(p.replace('_', '%5F') if unclear else p for p in parts)}/"


def _quote(part: str) -> str:
    text = quote(part, safe=" ")
    return text if text.strip(".") else text.replace(".", "%2E")


def read_manifest(folder: Path) -> Manifest:
    """Reads and checks ``graph.json``; the tables' files are not opened.

    Raises:
        MissingFileError: there is no such folder, or no ``graph.json`` in it.
        FileFormatError: text that is not what ``gnnsys convert`` writes, or a newer version.
    """
    path = folder / MANIFEST
    try:
        text = read_text_file(path, "JSON")
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError(
            f"{path}: no such file; a dataset folder is made by gnnsys convert or gnnsys generate"
        ) from None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(
            f"{path}: not JSON ({error}); convert the source again into a new folder"
        ) from error
    _check_format(path, content)
    return _Checker(path).manifest(as_record(content, _Content, str(path), _WAY_OUT))


def _check_format(path: Path, content: Any) -> None:
    """Raises FileFormatError for another format, or one of a newer version."""
    found = content.get("format") if isinstance(content, dict) else type(content).__name__
    if found != _FORMAT:
        raise FileFormatError(f"{path}: format is {found!r}, expected {_FORMAT!r}")
    versions = as_record(content, _Versions, str(path), _WAY_OUT)
    for key, newest in (("version", VERSION), ("rng", RNG_VERSION)):
        version = getattr(versions, key)
        if not 1 <= version <= newest:
            raise FileFormatError(
                f"{path}: {key} {version}, this gnnsys reads 1 to {newest}; upgrade gnnsys or "
                "convert the source with this one"
            )


@dataclass(frozen=True, slots=True)
class _Checker:
    """Makes a manifest of the file's content; every fault names its place in the file."""

    path: Path

    def manifest(self, content: _Content) -> Manifest:
        for node_type, entry in content.nodes.items():
            self.check_tables(entry, place_of(["nodes", node_type]), _per_node(entry))
        edges: dict[EdgeType, EdgeSet] = {}
        for number, edge_set in enumerate(content.edges):
            place = f"edges[{number}]"
            edge_type = self.edge_type(edge_set.type, content.nodes, place)
            if edge_type in edges:
                raise self.fault(f"{place}.type is {edge_type} once more")
            edges[edge_type] = EdgeSet(count=edge_set.count, tables=edge_set.tables)
            ends = {"indptr": content.nodes[edge_type[2]].count + 1, "indices": edge_set.count}
            per_edge = {
                name: edge_set.count for name in edge_set.tables if name.startswith("edge_")
            }
            self.check_tables(edge_set, place, ends | per_edge)
        nodes, task = content.nodes, content.task
        if not content.heterogeneous and (list(nodes), list(edges)) != ([NODE_TYPE], [EDGE_TYPE]):
            raise self.fault(
                f"not heterogeneous, but has node types {list(nodes)} and edge types "
                f"{list(edges)}; expected {NODE_TYPE!r} and {EDGE_TYPE}"
            )
        if task is not None and task.node_type not in nodes:
            raise self.fault(f"task.node_type is {task.node_type!r}, expected one of {list(nodes)}")
        return Manifest(**vars(content) | {"edges": edges})

    def fault(self, what: str) -> FileFormatError:
        return FileFormatError(f"{self.path}: {what}; {_WAY_OUT}")

    def edge_type(
        self, parts: tuple[str, ...], nodes: Mapping[str, NodeSet], place: str
    ) -> EdgeType:
        if len(parts) != 3:
            raise self.fault(f"{place}.type is {list(parts)}, expected source, relation, target")
        for end in (parts[0], parts[2]):
            if end not in nodes:
                raise self.fault(
                    f"{place}.type names the node type {end!r}, which is not among {list(nodes)}"
                )
        return parts[0], parts[1], parts[2]

    def check_tables(self, owner: NodeSet | EdgeSet, place: str, wanted: dict[str, int]) -> None:
        for name, table in owner.tables.items():
            self.check_table(table, f"{place}.{place_of(['tables', name])}")
        for name, rows in wanted.items():
            if name not in owner.tables:
                raise self.fault(f"{place} has no table {name}")
            if owner.tables[name].shape[0] != rows:
                raise self.fault(
                    f"{place}.tables.{name} has {owner.tables[name].shape[0]} rows, "
                    f"expected {rows} by the counts"
                )

    def check_table(self, table: Table, place: str) -> None:
        shape, encoding = table.shape, table.encoding
        if not shape:
            raise self.fault(f"{place}.shape is (), expected (rows, …)")
        self.check_scales(encoding, math.prod(shape[1:]), place)
        if encoding.scale is None and not is_dtype(encoding.dtype):
            raise self.fault(
                f"{place}.encoding.dtype is {encoding.dtype!r}, expected the name that numpy has "
                "for numbers, or S and a width"
            )
        stride = Encoding.of(encoding.dtype, shape, encoding.scale).row_stride
        if encoding.row_stride != stride:
            raise self.fault(
                f"{place}.encoding.row_stride is {encoding.row_stride}, expected {stride} bytes"
            )
        for number, shard in enumerate(table.shards):
            self.check_shard(shard, stride, f"{place}.shards[{number}]")
        rows = sum(shard.rows for shard in table.shards)
        if not table.shards or rows != shape[0]:
            raise self.fault(f"the shards of {place} hold {rows} rows, its shape says {shape[0]}")

    def check_scales(self, encoding: Encoding, columns: int, place: str) -> None:
        if encoding.scale is None:
            if encoding.dtype == "int4":
                raise self.fault(f"{place}.encoding is int4 without a scale: row or column")
            return
        if encoding.dtype not in _CODES:
            raise self.fault(
                f"{place}.encoding.dtype is {encoding.dtype!r} with a scale, expected one of "
                f"{', '.join(_CODES)}"
            )
        wanted = columns if encoding.scale == "column" else 0
        if len(encoding.scales) != wanted:
            raise self.fault(
                f"{place}.encoding.scales has {len(encoding.scales)} entries, expected {wanted}: "
                + ("one for each column" if wanted else "each row has its own")
            )
        for column, scale in enumerate(encoding.scales):
            if not 0 <= scale <= _MOST:
                raise self.fault(
                    f"{place}.encoding.scales[{column}] is {scale}, expected a float32 from 0"
                )

    def check_shard(self, shard: Shard, row_stride: int, place: str) -> None:
        data = shard.rows * row_stride
        if shard.bytes < data:
            raise self.fault(
                f"{place}.bytes is {shard.bytes}, expected at least the {data} of {shard.rows} rows"
            )
        chunks = -(-data // CHECKSUM_CHUNK)
        if len(shard.crc32) != chunks:
            raise self.fault(
                f"{place}.crc32 has {len(shard.crc32)} entries, expected {chunks}: one for each "
                f"{CHECKSUM_CHUNK} of its {data} bytes"
            )


def _per_node(nodes: NodeSet) -> dict[str, int]:
    return {name: nodes.count for name in nodes.tables if not name.startswith(_OTHER_ROWS)}

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
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np

from gnnsys.errors import FileFormatError, MissingFileError, UnsupportedError
from gnnsys.rng import RNG_VERSION

__all__ = [
    "CHECKSUM_CHUNK",
    "EDGE_TYPE",
    "NODE_TYPE",
    "VERSION",
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
    "node_folder",
    "read_manifest",
]

VERSION = 1
"""Of the format that this version writes, and the newest that it reads."""

CHECKSUM_CHUNK = 16 << 20
"""Bytes of a table, after its header, that each checksum covers."""

EdgeType = tuple[str, str, str]
"""Source node type, relation, target node type."""

NODE_TYPE = "node"
"""The node type of a homogeneous graph."""

EDGE_TYPE: EdgeType = (NODE_TYPE, "to", NODE_TYPE)
"""The edge type of a homogeneous graph."""

_FORMAT = "gnnsys dataset"
_FILE = "graph.json"
_OTHER_ROWS = ("train", "val", "test", "gb_")  # node tables without a row for each node
_DTYPES = re.compile(
    "bool|u?int(8|16|32|64)|bfloat16|float(16|32|64)|complex(64|128)|S[1-9][0-9]{0,5}"
)
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoding:
    """How the elements of a table are stored."""

    dtype: str
    """numpy's name, or bfloat16, which the .npy file holds as uint16."""

    scale: float | None = None
    """Reserved for quantised tables."""

    zero: float | None = None
    """Likewise."""

    row_stride: int
    """Bytes from a row to the next."""

    @classmethod
    def of(cls, dtype: str, shape: tuple[int, ...]) -> Encoding:
        """That of a table of dense rows."""
        itemsize = cls(dtype=dtype, row_stride=0).file_dtype.itemsize
        return cls(dtype=dtype, row_stride=math.prod(shape[1:]) * itemsize)

    @property
    def file_dtype(self) -> np.dtype[Any]:
        """Element type in the .npy file."""
        return np.dtype(np.uint16 if self.dtype == "bfloat16" else self.dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One file of a table."""

    path: str
    """Relative to the folder, or absolute where the shard lies on another disk."""

    rows: int

    bytes: int
    """Size of the whole file."""

    crc32: tuple[str, ...]
    """Eight hexadecimal digits for each ``CHECKSUM_CHUNK`` bytes of data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """One array of the dataset."""

    shape: tuple[int, ...]
    encoding: Encoding
    shards: tuple[Shard, ...]

    @property
    def data_bytes(self) -> int:
        """Bytes of all rows."""
        return self.shape[0] * self.encoding.row_stride


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeSet:
    """The nodes of one type."""

    count: int
    tables: dict[str, Table] = field(default_factory=dict)
    """By name: features, labels, train, val, test, time, node_id, static_score, …"""


@dataclass(frozen=True, kw_only=True, slots=True)
class EdgeSet:
    """The edges of one type, in CSC: the in-neighbours of each target node, ascending."""

    count: int
    tables: dict[str, Table] = field(default_factory=dict)
    """By name: indptr, indices, and in CSC order edge_features, edge_time, edge_weight, edge_id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What is to be learnt: the classes of nodes."""

    node_type: str
    num_classes: int
    multi_label: bool = False
    metric: str = "accuracy"
    """accuracy, rocauc or f1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The whole of ``graph.json``."""

    name: str
    heterogeneous: bool
    nodes: dict[str, NodeSet]
    edges: dict[EdgeType, EdgeSet]
    task: Task | None = None
    source: dict[str, Any] = field(default_factory=dict)
    """Where the dataset came from, for people and for converting it back."""

    def to_json(self) -> str:
        """The text of ``graph.json``."""
        edges = [
            {"type": list(edge_type), **asdict(edge_set)}
            for edge_type, edge_set in self.edges.items()
        ]
        content = {
            "format": _FORMAT,
            "version": VERSION,
            "rng": RNG_VERSION,
            "name": self.name,
            "heterogeneous": self.heterogeneous,
            "checksum": {"kind": "crc32", "chunk_bytes": CHECKSUM_CHUNK},
            "task": asdict(self.task) if self.task else None,
            "nodes": {node_type: asdict(nodes) for node_type, nodes in self.nodes.items()},
            "edges": edges,
            "source": self.source,
        }
        return json.dumps(content, indent=1) + "\n"


def is_dtype(name: str) -> bool:
    """Whether a table can have elements of that type: numbers, or bytes of fixed width."""
    return _DTYPES.fullmatch(name) is not None


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
    path = folder / _FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError(
            f"{path}: no such file; a dataset folder is made by gnnsys convert or gnnsys generate"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path}: cannot be read ({error})") from error
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(
            f"{path}: not JSON ({error}); convert the source again into a new folder"
        ) from error
    return _Reader(path).manifest(content)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Takes parsed JSON apart; every fault names its place in the file."""

    path: Path

    def manifest(self, content: Any) -> Manifest:
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            found = content.get("format") if isinstance(content, dict) else type(content).__name__
            raise FileFormatError(f"{self.path}: format is {found!r}, expected {_FORMAT!r}")
        for key, newest in (("version", VERSION), ("rng", RNG_VERSION)):
            found = self.get(content, key, int, "")
            if not 1 <= found <= newest:
                raise FileFormatError(
                    f"{self.path}: {key} {found}, this gnnsys reads 1 to {newest}; upgrade gnnsys "
                    "or convert the source with this one"
                )
        heterogeneous = self.get(content, "heterogeneous", bool, "")
        nodes = {
            node_type: self.node_set(entry, f"nodes[{node_type!r}]")
            for node_type, entry in self.get(content, "nodes", dict, "").items()
        }
        edges = {}
        for number, entry in enumerate(self.get(content, "edges", list, "")):
            place = f"edges[{number}]"
            edge_type = self.edge_type(self.get(entry, "type", list, place), nodes, place)
            if edge_type in edges:
                raise FileFormatError(f"{self.path}: {place}.type is {edge_type} once more")
            edges[edge_type] = self.edge_set(entry, nodes, edge_type, place)
        if not heterogeneous and (list(nodes), list(edges)) != ([NODE_TYPE], [EDGE_TYPE]):
            raise FileFormatError(
                f"{self.path}: not heterogeneous, but has node types {list(nodes)} and edge types "
                f"{list(edges)}; expected {NODE_TYPE!r} and {EDGE_TYPE}"
            )
        return Manifest(
            name=self.get(content, "name", str, ""),
            heterogeneous=heterogeneous,
            nodes=nodes,
            edges=edges,
            task=self.task(content.get("task"), nodes),
            source=self.get(content, "source", dict, ""),
        )

    def get(self, entry: Any, key: str, kind: type[_T], place: str) -> _T:
        where = f"{place}.{key}" if place else key
        if not isinstance(entry, dict) or key not in entry:
            raise FileFormatError(f"{self.path}: no {where}; convert the source again")
        value = entry[key]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise FileFormatError(f"{self.path}: {where} is {value!r}, expected {kind.__name__}")
        return value

    def count(self, entry: Any, key: str, place: str) -> int:
        value = self.get(entry, key, int, place)
        if value < 0:
            raise FileFormatError(f"{self.path}: {place}.{key} is {value}, expected at least 0")
        return value

    def node_set(self, entry: Any, place: str) -> NodeSet:
        count, tables = self.count(entry, "count", place), self.tables(entry, place)
        per_node = {name: count for name in tables if not name.startswith(_OTHER_ROWS)}
        self.check_rows(tables, per_node, place)
        return NodeSet(count=count, tables=tables)

    def check_rows(self, tables: dict[str, Table], wanted: dict[str, int], place: str) -> None:
        for name, rows in wanted.items():
            if name not in tables:
                raise FileFormatError(f"{self.path}: {place} has no table {name}")
            if tables[name].shape[0] != rows:
                raise FileFormatError(
                    f"{self.path}: {place}.tables.{name} has {tables[name].shape[0]} rows, "
                    f"expected {rows} by the counts"
                )

    def edge_type(self, parts: list[Any], nodes: Mapping[str, NodeSet], place: str) -> EdgeType:
        if len(parts) != 3 or not all(isinstance(part, str) for part in parts):
            raise FileFormatError(
                f"{self.path}: {place}.type is {parts}, expected source, relation, target"
            )
        for end in (parts[0], parts[2]):
            if end not in nodes:
                raise FileFormatError(
                    f"{self.path}: {place}.type names the node type {end!r}, which is not among "
                    f"{list(nodes)}"
                )
        return parts[0], parts[1], parts[2]

    def edge_set(
        self, entry: Any, nodes: Mapping[str, NodeSet], edge_type: EdgeType, place: str
    ) -> EdgeSet:
        count, tables = self.count(entry, "count", place), self.tables(entry, place)
        per_edge = {name: count for name in tables if name.startswith("edge_")}
        ends = {"indptr": nodes[edge_type[2]].count + 1, "indices": count}
        self.check_rows(tables, ends | per_edge, place)
        return EdgeSet(count=count, tables=tables)

    def tables(self, entry: Any, place: str) -> dict[str, Table]:
        return {
            name: self.table(value, f"{place}.tables.{name}")
            for name, value in self.get(entry, "tables", dict, place).items()
        }

    def table(self, entry: Any, place: str) -> Table:
        shape = tuple(self.get(entry, "shape", list, place))
        if not shape or not all(type(size) is int and size >= 0 for size in shape):
            raise FileFormatError(f"{self.path}: {place}.shape is {shape}, expected (rows, …)")
        encoding = self.encoding(self.get(entry, "encoding", dict, place), shape, place)
        shards = tuple(
            self.shard(value, encoding.row_stride, f"{place}.shards[{number}]")
            for number, value in enumerate(self.get(entry, "shards", list, place))
        )
        if not shards or sum(shard.rows for shard in shards) != shape[0]:
            raise FileFormatError(
                f"{self.path}: the shards of {place} hold {sum(shard.rows for shard in shards)} "
                f"rows, its shape says {shape[0]}"
            )
        return Table(shape=shape, encoding=encoding, shards=shards)

    def encoding(self, entry: Any, shape: tuple[int, ...], place: str) -> Encoding:
        dtype = self.get(entry, "dtype", str, f"{place}.encoding")
        stride = self.count(entry, "row_stride", f"{place}.encoding")
        if not is_dtype(dtype):
            raise FileFormatError(
                f"{self.path}: {place}.encoding.dtype is {dtype!r}, expected the name that "
                "numpy has for numbers, or S and a width"
            )
        encoding = Encoding.of(dtype, shape)
        if entry.get("scale") is not None or entry.get("zero") is not None:
            raise UnsupportedError(
                f"{self.path}: {place} is quantised (scale {entry.get('scale')}), which this "
                "version does not read; convert the source without --dtype"
            )
        if stride != encoding.row_stride:
            raise FileFormatError(
                f"{self.path}: {place}.encoding.row_stride is {stride}, expected "
                f"{encoding.row_stride} bytes"
            )
        return encoding

    def shard(self, entry: Any, row_stride: int, place: str) -> Shard:
        shard = Shard(
            path=self.get(entry, "path", str, place),
            rows=self.count(entry, "rows", place),
            bytes=self.count(entry, "bytes", place),
            crc32=tuple(str(word) for word in self.get(entry, "crc32", list, place)),
        )
        data = shard.rows * row_stride
        if shard.bytes < data:
            raise FileFormatError(
                f"{self.path}: {place}.bytes is {shard.bytes}, expected at least the {data} of "
                f"{shard.rows} rows"
            )
        chunks = -(-data // CHECKSUM_CHUNK)
        if len(shard.crc32) != chunks:
            raise FileFormatError(
                f"{self.path}: {place}.crc32 has {len(shard.crc32)} entries, expected {chunks}: "
                f"one for each {CHECKSUM_CHUNK} of its {data} bytes"
            )
        return shard

    def task(self, entry: Any, nodes: Mapping[str, NodeSet]) -> Task | None:
        if entry is None:
            return None
        node_type = self.get(entry, "node_type", str, "task")
        if node_type not in nodes:
            raise FileFormatError(
                f"{self.path}: task.node_type is {node_type!r}, expected one of {list(nodes)}"
            )
        return Task(
            node_type=node_type,
            num_classes=self.count(entry, "num_classes", "task"),
            multi_label=self.get(entry, "multi_label", bool, "task"),
            metric=self.get(entry, "metric", str, "task"),
        )

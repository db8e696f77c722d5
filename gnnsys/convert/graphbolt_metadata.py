"""What ``metadata.yaml`` of a GraphBolt folder says. Pure but for looking whether files are there.

The format is that of ``dgl.graphbolt.OnDiskDataset``: DGL's user guide, "Composing OnDiskDataset
from raw data: YAML specification".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from gnnsys.convert.yaml_files import read_yaml
from gnnsys.dataset.format import EDGE_TYPE, NODE_TYPE, Count, EdgeType
from gnnsys.errors import FileFormatError, MissingFileError
from gnnsys.system.records import as_record

__all__ = [
    "METADATA",
    "EdgeEntry",
    "Entry",
    "Kept",
    "Metadata",
    "Record",
    "SetPart",
    "Task",
    "check_relative",
]

METADATA = "metadata.yaml"
_SETS = {"train_set": "train", "validation_set": "val", "test_set": "test"}
_WAY_OUT = "see DGL's YAML specification"

# The file as it stands ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Typed:
    type: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Nodes(_Typed):
    num: Count


@dataclass(frozen=True, kw_only=True)
class EdgeEntry(_Typed):
    """A file with the edges of a type."""

    path: str
    format: Literal["numpy", "csv"]


@dataclass(frozen=True, kw_only=True)
class Entry(_Typed):
    """A file with an array."""

    path: str
    """Relative to the folder, with forward slashes."""

    format: Literal["numpy", "torch"]
    name: Any = None


@dataclass(frozen=True, kw_only=True)
class _Feature(Entry):
    domain: Literal["node", "edge", "graph"]
    name: str | int


@dataclass(frozen=True, kw_only=True)
class _Graph:
    nodes: list[_Nodes]
    edges: list[EdgeEntry]
    feature_data: list[_Feature] | None = None


@dataclass(frozen=True, kw_only=True)
class _Part(_Typed):
    data: list[Entry]


@dataclass(frozen=True, kw_only=True)
class _Task:
    num_classes: Any = None
    train_set: list[_Part] | None = None
    validation_set: list[_Part] | None = None
    test_set: list[_Part] | None = None


@dataclass(frozen=True, kw_only=True)
class _Content:
    graph: _Graph
    dataset_name: Any = None
    feature_data: list[_Feature] | None = None
    tasks: list[_Task] | None = None


# What it means ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SetPart:
    """The arrays of one type in a training, validation or test set."""

    owner: str | EdgeType
    split: str
    """train, val or test."""

    data: dict[str, Entry]
    """By name: seeds, labels, …"""


@dataclass(frozen=True, slots=True)
class Task:
    """One of the tasks."""

    num_classes: int | None
    parts: list[SetPart]


class Metadata:
    """The whole of ``metadata.yaml``, read and held against itself and the files that are there.

    Args:
        folder: that holds it.

    Raises:
        MissingFileError: there is no ``metadata.yaml``, or a file that it names is not there.
        FileFormatError: it is not YAML, lacks keys, or has values of another kind.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / METADATA
        self.text, read = _read_metadata(self._path)
        content = as_record(read, _Content, str(self._path), _WAY_OUT)
        graph = content.graph
        self.name = str(content.dataset_name or folder.name)
        typed = any(entry.type is not None for entry in (*graph.nodes, *graph.edges))
        self.heterogeneous = typed or len(graph.nodes) != 1 or len(graph.edges) != 1
        self.nodes: dict[str, int] = {}
        for number, nodes in enumerate(graph.nodes):
            place = f"graph.nodes[{number}]"
            node_type = self._type_of(nodes, place) or NODE_TYPE
            if node_type in self.nodes:
                raise self._fault(f"{place}.type is {node_type!r}, which is there twice")
            self.nodes[node_type] = nodes.num
        self.edges: dict[EdgeType, EdgeEntry] = {}
        for number, edges in enumerate(graph.edges):
            place = f"graph.edges[{number}]"
            kind = self._type_of(edges, place)
            edge_type = EDGE_TYPE if kind is None else self._edge_type(kind, place)
            if edge_type in self.edges:
                raise self._fault(f"{place}.type is {kind!r}, which is there twice")
            self.edges[edge_type] = edges
        self.features: list[tuple[str | EdgeType | None, Entry]] = []
        """Files with a row for each node or edge of a type; or of neither, where that is None."""
        for place, features in (("", content.feature_data), ("graph.", graph.feature_data)):
            for number, entry in enumerate(features or []):
                of_all = entry.domain == "graph"
                where = f"{place}feature_data[{number}]"
                owner = None if of_all else self._owner(entry, where, entry.domain)
                self.features.append((owner, entry))
        self.tasks = [self._task(task, f"tasks[{n}]") for n, task in enumerate(content.tasks or [])]
        for file in self.files():
            check_relative(file.path, f"{self._path}: path")
            if not (folder / file.path).is_file():
                raise MissingFileError(
                    f"{folder / file.path}: no such file, but {self._path} names it"
                )

    def files(self) -> Iterator[Entry | EdgeEntry]:
        """Every file that is named, also twice."""
        yield from self.edges.values()
        yield from (file for _, file in self.features)
        yield from (
            file for task in self.tasks for part in task.parts for file in part.data.values()
        )

    def _type_of(self, entry: _Typed, place: str) -> str | None:
        """What an entry has to have where the graph has types."""
        if self.heterogeneous and entry.type is None:
            raise self._fault(f"no {place}.type; {_WAY_OUT}")
        return entry.type

    def _edge_type(self, text: str, place: str) -> EdgeType:
        parts = text.split(":")
        if len(parts) != 3 or parts[0] not in self.nodes or parts[2] not in self.nodes:
            raise self._fault(
                f"{place}.type is {text!r}, expected SOURCE:RELATION:TARGET with node types of "
                f"{', '.join(self.nodes)}"
            )
        return parts[0], parts[1], parts[2]

    def _owner(self, entry: _Typed, place: str, domain: str = "") -> str | EdgeType:
        kind = self._type_of(entry, place)
        if kind is None:
            return EDGE_TYPE if domain == "edge" else NODE_TYPE
        if not self.heterogeneous:
            raise self._fault(f"{place}.type is {kind!r}, but the graph has no types")
        if domain != "edge" and kind in self.nodes:
            return kind
        edge_type = self._edge_type(kind, place) if domain != "node" else None
        if edge_type not in self.edges:
            raise self._fault(f"{place}.type is {kind!r}, which the graph does not have")
        return edge_type

    def _task(self, task: _Task, place: str) -> Task:
        parts = []
        for key, split in _SETS.items():
            for number, part in enumerate(getattr(task, key) or []):
                data: dict[str, Entry] = {}
                for index, item in enumerate(part.data):
                    known = isinstance(item.name, str) and item.name not in data
                    data[item.name if known else str(index)] = item
                parts.append(SetPart(self._owner(part, f"{place}.{key}[{number}]"), split, data))
        return Task(task.num_classes if type(task.num_classes) is int else None, parts)

    def _fault(self, what: str) -> FileFormatError:
        return FileFormatError(f"{self._path}: {what}")


def _read_metadata(path: Path) -> tuple[str, Any]:
    """The text, and what it says."""
    text, content = read_yaml(path, "GraphBolt")
    if isinstance(content, dict) and "graph_topology" in content and "graph" not in content:
        raise FileFormatError(
            f"{path}: graph_topology is GraphBolt's preprocessed form; give the folder above it"
        )
    return text, content


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What ``graph.json`` says of a file, so that it can be made again."""

    path: str
    format: Literal["numpy", "torch", "csv"]

    dtype: str
    """numpy's short name with the order of bytes, or bfloat16."""

    shape: list[int]
    """Of the file's array; [] for text."""

    holds: Literal["edges", "edge_rows", "edge_table", "node_table", "labels"]
    """edges: both ends of the edges of a type; edge_rows: a table of them in CSC order; edge_table
    and node_table: a table as it is; labels: those of a split's nodes."""

    of: str | EdgeType
    """The node type, or the edge type."""

    table: str
    """Name of the table; of the split, for labels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """All that ``graph.json`` says of the folder that a dataset was converted from."""

    metadata: str
    """The text of ``metadata.yaml``."""

    files: list[Record]


def check_relative(path: str, place: str) -> None:
    """Raises FileFormatError for an absolute path, or one that leads out of its folder."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\0" in path:
        raise FileFormatError(f"{place} is {path!r}, expected a path inside the folder")

"""What ``metadata.yaml`` of a GraphBolt folder says. Pure but for looking whether files are there.

The format is that of ``dgl.graphbolt.OnDiskDataset``: DGL's user guide, "Composing OnDiskDataset
from raw data: YAML specification".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from gnnsys.dataset.format import EDGE_TYPE, NODE_TYPE, EdgeType
from gnnsys.errors import FileFormatError, MissingFileError, UnsupportedError

__all__ = [
    "METADATA",
    "Entry",
    "Feature",
    "Metadata",
    "Record",
    "SetPart",
    "Task",
    "check_relative",
    "require_yaml",
]

METADATA = "metadata.yaml"
_SETS = {"train_set": "train", "validation_set": "val", "test_set": "test"}


def require_yaml(what: str) -> Any:
    """PyYAML, or one error that says how to install it."""
    try:
        return import_module("yaml")
    except ImportError as error:
        raise UnsupportedError(
            f"{what}: needs PyYAML, which is not installed; pip install 'gnnsys[convert]'"
        ) from error


@dataclass(frozen=True, slots=True)
class Entry:
    """A file that the metadata names."""

    path: str
    """Relative to the folder, with forward slashes."""

    format: str
    """numpy, torch or csv."""

    key: str
    """Where in the metadata it stands."""


@dataclass(frozen=True, slots=True)
class Feature:
    """A file with a row for each node or edge of a type; or of neither, where ``owner`` is None."""

    owner: str | EdgeType | None
    name: str
    file: Entry


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


@dataclass(frozen=True, slots=True)
class Metadata:
    """The whole of ``metadata.yaml``."""

    text: str
    name: str
    heterogeneous: bool
    nodes: dict[str, int]
    edges: dict[EdgeType, Entry]
    features: list[Feature]
    tasks: list[Task]

    @staticmethod
    def read(folder: Path) -> Metadata:
        """Reads and checks it.

        Raises:
            MissingFileError: there is no ``metadata.yaml``, or a file that it names is not there.
            FileFormatError: it is not YAML, lacks keys, or has values of another kind.
        """
        path = folder / METADATA
        yaml = require_yaml(str(path))
        try:
            text = path.read_text(encoding="utf-8")
            content = yaml.safe_load(text)
        except FileNotFoundError:
            raise MissingFileError(
                f"{path}: no such file; a GraphBolt folder holds metadata.yaml at its top"
            ) from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise FileFormatError(f"{path}: not YAML ({reason})") from error
        metadata = _Reader(path).metadata(content, text)
        for entry in metadata.files():
            if not (folder / entry.path).is_file():
                raise MissingFileError(
                    f"{folder / entry.path}: no such file, but {entry.key} in {path} names it"
                )
        return metadata

    def files(self) -> Iterator[Entry]:
        """Every file that is named, also twice."""
        yield from self.edges.values()
        yield from (feature.file for feature in self.features)
        yield from (
            file for task in self.tasks for part in task.parts for file in part.data.values()
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What ``graph.json`` says of a file, so that it can be made again."""

    path: str
    format: str
    """numpy, torch or csv."""

    dtype: str
    """numpy's short name with the order of bytes, or bfloat16."""

    shape: list[int]
    """Of the file's array; [] for text."""

    holds: Literal["edges", "edge_rows", "edge_table", "node_table", "labels"]
    """edges: both ends of the edges of a type; edge_rows: a table of them in CSC order; edge_table
    and node_table: a table as it is; labels: those of a split's nodes."""

    of: Any
    """The node type, or the parts of the edge type."""

    table: str
    """Name of the table; of the split, for labels."""

    @staticmethod
    def parse(content: Any, place: str) -> Record:
        """A record from JSON.

        Raises:
            FileFormatError: other keys, or a path that leads out of the folder.
        """
        try:
            record = Record(**content)
            of = tuple(record.of) if isinstance(record.of, list) else record.of
            return replace(record, path=check_relative(record.path, place), of=of)
        except TypeError as error:
            raise FileFormatError(
                f"{place} is damaged ({error}); convert the source again"
            ) from None


def check_relative(path: str, place: str) -> str:
    """The same path, where it stays inside its folder.

    Raises:
        FileFormatError: an absolute path, or one that leads out.
    """
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\0" in path:
        raise FileFormatError(f"{place} is {path!r}, expected a path inside the folder")
    return path


class _Reader:
    """Takes parsed YAML apart; every fault names its place in the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._nodes: dict[str, int] = {}
        self._edges: dict[EdgeType, Entry] = {}
        self._heterogeneous = False

    def metadata(self, content: Any, text: str) -> Metadata:
        if not isinstance(content, dict):
            raise self._fault("", f"holds a {type(content).__name__}, expected keys and values")
        if "graph" not in content and "graph_topology" in content:
            raise self._fault(
                "graph_topology", "is GraphBolt's preprocessed form; give the folder above it"
            )
        graph = self._get(content, "graph", dict, "")
        nodes = self._get(graph, "nodes", list, "graph.")
        edges = self._get(graph, "edges", list, "graph.")
        self._heterogeneous = len(nodes) != 1 or len(edges) != 1 or self._is_typed(*nodes, *edges)
        for number, entry in enumerate(nodes):
            self._add_nodes(entry, f"graph.nodes[{number}].")
        for number, entry in enumerate(edges):
            self._add_edges(entry, f"graph.edges[{number}].")
        features = [
            feature
            for place, owner in (("", content), ("graph.", graph))
            for feature in self._features(owner, place)
        ]
        tasks = [
            self._task(entry, f"tasks[{number}].")
            for number, entry in enumerate(self._list(content, "tasks", ""))
        ]
        return Metadata(
            text=text,
            name=str(content.get("dataset_name") or self._path.parent.name),
            heterogeneous=self._heterogeneous,
            nodes=self._nodes,
            edges=self._edges,
            features=features,
            tasks=tasks,
        )

    def _is_typed(self, *entries: Any) -> bool:
        return any(isinstance(entry, dict) and entry.get("type") is not None for entry in entries)

    def _add_nodes(self, entry: Any, place: str) -> None:
        count = self._get(entry, "num", int, place)
        kind = self._get(entry, "type", str, place) if self._heterogeneous else NODE_TYPE
        if count < 0 or kind in self._nodes:
            raise self._fault(place, f"{kind!r} with {count} nodes: negative, or there twice")
        self._nodes[kind] = count

    def _add_edges(self, entry: Any, place: str) -> None:
        kind = EDGE_TYPE
        if self._heterogeneous:
            kind = self._edge_type(self._get(entry, "type", str, place), place)
        if kind in self._edges:
            raise self._fault(f"{place}type", f"is {':'.join(kind)!r}, which is there twice")
        self._edges[kind] = self._file(entry, place, ("numpy", "csv"))

    def _edge_type(self, text: str, place: str) -> EdgeType:
        parts = text.split(":")
        if len(parts) != 3 or parts[0] not in self._nodes or parts[2] not in self._nodes:
            raise self._fault(
                f"{place}type",
                f"is {text!r}, expected SOURCE:RELATION:TARGET with node types of "
                f"{', '.join(self._nodes)}",
            )
        return parts[0], parts[1], parts[2]

    def _features(self, content: dict[str, Any], place: str) -> Iterator[Feature]:
        for number, entry in enumerate(self._list(content, "feature_data", place)):
            where = f"{place}feature_data[{number}]."
            domain = self._get(entry, "domain", str, where)
            if domain not in ("node", "edge", "graph"):
                raise self._fault(f"{where}domain", f"is {domain!r}, expected node, edge or graph")
            owner = None if domain == "graph" else self._owner(entry, where, domain)
            name = str(self._get(entry, "name", (str, int), where))
            yield Feature(owner, name, self._file(entry, where, ("numpy", "torch")))

    def _owner(self, entry: Any, place: str, domain: str | None = None) -> str | EdgeType:
        kind = entry.get("type")
        if not self._heterogeneous and kind is None:
            return EDGE_TYPE if domain == "edge" else NODE_TYPE
        kind = self._get(entry, "type", str, place)
        if not self._heterogeneous:
            raise self._fault(f"{place}type", f"is {kind!r}, but the graph has no types")
        if domain != "edge" and kind in self._nodes:
            return kind
        edge_type = self._edge_type(kind, place) if domain != "node" else None
        if edge_type not in self._edges:
            raise self._fault(f"{place}type", f"is {kind!r}, which the graph does not have")
        return edge_type

    def _task(self, entry: Any, place: str) -> Task:
        if not isinstance(entry, dict):
            raise self._fault(place, f"is {entry!r}, expected keys and values")
        parts = []
        for key, split in _SETS.items():
            for number, part in enumerate(self._list(entry, key, place)):
                where = f"{place}{key}[{number}]."
                data = {}
                for index, item in enumerate(self._get(part, "data", list, where)):
                    file = self._file(item, f"{where}data[{index}].", ("numpy", "torch"))
                    name = item.get("name")
                    data[name if isinstance(name, str) and name not in data else str(index)] = file
                parts.append(SetPart(self._owner(part, where), split, data))
        classes = entry.get("num_classes")
        return Task(classes if type(classes) is int else None, parts)

    def _file(self, entry: Any, place: str, formats: tuple[str, ...]) -> Entry:
        path = self._get(entry, "path", str, place)
        kind = self._get(entry, "format", str, place)
        if kind not in formats:
            raise self._fault(f"{place}format", f"is {kind!r}, expected {' or '.join(formats)}")
        return Entry(check_relative(path, f"{self._path}: {place}path"), kind, f"{place}path")

    def _list(self, content: Any, key: str, place: str) -> list[Any]:
        return [] if content.get(key) is None else self._get(content, key, list, place)

    def _get(self, entry: Any, key: str, kind: Any, place: str) -> Any:
        if not isinstance(entry, dict) or key not in entry:
            raise self._fault(f"{place}{key}", "is not there; see DGL's YAML specification")
        value = entry[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            expected = getattr(kind, "__name__", "str")
            raise self._fault(f"{place}{key}", f"is {value!r}, expected {expected}")
        return value

    def _fault(self, place: str, what: str) -> FileFormatError:
        where = f"{place.rstrip('.')} " if place else ""
        return FileFormatError(f"{self._path}: {where}{what}")

"""Graphs to train on: by name, through PyG's dataset classes, dataset folders, and the demo.

Owns ``NodeDataset`` and ``load_dataset``. Invariants: nothing is written into the user's folder; a
homogeneous graph is one of one node type and one edge type.
"""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from gnnsys.config.resolve import Run
from gnnsys.counters import Counters
from gnnsys.dataset.folder import Dataset, open_dataset
from gnnsys.dataset.format import EDGE_TYPE, NODE_TYPE, EdgeType, Task
from gnnsys.dataset.importance import without_score
from gnnsys.dataset.named import NAMED, load_raw
from gnnsys.dataset.tables import check_nodes
from gnnsys.errors import ArgumentError, FileFormatError
from gnnsys.features.options import FeatureOptions, TopologyOptions
from gnnsys.features.replay import target_of
from gnnsys.features.setup import setup_device_cache, setup_features
from gnnsys.features.statistics import add_counts, read_counts
from gnnsys.features.topology import NEIGHBOURS, OFFSETS, open_topology
from gnnsys.generate import generate_community
from gnnsys.loaders import CSC
from gnnsys.system.budget import SPLITS, process_budget
from gnnsys.system.device import SIMT
from gnnsys.system.once import warn_once
from gnnsys.system.scratch import ScratchFolder
from gnnsys.training.metrics import are_known, kind_of
from gnnsys.unified_tensor import UnifiedTensor, unified

__all__ = [
    "NodeDataset",
    "check_one_type",
    "digest_of",
    "load_dataset",
    "load_run_dataset",
    "task_of",
]

DEMO_NODES = 20_000

_log = logging.getLogger(__name__)
_Setup = Callable[[Dataset], dict[str, Any]]
"""Decides how the features of a folder are read: options of ``gnnsys.unified``."""
_OpenGraph = Callable[[Dataset, CSC], None]
"""Decides how the neighbours of a folder are read."""


@dataclass(kw_only=True, slots=True)
class NodeDataset:
    """A graph of one node type or several, the nodes of one of which are to be classified, or given
    a number."""

    name: str

    digest: str
    """Tells this dataset from others: a checkpoint of one does not fit another."""

    source: Any
    """What loaders take: PyG ``Data``, or ``(FeatureStore, GraphStore)`` over a folder."""

    heterogeneous: bool = False
    """Whether batches have types; else there is one node type and one edge type."""

    target: str = NODE_TYPE
    """Node type to classify, which the labels and ``train``, ``val`` and ``test`` are of."""

    num_nodes: Mapping[str, int]
    """Nodes of each type."""

    tables: Mapping[str, UnifiedTensor]
    """(nodes, features) of each node type that has features."""

    graphs: Mapping[EdgeType, CSC]
    """In-neighbours of each node of the edge type's target, by edge type."""

    labels: Tensor
    """(nodes,) int64 classes, -1 where unknown; or (nodes, labels) float32 of 0, 1 and NaN; or
    (nodes,) float32 numbers, NaN where unknown."""

    num_classes: int
    """Outputs of a model for a node: classes or labels, or 1."""

    train: Tensor
    """(n,) int64 ids of the training nodes; ``val`` and ``test`` likewise."""

    val: Tensor

    num_test: int
    """Test nodes."""

    open_test: Callable[[], Tensor] = field(repr=False)
    """Gives ``test``: training does not read it, and of a large graph it is most of the nodes."""

    metric: str
    """What the dataset is judged by: one of ``gnnsys.choices.METRICS``."""

    folder: ScratchFolder | None = field(default=None, repr=False)
    """Holds the generated features until the dataset is let go."""

    _test: Tensor | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        of = f" of type {self.target!r}" if self.heterogeneous else ""
        for name in ("train", "val"):
            ids = getattr(self, name)
            if len(ids) == 0:
                raise ArgumentError(
                    f"{self.name}: no {name} nodes{of}; name them when the dataset is converted, "
                    "or draw them with gnnsys convert --random-split"
                )
            if not self.multi_label and not are_known(self.labels[ids]).all():
                wrong = int(ids[torch.argmin(are_known(self.labels[ids]).int())])
                raise ArgumentError(
                    f"{self.name}: the {name} node {wrong}{of} has no label; leave it out of {name}"
                )

    @property
    def test(self) -> Tensor:
        """(n,) int64 ids of the test nodes, opened when they are first asked for.

        Raises:
            FileFormatError: an id outside the nodes, or a damaged file.
        """
        if self._test is None:
            self._test = self.open_test()
        return self._test

    @property
    def multi_label(self) -> bool:
        """Whether a node has several labels, each there or not."""
        return self.labels.dim() == 2

    @property
    def regression(self) -> bool:
        """Whether a node has a number, not classes."""
        return kind_of(self.labels) == "values"

    @property
    def features(self) -> UnifiedTensor:
        """(nodes, features) of a homogeneous graph.

        Raises:
            ArgumentError: the graph has types; see ``tables``.
        """
        self._check_homogeneous("features", "tables")
        return self.tables[NODE_TYPE]

    @property
    def graph(self) -> CSC:
        """In-neighbours of each node of a homogeneous graph.

        Raises:
            ArgumentError: the graph has types; see ``graphs``.
        """
        self._check_homogeneous("graph", "graphs")
        return self.graphs[EDGE_TYPE]

    def _check_homogeneous(self, asked: str, other: str) -> None:
        if self.heterogeneous:
            raise ArgumentError(f"{asked}: {self.name} is heterogeneous; use {other}")

    def close(self) -> None:
        """Lets go of the features' files; a trace of one is whole from here on."""
        for table in self.tables.values():
            table.store.close()

    def served(self) -> Counters:
        """A copy of what this process has counted of all tables, for batches made ahead, too."""
        return Counters.total([table.counters for table in self.tables.values()])

    def reads(self) -> dict[str, float]:
        """What was counted of the caches, their reads and those of neighbours; see ``read_counts``
        and ``NeighborFile.counts``."""
        counts: dict[str, float] = {}
        for table in self.tables.values():
            counts = add_counts(counts, read_counts(table.store))
        for graph in self.graphs.values():
            counts = add_counts(counts, {} if graph.file is None else graph.file.counts())
        return counts

    def facts(self) -> dict[str, Any]:
        """Its name and sizes, for JSON; of several types the sums, the features of the target."""
        table = self.tables.get(self.target)
        sizes = {
            "name": self.name,
            "nodes": sum(self.num_nodes.values()),
            "edges": sum(graph.num_edges for graph in self.graphs.values()),
            "features": 0 if table is None else table.shape[1],
            **({} if self.regression else {"classes": self.num_classes}),
        }
        if not self.heterogeneous:
            return sizes
        return {
            **sizes,
            "target": self.target,
            "node_types": dict(self.num_nodes),
            "edge_types": {",".join(kind): each.num_edges for kind, each in self.graphs.items()},
        }

    def edge_index(self) -> Tensor:
        """(2, edges) int64, in memory, sorted by target."""
        check_nodes(self.graph.indices.numpy(), len(self.labels), f"{self.name}: sources of edges")
        return torch.stack([self.graph.indices.long(), self.graph.targets()])

    def to_data(self) -> Data:
        """The whole graph in memory: x, edge_index, y, and train_mask (nodes,) bool."""
        x = self.features.materialize().to("cpu")
        data = Data(x=x, edge_index=self.edge_index(), y=self.labels)
        data.train_mask = torch.zeros(len(x), dtype=torch.bool)
        data.train_mask[self.train] = True
        return data


def load_dataset(
    name: str,
    root: str = "data",
    *,
    split: int = 0,
    seed: int = 0,
    threads: int = 0,
    device: str | None = None,
    options: FeatureOptions | None = None,
    topology: TopologyOptions | None = None,
    fanouts: Sequence[int] = (),
    batch_size: int = 1024,
    ranks: int = 1,
    target: str | None = None,
) -> NodeDataset:
    """Loads a dataset by name, opens a folder, or generates the demo.

    Args:
        name: cora, citeseer, pubmed, actor, tolokers, minesweeper, demo, or the path of a dataset
            folder.
        root: folder of the raw files, laid out as PyG's loaders do.
        split: which of several splits.
        seed: of the demo's generator, and of the batches of ``--score presample``.
        threads: that gather features; 0 for all cores.
        device: where features are consumed; None for "cuda" when there is one; see
            ``gnnsys.unified``.
        options: how the features of a folder or the demo are read; None for the defaults.
        topology: how the neighbours of a folder or the demo are read; None for the defaults.
        fanouts: of training, for ``--score presample`` and ``topology``; likewise ``batch_size``,
            in seeds.
        ranks: that load it together.
        target: node type to classify; None for the one that the folder's task names.

    Raises:
        ArgumentError: an unknown name, split or target, nodes to train on that have no label, or
            ``options`` that the dataset's features have no use for.
        MissingFileError: raw files that are not under ``root``.
        FileFormatError: raw files that cannot be read, or labels that do not fit the nodes.
    """
    options, topology = options or FeatureOptions(), topology or TopologyOptions()
    if name not in NAMED:

        def setup(dataset: Dataset) -> dict[str, Any]:
            return setup_features(
                dataset, options, ranks, target=target, fanouts=fanouts, batch_size=batch_size,
                seed=seed, threads=threads,
            )  # fmt: skip

        def open_graph(dataset: Dataset, graph: CSC) -> None:
            open_topology(dataset, graph, topology, storage=options.storage, fanouts=fanouts)

        if split:
            raise ArgumentError(f"--split {split}: {name} has 1, numbered from 0")
        if name == "demo":
            check_one_type(name, target)
            return _load_demo(seed, threads, device, setup, open_graph)
        if os.sep in name or os.path.isdir(name):
            return _open_folder(Path(name), threads, device, setup, open_graph, target)
        raise ArgumentError(
            f"dataset {name!r} is unknown: expected one of {', '.join([*NAMED, 'demo'])}, or "
            "the path of a dataset folder"
        )
    check_one_type(name, target)
    on_gpu = torch.cuda.is_available() if device is None else device != "cpu"
    is_cached = on_gpu and options.cache not in ("auto", "none")
    if not is_cached:
        options.check_without_file(f"{name} has its in memory")
    topology.check_without_file(f"{name} has its in memory")
    data = load_raw(name, NAMED[name], Path(root))
    _check_labels(name, data)
    train, val, test = (
        _split_ids(name, data[f"{part}_mask"], split) for part in ("train", "val", "test")
    )
    cache = setup_device_cache(options, data.edge_index, data.num_nodes) if is_cached else {}
    x = unified(data.x.contiguous(), threads=threads, device=device, **cache)
    return _from_memory(name, x, data.edge_index, data.y, train, val, test, NAMED[name].metric)


def load_run_dataset(run: Run, device: str | None = None) -> NodeDataset:
    """``load_dataset`` for a run; its features are consumed on ``device``, else on the run's."""
    config = run.config
    return load_dataset(
        config.dataset,
        config.root,
        split=config.split,
        seed=config.seed,
        threads=config.threads,
        device=device or (SIMT if config.device == SIMT else run.device.type),
        options=run.features,
        topology=run.topology,
        fanouts=config.fanouts or (),
        batch_size=config.batch_size,
        ranks=run.ranks,
        target=config.target,
    )


def _from_memory(
    name: str,
    x: UnifiedTensor,
    edge_index: Tensor,
    labels: Tensor,
    train: Tensor,
    val: Tensor,
    test: Tensor,
    metric: str,
) -> NodeDataset:
    crc = 0
    for part in (edge_index, labels, train, val, test):
        crc = zlib.crc32(part.contiguous().numpy().data, crc)
    return NodeDataset(
        name=name,
        digest=f"{name}: {len(x)} nodes, {edge_index.shape[1]} edges, crc32 {crc:08x}",
        source=Data(x=x, edge_index=edge_index, y=labels),
        num_nodes={NODE_TYPE: len(x)},
        tables={NODE_TYPE: x},
        graphs={EDGE_TYPE: CSC.from_edge_index(edge_index, len(x))},
        labels=labels,
        num_classes=int(labels.max()) + 1,
        train=train,
        val=val,
        num_test=len(test),
        open_test=lambda: test,
        metric=metric,
    )


def _load_demo(
    seed: int, threads: int, device: str | None, setup: _Setup, open_graph: _OpenGraph
) -> NodeDataset:
    folder = ScratchFolder("gnnsys-demo-")
    path = generate_community(folder.path / "demo", nodes=DEMO_NODES, seed=seed)
    dataset = _open_folder(path, threads, device, setup, open_graph)
    dataset.name, dataset.folder = "demo", folder
    return dataset


def _open_folder(
    path: Path,
    threads: int,
    device: str | None,
    setup: _Setup,
    open_graph: _OpenGraph,
    target: str | None = None,
) -> NodeDataset:
    dataset = open_dataset(path)
    task = task_of(dataset, target)
    kind, typed = task.node_type, dataset.heterogeneous
    if not typed and not dataset.has("features"):
        raise ArgumentError(_lacks(path, "features"))
    for table, count in dataset.manifest.source.get("nan", {}).items():
        _log.warning("%s: %s holds %d NaN", path, table, count)
    if any(dataset.has("time", each) for each in dataset.node_types) or any(
        dataset.has("edge_time", each) for each in dataset.edge_types
    ):
        warn_once(
            _log, "%s: its times are not used: nodes and edges later than a seed are sampled, too",
            path
        )  # fmt: skip
    features, graphs = dataset.stores(
        edge_features=False, threads=threads, device=device, **setup(dataset)
    )
    if not typed:
        open_graph(dataset, graphs.graph())
    labels = dataset.labels(kind)
    found = NodeDataset(
        name=dataset.name,
        digest=digest_of(dataset),
        source=(features, graphs),
        heterogeneous=typed,
        target=kind,
        num_nodes={each: dataset.num_nodes(each) for each in dataset.node_types},
        tables={
            each: features.table(each if typed else None, "x")
            for each in dataset.node_types
            if dataset.has("features", each)
        },
        graphs=graphs.graphs() if typed else {EDGE_TYPE: graphs.graph()},
        labels=labels,
        num_classes=task.num_classes or _count_classes(labels),
        train=dataset.split("train", kind),
        val=dataset.split("val", kind),
        num_test=dataset.split_size("test", kind),
        open_test=lambda: _enter_mapped(SPLITS, dataset.split("test", kind)),
        metric=task.metric,
    )
    for graph in found.graphs.values():
        _enter_mapped(OFFSETS, graph.indptr)
        if typed:
            _enter_mapped(NEIGHBOURS, graph.indices)
    _enter_mapped("labels, mapped", found.labels)
    _enter_mapped(SPLITS, found.train)
    _enter_mapped(SPLITS, found.val)
    return found


def task_of(dataset: Dataset, target: str | None = None) -> Task:
    """What is to be learnt of a folder: its own task, or that of the labels of another node type,
    whose number of classes is 0 until they are counted.

    Args:
        dataset: that is open.
        target: node type to classify; None for the one that the folder's task names.

    Raises:
        ArgumentError: no such node type, or one without labels.
    """
    if target is not None:
        target_of(dataset, target)
    labelled = [kind for kind in dataset.node_types if dataset.has("labels", kind)]
    if target is not None and target not in labelled:
        there = f"those of {', '.join(labelled)} have" if labelled else "no nodes have"
        raise ArgumentError(
            f"--target {target}: {dataset.path} has no labels of these nodes, {there} some; give "
            "another target, or convert it again with labels"
        )
    task = dataset.task
    if target is None or (task is not None and task.node_type == target):
        if task is None:
            raise ArgumentError(_lacks(dataset.path, "labels"))
        return task
    labels = dataset.manifest.nodes[target].tables["labels"]
    multi_label = len(labels.shape) > 1
    if not multi_label and labels.encoding.dtype.startswith("float"):
        return Task(node_type=target, num_classes=1, regression=True, metric="rmse")
    metric = "rocauc" if multi_label else "accuracy"
    return Task(node_type=target, num_classes=0, multi_label=multi_label, metric=metric)


def _lacks(path: Path, what: str) -> str:
    return f"{path}: has no {what} to train with; convert it again with --{what} FILE"


def _count_classes(labels: Tensor) -> int:
    return labels.shape[1] if labels.dim() == 2 else int(labels.max()) + 1


def check_one_type(name: str, target: str | None) -> None:
    """Raises ArgumentError for a target in a named dataset, whose nodes are of one type."""
    if target not in (None, NODE_TYPE):
        raise ArgumentError(f"--target {target}: {name} has nodes of one type; leave it out")


def digest_of(dataset: Dataset) -> str:
    """Tells a dataset folder from others, wherever it lies: its manifest has checksums."""
    text = without_score(dataset.manifest).to_json().encode()
    nodes = sum(map(dataset.num_nodes, dataset.node_types))
    edges = sum(map(dataset.num_edges, dataset.edge_types))
    return f"{dataset.name}: {nodes} nodes, {edges} edges, crc32 {zlib.crc32(text):08x}"


def _enter_mapped(name: str, tensor: Tensor) -> Tensor:
    """Into the process's budget, for as long as it lives."""
    process_budget().hold(name, tensor.nbytes, tensor, mapped=True)
    return tensor


def _check_labels(name: str, data: Data) -> None:
    if len(data.y) != data.num_nodes:
        raise FileFormatError(
            f"{name}: {len(data.y)} labels != {data.num_nodes} nodes; fetch the raw files again"
        )


def _split_ids(name: str, mask: Tensor, split: int) -> Tensor:
    splits = 1 if mask.dim() == 1 else mask.shape[1]
    if split >= splits:
        raise ArgumentError(f"--split {split}: {name} has {splits}, numbered from 0")
    chosen = mask if mask.dim() == 1 else mask[:, split]
    return torch.nonzero(chosen).view(-1)

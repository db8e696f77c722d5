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
from gnnsys.dataset.format import EDGE_TYPE, NODE_TYPE, EdgeType
from gnnsys.dataset.importance import without_score
from gnnsys.dataset.named import NAMED, load_raw
from gnnsys.dataset.tables import check_nodes
from gnnsys.dataset.times import with_times
from gnnsys.errors import ArgumentError, FileFormatError
from gnnsys.features.options import FeatureOptions, TopologyOptions
from gnnsys.features.setup import setup_device_cache, setup_features
from gnnsys.features.statistics import add_counts, read_counts
from gnnsys.features.topology import NEIGHBOURS, OFFSETS, open_topology
from gnnsys.generate import generate_community
from gnnsys.loaders import CSC
from gnnsys.system.device import SIMT
from gnnsys.system.scratch import ScratchFolder
from gnnsys.training.link_task import is_link_task, link_task
from gnnsys.training.seed_tasks import NODE, hold_mapped, open_task
from gnnsys.training.task import NodeTask, Task
from gnnsys.unified_tensor import UnifiedTensor, unified

__all__ = ["NodeDataset", "check_one_type", "digest_of", "load_dataset", "load_run_dataset"]

DEMO_NODES = 20_000

_log = logging.getLogger(__name__)
_Setup = Callable[[Dataset, Task], dict[str, Any]]
"""Decides how the features of a folder are read: options of ``gnnsys.unified``."""
_OpenGraph = Callable[[Dataset, CSC], None]
"""Decides how the neighbours of a folder are read."""


@dataclass(kw_only=True, slots=True)
class NodeDataset:
    """A graph of one node type or several, and what is to be learnt of it."""

    name: str

    digest: str
    """Tells this dataset from others: a checkpoint of one does not fit another."""

    source: Any
    """What loaders take: PyG ``Data``, or ``(FeatureStore, GraphStore)`` over a folder."""

    heterogeneous: bool = False
    """Whether batches have types; else there is one node type and one edge type."""

    task: Task
    """What is to be learnt of it."""

    num_nodes: Mapping[str, int]
    """Nodes of each type."""

    tables: Mapping[str, UnifiedTensor]
    """(nodes, features) of each node type that has features."""

    graphs: Mapping[EdgeType, CSC]
    """In-neighbours of each node of the edge type's target, by edge type."""

    time_attr: str | None = None
    """Name in ``source`` of the times that samplers regard, where the seeds have times."""

    folder: ScratchFolder | None = field(default=None, repr=False)
    """Holds the generated features until the dataset is let go."""

    beside: list[Callable[[], None]] = field(default_factory=list, init=False, repr=False)
    """What else is called to let it go, the last first: embeddings in files are closed."""

    def __post_init__(self) -> None:
        self.task.check(self.name, f" of type {self.target!r}" if self.heterogeneous else "")

    @property
    def target(self) -> str:
        """Node type of the seeds."""
        return self.task.target

    @property
    def node_task(self) -> NodeTask:
        """The task, where it is one of nodes.

        Raises:
            ArgumentError: it is another.
        """
        if not isinstance(self.task, NodeTask):
            raise ArgumentError(f"{self.name}: is to be trained on links, not on nodes")
        return self.task

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
        while self.beside:
            self.beside.pop()()
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
            **self.task.facts(),
        }
        if not self.heterogeneous:
            return sizes
        return {
            **sizes,
            "target": self.task.named,
            "node_types": dict(self.num_nodes),
            "edge_types": {",".join(kind): each.num_edges for kind, each in self.graphs.items()},
        }

    def edge_index(self) -> Tensor:
        """(2, edges) int64, in memory, sorted by target."""
        what = f"{self.name}: sources of edges"
        check_nodes(self.graph.indices.numpy(), self.num_nodes[NODE_TYPE], what)
        return torch.stack([self.graph.indices.long(), self.graph.targets()])

    def to_data(self) -> Data:
        """The whole graph in memory: x, edge_index, y, and train_mask (nodes,) bool."""
        x = self.features.materialize().to("cpu")
        data = Data(x=x, edge_index=self.edge_index(), y=self.node_task.labels)
        data.train_mask = torch.zeros(len(x), dtype=torch.bool)
        data.train_mask[self.node_task.train] = True
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
    task: str = NODE,
    timed: bool = False,
    hidden: int = 64,
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
        target: node type to classify; None for the one that the folder's task names. Of links,
            their edge type; see ``link_task``.
        task: "node", "link", or the name of a folder's task.
        timed: whether seeds are taken at their times.
        hidden: width of the embeddings of links' ends.

    Raises:
        ArgumentError: an unknown name, split, task or target, nodes to train on that have no label,
            or ``options`` that the dataset's features have no use for.
        MissingFileError: raw files that are not under ``root``.
        FileFormatError: raw files that cannot be read, or labels that do not fit the nodes.
    """
    options, topology = options or FeatureOptions(), topology or TopologyOptions()
    if name not in NAMED:

        def setup(dataset: Dataset, made: Task) -> dict[str, Any]:
            seeds = made.node_ids(made.train) if isinstance(made, NodeTask) else None
            return setup_features(
                dataset, options, ranks, target=made.target, task=task, seeds=seeds,
                fanouts=fanouts, batch_size=batch_size, seed=seed, threads=threads,
            )  # fmt: skip

        def open_graph(dataset: Dataset, graph: CSC) -> None:
            open_topology(dataset, graph, topology, storage=options.storage, fanouts=fanouts)

        if split:
            raise ArgumentError(f"--split {split}: {name} has 1, numbered from 0")
        if name == "demo":
            check_one_type(name, target, task)
            return _load_demo(seed, threads, device, setup, open_graph)
        if os.sep in name or os.path.isdir(name):
            return _open_folder(
                Path(name), threads, device, setup, open_graph, target, task, timed, hidden
            )
        raise ArgumentError(
            f"dataset {name!r} is unknown: expected one of {', '.join([*NAMED, 'demo'])}, or "
            "the path of a dataset folder"
        )
    check_one_type(name, target, task)
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
        task=config.task,
        hidden=config.hidden or 0,
        timed=run.timed,
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
        task=NodeTask(
            labels=labels,
            num_classes=int(labels.max()) + 1,
            train=train,
            val=val,
            num_test=len(test),
            open_test=lambda: test,
            metric=metric,
        ),
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
    task: str = NODE,
    timed: bool = False,
    hidden: int = 64,
) -> NodeDataset:
    dataset = open_dataset(path)
    made: Task
    if is_link_task(dataset, task):
        made = link_task(dataset, task, target, hidden, timed)
    else:
        made = open_task(dataset, target, task, timed)
    typed = dataset.heterogeneous
    if not typed and not dataset.has("features"):
        raise ArgumentError(
            f"{path}: has no features to train with; convert it again with --features FILE"
        )
    for table, count in dataset.manifest.source.get("nan", {}).items():
        _log.warning("%s: %s holds %d NaN", path, table, count)
    features, graphs = dataset.stores(
        edge_features=False, threads=threads, device=device, **setup(dataset, made)
    )
    time_attr = None
    if timed:
        (features, graphs), time_attr = with_times(dataset, (features, graphs))
    elif not typed:
        open_graph(dataset, graphs.graph())
    found = NodeDataset(
        name=dataset.name,
        digest=digest_of(dataset),
        source=(features, graphs),
        heterogeneous=typed,
        task=made,
        time_attr=time_attr,
        num_nodes={each: dataset.num_nodes(each) for each in dataset.node_types},
        tables={
            each: features.table(each if typed else None, "x")
            for each in dataset.node_types
            if dataset.has("features", each)
        },
        graphs=graphs.graphs() if typed else {EDGE_TYPE: graphs.graph()},
    )
    for graph in found.graphs.values():
        hold_mapped(OFFSETS, graph.indptr)
        if graph.file is not None and (typed or timed):  # else it was sorted, in memory
            hold_mapped(NEIGHBOURS, graph.indices)
    return found


def check_one_type(name: str, target: str | None, task: str = NODE) -> None:
    """Raises ArgumentError for a target or a task in a named dataset, whose nodes are of one type
    and are classified."""
    if task != NODE:
        raise ArgumentError(
            f"--task {task}: {name} has no tasks; leave it out, or name a dataset folder that has"
        )
    if target not in (None, NODE_TYPE):
        raise ArgumentError(f"--target {target}: {name} has nodes of one type; leave it out")


def digest_of(dataset: Dataset) -> str:
    """Tells a dataset folder from others, wherever it lies: its manifest has checksums."""
    text = without_score(dataset.manifest).to_json().encode()
    nodes = sum(map(dataset.num_nodes, dataset.node_types))
    edges = sum(map(dataset.num_edges, dataset.edge_types))
    return f"{dataset.name}: {nodes} nodes, {edges} edges, crc32 {zlib.crc32(text):08x}"


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

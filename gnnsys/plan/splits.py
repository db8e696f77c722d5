"""``gnnsys plan --parallel``: what each split of layers and vertices among ranks would cost."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gnnsys.config.plan import PlanConfig
from gnnsys.errors import ArgumentError, UnsupportedError
from gnnsys.pipeline.costs import Split, estimate_costs
from gnnsys.pipeline.layer_info import LayerInfo, describe_layers
from gnnsys.pipeline.layers import as_layers
from gnnsys.pipeline.models import deep_layers
from gnnsys.pipeline.partition import Partition, partition_graph
from gnnsys.pipeline.schedule import Event, Kind, default_chunks, slot_order
from gnnsys.pipeline.stages import split_layers
from gnnsys.pipeline.timeline import idle_share, simulate
from gnnsys.pipeline.way_graph import halo_sizes
from gnnsys.plan.hardware import Cluster, read_cluster
from gnnsys.plan.split_times import SplitTimes
from gnnsys.plan.splits_text import notes_on_splits
from gnnsys.system.progress import Progress
from gnnsys.training.datasets import NodeDataset, load_dataset

__all__ = ["make_parallel_plan"]


def make_parallel_plan(
    config: PlanConfig, progress: Progress = lambda what, done, total: None
) -> tuple[dict[str, Any], list[list[Event]]]:
    """What ``gnnsys plan --parallel --json`` prints, and the schedule of each of its splits.

    Raises:
        MissingFileError, FileFormatError: a dataset or description that cannot be read.
        ArgumentError: ranks, stages, ways and chunks that do not fit each other or the model.
        UnsupportedError: the graph is heterogeneous.
    """
    splits = splits_of(config)
    cluster = None if config.hardware == "this" else read_cluster(config.hardware)
    with closing(load_dataset(config.dataset, config.root, target=config.target)) as dataset:
        if dataset.heterogeneous:
            raise UnsupportedError(
                f"--parallel {config.parallel}: is for homogeneous graphs, but {config.dataset} is "
                "heterogeneous; leave it out"
            )
        graph = _Graph(dataset.edge_index(), dataset.features.shape[0])
        infos = _describe(config, dataset)
    rows, schedules = [], []
    partitions: dict[int, Partition] = {}
    for number, split in enumerate(splits):
        progress("plan: splits", number, len(splits))
        if split.chunks not in partitions:
            partitions[split.chunks] = partition_graph(
                graph.edge_index, graph.nodes, split.chunks, seed=config.seed
            )
        row, events = _plan(infos, graph, split, partitions[split.chunks], cluster)
        rows.append(row)
        schedules.append(events)
    progress("plan: splits", len(splits), len(splits))
    base = next(row for row in rows if row["mode"] == "graph")["bytes"]["total"]
    for row in rows:
        sent = row["bytes"]["total"]
        row["reduction"] = base / sent if sent else None
    plan = {
        "dataset": config.dataset,
        "nodes": graph.nodes,
        "edges": graph.edges,
        "model": config.model,
        "layers": config.layers,
        "hidden": config.hidden,
        "ranks": splits[0].stages * splits[0].ways,
        "hardware": None if cluster is None else dataclasses.asdict(cluster),
        "splits": rows,
    }
    plan["notes"] = notes_on_splits(plan)
    return plan, schedules


def splits_of(config: PlanConfig) -> list[Split]:
    """The splits that are asked for, and graph parallelism to compare them with.

    Raises:
        ArgumentError: numbers that do not fit each other.
    """
    stages, ways = config.stages, config.ways
    ranks = config.ranks or (stages * ways if stages and ways else 8)
    if stages and ways and ranks != stages * ways:
        raise ArgumentError(
            f"--stages {stages} * --ways {ways} != --ranks {ranks}: leave one of them out"
        )
    if ranks < 2:
        raise ArgumentError(f"--ranks {ranks}: expected at least 2; one rank sends nothing")
    if (stages and ranks % stages) or (ways and ranks % ways):
        option = f"--stages {stages}" if stages else f"--ways {ways}"
        raise ArgumentError(f"--ranks {ranks} % {option} != 0: every stage has as many ways")
    found = []
    for each in range(ranks, 0, -1):
        if ranks % each:
            continue
        split = Split(each, ranks // each, config.chunks or default_chunks(each, ranks // each))
        asked = config.parallel in ("all", split.mode)
        asked &= stages in (None, split.stages) and ways in (None, split.ways)
        if split.mode == "graph" and not asked:  # as it is by default: exact
            split = Split(1, ranks, ranks)
        elif not asked:
            continue
        if split.chunks % split.ways:
            raise ArgumentError(
                f"--chunks {split.chunks} % ways({split.ways}) != 0: every way takes as many chunks"
            )
        found.append(split)
    if config.parallel not in ("all", *(split.mode for split in found)):
        raise ArgumentError(
            f"--parallel {config.parallel}: {ranks} ranks cannot be split so with these --stages "
            "and --ways; hybrid has several of both"
        )
    return found


@dataclass(frozen=True, slots=True)
class _Graph:
    edge_index: Tensor
    nodes: int

    @property
    def edges(self) -> int:
        return self.edge_index.shape[1]


def _describe(config: PlanConfig, dataset: NodeDataset) -> list[LayerInfo]:
    layers = deep_layers(
        config.model,
        in_channels=dataset.features.shape[1],
        hidden=config.hidden,
        out_channels=dataset.task.outputs,
        layers=config.layers,
    )
    return describe_layers(as_layers(layers), dataset.features.shape[1])


def _plan(
    infos: list[LayerInfo],
    graph: _Graph,
    split: Split,
    partition: Partition,
    cluster: Cluster | None,
) -> tuple[dict[str, Any], list[Event]]:
    """A split as JSON, and its simulated epoch: in seconds, or in forwards of a chunk."""
    halo = halo_sizes(graph.edge_index, graph.nodes, partition, split.ways)
    costs = estimate_costs(
        infos,
        split,
        num_nodes=graph.nodes,
        num_edges=graph.edges,
        chunk_sizes=partition.chunk_sizes,
        halo=halo,
    )
    row = costs.as_dict()
    order = slot_order(split.slots, 0, 0, shuffle=False)
    if cluster is None:
        units = {Kind.FORWARD: 1.0, Kind.BACKWARD: 2.0}
        row["time"] = None
        return row, simulate(split.stages, order, lambda _, action: units.get(action.kind, 0.0))
    held = split_layers(infos, graph.nodes, graph.edges, split.stages)
    times = SplitTimes(cluster, infos, held, split, partition, max(halo), graph.edges)
    events = simulate(split.stages, order, times.seconds, times.transfer)
    stages = range(split.stages)
    row["time"] = {
        "seconds": max(event.end for event in events),
        "computing": max(sum(times.computing(stage)) for stage in stages) * split.slots,
        "halo": max(2 * times.halo(stage) for stage in stages) * split.slots,
        "weights": max(times.weights(stage) for stage in stages),
        "idle": idle_share(events),
    }
    return row, events

"""How often each node's row will be needed, by the graph's edges or a short run of the sampler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.cache.importance import out_degree, rank_normalised, reverse_pagerank_of_types
from gnnsys.choices import Importance, ImportanceChoice
from gnnsys.dataset.folder import Dataset
from gnnsys.dataset.format import EDGE_TYPE, NODE_TYPE, EdgeType
from gnnsys.dataset.importance import SCORE_TABLE
from gnnsys.errors import ArgumentError
from gnnsys.features.options import FeatureOptions
from gnnsys.features.replay import sampled_ids_of_types, source_to_sample
from gnnsys.loaders import CSC
from gnnsys.ranks.machine import make_once
from gnnsys.system.progress import Progress

__all__ = [
    "PRESAMPLE_BATCHES",
    "importance",
    "importance_for_cache",
    "importance_of_types",
    "needs_importance",
    "ranked_importance",
    "ranked_importance_of_types",
    "ranked_types",
]

PRESAMPLE_BATCHES = 200
"""Batches that presampling draws unless told otherwise."""


def importance(
    kind: Importance,
    graph: CSC,
    *,
    seeds: Tensor | None = None,
    fanouts: Sequence[int] = (),
    batch_size: int = 1024,
    batches: int = PRESAMPLE_BATCHES,
    seed: int = 0,
    threads: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> NDArray[Any]:
    """How important each node is; ``ranked_importance`` makes of it what a cache takes.

    Args:
        kind: "degree": in how many lists of neighbours a node stands; "pagerank": reverse PageRank;
            "presample": in how many of the first batches of training it occurs.
        graph: in-neighbours of each node.
        seeds: (n,) training nodes; this and the rest are for "presample".
        fanouts: neighbours of a node for each hop; as training is to use, like the next ones.
        batch_size: seeds of a batch.
        batches: to sample.
        seed: of the sampler.
        threads: that sample; 0 for all cores.
        progress: is told what is done.

    Returns:
        (nodes,) counts or float64.

    Raises:
        ArgumentError: "presample" without seeds or fanouts.
        RowIndexError: an edge from a node that is not there.

    >>> import torch
    >>> importance("degree", CSC(torch.tensor([0, 2, 3]), torch.tensor([0, 1, 1]))).tolist()
    [1, 2]
    """
    return _importance(
        kind,
        graph,
        {EDGE_TYPE: graph},
        {NODE_TYPE: graph.num_nodes},
        NODE_TYPE,
        seeds=seeds,
        fanouts=fanouts,
        batch_size=batch_size,
        batches=batches,
        seed=seed,
        threads=threads,
        progress=progress,
    )[NODE_TYPE]


def importance_of_types(
    kind: Importance,
    dataset: Dataset,
    *,
    target: str = NODE_TYPE,
    seeds: Tensor | None = None,
    **sampling: Any,
) -> dict[str, NDArray[Any]]:
    """``importance`` of the nodes of a dataset folder, of all its types and over all edge types.

    Args:
        kind: as there; "degree" adds up the lists of all edge types, and "pagerank" walks over all
            of them, as on the graph in which all nodes are of one type.
        dataset: that is open.
        target: node type of the seeds.
        seeds: (n,) training nodes of it, for "presample".
        sampling: what else ``importance`` takes.

    Returns:
        (nodes,) counts or float64 of each of ``ranked_types``.

    Raises:
        ArgumentError, RowIndexError: as there.
    """
    graphs = {edge_type: dataset.graph(edge_type) for edge_type in dataset.edge_types}
    num_nodes = {node_type: dataset.num_nodes(node_type) for node_type in dataset.node_types}
    source = source_to_sample(dataset) if dataset.heterogeneous else graphs[EDGE_TYPE]
    found = _importance(kind, source, graphs, num_nodes, target, seeds=seeds, **sampling)
    return {node_type: found[node_type] for node_type in ranked_types(dataset)}


def ranked_types(dataset: Dataset) -> list[str]:
    """The node types whose rows have an importance: those with features; of a homogeneous graph
    ``NODE_TYPE``."""
    if not dataset.heterogeneous:
        return [NODE_TYPE]
    return [node_type for node_type in dataset.node_types if dataset.has("features", node_type)]


def _importance(
    kind: Importance,
    source: Any,
    graphs: Mapping[EdgeType, CSC],
    num_nodes: Mapping[str, int],
    target: str,
    *,
    seeds: Tensor | None,
    fanouts: Sequence[int] = (),
    batch_size: int = 1024,
    batches: int = PRESAMPLE_BATCHES,
    progress: Progress = lambda what, done, total: None,
    **sampling: Any,
) -> dict[str, NDArray[Any]]:
    """That of all node types; ``source`` is the graph as samplers take it."""

    def report(done: int, total: int) -> None:
        progress(f"{kind}: edges", done, total)

    if kind == "degree":
        return _out_degrees(graphs, num_nodes, report)
    if kind == "pagerank":
        edges = {
            edge_type: (graph.indptr.numpy(), graph.indices.numpy())
            for edge_type, graph in graphs.items()
        }
        return reverse_pagerank_of_types(edges, num_nodes, progress=report)
    if seeds is None or len(seeds) == 0 or not fanouts:
        raise ArgumentError(
            "presample: samples as training does, which needs seeds and fanouts; give both, or use "
            "degree"
        )
    counts = {node_type: np.zeros(count, np.uint32) for node_type, count in num_nodes.items()}
    run = sampled_ids_of_types(
        source, target, seeds, fanouts, batch_size=batch_size, batches=batches, **sampling
    )
    for number, batch in enumerate(run, 1):
        for node_type, ids in batch.items():
            counts[node_type][ids] += 1  # no id stands twice in a batch
        progress("presample: batches", number, batches)
    return counts


def _out_degrees(
    graphs: Mapping[EdgeType, CSC],
    num_nodes: Mapping[str, int],
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, NDArray[Any]]:
    """(nodes,) of each type: in how many lists of neighbours of all edge types a node stands."""
    edges, done = sum(graph.num_edges for graph in graphs.values()), 0

    def report_part(part: int, _: int) -> None:
        report(done + part, edges)

    dtype = np.uint32 if edges < 1 << 32 else np.int64
    found: dict[str, NDArray[Any]] = {
        node_type: np.zeros(count, dtype) for node_type, count in num_nodes.items()
    }
    for (source, _, _), graph in graphs.items():
        found[source] += out_degree(graph.indices.numpy(), num_nodes[source], report_part)
        done += graph.num_edges
    return found


def needs_importance(dataset: Dataset, options: FeatureOptions) -> bool:
    """Whether a cache with these options has its importance computed, not read of the folder."""
    if options.cache == "none" or options.score == "none":
        return False
    return not _is_stored(dataset, options.score)


def importance_for_cache(
    dataset: Dataset,
    choice: ImportanceChoice,
    ranks: int = 1,
    **sampling: Any,
) -> tuple[str, dict[str, NDArray[np.uint16]] | None]:
    """The kind of importance that the caches of the dataset's features go by, and (nodes,) of it
    for each of ``ranked_types``.

    Args:
        dataset: with features.
        choice: auto is what is stored with the dataset, else degree; another kind is computed
            unless that is what is stored; none gives None.
        ranks: that call this together; one of each machine computes. For homogeneous graphs.
        sampling: how training samples, and what else ``importance_of_types`` takes.

    Raises:
        ArgumentError, RowIndexError: as ``importance``.
    """
    if choice == "none":
        return "none", None
    stored = _stored(dataset, choice)
    if stored is not None and ranks == 1:
        return stored
    kind: Importance = "degree" if choice == "auto" else choice

    def compute() -> dict[str, NDArray[np.uint16]]:
        values = importance_of_types(kind, dataset, **sampling)
        return ranked_importance_of_types(kind, values, dataset)

    if ranks == 1:
        return kind, compute()
    have = None if stored is None else stored[1][NODE_TYPE]
    rows = make_once("the importance of rows", lambda: compute()[NODE_TYPE], have)
    return kind if stored is None else stored[0], {NODE_TYPE: rows}


def _stored(
    dataset: Dataset, choice: ImportanceChoice
) -> tuple[str, dict[str, NDArray[np.uint16]]] | None:
    if not _is_stored(dataset, choice):
        return None
    found, kind = {}, ""
    for node_type in ranked_types(dataset):
        score = dataset.static_score(node_type)
        assert score is not None
        kind, found[node_type] = score
    return kind, found


def _is_stored(dataset: Dataset, choice: ImportanceChoice) -> bool:
    kind, types = dataset.score_kind(), ranked_types(dataset)
    is_there = kind is not None and all(dataset.has(SCORE_TABLE, each) for each in types)
    return is_there and choice in ("auto", kind)


def ranked_importance(kind: Importance, values: NDArray[Any], graph: CSC) -> NDArray[np.uint16]:
    """(nodes,) importance that a cache takes, of what ``importance`` returned.

    A presampling run is short: most nodes occur in it once or never. Those that occur equally often
    are ordered by their out-degree, without which large caches hold rows taken at random (on an
    R-MAT graph of 2^22 nodes, with a quarter of the rows cached, 86 % instead of 91 % of the rows
    are hits).

    >>> import torch
    >>> graph = CSC(torch.tensor([0, 2, 3]), torch.tensor([0, 1, 1]))
    >>> ranked_importance("presample", np.array([4, 4]), graph).tolist()
    [0, 65535]
    """
    graphs, num_nodes = {EDGE_TYPE: graph}, {NODE_TYPE: graph.num_nodes}
    return _ranked(kind, {NODE_TYPE: values}, graphs, num_nodes)[NODE_TYPE]


def ranked_importance_of_types(
    kind: Importance, values: Mapping[str, NDArray[Any]], dataset: Dataset
) -> dict[str, NDArray[np.uint16]]:
    """``ranked_importance`` over the nodes of all types together, whose rows share a cache.

    Args:
        kind: of the importance.
        values: what ``importance_of_types`` returned, of one type at least.
        dataset: that is open.
    """
    graphs = {edge_type: dataset.graph(edge_type) for edge_type in dataset.edge_types}
    num_nodes = {node_type: dataset.num_nodes(node_type) for node_type in dataset.node_types}
    return _ranked(kind, values, graphs, num_nodes)


def _ranked(
    kind: Importance,
    values: Mapping[str, NDArray[Any]],
    graphs: Mapping[EdgeType, CSC],
    num_nodes: Mapping[str, int],
) -> dict[str, NDArray[np.uint16]]:
    types, ties = list(values), None
    if kind == "presample":
        degrees = _out_degrees(graphs, num_nodes)
        ties = _joined([degrees[node_type] for node_type in types])
    ends = np.cumsum([num_nodes[node_type] for node_type in types])
    ranked = rank_normalised(_joined([values[node_type] for node_type in types]), ties)
    return dict(zip(types, np.split(ranked, ends[:-1]), strict=True))


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """Of one part itself."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)

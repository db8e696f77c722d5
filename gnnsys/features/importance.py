"""How often each node's row will be needed, by the graph's edges or a short run of the sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.cache.importance import out_degree, rank_normalised, reverse_pagerank
from gnnsys.choices import Importance, ImportanceChoice
from gnnsys.dataset.folder import Dataset
from gnnsys.errors import ArgumentError
from gnnsys.features.options import FeatureOptions
from gnnsys.features.replay import sampled_ids
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
    if kind != "presample":
        indices = graph.indices.numpy()

        def report(done: int, total: int) -> None:
            progress(f"{kind}: edges", done, total)

        if kind == "degree":
            return out_degree(indices, graph.num_nodes, report)
        return reverse_pagerank(graph.indptr.numpy(), indices, progress=report)
    if seeds is None or len(seeds) == 0 or not fanouts:
        raise ArgumentError(
            "presample: samples as training does, which needs seeds and fanouts; give both, or use "
            "degree"
        )
    counts = np.zeros(graph.num_nodes, np.uint32)
    run = sampled_ids(
        graph, seeds, fanouts, batch_size=batch_size, batches=batches, seed=seed, threads=threads
    )
    for number, ids in enumerate(run, 1):
        counts[ids] += 1  # no id stands twice in a batch
        progress("presample: batches", number, batches)
    return counts


def needs_importance(dataset: Dataset, options: FeatureOptions) -> bool:
    """Whether a cache with these options has its importance computed, not read of the folder."""
    if options.cache == "none" or options.score == "none":
        return False
    return not _is_stored(dataset, options.score)


def importance_for_cache(
    dataset: Dataset, choice: ImportanceChoice, ranks: int = 1, **sampling: Any
) -> tuple[str, NDArray[np.uint16] | None]:
    """The kind of importance that a cache of the dataset's features goes by, and (nodes,) of it.

    Args:
        dataset: homogeneous.
        choice: auto is what is stored with the dataset, else degree; another kind is computed
            unless that is what is stored; none gives None.
        ranks: that call this together; one of each machine computes.
        sampling: how training samples, and what else ``importance`` takes.
    """
    if choice == "none":
        return "none", None
    stored = _stored(dataset, choice)
    if stored is not None and ranks == 1:
        return stored
    kind: Importance = "degree" if choice == "auto" else choice

    def compute() -> NDArray[np.uint16]:
        graph = dataset.graph()
        return ranked_importance(kind, importance(kind, graph, **sampling), graph)

    if ranks == 1:
        return kind, compute()
    stored_kind, have = stored or (kind, None)
    return stored_kind, make_once("the importance of rows", compute, have)


def importance_of_types(dataset: Dataset) -> dict[str, NDArray[np.uint16]]:
    """(nodes,) importance of each node type with features: in how many lists of neighbours of all
    edge types a node stands, ranked over all of those types, whose rows share a cache.

    Args:
        dataset: heterogeneous.

    Raises:
        RowIndexError: an edge from a node that is not there.
    """
    counts = {
        kind: np.zeros(dataset.num_nodes(kind), np.int64)
        for kind in dataset.node_types
        if dataset.has("features", kind)
    }
    for edge_type in dataset.edge_types:
        if (source := edge_type[0]) in counts:
            indices = dataset.edge_table("indices", edge_type)
            counts[source] += out_degree(indices, len(counts[source]))
    ranked = rank_normalised(np.concatenate([np.empty(0, np.int64), *counts.values()]))
    ends = np.cumsum([len(each) for each in counts.values()])
    return dict(zip(counts, np.split(ranked, ends[:-1]), strict=True))


def _stored(dataset: Dataset, choice: ImportanceChoice) -> tuple[str, NDArray[np.uint16]] | None:
    return dataset.static_score() if _is_stored(dataset, choice) else None


def _is_stored(dataset: Dataset, choice: ImportanceChoice) -> bool:
    kind = dataset.score_kind()
    return kind is not None and choice in ("auto", kind)


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
    if kind != "presample":
        return rank_normalised(values)
    return rank_normalised(values, out_degree(graph.indices.numpy(), graph.num_nodes))

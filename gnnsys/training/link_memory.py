"""What a run on links takes in memory, by name, beforehand.

Owns ``plan_links``: as ``memory.plan_memory`` it reserves all but the rows of features, of graphs
with types and without. Nothing is trained; a batch is sampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor
from torch_geometric.sampler import EdgeSamplerInput

from gnnsys.config.links import HARD_TARGETS, LinkTraining, evaluates_exactly, link_training
from gnnsys.config.resolve import Run
from gnnsys.config.train import TrainConfig
from gnnsys.dataset.folder import Dataset
from gnnsys.dataset.format import EdgeType
from gnnsys.dataset.times import with_times
from gnnsys.features.options import TopologyOptions
from gnnsys.features.replay import source_to_sample
from gnnsys.features.setup import reserve_ranking
from gnnsys.features.topology import NEIGHBOURS, OFFSETS, plan_topology
from gnnsys.loaders import LinkNegatives
from gnnsys.loaders.seed_batches import ShuffledSeeds
from gnnsys.system.budget import SEEDS, process_budget
from gnnsys.training.batch_memory import reserve_batches, reserve_libraries
from gnnsys.training.hetero_memory import (
    layer_bytes,
    reserve_embeddings,
    reserve_open_embeddings,
    reserve_sampler,
)
from gnnsys.training.link_task import LinkTask, link_task
from gnnsys.training.seed_times import reserve_times
from gnnsys.training.step_parts import make_sampler, spread_seeds

__all__ = ["EMBEDDED", "HARD_BLOCK_BYTES", "LINKS", "plan_links"]

_Type = TypeVar("_Type", str, EdgeType)

LINKS = "links"
_LINKS_MAPPED = "links, mapped"
_NEGATIVES = "negatives"
EMBEDDED = "embeddings of evaluation"
_RANKED = "what evaluation predicts"
_OF_A_LINK = 16
"""Bytes: two ids."""
_OF_A_KNOWN = 24
"""Of a link that no negative is: its ends and their number, by which it is found."""
_OF_A_HIDDEN = 64
"""Of a link that is left out of the top, while they are sorted by where its score is."""
HARD_BLOCK_BYTES = 64 << 20
"""Of sources whose top is found at a time, at most; of two blocks there is some at a time."""
_SORTING = 6 * 8
"""Of a known answer, while it is found by sorting."""
_RANKED_BYTES = 256 << 20
"""Of queries that are ranked at a time, with their scores, at most."""
_TOO_SMALL = (
    "give more memory, fewer --fanouts or --negatives, a smaller --batch-size or --hidden, or "
    "--embeddings FOLDER where there are embeddings of nodes"
)


def plan_links(run: Run, dataset: Dataset, *, trains: bool = True) -> bool:
    """Reserves what a run takes beside its features, in the budget of this process.

    A folder that cannot be trained on is left to ``load_dataset``, which says so.

    Args:
        run: what to do.
        dataset: that it is on.
        trains: whether it is trained on, or only evaluated.

    Returns:
        Whether embeddings of evaluation are exact, for which ``memory`` plans activations.

    Raises:
        ArgumentError: a target that there is not.
        UnsupportedError: options that links with times cannot have.
        TooLargeError: what is known before a batch was sampled does not fit.
    """
    config, budget = run.config, process_budget()
    task = link_task(dataset, config.task, config.target, config.hidden or 0, run.timed)
    options, kinds = link_training(config), dataset.edge_types
    reserve_libraries()
    offsets = sum(8 * (1 + dataset.num_nodes(kind[2])) for kind in kinds)
    budget.reserve(OFFSETS, offsets, mapped=True)
    if dataset.heterogeneous:
        edges = (dataset.manifest.edges[kind].tables["indices"].data_bytes for kind in kinds)
        budget.reserve(NEIGHBOURS, sum(edges), mapped=True)
    if task.timed:
        reserve_times(dataset)
    _reserve_seeds(config, options, dataset, task, trains)
    is_open = dataset.heterogeneous and reserve_embeddings(config, dataset, trains=trains)
    budget.check(_TOO_SMALL)
    exact = evaluates_exactly(config, task.timed)
    if not task.sizes["train"] or not task.sizes["val"]:
        return exact
    draw = _draw_timed if task.timed else _draw
    drawn, sampled = draw(config, options, dataset, task)
    size = reserve_sampler(dataset, drawn, sum(sampled.values()))
    scored = 4 * (config.hidden or 0) * config.batch_size * (2 + options.negatives)
    step = size.row_bytes + layer_bytes(config, size.nodes, drawn, sampled) + 3 * scored
    reserve_batches(config, run.features, size, step, trains=trains)
    _reserve_ranks(config, options, dataset, task, exact)
    if is_open:
        reserve_open_embeddings(config, dataset, run.features, drawn, size.stored_bytes)
    reserve_ranking(dataset, run.features)
    if not dataset.heterogeneous:
        mapped = TopologyOptions(topology="mmap")
        plan_topology(dataset, mapped if task.timed else run.topology, run.features, 1)
    return exact


def _reserve_seeds(
    config: TrainConfig, options: LinkTraining, dataset: Dataset, task: LinkTask, trains: bool
) -> None:
    """Links, and what their negatives are drawn from."""
    budget, train = process_budget(), task.sizes["train"]
    # As they are trained on, and as edges that they are read from.
    budget.reserve(LINKS, (2 * _OF_A_LINK + (8 if task.timed else 0)) * train)
    held = task.sizes["val"] + task.sizes["test"]
    budget.reserve(_LINKS_MAPPED, _OF_A_LINK * held, mapped=True)
    if not trains:
        return
    budget.reserve(SEEDS, ShuffledSeeds.most_bytes(train, config.seed_block))
    sources, targets = (dataset.num_nodes(task.edge_type[end]) for end in (0, 2))
    hard = 0
    if options.sampling == "hard":
        most = min(HARD_TARGETS, targets)
        block = min(HARD_BLOCK_BYTES, sources * (4 * (config.hidden or 0) + 12 * most))
        # The table before is there until the next one is found.
        hard = 2 * (4 * sources * most + block) + _OF_A_HIDDEN * train
    weights = 8 * 2 * targets if options.sampling == "degree" else 0
    known = _OF_A_KNOWN * train if options.negatives else 0
    budget.reserve(_NEGATIVES, known + weights + hard)


def _reserve_ranks(
    config: TrainConfig, options: LinkTraining, dataset: Dataset, task: LinkTask, exact: bool
) -> None:
    budget, width = process_budget(), 4 * (config.hidden or 0)
    if not exact:
        budget.reserve(EMBEDDED, width * sum(map(dataset.num_nodes, task.ends)))
    held = max(task.sizes["val"], task.sizes["test"])
    # Sources that are asked for have as many known answers as others.
    share = min(1.0, held / max(1, dataset.num_nodes(task.edge_type[0])))
    known = int(share * sum(task.sizes.values()))
    found = 8 * held + _SORTING * (known + held)
    budget.reserve(_RANKED, found + min(_RANKED_BYTES, held * (width + 32)))


def _draw(
    config: TrainConfig, options: LinkTraining, dataset: Dataset, task: LinkTask
) -> tuple[dict[str, int], dict[EdgeType, int]]:
    """Nodes and edges of a batch, by type: around links to validate on, and other targets."""
    source, _, target = task.edge_type
    links = task.links("val")
    own = {source: spread_seeds(links.source, config.batch_size).long()}
    others = torch.arange(dataset.num_nodes(target))
    wanted = min(len(others), config.batch_size * (1 + options.negatives))
    found = {source: own[source].unique()}
    found[target] = torch.cat(
        [found.get(target, others[:0]), spread_seeds(others, wanted)]
    ).unique()
    if dataset.heterogeneous:
        out = make_sampler(config, source_to_sample(dataset), device="cpu").sample(found, 0)
        return _lengths(out.node), _lengths(out.row)
    kind = dataset.edge_types[0]
    single = make_sampler(config, dataset.graph(), device="cpu").sample(found[target], 0)
    return {target: len(single.node)}, {kind: len(single.row)}


def _draw_timed(
    config: TrainConfig, options: LinkTraining, dataset: Dataset, task: LinkTask
) -> tuple[dict[str, int], dict[EdgeType, int]]:
    """The same around links to train on, at their times: each end and each negative has a tree of
    its own."""
    links, typed = task.links("train"), dataset.heterogeneous
    chosen = spread_seeds(torch.arange(len(links)), config.batch_size)
    assert links.time is not None
    inputs = EdgeSamplerInput(
        input_id=None,
        row=links.source[chosen].long(),
        col=links.target[chosen].long(),
        time=links.time[chosen],
        input_type=task.edge_type if typed else None,
    )
    negatives = LinkNegatives("triplet", options.negatives) if options.negatives else None
    source, name = with_times(dataset, source_to_sample(dataset))
    sampler = make_sampler(config, source, time_attr=name)
    out = sampler.sample_from_edges(inputs, negatives, group=0, epoch=0)
    if typed:
        return _lengths(out.node), _lengths(out.row)
    return {dataset.node_types[0]: len(out.node)}, {dataset.edge_types[0]: len(out.row)}


def _lengths(parts: Mapping[_Type, Tensor]) -> dict[_Type, int]:
    return {kind: len(ids) for kind, ids in parts.items()}

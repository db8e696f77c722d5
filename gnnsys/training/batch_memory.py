"""What batches, and what is said of their nodes, take in memory: of graphs with types and without.

Owns the names of batches, steps, plans and libraries in the process's budget; ``memory`` and
``hetero_memory`` know the sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

from gnnsys.cache.engine import PAGE_BYTES
from gnnsys.cache.making import LEAST_STAGING
from gnnsys.cache.packed.plans import OF_A_USE
from gnnsys.config.train import TrainConfig
from gnnsys.dataset.format import Task
from gnnsys.features.options import FeatureOptions
from gnnsys.system.budget import (
    AHEAD,
    BATCHES,
    PLANS_AHEAD,
    STAGING,
    STEPS,
    process_budget,
    resident_memory,
)

__all__ = ["SAMPLER", "BatchSize", "answer_bytes", "reserve_batches", "reserve_libraries"]

SAMPLER = "sampler maps"
_LATE = 24 << 20
"""Bytes of libraries that training brings in after the start, measured: optimizer, autograd."""
_AT_A_TIME = 3
"""Batches with their rows: one being trained on, one ready, one being made."""
_READ_AHEAD = 2
"""Batches none of whose rows is cached that may be read at once."""
_WINDOW = 64
"""Batches that plans look ahead, of all ranks that share a cache together."""
_LEAST_AHEAD = 16 << 20
"""Bytes of batches sampled ahead of a cache, where memory is short."""
_OF_A_CURVE = 76
"""Bytes of a node that the area under a curve takes while it is computed, measured."""
_ROUNDS = 5
"""Steps of all ranks that a row which was read for a shared cache keeps its place for, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchSize:
    """What a batch, as drawn, has."""

    nodes: int
    """Of all types."""
    sampled_bytes: int
    """Of its nodes and edges."""
    row_bytes: int
    """Of its rows of features, as models take them."""
    stored_bytes: int
    """Of the same rows, as files have them."""


def reserve_libraries() -> None:
    """What this process has by now, and will have once it trains."""
    budget, now = process_budget(), resident_memory()
    budget.reserve("libraries", now.anonymous + _LATE, there=now.anonymous)
    budget.reserve("libraries, mapped", now.file, there=now.file, mapped=True)


def reserve_batches(
    config: TrainConfig, options: FeatureOptions, size: BatchSize, step: int, *, trains: bool
) -> int:
    """Reserves what batches take that are under way, trained on and sampled ahead of a cache.

    Args:
        config: filled in.
        options: of the features.
        size: of a batch.
        step: bytes that a step makes of it.
        trains: whether it is trained on, or only evaluated.

    Returns:
        Bytes, but of reads under way.
    """
    budget = process_budget()
    under_way = _AT_A_TIME * (size.row_bytes + size.sampled_bytes)
    budget.reserve(BATCHES, under_way)
    budget.reserve(STEPS if trains else "what layers compute", step)
    if options.cache == "none":
        return under_way + step
    owners = (config.ranks or 1) if options.share_cache != "none" else 1
    left = budget.left()
    most = max(_LEAST_AHEAD, min(64 << 20, left // 8), left // 32)
    ahead = min(most, (3 + -(-_WINDOW // owners)) * size.sampled_bytes)
    budget.reserve(AHEAD, ahead)
    uses = OF_A_USE * (1 + ahead // size.sampled_bytes)
    rounds = 1 if owners == 1 else _ROUNDS  # that rows which are read stay for
    plans = size.nodes * uses + rounds * size.stored_bytes
    budget.reserve(PLANS_AHEAD, plans)
    most = _READ_AHEAD * (size.stored_bytes + size.nodes * PAGE_BYTES)
    budget.reserve(STAGING, max(LEAST_STAGING, most))  # plan_features knows what is left
    return under_way + step + ahead + plans


def answer_bytes(config: TrainConfig, task: Task) -> int:
    """Of a node that is evaluated: its scores and labels where the metric needs all at once.

    Args:
        config: with the metric.
        task: with the number of classes.

    >>> task = Task(node_type="node", num_classes=2, metric="accuracy")
    >>> answer_bytes(TrainConfig(dataset="demo"), task)
    0
    """
    metric = task.metric if config.metric == "auto" else config.metric
    if metric not in ("rocauc", "ap"):
        return 0
    return (4 + 4) * (task.num_classes if task.multi_label else 1) + _OF_A_CURVE

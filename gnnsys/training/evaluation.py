"""Which nodes each layer computes when a run on mini-batches is evaluated exactly.

Two ways give the same logits, up to rounding: all nodes layer by layer, or in each layer those
nodes alone that the scored ones depend on. Owns the choice, by what each has to gather. Nothing is
timed: the same run on the same graph is evaluated in the same way.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gnnsys.config.train import TrainConfig
from gnnsys.loaders import CSC, NeighborSampler
from gnnsys.pages import numbers
from gnnsys.system.once import warn_once
from gnnsys.training.layer_reads import LayerReads, asked_reads

__all__ = [
    "Evaluation",
    "Scope",
    "plan_evaluation",
    "sampled_test_waits",
    "scope_of",
    "warn_of_sums",
]

_log = logging.getLogger(__name__)
_WORTH = 0.9
"""Neighbourhoods are taken below this share of all nodes' bytes: those are read in passes."""
_LONG = 2.0
"""Epochs' training whose bytes the test nodes may take after an epoch; else they wait."""
_MOST_EDGES = 0.9
"""Share of the edges from which on sums over sampled ones are much as over all."""
_EDGES = 1 << 22  # whose ends are marked at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """The nodes that an exact evaluation computes."""

    layers: tuple[Tensor, ...] | None
    """(n,) int64 ascending ids for each layer, the first layer's first; None: all nodes."""

    nbytes: int
    """Of the inputs that the layers gather: a row for each edge and for each target, at most."""

    @property
    def way(self) -> str:
        """The word of ``--eval``."""
        return "layerwise" if self.layers is None else "neighborhoods"

    def sizes(self, nodes: int, layers: int) -> list[int]:
        """Rows of each layer's outputs."""
        return [nodes] * layers if self.layers is None else [len(ids) for ids in self.layers]

    def places(self, nodes: Tensor) -> Tensor:
        """Where nodes lie in the last layer's outputs."""
        return nodes if self.layers is None else torch.searchsorted(self.layers[-1], nodes)

    def inputs(self, nodes: Tensor) -> Tensor:
        """Where what the last layer reads of nodes lies: a layer's outputs, or the features."""
        if self.layers is None or len(self.layers) == 1:
            return nodes
        return torch.searchsorted(self.layers[-2], nodes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """How a run is evaluated after an epoch."""

    scope: Scope
    test_at_end: bool
    """Whether the test nodes are scored once, at the end of the run, and are not in ``scope``."""
    nodes: int
    """That are scored after an epoch."""
    all_bytes: int
    """What all nodes would gather."""
    epoch_bytes: int
    """What training gathers in an epoch, as estimated."""
    reads: LayerReads
    """How layers read their inputs, where all nodes are computed."""

    def describe(self) -> str:
        """The choice and its cost in one sentence."""
        rows = numbers.traffic(self.scope.nbytes)
        told = f"{self.scope.way}, {self.nodes:,} nodes scored by {rows} of rows"
        if self.scope.layers is not None:
            told += f" ({numbers.traffic(self.all_bytes)} layer by layer for all nodes)"
        if self.epoch_bytes:
            told += f", {self.scope.nbytes / self.epoch_bytes:.1f} times an epoch's training"
        told += "; the test nodes are scored once, at the end" if self.test_at_end else ""
        in_sequence = self.reads.describe() if self.scope.layers is None else ""
        return f"{told}; {in_sequence}" if in_sequence else told

    def tell(self) -> None:
        """Logs ``describe``."""
        _log.info("evaluation: %s", self.describe())

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "way": self.scope.way,
            "nodes": self.nodes,
            "bytes": self.scope.nbytes,
            "all_bytes": self.all_bytes,
            "epoch_bytes": self.epoch_bytes,
            "test_at_end": self.test_at_end,
            "reads": self.reads.facts() if self.scope.layers is None else [],
            "why": self.describe(),
        }


def plan_evaluation(
    config: TrainConfig, graph: CSC, val: Tensor, test: Tensor, columns: int, epoch_bytes: int = 0
) -> Evaluation:
    """How a run is evaluated; see ``--eval``.

    Args:
        config: filled in, with an ``eval`` that is exact.
        graph: in-neighbours of each node.
        val: (n,) ids; ``test`` likewise.
        columns: of the features.
        epoch_bytes: of the rows that training gathers in an epoch; 0 where that is not known.
    """
    widths = _widths(config, columns)
    everything = Scope(layers=None, nbytes=_all_bytes(graph, widths))
    if config.eval == "layerwise" or config.eval_reads == "sequential":
        scope, at_end = everything, False
    else:
        forced = config.eval == "neighborhoods"
        scope = scope_of(config, graph, (val, test), columns, forced)
        at_end = False
        if not forced and epoch_bytes and scope.nbytes > _LONG * epoch_bytes:
            without = scope_of(config, graph, (val,), columns)
            if without.nbytes < scope.nbytes / 2:
                scope, at_end = without, True
    return Evaluation(
        scope=scope,
        test_at_end=at_end,
        nodes=len(val) + (0 if at_end else len(test)),
        all_bytes=everything.nbytes,
        epoch_bytes=epoch_bytes,
        reads=asked_reads(config),
    )


def sampled_test_waits(train: int, val: int, test: int) -> bool:
    """Whether the test nodes are scored once, at the end, where neighbours are sampled: a node
    gathers about as much there as in training, and the rule is that of exact evaluation.

    Args:
        train: nodes; ``val`` and ``test`` likewise.
    """
    waits = val + test > _LONG * train and val < (val + test) / 2
    if waits:
        _log.info(
            "evaluation: sampled, %d nodes scored after an epoch of %d; the %d test nodes are "
            "scored once, at the end", val, train, test
        )  # fmt: skip
    return waits


def scope_of(
    config: TrainConfig,
    graph: CSC,
    nodes: Sequence[Tensor],
    columns: int,
    forced: bool = False,
) -> Scope:
    """The cheaper of both ways to compute the logits of some nodes.

    The nodes that each layer needs are found from the last one on, until they are no cheaper than
    all.

    Args:
        config: filled in.
        graph: in-neighbours of each node.
        nodes: (n,) ids, in any order, of each part.
        columns: of the features.
        forced: their neighbourhoods, even if they are dearer.
    """
    widths = _widths(config, columns)
    everything = _all_bytes(graph, widths)
    sampler = NeighborSampler(graph, [-1], threads=config.threads)
    ids = _distinct(graph, nodes)
    layers, nbytes = [ids], 0
    for hop, width in enumerate(reversed(widths)):
        if hop > 0:
            ids = _with_neighbours(sampler, ids)
            layers.append(ids)
        nbytes += 4 * width * (int(_degrees(graph, ids).sum()) + len(ids))
        if nbytes >= _WORTH * everything and not forced:
            return Scope(layers=None, nbytes=everything)
    return Scope(layers=tuple(reversed(layers)), nbytes=nbytes)


def warn_of_sums(config: TrainConfig, graph: CSC) -> None:
    """Says once where a model that sums is trained on few of the neighbours and judged on all."""
    if config.model != "gin" or config.full_batch or config.sums == "scaled":
        return
    fanouts = [fanout for fanout in config.fanouts or () if fanout >= 0]
    if not fanouts or graph.num_edges == 0:
        return
    kept = int(graph.indptr.diff().clamp(max=min(fanouts)).sum()) / graph.num_edges
    if kept < _MOST_EDGES:
        warn_once(
            _log, "a gin sums its neighbours: --fanouts %s draw as few as %d %% of a layer's edges "
            "and exact evaluation sums all of them, which its weights may not suit; --sums scaled "
            "trains on estimates of whole sums, --eval sampled and gnnsys predict --sampled judge "
            "it as it is trained", ",".join(map(str, config.fanouts or ())), round(100 * kept),
        )  # fmt: skip


def _widths(config: TrainConfig, columns: int) -> list[int]:
    """Of each layer's inputs."""
    return [columns] + [config.hidden or 0] * (config.layers - 1)


def _all_bytes(graph: CSC, widths: Sequence[int]) -> int:
    return 4 * sum(widths) * (graph.num_edges + graph.num_nodes)


def _degrees(graph: CSC, ids: Tensor) -> Tensor:
    return graph.indptr[ids + 1] - graph.indptr[ids]


def _distinct(graph: CSC, parts: Iterable[Tensor]) -> Tensor:
    """(n,) ascending ids of the nodes in some part."""
    found = torch.zeros(graph.num_nodes, dtype=torch.bool)
    for ids in parts:
        found[ids] = True
    return found.nonzero().view(-1)


def _with_neighbours(sampler: NeighborSampler, ids: Tensor) -> Tensor:
    """(n,) ascending ids of nodes and of their in-neighbours."""
    graph = sampler.graph
    ends = _degrees(graph, ids).cumsum(0)

    def parts() -> Iterator[Tensor]:
        first = 0
        while first < len(ids):
            before = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(torch.searchsorted(ends, before + _EDGES, right=True)))
            yield sampler.sample(ids[first:last], group=0).node
            first = last

    return _distinct(graph, parts())

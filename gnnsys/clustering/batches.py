"""Where an epoch's nodes come from: the whole graph at once, or sampled batches of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gnnsys.clustering.encoders import Encoder
from gnnsys.clustering.graph import ClusterGraph
from gnnsys.config.cluster import ClusterConfig
from gnnsys.loaders.neighbor_loader import NeighborLoader
from gnnsys.losses import PositivePairs, influence_adjacency
from gnnsys.training.exact_inference import inference

__all__ = ["Batch", "Batches", "make_batches"]

_ROWS = 1 << 14  # of features that are embedded at a time


@dataclass(frozen=True, slots=True)
class Batch:
    """Nodes that are embedded together, and the pairs among them."""

    nodes: Tensor
    """(n,) their numbers in the graph."""

    x: Tensor
    """(n, features)."""

    edge_index: Tensor
    """(2, e) from 0 to n - 1."""

    pairs: PositivePairs


class Batches(Protocol):
    """The graph in batches."""

    is_whole: bool
    """Whether there is one, of all nodes."""

    def epoch(self, number: int, seed: int, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, drawn by a seed, without those before ``first``."""

    def rows(self, nodes: Tensor) -> Tensor:
        """(n, features) of some nodes."""

    def embed(self, encoder: Encoder) -> Tensor:
        """(N, dim): all nodes, without gradients."""


def make_batches(graph: ClusterGraph, config: ClusterConfig, device: torch.device) -> Batches:
    """Sampled batches if the options have a batch size, else the whole graph.

    Raises:
        TooLargeError: more pairs than the options allow.
    """
    if config.batch_size is None:
        return _Whole(graph, config, device)
    return _Sampled(graph, config, device)


class _Whole:
    is_whole = True

    def __init__(self, graph: ClusterGraph, config: ClusterConfig, device: torch.device) -> None:
        data = graph.data
        x = data.x.materialize().float().to(device)
        pairs = _pairs(data.edge_index, graph.num_nodes, config)
        nodes = torch.arange(graph.num_nodes)
        self._batch = Batch(nodes, x, data.edge_index.to(device), pairs)

    def epoch(self, number: int, seed: int, first: int = 0) -> Iterator[Batch]:
        yield from [self._batch][first:]

    def rows(self, nodes: Tensor) -> Tensor:
        return self._batch.x[nodes]

    def embed(self, encoder: Encoder) -> Tensor:
        with torch.no_grad():
            z: Tensor = encoder(self._batch.x, self._batch.edge_index)
            return z


class _Sampled:
    is_whole = False

    def __init__(self, graph: ClusterGraph, config: ClusterConfig, device: torch.device) -> None:
        self._graph, self._config, self._device = graph, config, device
        # The convolutions need two steps, the pairs as many as their order.
        self._hops = max(config.order or 1, 1 if config.encoder == "mlp" else 2)

    def epoch(self, number: int, seed: int, first: int = 0) -> Iterator[Batch]:
        config = self._config
        loader = NeighborLoader(
            self._graph.data,
            [config.fanout] * self._hops,
            batch_size=config.batch_size,
            shuffle=True,
            seed=seed,
            threads=config.threads,
        )
        loader.set_epoch(number, first)
        for batch in loader:
            pairs = _pairs(batch.edge_index, batch.num_nodes, config)
            x, edges = batch.x.float().to(self._device), batch.edge_index.to(self._device)
            yield Batch(batch.n_id, x, edges, pairs)

    def rows(self, nodes: Tensor) -> Tensor:
        rows: Tensor = self._graph.data.x[nodes].float().to(self._device)
        return rows

    def embed(self, encoder: Encoder) -> Tensor:
        if self._config.encoder != "mlp":
            data: Any = self._graph.data
            return inference(encoder, data, threads=self._config.threads).to(self._device)
        nodes = torch.arange(self._graph.num_nodes)
        with torch.no_grad():
            return torch.cat([encoder(self.rows(part)) for part in nodes.split(_ROWS)])


def _pairs(edge_index: Tensor, num_nodes: int, config: ClusterConfig) -> PositivePairs:
    order = config.order or 1
    pairs, weight = influence_adjacency(edge_index, num_nodes, order, max_nnz=config.max_pairs)
    return PositivePairs(pairs, weight, num_nodes)

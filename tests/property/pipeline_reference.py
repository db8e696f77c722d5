"""Chunked training as the design has it, in whole matrices and one graph of autograd."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data

from gnnsys.pipeline.layers import GraphLayer, SAGELayer, Share
from gnnsys.pipeline.partition import Partition


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, gradients: Tensor):
        return ctx.factor * gradients, None


def edge_matrix(edge_index: Tensor, nodes: int, kind: str) -> Tensor:
    """(V, V) sparse, a row for each target: the sum, the mean, or GCN's normalised sum."""
    source, target = edge_index
    if kind == "gcn":  # a node that has loops keeps the weight of one
        others = source != target
        loops = torch.arange(nodes)
        source, target = (torch.cat([ends[others], loops]) for ends in (source, target))
    degree = torch.bincount(target, minlength=nodes).double()
    weight = {
        "plain": torch.ones(len(source), dtype=torch.float64),
        "mean": 1 / degree[target],
        "gcn": (degree[source] * degree[target]).rsqrt(),
    }[kind]
    return torch.sparse_coo_tensor(torch.stack([target, source]), weight, (nodes, nodes))


class Reference:
    """Trains copies of layers; ``epoch`` is one epoch's forward and backward."""

    def __init__(
        self,
        layers: Sequence[nn.Module],
        data: Data,
        partition: Partition,
        ways: int,
        period: int,
        gamma: float,
        history: str,
    ) -> None:
        self.layers = nn.ModuleList(copy.deepcopy(list(layers)))
        self._data, self._gamma, self._period = data, gamma, period
        self._edges = {
            kind: edge_matrix(data.edge_index, len(data.x), kind) for kind in ("gcn", "mean")
        }
        chunks = partition.order.split(list(partition.chunk_sizes))
        slots = len(chunks) // ways
        self._slots = [
            torch.cat([chunks[way * slots + slot] for way in range(ways)]) for slot in range(slots)
        ]
        self._epoch = 0
        everything = torch.arange(len(data.x))
        with torch.no_grad():
            _, rows = self._run([everything], [0], None)
        self.snapshot = [each if history == "exact" else torch.zeros_like(each) for each in rows]

    def epoch(self, order: Sequence[int]) -> Tensor:
        """The loss; gradients are left in the parameters."""
        scores, rows = self._run(self._slots, order, self.snapshot)
        self.rows = [each.detach() for each in rows]
        mask = self._data.train_mask
        loss = F.cross_entropy(scores[mask], self._data.y[mask])
        loss.backward()
        self._epoch += 1
        if self._epoch % self._period == 0:
            self.snapshot = self.rows
        return loss.detach()

    def _run(
        self, slots: list[Tensor], order: Sequence[int], snapshot: list[Tensor] | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Scores of all vertices, and the rows that each graph layer reads."""
        nodes = len(self._data.x)
        done: list[list[tuple[Tensor, Tensor]]] = []
        scores: list[tuple[Tensor, Tensor]] = []
        for slot in order:
            here = slots[slot]
            x, shared, number = self._data.x[here], {}, 0
            for layer in self.layers:
                if not isinstance(layer, GraphLayer):
                    x = layer(x)
                    if isinstance(layer, Share):
                        shared[layer.name] = x
                    continue
                if number == len(done):
                    done.append([])
                kind = "mean" if isinstance(layer, SAGELayer) else layer.kind
                rows = layer.before(x, shared)
                earlier = [(each, _Scale.apply(y, self._gamma)) for each, y in done[number]]
                base = None if snapshot is None else snapshot[number]
                read = _whole([*earlier, (here, rows)], nodes, base)
                out = self._edges[kind].index_select(0, here) @ read
                done[number].append((here, rows))
                x = layer.after(out, x, shared)
                number += 1
            scores.append((here, x))
        return _whole(scores, nodes), [_whole(parts, nodes) for parts in done]


def _whole(parts: list[tuple[Tensor, Tensor]], nodes: int, base: Tensor | None = None) -> Tensor:
    """Parts put together; the rest is that of ``base``."""
    vertices, rows = torch.cat([v for v, _ in parts]), torch.cat([x for _, x in parts])
    if base is None:
        base = rows.new_zeros(nodes, rows.shape[1])
    return base.index_put((vertices,), rows)

"""The training command's models compute what they are asked for, and no more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gnnsys.errors import ArgumentError
from gnnsys.loaders import CSC, NeighborSampler
from gnnsys.training.models import NodeClassifier

NODES, SEEDS = 300, 12


def sampled(fanouts: list[int]) -> tuple[Any, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    edge_index = (torch.rand(2, 2400, generator=generator) ** 2 * NODES).long()  # with self loops
    sampler = NeighborSampler(CSC.from_edge_index(edge_index, NODES), fanouts, seed=3)
    batch = sampler.sample(torch.arange(SEEDS), 0)
    x = torch.randn(len(batch.node), 6, dtype=torch.float64)
    return batch, x, torch.stack([batch.row, batch.col])


@pytest.mark.parametrize("hops", [1, 2, 3, 4])
@pytest.mark.parametrize("model", ["sage", "gin", "gat", "gcn"])
def test_trimming_changes_neither_the_seeds_scores_nor_the_gradients(model: str, hops: int) -> None:
    torch.manual_seed(1)
    batch, x, edges = sampled([4, 3, 3, 2][:hops])
    net = NodeClassifier(
        model, in_channels=6, hidden=8, out_channels=3, layers=3, dropout=0.0
    ).double()
    results = []
    for trim in (False, True):
        sizes = (batch.num_sampled_nodes, batch.num_sampled_edges) if trim else ()
        out = net(x, edges, *sizes)
        if trim and model != "gcn":
            assert len(out) == SEEDS
        grads = torch.autograd.grad(out[:SEEDS].square().sum(), list(net.parameters()))
        results.append([out[:SEEDS], *grads])
    scale = max(float(result.detach().abs().max()) for result in results[0])
    for whole, trimmed in zip(*results, strict=True):
        torch.testing.assert_close(trimmed, whole, rtol=1e-12, atol=1e-13 * scale)


def test_each_layer_computes_the_nodes_that_later_ones_need() -> None:
    batch, x, edges = sampled([4, 3, 2])
    net = NodeClassifier("sage", in_channels=6, hidden=8, out_channels=3, layers=3).double()
    rows = []
    for conv in net.gnn.convs:
        conv.register_forward_hook(lambda module, inputs, out: rows.append(len(out)))
    net(x, edges, batch.num_sampled_nodes, batch.num_sampled_edges)
    sizes = list(batch.num_sampled_nodes)
    assert rows == [sum(sizes[:3]), sum(sizes[:2]), sizes[0]]


def test_dropout_drops_in_training_alone() -> None:
    batch, x, edges = sampled([4, 3])
    net = NodeClassifier("gin", in_channels=6, hidden=8, out_channels=3, layers=2).double()
    arguments = (x, edges, batch.num_sampled_nodes, batch.num_sampled_edges)
    assert not torch.equal(net(*arguments), net(*arguments))
    net.eval()
    assert torch.equal(net(*arguments), net(*arguments))


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(ArgumentError, match="'mlp': expected one of sage, gcn, gat, gin"):
        NodeClassifier("mlp", in_channels=1, hidden=1, out_channels=1, layers=1)

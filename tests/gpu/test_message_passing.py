"""Sums over neighbours on a CUDA device, by kernels: the values and derivatives of the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.nn import GATConv, GCNConv, SAGEConv

import gnnsys
from gnnsys.errors import ArgumentError, RowIndexError
from gnnsys.losses.pairs import PositivePairs, positive_sums, unit_rows
from gnnsys.message_passing import Neighbors, fused_layers, gcn_layers, sum_neighbors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
NODES, EDGES = 500, 6000


def edges(seed: int, is_sorted: bool = False) -> Tensor:
    """(2, EDGES), with a hub at either end and nodes without edges."""
    draw = torch.rand(2, EDGES, generator=torch.Generator().manual_seed(seed))
    found = (draw**3 * NODES).long()
    return found[:, found[1].argsort(stable=True)] if is_sorted else found


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_same_derivatives(f: Any, edge_index: Tensor, *inputs: Tensor) -> None:
    """Also second ones; bit for bit, since sums have one order."""

    def compute(device: str) -> list[Tensor]:
        leaves = [each.to(device).requires_grad_() for each in inputs]
        out = f(edge_index.to(device), *leaves)
        grad = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out)
        first = torch.autograd.grad(out, leaves, grad, create_graph=True)
        squares = sum(each.square().sum() for each in first)
        second = torch.autograd.grad(squares, leaves, allow_unused=True, materialize_grads=True)
        return [each.detach().cpu() for each in (out, *first, *second)]

    for found, expected in zip(compute("cuda"), compute("cpu"), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("is_sorted", [False, True])
def test_edges_are_grouped_as_on_the_cpu(is_sorted: bool) -> None:
    for edge_index in (edges(0, is_sorted), torch.empty(2, 0, dtype=torch.int64)):
        ours, native = Neighbors(edge_index.cuda()), Neighbors(edge_index)
        assert (ours.is_sorted, ours.counts) == (native.is_sorted, native.counts)
        for end in (0, 1):
            found, expected = ours.groups(end), native.groups(end)
            assert torch.equal(found.indptr.cpu(), expected.indptr)
            assert torch.equal(found.other.cpu(), expected.other)
            assert found.other.dtype == expected.other.dtype
            assert (found.order is None) == (expected.order is None)
            if found.order is not None and expected.order is not None:
                assert torch.equal(found.order.cpu(), expected.order)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (7,), (16,), (256,), (3, 5), (4, 8)])
@pytest.mark.parametrize("mean", [False, True])
def test_sums_are_those_of_the_cpu(shape: tuple[int, ...], dtype: torch.dtype, mean: bool) -> None:
    x = random(NODES, *shape, seed=1).to(dtype)
    weight = random(EDGES, shape[0] if len(shape) == 2 else 1, seed=2).to(dtype)
    for is_sorted in (False, True):
        for to in (0, 1):

            def f(edge_index: Tensor, *inputs: Tensor, to: int = to) -> Tensor:
                return sum_neighbors(*inputs[:1], edge_index, *inputs[1:], num_nodes=NODES + 3,
                                     to=to, mean=mean)  # fmt: skip

            assert_same_derivatives(f, edges(3, is_sorted), x, weight)
            assert_same_derivatives(f, edges(3, is_sorted), x)


def test_sums_do_not_wait_for_the_device_once_their_edges_are_known() -> None:
    edge_index = edges(4).cuda()
    x = random(NODES, 8, seed=5).cuda().requires_grad_()
    sum_neighbors(x, edge_index, num_nodes=NODES).sum().backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        sum_neighbors(x, edge_index, num_nodes=NODES).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_sums_over_pairs_are_those_of_the_cpu() -> None:
    pairs = PositivePairs(edges(6), torch.rand(EDGES), NODES)
    u = unit_rows(random(NODES, 24, seed=7))
    host, device = u.requires_grad_(), u.detach().cuda().requires_grad_()
    sums = [positive_sums(each, pairs, 1.5) for each in (host, device)]
    for each in sums:
        each.square().sum().backward()
    assert host.grad is not None
    assert device.grad is not None
    # Exponentials differ by 3 units in the last place at most; pair_sums.cuh.
    torch.testing.assert_close(sums[1].cpu(), sums[0], rtol=1e-5, atol=0)
    scale = host.grad.abs().max().item()
    torch.testing.assert_close(device.grad.cpu(), host.grad, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("layer", [SAGEConv(12, 8), GATConv(12, 8, heads=2), GCNConv(12, 8)])
def test_layers_of_pyg_are_fused_there(
    layer: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def note(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(args)
        return sum_neighbors(*args, **kwargs)

    for module in (fused_layers, gcn_layers):
        monkeypatch.setattr(module, "sum_neighbors", note)
    x, edge_index = random(NODES, 12, seed=8).cuda(), edges(9).cuda()
    expected = layer.cuda()(x, edge_index)
    found = gnnsys.fuse(layer)(x, edge_index)
    assert calls
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_refused() -> None:
    x, edge_index = torch.ones(3, 4), torch.tensor([[0, 3], [1, 1]])
    with pytest.raises(ArgumentError, match="edge_index: is on cuda:0, but x is on cpu"):
        sum_neighbors(x, edge_index.cuda(), num_nodes=3)
    with pytest.raises(ArgumentError, match="weight: is on cpu, but x is on cuda:0"):
        sum_neighbors(x.cuda(), edge_index.cuda(), torch.ones(2, 1), num_nodes=3)
    with pytest.raises(RowIndexError, match="sources up to 3"):
        sum_neighbors(x.cuda(), edge_index.cuda(), num_nodes=3)

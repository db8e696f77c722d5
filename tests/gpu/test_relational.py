"""Products by type and softmax over edges by kernels of a GPU: as in float64 on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gnnsys.errors import ArgumentError, RowIndexError
from gnnsys.message_passing.softmax import edge_softmax
from gnnsys.rel.segments import segment_matmul

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
ROWS, SOURCES, TARGETS, EDGES = 3000, 400, 500, 6000
ROUNDED = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9}


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def segments() -> tuple[Tensor, Tensor]:
    """(T + 1,) on the CPU, with empty types and one of many rows, and (ROWS,)."""
    ptr = torch.tensor([0, 0, 1, 64, 65, 129, 129, ROWS])
    return ptr, torch.randint(SOURCES, (ROWS,), generator=torch.Generator().manual_seed(0))


def edges() -> Tensor:
    """(2, EDGES), with a hub at either end and nodes without edges."""
    draw = torch.rand(2, EDGES, generator=torch.Generator().manual_seed(1))
    return (draw**3 * torch.tensor([[SOURCES], [TARGETS]])).long()


def assert_derivatives_are_close(f: Any, dtype: torch.dtype, terms: int, *inputs: Tensor) -> None:
    """Also second ones; terms: of the longest sum."""

    def compute(device: str, kind: torch.dtype) -> list[Tensor]:
        leaves = [each.to(dtype).to(device, kind).requires_grad_() for each in inputs]
        out = f(*leaves)
        grad = torch.linspace(-1, 1, out.numel()).to(dtype).view(out.shape).to(out)
        first = torch.autograd.grad(out, leaves, grad, create_graph=True)
        second = torch.autograd.grad(sum(each.square().sum() for each in first), leaves)
        return [each.detach().double().cpu() for each in (out, *first, *second)]

    ours, exact = compute("cuda", dtype), compute("cpu", torch.float64)
    for found, expected in zip(ours, exact, strict=True):
        in_sums = ROUNDED[torch.promote_types(dtype, torch.float32)]
        most = (terms * in_sums + 8 * ROUNDED[dtype]) * float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=0, atol=most)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("blocks", "columns", "out_columns"), [(1, 64, 64), (3, 8, 16), (2, 5, 3)])
def test_products_round_as_sums_of_products_do(
    dtype: torch.dtype, blocks: int, columns: int, out_columns: int
) -> None:
    ptr, index = segments()

    def f(x: Tensor, weight: Tensor) -> Tensor:
        backend = "auto" if x.is_cuda else "ref"
        return segment_matmul(x, weight, ptr, index.to(x.device), backend=backend)

    x = random(SOURCES, blocks, columns, seed=2)
    weight = random(len(ptr) - 1, blocks, columns, out_columns, seed=3)
    assert_derivatives_are_close(f, dtype, ROWS, x, weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("heads", [1, 3, 8, 40])
@pytest.mark.parametrize("to", [0, 1])
def test_softmax_over_edges_is_that_of_the_cpu(dtype: torch.dtype, heads: int, to: int) -> None:
    edge_index = edges() if to else edges().flip(0)

    def f(logits: Tensor, source: Tensor, target: Tensor) -> Tensor:
        return edge_softmax(
            edge_index.to(logits.device), num_targets=TARGETS, logits=logits, source=source,
            target=target, negative_slope=0.2, to=to,
        )  # fmt: skip

    terms = [random(n, heads, seed=4 + k) for k, n in enumerate((EDGES, SOURCES, TARGETS))]
    assert_derivatives_are_close(f, dtype, EDGES, *terms)


def test_softmax_of_great_logits_is_finite_and_adds_up_to_one() -> None:
    edge_index = edges().cuda()
    source = (1e4 * random(SOURCES, 2, seed=7)).bfloat16().cuda()
    alpha = edge_softmax(edge_index, num_targets=TARGETS, source=source).double()
    sums = torch.zeros(TARGETS, 2, dtype=torch.float64, device="cuda")
    sums.index_add_(0, edge_index[1], alpha)
    expected = torch.isin(torch.arange(TARGETS, device="cuda"), edge_index[1]).double()
    torch.testing.assert_close(sums, expected[:, None].expand(-1, 2), rtol=0, atol=2e-3)


def test_results_do_not_depend_on_what_else_runs() -> None:
    ptr, index = segments()
    x, weight = random(SOURCES, 64, seed=8).float().cuda(), random(7, 64, 64, seed=9).float().cuda()
    source, edge_index = random(SOURCES, 4, seed=10).float().cuda(), edges().cuda()
    found = []
    for _ in range(3):
        leaf = weight.clone().requires_grad_()
        segment_matmul(x, leaf, ptr, index.cuda()).square().sum().backward()
        found.append([leaf.grad, edge_softmax(edge_index, num_targets=TARGETS, source=source)])
    for others in found[1:]:
        for ours, first in zip(others, found[0], strict=True):
            assert torch.equal(ours, first)


def test_nothing_waits_for_the_device_once_index_and_edges_are_known() -> None:
    (ptr, index), edge_index = segments(), edges().cuda()
    index = index.cuda()
    x = random(SOURCES, 8, seed=11).float().cuda().requires_grad_()
    weight = random(7, 8, 8, seed=12).float().cuda().requires_grad_()

    def step() -> None:
        alpha = edge_softmax(edge_index, num_targets=TARGETS, source=x, negative_slope=0.1)
        (segment_matmul(x, weight, ptr, index).sum() + alpha.square().sum()).backward()

    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_what_does_not_fit_is_refused() -> None:
    x, weight, ptr = torch.ones(3, 4).cuda(), torch.ones(1, 4, 4).cuda(), torch.tensor([0, 2])
    with pytest.raises(RowIndexError, match="index"):
        segment_matmul(x, weight, ptr, torch.tensor([0, 3]).cuda())
    with pytest.raises(ArgumentError, match="index: is on cpu, but x is on cuda"):
        segment_matmul(x, weight, ptr, torch.tensor([0, 1]))

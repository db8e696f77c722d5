"""Products by type and softmax over edges by the kernels of a GPU, executed on the CPU, against
plain torch and PyG in float64.

Few specialisations are compiled: rows of whole 16-byte words, and rows whose values lie one by one.
"""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.utils import softmax as softmax_of_pyg

from gnnsys.errors import ArgumentError, DTypeError, RowIndexError
from gnnsys.message_passing.softmax import edge_softmax
from gnnsys.rel.segments import segment_matmul
from gnnsys.system.gpu import HostExecutorDevice, Schedule
from gnnsys.system.gpu.graph_kernels import HUB_DEGREE, AttentionScores, EdgeLaunches
from gnnsys.system.gpu.placement import kernels_of_cpu_tensors
from gnnsys.system.gpu.segment_kernels import SegmentLaunches

compiles = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "c++")) is None, reason="needs a C++ compiler"
)
ROUNDED = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9}


class Noting(HostExecutorDevice):
    """Keeps the names of the kernels that are asked of it, each to be launched once."""

    def __init__(self) -> None:
        super().__init__(Schedule("random"))
        self.launched: list[str] = []

    def kernel(self, header: str, instance: str) -> Any:
        self.launched.append(instance.partition("<")[0])
        return super().kernel(header, instance)


def random(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def derivatives(f: Any, inputs: list[Tensor], grad: Tensor, order: int) -> list[Tensor]:
    """The value, the first derivatives and, for order 2, those of their squares."""
    leaves = [each.detach().requires_grad_() for each in inputs]
    out = f(*leaves)
    first = torch.autograd.grad(out, leaves, grad, create_graph=order == 2)
    if order == 1:
        return [out, *first]
    squares = sum(each.square().sum() for each in first)
    return [out, *first, *torch.autograd.grad(squares, leaves)]


def multiply_in_float64(x: Tensor, weight: Tensor, kind: Tensor, index: Tensor) -> Tensor:
    return torch.einsum("mbk,mbkn->mbn", x[index], weight[kind])


@compiles
@pytest.mark.parametrize(
    ("dtype", "blocks", "columns", "out_columns", "order"),
    [
        (torch.float32, 2, 20, 8, 1),
        (torch.float64, 1, 5, 3, 2),
        (torch.bfloat16, 1, 8, 16, 1),
    ],
)
def test_products_and_their_derivatives_round_as_sums_of_products_do(
    dtype: torch.dtype, blocks: int, columns: int, out_columns: int, order: int
) -> None:
    sizes = torch.tensor([0, 1, 64, 0, 65, 600, 0])  # 600: more than are summed at once
    ptr = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    kind = torch.arange(len(sizes)).repeat_interleave(sizes)
    index = torch.randint(3, 40, (len(kind),), generator=torch.Generator().manual_seed(1))
    x = random(41, blocks, columns, dtype=dtype, seed=2)
    weight = random(len(sizes), blocks, out_columns, columns, dtype=dtype, seed=3).transpose(2, 3)
    grad = random(len(kind), 1, out_columns, dtype=dtype, seed=4).expand(-1, blocks, -1)

    def by_kernels(x: Tensor, weight: Tensor) -> Tensor:
        with kernels_of_cpu_tensors(HostExecutorDevice()):
            return segment_matmul(x, weight, ptr, index)

    def in_float64(x: Tensor, weight: Tensor) -> Tensor:
        return multiply_in_float64(x, weight, kind, index)

    found = derivatives(by_kernels, [x, weight], grad, order)
    inputs = [each.double() for each in (x, weight)]
    expected = derivatives(in_float64, inputs, grad.double(), order)
    absolute = derivatives(in_float64, [each.abs() for each in inputs], grad.double().abs(), order)
    in_sums = ROUNDED[torch.promote_types(dtype, torch.float32)]
    for k, (ours, exact, most) in enumerate(zip(found, expected, absolute, strict=True)):
        assert ours.dtype == dtype
        # A derivative by x is rounded to the type once for each row that was read of it, too.
        rounded = exact.abs() + (most if k == 1 else 0)
        bound = 700 * in_sums * most + 2 * ROUNDED[dtype] * rounded
        assert ((ours.double() - exact).abs() <= bound).all()


@compiles
def test_products_of_one_type_of_many_of_unaligned_and_of_no_rows() -> None:
    eye = torch.eye(4).expand(100_000, 4, 4)
    x = torch.arange(12.0).view(3, 4)
    ptr = torch.zeros(100_001, dtype=torch.int64)
    ptr[50_000:] = 1
    ptr[-1] = 3
    with kernels_of_cpu_tensors(HostExecutorDevice()):
        assert torch.equal(segment_matmul(x, eye, ptr), x)
        assert torch.equal(segment_matmul(x, eye[:1], torch.tensor([0, 3])), x)
        unaligned = torch.arange(13.0, dtype=torch.float64)[1:].view(3, 4)
        assert torch.equal(segment_matmul(unaligned, eye.double(), ptr), unaligned)
        none, weight = torch.empty(0, dtype=torch.int64), eye[:2].clone().requires_grad_()
        out = segment_matmul(x, weight, torch.zeros(3, dtype=torch.int64), none)
        assert out.shape == (0, 4)
        assert not torch.autograd.grad(out.sum(), weight)[0].any()
        flat = segment_matmul(x[:, :0], eye[:1, :0], torch.tensor([0, 3]))
        assert not flat.any()


def graph(to: int, hub: int) -> Tensor:
    """(2, E), with a target of many edges, repeated ones and nodes without any at either end."""
    draw = torch.Generator().manual_seed(5)
    target = torch.cat([torch.full((hub,), 4), torch.arange(30) % 13 + 7])
    source = (torch.rand(len(target), generator=draw) ** 2 * 30).long()
    edges = torch.stack([source, target] if to else [target, source])
    return edges[:, torch.randperm(edges.size(1), generator=draw)]


SOURCES, TARGETS = 35, 25


@compiles
@pytest.mark.parametrize(
    ("dtype", "names", "slope", "to", "hub", "order", "scale"),
    [
        (torch.float32, ("logits", "source", "target"), 0.2, 1, 2 * HUB_DEGREE + 3, 1, 3.0),
        (torch.float64, ("source", "target"), 0.5, 0, 90, 2, 1.0),
        (torch.bfloat16, ("source",), None, 1, HUB_DEGREE, 1, 1e4),
    ],
)
def test_softmax_over_edges_and_its_derivatives_are_those_of_pyg(
    dtype: torch.dtype, names: tuple[str, ...], slope: float | None, to: int, hub: int,
    order: int, scale: float,
) -> None:  # fmt: skip
    edge_index, heads = graph(to, hub), 3
    rows = {"logits": edge_index.size(1), "source": SOURCES, "target": TARGETS}
    inputs = [
        scale * random(rows[name], heads, dtype=dtype, seed=6 + k) for k, name in enumerate(names)
    ]
    grad = random(edge_index.size(1), heads, dtype=dtype, seed=9)

    def by_kernels(*terms: Tensor) -> Tensor:
        named: Any = dict(zip(names, terms, strict=True))
        with kernels_of_cpu_tensors(HostExecutorDevice(Schedule("descending"))):
            return edge_softmax(
                edge_index, num_targets=TARGETS, negative_slope=slope, to=to, **named
            )

    def by_pyg(*terms: Tensor) -> Tensor:
        ends = {"logits": slice(None), "source": edge_index[1 - to], "target": edge_index[to]}
        z: Any = sum(term[ends[name]] for name, term in zip(names, terms, strict=True))
        z = z if slope is None else torch.nn.functional.leaky_relu(z, slope)
        return softmax_of_pyg(z, edge_index[to], num_nodes=TARGETS)

    found = derivatives(by_kernels, inputs, grad, order)
    expected = derivatives(by_pyg, [each.double() for each in inputs], grad.double(), order)
    for ours, exact in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        assert ours.isfinite().all()
        most = 100 * ROUNDED[dtype] * max(1.0, float(exact.detach().abs().max()))
        assert (ours.double() - exact).abs().max() <= most
    sums = torch.zeros(TARGETS, heads, dtype=torch.float64)
    sums.index_add_(0, edge_index[to], found[0].detach().double())
    has_edges = torch.isin(torch.arange(TARGETS), edge_index[to])
    assert (sums[has_edges] - 1).abs().max() <= 600 * ROUNDED[dtype]


@compiles
def test_operators_know_whose_derivatives_are_by_kernels_and_launch_few() -> None:
    device = Noting()
    x, weight = torch.ones(4, 4, requires_grad=True), torch.ones(2, 4, 4, requires_grad=True)
    ptr, index = torch.tensor([0, 2, 3]), torch.tensor([1, 1, 0])
    with kernels_of_cpu_tensors(device):
        out = segment_matmul(x, weight, ptr, index)
    assert device.launched == ["segment_matmul"]
    device.launched.clear()
    out.sum().backward()
    assert sorted(device.launched) == [
        "segment_matmul", "sum_neighbors", "sum_neighbors", "sum_outer_products"
    ]  # fmt: skip
    with kernels_of_cpu_tensors(device):
        out = segment_matmul(x, weight, ptr, index)
    (by_x,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    device.launched.clear()
    torch.autograd.grad(by_x.sum(), (x, weight))
    assert sorted(device.launched) == [
        *["segment_matmul"] * 2, *["sum_neighbors"] * 3, *["sum_outer_products"] * 2
    ]  # fmt: skip
    device.launched.clear()
    edge_index = torch.stack([torch.arange(300) % 4, torch.zeros(300, dtype=torch.int64)])
    source = torch.ones(4, 1, requires_grad=True)
    with kernels_of_cpu_tensors(device):
        alpha = edge_softmax(edge_index, num_targets=1, source=source)
    assert device.launched == ["softmax_targets", "find_hubs", "softmax_hubs"]
    device.launched.clear()
    alpha.sum().backward()
    sums = ["sum_neighbors", "find_hubs", "sum_hubs"]
    assert device.launched == ["softmax_targets", "softmax_hubs", *sums]


@compiles
def test_an_index_or_edge_that_changed_unseen_is_refused_by_kernels() -> None:
    products = SegmentLaunches(HostExecutorDevice(), torch.tensor([0, 2, 3]))
    x, weight, out = torch.ones(2, 1, 4), torch.ones(2, 1, 4, 4), torch.empty(3, 1, 4)
    with pytest.raises(RowIndexError, match="index: that of row 2 changed"):
        products.multiply(x, weight, torch.tensor([0, 1, 2]), out)
    edges = EdgeLaunches(HostExecutorDevice(), torch.tensor([0, 2]), torch.tensor([1, -1]).int())
    with pytest.raises(RowIndexError, match="edge 1 changed"):
        edges.softmax(AttentionScores(source=torch.ones(2, 3)), torch.empty(2, 3))


def test_arrays_that_do_not_fit_are_refused_before_a_launch() -> None:
    device: Any = None
    products = SegmentLaunches(device, torch.tensor([0, 2, 3]))
    x, weight, out = torch.ones(3, 1, 4), torch.ones(2, 1, 4, 4), torch.ones(3, 1, 4)
    edges = EdgeLaunches(device, torch.tensor([0, 1, 2]), torch.tensor([1, 0]))
    alpha = torch.ones(2, 3)
    index = torch.zeros(3)
    for error, told, call in (
        (DTypeError, r"x: torch\.int64, exp", lambda: products.multiply(x.long(), x, None, out)),
        (ArgumentError, r"x: \(2, 1, 4\)", lambda: products.multiply(x[:2], weight, None, out)),
        (ArgumentError, r"weight: \(1, 1", lambda: products.multiply(x, weight[:1], None, out)),
        (ArgumentError, "out: .*strides", lambda: products.sum_outer(x, out, None, weight.mT)),
        (DTypeError, r"index: torch\.float32", lambda: products.multiply(x, weight, index, out)),
        (DTypeError, r"out: torch\.int64", lambda: edges.softmax(AttentionScores(), alpha.long())),
        (
            ArgumentError,
            r"target: \(3, 3\)",
            lambda: edges.softmax(AttentionScores(target=torch.ones(3, 3)), alpha),
        ),
    ):
        with pytest.raises(error, match=told):
            call()

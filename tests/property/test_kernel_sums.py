"""Sums over neighbours and pairs by the kernels of a GPU, executed on the CPU, against native code.

Few specialisations are compiled: rows of whole 16-byte words, and rows whose values lie one by one.
"""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gnnsys._core import group_edges, scan_edges
from gnnsys.errors import ArgumentError, DTypeError, RowIndexError
from gnnsys.losses.pairs import PositivePairs, positive_sums, unit_rows
from gnnsys.message_passing import neighbors_of, sum_neighbors, sums
from gnnsys.message_passing.grouping import count_sorted, group, scan
from gnnsys.system.gpu import HostExecutorDevice, Schedule
from gnnsys.system.gpu.graph_kernels import HUB_DEGREE, EdgeLaunches, WeightedRows
from gnnsys.system.gpu.placement import kernels_of_cpu_tensors

compiles = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "c++")) is None, reason="needs a C++ compiler"
)
DEGREES = st.sampled_from([0, 1, 2, 31, 32, 33])
HUBS = st.sampled_from([0, HUB_DEGREE, HUB_DEGREE + 1, 2 * HUB_DEGREE + 3])


class Noting(HostExecutorDevice):
    """Keeps the names of the kernels that are asked of it, each to be launched once."""

    def __init__(self) -> None:
        super().__init__(Schedule("random"))
        self.launched: list[str] = []

    def kernel(self, header: str, instance: str) -> Any:
        self.launched.append(instance.partition("<")[0])
        return super().kernel(header, instance)


def random(shape: Any, dtype: torch.dtype, draw: torch.Generator, like: str = "dense") -> Tensor:
    """Dense rows, rows that lie between others, or rows at an address that is no whole word."""
    if like == "spread":
        return torch.randn(*shape[:-1], 2 * shape[-1], generator=draw).to(dtype)[..., ::2]
    extra = 1 if like == "shifted" else 0
    flat = torch.randn(extra + torch.Size(shape).numel(), generator=draw).to(dtype)
    return flat[extra:].view(shape)


def derivatives(f: Any, inputs: list[Tensor], grad: Tensor, order: int) -> list[Tensor]:
    """The value, the first derivatives and, for order 2, those of their squares."""
    leaves = [each.detach().requires_grad_() for each in (*inputs, grad)]
    out = f(*leaves[:-1])
    first = torch.autograd.grad(out, leaves[:-1], leaves[-1], create_graph=order == 2)
    if order == 1:
        return [out, *first]
    squares = sum(each.square().sum() for each in first)
    return [out, *first, *torch.autograd.grad(squares, leaves, materialize_grads=True)]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, native in zip(found, expected, strict=True):
        assert ours.dtype == native.dtype
        assert torch.equal(ours, native)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_edges_are_grouped_by_torch_as_by_native_code(data: st.DataObject) -> None:
    nodes = [st.integers(0, data.draw(st.integers(0, 12))) for _ in range(2)]
    drawn = data.draw(st.lists(st.tuples(*nodes), max_size=40))
    if data.draw(st.booleans(), "sorted"):
        drawn.sort(key=lambda edge: edge[1])
    kind = data.draw(st.sampled_from([torch.int32, torch.int64]))
    source, target = torch.tensor(drawn, dtype=torch.int64).view(-1, 2).t().contiguous()
    found = scan(source, target)
    assert found == tuple(scan_edges(source.numpy(), target.numpy()))
    ends = (source, found[2] + 1), (target, found[4] + 1)
    for (key, num_keys), (value, num_values) in (ends, ends[::-1]):
        indptr = torch.empty(num_keys + 1, dtype=torch.int64)
        other, order = (torch.empty(len(key), dtype=kind) for _ in range(2))
        arrays = indptr.numpy(), other.numpy(), order.numpy()
        assert group_edges(key.numpy(), value.numpy(), num_values, *arrays) == -1
        assert_same([*group(key, value, num_keys, kind)], [indptr, other, order])
        assert torch.equal(count_sorted(key.sort().values, num_keys), indptr)


@st.composite
def edges(draw: Any) -> tuple[Tensor, int]:
    """(2, E), and more nodes than those of its edges, some of which have none."""
    degrees = torch.tensor([*draw(st.lists(DEGREES, max_size=6)), draw(HUBS), 0])
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    target = torch.arange(len(degrees)).repeat_interleave(degrees)
    source = torch.randint(5, (len(target),), generator=generator)
    found = torch.stack([source, target])
    if draw(st.booleans()):
        found = found.flip(0)
    return found[:, torch.randperm(len(target), generator=generator)], len(degrees) + 5


def check_sums(
    edge_index: Tensor, nodes: int, dtype: torch.dtype, columns: tuple[int, int], order: int,
    data: st.DataObject,
) -> None:  # fmt: skip
    draw = torch.Generator().manual_seed(len(edge_index[0]))
    heads, channels = columns
    shape = (nodes, heads, channels) if heads > 1 else (nodes, channels)
    x = random(shape, dtype, draw, data.draw(st.sampled_from(["dense", "spread", "shifted"])))
    inputs = [x]
    if data.draw(st.booleans(), "weighted"):
        inputs.append(random((edge_index.size(1), heads), dtype, draw))
    options = {"to": data.draw(st.integers(0, 1)), "mean": data.draw(st.booleans(), "mean")}

    def f(x: Tensor, *weight: Tensor) -> Tensor:
        return sum_neighbors(x, edge_index, *weight, num_nodes=nodes + 2, **options)

    grad = random((nodes + 2, *shape[1:]), dtype, draw)
    expected = derivatives(f, inputs, grad, order)
    with kernels_of_cpu_tensors(HostExecutorDevice(Schedule("random"))):
        found = derivatives(f, inputs, grad, order)
    assert_same(found, expected)


@compiles
@settings(max_examples=30, deadline=None)
@given(
    graph=edges(), columns=st.sampled_from([(1, 4), (1, 20), (3, 8), (1, 1), (4, 3), (1, 33)]),
    data=st.data(),
)  # fmt: skip
def test_sums_and_their_derivatives_are_those_of_native_code(
    graph: tuple[Tensor, int], columns: tuple[int, int], data: st.DataObject
) -> None:
    check_sums(*graph, torch.float32, columns, 2, data)


@compiles
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_sums_of_bfloat16_over_sorted_edges_are_those_of_native_code(data: st.DataObject) -> None:
    degrees = torch.tensor(data.draw(st.lists(DEGREES, min_size=1, max_size=6)))
    target = torch.arange(len(degrees)).repeat_interleave(degrees)
    edge_index = torch.stack([torch.arange(len(target)) % 7, target])
    nodes = len(degrees) + 7
    generator = torch.Generator().manual_seed(nodes)
    x = random((nodes, 2, 8), torch.bfloat16, generator)
    weight, grad = (random((n, 2), torch.bfloat16, generator) for n in (len(target), nodes))
    grad = grad[..., None].expand(-1, -1, 8)
    mean = data.draw(st.booleans())

    def f(x: Tensor, weight: Tensor) -> Tensor:
        return sum_neighbors(x, edge_index, weight, num_nodes=nodes, mean=mean)

    expected = derivatives(f, [x, weight], grad, 1)
    with kernels_of_cpu_tensors(HostExecutorDevice()):
        assert_same(derivatives(f, [x, weight], grad, 1), expected)


@compiles
@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    graph=edges(), data=st.data(), is_sorted=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    heads=st.integers(1, 4), channels=st.sampled_from([1, 2, 3, 4, 6, 8, 16]),
)  # fmt: skip
def test_sums_of_all_specialisations_are_those_of_native_code(
    graph: tuple[Tensor, int], is_sorted: bool, dtype: torch.dtype, heads: int, channels: int,
    data: st.DataObject,
) -> None:  # fmt: skip
    edge_index, nodes = graph
    if is_sorted:
        edge_index = edge_index[:, edge_index[1].argsort(stable=True)]
    check_sums(edge_index, nodes, dtype, (heads, channels), 2, data)


# The two differ where CUDA's and the C library's exponentials do; here both are the latter's.
@compiles
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)]
)
@settings(max_examples=10, deadline=None)
@given(hub=HUBS, width=st.sampled_from([4, 8, 20]), seed=st.integers(0, 100))
def test_sums_over_pairs_are_those_of_native_code(
    dtype: torch.dtype, hub: int, width: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    nodes = hub + 9
    ends = torch.randint(nodes, (2, 60), generator=generator)
    spokes = torch.stack([torch.zeros(hub, dtype=torch.int64), torch.arange(1, hub + 1)])
    ends = torch.cat([ends, spokes], 1)
    weight = torch.rand(ends.size(1), generator=generator, dtype=dtype)
    pairs = PositivePairs(ends, weight, nodes)
    u = unit_rows(random((nodes, width), dtype, generator, "spread"))
    grad = random((nodes,), dtype, generator)

    def f(u: Tensor) -> Tensor:
        return positive_sums(u, pairs, 1.5)

    expected = derivatives(f, [u], grad, 1)
    with kernels_of_cpu_tensors(HostExecutorDevice()):
        assert_same(derivatives(f, [u], grad, 1), expected)


@compiles
def test_launches_are_few_and_a_sum_knows_whose_derivatives_are_by_kernels() -> None:
    device = Noting()
    x, weight = torch.ones(4, 4, requires_grad=True), torch.ones(300, 1, requires_grad=True)
    edge_index = torch.stack([torch.arange(300) % 4, torch.zeros(300, dtype=torch.int64)])
    edge_index[1, ::2] = 1 + torch.arange(150) % 2
    with kernels_of_cpu_tensors(device):
        out = sum_neighbors(x, edge_index, weight, num_nodes=4)
    assert device.launched == ["sum_neighbors", "find_hubs", "sum_hubs"]
    device.launched.clear()
    out.sum().backward(retain_graph=True)
    assert device.launched == ["sum_neighbors", "find_hubs", "sum_hubs", "dot_edges"]
    device.launched.clear()
    out.sum().backward()
    assert device.launched == ["sum_neighbors", "sum_hubs", "dot_edges"]
    native = sum_neighbors(x, edge_index, num_nodes=4)
    device.launched.clear()
    with kernels_of_cpu_tensors(device):
        native.sum().backward()
        u = torch.eye(4).requires_grad_()
        loss = positive_sums(u, PositivePairs(edge_index[:, :8]), 1.0).sum()
    assert device.launched == ["dot_edges", "sum_neighbors"]
    device.launched.clear()
    loss.backward()
    assert device.launched == ["dot_edges", "sum_neighbors"]


@compiles
def test_rows_without_columns_have_derivatives() -> None:
    edge_index, weight = torch.tensor([[0, 1], [1, 1]]), torch.ones(2, 1, requires_grad=True)
    with kernels_of_cpu_tensors(HostExecutorDevice()):
        out = sum_neighbors(torch.ones(2, 0), edge_index, weight, num_nodes=3)
    (found,) = torch.autograd.grad(out, weight, torch.ones(3, 0))
    assert found.tolist() == [[0], [0]]


@compiles
def test_edges_that_change_unseen_are_refused_by_kernels() -> None:
    edge_index = torch.tensor([[1, 0], [1, 0]]).flip(1)
    x = torch.ones(2, 4)
    neighbors_of(edge_index).groups(1).other.numpy()[1] = 1 << 30
    with (
        kernels_of_cpu_tensors(HostExecutorDevice()),
        pytest.raises(RowIndexError, match="edge 1 changed"),
    ):
        sum_neighbors(x, edge_index, num_nodes=2)


def test_arrays_that_do_not_fit_are_refused_before_a_launch() -> None:
    indptr, source = torch.tensor([0, 1, 2]), torch.tensor([1, 0])
    device: Any = None
    x, out = torch.ones(2, 4), torch.ones(2, 4)
    edges, far = EdgeLaunches(device, indptr, source), source.to("meta")
    for error, told, call in (
        (DTypeError, r"source: torch\.int16", lambda: EdgeLaunches(device, indptr, source.short())),
        (ArgumentError, "order: is on m", lambda: EdgeLaunches(device, indptr, source, far)),
        (DTypeError, r"x: torch\.int64, exp", lambda: edges.sum(WeightedRows(x.long()), out)),
        (DTypeError, r"u: torch\.bfloat16", lambda: edges.pair_terms(x, x.bfloat16(), 1.0)),
        (ArgumentError, r"out: \(2, 3\)", lambda: edges.sum(WeightedRows(x), out[:, :3])),
        (ArgumentError, r"weight: \(2, 1\)", lambda: edges.sum(WeightedRows(x, 2, x[:, :1]), out)),
        (ArgumentError, r"out: \(2,\)", lambda: edges.dot(WeightedRows(x), x, x[:, 0])),
    ):
        with pytest.raises(error, match=told):
            call()
    with pytest.raises(ArgumentError, match="edge_index: is on meta, but x is on cpu"):
        sums._device_for(x, edge_index=far)

"""Native sums over neighbours, against sums in the order of the edges, one edge at a time."""

from __future__ import annotations

import itertools
import pickle
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, multiprocessing

from gnnsys._core import Aggregator, RowArrays, group_edges, isas
from gnnsys.errors import DTypeError, RowIndexError
from gnnsys.message_passing import Neighbors, neighbors, neighbors_of, sum_neighbors
from gnnsys.message_passing.sums import dot_neighbors

ISAS = isas()


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def random_edges(generator: np.random.Generator, sources: int, targets: int, edges: int) -> Tensor:
    """(2, edges), with hubs on both sides and nodes without edges."""
    source = (sources * generator.random(edges) ** 3).astype(np.int64)
    target = (targets * generator.random(edges) ** 3).astype(np.int64)
    return torch.from_numpy(np.stack([source, target]))


def by_target(edge_index: Tensor) -> Tensor:
    return edge_index[:, edge_index[1].argsort(stable=True)]


def sum_edge_by_edge(
    x: Tensor,
    edge_index: Tensor,
    num_nodes: int,
    weight: Tensor | None = None,
    mean: bool = False,
) -> Tensor:
    """Sums in float32 for bfloat16, rounded once; each sum in the order of its edges."""
    source, target = edge_index
    wide = x.dtype if x.dtype != torch.bfloat16 else torch.float32
    rows = x.to(wide)[source]
    if weight is not None:
        factors = weight.to(wide)
        rows = rows * (factors.unsqueeze(-1) if x.dim() == 3 else factors)
    sums = torch.zeros(num_nodes, *x.shape[1:], dtype=wide).numpy()
    for row, node in zip(rows.numpy(), target.tolist(), strict=True):
        sums[node] += row
    out = torch.from_numpy(sums)
    if mean:
        degree = target.bincount(minlength=num_nodes).clamp(min=1).to(wide)
        out = out / degree.view(-1, *(1,) * (x.dim() - 1))
    return out.to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("seed", range(12))
def test_sums_equal_those_made_edge_by_edge_bit_for_bit(seed: int, dtype: torch.dtype) -> None:
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)
    for width in generator.integers(1, 71, 4).tolist():
        sources, targets = generator.integers(1, 60, 2).tolist()
        edges = int(generator.choice([0, 1, 7, 400]))
        heads = int(generator.choice([1, 2, 5]))
        edge_index = random_edges(generator, sources, targets, edges)
        if seed % 2:
            edge_index = by_target(edge_index)
        shape = (sources, heads, width) if heads > 1 else (sources, width)
        x = torch.randn(shape, dtype=torch.float64).to(dtype)
        weight = torch.randn(edges, heads, dtype=torch.float64).to(dtype)
        for w, mean in itertools.product((None, weight), (False, True)):
            found = sum_neighbors(x, edge_index, w, num_nodes=targets, mean=mean)
            expected = sum_edge_by_edge(x, edge_index, targets, w, mean)
            assert torch.equal(found, expected), (seed, shape, edges, w is None, mean)
            back = sum_neighbors(x, edge_index.flip(0), w, num_nodes=targets, to=0, mean=mean)
            assert torch.equal(back, expected), (seed, shape, edges, w is None, mean)


@pytest.mark.parametrize("channels", [1, 8, 16, 32, 45, 300])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_every_instruction_set_and_number_of_threads_gives_the_same_bits(
    dtype: str, channels: int
) -> None:
    generator = np.random.default_rng(channels)
    torch.manual_seed(channels)
    heads, sources, targets, edges = 3, 90, 70, 2000
    grouped = Neighbors(random_edges(generator, sources, targets, edges))
    arrays = grouped.groups(1).arrays()
    kind = getattr(torch, dtype)
    x = torch.randn(sources, heads, channels).to(kind)
    y = torch.randn(grouped.counts[1], heads, channels).to(kind)
    weight = torch.randn(edges, heads).to(kind)
    rows = RowArrays(dtype, x.data_ptr(), sources, heads, channels, weight.data_ptr(), 0, mean=True)
    results = []
    for isa in ISAS:
        for count in (1, 2, 3):
            aggregator = Aggregator(count, isa)
            sums, dots = torch.empty_like(y), torch.empty_like(weight)
            assert aggregator.sum(arrays, rows, sums.data_ptr()) == -1
            assert aggregator.dot(arrays, rows, y.data_ptr(), dots.data_ptr()) == -1
            results.append((sums, dots))
    for sums, dots in results[1:]:
        assert torch.equal(sums, results[0][0])
        assert torch.equal(dots, results[0][1])


@pytest.mark.parametrize("channels", [1, 7, 8, 16, 32, 70])
def test_derivatives_by_weights_are_dot_products(channels: int) -> None:
    torch.manual_seed(channels)
    edge_index = random_edges(np.random.default_rng(channels), 20, 30, 200)
    x, y = torch.randn(20, 4, channels).double(), torch.randn(30, 4, channels).double()
    weight = torch.ones(200, 4).double().requires_grad_()
    out = sum_neighbors(x, edge_index, weight, num_nodes=30)
    (found,) = torch.autograd.grad(out, weight, y)
    expected = (x[edge_index[0]] * y[edge_index[1]]).sum(-1)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("to", [0, 1])
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("heads", [0, 1, 3])
@pytest.mark.parametrize("is_sorted", [False, True])
def test_first_and_second_derivatives_are_those_of_finite_differences(
    is_sorted: bool, heads: int, mean: bool, to: int
) -> None:
    torch.manual_seed(0)
    edge_index = random_edges(np.random.default_rng(heads), 4, 5, 9)
    if is_sorted:
        edge_index = by_target(edge_index)
    shape = (5, heads, 2) if heads > 1 else (5, 2)  # a row that no edge reads
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    inputs = [x]
    if heads:
        inputs.append(torch.randn(9, heads, dtype=torch.float64, requires_grad=True))

    def f(*inputs: Tensor) -> Tensor:
        x, *weight = inputs
        return sum_neighbors(x, edge_index, *weight, num_nodes=7, mean=mean, to=to)

    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs)


def test_derivatives_do_not_depend_on_threads(threads: int) -> None:
    def grad(count: int) -> tuple[Tensor, ...]:
        torch.set_num_threads(count)
        out = sum_neighbors(x, edge_index, weight, num_nodes=2000, mean=True)
        return torch.autograd.grad(out, (x, weight), y)

    torch.manual_seed(1)
    edge_index = random_edges(np.random.default_rng(1), 3000, 2000, 20_000)
    x = torch.randn(3000, 40, requires_grad=True)
    weight = torch.randn(20_000, 1, requires_grad=True)
    y = torch.randn(2000, 40)
    for one, other in zip(grad(1), grad(threads), strict=True):
        assert torch.equal(one, other)


def test_a_hub_and_many_nodes_without_edges_are_summed_right(threads: int) -> None:
    source = torch.arange(50_000) % 700
    target = torch.full((50_000,), 3).index_fill_(0, torch.tensor([49_998, 49_999]), 90_000)
    x = torch.arange(700.0).view(-1, 1).expand(-1, 24).contiguous()
    edge_index = torch.stack([source, target])
    found = sum_neighbors(x.double(), edge_index, num_nodes=100_000)
    assert found[3].unique().tolist() == [source[:-2].sum().item()]
    assert found[90_000].unique().tolist() == [source[-2:].sum().item()]
    assert found.count_nonzero() == 48


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (3, 2, 0)])
def test_nothing_to_sum_gives_zeros(shape: tuple[int, ...]) -> None:
    edge_index = torch.zeros(2, 5 if shape[0] else 0, dtype=torch.int64)
    x = torch.randn(shape, requires_grad=True)
    out = sum_neighbors(x, edge_index, num_nodes=2)
    out.sum().backward()
    assert out.shape == (2, *shape[1:])
    assert not out.any()
    assert x.grad is not None
    assert x.grad.shape == shape


def test_rows_that_do_not_lie_densely_are_summed_as_they_are() -> None:
    edge_index = torch.tensor([[1, 0], [0, 0], [1, 1]]).t()  # whose rows are not dense, either
    x = torch.arange(12.0).view(4, 3).t()  # (3, 4)
    found = sum_neighbors(x, edge_index, num_nodes=2)
    assert torch.equal(found, torch.stack([x[0] + x[1], x[1]]))
    grad = torch.ones(1, 1).expand(2, 4)
    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(sum_neighbors(leaf, edge_index, num_nodes=2), leaf, grad)
    assert found[:, 0].tolist() == [1, 2, 0]


@pytest.mark.parametrize("seed", range(5))
def test_grouping_equals_a_stable_sort(seed: int) -> None:
    generator = np.random.default_rng(seed)
    edge_index = random_edges(generator, 30, 40, int(generator.integers(0, 300)))
    if seed % 2:
        edge_index = by_target(edge_index)
    grouped = Neighbors(edge_index)
    for end in (0, 1):
        groups, key, other = grouped.groups(end), edge_index[end], edge_index[1 - end]
        order = key.argsort(stable=True)
        assert torch.equal(groups.other.long(), other[order])
        assert torch.equal(groups.indptr.diff(), key.bincount())
        if groups.order is None:
            assert torch.equal(order, torch.arange(len(order)))
        else:
            assert torch.equal(groups.order.long(), order)


def test_edges_are_counted_in_int64_where_int32_would_not_hold_the_nodes() -> None:
    key, value = np.array([1, 0, 1]), np.array([1 << 40, 5, 1 << 41])
    indptr, other, order = np.empty(3, np.int64), np.empty(3, np.int64), np.empty(3, np.int64)
    assert group_edges(key, value, (1 << 41) + 1, indptr, other, order) == -1
    assert (indptr.tolist(), other.tolist(), order.tolist()) == (
        [0, 1, 3],
        [5, 1 << 40, 1 << 41],
        [1, 0, 2],
    )
    assert group_edges(np.array([0, 2, 1]), value, (1 << 41) + 1, indptr, other, order) == 1
    assert group_edges(key, value, 1 << 41, indptr, other, order) == 2


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ([0, 3], [0, 1], "sources up to 3 and targets up to 1, expected below 3 and 2"),
        ([0, 1], [0, 2], "sources up to 1 and targets up to 2, expected below 3 and 2"),
        ([0, -1], [0, 1], "least source is -1"),
        ([0, 1], [-5, 1], "least target -5"),
    ],
)
def test_nodes_without_a_row_are_refused(
    source: list[int], target: list[int], message: str
) -> None:
    with pytest.raises(RowIndexError, match=message):
        sum_neighbors(torch.ones(3, 1), torch.tensor([source, target]), num_nodes=2)


def test_rows_and_weights_of_two_element_types_are_refused() -> None:
    edge_index, x = torch.tensor([[0, 1], [1, 0]]), torch.ones(2, 4)
    with pytest.raises(DTypeError, match=r"weight: torch\.float64, but x is torch\.float32"):
        sum_neighbors(x, edge_index, torch.ones(2, 1).double(), num_nodes=2)
    with pytest.raises(DTypeError, match=r"y: torch\.bfloat16, but x is torch\.float32"):
        dot_neighbors(x, x.bfloat16(), edge_index)


def test_an_edge_that_changes_unseen_is_refused_not_followed() -> None:
    edge_index = torch.tensor([[0, 1], [0, 1]])
    neighbors_of(edge_index)
    edge_index.numpy()[0, 1] = 1 << 40  # past the counter of changes
    with pytest.raises(RowIndexError, match="edge 1 changed"):
        sum_neighbors(torch.ones(2, 1), edge_index, num_nodes=2)


# What is known of edges ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda edges: edges.add_(1),
        lambda edges: edges[0].fill_(0),
        lambda edges: edges.set_(torch.tensor([[1], [1]])),
        lambda edges: edges.resize_(2, 1),
        lambda edges: edges.share_memory_(),
        lambda edges: edges.t_(),
    ],
)
def test_edges_that_changed_or_moved_are_grouped_anew(change: Callable[[Tensor], Any]) -> None:
    edge_index = torch.tensor([[2, 1], [0, 1]])
    before = neighbors_of(edge_index)
    assert neighbors_of(edge_index) is before
    change(edge_index)
    after = neighbors_of(edge_index)
    assert after is not before
    x = torch.arange(4.0).view(4, 1)
    found = sum_neighbors(x, edge_index, num_nodes=4)
    assert torch.equal(found, sum_edge_by_edge(x, edge_index, 4))


def test_edges_put_into_shared_memory_are_read_where_they_are_now() -> None:
    edge_index = random_edges(np.random.default_rng(0), 1000, 1000, 400_000)
    x = torch.randn(1000, 3, requires_grad=True)
    for edges in (by_target(edge_index), edge_index):
        out = sum_neighbors(x, edges, num_nodes=1000)
        edges.share_memory_()  # before the backward pass
        (found,) = torch.autograd.grad(out.sum(), x)
        assert torch.equal(found[:, 0], edges[0].bincount(minlength=1000).float())


def test_what_is_known_of_edges_goes_with_them() -> None:
    edge_index = torch.tensor([[0, 1], [0, 1]])
    neighbors_of(edge_index)
    known = len(neighbors._known)
    assert neighbors_of(edge_index.clone()) is not neighbors_of(edge_index)
    assert vars(pickle.loads(pickle.dumps(edge_index))) == vars(edge_index) == {}
    held = weakref.ref(neighbors_of(edge_index))
    del edge_index
    assert held() is None
    assert len(neighbors._known) == known - 1
    with torch.inference_mode():
        edge_index = torch.tensor([[0, 1], [0, 1]])
        assert neighbors_of(edge_index) is not neighbors_of(edge_index)


def test_a_queue_carries_edges_without_what_is_known() -> None:
    edge_index = torch.tensor([[0, 1], [0, 1]])
    neighbors_of(edge_index)
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    queue.put(edge_index)  # which moves it
    x = torch.ones(2, 1)
    assert sum_neighbors(x, queue.get(), num_nodes=2).tolist() == [[1.0], [1.0]]
    assert sum_neighbors(x, edge_index, num_nodes=2).tolist() == [[1.0], [1.0]]


# As operators of torch ----------------------------------------------------------------------------


def test_the_operators_pass_the_checks_of_torch() -> None:
    edge_index = random_edges(np.random.default_rng(3), 6, 5, 20)
    for dtype, orders in ((torch.float32, (-1, 0, 1)), (torch.float64, (0,))):
        x = torch.randn(6, 2, 3, dtype=dtype, requires_grad=True)
        y = torch.randn(5, 2, 3, dtype=dtype, requires_grad=True)
        weight = torch.rand(20, 2, dtype=dtype, requires_grad=True)
        for over in orders:
            torch.library.opcheck(
                torch.ops.gnnsys.sum_neighbors, (x, edge_index, weight, 1, over, 5)
            )
            torch.library.opcheck(torch.ops.gnnsys.dot_neighbors, (x, y, edge_index, 1, over, 2))
        torch.library.opcheck(torch.ops.gnnsys.sum_neighbors, (x, edge_index, None, 0, -1, 6))

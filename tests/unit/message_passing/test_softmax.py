"""Softmax over the edges of each target, against PyG's and finite differences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.utils import softmax as softmax_of_pyg

from gnnsys._core import EdgeLogits, EdgeSoftmax, isas
from gnnsys.errors import ArgumentError, DTypeError, RowIndexError
from gnnsys.message_passing.neighbors import neighbors_of
from gnnsys.message_passing.softmax import edge_softmax
from gnnsys.message_passing.sums import dot_neighbors, sum_neighbors

SOURCES, TARGETS, EDGES = 30, 20, 300


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def random_edges(edges: int = EDGES, is_sorted: bool = False, to: int = 1) -> Tensor:
    """With hubs, repeated edges and nodes without edges; targets are at the end ``to``."""
    draws = torch.rand(2, edges, dtype=torch.float64) ** 2
    source, target = (draws * torch.tensor([[SOURCES], [TARGETS]])).long()
    if is_sorted:
        target = target.sort()[0]
    return torch.stack([source, target] if to else [target, source])


def random_terms(heads: int, edges: int = EDGES, scale: float = 1.0) -> dict[str, Tensor]:
    rows = {"logits": edges, "source": SOURCES, "target": TARGETS}
    return {
        name: (scale * torch.randn(n, heads, dtype=torch.float64)).requires_grad_()
        for name, n in rows.items()
    }


def by_pyg(
    edge_index: Tensor, terms: dict[str, Tensor], slope: float | None = None, to: int = 1
) -> Tensor:
    nodes = {"logits": slice(None), "source": edge_index[1 - to], "target": edge_index[to]}
    z: Any = sum(term[nodes[name]] for name, term in terms.items())
    if slope is not None:
        z = torch.nn.functional.leaky_relu(z, slope)
    return softmax_of_pyg(z, edge_index[to], num_nodes=TARGETS)


@pytest.mark.parametrize("to", [0, 1])
@pytest.mark.parametrize("is_sorted", [False, True])
@pytest.mark.parametrize(
    "names", [["logits"], ["source", "target"], ["target"], ["logits", "source", "target"]]
)
def test_shares_and_their_derivatives_are_those_of_pyg(
    names: list[str], is_sorted: bool, to: int
) -> None:
    torch.manual_seed(0)
    cases = [(1, EDGES, None), (3, EDGES, 0.2), (8, 0, 0.2), (17, 1, -0.5)]
    for heads, edges, slope in [*cases, (2, EDGES, 0.2), (4, EDGES, -0.5), (6, EDGES, 0.2)]:
        edge_index = random_edges(edges, is_sorted, to)
        terms = {name: x for name, x in random_terms(heads, edges).items() if name in names}
        found = edge_softmax(edge_index, num_targets=TARGETS, negative_slope=slope, to=to, **terms)
        expected = by_pyg(edge_index, terms, slope, to)
        grad = torch.randn_like(expected)
        inputs = list(terms.values())
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(
            torch.autograd.grad(found, inputs, grad),
            torch.autograd.grad(expected, inputs, grad),
            rtol=1e-12,
            atol=1e-13,
        )


def test_derivatives_are_those_of_finite_differences() -> None:
    torch.manual_seed(1)
    edge_index, terms = torch.tensor([[0, 3, 3, 1, 2], [2, 0, 2, 2, 0]]), random_terms(2, 5)
    inputs = [terms["logits"], terms["source"][:5].detach(), terms["target"][:4].detach()]
    inputs = [x.clone().requires_grad_() for x in inputs]

    def f(*inputs: Tensor) -> Tensor:
        logits, source, target = inputs
        return edge_softmax(
            edge_index,
            num_targets=4,
            logits=logits,
            source=source,
            target=target,
            negative_slope=0.3,
        )

    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exponentials_are_as_exact_as_those_of_torch(dtype: torch.dtype, scale: float) -> None:
    torch.manual_seed(2)
    edge_index = torch.arange(20_000).div(2, rounding_mode="floor").expand(2, -1)
    logits = (64 * scale * torch.randn(20_000, 5)).round().to(dtype) / 64  # differences are exact
    found = edge_softmax(edge_index, num_targets=10_000, logits=logits).double()
    expected = logits.double().view(10_000, 2, 5).softmax(1).view(20_000, 5)
    info = torch.finfo(dtype)
    torch.testing.assert_close(found, expected, rtol=4 * info.eps, atol=4 * info.tiny)


@pytest.mark.parametrize("logits", [[1e4, -1e4], [-1e4, -1e4], [0.0, -torch.inf], [1.0, torch.nan]])
def test_logits_of_any_size_give_what_torch_gives(logits: list[float]) -> None:
    edge_index = torch.zeros(2, 2, dtype=torch.int64)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        given = torch.tensor(logits, dtype=dtype).unsqueeze(-1)
        found = edge_softmax(edge_index, num_targets=3, logits=given)
        assert torch.equal(found.nan_to_num(7.0), given.softmax(0).nan_to_num(7.0))


def test_bfloat16_is_rounded_once() -> None:
    torch.manual_seed(3)
    edge_index = random_edges()
    terms = {name: x.detach().bfloat16() for name, x in random_terms(3).items()}
    wide = {name: x.float().requires_grad_() for name, x in terms.items()}
    narrow = {name: x.requires_grad_() for name, x in terms.items()}
    shares = [
        edge_softmax(edge_index, num_targets=TARGETS, negative_slope=0.2, **given)
        for given in (narrow, wide)
    ]
    assert torch.equal(shares[0], shares[1].bfloat16())
    grad = torch.randn(EDGES, 3).bfloat16()
    found = torch.autograd.grad(shares[0], list(narrow.values()), grad)
    expected = torch.autograd.grad(shares[1], list(wide.values()), grad.float())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=0.02, atol=0.02)


def test_neither_threads_nor_the_instruction_set_change_a_bit(threads: int) -> None:
    torch.manual_seed(4)
    edge_index, terms = random_edges(30_000), random_terms(5, 30_000)
    single = {name: x.detach().float().requires_grad_() for name, x in terms.items()}
    shares = edge_softmax(edge_index, num_targets=TARGETS, negative_slope=0.2, **single)
    grads = torch.autograd.grad(shares.square().sum(), list(single.values()))
    torch.set_num_threads(1)
    again = edge_softmax(edge_index, num_targets=TARGETS, negative_slope=0.2, **single)
    assert torch.equal(again, shares)
    for one, other in zip(
        torch.autograd.grad(again.square().sum(), list(single.values())), grads, strict=True
    ):
        assert torch.equal(one, other)
    edge, source, target = (x.data_ptr() for x in single.values())
    logits = EdgeLogits("float32", 5, edge, source, SOURCES, target, True, 0.2)
    for isa in isas():
        out = torch.empty_like(shares)
        arrays = neighbors_of(edge_index).groups(1).arrays()
        assert EdgeSoftmax(threads, isa).softmax(arrays, logits, out.data_ptr()) == -1
        assert torch.equal(out, shares)


def test_a_share_of_all_has_a_derivative_of_zero_whatever_came_before() -> None:
    logits = torch.tensor([[-1.0], [-2.0], [-3.0]], requires_grad=True)
    shares = edge_softmax(
        torch.tensor([[0, 0, 0], [0, 0, 1]]), num_targets=2, logits=logits, negative_slope=-0.5
    )
    (grad,) = torch.autograd.grad(shares, logits, torch.tensor([[1.0], [2.0], [3.0]]))
    assert grad[2] == 0
    assert not grad[2].signbit()  # of the slope of the edges before


def test_terms_and_gradients_that_do_not_lie_densely_are_read_as_they_are() -> None:
    torch.manual_seed(5)
    edge_index = random_edges().t().contiguous().t()
    source = torch.randn(4, SOURCES, dtype=torch.float64).t()[:, ::2].requires_grad_()
    found = edge_softmax(edge_index, num_targets=TARGETS, source=source)
    torch.testing.assert_close(found, by_pyg(edge_index, {"source": source}))
    (grad,) = torch.autograd.grad(found, source, torch.ones(1, 1).double().expand(EDGES, 2))
    assert grad.abs().max() < 1e-14  # shares add up to one, whatever the logits


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, ArgumentError, "give logits, source or target"),
        ({"logits": torch.ones(2, 1)}, ArgumentError, r"logits: of shape \(2, 1\), expected"),
        ({"logits": torch.ones(3)}, ArgumentError, r"logits: of shape \(3,\), expected"),
        ({"logits": torch.ones(())}, ArgumentError, r"logits: of shape \(\), expected"),
        ({"target": torch.ones(2, 1)}, ArgumentError, "of 4 rows"),
        ({"logits": torch.ones(3, 1), "source": torch.ones(3, 2)}, ArgumentError, "as many heads"),
        ({"logits": torch.ones(3, 1).half()}, DTypeError, "logits: torch.float16, expected"),
        (
            {"logits": torch.ones(3, 1), "source": torch.ones(3, 1).double()},
            DTypeError,
            "source: torch.float64, .* one for all",
        ),
        ({"source": torch.ones(3, 1), "to": 2}, ArgumentError, "to: 2, expected 1"),
        ({"source": torch.ones(3, 1, device="meta")}, ArgumentError, "is on meta"),
        ({"source": torch.ones(2, 1)}, RowIndexError, "up to 2 and .* below 2 and 4"),
        ({"source": torch.ones(3, 1), "num_targets": 2}, RowIndexError, "below 3 and 2"),
    ],
)
def test_terms_that_do_not_fit_are_refused(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    edge_index = torch.tensor([[0, 1, 2], [0, 0, 3]])
    with pytest.raises(error, match=message):
        edge_softmax(edge_index, **{"num_targets": 4, **given})


@pytest.mark.parametrize(
    ("edge_index", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.int32), r"torch\.int32 of shape \(2, 3\), expected"),
        (torch.zeros(2, 3), r"torch\.float32 of shape \(2, 3\), expected"),
        (torch.zeros(3, 3, dtype=torch.int64), r"of shape \(3, 3\), expected .* \(2, E\)"),
        (torch.zeros(3, dtype=torch.int64), r"of shape \(3,\), expected"),
    ],
)
def test_edges_of_another_shape_or_type_are_refused(edge_index: Tensor, message: str) -> None:
    x = torch.ones(3, 1)
    for call in (
        lambda: edge_softmax(edge_index, num_targets=3, logits=x),
        lambda: sum_neighbors(x, edge_index, num_nodes=3),
        lambda: dot_neighbors(x, x, edge_index),
    ):
        with pytest.raises(ArgumentError, match="edge_index: .*" + message):
            call()


def test_an_edge_that_changes_unseen_is_refused_not_followed() -> None:
    edge_index = torch.tensor([[0, 1], [0, 1]])
    neighbors_of(edge_index)
    edge_index.numpy()[0, 1] = 1 << 40  # past the counter of changes
    with pytest.raises(RowIndexError, match="edge 1 changed"):
        edge_softmax(edge_index, num_targets=2, source=torch.ones(2, 1))


def test_the_operator_passes_the_checks_of_torch_and_compiles() -> None:
    torch.manual_seed(6)
    edge_index = random_edges(20)
    terms = [x.detach().requires_grad_() for x in random_terms(2, 20).values()]
    torch.library.opcheck(torch.ops.gnnsys.edge_softmax, (*terms, edge_index, 0.2, 1, TARGETS))
    torch._dynamo.reset()

    def loss(source: Tensor) -> Tensor:
        shares = edge_softmax(edge_index, num_targets=TARGETS, source=source, negative_slope=0.2)
        return shares.square().sum()

    source = torch.randn(SOURCES, 2, requires_grad=True)
    results = [
        torch.autograd.grad(f(source), source)[0]
        for f in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True))
    ]
    assert torch.equal(*results)

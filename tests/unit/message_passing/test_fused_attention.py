"""Fused attention layers give what PyG's give, by operators that write no rows edge by edge."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.nn import GATConv, GATv2Conv, MessagePassing, TransformerConv

import gnnsys
from gnnsys._core import AdditiveRows, EdgeSoftmax, isas
from gnnsys.errors import ArgumentError, DTypeError, RowIndexError
from gnnsys.message_passing import attention_layers
from gnnsys.message_passing.additive import additive_logits
from gnnsys.message_passing.neighbors import neighbors_of

NODES, TARGETS, EDGES, CHANNELS, FEATURES = 40, 15, 200, 7, 3
DOUBLE = torch.float64


def random_edges(targets: int = NODES, edges: int = EDGES) -> Tensor:
    """Unsorted, with repeated edges, self loops and nodes without edges."""
    draws = torch.rand(2, edges, dtype=DOUBLE) ** 2
    return (draws * torch.tensor([[NODES], [targets]])).long()


@pytest.fixture
def attended(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls of the softmax: whether the fast path was taken."""
    calls: list[Any] = []
    edge_softmax = attention_layers.edge_softmax

    def note(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(kwargs)
        return edge_softmax(*args, **kwargs)

    monkeypatch.setattr(attention_layers, "edge_softmax", note)
    return calls


def results_of(layer: Any, run: Callable[[Any], Any], inputs: list[Tensor]) -> list[Any]:
    """Outputs, and the derivatives of the first by inputs and parameters."""
    found = run(layer)
    out, more = (found, ()) if isinstance(found, Tensor) else (found[0], found[1])
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    loss = (out * weights).sum() + out.square().sum()
    parameters = list(layer.parameters())
    return [out, *more, *torch.autograd.grad(loss, [*inputs, *parameters], allow_unused=True)]


def agree(layer: Any, run: Callable[[Any], Any], inputs: list[Tensor], bound: float) -> None:
    expected = results_of(layer, run, inputs)
    found = results_of(gnnsys.fuse(layer), run, inputs)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=bound, atol=bound)


LAYERS: dict[str, Callable[..., MessagePassing]] = {
    "gat": lambda **more: GATConv(CHANNELS, 5, heads=3, **more),
    "gat wide": lambda **more: GATConv(CHANNELS, 16, heads=8, concat=False, residual=True, **more),
    "gat one head": lambda **more: GATConv(CHANNELS, 1, bias=False, negative_slope=-0.5, **more),
    "gat mean": lambda **more: GATConv(CHANNELS, 3, heads=2, aggr="mean", **more),
    "gat two weights": lambda **more: GATConv((CHANNELS, CHANNELS), 3, heads=2, **more),
    "gatv2": lambda **more: GATv2Conv(CHANNELS, 5, heads=3, **more),
    "gatv2 shared": lambda **more: GATv2Conv(
        CHANNELS, 8, heads=2, concat=False, share_weights=True, residual=True, **more
    ),
    "gatv2 wide": lambda **more: GATv2Conv(CHANNELS, 17, bias=False, **more),
    "transformer": lambda **more: TransformerConv(CHANNELS, 5, heads=3, **more),
    "transformer beta": lambda **more: TransformerConv(
        CHANNELS, 4, heads=2, beta=True, concat=False, **more
    ),
    "transformer alone": lambda **more: TransformerConv(CHANNELS, 6, root_weight=False, **more),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_outputs_coefficients_and_gradients_are_those_of_pyg(
    name: str, dtype: torch.dtype, attended: list[Any]
) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]().to(dtype)
    x = torch.randn(NODES, CHANNELS, dtype=dtype, requires_grad=True)
    edges, bound = random_edges(), 1e-4 if dtype == torch.float32 else 1e-12
    for given in (edges, edges[:, edges[1].argsort(stable=True)], edges[:, :0]):
        for more in ({}, {"return_attention_weights": True}):
            attended.clear()
            plain = copy.deepcopy(layer)
            agree(plain, lambda layer, e=given, m=more: layer(x, e, **m), [x], bound)
            assert attended
    assert len(gnnsys.fuse.report(plain).fused) == 1


@pytest.mark.parametrize("loops", [False, True])
@pytest.mark.parametrize("fill", ["mean", "max", 2.0])
@pytest.mark.parametrize("kind", [GATConv, GATv2Conv])
def test_features_of_edges_count_as_they_do_in_pyg(
    kind: Any, fill: Any, loops: bool, attended: list[Any]
) -> None:
    torch.manual_seed(1)
    x = torch.randn(NODES, CHANNELS, dtype=DOUBLE, requires_grad=True)
    edges = random_edges()
    for width in (1, FEATURES):
        attr = torch.randn(EDGES, width, dtype=DOUBLE, requires_grad=True)
        given = attr.squeeze(-1)
        layer = kind(
            CHANNELS, 5, heads=3, edge_dim=width, fill_value=fill, add_self_loops=loops
        ).double()

        def run(layer: Any, given: Tensor = given) -> Any:
            return layer(x, edges, given, return_attention_weights=True)

        agree(layer, run, [x, attr], 1e-12)
        assert attended


@pytest.mark.parametrize("kind", [GATConv, GATv2Conv, TransformerConv])
@pytest.mark.parametrize("channels", [CHANNELS, (CHANNELS, FEATURES)])
def test_bipartite_calls_give_the_same(kind: Any, channels: Any, attended: list[Any]) -> None:
    torch.manual_seed(2)
    x = torch.randn(NODES, CHANNELS, dtype=DOUBLE, requires_grad=True)
    width = CHANNELS if isinstance(channels, int) else channels[1]
    y = torch.randn(TARGETS, width, dtype=DOUBLE, requires_grad=True)
    edges = random_edges(TARGETS)
    layer = kind(channels, 5, heads=3).double()
    calls: list[Callable[[Any], Any]] = [lambda layer: layer((x, y), edges)]
    if kind is GATConv:
        calls.append(lambda layer: layer((x, y), edges, size=(NODES, TARGETS)))
        calls.append(lambda layer: layer((x, None), edges) + 0 * y.sum())
    for run in calls:
        attended.clear()
        agree(copy.deepcopy(layer), run, [x, y], 1e-12)
        assert attended


@pytest.mark.parametrize("name", ["gat", "gat two weights", "gatv2", "gatv2 shared", "transformer"])
def test_messages_that_flow_to_sources_give_the_same(name: str, attended: list[Any]) -> None:
    torch.manual_seed(3)
    layer = LAYERS[name](flow="target_to_source").double()
    x = torch.randn(NODES, CHANNELS, dtype=DOUBLE, requires_grad=True)
    edges = random_edges()
    agree(layer, lambda layer: layer(x, edges), [x], 1e-12)
    assert bool(attended) == (name in ("gatv2 shared", "transformer"))


@pytest.mark.parametrize("kind", [GATConv, GATv2Conv, TransformerConv])
def test_second_derivatives_are_those_of_finite_differences(kind: Any) -> None:
    torch.manual_seed(4)
    layer = gnnsys.fuse(kind(2, 2, heads=2).double())
    x = torch.randn(4, 2, dtype=DOUBLE, requires_grad=True)
    edges = torch.tensor([[0, 1, 3, 3, 0], [2, 2, 0, 1, 1]])
    parameters = dict(layer.named_parameters())

    def run(x: Tensor, *values: Tensor) -> Any:
        given = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(layer, given, (x, edges))

    assert torch.autograd.gradcheck(run, (x, *parameters.values()))
    assert torch.autograd.gradgradcheck(run, (x, *parameters.values()))


@pytest.mark.parametrize("kind", [GATConv, GATv2Conv, TransformerConv])
def test_coefficients_are_dropped_in_training_alone(kind: Any) -> None:
    torch.manual_seed(5)
    layer = gnnsys.fuse(kind(CHANNELS, 4, heads=2, dropout=0.5).double())
    x, edges = torch.randn(NODES, CHANNELS, dtype=DOUBLE), random_edges()
    assert torch.equal(layer.eval()(x, edges), layer(x, edges))
    layer.train()
    out, (_, alpha) = layer(x, edges, return_attention_weights=True)
    assert not torch.equal(out, layer(x, edges))
    if kind is not TransformerConv:  # which gives them as they were before
        expected = layer.eval()(x, edges, return_attention_weights=True)[1][1]
        assert 0.3 < (alpha == 0).double().mean() < 0.7
        assert torch.equal(alpha[alpha > 0], 2 * expected[alpha > 0])


@pytest.mark.parametrize("kind", [GATConv, GATv2Conv, TransformerConv])
def test_bfloat16_and_autocast_agree_to_their_rounding(kind: Any, attended: list[Any]) -> None:
    torch.manual_seed(6)
    layer = gnnsys.fuse(kind(CHANNELS, 4, heads=2))
    x, edges = torch.randn(NODES, CHANNELS), random_edges()
    exact = layer(x, edges)
    attended.clear()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x, edges).float(), exact, rtol=0.05, atol=0.05)
    narrow = copy.deepcopy(layer).bfloat16()(x.bfloat16(), edges)
    torch.testing.assert_close(narrow.float(), exact, rtol=0.05, atol=0.05)
    assert len(attended) == 2


@pytest.mark.parametrize("kind", [GATConv, GATv2Conv, TransformerConv])
def test_autocast_to_half_precision_goes_the_way_of_pyg(kind: Any, attended: list[Any]) -> None:
    torch.manual_seed(6)
    layer = kind(CHANNELS, 4, heads=2)
    x, edges = torch.randn(NODES, CHANNELS), random_edges()
    with torch.autocast("cpu", torch.float16):
        expected, found = layer(x, edges), gnnsys.fuse(copy.deepcopy(layer))(x, edges)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
    assert not attended


@pytest.mark.parametrize("kind", [GATConv, GATv2Conv, TransformerConv])
def test_hooks_and_transforms_go_the_way_of_pyg(kind: Any, attended: list[Any]) -> None:
    torch.manual_seed(7)
    x, edges = torch.randn(NODES, CHANNELS), random_edges()
    layer = gnnsys.fuse(kind(CHANNELS, 4, heads=2))
    exact = layer(x, edges)
    attended.clear()
    torch.testing.assert_close(
        torch.func.jvp(lambda x: layer(x, edges), (x,), (x,))[0], exact, rtol=1e-5, atol=1e-5
    )
    seen: list[Any] = []
    layer.register_message_forward_hook(lambda *args: seen.append(args))
    torch.testing.assert_close(layer(x, edges), exact)
    if kind is not TransformerConv:
        hooked = gnnsys.fuse(kind(CHANNELS, 4))
        hooked.register_edge_update_forward_hook(lambda *args: seen.append(args))
        hooked(x, edges)
    assert len(seen) == (1 if kind is TransformerConv else 2)
    assert not attended


@pytest.mark.parametrize("kind", [GATv2Conv, TransformerConv])
def test_compiled_layers_go_the_way_of_pyg(kind: Any, attended: list[Any]) -> None:
    torch.manual_seed(9)
    x, edges = torch.randn(NODES, CHANNELS), random_edges()
    layer = kind(CHANNELS, 4, heads=2)
    exact = layer(x, edges)
    torch._dynamo.reset()
    compiled = torch.compile(gnnsys.fuse(layer), backend="aot_eager")
    torch.testing.assert_close(compiled(x, edges), exact)
    assert not attended


def test_a_layer_that_computes_anything_else_keeps_its_forward(attended: list[Any]) -> None:
    class Sharper(GATConv):
        def edge_update(self, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
            return super().edge_update(*args, **kwargs).square()

    class Shifted(TransformerConv):
        def message(self, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
            return super().message(*args, **kwargs) + 1

    class Even(GATConv):
        def edge_updater(self, edge_index: Tensor, **kwargs: Any) -> Tensor:  # type: ignore[override]
            return torch.ones(edge_index.size(1), self.heads)

    class Named(GATv2Conv):
        pass

    kinds = (Sharper, Shifted, Even, Named)
    for kind in kinds:
        kind(CHANNELS, 2)  # PyG writes functions into classes when it makes the first layer
    found = [attention_layers.attention_forward(kind) for kind in kinds]
    assert found[:3] == [None] * 3
    assert found[3] is not None
    (told,) = gnnsys.fuse.report(gnnsys.fuse(Shifted(CHANNELS, 2))).layers
    assert "not literally x_j" in told.reason


def double(layer: Any, name: str) -> None:
    """Sets a function on a layer itself, whose results are twice those of its class's."""
    function = getattr(layer, name)

    @functools.wraps(function)
    def doubled(*args: Any, **kwargs: Any) -> Tensor:
        return 2 * function(*args, **kwargs)

    doubled.__module__ = __name__
    setattr(layer, name, doubled)


@pytest.mark.parametrize("kind", [GATConv, GATv2Conv, TransformerConv])
@pytest.mark.parametrize("first", [False, True])
def test_changes_by_hand_count(kind: Any, first: bool, attended: list[Any]) -> None:
    x, edges = torch.randn(NODES, CHANNELS, dtype=DOUBLE), random_edges()
    for name in ("propagate", "message", "aggregate", "update", "edge_updater", "edge_update"):
        if kind is TransformerConv and name.startswith("edge_"):
            continue  # it has none
        layer, other = (kind(CHANNELS, 4, heads=2).double() for _ in range(2))
        other.load_state_dict(layer.state_dict())
        if first:
            double(other, name)
        gnnsys.fuse(other)
        if not first:
            double(other, name)
        double(layer, name)
        torch.testing.assert_close(other(x, edges), layer(x, edges))
        (told,) = gnnsys.fuse.report(other).layers
        assert told.reason == f"its {name} is set on the layer itself, not on its class"
    assert not attended


@pytest.mark.parametrize("kind", [GATConv, GATv2Conv])
def test_a_call_in_inference_mode_leaves_nothing_that_training_trips_over(kind: Any) -> None:
    torch.manual_seed(8)
    layer = kind(CHANNELS, 4, heads=2, edge_dim=FEATURES).double()
    x = torch.randn(NODES, CHANNELS, dtype=DOUBLE, requires_grad=True)
    edges, attr = random_edges(), torch.randn(EDGES, FEATURES, dtype=DOUBLE, requires_grad=True)

    def run(layer: Any) -> Any:
        out, (edge_index, alpha) = layer(x, edges, attr, return_attention_weights=True)
        return out.sum() + alpha.square().sum(), (edge_index, alpha)

    with torch.inference_mode():
        run(gnnsys.fuse(copy.deepcopy(layer)))
    agree(layer, run, [x, attr], 1e-12)


def put_hook(layer: torch.nn.Module) -> None:
    layer.register_forward_hook(lambda module, inputs, out: out.sin())


def set_forward(layer: torch.nn.Module) -> None:
    forward = layer.forward
    layer.forward = lambda x: forward(x).sin()  # type: ignore[method-assign]


@pytest.mark.parametrize("change", [put_hook, set_forward])
def test_a_linear_layer_that_does_more_is_not_folded_into_what_follows(
    change: Callable[[torch.nn.Module], None], attended: list[Any]
) -> None:
    torch.manual_seed(8)
    layer = GATConv(CHANNELS, 4, heads=2).double()
    change(layer.lin)
    x = torch.randn(NODES, CHANNELS, dtype=DOUBLE, requires_grad=True)
    edges = random_edges()
    agree(layer, lambda layer: layer(x, edges), [x], 1e-12)
    assert attended


@pytest.mark.parametrize("kind", [GATConv, GATv2Conv, TransformerConv])
@pytest.mark.parametrize("more", [(), (torch.tensor([[0, 1], [1, 2]]), torch.ones(3, 2))])
def test_arguments_that_pyg_refuses_raise_what_it_raises(kind: Any, more: Any) -> None:
    layer, x = kind(CHANNELS, 2), torch.randn(3, CHANNELS)
    with pytest.raises((AssertionError, IndexError, TypeError, RuntimeError)) as expected:
        layer(x, *more)
    with pytest.raises(type(expected.value)) as found:
        gnnsys.fuse(layer)(x, *more)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize(
    "edges",
    [
        torch.tensor([[0, 3], [0, 1]]),
        torch.tensor([[0, 1], [0, 3]]),
        torch.tensor([[0, -1], [0, 1]]),
    ],
)
@pytest.mark.parametrize("kind", [GATConv, GATv2Conv, TransformerConv])
def test_edges_that_pyg_refuses_raise_what_it_raises(kind: Any, edges: Tensor) -> None:
    layer, x = kind(CHANNELS, 2), torch.randn(3, CHANNELS)
    with pytest.raises((IndexError, ValueError, RuntimeError)) as expected:
        layer(x, edges)
    with pytest.raises(type(expected.value)) as found:
        gnnsys.fuse(layer)(x, edges)
    assert str(found.value) == str(expected.value)


# Logits of additive attention ---------------------------------------------------------------------


def additive_by_torch(source: Tensor, target: Tensor, att: Tensor, edges: Tensor) -> Tensor:
    u = source[edges[0]] + target[edges[1]]
    return (torch.nn.functional.leaky_relu(u, 0.2) * att).sum(-1)


@pytest.mark.parametrize("channels", [1, 8, 13])
def test_additive_logits_are_those_of_torch_in_whatever_threads(channels: int) -> None:
    torch.manual_seed(9)
    edges, heads = random_edges(TARGETS), 3
    shapes = [(NODES, heads, channels), (TARGETS, heads, channels), (heads, channels)]
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    grad, before, results = torch.randn(EDGES, heads), torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        out = additive_logits(*inputs, edges, negative_slope=0.2)
        results.append([out, *torch.autograd.grad(out, inputs, grad)])
    torch.set_num_threads(before)
    exact = [x.double() for x in inputs]
    out = additive_by_torch(*exact, edges)
    expected = [out, *torch.autograd.grad(out, inputs, grad.double())]
    for first, second, third, other in zip(*results, expected, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, third)
        torch.testing.assert_close(first.double(), other.double(), rtol=1e-5, atol=1e-5)
    x, y, att = (x.data_ptr() for x in inputs)
    rows = AdditiveRows("float32", heads, channels, x, NODES, y, 0, att, 0.2)
    for isa in isas():
        again = torch.empty(EDGES, heads)
        arrays = neighbors_of(edges).groups(1).arrays()
        assert EdgeSoftmax(2, isa).additive(arrays, rows, again.data_ptr()) == -1
        assert torch.equal(again, results[0][0])


def test_derivatives_of_additive_logits_are_those_of_finite_differences() -> None:
    torch.manual_seed(10)
    edges = torch.tensor([[0, 2, 2, 1], [1, 0, 1, 1]])
    shapes = [(3, 2, 2), (2, 2, 2), (2, 2), (4, 2, 2)]
    inputs = [torch.randn(shape, dtype=DOUBLE, requires_grad=True) for shape in shapes]

    def f(source: Tensor, target: Tensor, att: Tensor, edge: Tensor) -> Tensor:
        return additive_logits(source, target, att, edges, negative_slope=0.3, edge=edge)

    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs)
    loss = f(*inputs).square().sum()
    natively = torch.autograd.grad(loss, inputs, retain_graph=True)
    by_torch = torch.autograd.grad(loss, inputs, create_graph=True)  # as on a GPU
    torch.testing.assert_close(natively, by_torch, rtol=1e-12, atol=1e-12)
    source, target, att, edge = (x.detach().requires_grad_() for x in inputs)
    torch.library.opcheck(torch.ops.gnnsys.additive_logits, (source, target, edge, att, edges, 0.3))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"att": torch.ones(1, 1, 2)}, ArgumentError, r"att: of shape \(1, 1, 2\), expected \(h"),
        ({"source": torch.ones(3, 1, 3)}, ArgumentError, r"source: .*\(3, 1, 3\), .* 2 channels"),
        ({"target": torch.ones(3, 2)}, ArgumentError, r"target: of shape \(3, 2\), expected"),
        ({"edge": torch.ones(3, 1, 2)}, ArgumentError, r"edge: of shape \(3, 1, 2\), .* of 2 rows"),
        ({"target": torch.ones(3, 1, 2).double()}, DTypeError, r"target: torch\.float64, expected"),
        ({"att": torch.ones(1, 2).half()}, DTypeError, r"att: torch\.float16, expected"),
        ({"source": torch.ones(3, 1, 2, device="meta")}, ArgumentError, "source: is on meta"),
        ({"edge_index": torch.zeros(2, dtype=torch.int64)}, ArgumentError, r"of shape \(2,\), exp"),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    x, edge_index = torch.ones(3, 1, 2), torch.tensor([[0, 1], [2, 0]])
    arguments = {"source": x, "target": x, "att": torch.ones(1, 2), "edge_index": edge_index}
    with pytest.raises(error, match=message):
        additive_logits(**(arguments | given), negative_slope=0.2)


def test_nodes_without_rows_are_refused() -> None:
    x, att = torch.ones(2, 1, 1), torch.ones(1, 1)
    for edges in ([[0, 2], [0, 1]], [[0, 1], [0, 2]]):
        with pytest.raises(RowIndexError, match="expected below 2 and 2"):
            additive_logits(x, x, att, torch.tensor(edges), negative_slope=0.2)
    edge_index = torch.tensor([[0, 1], [0, 1]])
    neighbors_of(edge_index)
    edge_index.numpy()[0, 1] = 1 << 40  # past the counter of changes
    with pytest.raises(RowIndexError, match="edge 1 changed"):
        additive_logits(x, x, att, edge_index, negative_slope=0.2)

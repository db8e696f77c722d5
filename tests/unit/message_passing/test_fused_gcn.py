"""Fused layers of GCN: PyG's numbers, normalised once for all layers of a batch."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.profiler import profile
from torch_geometric import EdgeIndex
from torch_geometric.nn import GCN, GCNConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm

import gnnsys
from gnnsys.message_passing import gcn_layers
from gnnsys.message_passing.self_loops import with_self_loops

NODES, EDGES, CHANNELS = 30, 150, 6
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def random_edges(seed: int = 0) -> Tensor:
    """In no order, with repeated edges, several loops of a node, and nodes without edges."""
    generator = torch.Generator().manual_seed(seed)
    edge_index = (torch.rand(2, EDGES, generator=generator) ** 2 * (NODES - 2)).long()
    edge_index[1, ::6] = edge_index[0, ::6]
    return edge_index


@pytest.fixture
def normalised(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls that compute weights: whether and how often ours are."""
    calls: list[Any] = []
    normalise = gcn_layers._normalise

    def note(*args: Any) -> Any:
        calls.append(args)
        return normalise(*args)

    monkeypatch.setattr(gcn_layers, "_normalise", note)
    return calls


def fused(layer: torch.nn.Module) -> Any:
    return gnnsys.fuse(copy.deepcopy(layer))


def agree(layer: Any, other: Any, *inputs: Any) -> None:
    """Outputs and the derivatives by floating inputs and parameters."""
    results = []
    for one in (layer, other):
        given = [*inputs, *one.parameters()]
        by = [t for t in given if isinstance(t, Tensor) and t.requires_grad]
        out = one(*inputs)
        results.append([out, *torch.autograd.grad(out.pow(2).sum(), by)])
    for expected, found in zip(*results, strict=True):
        bound = TOLERANCE[expected.dtype]
        torch.testing.assert_close(found, expected, rtol=bound, atol=bound * 10)


@pytest.mark.parametrize("weights", ["none", "given", "learnt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"improved": True, "bias": False},
        {"add_self_loops": False},
        {"flow": "target_to_source"},
    ],
    ids=str,
)
def test_outputs_and_gradients_are_those_of_pyg(
    options: dict[str, Any], dtype: torch.dtype, weights: str, normalised: list[Any]
) -> None:
    torch.manual_seed(0)
    layer = GCNConv(CHANNELS, 4, **options).to(dtype)
    x = torch.randn(NODES, CHANNELS, dtype=dtype, requires_grad=True)
    weight = None
    if weights != "none":
        weight = (torch.rand(EDGES, dtype=dtype) + 0.1).requires_grad_(weights == "learnt")
    agree(layer, fused(layer), x, random_edges(), weight)
    assert len(normalised) == 1


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("weighted", [False, True])
def test_weights_are_those_of_gcn_norm(weighted: bool, end: int) -> None:
    edge_index = random_edges(1)
    weight = torch.rand(EDGES, dtype=torch.float64) if weighted else None
    edges, ours = gcn_layers._normalise(edge_index, weight, NODES, 2.0, end, torch.float64)
    flow = ("target_to_source", "source_to_target")[end]
    expected = gcn_norm(edge_index, weight, NODES, True, True, flow, torch.float64)
    order = with_self_loops(edge_index, NODES).given_order
    assert torch.equal(edges[:, order], expected[0])
    torch.testing.assert_close(ours[order, 0], expected[1], rtol=1e-14, atol=0)


def test_sums_of_products_are_those_of_pyg_bit_for_bit() -> None:
    torch.manual_seed(1)
    layer, x = GCNConv(CHANNELS, 4), torch.randn(NODES, CHANNELS, requires_grad=True)
    assert torch.equal(layer(x, random_edges()), fused(layer)(x, random_edges()))


@pytest.mark.parametrize(
    ("out_channels", "differentiated", "summed"),
    [(2, False, 2), (3, False, 6), (12, False, 6), (6, True, 6), (7, True, 6), (5, True, 5)],
)
def test_the_side_of_the_product_is_summed_that_is_less_work(
    out_channels: int, differentiated: bool, summed: int
) -> None:
    layer = gnnsys.fuse(GCNConv(CHANNELS, out_channels))
    x, edges = torch.randn(NODES, CHANNELS, requires_grad=differentiated), random_edges()
    with profile(record_shapes=True) as run:
        layer(x, edges).sum().backward()
    calls = [call for call in run.function_events or () if call.name == "gnnsys::sum_neighbors"]
    widths = [call.input_shapes[0][1] for call in calls]
    assert widths == [summed] * (2 if differentiated or summed == out_channels else 1)
    seen: list[Tensor] = []
    layer.lin.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs))
    layer(x, edges)
    assert torch.equal(seen[0], x)


def test_all_layers_of_a_batch_share_one_normalisation(normalised: list[Any]) -> None:
    model = gnnsys.fuse(GCN(CHANNELS, 8, 3, 4))
    x, edges, weight = torch.randn(NODES, CHANNELS), random_edges(), torch.rand(EDGES)

    def count(*more: Tensor) -> int:
        normalised.clear()
        model(x, edges, *more).sum().backward()
        return len(normalised)

    assert (count(), count()) == (1, 0)
    assert (count(weight), count(weight), count()) == (1, 0, 0)
    assert (count(weight.clone()), count(weight.mul_(2)), count(weight)) == (1, 1, 0)
    edges[0, 0] += 1
    assert (count(), count(weight), count()) == (1, 1, 0)
    with torch.inference_mode():
        edges = random_edges(2)
        model(x, edges)
    with torch.no_grad():
        edges = edges.clone()
        normalised.clear()
        model(x, edges)
    assert len(normalised) == 1


@pytest.mark.parametrize("optimiser", [{"fused": True}, {}])
def test_weights_that_an_optimiser_moved_are_normalised_anew(optimiser: dict[str, bool]) -> None:
    weight = torch.nn.Parameter(torch.rand(EDGES) + 1)
    layer, x, edges = GCNConv(CHANNELS, 4), torch.randn(NODES, CHANNELS), random_edges()
    other, adam = fused(layer), torch.optim.Adam([weight], lr=0.1, **optimiser)
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(other(x, edges, weight), layer(x, edges, weight))
        weight.grad = torch.rand(EDGES)
        adam.step()


@pytest.mark.parametrize("weighted", [False, True])
def test_tensors_may_be_of_inference_mode_or_change_before_the_backward(weighted: bool) -> None:
    layer, x = GCNConv(CHANNELS, 4), torch.randn(NODES, CHANNELS, requires_grad=True)
    with torch.inference_mode():
        inputs = [x.detach().clone(), random_edges(), *([torch.rand(EDGES)] * weighted)]
        fused(layer)(*inputs)
    agree(layer, fused(layer), x, *inputs[1:])
    inputs = [t.clone() for t in inputs[1:]]
    expected = torch.autograd.grad(layer(x, *inputs).sum(), x)
    out = fused(layer)(x, *inputs)
    for t in inputs:
        t.zero_()
    torch.testing.assert_close(torch.autograd.grad(out.sum(), x), expected)


def test_what_is_remembered_goes_with_the_edges(normalised: list[Any]) -> None:
    edges, weight = random_edges(3), torch.rand(EDGES)
    layer = gnnsys.fuse(GCNConv(CHANNELS, 4))
    layer(torch.randn(NODES, CHANNELS), edges, weight)
    normalised.clear()
    looped = weakref.ref(with_self_loops(edges, NODES))
    assert len(gcn_layers._known.of(weight) or ()) == 1
    del edges
    gc.collect()
    assert looped() is None
    assert len(gcn_layers._known.of(weight) or ()) == 0


class Doubled(GCNConv):
    """Has a message of its own, which leaves weights out."""

    def message(self, x_j: Tensor) -> Tensor:
        return x_j


class Twice(GCNConv):
    def forward(self, x: Tensor, edge_index: Any, edge_weight: Any = None) -> Tensor:
        return super().forward(super().forward(x, edge_index, edge_weight), edge_index)


LEFT: dict[str, Callable[[], GCNConv]] = {
    "unnormalised": lambda: GCNConv(CHANNELS, CHANNELS, normalize=False),
    "cached": lambda: GCNConv(CHANNELS, CHANNELS, cached=True),
    "mean": lambda: GCNConv(CHANNELS, CHANNELS, aggr="mean"),
    "own message": lambda: Doubled(CHANNELS, CHANNELS),
    "own forward": lambda: Twice(CHANNELS, CHANNELS),
}


@pytest.mark.parametrize("name", LEFT)
def test_layers_that_do_other_things_go_the_way_of_pyg(name: str, normalised: list[Any]) -> None:
    torch.manual_seed(2)
    layer = LEFT[name]()
    other = fused(layer)
    x = torch.randn(NODES, CHANNELS, requires_grad=True)
    for seed in (4, 5):  # a layer that caches goes on with the first edges
        agree(layer, other, x, random_edges(seed))
    assert not normalised
    assert [one.reason for one in gnnsys.fuse.report(other).layers] == [""]


def show(layer: Any) -> None:
    layer.register_message_forward_hook(lambda module, inputs, out: out * 2)


def replace_propagate(layer: Any) -> None:
    layer.propagate = lambda edge_index, x, edge_weight: x * edge_weight.sum()


def replace_message(layer: Any) -> None:
    layer.message = lambda x_j, edge_weight: x_j * 2


@pytest.mark.parametrize("change", [show, replace_propagate, replace_message])
def test_changes_by_hand_count(change: Callable[[Any], None], normalised: list[Any]) -> None:
    torch.manual_seed(3)
    layer = GCNConv(CHANNELS, 4)
    other = fused(layer)
    for one in (layer, other):
        change(one)
    agree(layer, other, torch.randn(NODES, CHANNELS), random_edges(), torch.rand(EDGES))
    assert not normalised


def test_rows_are_not_summed_before_a_linear_layer_that_has_its_own_forward() -> None:
    layer = GCNConv(CHANNELS, 2 * CHANNELS).double()
    forward = layer.lin.forward
    layer.lin.forward = lambda x: forward(x).sin()
    x, edges = torch.randn(NODES, CHANNELS).double(), random_edges()
    expected = layer(x, edges)
    torch.testing.assert_close(gnnsys.fuse(layer)(x, edges), expected)


@pytest.mark.parametrize(
    ("x", "edges", "weight"),
    [
        (torch.ones(2, NODES, CHANNELS), random_edges(), None),
        (torch.ones(NODES, CHANNELS), EdgeIndex(random_edges(), sparse_size=(NODES, NODES)), None),
    ],
    ids=["batch of graphs", "EdgeIndex"],
)
def test_other_inputs_go_the_way_of_pyg(
    x: Tensor, edges: Any, weight: Any, normalised: list[Any]
) -> None:
    layer = GCNConv(CHANNELS, 4)
    torch.testing.assert_close(fused(layer)(x, edges, weight), layer(x, edges, weight))
    assert not normalised


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.ones(3, CHANNELS),),
        (torch.ones(3, CHANNELS), torch.tensor([[0, 3], [1, 1]])),
        (torch.ones(3, CHANNELS), torch.tensor([[0, -1], [1, 1]])),
        (torch.ones(3, CHANNELS), torch.tensor([[0, 1], [1, 1]]), torch.ones(3)),
        (torch.ones(3, CHANNELS), torch.tensor([[0, 1], [1, 1]]), torch.ones(2).long()),
        ((torch.ones(3, CHANNELS), None), torch.tensor([[0, 1], [1, 1]])),
    ],
)
def test_what_pyg_refuses_raises_what_it_raises(arguments: Any) -> None:
    layer = GCNConv(CHANNELS, 4)
    with pytest.raises((IndexError, TypeError, ValueError, RuntimeError)) as expected:
        layer(*arguments)
    with pytest.raises(type(expected.value)) as found:
        fused(layer)(*arguments)
    assert str(found.value) == str(expected.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_model_compiles_as_one_graph(normalised: list[Any]) -> None:
    torch._dynamo.reset()
    torch.manual_seed(4)
    model = GCN(CHANNELS, 8, 2, 4)
    compiled = torch.compile(fused(model), backend="aot_eager", fullgraph=True)
    x, edges, weight = torch.randn(NODES, CHANNELS), random_edges(), torch.rand(EDGES)
    agree(model, compiled, x, edges, weight)
    assert len(normalised) == 1


def test_bfloat16_is_as_exact_as_its_rounding(normalised: list[Any]) -> None:
    torch.manual_seed(5)
    layer, x = GCNConv(CHANNELS, 4), torch.randn(NODES, CHANNELS)
    exact, other = layer(x, random_edges()), fused(layer)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = other(x, random_edges()), layer(x, random_edges())
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected)
    found = other.bfloat16()(x.bfloat16(), random_edges())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=0.03, atol=0.03)
    assert len(normalised) == 2
    with torch.autocast("cpu", torch.float16):
        half = fused(layer := GCNConv(CHANNELS, 4))
        assert torch.equal(half(x, random_edges()), layer(x, random_edges()))
    assert len(normalised) == 2


def test_gradients_of_gradients_are_right() -> None:
    torch.manual_seed(6)
    edges = torch.tensor([[0, 2, 1, 3, 3], [0, 1, 1, 2, 0]])
    layer = gnnsys.fuse(GCNConv(2, 2).double())
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: layer(x, edges), (x,))
    given = (x, weight, *layer.parameters())
    assert torch.autograd.gradgradcheck(lambda x, w, *p: layer(x, edges, w), given)

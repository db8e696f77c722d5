"""Fused layers and models of PyG give what they gave before, and tell which they are."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import HeteroData
from torch_geometric.nn import (
    GAT,
    GCN,
    GIN,
    GATConv,
    GATv2Conv,
    GCNConv,
    GINConv,
    GINEConv,
    GraphConv,
    GraphSAGE,
    HeteroConv,
    LGConv,
    MessagePassing,
    SAGEConv,
    SGConv,
    TAGConv,
    to_hetero,
)

import gnnsys
from gnnsys._core import count_until_zeros
from gnnsys.errors import DTypeError
from gnnsys.loaders import CSC, NeighborSampler
from gnnsys.message_passing import fused_layers, gcn_layers, linear
from gnnsys.message_passing.messages import Message, read_message

NODES, EDGES, CHANNELS = 40, 240, 8


def random_edges(seed: int = 0, nodes: int = NODES, edges: int = EDGES) -> Tensor:
    """Sorted by target, with repeated edges, self loops and nodes without edges."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(2, edges, generator=generator, dtype=torch.float64)
    edge_index = (draws**2 * nodes).long()
    return edge_index[:, edge_index[1].argsort(stable=True)]


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls of the native sum: whether the fast path was taken."""
    calls: list[Any] = []
    sum_neighbors = fused_layers.sum_neighbors

    def note(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(kwargs)
        return sum_neighbors(*args, **kwargs)

    for module in (fused_layers, gcn_layers):
        monkeypatch.setattr(module, "sum_neighbors", note)
    return calls


def assert_same(layer: torch.nn.Module, run: Callable[[Any], Tensor], inputs: list[Tensor]) -> None:
    """Outputs and gradients before and after fusing agree to the rounding of their sums."""
    results = []
    for _ in range(2):
        out = run(layer)
        grad = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
        differentiated = [*inputs, *layer.parameters()]
        grads = torch.autograd.grad(out, differentiated, grad, allow_unused=True)
        results.append([out, *grads])
        assert gnnsys.fuse(layer) is layer
    agree(*results)


def agree(plain: list[Tensor | None], fast: list[Tensor | None]) -> None:
    """Up to some roundings of what was summed; a derivative may be zero but for these."""
    assert [x is None for x in plain] == [x is None for x in fast]
    pairs = [(x, y) for x, y in zip(plain, fast, strict=True) if x is not None and y is not None]
    scale = max(float(x.detach().abs().max()) for x, _ in pairs)
    for expected, found in pairs:
        assert type(found) is Tensor
        bound = 16 * torch.finfo(found.dtype).eps
        torch.testing.assert_close(found, expected, rtol=bound, atol=bound * scale)


def mlp(channels: int = CHANNELS) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(channels, 5), torch.nn.ReLU())


SUMMED: dict[str, Callable[[], MessagePassing]] = {
    "sage": lambda: SAGEConv(CHANNELS, 5),
    "sage sum": lambda: SAGEConv(CHANNELS, 5, aggr="sum"),
    "sage project": lambda: SAGEConv(CHANNELS, 5, project=True, normalize=True, bias=False),
    "sage backwards": lambda: SAGEConv(CHANNELS, 5, flow="target_to_source"),
    "gin": lambda: GINConv(mlp(), train_eps=True),
    "graph": lambda: GraphConv(CHANNELS, 5),
    "graph mean": lambda: GraphConv(CHANNELS, 5, aggr="mean"),
    "graph backwards": lambda: GraphConv(CHANNELS, 5, aggr="mean", flow="target_to_source"),
    "gcn": lambda: GCNConv(CHANNELS, 5),
    "gcn without loops": lambda: GCNConv(CHANNELS, 5, add_self_loops=False),
    "gcn plain": lambda: GCNConv(CHANNELS, 5, normalize=False),
    "gat": lambda: GATConv(CHANNELS, 3, heads=4),
    "gat one head": lambda: GATConv(CHANNELS, 5, heads=1, concat=False),
    "gat mean": lambda: GATConv(CHANNELS, 16, heads=2, concat=False, add_self_loops=False),
    "gatv2": lambda: GATv2Conv(CHANNELS, 3, heads=4),
    "lightgcn": lambda: LGConv(),
    "sgc": lambda: SGConv(CHANNELS, 5, K=2),
    "tag": lambda: TAGConv(CHANNELS, 5, K=2),
}
LEFT_ALONE: dict[str, tuple[Callable[[], MessagePassing], str]] = {
    "sage max": (lambda: SAGEConv(CHANNELS, 5, aggr="max"), "aggregates by max"),
    "sage softmax": (lambda: SAGEConv(CHANNELS, 5, aggr="softmax"), "aggregates by softmax"),
    "sage median": (lambda: SAGEConv(CHANNELS, 5, aggr="median"), "aggregates by median"),
    "sage lstm": (lambda: SAGEConv(CHANNELS, 5, aggr="lstm"), "aggregates by lstm"),
    "sage many": (lambda: SAGEConv(CHANNELS, 5, aggr=["mean", "sum"]), "aggregates by"),
    "gine": (lambda: GINEConv(mlp(), edge_dim=CHANNELS), "not literally x_j"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SUMMED)
def test_a_fused_layer_gives_the_same_outputs_and_gradients(
    name: str, dtype: torch.dtype, native: list[Any]
) -> None:
    torch.manual_seed(0)
    layer = SUMMED[name]().to(dtype)
    x = torch.randn(NODES, CHANNELS, dtype=dtype, requires_grad=True)
    assert_same(layer, lambda layer: layer(x, random_edges()), [x])
    assert native
    assert len(gnnsys.fuse.report(layer).fused) == 1


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_other_layers_are_left_alone_and_the_report_says_why(name: str) -> None:
    make, reason = LEFT_ALONE[name]
    layer = make()
    kind, state = type(layer), dict(layer.__dict__)
    (told,) = gnnsys.fuse.report(gnnsys.fuse(layer)).layers
    assert type(layer) is kind
    assert layer.__dict__ == state
    assert reason in told.reason
    assert f"{kind.__name__}: left alone: {told.reason}" in str(gnnsys.fuse.report(layer))


@pytest.mark.parametrize("learnt", [False, True])
@pytest.mark.parametrize("name", ["graph", "graph mean", "gcn", "gcn plain", "lightgcn", "tag"])
def test_edge_weights_give_the_same_with_and_without_gradients(
    name: str, learnt: bool, native: list[Any]
) -> None:
    torch.manual_seed(1)
    x = torch.randn(NODES, CHANNELS, requires_grad=True)
    weight = torch.rand(EDGES, requires_grad=learnt)
    inputs = [x, weight] if learnt else [x]
    assert_same(SUMMED[name](), lambda layer: layer(x, random_edges(), weight), inputs)
    assert native


def test_weights_of_another_type_promote_as_they_do_elsewhere(native: list[Any]) -> None:
    layer = GCNConv(CHANNELS, CHANNELS, normalize=False, bias=False)
    x = torch.randn(NODES, CHANNELS, requires_grad=True)
    weight = torch.rand(EDGES, dtype=torch.float64)
    assert_same(layer, lambda layer: layer(x, random_edges(), weight), [x])
    assert native


@pytest.mark.parametrize("name", ["sage", "gcn", "gat", "gin", "graph mean"])
def test_edges_in_any_order_and_place_are_summed_natively(name: str, native: list[Any]) -> None:
    torch.manual_seed(3)
    x = torch.randn(NODES, CHANNELS, requires_grad=True)
    shuffled = random_edges()[:, torch.randperm(EDGES)]
    for edges in (shuffled, shuffled.t().contiguous().t(), shuffled[:, ::2], shuffled[:, :0]):
        native.clear()
        assert_same(SUMMED[name](), lambda layer, edges=edges: layer(x, edges), [x])
        assert native


@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize("name", ["sage", "graph", "gat", "gatv2", "gin"])
def test_bipartite_calls_give_the_same(name: str, sized: bool, native: list[Any]) -> None:
    torch.manual_seed(4)
    x = torch.randn(NODES, CHANNELS, requires_grad=True)
    edges = random_edges()
    some = edges[:, edges[1] < 12]
    if name in ("gat", "gatv2"):
        kind = GATConv if name == "gat" else GATv2Conv
        layer: MessagePassing = kind((CHANNELS, CHANNELS), 3, add_self_loops=False)
    else:
        layer = SUMMED[name]()
    more = {"size": (NODES, 12)} if sized and name != "gatv2" else {}  # gatv2 takes none
    assert_same(layer, lambda layer: layer((x, x[:12]), some, **more), [x])
    assert native


def test_sums_of_fused_layers_equal_scattered_ones_bit_for_bit() -> None:
    x, edges = torch.randn(NODES, CHANNELS), random_edges()
    for layer in (SAGEConv(CHANNELS, 5), GINConv(mlp()), GCNConv(CHANNELS, 5)):
        expected = layer(x, torch.cat([edges, torch.tensor([[0], [NODES - 1]])], 1))
        fused = gnnsys.fuse(layer)
        assert torch.equal(
            fused(x, torch.cat([edges, torch.tensor([[0], [NODES - 1]])], 1)), expected
        )


# Models on sampled batches ------------------------------------------------------------------------


def sampled() -> tuple[Any, Tensor]:
    graph = CSC.from_edge_index(random_edges(4, 400, 4000), 400)
    batch = NeighborSampler(graph, [4, 3, 2], seed=0).sample(torch.arange(10), 0)
    return batch, torch.stack([batch.row, batch.col])


@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("model", [GraphSAGE, GCN, GAT, GIN])
def test_a_model_gives_the_same_with_and_without_trimming(
    model: Any, trim: bool, native: list[Any]
) -> None:
    torch.manual_seed(5)
    batch, edges = sampled()
    x = torch.randn(len(batch.node), CHANNELS, requires_grad=True)
    more = {}
    if trim:
        more = {
            "num_sampled_nodes_per_hop": list(batch.num_sampled_nodes),
            "num_sampled_edges_per_hop": list(batch.num_sampled_edges),
        }
    assert_same(model(CHANNELS, 8, 3, 4), lambda net: net(x, edges, **more)[:10], [x])
    assert len(native) >= 3


def test_rows_that_nobody_differentiates_cost_no_backward_pass() -> None:
    layer = gnnsys.fuse(SAGEConv(CHANNELS, 5))
    edges = random_edges()
    layer(torch.randn(NODES, CHANNELS), edges).sum().backward()
    neighbors = fused_layers.neighbors_of(edges)
    assert neighbors._groups[0] is None


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", [SAGEConv, GraphConv])
def test_a_linear_layer_sees_no_more_rows_than_edges_lead_to(
    kind: Any, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(6)
    batch, edges = sampled()
    x = torch.randn(len(batch.node), CHANNELS, requires_grad=True)
    layer = kind(CHANNELS, 5, bias=bias)
    assert_same(layer, lambda layer: layer(x, edges), [x])
    seen = []
    multiply = torch.nn.functional.linear
    monkeypatch.setattr(
        torch.nn.functional,
        "linear",
        lambda x, *args: seen.append(len(x)) or multiply(x, *args),
    )
    layer(x, edges)
    assert seen == [int(batch.col.max()) + 1, len(x)]
    assert seen[0] < len(x)


def test_rows_are_no_longer_taken_for_zero_once_they_were_changed() -> None:
    class Shifted(SAGEConv):
        """Changes sums in place before the linear layer sees them."""

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.lin_l(self.propagate(edge_index, x=(x, x)).add_(1.0))

    torch.manual_seed(7)
    x, edges = torch.randn(NODES, CHANNELS, requires_grad=True), random_edges()[:, :100]
    assert_same(Shifted(CHANNELS, 5), lambda layer: layer(x, edges), [x])
    assert linear.zero_rows.of(torch.zeros(3, 2)) is None


@pytest.mark.parametrize("kind", [SAGEConv, GraphConv])
def test_backward_multiplies_no_more_rows_than_have_gradients(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(16)
    batch, edges = sampled()
    x = torch.randn(len(batch.node), CHANNELS, requires_grad=True)
    layer = kind(CHANNELS, 5)
    assert_same(layer, lambda layer: layer(x, edges)[:10], [x])
    rows = []
    count = linear._rows_with_gradients
    monkeypatch.setattr(
        linear,
        "_rows_with_gradients",
        lambda grad: rows.append((count(grad), len(grad))) or rows[-1][0],
    )
    layer(x, edges)[:10].sum().backward()
    assert sorted(rows) == [(10, int(batch.col.max()) + 1), (10, len(x))]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_up_to_the_last_that_is_not_zero_are_counted(dtype: Any) -> None:
    draw = np.random.default_rng(0)
    for _ in range(200):
        rows, width = draw.integers(0, 30), draw.integers(1, 40)
        values = np.zeros((rows, width), dtype)
        last = draw.integers(-1, rows) if rows else -1
        if last >= 0:
            values[last, draw.integers(width)] = draw.choice([1.0, -0.0, np.nan, 5e-324])
        bits = values.view(np.uint8).any(1)
        expected = int(np.flatnonzero(bits).max(initial=-1)) + 1
        assert count_until_zeros(values.ctypes.data, rows, values.strides[0]) == expected


def test_bfloat16_autocast_agrees_to_its_rounding(native: list[Any]) -> None:
    torch.manual_seed(6)
    batch, edges = sampled()
    x = torch.randn(len(batch.node), CHANNELS)
    for model in (GraphSAGE, GCN, GAT, GIN):
        net = model(CHANNELS, 16, 3, 4)
        exact = net(x, edges)
        scale = float(exact.detach().abs().max())
        with torch.autocast("cpu", torch.bfloat16):
            plain, fast = net(x, edges), gnnsys.fuse(net)(x, edges)
        assert fast.dtype == plain.dtype
        torch.testing.assert_close(fast.float(), exact, rtol=0.05, atol=0.05 * scale)
        native.clear()
        with torch.autocast("cpu", torch.bfloat16):
            net(x, edges).float().square().sum().backward()
        assert len(native) >= 3
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_heterogeneous_models_are_fused_relation_by_relation(native: list[Any]) -> None:
    torch.manual_seed(9)
    data = HeteroData()
    data["author"].x, data["paper"].x = torch.randn(6, 4), torch.randn(9, 4)
    pairs = torch.stack([torch.randint(0, 6, (20,)), torch.randint(0, 9, (20,)).sort()[0]])
    data["author", "writes", "paper"].edge_index = pairs
    data["paper", "of", "author"].edge_index = pairs.flip(0)
    convs = HeteroConv({kind: SAGEConv((4, 4), 3) for kind in data.edge_types}, aggr="sum")
    fused_before = to_hetero(gnnsys.fuse(GraphSAGE(4, 3, 2)), data.metadata())
    fused_after = gnnsys.fuse(to_hetero(GraphSAGE(4, 3, 2), data.metadata()))
    for model in (convs, fused_before, fused_after):
        plain = copy.deepcopy(model)
        for layer in plain.modules():
            if isinstance(layer, SAGEConv):
                layer.__class__ = SAGEConv
        expected = plain(data.x_dict, data.edge_index_dict)
        native.clear()
        for kind, out in gnnsys.fuse(model)(data.x_dict, data.edge_index_dict).items():
            torch.testing.assert_close(out, expected[kind])
        assert len(native) >= 2


# Layers of users ----------------------------------------------------------------------------------


class Layer(MessagePassing):
    def forward(self, x: Tensor, edge_index: Tensor, w: Tensor | None = None) -> Tensor:
        return self.propagate(edge_index, x=x, w=w)


class Inherited(Layer):
    pass


class Documented(Layer):
    def message(self, x_j: Tensor) -> Tensor:
        """Says what it does."""
        return x_j


class Viewed(Layer):
    def message(self, x_j: Tensor, w: Tensor) -> Tensor:
        return w.view(-1, 1) * x_j


class Indexed(Layer):
    def message(self, x_j: Tensor, w: Tensor) -> Tensor:
        return x_j * w[:, None]


class Unsqueezed(Layer):
    def message(self, x_j: Tensor, w: Tensor) -> Tensor:
        return torch.mul(w.unsqueeze(-1), x_j)


class Chosen(Layer):
    def message(self, x_j: Tensor, w: Tensor | None) -> Tensor:
        return w.reshape(-1, 1) * x_j if w is not None else x_j


class Branched(Layer):
    def message(self, x_j: Tensor, w: Tensor | None) -> Tensor:
        if w is None:
            return x_j
        return x_j * w.view(-1, 1)


class Squared(Layer):
    def message(self, x_j: Tensor, w: Tensor) -> Tensor:
        return w.view(-1, 1) * x_j * x_j


class Scaled(Layer):
    def message(self, x_j: Tensor, w: Tensor) -> Tensor:
        return 2 * (w.view(-1, 1) * x_j)


class Dropped(Layer):
    def message(self, x_j: Tensor) -> Tensor:
        return x_j if not self.training else torch.dropout(x_j, 0.5, True)


class Subtracted(Layer):
    def message(self, x_i: Tensor, x_j: Tensor) -> Tensor:
        return x_j - x_i


class Targets(Layer):
    def message(self, x_i: Tensor) -> Tensor:
        return x_i


class Rebound(Layer):
    def message(self, x_j: Tensor, w: Tensor) -> Tensor:
        x_j = x_j.abs()
        return w.view(-1, 1) * x_j


class Weighted(Layer):
    def message(self, x_j: Tensor, w_j: Tensor) -> Tensor:
        return w_j * x_j


class WrongChoice(Layer):
    def message(self, x_j: Tensor, w: Tensor | None) -> Tensor:
        return w.view(-1, 1) * x_j if w is None else x_j


class OwnUpdate(Layer):
    def update(self, inputs: Tensor) -> Tensor:
        return inputs + 1


class OwnAggregate(Layer):
    def aggregate(self, inputs: Tensor, index: Tensor, dim_size: int | None = None) -> Tensor:
        out = inputs.new_zeros(dim_size, inputs.size(-1))
        return out.index_add_(0, index, inputs)


class OwnPropagate(Layer):
    def propagate(self, edge_index: Tensor, **kwargs: Any) -> Tensor:  # type: ignore[override]
        return super().propagate(edge_index, **kwargs) * 2


@pytest.mark.parametrize(
    "kind", [Inherited, Documented, Viewed, Indexed, Unsqueezed, Chosen, Branched]
)
@pytest.mark.parametrize("aggr", ["sum", "add", "mean"])
def test_layers_of_users_whose_message_is_a_weighted_row_are_fused(
    kind: type[Layer], aggr: str, native: list[Any]
) -> None:
    torch.manual_seed(10)
    x = torch.randn(NODES, CHANNELS, requires_grad=True)
    w = torch.rand(EDGES, requires_grad=True)
    assert_same(kind(aggr), lambda layer: layer(x, random_edges(), w), [x, w])
    assert native
    if kind in (Inherited, Documented, Chosen, Branched):
        native.clear()
        assert_same(kind(aggr), lambda layer: layer(x, random_edges()), [x])
        assert native


@pytest.mark.parametrize(
    "kind",
    [
        Squared, Scaled, Dropped, Subtracted, Targets, Rebound, Weighted, WrongChoice,
        OwnUpdate, OwnAggregate, OwnPropagate,
    ],
)  # fmt: skip
def test_layers_of_users_that_do_anything_else_are_left_alone(kind: type[Layer]) -> None:
    layer = gnnsys.fuse(kind())
    assert type(layer) is kind
    assert gnnsys.fuse.report(layer).layers[0].reason


@pytest.mark.parametrize(
    "w",
    [
        torch.rand(EDGES, CHANNELS),
        torch.rand(1, CHANNELS),
        torch.rand(1, 1),
        torch.rand(CHANNELS),
        torch.tensor(2.0),
    ],
    ids=["by channel", "one row", "one number", "row", "scalar"],
)
def test_weights_that_are_not_by_edge_multiply_as_they_do_elsewhere(
    w: Tensor, native: list[Any]
) -> None:
    class Plain(Layer):
        def message(self, x_j: Tensor, w: Tensor) -> Tensor:
            return w * x_j

    x = torch.randn(NODES, CHANNELS, requires_grad=True)
    assert_same(Plain(), lambda layer: layer(x, random_edges(), w), [x])
    assert not native


def test_a_message_without_source_text_is_left_alone() -> None:
    space: dict[str, Any] = {"Layer": Layer}
    exec("class Made(Layer):\n    def message(self, x_j):\n        return x_j", space)
    assert read_message(space["Made"].message) is None
    assert read_message(Viewed.message) == Message("x", "w", (("view", (-1, 1)),))


@pytest.mark.parametrize("name", ["message", "aggregate", "update", "propagate"])
def test_a_layer_that_was_changed_by_hand_is_left_alone(name: str) -> None:
    layer = SAGEConv(CHANNELS, 5)
    setattr(layer, name, getattr(layer, name))
    assert type(gnnsys.fuse(layer)) is SAGEConv
    assert name in gnnsys.fuse.report(layer).layers[0].reason


# What else is done with layers --------------------------------------------------------------------


def test_a_fused_layer_remains_what_it_was() -> None:
    layer = SAGEConv(CHANNELS, 5)
    before = (repr(layer), list(layer.state_dict()), dict(layer.named_modules()))
    gnnsys.fuse(gnnsys.fuse(layer))
    assert isinstance(layer, SAGEConv)
    assert (repr(layer), list(layer.state_dict()), dict(layer.named_modules())) == before
    assert type(layer).__name__ == "SAGEConv"
    assert gnnsys.fuse.report(SAGEConv(2, 2)).layers[0].reason == "not asked for yet"


def test_copies_and_pickles_of_a_fused_model_are_fused(native: list[Any]) -> None:
    torch.manual_seed(11)
    batch, edges = sampled()
    x = torch.randn(len(batch.node), CHANNELS)
    model = gnnsys.fuse(GraphSAGE(CHANNELS, 8, 2, 4))
    expected = model(x, edges)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (
        copy.deepcopy(model),
        copy.copy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
    ):
        native.clear()
        assert torch.equal(other(x, edges), expected)
        assert len(native) == 2
        assert len(gnnsys.fuse.report(other).fused) == 2
    clone = copy.deepcopy(model)
    with torch.no_grad():
        clone.convs[0].lin_l.weight.zero_()
    assert torch.equal(model(x, edges), expected)


def test_hooks_see_what_they_always_saw(native: list[Any]) -> None:
    torch.manual_seed(12)
    x, edges = torch.randn(NODES, CHANNELS), random_edges()
    layer = SAGEConv(CHANNELS, 5)
    seen: list[Tensor] = []
    layer.register_message_forward_hook(lambda module, inputs, out: seen.append(out.sum(-1)))
    layer.register_aggregate_forward_hook(lambda module, inputs, out: seen.append(out + 0))
    layer.register_propagate_forward_hook(lambda module, inputs, out: out * 2)
    results = [layer(x, edges), gnnsys.fuse(layer)(x, edges)]
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(seen[2:], seen[:2])
    assert not native


def test_explained_and_decomposed_layers_go_the_way_of_pyg(native: list[Any]) -> None:
    torch.manual_seed(13)
    x, edges = torch.randn(NODES, CHANNELS), random_edges()
    layer = GCNConv(CHANNELS, 5, normalize=False)
    plain = layer(x, edges)
    mask = torch.rand(EDGES)

    def explained(layer: GCNConv) -> Tensor:
        layer.explain, layer._edge_mask, layer._apply_sigmoid = True, mask, False
        out = layer(x, edges)
        layer.explain, layer._edge_mask = None, None
        return out

    expected = explained(copy.deepcopy(layer))
    for fused in (gnnsys.fuse(layer), pickle.loads(pickle.dumps(gnnsys.fuse(layer)))):
        native.clear()
        torch.testing.assert_close(explained(fused), expected)
        fused.decomposed_layers = 2
        torch.testing.assert_close(fused(x, edges), plain)
        fused.decomposed_layers = 1
        assert not native
        torch.testing.assert_close(fused(x, edges), plain)
        assert native


def test_an_aggregation_set_later_is_used(native: list[Any]) -> None:
    x, edges = torch.randn(NODES, CHANNELS), random_edges()
    layer = gnnsys.fuse(SAGEConv(CHANNELS, 5))
    other = SAGEConv(CHANNELS, 5, aggr="max")
    layer.aggr_module = other.aggr_module
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x, edges), other(x, edges))
    assert not native


def test_edge_index_objects_and_sparse_matrices_go_the_way_of_pyg(native: list[Any]) -> None:
    x, edges = torch.randn(NODES, CHANNELS), random_edges()
    plain = SAGEConv(CHANNELS, 5)
    layer = gnnsys.fuse(copy.deepcopy(plain))
    matrix = torch.sparse_coo_tensor(
        edges.flip(0), torch.ones(EDGES), (NODES, NODES), check_invariants=True
    )
    for other in (EdgeIndex(edges, sparse_size=(NODES, NODES), sort_order="col"), matrix):
        assert torch.equal(layer(x, other), plain(x, other))
    assert not native


@pytest.mark.parametrize(
    "x",
    [
        torch.arange(NODES * 2).view(NODES, 2),
        torch.randn(NODES, 2, dtype=torch.float16),
        torch.randn(3, NODES, 2),
        torch.randn(NODES),
    ],
    ids=["integers", "half", "batch of graphs", "vector"],
)
def test_features_that_are_not_summed_natively_are_scattered(x: Tensor, native: list[Any]) -> None:
    layer = Inherited()
    layer.node_dim = -2 if x.dim() > 1 else -1
    expected = layer(x, random_edges())
    assert torch.equal(gnnsys.fuse(layer)(x, random_edges()), expected)
    assert not native


@pytest.mark.parametrize(
    "edges",
    [
        torch.tensor([[0, 3], [0, 1]]),
        torch.tensor([[0, -1], [0, 1]]),
        torch.tensor([[0, 1], [0, 3]]),
        torch.tensor([[0, 1], [0, -2]]),
        torch.tensor([[0.0, 1.0], [0.0, 1.0]]),
        torch.tensor([0, 1]),
    ],
)
def test_edges_that_pyg_refuses_raise_what_it_raises(edges: Tensor) -> None:
    layer, x = SAGEConv(CHANNELS, 5), torch.randn(3, CHANNELS)
    with pytest.raises((IndexError, ValueError, RuntimeError)) as expected:
        layer(x, edges)
    with pytest.raises(type(expected.value)) as found:
        gnnsys.fuse(layer)(x, edges)
    assert str(found.value) == str(expected.value)


def test_sizes_that_pyg_refuses_raise_what_it_raises() -> None:
    layer, x, edges = SAGEConv(CHANNELS, 5), torch.randn(3, CHANNELS), torch.tensor([[0], [1]])
    for _ in range(2):
        with pytest.raises(ValueError, match="expected size 5"):
            layer((x, x), edges, size=(5, 3))
        gnnsys.fuse(layer)


def test_only_modules_can_be_fused() -> None:
    for call in (gnnsys.fuse, gnnsys.fuse.report):
        with pytest.raises(DTypeError, match=r"expected a torch\.nn\.Module"):
            call(torch.ones(2))  # type: ignore[operator]


# Gradients that must not be lost ------------------------------------------------------------------


class Reverse(torch.autograd.Function):
    """Sees its input past the functions of torch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -grad


def reversed_gradient(layer: Any, x: Tensor, edges: Tensor) -> Tensor:
    return Reverse.apply(layer(x, edges)).pow(2).mean() + x.mean()


def penalised_gradient(layer: Any, x: Tensor, edges: Tensor) -> Tensor:
    (grad,) = torch.autograd.grad(layer(x, edges).pow(3).sum(), x, create_graph=True)
    return grad.norm()


@pytest.mark.parametrize(
    "run",
    [
        reversed_gradient,
        penalised_gradient,
        lambda layer, x, edges: torch.func.vmap(lambda s: layer(x * s, edges))(torch.ones(3)),
        lambda layer, x, edges: torch.func.jvp(lambda x: layer(x, edges), (x,), (x,))[1],
        lambda layer, x, edges: torch.func.grad(lambda x: layer(x, edges).sum())(x),
        lambda layer, x, edges: torch.func.jacrev(lambda x: layer(x, edges).sum(0))(x),
        lambda layer, x, edges: torch.jit.trace(layer, (x, edges), check_trace=False)(x, edges),
        lambda layer, x, edges: torch.compile(layer, backend="aot_eager")(x, edges),
        lambda layer, x, edges: torch.utils.checkpoint.checkpoint(
            layer, x, edges, use_reentrant=False
        ),
        lambda layer, x, edges: copy.deepcopy(layer)(x, edges),
    ],
    ids=[
        "own function", "gradient penalty", "vmap", "jvp", "grad", "jacrev", "trace", "compile",
        "checkpoint", "deepcopy",
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["sage", "gcn", "gat", "graph mean", "gin"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_transformed_and_compiled_layers_give_the_same(run: Any, name: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(14)
    layer = SUMMED[name]()
    x, edges = torch.randn(NODES, CHANNELS, requires_grad=True), random_edges()
    results = []
    for _ in range(2):
        out = run(layer, x, edges)
        grads = torch.autograd.grad(out.square().sum(), [x, *layer.parameters()], allow_unused=True)
        results.append([out, *grads])
        gnnsys.fuse(layer)
    agree(*results)


def test_a_reentrant_checkpoint_gives_the_same_gradients() -> None:
    torch.manual_seed(15)
    layer = SAGEConv(CHANNELS, 5)
    x, edges = torch.randn(NODES, CHANNELS, requires_grad=True), random_edges()
    results = []
    for _ in range(2):
        x.grad = None
        layer.zero_grad()
        out = torch.utils.checkpoint.checkpoint(layer, x, edges, use_reentrant=True)
        out.square().sum().backward()
        results.append([x.grad, *(p.grad for p in layer.parameters())])
        gnnsys.fuse(layer)
    agree(*results)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_same_is_computed(mode: Any, native: list[Any]) -> None:
    edges = random_edges()
    with mode():
        layer = SAGEConv(CHANNELS, 5)
        x = torch.randn(NODES, CHANNELS)
        expected = layer(x, edges)
        out = gnnsys.fuse(layer)(x, edges)
        torch.testing.assert_close(out, expected)
    assert not out.requires_grad
    assert native


def test_gradients_of_gradients_are_right() -> None:
    torch.manual_seed(7)
    edges = random_edges(8, 5, 9)
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(9, dtype=torch.float64, requires_grad=True)
    sage = gnnsys.fuse(SAGEConv(2, 2).double())
    graph = gnnsys.fuse(GraphConv(2, 2, aggr="mean").double())
    assert torch.autograd.gradgradcheck(lambda x: sage(x, edges), (x,))
    assert torch.autograd.gradgradcheck(lambda x: sage(x, edges)[:2], (x,))
    assert torch.autograd.gradgradcheck(lambda x, w: graph(x, edges, w), (x, weight))

"""Unchanged layers and models of PyG give on CSC edges what they give on plain ones."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor
from torch_geometric import EdgeIndex, Index
from torch_geometric.data import Data, HeteroData
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
    TransformerConv,
)

from gnnsys.errors import UnsupportedError
from gnnsys.loaders import CSC, NeighborSampler, lazy_messages
from gnnsys.loaders.csr import CSCEdgeIndex, with_csr

NODES, EDGES, CHANNELS = 40, 240, 8


def random_edges(seed: int = 0, nodes: int = NODES, edges: int = EDGES) -> Tensor:
    """Sorted by target, with repeated edges, self loops and nodes without edges."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(2, edges, generator=generator, dtype=torch.float64)
    edge_index = (draws**2 * nodes).long()
    return edge_index[:, edge_index[1].argsort(stable=True)]


def csc(edge_index: Tensor, nodes: int = NODES) -> CSCEdgeIndex:
    return with_csr(Data(edge_index=edge_index, num_nodes=nodes)).edge_index


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls of the native sum: whether the fast path was taken."""
    calls: list[Any] = []
    sum_neighbors = lazy_messages.sum_neighbors

    def note(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(kwargs)
        return sum_neighbors(*args, **kwargs)

    monkeypatch.setattr(lazy_messages, "sum_neighbors", note)
    return calls


def assert_same(layer: Callable[[Tensor], Tensor], edges: Tensor, inputs: list[Tensor]) -> None:
    """Outputs and gradients of both kinds of edges agree to the rounding of their sums."""
    results = []
    for edge_index in (edges, csc(edges)):
        out = layer(edge_index)
        grad = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
        grads = torch.autograd.grad(out, inputs, grad, allow_unused=True)
        results.append([out, *grads])
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
    "gin": lambda: GINConv(mlp(), train_eps=True),
    "graph": lambda: GraphConv(CHANNELS, 5),
    "graph mean": lambda: GraphConv(CHANNELS, 5, aggr="mean"),
    "gcn": lambda: GCNConv(CHANNELS, 5),
    "gcn without loops": lambda: GCNConv(CHANNELS, 5, add_self_loops=False),
    "gcn plain": lambda: GCNConv(CHANNELS, 5, normalize=False),
    "gat": lambda: GATConv(CHANNELS, 3, heads=4),
    "gat one head": lambda: GATConv(CHANNELS, 5, heads=1, concat=False),
    "gat mean": lambda: GATConv(CHANNELS, 16, heads=2, concat=False, add_self_loops=False),
    "lightgcn": lambda: LGConv(),
    "sgc": lambda: SGConv(CHANNELS, 5, K=2),
    "tag": lambda: TAGConv(CHANNELS, 5, K=2),
}
GATHERED: dict[str, Callable[[], MessagePassing]] = {
    "sage max": lambda: SAGEConv(CHANNELS, 5, aggr="max"),
    "sage min": lambda: SAGEConv(CHANNELS, 5, aggr="min"),
    "sage softmax": lambda: SAGEConv(CHANNELS, 5, aggr="softmax"),
    "sage std": lambda: SAGEConv(CHANNELS, 5, aggr="std"),
    "sage median": lambda: SAGEConv(CHANNELS, 5, aggr="median"),
    "sage mul": lambda: SAGEConv(CHANNELS, 5, aggr="mul"),
    "sage lstm": lambda: SAGEConv(CHANNELS, 5, aggr="lstm"),
    "sage many": lambda: SAGEConv(CHANNELS, 5, aggr=["mean", "sum", "max", "var"]),
    "gatv2": lambda: GATv2Conv(CHANNELS, 3, heads=4),
    "transformer": lambda: TransformerConv(CHANNELS, 3, heads=2, beta=True),
    "backwards": lambda: SAGEConv(CHANNELS, 5, flow="target_to_source"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*SUMMED, *GATHERED])
def test_a_layer_gives_the_same_outputs_and_gradients(
    name: str, dtype: torch.dtype, native: list[Any]
) -> None:
    torch.manual_seed(0)
    layer = (SUMMED | GATHERED)[name]().to(dtype)
    x = torch.randn(NODES, CHANNELS, dtype=dtype, requires_grad=True)
    assert_same(lambda edges: layer(x, edges), random_edges(), [x, *layer.parameters()])
    if name in SUMMED:
        assert native


@pytest.mark.parametrize("learnt", [False, True])
@pytest.mark.parametrize("name", ["graph", "graph mean", "gcn", "gcn plain", "lightgcn", "tag"])
def test_edge_weights_give_the_same_with_and_without_gradients(
    name: str, learnt: bool, native: list[Any]
) -> None:
    torch.manual_seed(1)
    layer = SUMMED[name]()
    x = torch.randn(NODES, CHANNELS, requires_grad=True)
    weight = torch.rand(EDGES, requires_grad=learnt)
    inputs = [x, *layer.parameters(), *([weight] if learnt else [])]
    assert_same(lambda edges: layer(x, edges, weight), random_edges(), inputs)
    assert native


def test_weights_of_another_type_promote_as_they_do_elsewhere(native: list[Any]) -> None:
    layer = GCNConv(CHANNELS, CHANNELS, normalize=False, bias=False)
    x = torch.randn(NODES, CHANNELS, requires_grad=True)
    weight = torch.rand(EDGES, dtype=torch.float64)
    assert_same(lambda edges: layer(x, edges, weight), random_edges(), [x])
    assert native


def test_edge_features_give_the_same() -> None:
    torch.manual_seed(2)
    x = torch.randn(NODES, CHANNELS, requires_grad=True)
    features = torch.randn(EDGES, 3)
    for layer in (GINEConv(mlp(), edge_dim=3), GATConv(CHANNELS, 3, heads=2, edge_dim=3)):
        inputs = [x, *layer.parameters()]
        assert_same(lambda edges, f=layer: f(x, edges, features), random_edges(), inputs)


@pytest.mark.parametrize("name", ["sage", "gcn", "gat", "gin"])
def test_edges_in_any_order_are_summed_natively(name: str, native: list[Any]) -> None:
    torch.manual_seed(3)
    edges = random_edges()[:, torch.randperm(EDGES)]
    assert csc(edges).sort_order is None
    layer = SUMMED[name]()
    x = torch.randn(NODES, CHANNELS, requires_grad=True)
    assert_same(lambda edges: layer(x, edges), edges, [x, *layer.parameters()])
    assert native


def test_sums_of_stock_layers_equal_scattered_ones_bit_for_bit() -> None:
    x = torch.randn(NODES, CHANNELS)
    for layer in (SAGEConv(CHANNELS, 5), GINConv(mlp()), GCNConv(CHANNELS, 5)):
        edges = random_edges()
        edges = torch.cat([edges, torch.tensor([[0], [NODES - 1]])], 1)  # reaches the last node
        assert torch.equal(layer(x, edges), layer(x, csc(edges)))


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
    net = model(CHANNELS, 8, 3, 4)
    x = torch.randn(len(batch.node), CHANNELS, requires_grad=True)
    more = {}
    if trim:
        more = {
            "num_sampled_nodes_per_hop": list(batch.num_sampled_nodes),
            "num_sampled_edges_per_hop": list(batch.num_sampled_edges),
        }
    results = []
    for edge_index in (edges, csc(edges, len(x))):
        out = net(x, edge_index, **more)[:10]
        grads = torch.autograd.grad(out.square().sum(), [x, *net.parameters()])
        results.append([out, *grads])
    agree(*results)
    assert len(native) >= 3


def test_rows_that_nobody_differentiates_cost_no_backward_pass(native: list[Any]) -> None:
    layer = SAGEConv(CHANNELS, 5)
    edges = csc(random_edges())
    layer(torch.randn(NODES, CHANNELS), edges).sum().backward()
    neighbors = edges.neighbors()
    assert neighbors is not None
    assert neighbors._by_source is None


def test_a_linear_layer_sees_no_more_rows_than_edges_lead_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = []
    linear = F.linear

    def note(x: Tensor, *args: Any) -> Tensor:
        rows.append(len(x))
        return linear(x, *args)

    batch, edges = sampled()
    reached = int(batch.col.max()) + 1
    x = torch.randn(len(batch.node), CHANNELS)
    layer = SAGEConv(CHANNELS, 5)
    monkeypatch.setitem(
        lazy_messages.LazySums.stays_lazy, F.linear,
        lambda func, *args: lazy_messages._linear(note, *args),
    )  # fmt: skip
    for bias in (True, False):
        layer = SAGEConv(CHANNELS, 5, bias=bias)
        torch.testing.assert_close(layer(x, csc(edges, len(x))), layer(x, edges))
    assert rows == [reached, reached] < [len(x)]


def test_bfloat16_autocast_agrees_to_its_rounding(native: list[Any]) -> None:
    torch.manual_seed(6)
    batch, edges = sampled()
    x = torch.randn(len(batch.node), CHANNELS)
    for model in (GraphSAGE, GCN, GAT, GIN):
        net = model(CHANNELS, 16, 3, 4)
        exact = net(x, edges)
        scale = float(exact.detach().abs().max())
        with torch.autocast("cpu", torch.bfloat16):
            plain, fast = net(x, edges), net(x, csc(edges, len(x)))
        assert fast.dtype == plain.dtype
        torch.testing.assert_close(fast.float(), exact, rtol=0.05, atol=0.05 * scale)
        native.clear()
        with torch.autocast("cpu", torch.bfloat16):
            net(x, csc(edges, len(x))).float().square().sum().backward()
        assert len(native) >= 3
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_gradients_of_gradients_are_right() -> None:
    torch.manual_seed(7)
    edges = csc(random_edges(8, 5, 9), 5)
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(9, dtype=torch.float64, requires_grad=True)
    sage, graph = SAGEConv(2, 2).double(), GraphConv(2, 2, aggr="mean").double()
    assert torch.autograd.gradgradcheck(lambda x: sage(x, edges), (x,))
    assert torch.autograd.gradgradcheck(lambda x, w: graph(x, edges, w), (x, weight))


def test_heterogeneous_layers_give_the_same(native: list[Any]) -> None:
    torch.manual_seed(9)
    data = HeteroData()
    data["author"].x, data["paper"].x = torch.randn(6, 4), torch.randn(9, 4)
    pairs = torch.stack([torch.randint(0, 6, (20,)), torch.randint(0, 9, (20,)).sort()[0]])
    data["author", "writes", "paper"].edge_index = pairs
    data["paper", "of", "author"].edge_index = pairs.flip(0)
    conv = HeteroConv(
        {kind: SAGEConv((4, 4), 3) for kind in data.edge_types},
        aggr="sum",
    )
    plain = conv(data.x_dict, data.edge_index_dict)
    fast = with_csr(data)
    assert fast["author", "writes", "paper"].edge_index.sparse_size() == (6, 9)
    assert fast["author", "writes", "paper"].edge_index.sort_order == "col"
    for kind, out in conv(fast.x_dict, fast.edge_index_dict).items():
        torch.testing.assert_close(out, plain[kind])
    assert len(native) == 2


# Whatever else is done with messages --------------------------------------------------------------


class Custom(MessagePassing):
    """Sums what a function makes of the messages."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__(aggr="sum")
        self.function = function

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.propagate(edge_index, x=x)

    def message(self, x_j: Tensor) -> Tensor:
        return self.function(x_j)


class Square(torch.autograd.Function):
    """Sees its input past the functions of torch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * grad


def in_place(x: Tensor) -> Tensor:
    x.mul_(2.0)
    return x


def through_a_view(x: Tensor) -> Tensor:
    x[:, 0].add_(1.0)
    return x


def looked_at_without_gradients(x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = x.abs().max()
    return x / scale


def looked_at_in_inference_mode(x: Tensor) -> Tensor:
    with torch.inference_mode():
        scale = float(x.abs().max())
    return x / scale


def filled(x: Tensor) -> Tensor:
    return torch.cat([x.new_zeros(len(x), 1), x[:, 1:] + x.new_ones(1)], dim=1)


@pytest.mark.parametrize(
    "function",
    [
        torch.relu,
        Square.apply,
        in_place,
        through_a_view,
        looked_at_without_gradients,
        looked_at_in_inference_mode,
        filled,
        lambda x: x * x,
        lambda x: 2 * x,
        lambda x: x * torch.linspace(0, 1, CHANNELS),
        lambda x: x * torch.ones(1, 1),
        lambda x: torch.linspace(0, 1, EDGES).view(-1, 1) * (3 * x),
        lambda x: x.clone(),
        lambda x: x.sum(-1, keepdim=True).expand_as(x),
        lambda x: x.t().contiguous().t(),
        lambda x: torch.func.vmap(torch.sin)(x),
    ],
)
def test_messages_may_be_computed_with_as_ever(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(NODES, CHANNELS, requires_grad=True)
    layer = Custom(function)
    assert_same(lambda edges: layer(x, edges), random_edges(), [x])


@pytest.mark.parametrize("first", [False, True])
def test_weights_may_be_multiplied_twice(first: bool, native: list[Any]) -> None:
    x = torch.randn(NODES, CHANNELS, requires_grad=True)
    a, b = torch.rand(EDGES, 1, requires_grad=True), torch.rand(EDGES, 1)
    layer = Custom(lambda x: x * a if first else b * (a * x))
    assert_same(lambda edges: layer(x, edges), random_edges(), [x, a])
    assert bool(native) == first


def test_messages_can_be_printed_copied_and_handed_to_numpy() -> None:
    x, edges = torch.randn(NODES, CHANNELS), random_edges()
    expected = x[edges[0]]

    def messages() -> Tensor:
        lazy = x.index_select(0, csc(edges)[0])
        assert type(lazy) is lazy_messages.LazyMessages
        assert lazy.shape == expected.shape
        assert len(lazy) == EDGES
        assert (lazy.dtype, lazy.device, lazy.dim()) == (x.dtype, x.device, 2)
        return lazy

    assert repr(messages()) == repr(expected)
    assert messages().tolist() == expected.tolist()
    assert (messages().numpy() == expected.numpy()).all()
    for duplicate in (copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m))):
        assert torch.equal(duplicate(messages()), expected)
    assert messages().data_ptr() != 0


@pytest.mark.parametrize("count", [False, True])
def test_zeros_that_messages_were_added_to_show_it(count: bool) -> None:
    x, edges = torch.randn(NODES, CHANNELS, requires_grad=True), random_edges()
    target = edges[1].view(-1, 1).expand(-1, CHANNELS)
    expected = torch.zeros(NODES, CHANNELS).scatter_add_(0, target, x[edges[0]])
    fast = csc(edges)
    messages = x.index_select(0, fast[0])
    out = messages.new_zeros(NODES, CHANNELS)
    if count:
        assert messages.new_ones(EDGES).sum() == EDGES
    result = out.scatter_add_(0, fast[1].view(-1, 1).expand_as(messages), messages)
    assert type(result) is (lazy_messages.LazySums if count else Tensor)
    for sums in (out, result):
        torch.testing.assert_close(sums + 0, expected)
        (grad,) = torch.autograd.grad((sums * 1).sum(), x, retain_graph=True)
        assert torch.equal(grad[:, 0], edges[0].bincount(minlength=NODES).float())
    again = out.scatter_add_(0, fast[1].view(-1, 1).expand_as(messages), messages)
    torch.testing.assert_close(again, 2 * expected)
    torch.testing.assert_close(result + 0, 2 * expected)


def test_changing_what_is_not_computed_yet_past_torch_functions_is_refused() -> None:
    messages = torch.randn(NODES, 2).index_select(0, csc(random_edges())[0])
    with torch._C.DisableTorchFunctionSubclass(), pytest.raises(UnsupportedError, match="clone"):
        messages.mul_(2)


@pytest.mark.parametrize("weighted", [False, True])
def test_features_changed_before_their_messages_are_summed_are_refused(weighted: bool) -> None:
    x, edges = torch.randn(NODES, CHANNELS), csc(random_edges())
    weight = torch.rand(EDGES, 1)

    def change(messages: Tensor) -> Tensor:
        result = weight * messages if weighted else messages
        (weight if weighted else x).add_(1)
        return result

    with pytest.raises(UnsupportedError, match="changed in place"):
        Custom(change)(x, edges)


def test_hooks_see_what_they_always_saw() -> None:
    torch.manual_seed(10)
    x, edges = torch.randn(NODES, CHANNELS), random_edges()
    layer = SAGEConv(CHANNELS, 5)
    seen: list[Tensor] = []
    layer.register_message_forward_hook(lambda module, inputs, out: seen.append(out.sum(-1)))
    layer.register_aggregate_forward_hook(lambda module, inputs, out: seen.append(out + 0))
    layer.register_propagate_forward_hook(lambda module, inputs, out: out * 2)
    results = [layer(x, edges), layer(x, csc(edges))]
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(seen[2:], seen[:2])


# Other ways of running ----------------------------------------------------------------------------


def transformed(run: Callable[[Any, Tensor, Tensor], Any], edges: Tensor) -> Any:
    torch.manual_seed(11)
    return run(SAGEConv(CHANNELS, 5), torch.randn(NODES, CHANNELS), edges)


@pytest.mark.parametrize(
    "run",
    [
        lambda layer, x, edges: torch.func.vmap(lambda s: layer(x * s, edges))(torch.ones(3)),
        lambda layer, x, edges: torch.func.jvp(lambda x: layer(x, edges), (x,), (x,)),
        lambda layer, x, edges: torch.func.grad(lambda x: layer(x, edges).sum())(x),
        lambda layer, x, edges: torch.jit.script(layer)(x, edges),
        lambda layer, x, edges: torch.jit.trace(layer, (x, edges), check_trace=False)(x, edges),
        lambda layer, x, edges: torch.compile(layer, backend="eager")(x, edges),
        lambda layer, x, edges: torch.utils.checkpoint.checkpoint(
            layer, x, edges, use_reentrant=False
        ),
        lambda layer, x, edges: copy.deepcopy(layer)(x, edges),
    ],
    ids=["vmap", "jvp", "grad", "script", "trace", "compile", "checkpoint", "deepcopy"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_transformed_and_compiled_layers_give_the_same(run: Any) -> None:
    torch._dynamo.reset()
    edges = random_edges()
    torch.testing.assert_close(transformed(run, csc(edges)), transformed(run, edges))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_same_is_computed(mode: Any, native: list[Any]) -> None:
    edges = random_edges()
    with mode():
        layer = SAGEConv(CHANNELS, 5)
        x = torch.randn(NODES, CHANNELS)
        out = layer(x, csc(edges))
        torch.testing.assert_close(out, layer(x, edges))
    assert not out.requires_grad
    assert native


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
    edges = random_edges()
    layer = Custom(lambda x: x)
    layer.node_dim = -2 if x.dim() > 1 else -1
    assert torch.equal(layer(x, csc(edges)), layer(x, edges))
    assert not native


def test_sources_without_a_row_raise_what_pyg_raises() -> None:
    layer = SAGEConv(CHANNELS, 5)
    for edges in (torch.tensor([[0, 3], [0, 1]]), torch.tensor([[0, -1], [0, 1]])):
        with pytest.raises(IndexError, match="indices in 'edge_index'"):
            layer(torch.randn(3, CHANNELS), csc(edges, 3))


# The edges themselves -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e.clone(),
        lambda e: e.to("cpu", copy=True),
        lambda e: e.cpu(),
        lambda e: e[:, :50],
        lambda e: e.narrow(1, 0, 50),
        lambda e: e[:, torch.arange(EDGES) % 3 == 0],
        lambda e: copy.copy(e),
        lambda e: copy.deepcopy(e),
        lambda e: pickle.loads(pickle.dumps(e)),
    ],
)
def test_copies_and_parts_stay_sorted_edges_of_their_class(
    change: Callable[[EdgeIndex], EdgeIndex], native: list[Any]
) -> None:
    edges = csc(random_edges())
    edges.neighbors()
    result = change(edges)
    assert type(result) is CSCEdgeIndex
    assert result.sort_order == "col"
    assert result.sparse_size() == (NODES, NODES)
    expected = change(EdgeIndex(random_edges(), sparse_size=(NODES, NODES), sort_order="col"))
    assert torch.equal(result.get_indptr(), expected.get_indptr())
    assert result.validate().tolist() == expected.tolist()
    x = torch.randn(NODES, CHANNELS)
    layer = SAGEConv(CHANNELS, 5)
    torch.testing.assert_close(layer(x, result), layer(x, expected))
    assert native


def test_elsewhere_edges_are_those_of_edge_index() -> None:
    plain = random_edges()
    edges = csc(plain)
    assert isinstance(edges, EdgeIndex)
    assert edges.tolist() == plain.tolist()
    row, col = edges
    for index, expected in ((row, plain[0]), (col, plain[1]), (edges[0], plain[0])):
        assert isinstance(index, Index)
        assert index.tolist() == expected.tolist()
    assert col.is_sorted
    assert torch.equal((row + 1).as_tensor(), plain[0] + 1)
    assert torch.equal(row != col, plain[0] != plain[1])
    assert torch.equal(torch.arange(NODES)[row], plain[0])
    assert pickle.loads(pickle.dumps(row)).tolist() == plain[0].tolist()
    assert edges.to(torch.int32).dtype == torch.int32
    assert edges.flip(0).sort_order == "row"
    assert torch.equal(edges.to_dense(), EdgeIndex(plain, sparse_size=(NODES, NODES)).to_dense())
    assert "sort_order=col" in repr(edges)


def test_edges_that_change_in_place_are_grouped_anew() -> None:
    plain = random_edges()
    edges = csc(plain)
    x = torch.randn(NODES, CHANNELS)
    layer = SAGEConv(CHANNELS, 5)
    layer(x, edges)
    edges[0].as_tensor()[:20] = 7
    edges.as_tensor()[1, :20] = 39
    assert edges.tolist() == plain.tolist()
    torch.testing.assert_close(
        layer(x, CSCEdgeIndex(plain.clone(), sparse_size=(NODES, NODES))), layer(x, plain)
    )
    torch.testing.assert_close(layer(x, edges), layer(x, plain))


def test_a_batch_with_csr_copies_moves_and_pickles() -> None:
    data = with_csr(Data(x=torch.randn(NODES, 2), edge_index=random_edges()))
    assert torch.equal(data.edge_index.get_indptr()[:-1].diff(), random_edges()[1].bincount()[:-1])
    for duplicate in (data.clone(), copy.deepcopy(data), data.to("cpu"), data.contiguous(),
                      pickle.loads(pickle.dumps(data))):  # fmt: skip
        assert type(duplicate.edge_index) is CSCEdgeIndex
        assert duplicate.edge_index.tolist() == random_edges().tolist()
    assert data.num_nodes == NODES
    assert data.validate()


def test_edges_that_are_not_coo_int64_stay_as_they_are(native: list[Any]) -> None:
    edges = random_edges()
    sparse = torch.sparse_coo_tensor(
        edges, torch.ones(EDGES), (NODES, NODES), check_invariants=True
    )
    assert with_csr(Data(edge_index=sparse, num_nodes=NODES)).edge_index is sparse
    assert "edge_index" not in with_csr(Data(x=torch.ones(2, 2)))
    x = torch.randn(NODES, CHANNELS)
    layer = SAGEConv(CHANNELS, 5)
    torch.testing.assert_close(layer(x, csc(edges.int())), layer(x, edges))
    assert not native


@pytest.mark.parametrize("edges", [0, 1])
def test_graphs_of_one_node_or_none_have_csr(edges: int) -> None:
    for nodes in (edges, 1):
        index = torch.zeros(2, edges, dtype=torch.int64)
        data = with_csr(Data(x=torch.ones(nodes, 2), edge_index=index))
        assert data.edge_index.get_indptr().tolist() == [0] + [edges] * nodes
        layer = SAGEConv(2, 3)
        torch.testing.assert_close(layer(data.x, data.edge_index), layer(data.x, index))

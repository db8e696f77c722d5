"""Layers of graphs, checkpoints and transforms under a recorder, bit for bit as without one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch_geometric.nn import GATConv, GCN2Conv, GINConv, SAGEConv

import gnnsys
from gnnsys.offload.recorder import Recorder
from gnnsys.rel import HGTConv, RGATConv, RGCNConv
from tests.unit.offload.saving import Saving, assert_same_bits

NODES, WIDTH, TYPES = 90, 32, 3
_DRAW = torch.Generator().manual_seed(0)
X = torch.randn(NODES, WIDTH, generator=_DRAW)
EDGE_INDEX = torch.randint(NODES, (2, 5 * NODES), generator=_DRAW)
ADJACENCY = torch.sparse_coo_tensor(
    EDGE_INDEX, torch.rand(5 * NODES, generator=_DRAW), (NODES, NODES), check_invariants=True
).coalesce()
EDGE_TYPE = torch.randint(TYPES, (5 * NODES,), generator=_DRAW)

Layer = Callable[..., Tensor]


class Deep(nn.Module):
    """Layers with dropout before and ReLU after each, as deep GNNs have them."""

    def __init__(self, make: Callable[[int], nn.Module], call: Layer) -> None:
        super().__init__()
        self.first, self.call = nn.Linear(WIDTH, WIDTH), call
        self.convs = nn.ModuleList(make(number) for number in range(1, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = x_0 = F.relu(self.first(x))
        for conv in self.convs:
            x = F.dropout(x, 0.3, self.training)
            x = F.relu(self.call(conv, x, x_0))
        return x


class Equations(nn.Module):
    """GCNII by its equations, with what torch offers to write them."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH)
        self.beta = 0.5 / number

    def forward(self, x: Tensor, x_0: Tensor) -> Tensor:
        h = torch.add(ADJACENCY @ x, x_0, alpha=0.1).mul_(0.9)
        h = torch.addmm(h, h, self.weight, beta=1 - self.beta, alpha=self.beta)
        return torch.add(F.layer_norm(h, (WIDTH,)), x, alpha=0.5)


def _by_edges(conv: Layer, x: Tensor, _: Tensor) -> Tensor:
    return conv(x, EDGE_INDEX)


def _by_types(conv: Layer, x: Tensor, _: Tensor) -> Tensor:
    return conv(x, EDGE_INDEX, EDGE_TYPE)


def _by_names(conv: Layer, x: Tensor, _: Tensor) -> Tensor:
    return conv({"a": x}, {("a", "to", "a"): EDGE_INDEX})["a"]


def _gcn2(number: int) -> nn.Module:
    return GCN2Conv(WIDTH, 0.1, 0.5, number, shared_weights=False, cached=True)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "GCNII by its equations": lambda: Deep(Equations, lambda conv, x, x_0: conv(x, x_0)),
    "GCN2Conv": lambda: Deep(_gcn2, lambda conv, x, x_0: conv(x, x_0, EDGE_INDEX)),
    "GCN2Conv, fused": lambda: gnnsys.fuse(
        Deep(_gcn2, lambda conv, x, x_0: conv(x, x_0, EDGE_INDEX))
    ),
    "SAGEConv": lambda: Deep(lambda _: SAGEConv(WIDTH, WIDTH, normalize=True), _by_edges),
    "GATConv": lambda: Deep(lambda _: GATConv(WIDTH, WIDTH, dropout=0.2), _by_edges),
    "GATConv, fused": lambda: gnnsys.fuse(Deep(lambda _: GATConv(WIDTH, WIDTH), _by_edges)),
    "GINConv": lambda: Deep(
        lambda _: GINConv(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ELU(inplace=True))), _by_edges
    ),
    "RGCNConv": lambda: Deep(lambda _: RGCNConv(WIDTH, WIDTH, TYPES), _by_types),
    "RGATConv": lambda: Deep(lambda _: RGATConv(WIDTH, WIDTH, TYPES), _by_types),
    "HGTConv": lambda: Deep(
        lambda _: HGTConv(WIDTH, WIDTH, (["a"], [("a", "to", "a")])), _by_names
    ),
}


def _gradients(loss: Tensor, model: nn.Module) -> list[Tensor]:
    weights = [*model.parameters()]  # RGATConv uses some of its own alone
    return [loss.detach(), *torch.autograd.grad(loss, weights, materialize_grads=True)]


def _assert_all_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("name", MODELS)
def test_layers_have_the_gradients_of_plain_training(name: str) -> None:
    torch.manual_seed(1)
    model, saving = MODELS[name](), Saving(Recorder())
    for _ in range(2):
        torch.manual_seed(5)
        expected = _gradients(model(X).square().sum(), model)
        saving.counts.clear()
        torch.manual_seed(5)
        with saving.step():
            loss = model(X).square().sum()
        _assert_all_same(_gradients(loss, model), expected)
    assert saving.counts["mask"] >= 6  # of dropout and ReLU in each layer


def test_gcnii_keeps_what_products_and_norms_save() -> None:
    torch.manual_seed(1)
    model, saving = MODELS["GCNII by its equations"](), Saving(Recorder())
    with saving.step():
        model(X)
    del saving.counts["outside"]
    masks = 4 + 3  # of ReLU, and dropout
    copies = 3 * (1 + 1 + 2)  # arguments of the product and the norm, two statistics
    assert saving.counts == {"mask": masks, "copy": copies}


@pytest.mark.parametrize("function", [F.dropout, torch.dropout, nn.Dropout(0.4), F.dropout1d])
def test_random_numbers_are_drawn_once(function: Callable[..., Tensor]) -> None:
    x, call = X[None].clone().requires_grad_(), function
    if not isinstance(function, nn.Module):
        call = lambda x: function(x, 0.4, True)  # noqa: E731
    torch.manual_seed(2)
    expected = torch.autograd.grad(torch.exp(call(x * 2)).sum(), [x])
    state = torch.get_rng_state()
    torch.manual_seed(2)
    saving = Saving(Recorder())
    with saving.step():
        loss = torch.exp(call(x * 2)).sum()
    assert torch.equal(torch.get_rng_state(), state)
    _assert_all_same([*torch.autograd.grad(loss, [x])], [*expected])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("inside", [True, False], ids=["backward inside", "backward outside"])
def test_checkpoints_inside_a_step(reentrant: bool, inside: bool) -> None:
    torch.manual_seed(1)
    model, x = MODELS["GCNII by its equations"](), X.clone().requires_grad_()

    def run() -> Tensor:
        y = checkpoint(model, x, use_reentrant=reentrant)
        y = checkpoint(lambda y: torch.exp(F.dropout(y * 0.01, 0.2)), y, use_reentrant=reentrant)
        return torch.sigmoid(y * 2).square().sum()

    def step(saving: Saving | None) -> list[Tensor]:
        model.zero_grad()
        x.grad = None
        torch.manual_seed(5)
        with nullcontext() if saving is None else saving.step():
            loss = run()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        return [loss.detach(), *(t.grad for t in (x, *model.parameters()) if t.grad is not None)]

    expected, saving = step(None), Saving(Recorder())
    assert len(expected) == 2 + len([*model.parameters()])
    for _ in range(2):
        _assert_all_same(step(saving), expected)


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor]], Tensor]] = {
    "vmap": lambda f: torch.func.vmap(f)(X),
    "grad": lambda f: torch.func.grad(lambda x: f(x).sum())(X),
    "vmap of grad": lambda f: torch.func.vmap(torch.func.grad(lambda x: f(x).sum()))(X),
    "jvp": lambda f: torch.func.jvp(f, (X,), (X * 2,))[1],
    "vjp": lambda f: torch.func.vjp(f, X)[1](X * 2)[0],
    "jacrev": lambda f: torch.func.jacrev(f)(X[:2, :3]),
    "functionalize": lambda f: torch.func.functionalize(f)(X),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_pass_and_leave_no_recipes(name: str) -> None:
    results = []

    def function(x: Tensor) -> Tensor:
        y = F.leaky_relu(F.relu(x * 2 + 1, inplace=True) - 3, 0.1)
        results.append(torch.exp(y.mul_(0.1)))
        return results[-1] * torch.sigmoid(y)

    expected = TRANSFORMS[name](function)
    results.clear()
    with Recorder() as recorder:
        found = TRANSFORMS[name](function)
        assert_same_bits(found, expected)
        after = torch.exp(X + 1)
    assert recorder.recipe_of(found) is None
    assert recorder.recipe_of(after) is not None


def test_vmap_within_a_step() -> None:
    x = X.clone().requires_grad_()

    def run() -> Tensor:
        return torch.func.vmap(lambda row: torch.exp(F.relu(row * 2) - 3))(torch.sigmoid(x)).sum()

    expected, saving = torch.autograd.grad(run(), [x]), Saving(Recorder())
    with saving.step():
        loss = run()
    _assert_all_same([*torch.autograd.grad(loss, [x])], [*expected])

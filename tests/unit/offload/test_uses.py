"""Odd uses of ActivationOffload: gradients stay those of plain training, or an error says why."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from gnnsys.offload import ActivationOffload

Block = Callable[[], AbstractContextManager[Any]]
"""Makes what a use enters: an offload, or nothing."""

KIB = 1 << 10
N, K = 128, 32
"""Rows and columns, of 16 KiB together."""

BUDGET = 56 * KIB
"""Of three matrices in memory."""

BUDGETS = {"recurrent": 512 * KIB, "aggregators": 512 * KIB, "layers_of_pyg": 512 * KIB}
"""Of those that save larger tensors."""

USES: dict[str, Callable[[Block], Sequence[Tensor]]] = {}


def use(f: Callable[[Block], Sequence[Tensor]]) -> Callable[[Block], Sequence[Tensor]]:
    USES[f.__name__] = f
    return f


def matrix(seed: int = 0) -> Tensor:
    return torch.randn(N, K, generator=torch.Generator().manual_seed(seed)).requires_grad_()


class Deep(nn.Module):
    """Of what autograd saves inputs, outputs, masks and noise."""

    def __init__(self, is_checkpointed: bool | None = None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.ModuleList(nn.Linear(K, K) for _ in range(6))
        self.norm = nn.LayerNorm(K)
        self.use_reentrant = is_checkpointed

    def layer(self, x: Tensor, i: int) -> Tensor:
        y = self.norm(self.layers[i](x)).relu() if i % 2 else self.layers[i](x).tanh()
        return nn.functional.dropout(y, 0.25) + x

    def forward(self, x: Tensor) -> Tensor:
        for i in range(len(self.layers)):
            if self.use_reentrant is None:
                x = self.layer(x, i)
            else:
                x = checkpoint(self.layer, x, i, use_reentrant=self.use_reentrant)
        return x


def gradients(model: nn.Module, *more: Tensor) -> list[Tensor]:
    found = [leaf.grad for leaf in (*model.parameters(), *more)]
    assert all(grad is not None for grad in found)
    return [grad for grad in found if grad is not None]


@use
def backward_within(block: Block) -> list[Tensor]:
    model, x = Deep(), matrix()
    with block():
        model(x).square().sum().backward()
    return gradients(model, x)


@use
def backward_behind(block: Block) -> list[Tensor]:
    model, x = Deep(), matrix()
    with block():
        loss = model(x).square().sum()
    loss.backward()
    return gradients(model, x)


@use
def several_steps(block: Block) -> list[Tensor]:
    model, x = Deep(), matrix()
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(4):
        optimizer.zero_grad()
        with block():
            model(x).square().mean().backward()
        optimizer.step()
    return list(model.parameters())


@use
def two_graphs_at_once(block: Block) -> list[Tensor]:
    model, x = Deep(), matrix()
    with block():
        first = model(x).square().sum()
        second = model(x.sin()).square().sum()
    first.backward()
    second.backward()
    return gradients(model, x)


@use
def checkpoint_inside(block: Block) -> list[Tensor]:
    model, x = Deep(is_checkpointed=False), matrix()
    with block():
        model(x).square().sum().backward()
    return gradients(model, x)


@use
def reentrant_checkpoint_inside(block: Block) -> list[Tensor]:
    model, x = Deep(is_checkpointed=True), matrix()
    with block():
        model(x).square().sum().backward()
    return gradients(model, x)


@use
def reentrant_checkpoint_inside_backward_behind(block: Block) -> list[Tensor]:
    model, x = Deep(is_checkpointed=True), matrix()
    with block():
        loss = model(x).square().sum()
    loss.backward()
    return gradients(model, x)


def around(block: Block, use_reentrant: bool) -> list[Tensor]:
    model, x = Deep(), matrix()

    def step(x: Tensor) -> Tensor:
        with block():
            return model(x)

    checkpoint(step, x, use_reentrant=use_reentrant).square().sum().backward()
    return gradients(model, x)


@use
def checkpoint_outside(block: Block) -> list[Tensor]:
    return around(block, use_reentrant=False)


@use
def reentrant_checkpoint_outside(block: Block) -> list[Tensor]:
    return around(block, use_reentrant=True)


@use
def save_on_cpu_inside(block: Block) -> list[Tensor]:
    model, x = Deep(), matrix()
    with block():
        y = model(x)
        with save_on_cpu():
            y = model(y)
        model(y).square().sum().backward()
    return gradients(model, x)


@use
def save_on_cpu_outside(block: Block) -> list[Tensor]:
    model, x = Deep(), matrix()
    with save_on_cpu(), block():
        model(x).square().sum().backward()
    return gradients(model, x)


@use
def another_offload_inside(block: Block) -> list[Tensor]:
    model, x = Deep(), matrix()
    with block():
        y = model(x)
        with ActivationOffload(BUDGET, least_bytes=1):
            y = model(y)
        model(y).square().sum().backward()
    return gradients(model, x)


@use
def retained_graph(block: Block) -> list[Tensor]:
    model, x = Deep(), matrix()
    with block():
        loss = model(x).square().sum()
        loss.backward(retain_graph=True)
        loss.backward(retain_graph=True)
    loss.backward()
    return gradients(model, x)


@use
def double_backward(block: Block) -> list[Tensor]:
    model, x = Deep(), matrix()
    with block():
        (grad,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        grad.square().sum().backward()
    return gradients(model, x)


@use
def double_backward_behind(block: Block) -> list[Tensor]:
    model, x = Deep(), matrix()
    with block():
        loss = model(x).square().sum()
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    grad.square().sum().backward()
    return gradients(model, x)


@use
def sparse_matrices(block: Block) -> list[Tensor]:
    x = matrix()
    coo = torch.eye(N).to_sparse().requires_grad_()
    csr = torch.eye(N).to_sparse_csr()
    with block():
        (csr @ torch.sparse.mm(coo, x.sin()).cos()).square().sum().backward()
    assert x.grad is not None
    assert coo.grad is not None
    return [x.grad, coo.grad.to_dense()]


class Labelled(Tensor):
    """A subclass, which pickles and works as a tensor."""


@use
def subclass(block: Block) -> list[Tensor]:
    x = matrix().detach().as_subclass(Labelled).requires_grad_()
    with block():
        y = (x.exp() * x).relu()
        assert isinstance(y, Labelled)
        (y * y.sin()).sum().backward()
    assert x.grad is not None
    return [x.grad.as_subclass(Tensor)]


@use
def many_views(block: Block) -> list[Tensor]:
    x = matrix()
    with block():
        y = x.exp()
        parts = [y[:, i] * y[:, -i - 1] for i in range(K)]
        parts += [y.t()[i] * y.view(K, N)[i] for i in range(K)]
        torch.stack(parts).square().sum().backward()
    assert x.grad is not None
    return [x.grad]


@use
def odd_layouts(block: Block) -> list[Tensor]:
    x, image = matrix(), torch.linspace(-1, 1, 6 * 8 * 8 * 4).requires_grad_()
    convolution = nn.Conv2d(6, 6, 3)
    with torch.no_grad():
        for weight in convolution.parameters():
            weight.copy_(torch.linspace(-1, 1, weight.numel()).view_as(weight))
    with block():
        y = x.exp().t()[::2, 1::3] * x.new_ones(1).expand(K // 2, -1)
        z = torch.complex(x.sin(), x.cos())
        pixels = image.view(4, 6, 8, 8).sin().to(memory_format=torch.channels_last)
        loss = y.square().sum() + (z.conj() * z.mT.mT.sin()).real.sum() + z.imag.neg().exp().sum()
        loss = loss + convolution(pixels).relu().square().sum() + x[:0].exp().square().sum()
        loss.backward()
    return gradients(convolution, x, image)


@use
def in_place_chain(block: Block) -> list[Tensor]:
    model, x = nn.Linear(K, K), matrix()
    nn.init.eye_(model.weight)
    nn.init.zeros_(model.bias)
    with block():
        y = model(x).add_(1).mul_(x.detach()).relu_()
        y = nn.functional.leaky_relu_(model(y).div_(3))
        model(y).sigmoid_().square().sum().backward()
    return gradients(model, x)


class Cube(torch.autograd.Function):
    """Saves an input, an output and what is neither."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        square = x * x
        y = square * x
        ctx.save_for_backward(x, square, y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x, square, y = ctx.saved_tensors
        return grads[0] * (square + x * x + y / x)


@use
def function_of_ones_own(block: Block) -> list[Tensor]:
    x = matrix()
    with block():
        y: Tensor = Cube.apply(x.exp())  # type: ignore[no-untyped-call]
        (y * y.sin()).sum().backward()
    assert x.grad is not None
    return [x.grad]


@use
def vmap(block: Block) -> list[Tensor]:
    x = matrix()
    with block():
        y = torch.vmap(lambda row: row.exp().relu() * row.sin().sum())(x)
        y.square().sum().backward()
    assert x.grad is not None
    return [x.grad]


@use
def compiled_module(block: Block) -> list[Tensor]:
    model, x = Deep(), matrix()
    compiled = torch.compile(model.norm, backend="aot_eager")
    with block():
        compiled(model.layers[0](x).tanh()).square().sum().backward()
    return gradients(model.norm, x)


@use
def recurrent(block: Block) -> list[Tensor]:
    torch.manual_seed(0)
    model, x = nn.LSTM(K, K, num_layers=2, batch_first=True), matrix()
    with block():
        model(x.sin().view(8, -1, K))[0].square().sum().backward()
    return gradients(model, x)


@use
def aggregators(block: Block) -> list[Tensor]:
    torch.manual_seed(0)
    kinds = ["mean", "max", "std", "median", "softmax", "powermean"]
    several, x = pyg.aggr.MultiAggregation(kinds), matrix()
    lstm = pyg.aggr.LSTMAggregation(K, K)
    index = torch.arange(N).div(5, rounding_mode="floor")
    with block():
        loss = several(x.sigmoid(), index).square().sum() + lstm(x.sin(), index).square().sum()
        loss.backward()
    return gradients(lstm, x)


@use
def layers_of_pyg(block: Block) -> list[Tensor]:
    torch.manual_seed(0)
    model, x = pyg.GAT(K, K, 3, K, dropout=0.5, heads=4, norm="BatchNorm"), matrix()
    edge_index = torch.randint(N, (2, 4 * N))
    with block():
        model(x, edge_index).square().sum().backward()
    return gradients(model, x)


@use
def autocast(block: Block) -> list[Tensor]:
    model, x = Deep(), matrix()
    with block(), torch.autocast("cpu", torch.bfloat16):
        model(x).square().sum().backward()
    return gradients(model, x)


@use
def anomaly_mode(block: Block) -> list[Tensor]:
    model, x = Deep(), matrix()
    with block(), torch.autograd.set_detect_anomaly(True, check_nan=True):
        model(x).square().sum().backward()
    return gradients(model, x)


@use
def a_part_of_the_graph(block: Block) -> list[Tensor]:
    model, x = Deep(), matrix()
    with block():
        y = model(x)
        model(y)  # nobody wants its derivatives
        return list(torch.autograd.grad(y.sum(), (x, model.layers[0].weight)))


@use
def backward_in_another_thread(block: Block) -> list[Tensor]:
    model, x = Deep(), matrix()
    with block():
        loss = model(x).square().sum()
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    return gradients(model, x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Sparse CSR tensor:UserWarning")
@pytest.mark.parametrize("name", USES)
def test_gradients_are_those_of_plain_training(name: str, tmp_path: Path) -> None:
    def run(block: Block) -> Sequence[Tensor]:
        torch.manual_seed(7)
        return USES[name](block)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors are small
    budget = BUDGETS.get(name, BUDGET)
    offload = ActivationOffload(budget, folder=tmp_path, least_bytes=1)
    expected, found = run(nullcontext), run(lambda: offload)
    torch.set_num_threads(threads)
    assert len(found) == len(expected)
    for ours, plain in zip(found, expected, strict=True):
        assert torch.equal(ours, plain)
    assert 0 < offload.stats.peak <= budget
    offload.close()

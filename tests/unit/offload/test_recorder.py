"""Which saved tensors are masks, which are computed again: gradients stay bitwise the same."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnnsys.offload.recipes import Recipe, Source, key_of
from gnnsys.offload.recorder import Recorder
from gnnsys.pipeline import KeyedDropout
from tests.unit.offload.saving import Saving, assert_same_bits

ROWS, WIDTH = 80, 36  # more than the 4 KiB below which there are no recipes


def values(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """(ROWS, WIDTH), some of them odd."""
    x = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    odd = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-42, -1e-42, 90.0, -90.0]
    x.view(-1)[: len(odd)] = torch.tensor(odd, dtype=dtype)
    return x


def run(recipe: Recipe) -> Tensor:
    """Of which nothing is held, down to what comes from outside."""
    return recipe.run([run(s.recipe) if s.recipe else outside(s) for s in recipe.sources])


def outside(source: Source) -> Tensor:
    assert source.outside is not None
    return source.outside


ROW = torch.linspace(-2, 2, WIDTH)
OTHER = values(1)
LARGE_ROWS = torch.linspace(-1, 1, 2000)

OPS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x + 1, inplace=True),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "leaky_relu_": lambda x: F.leaky_relu_(x * 1, 0.2),
    "elu": F.elu,
    "nn.ELU in place": lambda x: nn.ELU(inplace=True)(x * 1),
    "gelu": F.gelu,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "nn.SiLU": nn.SiLU(),
    "silu in place": lambda x: F.silu(x * 1, inplace=True),
    "sigmoid": torch.sigmoid,
    "tanh": lambda x: x.tanh(),
    "exp_": lambda x: (x * 1).exp_(),
    "neg": lambda x: -x,
    "add with alpha": lambda x: torch.add(x, OTHER, alpha=3),
    "add by name": lambda x: torch.add(x, other=OTHER),
    "add a row": lambda x: x + ROW,
    "add many rows": lambda x: LARGE_ROWS[:, None] + x[:1],
    "radd": lambda x: 1 + x,
    "iadd": lambda x: iadd(x * 1, OTHER),
    "iadd in double": lambda x: iadd(x * 1, OTHER.double() / 3),
    "sub": lambda x: x - OTHER,
    "rsub": lambda x: 1 - x,
    "mul": lambda x: x * OTHER,
    "mul by itself": lambda x: x * x,
    "mul_ by itself": lambda x: (y := x * 1).mul_(y),
    "rmul": lambda x: 0.3 * x,
    "div": lambda x: x / OTHER,
    "rdiv": lambda x: 1 / x,
    "div floored": lambda x: x.div(0.7, rounding_mode="floor"),
    "layer_norm": lambda x: F.layer_norm(x, [WIDTH], ROW, bias=ROW + 1),
    "nn.LayerNorm": nn.LayerNorm(WIDTH),
    "double": lambda x: x.double(),
    "to bfloat16": lambda x: x.to(torch.bfloat16),
    "transposed": lambda x: torch.exp(x.t()),
    "strided": lambda x: torch.exp(x[::2, 1:]) * 3,
    "expanded": lambda x: torch.sigmoid(x[:1].expand(ROWS, WIDTH)),
    "view": lambda x: (x + 1).view(-1, 6)[3:, ::2],
    "transpose": lambda x: (x + 1).t(),
    "KeyedDropout": KeyedDropout(0.4),
}


def iadd(x: Tensor, y: Tensor) -> Tensor:
    x += y
    return x


@pytest.mark.parametrize("name", OPS)
def test_recipes_give_the_same_bits(name: str) -> None:
    x = values().requires_grad_()
    with Recorder() as recorder:
        y = OPS[name](x)
    recipe = recorder.recipe_of(y)
    assert recipe is not None
    assert_same_bits(run(recipe), y)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_recipes_of_other_dtypes_give_the_same_bits(dtype: torch.dtype) -> None:
    x = torch.cat([values(0, dtype), values(1, dtype)]).requires_grad_()
    with Recorder() as recorder:
        y = F.gelu(F.layer_norm(x * 2 + 1, [WIDTH])).sigmoid()
    recipe = recorder.recipe_of(y)
    assert recipe is not None
    assert_same_bits(run(recipe), y)


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("inplace", [True, False])
def test_dropout_is_computed_again_with_the_same_random_numbers(masks: bool, inplace: bool) -> None:
    x = values().requires_grad_()
    saving = Saving(Recorder(masks=masks))
    with saving.step():
        y = F.dropout(x * 2, 0.3, inplace=inplace)
        recipe = saving.recorder.recipe_of(y)
    assert recipe is not None
    assert_same_bits(saving.value(Source(None, None, recipe)), y)
    assert saving.counts == {"mask" if masks else "copy": 1}


class Net(nn.Module):
    """Residual blocks as of deep GNNs, with what saves masks and what is computed again."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.linears = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.drop, self.inplace = KeyedDropout(0.2), inplace

    def forward(self, x: Tensor) -> Tensor:
        for norm, linear in zip(self.norms, self.linears, strict=True):
            h = F.dropout(F.relu(norm(x), inplace=self.inplace), 0.3)
            h = F.leaky_relu(F.dropout(linear(h), 0.1, inplace=self.inplace), 0.1)
            x = x + self.drop(F.gelu(h)) * torch.sigmoid(h)
        return (x * (x > 0.5)).tanh()


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize(("masks", "recompute"), [(True, True), (True, False), (False, True)])
def test_gradients_are_those_of_plain_training(masks: bool, recompute: bool, inplace: bool) -> None:
    torch.manual_seed(3)
    net, x = Net(inplace), torch.randn(ROWS, WIDTH)
    saving = Saving(Recorder(masks=masks, recompute=recompute))

    def step() -> Tensor:
        torch.manual_seed(5)
        return net(x).square().sum()

    for _ in range(2):
        expected = torch.autograd.grad(step(), [*net.parameters()])
        with saving.step():
            loss = step()
        found = torch.autograd.grad(loss, [*net.parameters()])
        for a, b in zip(found, expected, strict=True):
            assert_same_bits(a, b)
    assert (saving.counts["mask"] > 2) == masks  # otherwise those of bools
    assert (saving.counts["recipe"] > 0) == recompute


def test_what_is_seen_first_without_a_graph_is_outside() -> None:
    x, parameter = values(), nn.Parameter(values())
    recorder = Recorder()
    with recorder:
        made, made_by_torch = x * parameter, torch.ones(3)
        view, plain = x.t(), made.detach()
        torch.addmm(plain, x, made_by_torch.new_ones(WIDTH, WIDTH))
    for t in (x, parameter, parameter.detach(), view):
        assert recorder.is_outside(t)
    for t in (made, plain, made_by_torch, torch.ones(3)):
        assert not recorder.is_outside(t)
    recorder.begin_step()
    for t in (made, plain):
        assert recorder.is_outside(t)


def test_no_memory_is_kept_but_what_came_from_outside() -> None:
    x = values().requires_grad_()
    with Recorder() as recorder:
        a = x + 1
        b = torch.exp(a)
    storages = [weakref.ref(t.untyped_storage()) for t in (a, b)]
    numbers = [recorder.key_of(t)[0] for t in (a, b)]
    recipe = recorder.recipe_of(b)
    del a, b
    gc.collect()
    assert [storage() for storage in storages] == [None, None]
    assert recipe is not None
    assert_same_bits(run(recipe), torch.exp(x + 1))
    with recorder:
        assert not {recorder.key_of(x + 1)[0] for _ in range(20)} & {*numbers}


def test_a_change_in_place_from_outside_is_an_error() -> None:
    x = values()
    with Recorder() as recorder:
        y = torch.exp(x)
    recipe = recorder.recipe_of(y)
    assert recipe is not None
    x.add_(1)
    message = r"by an inplace operation: \[\[80, 36\]\], from .* is at version 2"
    with pytest.raises(RuntimeError, match=message):
        run(recipe)


def test_a_change_in_place_makes_another_value() -> None:
    x = values()
    with Recorder() as recorder:
        y = torch.exp(x)
        part = y[:, :2]
        before = recorder.key_of(y), recorder.recipe_of(part)
        part.mul_(3)
        assert recorder.key_of(y) != before[0]
        assert recorder.recipe_of(y) is None
        assert recorder.recipe_of(part) is None
        z = y.clone().relu_()
        assert recorder.recipe_of(z) is None  # of clone's result
    assert before[1] is not None


def change_by_numpy(y: Tensor) -> None:
    y.numpy()[0] = 7


def change_by_data(y: Tensor) -> None:
    y.data.add_(1)


def change_by_other_memory(y: Tensor) -> None:
    other = torch.exp(values(3))
    other.mul_(2)
    y.data = other


def change_by_dlpack(y: Tensor) -> None:
    torch.from_dlpack(y).mul_(2)


def change_by_array(y: Tensor) -> None:
    np.asarray(y)[1] = 7


@pytest.mark.parametrize(
    "change",
    [
        change_by_numpy,
        change_by_array,
        change_by_dlpack,
        change_by_data,
        change_by_other_memory,
    ],
)
def test_nothing_is_known_of_what_may_change_uncounted(change: Callable[[Tensor], None]) -> None:
    with Recorder() as recorder:
        y = torch.exp(values())
        assert recorder.recipe_of(y) is not None
        change(y)
        z = y + 1
    assert recorder.recipe_of(y) is None
    assert recorder.recipe_of(z) is None
    assert recorder.key_of(y) != recorder.key_of(y)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.exp(x, out=torch.empty(ROWS, WIDTH)),
        lambda x: torch.func.vmap(torch.exp)(x),
        lambda x: F.batch_norm(x, None, None, training=True),
        lambda x: x @ x.t(),
        lambda x: torch.no_grad()(torch.exp)(x),
        lambda x: torch.autocast("cpu")(torch.exp)(x),
        lambda x: torch.view_as_complex(x.view(-1, 2)) * 2,
        lambda x: torch.add(x, torch.inference_mode()(torch.ones)(ROWS, WIDTH)),
        lambda x: torch.jit.script(torch.nn.ReLU())(x),
        lambda x: F.dropout(x, 0.3),  # of x without a gradient, nothing is saved
        lambda x: torch.exp(x.to_sparse().to_dense()),
        lambda x: torch.sum(x),
    ],
)
def test_some_values_are_not_computed_again(function: Callable[[Tensor], Tensor]) -> None:
    with Recorder() as recorder:
        y = function(values())
    recipe = recorder.recipe_of(y)
    assert recipe is None or not Saving(recorder).has(Source(None, None, recipe))


def test_odd_tensors_pass() -> None:
    x = values()
    with Recorder():
        assert (torch.empty(ROWS, WIDTH, device="meta") * 2).device.type == "meta"
        assert (x.to_sparse() * 2).is_sparse
        assert torch.nested.nested_tensor([x, x[:3]]).mul(2).is_nested
        doubled = torch.func.grad(lambda t: F.relu(t * 2).sum())(x)
    assert torch.equal(doubled, 2.0 * ~(x <= 0))


def test_recipes_are_bounded() -> None:
    x = values()
    with Recorder() as recorder:
        y = x + 1
        for _ in range(200):
            y = y * y + y
    recipe = recorder.recipe_of(y)
    assert recipe is not None
    assert recipe.size <= 16


def test_a_recipe_has_small_values_inside_and_keeps_none_of_large_ones() -> None:
    scale = nn.Parameter(torch.tensor(0.3))
    with Recorder() as recorder:
        h = values() @ torch.eye(WIDTH)
        y = h * torch.sigmoid(scale)
    recipe = recorder.recipe_of(y)
    assert recipe is not None
    with torch.no_grad():
        scale.mul_(5)
    assert [source.outside is None for source in recipe.sources] == [True, False]
    assert recipe.sources[0].key == key_of(h)
    assert_same_bits(recipe.run([h, outside(recipe.sources[1])]), y)


def test_each_thread_has_calls_of_its_own() -> None:
    """A function that saves while another thread is inside dropout is not taken for it."""
    recorder, inside, go_on = Recorder(), threading.Event(), threading.Event()
    masks = []

    def pack(t: Tensor) -> Tensor:
        inside.set()
        assert go_on.wait(30)
        masks.append(recorder.mask_of(t))
        return t

    def drop() -> None:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), recorder:
            F.dropout(values().requires_grad_(), 0.5)

    thread = threading.Thread(target=drop)
    thread.start()
    assert inside.wait(30)
    assert recorder.mask_of(torch.tensor([0.0, 2.0])) is None
    go_on.set()
    thread.join()
    assert [mask is not None for mask in masks] == [True]


def test_two_recorders_see_the_same_calls() -> None:
    x = values().requires_grad_()
    with Recorder() as one, Recorder() as other:
        y = F.relu(x + 1)
    for recorder in (one, other):
        recipe = recorder.recipe_of(y)
        assert recipe is not None
        assert_same_bits(run(recipe), y)

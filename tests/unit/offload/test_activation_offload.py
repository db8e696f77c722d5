"""Gradients are those of plain training, and memory stays within the budget, with every policy."""

from __future__ import annotations

import copy
import gc
import itertools
import os
import subprocess
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gnnsys.choices import OffloadPolicy
from gnnsys.errors import ArgumentError, ResourceError, TooLargeError
from gnnsys.offload import ActivationOffload, workers
from tests.unit.offload.training import (
    EDGE_INDEX,
    NODES,
    STORAGE,
    WIDTH,
    Residual,
    X,
    Y,
    losses_and_state,
    same_bits,
)  # fmt: skip

LOSSLESS: tuple[OffloadPolicy, ...] = ("mask", "recompute", "host", "disk")
SETS = [each for n in range(5) for each in itertools.combinations(LOSSLESS, n)]


@pytest.fixture
def offload(tmp_path: Path) -> Iterator[ActivationOffload]:
    made = ActivationOffload(4 * STORAGE, folder=tmp_path, least_bytes=1024)
    yield made
    made.close()
    assert os.listdir(tmp_path) == []


# Right ------------------------------------------------------------------------------------------


def stats_of_autograd() -> int:
    """Bytes of the storages that autograd keeps for a step, of those that the step computed."""
    model = Residual()
    there = {each.untyped_storage().data_ptr() for each in (X, Y, *model.parameters())}
    found = {}

    def pack(t: Tensor) -> Tensor:
        if t.layout == torch.strided and t.nbytes >= 1024:
            found[t.untyped_storage().data_ptr()] = t
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        loss = F.cross_entropy(model(X), Y)
    del loss
    return sum(t.untyped_storage().nbytes() for at, t in found.items() if at not in there)


@pytest.mark.parametrize("policies", SETS, ids="+".join)
def test_weights_are_those_of_plain_training(
    policies: tuple[OffloadPolicy, ...], tmp_path: Path
) -> None:
    plain = losses_and_state(Residual, None)
    budget = 4 * STORAGE if "disk" in policies else 200 * STORAGE
    offload = ActivationOffload(budget, folder=tmp_path, policies=policies, least_bytes=1024)
    assert same_bits(losses_and_state(Residual, offload), plain)
    stats = offload.stats
    assert stats.plain == stats_of_autograd()
    assert 0 < stats.peak <= budget
    assert (stats.masked > 0) == ("mask" in policies)
    assert (stats.stored > 0) == (stats.loaded > 0) == ("disk" in policies)
    offload.close()


def random_relu(x: Tensor) -> Tensor:
    """Saves its random numbers before it draws them."""
    return F.rrelu(x, training=True)


@pytest.mark.parametrize(
    "activation", [torch.tanh, F.elu, F.leaky_relu, F.gelu, F.silu, F.relu_, random_relu]
)
@pytest.mark.parametrize("inside", [False, True])
def test_any_activation_and_backward_within_the_block(
    activation: Callable[[Tensor], Tensor], inside: bool, offload: ActivationOffload
) -> None:
    def make() -> nn.Module:
        return Residual(activation)

    plain = losses_and_state(make, None)
    assert same_bits(losses_and_state(make, offload, inside=inside), plain)


def test_layers_of_pyg(offload: ActivationOffload) -> None:
    from torch_geometric.nn import GATConv, GCN2Conv, LayerNorm

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, WIDTH), GATConv(WIDTH, 4)
            self.layers = nn.ModuleList(GCN2Conv(WIDTH, 0.1, 0.5, i + 1) for i in range(3))
            self.norm = LayerNorm(WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            x = first = F.relu(self.first(x))
            for layer in self.layers:
                x = F.relu(self.norm(layer(F.dropout(x, 0.5, self.training), first, EDGE_INDEX)))
            return self.last(x, EDGE_INDEX)

    assert same_bits(losses_and_state(Net, offload), losses_and_state(Net, None))
    assert offload.stats.peak <= 4 * STORAGE


def test_bf16_rounds_what_is_kept_and_nothing_else() -> None:
    x = torch.randn(NODES, WIDTH, requires_grad=True)
    weight = torch.randn(WIDTH, WIDTH, requires_grad=True)
    with ActivationOffload(policies=("bf16",)) as offload:
        hidden = x.detach() * 3 + x * 0  # computed, so not alive anyway
        kept = hidden.detach().clone()
        out = hidden @ weight
    del hidden
    ones = torch.ones_like(out)
    out.backward(ones)
    assert weight.grad is not None
    assert torch.equal(weight.grad, kept.bfloat16().float().T @ ones)
    assert offload.stats.peak == STORAGE // 2
    offload.close()


def test_the_process_takes_no_more_memory_than_the_budget_and_what_computing_takes(
    run_forked: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    script = """
        import re, torch
        from contextlib import nullcontext
        from pathlib import Path
        from gnnsys.offload import ActivationOffload

        def read(name):
            status = Path("/proc/self/status").read_text()
            return int(re.search(rf"{name}:\\s+(\\d+) kB", status)[1])

        def taken(saving):
            before = read("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")
            with saving:
                y = x
                for _ in range(24):
                    y = torch.sigmoid(y)
            y.sum().backward()
            return read("VmHWM") - before >> 10

        torch.set_num_threads(1)
        offload = ActivationOffload("12MB", folder=".", policies=("disk",))
        x = torch.rand(1 << 20).requires_grad_()
        taken(offload)  # the first step makes threads and the file, too
        print(taken(offload), offload.stats.peak >> 20, taken(nullcontext()))
    """
    ran = run_forked(script, tmp_path)
    assert ran.returncode == 0, ran.stderr
    ours, peak, plain = map(int, ran.stdout.split())
    assert peak == 12
    assert plain > 24 * 4
    # Results, gradients, what is on its way to the disk and what stays in the heap: 9 tensors.
    assert ours <= 12 + 9 * 4


# Kept once, and let go of -----------------------------------------------------------------------


def test_a_storage_is_kept_once_whatever_views_are_saved() -> None:
    with ActivationOffload(policies=()) as offload:
        x = torch.randn(NODES, WIDTH, requires_grad=True) * 2
        y = (x * x.detach()).sum() + (x.t() * x.detach().t()).sum() + (x[:7] * x.detach()[:7]).sum()
    y.backward()
    del x, y
    assert (offload.stats.plain, offload.stats.kept, offload.stats.peak) == (STORAGE,) * 3
    offload.close()


def test_parameters_inputs_small_and_sparse_tensors_are_left_alone() -> None:
    sparse = torch.eye(NODES).to_sparse()
    model = nn.Linear(8, WIDTH)
    with ActivationOffload(policies=("disk",)) as offload:
        out = torch.sparse.mm(sparse, model(X)).sum() + (X[:3] @ model.weight.t()).exp().sum()
    out.backward()
    assert (offload.stats.plain, offload.stats.kept, offload.stats.peak) == (0, 0, 0)
    offload.close()


def test_what_nobody_needs_any_more_is_let_go_of(offload: ActivationOffload) -> None:
    with offload:
        model = Residual()
        out = model(X)
    del out  # without backward
    assert offload.stats.stored > 0
    losses_and_state(Residual, offload, steps=1)
    assert offload._keeper is not None
    assert offload._keeper.is_idle()
    assert offload._keeper._tier is not None
    assert offload._keeper._tier._file.in_use == 0


def test_what_others_hold_is_forwarded_instead_of_read(tmp_path: Path) -> None:
    offload = ActivationOffload(STORAGE, folder=tmp_path, policies=("disk",))
    held = []
    with offload:
        x = torch.randn(NODES, WIDTH, requires_grad=True)
        for _ in range(6):
            x = torch.exp(x * 0.1)
            held.append(x)  # its result is what exp saves
    x.sum().backward()
    del x
    held.clear()
    assert offload.stats.stored > 0
    assert offload.stats.forwarded >= STORAGE
    assert offload.stats.loaded == 0
    offload.close()


# Raises -----------------------------------------------------------------------------------------


def changed(change: Callable[[Tensor], object], saving: ActivationOffload | None) -> None:
    torch.manual_seed(0)
    x = torch.randn(NODES, WIDTH, requires_grad=True)
    with saving or nullcontext():
        first = x * 2
        hidden = torch.tanh(first)
        y = hidden
        for _ in range(4):
            y = torch.sigmoid(y * y)
    change(hidden)
    y.sum().backward()


CHANGES: dict[str, Callable[[Tensor], object]] = {
    "itself": lambda t: t.data.numpy() is not None and t.detach().add_(1),
    "a view": lambda t: t.detach()[3:4].zero_(),
    "a row": lambda t: t.detach().__setitem__(0, 1.0),
}


@pytest.mark.parametrize("policies", [(), ("mask", "recompute"), ("disk",), LOSSLESS], ids="+".join)
@pytest.mark.parametrize("change", CHANGES)
def test_a_tensor_changed_in_place_raises(
    change: str, policies: tuple[OffloadPolicy, ...], tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation"):
        changed(CHANGES[change], None)
    budget = 2 * STORAGE if "disk" in policies else None
    offload = ActivationOffload(budget, folder=tmp_path, policies=policies)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation"):
        changed(CHANGES[change], offload)
    gc.collect()
    assert same_bits(losses_and_state(Residual, offload), losses_and_state(Residual, None))
    offload.close()


def test_a_change_of_a_small_tensor_raises() -> None:
    offload = ActivationOffload()
    x = torch.randn(3, requires_grad=True)
    with offload:
        y = x.exp()
        z = y.sum()
    y.detach().add_(1)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation: \[\[3\]\] is at"):
        z.backward()


class Sub(Tensor):
    pass


def itself(t: Tensor) -> Tensor:
    return t


LEFT_ALONE: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "coo": (Tensor.to_sparse, itself),
    "values of coo": (Tensor.to_sparse, Tensor.values),
    "csr": (Tensor.to_sparse_csr, itself),
    "values of csr": (Tensor.to_sparse_csr, Tensor.values),
    "csc": (Tensor.to_sparse_csc, itself),
    "subclass": (lambda t: t.as_subclass(Sub), itself),
    "input": (itself, itself),
    "parameter": (lambda t: nn.Parameter(t, requires_grad=False), Tensor.detach),
    "conjugate": (lambda t: torch.complex(t, t).conj(), itself),
}
"""How a tensor is made, and what of it is changed."""


@pytest.mark.parametrize("kind", LEFT_ALONE)
def test_a_change_of_a_tensor_that_is_left_alone_raises(kind: str) -> None:
    make, part = LEFT_ALONE[kind]
    for saving in (nullcontext(), ActivationOffload()):
        matrix = make(torch.eye(300))
        weight = torch.randn(300, 4, dtype=matrix.dtype, requires_grad=True)
        with saving:
            y = matrix @ weight
        part(matrix).mul_(2)
        with pytest.raises(RuntimeError, match=r"modified by an inplace operation"):
            y.abs().sum().backward()


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        x.mul_(2)
        return gradient


def changed_in_backward(
    x: Tensor, saving: AbstractContextManager[object], held: list[Tensor]
) -> Tensor:
    with saving:
        y = x * 1
        return Doubled.apply(torch.sigmoid(y * y) + y).sum() + Doubled.apply(y).sum()


def changed_in_backward_and_held(
    x: Tensor, saving: AbstractContextManager[object], held: list[Tensor]
) -> Tensor:
    with saving:
        y = x * 1
        held.append(y)
        return Doubled.apply(torch.sigmoid(y * y) + y).sum() + Doubled.apply(y).sum()


def changed_with_its_small_view(
    x: Tensor, saving: AbstractContextManager[object], held: list[Tensor]
) -> Tensor:
    with saving:
        y = x * 1
        return y[:2].square().sum() + Doubled.apply(y).sum()


def changed_with_what_is_saved_outside(
    x: Tensor, saving: AbstractContextManager[object], held: list[Tensor]
) -> Tensor:
    y = x * 1
    loss = y.square().sum()
    with saving:
        return loss + Doubled.apply(y).sum()


@pytest.mark.parametrize("policies", [None, (), ("disk",)], ids=["plain", "kept", "disk"])
@pytest.mark.parametrize(
    "loss_of",
    [
        changed_in_backward,
        changed_in_backward_and_held,
        changed_with_its_small_view,
        changed_with_what_is_saved_outside,
    ],
)
def test_a_backward_that_changes_what_another_part_needs_raises(
    loss_of: Callable[[Tensor, AbstractContextManager[object], list[Tensor]], Tensor],
    policies: tuple[OffloadPolicy, ...] | None,
    tmp_path: Path,
) -> None:
    saving: AbstractContextManager[object] = nullcontext()
    if policies is not None:
        budget = 2 * STORAGE if policies else None
        saving = ActivationOffload(budget, folder=tmp_path, policies=policies)
    held = list[Tensor]()
    for _ in range(3):
        loss = loss_of(torch.randn(NODES, WIDTH, requires_grad=True), saving, held)
        with pytest.raises(RuntimeError, match=r"modified by an inplace operation"):
            loss.backward()


def test_what_escapes_counting_is_not_computed_again(offload: ActivationOffload) -> None:
    def run() -> Tensor:
        x, weight = torch.ones(NODES, WIDTH), torch.ones(NODES, WIDTH, requires_grad=True)
        y = x + 1
        x.data.zero_()
        (y * weight).sum().backward()
        assert weight.grad is not None
        return weight.grad

    plain = run()
    with offload:
        assert torch.equal(run(), plain)


def test_nothing_is_computed_again_from_what_was_changed_before(offload: ActivationOffload) -> None:
    def run(saving: AbstractContextManager[object]) -> Tensor:
        torch.manual_seed(0)
        x = torch.randn(NODES, WIDTH)
        weight = torch.randn(NODES, WIDTH, requires_grad=True)
        with saving:
            first = weight * 1
            dead = torch.tanh(first) * first  # keeps first, and does without it in this backward
            second, third = first + 1, x * 2
            first.detach().neg_()
            x.neg_()
            loss = (weight * (second + 1)).sum() + (weight * (third + 1)).sum()
        loss.backward()
        del dead
        assert weight.grad is not None
        return weight.grad

    assert torch.equal(run(offload), run(nullcontext()))


def test_a_long_chain_of_sums_is_kept_here_and_there(offload: ActivationOffload) -> None:
    weights = torch.randn(600, 40, 32)

    def run(saving: AbstractContextManager[object]) -> Tensor:
        x = torch.ones(40, 32, requires_grad=True)
        with saving:
            y, loss = x, torch.zeros(())
            for weight in weights:
                y = y + weight
                loss = loss + (y * y).sum()
        loss.backward()
        assert x.grad is not None
        return x.grad

    saving = ActivationOffload(policies=("recompute",), least_bytes=1024)
    assert torch.equal(run(saving), run(nullcontext()))
    assert saving.stats.plain == weights.nbytes
    # Each of those kept is followed by 16 sums.
    assert saving.stats.kept == pytest.approx(weights.nbytes / 17, rel=0.01)


@pytest.mark.parametrize("rows", [3, NODES])
def test_a_graph_that_is_let_go_of_without_backward_is_freed(
    rows: int, offload: ActivationOffload
) -> None:
    x = torch.randn(rows, WIDTH, requires_grad=True)
    with offload:
        y = torch.exp(x * 1)
    assert y.grad_fn is not None
    mark = threading.Event()
    y.grad_fn.metadata["mark"] = mark
    gone = weakref.ref(mark)
    del y, mark
    assert gone() is None


def test_a_thread_that_is_refused_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offload = ActivationOffload(2 * STORAGE, folder=tmp_path, policies=("disk",))
    x = torch.randn(NODES, WIDTH, requires_grad=True)
    with offload:
        first = torch.sigmoid(x)
        second = torch.sigmoid(first)

        def refuse(*_: Any) -> Any:
            raise ResourceError("no thread")

        with monkeypatch.context() as patched:
            patched.setattr(workers, "start_thread", refuse)
            with pytest.raises(ResourceError, match="no thread"):
                torch.sigmoid(second)
        third = torch.sigmoid(second)
    third.sum().backward()
    grad, x.grad = x.grad, None
    torch.sigmoid(torch.sigmoid(torch.sigmoid(x))).sum().backward()
    assert grad is not None
    assert x.grad is not None
    assert torch.equal(grad, x.grad)


def test_a_budget_that_is_too_small_is_refused_with_numbers(tmp_path: Path) -> None:
    for policies, way_out in ((("disk",), "give a larger budget"), ((), "allow policies")):
        offload = ActivationOffload(STORAGE - 1, folder=tmp_path, policies=policies)
        with pytest.raises(TooLargeError, match=rf"\(1000, 32\) .* > budget of 125 KiB; {way_out}"):
            losses_and_state(Residual, offload)
        gc.collect()
        offload.close()


def test_wrong_arguments() -> None:
    with pytest.raises(ArgumentError, match=r"policies: paper, expected of mask, recompute"):
        ActivationOffload(policies=["paper"])  # type: ignore[list-item]
    for size in (0, -5):
        with pytest.raises(ArgumentError, match=rf"budget: {size}, expected bytes above 0"):
            ActivationOffload(size)
    with pytest.raises(ArgumentError, match=r"^disk_budget many: expected a number of bytes"):
        ActivationOffload(disk_budget="many")


def test_it_is_entered_once_at_a_time(offload: ActivationOffload) -> None:
    with offload:
        with pytest.raises(ArgumentError, match=r"it is active already"), offload:
            pass
        loss = Residual()(X).sum()
    loss.backward()


def test_a_forward_that_fails_leaves_it_usable(offload: ActivationOffload) -> None:
    def fail() -> None:
        with offload:
            Residual()(X).fill_(1 / 0)

    with pytest.raises(ZeroDivisionError):
        fail()
    assert same_bits(losses_and_state(Residual, offload), losses_and_state(Residual, None))


def test_backward_after_close_is_an_error(tmp_path: Path) -> None:
    offload = ActivationOffload(2 * STORAGE, folder=tmp_path, policies=("disk",))
    with offload:
        loss = Residual()(X).sum()
    offload.close()
    with pytest.raises(ArgumentError, match=r"after it was closed"):
        loss.backward()


# In company -------------------------------------------------------------------------------------


def test_backward_twice(offload: ActivationOffload) -> None:
    def run() -> list[Tensor]:
        torch.manual_seed(0)
        model = Residual(torch.tanh)
        loss = model(X).square().mean()
        loss.backward(retain_graph=True)
        once = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        loss.backward()
        return once + [p.grad for p in model.parameters() if p.grad is not None]

    plain = run()
    with offload:
        assert same_bits(run(), plain)
    assert offload.stats.peak <= 4 * STORAGE


def test_gradients_of_gradients(offload: ActivationOffload) -> None:
    def run() -> list[Tensor]:
        torch.manual_seed(0)
        model = Residual(torch.tanh)
        x = X.clone().requires_grad_()
        (first,) = torch.autograd.grad(model(x).square().mean(), x, create_graph=True)
        first.square().sum().backward()
        return [first.detach()] + [p.grad for p in model.parameters() if p.grad is not None]

    plain = run()
    with offload:
        assert same_bits(run(), plain)


class Checkpointed(Residual):
    def forward(self, x: Tensor) -> Tensor:
        x = first = self.activation(self.first(x))
        for layer in self.layers:
            x = checkpoint(self.one, layer, x, first, use_reentrant=self.reentrant)
        return self.last(x)

    def one(self, layer: nn.Module, x: Tensor, first: Tensor) -> Tensor:
        return self.activation(layer(0.9 * F.dropout(x, 0.3, self.training) + 0.1 * first))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_nested_checkpoints(reentrant: bool, inside: bool, offload: ActivationOffload) -> None:
    def make() -> nn.Module:
        model = Checkpointed()
        model.reentrant = reentrant
        return model

    plain = losses_and_state(make, None)
    assert same_bits(losses_and_state(make, offload, inside=inside), plain)


def test_a_checkpoint_around_it(tmp_path: Path) -> None:
    class Around(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, x, use_reentrant=False)

        def inner(self, x: Tensor) -> Tensor:
            with ActivationOffload(4 * STORAGE, folder=tmp_path, least_bytes=1024):
                return super().forward(x)

    assert same_bits(losses_and_state(Around, None), losses_and_state(Residual, None))


def test_hooks_within_hooks(offload: ActivationOffload) -> None:
    class Hooked(Residual):
        def forward(self, x: Tensor) -> Tensor:
            with save_on_cpu():
                x = first = self.activation(self.first(x))
                x = self.activation(self.layers[0](x))
            for layer in self.layers:
                x = self.activation(layer(0.9 * x + 0.1 * first))
            return self.last(x)

    plain = losses_and_state(Hooked, None)
    assert same_bits(losses_and_state(Hooked, offload), plain)
    with save_on_cpu():
        assert same_bits(losses_and_state(Hooked, offload), plain)


def test_two_of_them_within_each_other(tmp_path: Path) -> None:
    inner = ActivationOffload(4 * STORAGE, folder=tmp_path, policies=("disk",), least_bytes=1024)
    outer = ActivationOffload(4 * STORAGE, folder=tmp_path, least_bytes=1024)

    class Nested(Residual):
        def forward(self, x: Tensor) -> Tensor:
            with inner:
                x = super().forward(x)
            return torch.exp(-x)

    assert same_bits(losses_and_state(Nested, outer), losses_and_state(Nested, None))
    outer.close()
    inner.close()


def test_steps_in_threads_of_their_own(tmp_path: Path) -> None:
    plain = losses_and_state(Residual, None)
    found: dict[int, bool] = {}
    torch_threads = torch.get_num_threads()

    def run(number: int) -> None:
        torch.set_num_threads(torch_threads)
        x = torch.full((NODES, WIDTH), number + 1.0, requires_grad=True)
        offload = ActivationOffload(2 * STORAGE, folder=tmp_path, policies=("disk",))
        for _ in range(3):
            y = x
            with offload:
                for _ in range(8):
                    y = torch.sigmoid(y * y)
            y.sum().backward()
        offload.close()
        other = x.detach().clone().requires_grad_()
        for _ in range(3):
            y = other
            for _ in range(8):
                y = torch.sigmoid(y * y)
            y.sum().backward()
        assert x.grad is not None
        assert other.grad is not None
        found[number] = torch.equal(x.grad, other.grad)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: True, 1: True, 2: True}
    assert same_bits(losses_and_state(Residual, None), plain)


def test_autocast(offload: ActivationOffload) -> None:
    class Cast(Residual):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x).float()

    assert same_bits(losses_and_state(Cast, offload), losses_and_state(Cast, None))


def test_models_are_copied_within_it(offload: ActivationOffload) -> None:
    with offload:
        model = Residual()
        again = copy.deepcopy(model)
        torch.manual_seed(1)
        loss = again(X).sum()
    loss.backward()
    torch.manual_seed(1)
    model(X).sum().backward()
    assert same_bits(
        [p.grad for p in again.parameters() if p.grad is not None],
        [p.grad for p in model.parameters() if p.grad is not None],
    )

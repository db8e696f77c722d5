"""Random programs end as without ``ActivationOffload``: with the same bits, or the same error."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gnnsys.choices import OffloadPolicy
from gnnsys.offload import ActivationOffload

ROWS, WIDTH = 60, 32
STORAGE = ROWS * WIDTH * 4
SETS: list[tuple[OffloadPolicy, ...]] = [
    (), ("mask",), ("recompute",), ("disk",), ("recompute", "disk"), ("mask", "recompute", "disk"),
]  # fmt: skip

Operator = Callable[[Tensor, Tensor], Any]


class Product(torch.autograd.Function):
    """Saves its arguments and its result, and needs all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        out = x * y
        ctx.save_for_backward(x, y, out)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, y, out = ctx.saved_tensors
        return gradient * y + 0.01 * out, gradient * x


class Written(torch.autograd.Function):
    """Changes its argument, and saves it then."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x.mul_(1.5)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 1.5 * gradient + 0 * x


def without_gradient(a: Tensor, b: Tensor) -> Tensor:
    with torch.no_grad():
        a = 2 * torch.tanh(a)
    return a * b


NEW: list[Operator] = [
    lambda a, b: a + 1, lambda a, b: a + b, lambda a, b: a - b, lambda a, b: a * b, lambda a, b: -a,
    lambda a, b: a / (b.abs() + 1), lambda a, b: a.add(b, alpha=0.5), lambda a, b: torch.sigmoid(a),
    lambda a, b: torch.tanh(a), lambda a, b: torch.exp(-a.abs()), lambda a, b: F.relu(a),
    lambda a, b: F.leaky_relu(a, 0.1), lambda a, b: F.elu(a), lambda a, b: F.gelu(a),
    lambda a, b: F.gelu(a, approximate="tanh"), lambda a, b: F.silu(a),
    lambda a, b: F.softmax(a, 1), lambda a, b: F.dropout(a, 0.5), lambda a, b: F.dropout(a, 0.0),
    lambda a, b: F.dropout(a, 1.0), lambda a, b: F.normalize(a), lambda a, b: F.celu(a),
    lambda a, b: F.rrelu(a, training=True), lambda a, b: F.alpha_dropout(a, 0.3, training=True),
    lambda a, b: F.layer_norm(a, (WIDTH,)), lambda a, b: F.batch_norm(a, None, None, training=True),
    lambda a, b: a.double().tanh().float(), lambda a, b: a.bfloat16().sigmoid().float(),
    lambda a, b: a.t().contiguous().t(), lambda a, b: a.view(WIDTH, ROWS).t().reshape(ROWS, WIDTH),
    lambda a, b: a.as_strided((ROWS, WIDTH), (WIDTH, 1)), lambda a, b: a.expand(2, ROWS, WIDTH)[1],
    lambda a, b: torch.cat([a[:9], b[9:]]), lambda a, b: a.flip(0), lambda a, b: a.clone(),
    lambda a, b: a.detach() * b, lambda a, b: torch.where(a > 0, a, b), lambda a, b: a * (b > 0),
    lambda a, b: a.clamp(-1, 1), lambda a, b: torch.complex(a, b).abs(), lambda a, b: a * a.mean(),
    lambda a, b: checkpoint(lambda t: torch.sigmoid(F.relu(t) * 2), a, use_reentrant=False),
    lambda a, b: Product.apply(a, b), lambda a, b: Written.apply(a), without_gradient,
]  # fmt: skip
IN_PLACE: list[Operator] = [
    lambda a, b: a.add_(1), lambda a, b: a.mul_(b), lambda a, b: a.sub_(b), lambda a, b: a.neg_(),
    lambda a, b: F.relu_(a), lambda a, b: F.elu_(a), lambda a, b: F.leaky_relu_(a, 0.1),
    lambda a, b: F.dropout(a, 0.5, inplace=True), lambda a, b: F.silu(a, inplace=True),
    lambda a, b: torch.sigmoid_(a), lambda a, b: torch.tanh_(a), lambda a, b: a.copy_(b),
    lambda a, b: a.detach().add_(0.5), lambda a, b: a[:9].mul_(2), lambda a, b: a.t().add_(1),
    lambda a, b: a.view(-1)[5:100].zero_(), lambda a, b: a.__setitem__(3, 0.5),
    lambda a, b: a.zero_(),
]  # fmt: skip


def gradients(seed: int, saving: AbstractContextManager[object]) -> list[Tensor]:
    """Losses of two steps, and gradients by both inputs."""
    draw = random.Random(seed)
    in_place = draw.choice([0.0, 0.1, 0.3])
    steps = [
        (draw.choice(IN_PLACE if draw.random() < in_place else NEW), draw.random(), draw.random())
        for _ in range(draw.randint(3, 16))
    ]
    twice, is_held, inside = (draw.random() < 0.2 for _ in range(3))
    torch.manual_seed(seed)
    inputs = [torch.randn(ROWS, WIDTH, requires_grad=True) for _ in range(2)]
    found: list[Tensor] = []
    held: list[Tensor] = []
    for _ in range(2):
        with saving:
            values = [inputs[0] * 1, inputs[1] + 0]
            for operator, one, other in steps:
                a = values[int((1 - one * one) * len(values))]
                result = operator(a, values[int(other * len(values))])
                if operator in NEW:
                    values.append(result)
                del a, result
            loss = sum((each * (i + 1)).sum() for i, each in enumerate(values[-3:]))
            assert isinstance(loss, Tensor)
            held += values[:: 3 if is_held else 100]
            del values
            if inside:
                loss.backward(retain_graph=twice)
        if twice or not inside:
            loss.backward()
        found.append(loss.detach())
        for each in inputs:
            found += [] if each.grad is None else [each.grad]
            each.grad = None
        del loss
    return found


def outcome(seed: int, saving: AbstractContextManager[object]) -> list[Tensor] | str:
    try:
        return gradients(seed, saving)
    except RuntimeError as error:
        return str(error)


@pytest.mark.parametrize("policies", SETS, ids="+".join)
def test_random_programs_end_as_without_it(
    policies: tuple[OffloadPolicy, ...], tmp_path: Path
) -> None:
    ended = 0
    for seed in range(25):
        plain = outcome(seed, nullcontext())
        budget = (6 + seed % 4) * STORAGE if "disk" in policies else None
        offload = ActivationOffload(budget, folder=tmp_path, policies=policies, least_bytes=1024)
        ours = outcome(seed, offload)
        gc.collect()
        offload.close()
        if isinstance(plain, str):
            assert isinstance(ours, str), f"{seed}: {plain}"
            assert ours[:80] == plain[:80]
        else:
            assert not isinstance(ours, str), f"{seed}: {ours}"
            ended += 1
            assert len(ours) == len(plain)
            for one, other in zip(ours, plain, strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    assert ended > 10

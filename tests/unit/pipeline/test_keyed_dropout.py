"""Dropout that is a function of seed, epoch, layer, vertex and column."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gnnsys.errors import ArgumentError
from gnnsys.pipeline import KeyedDropout
from gnnsys.pipeline.dropout import _keeps, set_dropout_context
from gnnsys.rng import dropout_key
from gnnsys.system.extension import core

sys.path.insert(0, str(Path(__file__).parents[1]))
from rng_reference import keeps

VERTICES = torch.randint(0, 2**40, (203,), generator=torch.Generator().manual_seed(0))


def dropout(p: float = 0.3, seed: int = 5, epoch: int = 2, layer: int = 7) -> KeyedDropout:
    made = KeyedDropout(p, layer)
    made.context.seed, made.context.epoch, made.context.vertices = seed, epoch, VERTICES
    return made


@pytest.mark.parametrize("width", [1, 4, 6, 64, 67])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_keeps_what_the_reference_keeps(width: int, dtype: torch.dtype) -> None:
    x = torch.randn(len(VERTICES), width).to(dtype)
    kept = torch.from_numpy(keeps(dropout_key(5, 2, 7), VERTICES.numpy(), width, 0.3))
    wide = x.to(torch.promote_types(dtype, torch.float32))
    wanted = torch.where(kept, wide * (1 / 0.7), 0).to(dtype)
    assert torch.equal(dropout()(x), wanted)
    assert torch.equal(_keeps(dropout_key(5, 2, 7), VERTICES, width, round(0.3 * 2**32)), kept)


@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512"])
def test_instruction_sets_agree(isa: str) -> None:
    x = np.random.default_rng(0).standard_normal((203, 9))
    out = np.empty_like(x)
    try:
        core.keyed_dropout(3, 2**31, 2.0, VERTICES.numpy(), x, out, isa)
    except ValueError:
        pytest.skip(f"this processor has no {isa}")
    assert (out == np.where(keeps(3, VERTICES.numpy(), 9, 0.5), 2 * x, 0)).all()


def test_backward_drops_the_same_values() -> None:
    layer = dropout()
    x = torch.randn(len(VERTICES), 5, dtype=torch.float64, requires_grad=True)
    layer(x).sum().backward()
    assert torch.equal(x.grad != 0, layer(torch.ones_like(x)) != 0)
    assert torch.autograd.gradcheck(layer, (x,))


def test_a_row_is_the_same_in_whatever_company() -> None:
    layer = dropout()
    x = torch.randn(len(VERTICES), 12)
    whole = layer(x)
    order = torch.randperm(len(VERTICES))[:50]
    layer.context.vertices = VERTICES[order]
    assert torch.equal(layer(x[order]), whole[order])


def test_masks_differ_by_each_part_of_the_key_and_have_the_rate() -> None:
    x = torch.ones(len(VERTICES), 512)
    masks = [dropout(**change)(x) != 0 for change in ({}, {"seed": 6}, {"epoch": 3}, {"layer": 8})]
    for number, mask in enumerate(masks):
        # Within five standard deviations of a binomial count.
        bound = 5 * (0.3 * 0.7 / mask.numel()) ** 0.5
        assert abs(mask.float().mean().item() - 0.7) < bound
        for other in masks[:number]:
            assert abs((mask == other).float().mean().item() - 0.58) < 2 * bound


def test_evaluation_and_probability_zero_change_nothing() -> None:
    x = torch.randn(3, 4)
    assert dropout().eval()(x) is x
    assert KeyedDropout(0.0)(x) is x
    nested = torch.nn.Sequential(torch.nn.Linear(4, 4), KeyedDropout(0.5))
    set_dropout_context(nested, dropout().context)
    assert nested[1].context.seed == 5


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_no_probability_is_refused(p: float) -> None:
    with pytest.raises(ArgumentError, match=r"expected a probability in \[0, 1\)"):
        KeyedDropout(p)

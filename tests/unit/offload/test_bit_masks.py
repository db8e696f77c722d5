"""Bit masks against comparisons by torch, for every element type, odd values and strides."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from gnnsys.offload import bit_masks
from gnnsys.offload.bit_masks import mask_of_input, mask_of_result, mask_of_two_values

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TINY = 1e-45
ODD = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, -math.nan, TINY, -TINY])
SIZES = (0, 1, 7, 8, 9, 63, 64, 65, 4097, 70_001)


@pytest.fixture(params=["core", "torch"], autouse=True)
def packing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """By compiled code on several threads, and as on other devices."""
    monkeypatch.setattr(bit_masks, "_in_core", lambda device: request.param == "core")
    threads = torch.get_num_threads()
    if request.param == "torch":
        torch.set_num_threads(1)  # tensors are small
    yield
    torch.set_num_threads(threads)


def values(n: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, generator=generator, dtype=torch.float64)
    place = torch.randint(4 * len(ODD), (n,), generator=generator)
    odd = ODD.double()[place.clamp(max=len(ODD) - 1)]
    return torch.where(place < len(ODD), odd, x).to(dtype)


def noise(n: int, dtype: torch.dtype) -> Tensor:
    return torch.bernoulli(torch.full((n,), 0.5)).to(dtype).div_(0.8)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return (a.dtype, a.stride()) == (b.dtype, b.stride()) and torch.equal(
        a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)
    )


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("n", SIZES)
def test_signs_are_those_of_comparisons(n: int, dtype: torch.dtype) -> None:
    x = values(n, dtype)
    for make, expected in ((mask_of_result, ~(x <= 0)), (mask_of_input, x > 0)):
        mask = make(x)
        assert mask is not None
        assert mask.nbytes == math.ceil(n / 8)
        assert not mask.exact
        assert same_bits(mask.unpack(), expected.to(dtype))


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int32, torch.int8], ids=str)
@pytest.mark.parametrize("n", SIZES)
def test_two_values_come_back(n: int, dtype: torch.dtype) -> None:
    x = noise(n, torch.float32).mul_(5).to(dtype)
    mask = mask_of_two_values(x)
    assert mask is not None
    assert mask.exact
    assert same_bits(mask.unpack(), x)
    mask = mask_of_two_values(x != 0)
    assert mask is not None
    assert same_bits(mask.unpack(), x != 0)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_other_values_are_no_two(dtype: torch.dtype) -> None:
    x = noise(70_001, dtype)
    x[0] = 1.25
    for place in (1, 40_000, 70_000):
        for other in (-0.0, math.nan, -1.25, 1.0):
            changed = x.clone()
            changed[place] = other
            assert mask_of_two_values(changed) is None
    for only in (-0.0, math.nan, 3.0):
        mask = mask_of_two_values(torch.where(x == 0, x, torch.tensor(only, dtype=dtype)))
        assert mask is not None
        assert same_bits(mask.unpack()[:1], torch.tensor([only], dtype=dtype))


def test_strides_are_kept_and_what_is_not_dense_is_refused() -> None:
    x = values(6000, torch.float32).view(20, 15, 20)
    for dense in (x.permute(2, 0, 1), x[3:7], x.transpose(0, 1), x[:, None]):
        mask = mask_of_result(dense)
        assert mask is not None
        assert same_bits(mask.unpack(), (~(dense <= 0)).to(x.dtype))
        mask = mask_of_two_values(dense > 0)
        assert mask is not None
        assert same_bits(mask.unpack(), dense > 0)
    for other in (x[:, ::2], x[:1].expand(20, 15, 20), x[:, :, 3]):
        assert mask_of_result(other) is None
        assert mask_of_input(other) is None
        assert mask_of_two_values(other) is None
    negated, conjugated = (torch.tensor([1 - 2j]).conj().imag, torch.tensor([0, 1j]).conj())
    assert negated.is_neg()
    for other in (negated, x[0].to_sparse(), x[0].to_mkldnn()):
        assert mask_of_result(other) is None
        assert mask_of_input(other) is None
        assert mask_of_two_values(other) is None
    assert mask_of_two_values(conjugated) is None
    assert mask_of_result(torch.ones(3, dtype=torch.int64)) is None
    assert mask_of_two_values(torch.ones(3, dtype=torch.complex128)) is None


def test_backward_of_relu_takes_a_mask_for_its_result() -> None:
    x = values(70_001, torch.float32)
    result = x.relu()
    mask = mask_of_result(result)
    assert mask is not None
    gradient = values(70_001, torch.float32).nan_to_num()
    plain = torch.ops.aten.threshold_backward(gradient, result, 0)
    assert same_bits(torch.ops.aten.threshold_backward(gradient, mask.unpack(), 0), plain)


@pytest.mark.parametrize("n", [0, 1, 4000])
def test_one_value_alone_comes_back(n: int) -> None:
    for only in (
        torch.zeros(n),
        torch.full((n,), -2.5),
        torch.cat([torch.zeros(n), torch.ones(1)]),
    ):
        mask = mask_of_two_values(only)
        assert mask is not None
        assert same_bits(mask.unpack(), only)

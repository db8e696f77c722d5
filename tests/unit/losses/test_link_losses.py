"""Losses of links against torch's own and against their formulas, written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gnnsys.errors import ArgumentError, DTypeError
from gnnsys.loaders import degree_weights
from gnnsys.losses import in_batch_loss, link_bce_loss, link_bpr_loss, link_info_nce_loss


def scores(seed: int, *shape: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(shape, generator=draw, dtype=torch.float64)).requires_grad_()


def test_cross_entropy_is_that_of_torch_over_all_scores() -> None:
    positive, negative = scores(1, 6), scores(2, 6, 4)
    both = torch.cat([positive, negative.flatten()])
    truth = torch.cat([torch.ones(6), torch.zeros(24)]).double()
    wanted = F.binary_cross_entropy_with_logits(both, truth)
    torch.testing.assert_close(link_bce_loss(positive, negative), wanted)
    assert torch.autograd.gradcheck(link_bce_loss, (positive, negative))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_neither_overflows_nor_loses_what_is_added_late(dtype: torch.dtype) -> None:
    positive = torch.zeros(1000, dtype=dtype)
    found = [link_bce_loss(positive, torch.zeros(1000, 200, dtype=dtype))]
    found.append(link_bpr_loss(positive, torch.zeros(1000, 200, dtype=dtype)))
    wanted = F.softplus(torch.zeros(1, dtype=dtype)).item()
    assert [loss.item() for loss in found] == pytest.approx([wanted, wanted], rel=0.01)
    assert found[0].dtype == dtype


def test_ranking_is_its_formula_over_pairs() -> None:
    positive, negative = scores(1, 5), scores(2, 5, 3)
    wanted = -sum(
        math.log(1 / (1 + math.exp(n - p)))
        for p, row in zip(positive.tolist(), negative.tolist(), strict=True)
        for n in row
    )
    assert link_bpr_loss(positive, negative).item() == pytest.approx(wanted / 15, rel=1e-12)
    one = link_bpr_loss(positive, negative[:, 0])
    torch.testing.assert_close(one, -F.logsigmoid(positive - negative[:, 0]).mean())


def test_info_nce_is_the_cross_entropy_of_the_link_among_its_negatives() -> None:
    positive, negative = scores(1, 5), scores(2, 5, 3)
    both = torch.cat([positive[:, None], negative], 1) / 0.3
    wanted = F.cross_entropy(both, torch.zeros(5, dtype=torch.int64))
    torch.testing.assert_close(link_info_nce_loss(positive, negative, 0.3), wanted)
    left = negative.detach().clone()
    left[:, 2] = -math.inf
    found = link_info_nce_loss(positive, left)
    torch.testing.assert_close(found, link_info_nce_loss(positive, negative[:, :2]))


def test_in_batch_loss_is_its_formula_with_popularity_taken_off() -> None:
    every = scores(3, 6, 6)
    targets = torch.tensor([4, 2, 4, 0, 2, 4])
    log_q = torch.tensor([0.5, 0.2, 0.5, 0.3, 0.2, 0.5]).log()
    total = 0.0
    for i in range(6):
        corrected = [every[i, j].item() / 0.7 - log_q[j].item() for j in range(6)]
        kept = [corrected[j] for j in range(6) if j == i or targets[j] != targets[i]]
        total -= corrected[i] - math.log(sum(map(math.exp, kept)))
    found = in_batch_loss(every, log_q, targets, temperature=0.7)
    assert found.item() == pytest.approx(total / 6, rel=1e-7)
    plain = F.cross_entropy(every, torch.arange(6))
    torch.testing.assert_close(in_batch_loss(every), plain)
    assert torch.autograd.gradcheck(lambda s: in_batch_loss(s, log_q.double(), targets), (every,))


def test_corrected_in_batch_negatives_learn_what_all_targets_would_teach() -> None:
    """Yi et al.'s claim: with log q taken off, the expected gradient over batches is that of the
    softmax over all targets, so that popular targets are not pushed down for their popularity."""
    items, batch = 6, 400
    popularity = torch.tensor([32.0, 16, 8, 4, 2, 1])
    draw = torch.Generator().manual_seed(5)
    logits = {True: torch.zeros(items), False: torch.zeros(items)}
    for _ in range(150):
        targets = torch.multinomial(popularity, batch, replacement=True, generator=draw)
        weight = degree_weights(targets, items, power=1)
        for corrected, values in logits.items():
            learnt = values.clone().requires_grad_()
            log_q = (weight / weight.sum()).log()[targets] if corrected else None
            in_batch_loss(learnt[targets].expand(batch, batch), log_q).backward()
            values -= 4 * learnt.grad
    wanted = (popularity / popularity.sum()).log()
    centred = {c: values - values.mean() for c, values in logits.items()}
    torch.testing.assert_close(centred[True], wanted - wanted.mean(), atol=0.35, rtol=0)
    assert (centred[False] - (wanted - wanted.mean())).abs().max() > 1


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: link_bce_loss(torch.empty(0), torch.ones(1)), ArgumentError, "neither empty"),
        (lambda: link_bce_loss(torch.ones(2).long(), torch.ones(1)), DTypeError, "positive"),
        (lambda: link_bpr_loss(torch.ones(2), torch.ones(3)), ArgumentError, r"negative \(3,\)"),
        (lambda: link_bpr_loss(torch.ones(2, 1), torch.ones(2)), ArgumentError, r"\(2, 1\)"),
        (
            lambda: link_info_nce_loss(torch.ones(2), torch.ones(2), temperature=0),
            ArgumentError,
            "temperature",
        ),
        (lambda: in_batch_loss(torch.ones(2, 3)), ArgumentError, r"scores \(2, 3\)"),
        (
            lambda: in_batch_loss(torch.ones(2, 2), torch.tensor([0.0, -math.inf])),
            ArgumentError,
            "log_q: -inf of link 1",
        ),
        (
            lambda: in_batch_loss(torch.ones(2, 2), targets=torch.ones(3)),
            ArgumentError,
            r"targets \(3,\): expected \(2,\)",
        ),
    ],
)
def test_what_does_not_fit_is_one_clear_error(call: Any, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        call()

"""Learning rates, optimizers and clipped gradients against torch's own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import lr_scheduler

from gnnsys.config.train import TrainConfig
from gnnsys.errors import ArgumentError
from gnnsys.nn import Embedding
from gnnsys.training.optimisation import (
    LearningRate,
    check_optimizer,
    make_optimizer,
    sparse_weights,
)

BATCHES, EPOCHS, LR = 5, 12, 0.3
STEPS = BATCHES * EPOCHS


def config_of(**options: Any) -> TrainConfig:
    return TrainConfig(dataset="demo", **{"lr": LR, "epochs": EPOCHS, **options}).filled_in()


def rate_of(config: TrainConfig, *, ranks: int = 1, metric: str = "accuracy") -> LearningRate:
    optimizer = make_optimizer(config, [torch.zeros(1, requires_grad=True)])
    steps: Any = SimpleNamespace(
        optimizer=optimizer, batches_a_step=ranks, num_batches=lambda: BATCHES
    )
    return LearningRate(config, steps, metric)


def rates(rate: LearningRate, first: int = 0) -> list[float]:
    return [rate.begin_step(step) for step in range(first, STEPS)]


def of_torch(make: Any, every: int = 1) -> list[float]:
    """Learning rates of a scheduler of torch that is told after every so many batches."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR)
    scheduler, found = make(optimizer), []
    for step in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % every == 0:
            scheduler.step()
    return found


def test_rates_are_those_of_torchs_schedulers() -> None:
    assert rates(rate_of(config_of())) == [LR] * STEPS
    cut = of_torch(lambda o: lr_scheduler.StepLR(o, step_size=3, gamma=0.5), every=BATCHES)
    found = rates(rate_of(config_of(lr_schedule="step", lr_every=3, lr_factor=0.5)))
    assert found == pytest.approx(cut)
    wave = of_torch(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=STEPS, eta_min=0.01))
    assert rates(rate_of(config_of(lr_schedule="cosine", lr_min=0.01))) == pytest.approx(wave)


@pytest.mark.parametrize("epochs", [2, 0.4])
def test_a_warm_up_rises_to_the_rate_that_cosine_begins_with(epochs: float) -> None:
    warm = round(epochs * BATCHES)

    def in_torch(optimizer: Any) -> Any:
        rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / warm, total_iters=warm - 1)
        wave = lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS - warm)
        return lr_scheduler.SequentialLR(optimizer, [rise, wave], milestones=[warm])

    found = rates(rate_of(config_of(lr_schedule="cosine", warmup_epochs=epochs)))
    assert found == pytest.approx(of_torch(in_torch))
    assert found[warm - 1] == found[warm] == LR


def test_cosine_stays_at_its_least_rate() -> None:
    found = rates(rate_of(config_of(lr_schedule="cosine", lr_epochs=4, lr_min=0.1)))
    assert found[4 * BATCHES :] == pytest.approx([0.1] * (STEPS - 4 * BATCHES))
    assert min(found[: 4 * BATCHES]) > 0.1


def test_ranks_that_take_a_batch_each_have_the_rate_of_their_share_of_the_run() -> None:
    config = config_of(lr_schedule="cosine", warmup_epochs=1)
    one, three = rate_of(config), rate_of(config, ranks=3)
    for step in range(0, STEPS, 3):
        alone = one.begin_step(step if step >= BATCHES else min(step + 2, BATCHES - 1))
        assert three.begin_step(step) == pytest.approx(alone)


@pytest.mark.parametrize(("metric", "mode"), [("accuracy", "max"), ("rmse", "min")])
def test_a_plateau_is_torchs_whichever_way_is_better(metric: str, mode: Any) -> None:
    scores = torch.rand(EPOCHS, generator=torch.Generator().manual_seed(1)).tolist()
    config = config_of(lr_schedule="plateau", lr_patience=2, lr_factor=0.5, lr_min=0.05)
    rate = rate_of(config, metric=metric)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR)
    plateau = lr_scheduler.ReduceLROnPlateau(
        optimizer, mode, factor=0.5, patience=1, threshold=0.0, min_lr=0.05
    )
    seen = set()
    for epoch, score in enumerate(scores, 1):
        expected = optimizer.param_groups[0]["lr"]
        assert rate.begin_step((epoch - 1) * BATCHES) == expected
        seen.add(expected)
        plateau.step(score)
        rate.judge(score, epoch * BATCHES)
    assert len(seen) > 2


def test_scores_before_the_end_of_a_warm_up_do_not_count() -> None:
    config = config_of(lr_schedule="plateau", lr_patience=1, warmup_epochs=3)
    rate = rate_of(config)
    for epoch in range(1, EPOCHS + 1):
        rate.begin_step((epoch - 1) * BATCHES)
        rate.judge(0.5, epoch * BATCHES)
        assert rate.begin_step(STEPS) == pytest.approx(LR * 0.1 ** max(0, epoch - 3))


def test_a_rate_goes_on_from_its_state() -> None:
    config = config_of(lr_schedule="plateau", lr_patience=2)
    scores = [0.3, 0.2, 0.1, 0.4, 0.3, 0.3, 0.2]
    whole, found = rate_of(config), []
    for epoch, score in enumerate(scores):
        whole.judge(score, epoch * BATCHES + BATCHES)
        found.append(whole.begin_step(epoch * BATCHES + BATCHES))
    for cut in range(1, len(scores)):
        before, after = rate_of(config), rate_of(config)
        for epoch in range(cut):
            before.judge(scores[epoch], epoch * BATCHES + BATCHES)
        after.load(before.state())
        for epoch in range(cut, len(scores)):
            after.judge(scores[epoch], epoch * BATCHES + BATCHES)
            assert after.begin_step(epoch * BATCHES + BATCHES) == found[epoch]
    assert len(set(found)) > 2
    assert rate_of(config_of()).state() == {}


def test_a_cosine_that_goes_on_for_longer_keeps_its_end() -> None:
    before = rate_of(config_of(lr_schedule="cosine", epochs=4))
    expected = rates(before)
    after = rate_of(config_of(lr_schedule="cosine", epochs=EPOCHS))
    assert rates(after) != expected
    after.load(before.state())
    assert rates(after) == expected


def stepped(optimizer: torch.optim.Optimizer, weights: Tensor) -> Tensor:
    for _ in range(3):
        optimizer.zero_grad()
        (weights**3).sum().backward()
        optimizer.step()
    return weights.detach()


@pytest.mark.parametrize(
    ("options", "kind", "given"),
    [
        ({}, torch.optim.Adam, {}),
        ({"optimizer": "adamw"}, torch.optim.AdamW, {}),
        ({"optimizer": "sgd"}, torch.optim.SGD, {"momentum": 0.9}),
        ({"optimizer": "sgd", "momentum": 0.0}, torch.optim.SGD, {}),
    ],
)
def test_optimizers_are_torchs(options: Any, kind: Any, given: Any) -> None:
    config = TrainConfig(dataset="demo", lr=0.1, weight_decay=0.02, **options)
    ours, theirs = (torch.tensor([1.0, -2.0], requires_grad=True) for _ in range(2))
    expected = stepped(kind([theirs], lr=0.1, weight_decay=0.02, **given), theirs)
    assert torch.equal(stepped(make_optimizer(config, [ours]), ours), expected)


def test_gradients_are_clipped_as_torch_does() -> None:
    config = TrainConfig(dataset="demo", optimizer="sgd", momentum=0.0, lr=1.0, weight_decay=0.0)
    for longest in (0.5, 100.0):
        parts = [torch.tensor(each, requires_grad=True) for each in ([1.0, 2.0], [[2.0]])]
        gradients = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
        config.clip_norm = longest
        for part, gradient in zip(parts, gradients, strict=True):
            part.grad = gradient.clone()
        before = [part.detach().clone() for part in parts]
        make_optimizer(config, parts).step()
        scale = min(1.0, longest / (5.0 + 1e-6))
        for part, was, gradient in zip(parts, before, gradients, strict=True):
            torch.testing.assert_close(part.detach(), was - scale * gradient)


def model_of(rows: int = 9) -> torch.nn.ModuleDict:
    torch.manual_seed(0)
    rare = torch.nn.Embedding(rows, 2, sparse=True)
    return torch.nn.ModuleDict({"rows": rare, "head": torch.nn.Linear(2, 1)})


def step(model: torch.nn.ModuleDict, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model["head"](model["rows"](torch.tensor([1, 7, 1]))).pow(2).sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("name", "kind"), [("sparse_adam", torch.optim.SparseAdam), ("adagrad", torch.optim.Adagrad)]
)
def test_embeddings_are_stepped_by_an_optimizer_of_their_own_at_the_same_rate(
    name: Any, kind: Any
) -> None:
    config = config_of(embedding_optimizer=name, optimizer="sgd", momentum=0.0, clip_norm=0.5)
    ours, theirs = model_of(), model_of()
    optimizer = make_optimizer(config, ours.parameters(), sparse_weights(ours))
    head = torch.optim.SGD(theirs["head"].parameters(), lr=LR / 2, weight_decay=config.weight_decay)
    rows = kind(theirs["rows"].parameters(), lr=LR / 2)
    for _ in range(2):
        for group in optimizer.param_groups:
            group["lr"] = LR / 2
        step(ours, optimizer)
        theirs.zero_grad()
        theirs["head"](theirs["rows"](torch.tensor([1, 7, 1]))).pow(2).sum().backward()
        grad = theirs["rows"].weight.grad = theirs["rows"].weight.grad.coalesce()
        parts = [grad.values(), *(each.grad for each in theirs["head"].parameters())]
        longest = torch.cat([each.flatten() for each in parts]).norm()
        for part in parts:
            part.mul_(min(1.0, 0.5 / (longest + 1e-6)))
        head.step(), rows.step()
        state = optimizer.state_dict()
        optimizer = make_optimizer(config, ours.parameters(), sparse_weights(ours))
        check_optimizer(optimizer, ours.named_parameters(), state, Path("c.pt"))
        optimizer.load_state_dict(state)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_embeddings_in_files_are_stepped_beside_those_in_memory(tmp_path: Path) -> None:
    """As a model of one's own may have some."""
    stepped = []
    for in_files in (False, True):
        torch.manual_seed(0)
        model = torch.nn.ModuleDict({"own": torch.nn.Embedding(9, 2, sparse=True)})
        model["rows"] = torch.nn.Embedding(9, 2, sparse=True)
        model["head"] = torch.nn.Linear(2, 1)
        if in_files:
            rows = model["rows"].weight.detach()
            model["rows"] = Embedding(9, 2, folder=tmp_path / "t", optimizer="sparse_adam", cache=9)
            model["rows"].store.write(torch.arange(9), rows)
        optimizer = make_optimizer(config_of(), model.parameters(), sparse_weights(model))
        ids = torch.tensor([1, 7, 1])
        model["head"](model["rows"](ids) + model["own"](ids)).pow(2).sum().backward()
        optimizer.step()
        ids = torch.arange(9)
        stepped.append(torch.cat([model[name](ids) for name in ("own", "rows")]))
    assert torch.equal(*stepped)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"rows": 8}, r"model: the optimizer's exp_avg of rows\.weight is \(8, 2\), .* \(9, 2\)"),
        ({"embedding_optimizer": "adagrad"}, r"optimizer: it has step, sum of rows\.weight, exp"),
        ({"optimizer": "sgd"}, r"optimizer: it has momentum_buffer of head\.weight, expected exp"),
        ({"rows": 0}, "model: the states of 1 optimizers, expected 2"),
    ],
)
def test_a_state_of_other_weights_or_of_another_optimizer_is_refused(other: Any, says: str) -> None:
    model, before = model_of(), model_of(other.pop("rows", 9))
    optimizer = make_optimizer(config_of(), model.parameters(), sparse_weights(model))
    if before["rows"].num_embeddings:
        rows = sparse_weights(before)
        was = make_optimizer(config_of(**other), before.parameters(), rows)
        step(before, was)
    else:
        was = make_optimizer(config_of(), before["head"].parameters())
    with pytest.raises(ArgumentError, match=rf"c\.pt: of another {says}"):
        check_optimizer(optimizer, model.named_parameters(), was.state_dict(), Path("c.pt"))


def test_sparse_weights_are_found_once_and_may_be_all() -> None:
    """Against torch's optimizer of the one weight."""
    torch.manual_seed(0)
    one, bag = torch.nn.Embedding(9, 2, sparse=True), torch.nn.EmbeddingBag(9, 2, sparse=True)
    bag.weight = one.weight
    net, other = torch.nn.ModuleList([one, bag]), torch.nn.Embedding(9, 2, sparse=True)
    other.weight = torch.nn.Parameter(one.weight.detach().clone())
    assert [*map(id, sparse_weights(net))] == [id(one.weight)]
    assert sparse_weights(bag) == [bag.weight]
    theirs = torch.optim.SparseAdam(other.parameters(), lr=LR)
    ours = make_optimizer(config_of(), net.parameters(), sparse_weights(net))
    ids = torch.tensor([[1, 7, 1]])
    (one(ids) + bag(ids)[:, None]).sum().backward()
    (other(ids) + other(ids).mean(1, keepdim=True)).sum().backward()
    ours.step(), theirs.step()
    torch.testing.assert_close(one.weight, other.weight)

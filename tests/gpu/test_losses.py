"""The losses on a CUDA device: the values and gradients of the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gnnsys.commands.cli import main
from gnnsys.generate import generate_community
from gnnsys.losses import (
    PositivePairs,
    cca_ssg_loss,
    dec_kl,
    dense_contrastive_loss,
    influence_adjacency,
    info_nce_loss,
    pamc_loss,
    student_t_assign,
    target_distribution,
)
from gnnsys.losses.negatives import NEGATIVES

NODES, CLUSTERS = 600, 7


def pairs() -> PositivePairs:
    edges = torch.randint(0, NODES - 3, (2, 2000), generator=torch.Generator().manual_seed(1))
    return PositivePairs(*influence_adjacency(edges, NODES, 2, dtype=torch.float64), NODES)


def rows(seed: int, count: int = NODES) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, 5, generator=draw, dtype=torch.float64)


def losses(z: Tensor, centers: Tensor, mode: str, soft: bool) -> Tensor:
    q = student_t_assign(z, centers)
    of = q if soft else q.argmax(1)
    loss = pamc_loss(z, pairs(), None, of, CLUSTERS, 0.7, mode)  # type: ignore[arg-type]
    return loss + dec_kl(target_distribution(q), q)


def value_and_gradients(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    return [loss.detach().cpu(), *(t.cpu() for t in torch.autograd.grad(loss, inputs))]


@pytest.mark.parametrize(
    ("dtype", "digits"), [(torch.float64, 1e-11), (torch.float32, 2e-5)], ids=["fp64", "fp32"]
)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("mode", NEGATIVES)
def test_every_mode_is_that_of_the_cpu(
    mode: str, soft: bool, dtype: torch.dtype, digits: float
) -> None:
    z, centers = rows(2), rows(3, CLUSTERS)
    z[:3] = 0
    z[0, 0], centers[0] = 9.0, 0.0
    host = [t.clone().requires_grad_() for t in (z, centers)]
    device = [t.to("cuda", dtype).requires_grad_() for t in (z, centers)]
    wanted = value_and_gradients(losses(*host, mode, soft), *host)
    found = value_and_gradients(losses(*device, mode, soft), *device)
    for a, b in zip(found, wanted, strict=True):
        scale = b.abs().max().item()
        torch.testing.assert_close(a.double(), b, rtol=0, atol=digits * scale)


@pytest.mark.parametrize("name", ["dense", "info_nce", "cca_ssg"])
def test_losses_to_compare_with_are_those_of_the_cpu(name: str) -> None:
    edges = torch.randint(0, NODES, (2, 500), generator=torch.Generator().manual_seed(4))

    def loss(z: Tensor, other: Tensor) -> Tensor:
        if name == "dense":
            return dense_contrastive_loss(z, edges.to(z.device), None, 0.7)
        return info_nce_loss(z, other) if name == "info_nce" else cca_ssg_loss(z, other)

    host = rows(5).requires_grad_()
    device = rows(5).cuda().requires_grad_()
    wanted = value_and_gradients(loss(host, rows(6)), host)
    found = value_and_gradients(loss(device, rows(6).cuda()), device)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11 * b.abs().max().item())


@pytest.mark.parametrize("batches", [[], ["--batch-size", "100"]], ids=["whole", "sampled"])
@pytest.mark.parametrize("encoder", ["mlp", "sage", "gcn"])
def test_communities_are_found(tmp_path: Path, capsys, encoder: str, batches: list[str]) -> None:
    folder = generate_community(
        tmp_path / "graph", nodes=400, classes=4, degree=8, signal=1.0, seed=3
    )
    options = [str(folder), "--encoder", encoder, "--epochs", "30", "--hidden", "32", *batches]
    options += ["--device", "cuda", "--pretrain-epochs", "20", "--dim", "4", "--lr", "0.01"]
    assert main(["cluster", *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["summary"]["selected"]["acc"]["mean"] > 0.9

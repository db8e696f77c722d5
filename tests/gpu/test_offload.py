"""Activations that leave a GPU while training goes on: the gradients of plain training."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gnnsys.offload import ActivationOffload
from gnnsys.offload.copies import HostPool, StreamCopies, copies_for
from gnnsys.system.gpu.placement import kernels_of_cpu_tensors

MIB = 1 << 20


@pytest.fixture
def place(gpu: Any) -> Any:
    """Where tensors lie; those of a CPU are copied as a GPU's are."""
    with kernels_of_cpu_tensors(gpu.device if gpu.name == "simt" else None):
        yield gpu.torch_device


def test_copies_there_and_back_beside_computing(place: torch.device) -> None:
    copies = copies_for(place)
    assert isinstance(copies, StreamCopies)
    pool = HostPool(8 * MIB, copies.streams.host_memory)
    for step in range(5):
        computed = [torch.full((MIB,), 7 * step + i, device=place, dtype=torch.uint8).add_(1)
                    for i in range(8)]  # fmt: skip
        expected = [tensor.cpu() for tensor in computed]
        waits = [copies.out(x, pool.hold(MIB) if i % 2 else None) for i, x in enumerate(computed)]
        hosts = [wait() for wait in waits]
        del computed, waits
        assert all(map(torch.equal, hosts, expected))
        for value in reversed(expected):
            busy = torch.ones(MIB, device=place).mul_(3)
            arrival = copies.back(hosts.pop())
            arrival.join()
            assert torch.equal(arrival.tensor.cpu(), value)
            assert bool((busy == 3).all())
            copies.back(value)  # nobody comes for it


def trained(place: torch.device, saving: AbstractContextManager[Any]) -> tuple[list[Tensor], int]:
    """Weights after three steps, and the bytes of a GPU that they took at most."""
    torch.manual_seed(0)
    layers = [nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU(), nn.Dropout(0.25), nn.Tanh()]
    model = nn.Sequential(*layers * 6, nn.Linear(64, 1)).to(place)
    x = torch.randn(2000, 64).to(place)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    gpu = place.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats(place)
    for _ in range(3):
        optimizer.zero_grad()
        with saving:
            model(x).square().mean().backward()
        optimizer.step()
    peak = torch.cuda.max_memory_allocated(place) if gpu else 0
    return [weight.detach().cpu() for weight in model.parameters()], peak


@pytest.mark.parametrize("host_budget", [1, 4 * MIB, None])
def test_weights_are_those_of_plain_training(
    place: torch.device, host_budget: int | None, tmp_path: Path
) -> None:
    expected, plain_peak = trained(place, nullcontext())
    offload = ActivationOffload(
        3 * MIB, folder=tmp_path, policies=("host", "disk"), host_budget=host_budget, least_bytes=1
    )
    found, peak = trained(place, offload)
    assert all(map(torch.equal, found, expected))
    stats = offload.stats
    assert stats.plain > 3 * 3 * MIB
    assert stats.loaded > 0
    assert stats.peak <= 3 * MIB
    if place.type == "cuda":
        assert peak < plain_peak - stats.plain // 2
    offload.close()

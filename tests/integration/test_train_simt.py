"""``--device simt``: training by the kernels of a GPU, executed on the CPU."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import gnnsys
from gnnsys.config.train import TrainConfig
from gnnsys.errors import ArgumentError, DTypeError, RowIndexError
from gnnsys.generate import generate_community
from gnnsys.training.loop import run_training

pytestmark = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "c++")) is None, reason="needs a C++ compiler"
)


@pytest.mark.usefixtures("one_thread")
def test_cora_is_trained_as_on_the_cpu(real_graphs: Path) -> None:
    def train(device: Any) -> Any:
        return run_training(
            TrainConfig(
                dataset="cora", root=str(real_graphs), device=device, epochs=2, fanouts=(3, 3),
                eval="sampled", dropout=0.2,
            )
        )  # fmt: skip

    cpu, simt = train("cpu"), train("simt")
    assert simt.history == cpu.history
    assert simt.best_test == cpu.best_test
    assert set(simt.counters.tiers()) == {"mapped"}
    assert simt.counters.served("mapped") == cpu.counters.served("host")


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("victim_buffer", ["0", "50"])
def test_losses_behind_a_cache_are_those_on_the_cpu(tmp_path: Path, victim_buffer: str) -> None:
    graph = generate_community(tmp_path / "g", nodes=1000, features=6, degree=8)

    def train(device: Any) -> Any:
        return run_training(
            TrainConfig(
                dataset=str(graph), device=device, epochs=2, fanouts=(4, 2), eval="sampled",
                cache="150", victim_buffer=victim_buffer, storage="pread", batch_size=100,
            )
        )  # fmt: skip

    cpu, simt = train("cpu"), train("simt")
    assert simt.history == cpu.history
    # How far ahead a plan sees, and so who serves a row, depends on time.
    rows = [sum(tier.rows for tier in run.counters.tiers().values()) for run in (cpu, simt)]
    assert rows[0] == rows[1]
    assert set(simt.counters.tiers()) >= {"cache", "file"}


def test_a_unified_tensor_indexes_as_torch_does_by_kernels() -> None:
    table = torch.randn(50, 6, dtype=torch.float64)
    x = gnnsys.unified(table, device="simt")
    assert x.device == torch.device("cpu")
    for index in (torch.tensor([3, 3, 49]), torch.tensor([-1, 0]), table[:, 0] > 0, [4, 2], -2):
        assert torch.equal(x[index], table[index])
    assert torch.equal(x.to(torch.float32)[torch.tensor([7])], table[[7]].float())
    with pytest.raises(RowIndexError, match="50"):
        x[torch.tensor([50])]
    assert set(x.counters.as_dict()["rows"]) == {"mapped"}


def test_what_kernels_cannot_reach_is_refused(tmp_path: Path) -> None:
    path = generate_community(tmp_path / "g", nodes=100)
    with pytest.raises(ArgumentError, match=r"features\.npy are in a file; give it a cache"):
        run_training(TrainConfig(dataset=str(path), device="simt", epochs=1))
    with pytest.raises(DTypeError, match=r"torch\.int64 are not cast to torch\.float32"):
        gnnsys.unified(torch.ones(2, 2, dtype=torch.int64), device="simt", dtype=torch.float32)
    with pytest.raises(ArgumentError, match="not dense"):
        gnnsys.unified(torch.randn(4, 4).t(), device="simt")

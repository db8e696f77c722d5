"""``--device simt``: training and clustering by the kernels of a GPU, executed on the CPU."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import gnnsys
from gnnsys.clustering.runs import run_clustering
from gnnsys.config.cluster import ClusterConfig
from gnnsys.config.train import TrainConfig
from gnnsys.errors import ArgumentError, DeviceError, DTypeError, RowIndexError
from gnnsys.generate import generate_community
from gnnsys.memory import FileStore, HostStore
from gnnsys.memory.mapped import MappedStore
from gnnsys.memory.way_probe import measure_ways
from gnnsys.system.gpu import HostExecutorDevice
from gnnsys.system.gpu.graph_kernels import EdgeLaunches, WeightedRows
from gnnsys.system.gpu.host_memory import Range
from gnnsys.system.gpu.way import load_ways, save_ways
from gnnsys.training.loop import run_training

pytestmark = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "c++")) is None, reason="needs a C++ compiler"
)


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Where each sum of rows by kernels was made."""
    made: list[torch.device] = []
    sum_rows = EdgeLaunches.sum

    def note(self: EdgeLaunches, rows: WeightedRows, out: torch.Tensor) -> None:
        made.append(out.device)
        sum_rows(self, rows, out)

    monkeypatch.setattr(EdgeLaunches, "sum", note)
    return made


@pytest.mark.usefixtures("one_thread")
def test_cora_is_trained_as_on_the_cpu(real_graphs: Path, sums: list[torch.device]) -> None:
    def train(device: Any, **options: Any) -> Any:
        return run_training(
            TrainConfig(
                dataset="cora", root=str(real_graphs), device=device, epochs=2, fanouts=(3, 3),
                eval="sampled", dropout=0.2, **options,
            )
        )  # fmt: skip

    cpu = train("cpu")
    assert not sums
    simt = train("simt")
    assert len(sums) > 2 * simt.config.epochs
    cached = train("simt", cache="500", victim_buffer="100KB", sampler="cpu")
    for run in (simt, cached):
        assert run.history == cpu.history
        assert run.best_test == cpu.best_test
    assert set(simt.counters.tiers()) == {"mapped"}
    assert simt.counters.served("mapped") == cpu.counters.served("host")
    tiers = cached.counters.tiers()
    assert sum(tier.rows for tier in tiers.values()) == cpu.counters.served("host").rows
    assert tiers["cache"].rows > 0


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


@pytest.mark.usefixtures("one_thread")
def test_nodes_are_clustered_as_on_the_cpu(tmp_path: Path, sums: list[torch.device]) -> None:
    graph = generate_community(tmp_path / "g", nodes=120, classes=3, features=4, degree=4)

    def cluster(device: Any) -> Any:
        result = run_clustering(
            ClusterConfig(
                dataset=str(graph), device=device, encoder="sage", hidden=(8,), dim=4, epochs=3,
                pretrain_epochs=1,
            )
        )  # fmt: skip
        return [(seed["losses"], seed["contrastive"]) for seed in result["seeds"]]

    cpu = cluster("cpu")
    assert not sums
    assert cluster("simt") == cpu
    assert sums


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


@pytest.mark.usefixtures("one_thread")
def test_what_kernels_cannot_reach_is_gathered_by_the_cpu_or_refused(tmp_path: Path) -> None:
    path = generate_community(tmp_path / "g", nodes=100)
    history = [
        run_training(TrainConfig(dataset=str(path), device=each, epochs=1)).history
        for each in ("cpu", "simt")
    ]
    assert history[0] == history[1]
    with pytest.raises(DTypeError, match=r"torch\.int64 are not cast to torch\.float32"):
        gnnsys.unified(torch.ones(2, 2, dtype=torch.int64), device="simt", dtype=torch.float32)
    with pytest.raises(ArgumentError, match="not dense"):
        gnnsys.unified(torch.randn(4, 4).t(), device="simt")
    with pytest.raises(ArgumentError, match="in a file"):
        MappedStore(FileStore(path / "features.npy"), HostExecutorDevice())


def test_rows_in_memory_have_a_cache_of_the_device() -> None:
    table = torch.randn(50, 6)
    x = gnnsys.unified(table, device="simt", cache=10, dtype=torch.float64)
    for ids in (torch.tensor([3, 3, 49]), torch.tensor([49, -1, 7])):
        assert torch.equal(x[ids], table[ids].double())
    assert x.counters.served("cache").rows > 0
    for options in ({"device": "cpu"}, {"device": "simt", "cache_on": "host"}):
        with pytest.raises(ArgumentError, match="for a file or for a GPU"):
            gnnsys.unified(table, cache=10, **options)  # type: ignore[arg-type]


def test_a_table_that_moves_is_read_where_it_is_then() -> None:
    table = torch.randn(2000, 6)
    x = gnnsys.unified(table, device="simt")
    assert torch.equal(x[[5]], table[[5]])
    table.share_memory_()
    table[5] = 1.0
    assert torch.equal(x[[5]], torch.ones(1, 6))


class Refusing(HostExecutorDevice):
    """Cannot read host memory, as a GPU whose driver does not register it."""

    def map_host(self, memory: Range) -> bool:
        raise DeviceError(f"{memory.nbytes} bytes: refused")


def test_rows_that_a_device_cannot_read_are_gathered_by_the_cpu(
    caplog: pytest.LogCaptureFixture,
) -> None:
    table = torch.randn(50, 6)
    with pytest.raises(DeviceError, match="refused"):
        MappedStore(HostStore(table), Refusing(), "zero-copy")
    store = MappedStore(HostStore(table), Refusing())
    assert store.way == "staged"
    assert "gathered by the CPU and then copied: 1200 bytes: refused" in caplog.text
    assert torch.equal(store.gather(torch.tensor([4, 4])), table[[4, 4]])
    assert store.counters.as_dict()["rows"] == {"mapped": 2}


def test_both_ways_are_measured_by_size_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    device = HostExecutorDevice()
    assert load_ways(device.torch_device) is None
    profile = measure_ways(device, sizes=(64, 256), table=1 << 14, batch=1 << 12)
    assert [speed.row_bytes for speed in profile.speeds] == [64, 256]
    assert all(speed.zero_copy > 0 and speed.staged > 0 for speed in profile.speeds)
    assert save_ways(device.torch_device, profile)
    assert load_ways(device.torch_device) == profile

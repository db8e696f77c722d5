"""Neighbour sampling by the kernels of a GPU, executed on the CPU, against the native sampler."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data, HeteroData

import gnnsys
from gnnsys.errors import ArgumentError, UnsupportedError
from gnnsys.loaders import CSC, NeighborLoader, NeighborSampler
from gnnsys.system.gpu import HostExecutorDevice

pytestmark = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "c++")) is None, reason="needs a C++ compiler"
)


def assert_same(ours: Any, native: Any) -> None:
    for name in ("node", "row", "col", "edge"):
        mine, expected = getattr(ours, name), getattr(native, name)
        assert mine.dtype == expected.dtype == torch.int64
        assert torch.equal(mine, expected), name
    assert ours.num_sampled_nodes == native.num_sampled_nodes
    assert ours.num_sampled_edges == native.num_sampled_edges


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_batches_are_those_of_the_native_sampler(data: st.DataObject) -> None:
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    nodes, edges = data.draw(st.integers(1, 60)), data.draw(st.integers(0, 500))
    ends = torch.randint(nodes, (2, edges), generator=draw)
    ends[1, : edges // 3] = 0  # a hub
    graph = CSC.from_edge_index(ends, nodes)
    fanouts = data.draw(st.lists(st.sampled_from([-1, 0, 1, 3, 4, 33]), min_size=1, max_size=3))
    options: dict[str, Any] = {
        "replace": data.draw(st.booleans()),
        "seed": data.draw(st.integers(-(1 << 63), (1 << 64) - 1)),
    }
    seeds = torch.tensor(
        data.draw(st.lists(st.integers(0, nodes - 1), max_size=20)), dtype=torch.int64
    )
    group, epoch = (data.draw(st.integers(0, (1 << 64) - 1)) for _ in range(2))
    ours, native = (
        NeighborSampler(graph, fanouts, device=device, **options).sample(seeds, group, epoch)
        for device in ("simt", "cpu")
    )
    assert_same(ours, native)


def test_wide_ids_and_many_draws_of_a_node_are_sampled_alike() -> None:
    indptr = torch.tensor([0, 3000, 3000, 3005])
    graph = CSC(indptr, torch.randint(3, (3005,), generator=torch.Generator().manual_seed(1)))
    assert graph.indices.dtype == torch.int64
    for fanout in (2048, 1000, 64, 5):
        ours, native = (
            NeighborSampler(graph, [fanout], device=device).sample(torch.tensor([0, 1, 2]), 0)
            for device in ("simt", "cpu")
        )
        assert_same(ours, native)


def test_kernels_that_a_thread_executes_share_its_stacks() -> None:
    """Each is two mappings, of which a process may have 65,530: many threads need so few."""
    grown = []

    def sample() -> None:
        mappings = Path("/proc/self/maps")
        before = mappings.read_text().count("\n")
        for fanout in (3, -1):  # a dozen kernels
            graph = CSC(torch.tensor([0, 4]), torch.zeros(4, dtype=torch.int64))
            sampler = NeighborSampler(graph, [fanout], device="simt")
            sampler.sample(torch.tensor([0]), 0)
        grown.append(mappings.read_text().count("\n") - before)

    thread = threading.Thread(target=sample)
    thread.start()
    thread.join()
    assert 64 < grown[0] < 2 * 1024 + 100


def test_a_loader_gives_the_same_batches() -> None:
    edge_index = torch.randint(100, (2, 900), generator=torch.Generator().manual_seed(2))
    data = Data(x=torch.randn(100, 3), edge_index=edge_index, y=torch.arange(100))
    ours, native = (
        list(
            NeighborLoader(
                data,
                num_neighbors=[4, 2],
                neighbor_sampler=NeighborSampler(data, [4, 2], seed=3, device=device),
                batch_size=32,
                shuffle=True,
                seed=3,
            )
        )
        for device in ("simt", "cpu")
    )
    for mine, expected in zip(ours, native, strict=True):
        for name in ("x", "y", "edge_index", "n_id", "e_id"):
            assert torch.equal(mine[name], expected[name]), name


def test_what_kernels_do_not_sample_is_refused() -> None:
    data = Data(edge_index=torch.tensor([[0, 1], [1, 0]]), num_nodes=2, w=torch.ones(2))
    data.time = torch.tensor([1, 2])
    typed = HeteroData()
    typed["a"].num_nodes = typed["b"].num_nodes = 1
    typed["a", "to", "b"].edge_index = torch.tensor([[0], [0]])

    def sample(source: Any = data, seeds: Any = (0,), fanouts: Any = (1,), **options: Any) -> Any:
        sampler = NeighborSampler(source, list(fanouts), device="simt", **options)
        return sampler.sample(torch.tensor(seeds), 0)

    for what, options in (
        ("with times", {"time_attr": "time"}),
        ("with times", {"time_attr": "time", "time_window": 1, "last_n": 1}),
        ("with weights", {"weight_attr": "w"}),
        ("with types", {"source": typed}),
        ("LABOR", {"sampling": "labor"}),
        ("trees of their own", {"disjoint": True}),
        ("directional", {"subgraph_type": "induced"}),
        ("more than 2048", {"fanouts": (2049,)}),
    ):
        with pytest.raises(UnsupportedError, match=what):
            sample(**options)
    with pytest.raises(ArgumentError, match=r"seed 2 at position 1 is outside .* \[0, 2\)"):
        sample(seeds=(1, 2))
    with pytest.raises(ArgumentError, match="device: 'gpu', expected one of cpu, cuda, simt"):
        NeighborSampler(data, [1], device="gpu")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("indptr", "indices", "told"),
    [
        ([0, 1, 2], [1, 7], "indices: 7 is no node"),
        ([0, 1, 2], [1, -1], "indices: -1 is no node"),
        ([0, 9, 2], [1, 0], "indptr: does not ascend within the edges at node 0"),
    ],
)
def test_a_graph_that_points_outside_itself_is_an_error(
    indptr: list[int], indices: list[int], told: str
) -> None:
    graph = CSC(torch.tensor([0, 1, 2]), torch.tensor([1, 0]))
    graph.indptr.copy_(torch.tensor(indptr))
    graph.indices.copy_(torch.tensor(indices))
    sampler = NeighborSampler(graph, [-1], device="simt")
    with pytest.raises(ArgumentError, match=told):
        sampler.sample(torch.tensor([0, 1]), 0)


def test_a_batch_is_as_many_launches_as_the_page_of_gpus_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names: list[str] = []
    launch = HostExecutorDevice.launch

    def counted(self: HostExecutorDevice, kernel: Any, *rest: Any) -> None:
        names.append(kernel)
        launch(self, kernel, *rest)

    monkeypatch.setattr(HostExecutorDevice, "launch", counted)
    ends = torch.randint(100, (2, 900), generator=torch.Generator().manual_seed(2))
    data = Data(edge_index=ends, num_nodes=100, x=gnnsys.unified(torch.ones(100, 3), device="simt"))
    counts = []
    for cache in (None, 10):
        if cache is not None:
            data.x = gnnsys.unified(torch.ones(100, 3), device="simt", cache=cache)
            data.x[[0]]  # fills the cache
        sampler = NeighborSampler(data, [4, 3], device="simt")
        loader = NeighborLoader(
            data, [4, 3], input_nodes=torch.arange(9), neighbor_sampler=sampler, batch_size=9
        )
        names.clear()
        assert len(list(loader)) == 1
        counts.append(len(names))
    assert counts == [30, 31]

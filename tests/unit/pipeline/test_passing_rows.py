"""Where a way has one chunk, what aggregations read does not stay in memory."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch_geometric.data import Data

from gnnsys.pipeline import GNNPipe, deep_layers
from gnnsys.pipeline.costs import Split, estimate_costs
from gnnsys.pipeline.way_graph import halo_sizes

NODES, EDGES, HIDDEN, LAYERS = 3000, 12_000, 32, 8
ROWS = NODES * HIDDEN * 4
T = TypeVar("T")


def graph() -> Data:
    draw = torch.Generator().manual_seed(0)
    source = torch.randint(0, NODES, (EDGES,), generator=draw)
    target = (source + torch.randint(-60, 61, (EDGES,), generator=draw)).clamp(0, NODES - 1)
    data = Data(x=torch.randn(NODES, 8, generator=draw), edge_index=torch.stack([source, target]))
    data.y = torch.zeros(NODES, dtype=torch.int64)
    data.train_mask = torch.ones(NODES, dtype=torch.bool)
    return data


def traced(path: Path, work: Callable[[], T]) -> tuple[int, int, T]:
    """Bytes that torch allocates at most, and at the end, beyond what was there before."""
    gc.collect()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        result = work()
    profile.export_chrome_trace(str(path))
    events = [e for e in json.loads(path.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        total += event["args"]["Bytes"]
        peak = max(peak, total)
    return peak, total, result


@pytest.mark.parametrize(("model", "ways"), [("gcn", 1), ("gcnii", 2)])
def test_an_epoch_needs_no_more_than_its_activations(tmp_path: Path, model: str, ways: int) -> None:
    data = graph()
    layers = deep_layers(model, in_channels=8, hidden=HIDDEN, out_channels=3, layers=LAYERS)
    _, held, pipe = traced(
        tmp_path / "made.json", lambda: GNNPipe(layers, data, ways=ways, chunks=ways)
    )
    assert held < 3 * ROWS  # edges and features; two buffers of each of the layers would be 16
    optimizer = torch.optim.SGD(pipe.parameters(), lr=0.01)
    pipe.train_epoch(optimizer)  # makes the matrices
    optimizer.zero_grad()
    peak, left, _ = traced(tmp_path / "epoch.json", lambda: pipe.train_epoch(optimizer))
    assert left < ROWS  # gradients of the parameters
    costs = estimate_costs(
        pipe.infos,
        Split(1, ways, ways),
        num_nodes=NODES,
        num_edges=EDGES,
        chunk_sizes=pipe.partition.chunk_sizes,
        halo=halo_sizes(data.edge_index, NODES, pipe.partition, ways),
    )
    planned = sum(memory.activations + memory.buffers for memory in costs.memory)
    assert peak == pytest.approx(planned, rel=0.15)
    assert sum(memory.history for memory in costs.memory) == 0

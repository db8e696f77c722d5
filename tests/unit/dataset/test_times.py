"""Edges that are sorted by time, in steps of few."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

import gnnsys
from gnnsys.convert.common import ConvertOptions
from gnnsys.convert.pyg import convert_pyg
from gnnsys.dataset import times
from gnnsys.dataset.times import timed_bytes, with_times


@pytest.mark.parametrize("of_edges", [False, True])
def test_edges_are_sorted_as_by_one_sort_in_the_memory_that_is_planned(
    of_edges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many are equally old; one node has more edges than a step."""
    nodes, edges = 2000, 100_000
    draw = torch.Generator().manual_seed(0)
    ends = torch.randint(nodes, (2, edges), generator=draw)
    ends[1, :6000] = 7
    data = Data(edge_index=ends, num_nodes=nodes, time=torch.randint(9, (nodes,), generator=draw))
    if of_edges:
        data.edge_time = torch.randint(9, (edges,), generator=draw)
    path = convert_pyg(data, tmp_path / "g", ConvertOptions(), name="g")
    dataset = gnnsys.open_dataset(path)
    source, target = dataset.edge_index().numpy()
    since = data.time.numpy()[source]
    if of_edges:
        since = np.maximum(since, dataset.edge_table("edge_time"))
    order = np.lexsort((since, target))
    monkeypatch.setattr(times, "_EDGES", 4096)
    planned = timed_bytes(dataset)
    assert planned < 8 * nodes + (4 + 16 * of_edges) * edges + 64 * 7000
    stores = dataset.stores()
    tracemalloc.start()
    (features, graphs), name = with_times(dataset, stores)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < planned
    graph = graphs.graph()
    assert graph.indices.tolist() == source[order].tolist()
    assert graph.targets().tolist() == target.tolist()
    assert name == ("edge_time" if of_edges else "time")
    if of_edges:
        found = features.table(None, "edge_time").materialize()
        assert found.tolist() == since[order].tolist()

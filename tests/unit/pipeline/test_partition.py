"""Chunks: every vertex once, none empty, few edges cut."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnsys.errors import ArgumentError, RowIndexError, UnsupportedError
from gnnsys.pipeline import metis
from gnnsys.pipeline.partition import Partition, check_partition, partition_graph


def random_edges(nodes: int, edges: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, nodes, (2, edges), generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None, print_blob=True)
@given(
    nodes=st.integers(1, 60),
    edges=st.integers(0, 100),
    chunks=st.integers(1, 12),
    factor=st.sampled_from([1, 1, 4]),
    seed=st.integers(0, 5),
)
def test_every_vertex_is_in_one_chunk_and_none_is_empty(nodes, edges, chunks, factor, seed) -> None:
    chunks = min(chunks, nodes)
    graph = random_edges(nodes, edges, seed)
    partition = partition_graph(graph, nodes, chunks, shuffle_factor=factor, seed=seed)
    assert partition.num_chunks == chunks
    assert sorted(partition.order.tolist()) == list(range(nodes))
    assert min(partition.chunk_sizes) >= 1
    assert sum(partition.chunk_sizes) == nodes
    check_partition(partition, nodes)
    for part in partition.order.split(list(partition.chunk_sizes)):
        assert part.tolist() == sorted(part.tolist())
    again = partition_graph(graph, nodes, chunks, shuffle_factor=factor, seed=seed)
    assert torch.equal(again.order, partition.order)


def test_rings_are_cut_at_few_edges() -> None:
    """Sixteen rings of ten, in random order: eight chunks need cut none."""
    nodes = 160
    place = torch.randperm(nodes, generator=torch.Generator().manual_seed(0))
    ring = torch.arange(nodes) // 10 * 10 + (torch.arange(nodes) + 1) % 10
    edges = place[torch.stack([torch.arange(nodes), ring])]
    partition = partition_graph(edges, nodes, 8)
    chunk = torch.empty(nodes, dtype=torch.int64)
    chunk[partition.order] = torch.repeat_interleave(torch.tensor(partition.chunk_sizes))
    cut = int((chunk[edges[0]] != chunk[edges[1]]).sum())
    assert cut <= 16  # a random partition cuts 140 of 160
    assert max(partition.chunk_sizes) <= 25


def test_another_process_finds_the_same_parts() -> None:
    edges = random_edges(3000, 140_000).numpy()
    pairs = np.unique(np.concatenate([edges[0] * 3000 + edges[1], edges[1] * 3000 + edges[0]]))
    pairs = pairs[pairs // 3000 != pairs % 3000]
    starts = np.searchsorted(pairs, np.arange(3001) * 3000)
    assert len(pairs) > metis._HERE
    arguments = 4, starts, pairs % 3000, np.ones(3000, np.int64), 7
    assert (metis.part_graph(*arguments) == metis._run(*arguments)).all()


def test_wrong_edges_and_numbers_are_refused() -> None:
    edges = torch.tensor([[0, 3], [1, 0]])
    with pytest.raises(RowIndexError, match=r"edge 1 joins \[3, 0\], but the graph has 3 vertices"):
        partition_graph(edges, 3, 2)
    with pytest.raises(ArgumentError, match=r"chunks\(9\) > vertices\(4\)"):
        partition_graph(edges, 4, 9)
    with pytest.raises(ArgumentError, match=r"expected \(2, E\) of torch.int64"):
        partition_graph(edges.float(), 4, 2)
    with pytest.raises(ArgumentError, match="chunk 1 is empty"):
        check_partition(Partition(torch.arange(3), (0, 2, 2, 3)), 3)
    with pytest.raises(ArgumentError, match="each of the 3 vertices once"):
        check_partition(Partition(torch.tensor([0, 0, 2]), (0, 2, 3)), 3)
    with pytest.raises(ArgumentError, match="expected 0 at first and 3 at last"):
        check_partition(Partition(torch.arange(3), (0, 2)), 3)


def test_a_machine_without_metis_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymetis", None)
    with pytest.raises(UnsupportedError, match="pip install pymetis"):
        partition_graph(random_edges(20, 60), 20, 4)
    assert partition_graph(random_edges(20, 60), 20, 1).num_chunks == 1

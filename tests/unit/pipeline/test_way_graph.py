"""Ways' parts put together are the graph, and their halos fit each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from gnnsys.errors import ArgumentError
from gnnsys.pipeline.edges import full_edges, sort_edges
from gnnsys.pipeline.partition import Partition, partition_graph
from gnnsys.pipeline.way_graph import halo_sizes, make_way_graph


def whole_matrix(edge_index: Tensor, nodes: int, kind: str, weight: Tensor | None) -> Tensor:
    """(V, V), a row for each target."""
    if kind == "gcn":
        edge_index, weight = gcn_norm(edge_index, weight, nodes, dtype=torch.float64)
    matrix = torch.zeros(nodes, nodes, dtype=torch.float64)
    for number, (source, target) in enumerate(edge_index.T.tolist()):
        matrix[target, source] += 1 if weight is None else weight[number]
    return matrix


@settings(max_examples=40, deadline=None, print_blob=True)
@given(
    nodes=st.integers(6, 40),
    edges=st.integers(0, 120),
    split=st.sampled_from([(1, 1), (4, 1), (6, 2), (6, 3), (4, 4)]),
    weighted=st.booleans(),
    seed=st.integers(0, 9),
)
def test_the_parts_are_the_graph(nodes, edges, split, weighted, seed) -> None:
    chunks, ways = split
    draw = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(0, nodes, (2, edges), generator=draw)
    weight = torch.rand(edges, generator=draw, dtype=torch.float64) if weighted else None
    partition = partition_graph(edge_index, nodes, chunks, seed=seed)
    parts = [
        make_way_graph(
            edge_index,
            nodes,
            partition,
            ways=ways,
            way=way,
            kinds=("plain", "gcn"),
            edge_weight=weight,
            dtype=torch.float64,
        )
        for way in range(ways)
    ]
    for kind in ("plain", "gcn"):
        wanted = whole_matrix(edge_index, nodes, kind, weight)
        found = torch.zeros_like(wanted)
        for part in parts:
            rows = torch.cat([part.vertices, part.halo])
            for block in part.blocks:
                own = part.vertices[block.rows]
                sources = rows[block.sources]
                assert torch.equal(sources[: len(own)], own)
                values = block.edges[kind].sum(torch.eye(len(sources), dtype=torch.float64))
                found[own[:, None], sources[None]] += values
        torch.testing.assert_close(found, wanted)
        x = torch.randn(nodes, 3, dtype=torch.float64)
        whole = full_edges(edge_index, nodes, kind, weight, torch.float64).sum(x)
        torch.testing.assert_close(whole, wanted @ x)

    # Distinct in-neighbours of other ways, by sets.
    owner = {v: way for way, part in enumerate(parts) for v in part.vertices.tolist()}
    read: list[set[int]] = [set() for _ in parts]
    for source, target in edge_index.T.tolist():
        if owner[source] != owner[target]:
            read[owner[target]].add(source)
    assert [len(each) for each in read] == halo_sizes(edge_index, nodes, partition, ways)
    chunk_of = torch.empty(nodes, dtype=torch.int64)
    chunk_of[partition.order] = torch.repeat_interleave(torch.tensor(partition.chunk_sizes))
    slots = chunks // ways
    for way, part in enumerate(parts):
        assert set(part.halo.tolist()) == read[way]
        rows = torch.cat([part.vertices, part.halo])
        for slot, block in enumerate(part.blocks):
            assert torch.equal(block.source_chunk, chunk_of[rows[block.sources]] % slots)
            for other, place in part.incoming[slot].items():
                sent = parts[other].vertices[parts[other].outgoing[slot][way]]
                assert torch.equal(rows[place], sent)
                assert (chunk_of[sent] == other * slots + slot).all()
        told = sum(p.stop - p.start for slot in part.incoming for p in slot.values())
        assert told == part.num_halo


def test_the_sum_has_the_gradient_of_a_dense_product() -> None:
    draw = torch.Generator().manual_seed(0)
    source, target = (torch.randint(0, n, (60,), generator=draw) for n in (9, 5))
    weight = torch.rand(60, generator=draw, dtype=torch.float64)
    edges = sort_edges(source, target, weight, (9, 5))
    x = torch.randn(9, 4, generator=draw, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(edges.sum, (x,))
    dense = torch.zeros(5, 9, dtype=torch.float64)
    dense.index_put_((target, source), weight, accumulate=True)
    torch.testing.assert_close(edges.sum(x), dense @ x)


def test_ways_that_cannot_share_the_chunks_are_refused() -> None:
    partition = Partition(torch.arange(10), tuple(range(11)))
    with pytest.raises(ArgumentError, match=r"chunks\(10\) % ways\(4\) != 0: .* use chunks=8"):
        make_way_graph(torch.zeros(2, 0, dtype=torch.int64), 10, partition, ways=4)

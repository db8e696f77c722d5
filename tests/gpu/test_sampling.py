"""Batches that kernels of a GPU sample: those of the CPU's sampler."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gnnsys.loaders import CSC, NeighborSampler

NODES = 3000


def random_graph(wide: bool) -> CSC:
    """Most nodes have a few neighbours, one has thousands."""
    draw = torch.Generator().manual_seed(3)
    sources = torch.randint(NODES, (20000,), generator=draw)
    targets = torch.randint(NODES, (20000,), generator=draw)
    targets[:5000] = 7
    graph = CSC.from_edge_index(torch.stack([sources, targets]), NODES)
    return CSC(graph.indptr, graph.indices.long()) if wide else graph


@pytest.mark.parametrize("replace", [False, True], ids=["without", "with"])
@pytest.mark.parametrize("wide", [False, True], ids=["int32", "int64"])
@pytest.mark.parametrize("fanouts", [[10, 5], [-1, 2], [33, 3], [2048]], ids=str)
def test_batches_are_those_of_the_cpu(
    gpu: Any, fanouts: list[int], wide: bool, replace: bool
) -> None:
    graph = random_graph(wide)
    ours, expected = (
        NeighborSampler(graph, fanouts, replace=replace, seed=5, device=device)
        for device in (gpu.name, "cpu")
    )
    for group in range(3):
        seeds = torch.randint(NODES, (60,), generator=torch.Generator().manual_seed(group))
        seeds[:2] = 7
        found, wanted = (each.sample(seeds, group, 4) for each in (ours, expected))
        for part in ("node", "row", "col", "edge"):
            assert torch.equal(getattr(found, part).cpu(), getattr(wanted, part)), part
        assert list(found.num_sampled_nodes) == list(wanted.num_sampled_nodes)
        assert list(found.num_sampled_edges) == list(wanted.num_sampled_edges)

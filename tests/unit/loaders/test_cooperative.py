"""Batches that several ranks draw and compute together, against one process's."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Data, HeteroData

from gnnsys.errors import ArgumentError, UnsupportedError
from gnnsys.loaders import cooperative
from gnnsys.loaders.cooperative import CooperativeSampler, JointBatch
from gnnsys.loaders.neighbor_sampler import NeighborSampler
from gnnsys.ranks.local_hub import LocalHub
from gnnsys.training.models import NodeClassifier

T = TypeVar("T")

NODES = 300
PLACE = {"group": 3, "epoch": 2}


def on_ranks(
    world: int, sampler: NeighborSampler, work: Callable[[CooperativeSampler], T]
) -> list[T]:
    """What the ranks of this process, each in a thread of its own, return."""
    samplers = [CooperativeSampler(sampler, transport=each) for each in LocalHub(world).transports]
    with ThreadPoolExecutor(world) as threads:
        return list(threads.map(work, samplers))


def random_graph() -> Data:
    draw = torch.Generator().manual_seed(1)
    # With loops, edges that are there twice, and nodes without any.
    edge_index = (torch.rand(2, 2400, generator=draw) ** 2 * NODES).long()
    return Data(edge_index=edge_index, num_nodes=NODES)


def seeds_for(count: int) -> Tensor:
    return torch.randperm(NODES, generator=torch.Generator().manual_seed(2))[:count]


def edges_of(n_id: Tensor, edge_index: Tensor, e_id: Tensor) -> list[tuple[int, ...]]:
    return sorted(zip(*n_id[edge_index].tolist(), e_id.tolist(), strict=True))


@pytest.mark.parametrize("count", [3, 20])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"replace": True},
        {"sampling": "labor"},
        {"dependent_batches": 2},
        {"num_neighbors": [-1, 2]},
    ],
)
def test_parts_of_ranks_make_the_batch_of_one_process(options: dict[str, Any], count: int) -> None:
    sampler = NeighborSampler(random_graph(), **{"num_neighbors": [4, 3, 2], "seed": 5, **options})
    seeds = seeds_for(count)
    one = sampler.sample(seeds, **PLACE)
    wanted = edges_of(one.node, torch.stack([one.row, one.col]), one.edge)

    def part(each: CooperativeSampler) -> tuple[JointBatch, list[tuple[int, ...]]]:
        batch = each.sample(seeds, **PLACE)
        (ids, _), edges = batch.exchange(batch.n_id[:, None], 0)
        assert len(ids) == len(batch.n_id) + batch.num_received
        return batch, edges_of(ids[:, 0], edges, batch.e_id)

    for world in (1, 2, 3, 4, 8):
        batches, edges = zip(*on_ranks(world, sampler, part), strict=True)
        assert sorted(chain(*edges)) == wanted
        nodes = torch.cat([each.n_id for each in batches])  # each once
        assert sorted(nodes.tolist()) == sorted(one.node.tolist())
        for name in ("num_sampled_nodes", "num_sampled_edges"):
            hops = zip(*(getattr(each, name) for each in batches), strict=True)
            assert [*map(sum, hops)] == list(getattr(one, name))
        assert sum(each.batch_size for each in batches) == batches[0].num_seeds == count


def test_kernels_draw_a_hop_for_some_nodes_as_the_cpu_does() -> None:
    outs = [
        NeighborSampler(random_graph(), [4, 3], seed=5, device=device).sample_hop(
            seeds_for(20), 1, **PLACE
        )
        for device in ("cpu", "simt")
    ]
    for name in ("node", "row", "col", "edge"):
        assert torch.equal(*(getattr(out, name) for out in outs))


@pytest.mark.parametrize(
    ("model", "scaled"),
    [("sage", False), ("gcn", False), ("gat", False), ("gin", False), ("gin", True)],
)
def test_losses_and_gradients_of_ranks_add_up_to_those_of_one_process(
    model: str, scaled: bool
) -> None:
    torch.manual_seed(0)
    graph = random_graph()
    sampler = NeighborSampler(graph, [4, 3, 2], seed=5)
    x = torch.randn(NODES, 6, dtype=torch.float64)
    labels = torch.randint(5, (NODES,))
    degrees = torch.bincount(graph.edge_index[1], minlength=NODES) if scaled else None
    net = NodeClassifier(model, in_channels=6, hidden=8, out_channels=5, layers=3, dropout=0.0)
    net = net.double()

    def degrees_of(ids: Tensor) -> Tensor | None:
        return None if degrees is None else degrees[ids]

    alone = (torch.bincount(graph.edge_index[1], minlength=NODES) == 0).nonzero()[:1, 0]
    assert len(alone)
    for seeds in (seeds_for(20), seeds_for(3), alone):  # some ranks own no seed, or nothing at all
        one = sampler.sample(seeds, **PLACE)
        edges, sizes = (
            torch.stack([one.row, one.col]),
            (one.num_sampled_nodes, one.num_sampled_edges),
        )
        own = x[one.node].requires_grad_()
        loss = F.cross_entropy(
            net(own, edges, *sizes, degrees_of(one.node))[: len(seeds)], labels[seeds]
        )
        loss.backward()
        wanted = [loss, own.grad[one.node.argsort()], *(each.grad for each in net.parameters())]
        net.zero_grad()

        def part(each: CooperativeSampler) -> list[Tensor]:
            mine, batch = copy.deepcopy(net), each.sample(seeds, **PLACE)  # noqa: B023
            rows = x[batch.n_id].requires_grad_()
            out = mine.forward_jointly(rows, batch, degrees_of(batch.n_id))
            truth = labels[batch.n_id[: batch.batch_size]]
            loss = F.cross_entropy(out, truth, reduction="sum") / batch.num_seeds
            loss.backward()
            of_rows = torch.zeros_like(x).index_copy_(0, batch.n_id, rows.grad)[one.node.sort()[0]]  # noqa: B023
            return [loss.detach(), of_rows, *(each.grad for each in mine.parameters())]

        for world in (1, 2, 3, 4, 8):
            for parts, whole in zip(
                zip(*on_ranks(world, sampler, part), strict=True), wanted, strict=True
            ):
                total = torch.stack(parts).sum(0)
                torch.testing.assert_close(total, whole.detach(), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"disjoint": True}, "disjoint or temporal batches: ranks do not sample it together yet"),
        ({"subgraph_type": "induced"}, "subgraph_type 'induced'"),
        ({"sample_direction": "backward"}, "out-neighbours"),
    ],
)
def test_samplers_whose_batches_have_no_parts_are_refused(
    options: dict[str, Any], message: str
) -> None:
    sampler = NeighborSampler(random_graph(), [2], **options)
    with pytest.raises(UnsupportedError, match=message):
        CooperativeSampler(sampler)


def test_graphs_with_types_are_refused() -> None:
    data = HeteroData(
        {"a": {"num_nodes": 2}, ("a", "to", "a"): {"edge_index": torch.eye(2).long()}}
    )
    with pytest.raises(UnsupportedError, match="a graph with types"):
        CooperativeSampler(NeighborSampler(data, [2]))


@pytest.mark.parametrize("second", [None, torch.ones(NODES, 999)])
def test_ranks_with_different_features_are_told(
    second: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler, here = NeighborSampler(random_graph(), [2]), threading.local()
    for name in ("group_transport", "transport_for_thread"):
        monkeypatch.setattr(cooperative, name, lambda: here.transport)

    def make(transport: Any, features: Tensor | None) -> None:
        here.transport = transport
        with pytest.raises(ArgumentError, match=r"features: ranks \d and \d have others"):
            CooperativeSampler(sampler, features)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(make, LocalHub(2).transports, [torch.ones(NODES, 8), second]))


def test_seeds_given_twice_or_outside_and_rows_of_another_layer_are_refused() -> None:
    sampler = CooperativeSampler(NeighborSampler(random_graph(), [2, 2]))
    with pytest.raises(ArgumentError, match="seeds: some are given twice"):
        sampler.sample(torch.tensor([4, 5, 4]), group=0)
    with pytest.raises(ArgumentError, match=r"seeds: 300 is outside the graph's nodes \[0, 300\)"):
        sampler.sample(torch.tensor([4, 300]), group=0)
    batch = sampler.sample(torch.tensor([4, 5]), group=0)
    with pytest.raises(
        ArgumentError, match=f"x: 1 rows for layer 0 of 2, expected {len(batch.n_id)}"
    ):
        batch.exchange(torch.ones(1, 3), 0)

"""Sampling around links: labels, indices and batches as PyG documents them, negatives by rng."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch_geometric.data import Data, HeteroData
from torch_geometric.loader import LinkLoader
from torch_geometric.sampler import EdgeSamplerInput, NegativeSampling

from gnnsys import rng
from gnnsys.errors import ArgumentError, DTypeError
from gnnsys.loaders import NeighborSampler

sys.path.insert(0, str(Path(__file__).parents[1]))
from rng_reference import bounded

WRITES, CITES = ("author", "writes", "paper"), ("paper", "cites", "paper")
NODES = {"author": 35, "paper": 20, None: 40}
TYPES = [None, WRITES, CITES]


def graph(typed: bool) -> Any:
    draw = torch.Generator().manual_seed(1)
    data = HeteroData() if typed else Data()
    for kind in ("author", "paper") if typed else (None,):
        store = data[kind] if typed else data
        store.num_nodes = NODES[kind]
        store.time = torch.randint(0, 50, (NODES[kind],), generator=draw)
        store.time[0] = 0
    for kind in (WRITES, CITES) if typed else (None,):
        store = data[kind] if typed else data
        source, target = ends(kind)
        store.edge_index = torch.stack(
            [torch.randint(0, NODES[end], (150,), generator=draw) for end in (source, target)]
        )
    return data


def ends(kind: Any) -> tuple[Any, Any]:
    return (None, None) if kind is None else (kind[0], kind[-1])


def links(kind: Any, count: int = 12, **given: Any) -> EdgeSamplerInput:
    draw = torch.Generator().manual_seed(2)
    row, col = (torch.randint(0, NODES[end], (count,), generator=draw) for end in ends(kind))
    return EdgeSamplerInput(torch.arange(100, 100 + count), row, col, input_type=kind, **given)


def sampler_for(kind: Any, **options: Any) -> NeighborSampler:
    return NeighborSampler(graph(kind is not None), [3, 2], **options)


def nodes_of(out: Any, kind: Any, side: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Nodes and batch of the source's (0) or the target's (1) type."""
    if kind is None:
        return out.node, out.batch
    end = ends(kind)[side]
    return out.node[end], None if out.batch is None else out.batch[end]


KINDS = pytest.mark.parametrize("kind", TYPES, ids=["homogeneous", "two types", "one type"])


@KINDS
@pytest.mark.parametrize("disjoint", [False, True])
@pytest.mark.parametrize("amount", [None, 1, 2, 0.3])
@pytest.mark.parametrize("labelled", [False, True])
def test_links_and_binary_negatives_are_indexed_and_labelled(kind, disjoint, amount, labelled):
    inputs = links(kind, label=torch.arange(1, 13) if labelled else None)
    negatives = None if amount is None else NegativeSampling("binary", amount)
    out = sampler_for(kind, disjoint=disjoint).sample_from_edges(
        inputs, negatives, group=1, epoch=0
    )
    input_id, index, label, time = out.metadata
    wanted = math.ceil(12 * (amount or 0))
    assert torch.equal(input_id, inputs.input_id)
    assert time is None
    assert index.shape == (2, 12 + wanted)
    for side, ids in enumerate((inputs.row, inputs.col)):
        node, batch = nodes_of(out, kind, side)
        assert torch.equal(node[index[side, :12]], ids)
        assert len(node[index[side, 12:]]) == wanted
        if disjoint:
            assert batch[index[side]].tolist() == [i % 12 for i in range(12 + wanted)]
        if not disjoint:
            assert batch is None
            seeds = (
                node[: int(index.max()) + 1]
                if ends(kind)[0] == ends(kind)[1]
                else node[: index[side].max() + 1]
            )
            assert len(seeds.unique()) == len(seeds)
    if labelled:
        assert label.tolist() == list(range(1, 13)) + [0] * wanted
    elif amount is None:
        assert label is None
    else:
        assert label.tolist() == [1.0] * 12 + [0.0] * wanted


@KINDS
@pytest.mark.parametrize("disjoint", [False, True])
@pytest.mark.parametrize("amount", [1, 3])
def test_triplets_have_negative_targets_for_every_source(kind, disjoint, amount):
    inputs = links(kind)
    negatives = NegativeSampling("triplet", amount)
    out = sampler_for(kind, disjoint=disjoint).sample_from_edges(
        inputs, negatives, group=1, epoch=0
    )
    input_id, source, positive, negative, time = out.metadata
    assert torch.equal(input_id, inputs.input_id)
    assert time is None
    node, batch = nodes_of(out, kind, 0)
    targets, target_batch = nodes_of(out, kind, 1)
    assert torch.equal(node[source], inputs.row)
    assert torch.equal(targets[positive], inputs.col)
    assert negative.shape == ((12,) if amount == 1 else (12, amount))
    assert bool((targets[negative] < NODES[ends(kind)[1]]).all())
    if disjoint:
        whose = torch.arange(12)
        assert torch.equal(batch[source], whose)
        assert torch.equal(target_batch[positive], whose)
        assert torch.equal(
            target_batch[negative].view(12, -1), whose.view(-1, 1).expand(-1, amount)
        )


@KINDS
@pytest.mark.parametrize("mode", ["binary", "triplet"])
@pytest.mark.parametrize("strategy", ["uniform", "last"])
def test_nothing_in_a_batch_is_newer_than_its_link(kind, mode, strategy):
    when = torch.randint(5, 50, (12,), generator=torch.Generator().manual_seed(3))
    inputs = links(kind, time=when)
    sampler = sampler_for(kind, time_attr="time", temporal_strategy=strategy)
    out = sampler.sample_from_edges(inputs, NegativeSampling(mode, 2), group=0, epoch=0)
    data = graph(kind is not None)
    seeds = [0, 0]
    if mode == "binary":
        index, times = out.metadata[1], out.metadata[3]
        assert times.tolist() == when.repeat(3).tolist()
        drawn = [index[side, 12:] for side in (0, 1)]
        seeds = [int(index[side].max()) + 1 for side in (0, 1)]
    else:
        assert torch.equal(out.metadata[4], when)
        drawn = [None, out.metadata[3].flatten()]
        seeds = [int(part.max()) + 1 for part in (out.metadata[1], out.metadata[3])]
    for side, end in enumerate(ends(kind)):
        node, batch = nodes_of(out, kind, side)
        own = (data[end] if kind else data).time[node]
        late = own > when[batch]
        if drawn[side] is not None:
            assert not bool(late[drawn[side]].any())
        if ends(kind)[0] == ends(kind)[1]:
            seeds[side] = max(seeds)
        assert not bool(late[seeds[side] :].any())


def test_negatives_are_drawn_by_the_documented_words():
    inputs = links(WRITES)
    sampler = sampler_for(WRITES, seed=7)
    out = sampler.sample_from_edges(inputs, NegativeSampling("binary"), group=3, epoch=2)
    index = out.metadata[1]
    for side, end in enumerate(ends(WRITES)):
        key = rng.negatives_key(7, 2, 3, side)
        expected = [bounded(key, i // 4, i % 4, NODES[end]) for i in range(12)]
        assert out.node[end][index[side, 12:]].tolist() == expected


def negative_nodes(sampler: NeighborSampler, negatives: NegativeSampling, group: int) -> list[int]:
    out = sampler.sample_from_edges(links(None), negatives, group=group, epoch=0)
    index = out.metadata[1][1, 12:] if negatives.is_binary() else out.metadata[3].flatten()
    return out.node[index].tolist()


def test_negatives_depend_on_seed_epoch_and_batch_alone():
    negatives = NegativeSampling("triplet", 4)
    sampler = sampler_for(None)
    torch.manual_seed(0)
    first = negative_nodes(sampler, negatives, 0)
    torch.manual_seed(1)
    assert negative_nodes(sampler, negatives, 0) == first
    assert negative_nodes(sampler_for(None, threads=3), negatives, 0) == first
    assert negative_nodes(sampler, negatives, 1) != first
    assert negative_nodes(sampler_for(None, seed=1), negatives, 0) != first


def test_batches_that_share_draws_have_their_own_negatives():
    negatives = NegativeSampling("triplet", 4)
    sampler = sampler_for(None, dependent_batches=8)
    assert negative_nodes(sampler, negatives, 0) != negative_nodes(sampler, negatives, 1)


def test_every_node_is_equally_likely_a_negative():
    sampler = NeighborSampler(graph(False), [0])
    negatives = NegativeSampling("triplet", 50)
    counts = np.zeros(40)
    for group in range(20):
        np.add.at(counts, negative_nodes(sampler, negatives, group), 1)
    assert 1e-3 < stats.chisquare(counts).pvalue < 1 - 1e-3


@pytest.mark.parametrize("mode", ["binary", "triplet"])
def test_negatives_are_drawn_in_proportion_to_their_weights(mode):
    weight = torch.arange(40) % 4
    sampler = NeighborSampler(graph(False), [0])
    negatives = NegativeSampling(mode, 50, src_weight=torch.ones(40), dst_weight=weight)
    counts = np.zeros(40)
    for group in range(20):
        np.add.at(counts, negative_nodes(sampler, negatives, group), 1)
    drawn = weight.numpy() > 0
    assert not counts[~drawn].any()
    expected = counts.sum() * weight.numpy()[drawn] / weight.sum().item()
    assert 1e-3 < stats.chisquare(counts[drawn], expected).pvalue < 1 - 1e-3


def test_the_smallest_of_weights_are_drawn_too():
    weight = torch.zeros(40, dtype=torch.float64)
    weight[[3, 8]] = 5e-324
    negatives = NegativeSampling("triplet", 20, dst_weight=weight)
    assert set(negative_nodes(NeighborSampler(graph(False), [0]), negatives, 0)) == {3, 8}


def test_weights_that_change_in_place_change_the_negatives():
    weight = torch.zeros(40)
    weight[3:5] = 1
    sampler = NeighborSampler(graph(False), [0])
    negatives = NegativeSampling("triplet", 2, dst_weight=weight)
    assert set(negative_nodes(sampler, negatives, 0)) == {3, 4}
    weight.zero_()[5:7] = 2
    assert set(negative_nodes(sampler, negatives, 0)) == {5, 6}


def test_bidirectional_batches_keep_their_links():
    inputs = links(None)
    out = sampler_for(None, subgraph_type="bidirectional").sample_from_edges(
        inputs, group=0, epoch=0
    )
    assert torch.equal(out.node[out.metadata[1][0]], inputs.row)
    pairs = set(zip(out.row.tolist(), out.col.tolist(), strict=True))
    assert pairs == {(col, row) for row, col in pairs}


def test_pygs_link_loader_takes_the_sampler():
    data = graph(True)
    sampler = NeighborSampler(data, [3, 2])
    edge_label_index = (WRITES, data[WRITES].edge_index)
    loader = LinkLoader(data, sampler, edge_label_index, neg_sampling="binary", batch_size=50)
    for batch in loader:
        index = batch[WRITES].edge_label_index
        ids = batch[WRITES].input_id
        found = torch.stack(
            [batch[end].n_id[index[side, : len(ids)]] for side, end in enumerate(ends(WRITES))]
        )
        assert torch.equal(found, data[WRITES].edge_index[:, ids])
        assert batch[WRITES].edge_label.sum() == len(ids)


# Bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "negatives", "message"),
    [
        ({"count": 0}, None, "links: none"),
        ({"time": torch.arange(12)}, None, "edge_label_time"),
        ({"label": torch.ones(12)}, NegativeSampling("triplet"), "triplets have no labels"),
        (
            {},
            NegativeSampling("triplet", dst_weight=torch.ones(3)),
            r"dst_weight has the shape \(3,\), .* 40 nodes",
        ),
        (
            {},
            NegativeSampling("triplet", dst_weight=torch.arange(40) - 1),
            "dst_weight of node 0 is -1.0",
        ),
        (
            {},
            NegativeSampling("binary", src_weight=torch.full((40,), torch.nan)),
            "src_weight of node 0 is nan",
        ),
        ({}, NegativeSampling("triplet", dst_weight=torch.zeros(40)), "dst_weight sums to 0.0"),
    ],
)
def test_links_that_do_not_fit_are_one_clear_error(given, negatives, message):
    with pytest.raises(ArgumentError, match=message):
        sampler_for(None).sample_from_edges(links(None, **given), negatives)


def test_negatives_of_links_without_times_are_an_error_in_a_temporal_graph():
    sampler = sampler_for(None, time_attr="time")
    with pytest.raises(ArgumentError, match="edge_label_time"):
        sampler.sample_from_edges(links(None), NegativeSampling("binary"))
    with pytest.raises(DTypeError, match=r"times of the links: dtype torch.float32"):
        sampler.sample_from_edges(links(None, time=torch.rand(12)))


@pytest.mark.parametrize("node", [-1, 40])
def test_ends_outside_the_graph_are_an_error(node):
    inputs = EdgeSamplerInput(None, torch.tensor([0]), torch.tensor([node]))
    for disjoint in (False, True):
        with pytest.raises(ArgumentError, match=rf"seed {node} .*\[0, 40\)"):
            sampler_for(None, disjoint=disjoint).sample_from_edges(inputs)


def test_an_edge_type_is_needed_where_there_are_types():
    with pytest.raises(ArgumentError, match="input_type: None"):
        sampler_for(WRITES).sample_from_edges(links(None))

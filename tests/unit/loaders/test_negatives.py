"""Negative nodes of links with times: drawn among those that are not newer than the link."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch_geometric.data import Data, HeteroData
from torch_geometric.sampler import EdgeSamplerInput, NegativeSampling

import gnnsys
from gnnsys import rng
from gnnsys.errors import ArgumentError
from gnnsys.loaders import NeighborSampler

NODES = 40
LIKES = ("user", "likes", "item")


def make_data() -> Data:
    draw = torch.Generator().manual_seed(1)
    return Data(
        edge_index=torch.randint(NODES, (2, 200), generator=draw),
        time=torch.randint(-5, 30, (NODES,), generator=draw),
        num_nodes=NODES,
    )


def make_hetero() -> HeteroData:
    draw = torch.Generator().manual_seed(2)
    data = HeteroData()
    for kind, count in (("user", 30), ("item", 50)):
        data[kind].time = torch.randint(0, 20, (count,), generator=draw)
        data[kind].num_nodes = count
    data[LIKES].edge_index = torch.stack([torch.arange(60) % 30, torch.arange(60) % 50])
    return data


def links(times: torch.Tensor, kind: Any = None) -> EdgeSamplerInput:
    ends = torch.zeros(len(times), dtype=torch.int64)
    return EdgeSamplerInput(None, ends, ends, time=times, input_type=kind)


def negatives(
    data: Any, inputs: EdgeSamplerInput, asked: NegativeSampling, **place: int
) -> list[torch.Tensor]:
    """Ids of the negative sources, if there are any, and targets, and the times of their links."""
    sampler = NeighborSampler(data, [0], time_attr="time")
    out = sampler.sample_from_edges(inputs, asked, **{"group": 0, "epoch": 0, **place})
    kind = inputs.input_type
    nodes = [out.node] * 2 if kind is None else [out.node[kind[0]], out.node[kind[-1]]]
    if asked.is_binary():
        index, times = out.metadata[1][:, len(inputs.row) :], out.metadata[3][len(inputs.row) :]
        return [nodes[0][index[0]], nodes[1][index[1]], times]
    index = out.metadata[3].view(len(inputs.row), -1)
    times = inputs.time.view(-1, 1).expand_as(index)
    return [nodes[1][index].flatten(), times.flatten()]


@pytest.mark.parametrize("asked", [("triplet", 3), ("binary", 2), ("binary", 0.4)])
@pytest.mark.parametrize("typed", [False, True], ids=["homogeneous", "two types"])
def test_no_negative_is_newer_than_its_link(asked: Any, typed: bool) -> None:
    data, kind = (make_hetero(), LIKES) if typed else (make_data(), None)
    times = torch.randint(3, 40, (500,), generator=torch.Generator().manual_seed(3))
    *ends, when = negatives(data, links(times, kind), NegativeSampling(*asked))
    own = [data[end].time for end in LIKES[::2]] if typed else [data.time] * 2
    for ids, time in zip(ends, own[-len(ends) :], strict=True):
        assert len(ids) == len(when)
        assert bool((time[ids] <= when).all())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("time", [-5, 0, 12, 29])
def test_every_old_enough_node_is_drawn_as_often_as_it_should(time: int, weighted: bool) -> None:
    data = make_data()
    data.time[:4] = -5
    weight = (torch.arange(NODES) % 5).double() if weighted else None
    asked = NegativeSampling("binary", 1, src_weight=None, dst_weight=weight)
    inputs = links(torch.full((6000,), time))
    sources, targets, _ = negatives(data, inputs, asked)
    for ids, share in ((sources, torch.ones(NODES)), (targets, weight)):
        share = torch.ones(NODES) if share is None else share
        expected = np.where(data.time <= time, share.double(), 0.0)
        counts = np.bincount(ids, minlength=NODES)
        possible = expected > 0
        assert not counts[~possible].any()
        expected = expected[possible] / expected.sum() * len(ids)
        assert stats.chisquare(counts[possible], expected).pvalue > 1e-4


def test_a_node_without_weight_is_never_drawn_even_where_one_other_is_left() -> None:
    data = make_data()
    data.time = torch.arange(NODES)
    weight = torch.zeros(NODES)
    weight[3], weight[30] = 1e-30, 1e30
    asked = NegativeSampling("triplet", 5, dst_weight=weight)
    ids, _ = negatives(data, links(torch.arange(3, 30)), asked)
    assert set(ids.tolist()) == {3}


def test_negatives_are_drawn_by_the_documented_numbers() -> None:
    data, times = make_data(), torch.arange(0, 30)
    ids, *_ = negatives(data, links(times), NegativeSampling("triplet", 2), group=3, epoch=2)
    uniform = rng.uniforms(rng.negatives_key(0, 2, 3, 0), 60)
    order = sorted(range(NODES), key=lambda node: (int(data.time[node]), node))
    for number, share in enumerate(uniform):
        link, draw = number % 30, number // 30
        old_enough = [node for node in order if data.time[node] <= times[link]]
        assert ids.view(30, 2)[link, draw] == old_enough[int(share * len(old_enough))]


@pytest.mark.parametrize("window", [0, 4])
def test_negatives_of_a_loader_depend_on_seed_epoch_and_batch_alone(window: int) -> None:
    def run(seed: int, **options: Any) -> list[list[int]]:
        loader = gnnsys.LinkNeighborLoader(
            make_data(),
            [2],
            torch.randint(NODES, (2, 90), generator=torch.Generator().manual_seed(5)),
            edge_label_time=torch.arange(90),
            time_attr="time",
            neg_sampling="binary",
            batch_size=20,
            seed=seed,
            **options,
        )
        epochs = [batch.n_id[batch.edge_label_index] for _ in range(2) for batch in loader]
        return [ids.flatten().tolist() for ids in epochs]

    torch.manual_seed(0)
    first = run(1, window=window)
    torch.manual_seed(1)
    assert run(1, threads=1) == first
    assert run(2) != first
    assert first[:5] != first[5:]


def test_times_of_edges_and_types_without_times_bound_no_negative() -> None:
    data = make_data()
    data.stamp = torch.arange(200)
    del data.time
    sampler = NeighborSampler(data, [0], time_attr="stamp")
    inputs = links(torch.full((300,), -9))
    out = sampler.sample_from_edges(inputs, NegativeSampling("triplet"), group=0, epoch=0)
    assert len(out.node[out.metadata[3]].unique()) == NODES
    typed = make_hetero()
    del typed["item"].time
    asked = NegativeSampling("binary")
    _, targets, _ = negatives(typed, links(torch.full((900,), 5), LIKES), asked)
    assert len(targets.unique()) == 50


def test_weights_and_edge_types_that_change_are_not_mixed_up() -> None:
    sampler = NeighborSampler(make_hetero(), [0], time_attr="time")
    for number in (4, 9):
        weight = torch.zeros(50)
        weight[number] = 1
        asked = NegativeSampling("triplet", dst_weight=weight)
        out = sampler.sample_from_edges(links(torch.full((5,), 20), LIKES), asked)
        assert set(out.node["item"][out.metadata[3]].tolist()) == {number}


@pytest.mark.parametrize(
    ("weight", "time", "says"),
    [
        (None, -6, "no node is as old as the link from 0 to 0 at the time -6; leave"),
        (
            torch.arange(NODES) == 7,
            10,
            "no node with a dst_weight above 0 is as old as the link from 0 to 0",
        ),
    ],
)
def test_a_link_older_than_every_node_is_named(weight: Any, time: int, says: str) -> None:
    data = make_data()
    data.time[7] = 11
    asked = NegativeSampling("triplet", 1, dst_weight=weight)
    with pytest.raises(ArgumentError, match=says):
        negatives(data, links(torch.tensor([20, time, 20])), asked)

"""LinkNegatives: none is a known link, hard ones come from a table, draws keep their weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.sampler import EdgeSamplerInput

import gnnsys
from gnnsys.errors import ArgumentError, DTypeError
from gnnsys.loaders import LinkNegatives, NeighborSampler, degree_weights

USERS, ITEMS = 12, 9
LIKES = ("user", "likes", "item")


def graph(users: int = USERS, items: int = ITEMS, timed: bool = False) -> HeteroData:
    data = HeteroData()
    for kind, count in (("user", users), ("item", items)):
        data[kind].num_nodes = count
        if timed:
            data[kind].time = torch.arange(count)
    data[LIKES].edge_index = torch.zeros(2, 1, dtype=torch.int64)
    return data


def links(count: int, time: Tensor | None = None, users: int = USERS) -> EdgeSamplerInput:
    ends = torch.arange(count) % users, torch.zeros(count, dtype=torch.int64)
    return EdgeSamplerInput(None, *ends, time=time, input_type=LIKES)


def pairs_of(
    data: HeteroData, inputs: EdgeSamplerInput, asked: LinkNegatives, **options: Any
) -> Tensor:
    """(2, negatives) drawn pairs; negative i belongs to link i % links."""
    sampler = NeighborSampler(data, [0], **options)
    out = sampler.sample_from_edges(inputs, asked, group=1, epoch=2)
    user, item = out.node["user"], out.node["item"]
    if asked.is_binary():
        row, col = out.metadata[1][:, len(inputs.row) :]
        return torch.stack([user[row], item[col]])
    drawn = item[out.metadata[3]].view(len(inputs.row), -1).t().flatten()
    return torch.stack([inputs.row.repeat(int(asked.amount)), drawn])


def as_set(pairs: Tensor) -> set[tuple[int, int]]:
    return set(map(tuple, pairs.t().tolist()))


def all_pairs_but(free: list[tuple[int, int]]) -> Tensor:
    there = torch.ones(USERS, ITEMS, dtype=torch.bool)
    for pair in free:
        there[pair] = False
    return there.nonzero().t()


@settings(max_examples=25, deadline=None)
@given(
    share=st.floats(0, 0.97),
    seed=st.integers(0, 1 << 20),
    mode=st.sampled_from(["binary", "triplet"]),
    weighted=st.booleans(),
    timed=st.booleans(),
)
def test_no_negative_is_a_known_link(share, seed, mode, weighted, timed) -> None:
    draw = torch.Generator().manual_seed(seed)
    known = (torch.rand(USERS, ITEMS, generator=draw) < share).nonzero().t()
    free = torch.ones(USERS, ITEMS, dtype=torch.bool)
    free[known[0], known[1]] = False
    weight = torch.rand(ITEMS, generator=draw) + (torch.arange(ITEMS) == 0)
    weight[3] = 0 if weighted else weight[3]
    asked = LinkNegatives(mode, 3, dst_weight=weight if weighted else None, known=known)
    time = torch.randint(4, 15, (20,), generator=draw) if timed else None
    inputs = links(20, time)
    data = graph(timed=timed)
    possible = free & (weight > 0 if weighted else torch.ones(ITEMS) > 0)
    when = torch.full((20,), 99) if time is None else time
    # By link: the pairs that are neither known, nor newer, nor without weight.
    left = torch.stack([possible & (torch.arange(ITEMS) <= t) for t in when])
    if mode == "triplet":
        has_some = left[torch.arange(20), inputs.row].any(1).all()
    else:
        has_some = (
            (left & (torch.arange(USERS)[:, None] <= when[:, None, None])).any(2).any(1).all()
        )
    options = {"time_attr": "time"} if timed else {}
    if not has_some:
        with pytest.raises(ArgumentError, match="known link"):
            pairs_of(data, inputs, asked, **options)
        return
    row, col = pairs_of(data, inputs, asked, **options)
    link = torch.arange(60) % 20
    assert bool(left[link, row, col].all())
    if timed and mode == "binary":
        assert bool((row <= when[link]).all())


@pytest.mark.parametrize("mode", ["binary", "triplet"])
def test_what_is_left_is_drawn_in_proportion_to_its_weight(mode: str) -> None:
    # So few pairs are left that most draws come to be written out.
    free = [(0, 1), (0, 4), (5, 2), (5, 8), (5, 4)]
    src, dst = torch.arange(USERS) + 1.0, torch.arange(ITEMS) + 0.5
    asked = LinkNegatives(mode, 1, src, dst, known=all_pairs_but(free))
    inputs = EdgeSamplerInput(
        None, torch.full((3000,), 5), torch.zeros(3000, dtype=torch.int64), input_type=LIKES
    )
    drawn = pairs_of(graph(), inputs, asked)
    possible = [pair for pair in free if mode == "binary" or pair[0] == 5]
    counts = [int((drawn == torch.tensor(pair)[:, None]).all(0).sum()) for pair in possible]
    assert sum(counts) == 3000
    share = np.array([float((src[u] if mode == "binary" else 1) * dst[i]) for u, i in possible])
    assert stats.chisquare(counts, share / share.sum() * 3000).pvalue > 1e-4


def test_without_known_links_the_draws_are_those_of_pyg_s_class() -> None:
    from torch_geometric.sampler import NegativeSampling

    for mode in ("binary", "triplet"):
        plain = pairs_of(graph(), links(30), NegativeSampling(mode, 2))
        assert torch.equal(pairs_of(graph(), links(30), LinkNegatives(mode, 2)), plain)
        known = torch.tensor([[0], [0]])
        again = pairs_of(graph(), links(30), LinkNegatives(mode, 2, known=known))
        kept = ~((plain == 0).all(0))
        assert torch.equal(again[:, kept], plain[:, kept])


@pytest.mark.parametrize("timed", [False, True])
def test_hard_negatives_are_usable_entries_of_their_source_s_row(timed: bool) -> None:
    draw = torch.Generator().manual_seed(4)
    hard = torch.randint(-1, ITEMS, (USERS, 4), generator=draw)
    hard[7] = -1
    known = torch.stack([torch.arange(USERS), hard[:, 0].clamp(min=0)])
    time = torch.arange(48) % 5 + 4 if timed else None
    inputs = links(48, time)
    asked = LinkNegatives("triplet", 3, known=known, hard=hard, num_hard=2)
    options = {"time_attr": "time"} if timed else {}
    row, col = pairs_of(graph(timed=timed), inputs, asked, **options)
    assert torch.equal(row, inputs.row.repeat(3))
    plain = pairs_of(
        graph(timed=timed), inputs, LinkNegatives("triplet", 3, known=known), **options
    )[1]
    seen: dict[int, set[int]] = {}
    for number, (user, item) in enumerate(zip(row.tolist(), col.tolist(), strict=True)):
        link = number % 48
        usable = {
            each
            for each in hard[user].tolist()
            if each >= 0
            and each != int(inputs.col[link])
            and (user, each) not in as_set(known)
            and (time is None or each <= int(time[link]))
        }
        if number < 2 * 48 and usable:
            assert item in usable
            seen.setdefault(user, set()).add(item)
        else:
            assert item == plain[number]
    assert any(len(items) > 1 for items in seen.values())


def test_a_loader_takes_known_links_and_another_table_in_the_next_epoch() -> None:
    draw = torch.Generator().manual_seed(5)
    edges = torch.randint(40, (2, 300), generator=draw)
    data = Data(edge_index=edges, num_nodes=40)
    hard = torch.full((40, 1), 3)
    asked = LinkNegatives("triplet", 4, known=edges, hard=hard, num_hard=1)
    runs = []
    for options in ({}, {"window": 0, "threads": 1}):
        asked.hard = hard
        loader = gnnsys.LinkNeighborLoader(
            data, [2], neg_sampling=asked, batch_size=64, shuffle=True, **options
        )
        drawn = []
        for number in (3, 6):
            asked.hard = torch.full((40, 1), number)
            batches = [(b.n_id[b.src_index], b.n_id[b.dst_neg_index]) for b in loader]
            for source, negative in batches:
                pairs = torch.stack([source.repeat_interleave(4), negative.flatten()])
                assert not as_set(pairs) & as_set(edges)
            drawn.append(torch.cat([negative for _, negative in batches]))
            assert (drawn[-1][:, 0] == number).float().mean() > 0.5
        runs.append(torch.stack(drawn))
    assert torch.equal(*runs)


def test_degree_weights_are_counts_to_a_power() -> None:
    ids = torch.tensor([3, 1, 3, 3, 0], dtype=torch.int32)
    expected = np.array([1, 1, 0, 3, 0]) ** 0.75
    np.testing.assert_allclose(degree_weights(ids, 5), expected, rtol=1e-15)
    assert degree_weights(ids, 5, power=0).tolist() == [1, 1, 0, 1, 0]
    assert degree_weights(torch.tensor([]), 2).tolist() == [0, 0]


# Bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["binary", "triplet"])
def test_where_all_pairs_exist_there_is_one_clear_error(mode: str) -> None:
    asked = LinkNegatives(mode, 1, known=all_pairs_but([]))
    with pytest.raises(ArgumentError, match="known link"):
        pairs_of(graph(), links(4), asked)


def test_a_source_that_is_linked_to_everything_is_named() -> None:
    asked = LinkNegatives("triplet", 1, known=all_pairs_but([(5, 2)]))
    with pytest.raises(
        ArgumentError,
        match=r"link from 0 to 0 every target .* \(9 of 9\) is a known link of the source 0",
    ):
        pairs_of(graph(), links(4), asked)


def test_a_link_as_old_as_known_targets_alone_is_named_with_its_time() -> None:
    asked = LinkNegatives("triplet", known=torch.tensor([[0, 0], [0, 1]]))
    inputs = EdgeSamplerInput(
        None, torch.tensor([0]), torch.tensor([1]), time=torch.tensor([1]), input_type=LIKES
    )
    told = r"from 0 to 1 at the time 1 every target .* \(2 of 9\) is a known link of the source 0"
    with pytest.raises(ArgumentError, match=told):
        pairs_of(graph(timed=True), inputs, asked, time_attr="time")
    everything = LinkNegatives("binary", known=all_pairs_but([(5, 2)]))
    with pytest.raises(ArgumentError, match="drawn for the link from 0 to 1 at the time 1 is a kn"):
        pairs_of(graph(timed=True), inputs, everything, time_attr="time")


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_link_whose_own_target_alone_can_be_drawn_is_an_error(
    timed: bool, weighted: bool
) -> None:
    weight = torch.zeros(ITEMS)
    weight[[2, 7]] = torch.tensor([0.5, 2.0])
    # By weights, or by times, or by both: the target 2 alone; and then one more.
    one, two = (2, 7) if weighted else (0, 1)
    if weighted and not timed:
        weight[7] = 0
    times = {"time": torch.tensor([one])} if timed else {}
    options = {"time_attr": "time"} if timed else {}
    asked = LinkNegatives("triplet", dst_weight=weight if weighted else None)
    data = graph(timed=timed, items=ITEMS if weighted or timed else 1)

    def drawn(target: int, **given: Any) -> Tensor:
        ends = torch.tensor([0]), torch.tensor([target])
        inputs = EdgeSamplerInput(None, *ends, input_type=LIKES, **given)
        return pairs_of(data, inputs, asked, **options)

    with pytest.raises(ArgumentError, match=rf"one 'item' node .* from 0 to {one}.*its own link"):
        drawn(one, **times)
    if timed or weighted:
        assert drawn(two, **times).tolist() == [[0], [one]]  # defined: no link of its own
    if timed:
        assert int(drawn(one, time=torch.tensor([two]))[1]) in (one, two)


@pytest.mark.parametrize("mode", ["binary", "triplet"])
def test_a_destination_type_of_one_node_is_an_error_where_it_leaves_no_negative(mode: str) -> None:
    data = graph(users=1 if mode == "binary" else 5, items=1)
    inputs = EdgeSamplerInput(None, *torch.zeros(2, 3, dtype=torch.int64), input_type=LIKES)
    for asked in (LinkNegatives(mode), mode):
        with pytest.raises(ArgumentError, match="there is one 'item' node"):
            NeighborSampler(data, [0]).sample_from_edges(inputs, asked, group=0, epoch=0)
    if mode == "triplet":
        drawn = pairs_of(
            data, links(4, users=5), LinkNegatives("binary", known=torch.zeros(2, 1).long())
        )
        assert not bool((drawn[0] == 0).any())


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"amount": 0}, ArgumentError, "neg_sampling: .*amount"),
        ({"mode": "pairs"}, ArgumentError, "neg_sampling: .*pairs"),
        ({"known": torch.zeros(3, 2)}, ArgumentError, r"known: shape \(3, 2\)"),
        ({"known": torch.rand(2, 4)}, DTypeError, "known: dtype torch.float32"),
        ({"hard": torch.zeros(4)}, ArgumentError, r"hard: shape \(4,\)"),
        ({"hard": torch.rand(4, 2)}, DTypeError, "hard: dtype"),
        ({"mode": "binary", "hard": torch.zeros(4, 2)}, ArgumentError, "use 'triplet'"),
        ({"num_hard": 1}, ArgumentError, "give hard"),
        ({"hard": [1]}, ArgumentError, r"hard: shape \(1,\)"),
        ({"num_hard": 1.5, "amount": 2, "hard": [[1]]}, ArgumentError, "num_hard: 1.5"),
        ({"num_hard": True, "hard": [[1]]}, ArgumentError, "num_hard: True"),
        ({"num_hard": 2, "hard": torch.ones(4, 2).long()}, ArgumentError, "0 to the amount"),
    ],
)
def test_what_cannot_be_meant_is_told_at_once(given, kind, message) -> None:
    with pytest.raises(kind, match=message):
        LinkNegatives(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"known": torch.tensor([[0], [ITEMS]])},
            r"known, targets: 9 is outside \[0, 9\)",
        ),
        ({"known": torch.tensor([[-1], [0]])}, "known, sources: -1 is outside"),
        ({"hard": torch.zeros(3, 2).long()}, "hard: 3 rows, expected one for each of the 12"),
        ({"hard": torch.full((USERS, 2), 9)}, r"hard: 9 is outside the targets \[0, 9\)"),
    ],
)
def test_ids_that_do_not_fit_the_graph_are_told_by_the_batch(given, message) -> None:
    with pytest.raises(ArgumentError, match=message):
        pairs_of(graph(), links(4), LinkNegatives("triplet", **given))


def test_degree_weights_name_what_they_cannot_use() -> None:
    with pytest.raises(ArgumentError, match=r"ids: 4 is outside \[0, 4\)"):
        degree_weights(torch.tensor([4]), 4)
    with pytest.raises(ArgumentError, match="power: nan"):
        degree_weights(torch.tensor([0]), 4, power=float("nan"))
    with pytest.raises(ArgumentError, match=r"power: 5000, expected .* 2 occurrences"):
        degree_weights(torch.tensor([0, 0]), 4, power=5000)
    for count in (-1, 2.5):
        with pytest.raises(ArgumentError, match=f"num_nodes: {count}"):
            degree_weights(torch.tensor([], dtype=torch.int64), count)

"""hide_links: no sampled edge joins the ends of a link of the batch; everything else stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.sampler import EdgeSamplerInput

import gnnsys
from gnnsys.errors import ArgumentError
from gnnsys.loaders import NeighborSampler

LIKES, LIKED, CITES = ("user", "likes", "item"), ("item", "liked", "user"), ("item", "c", "item")


def make_data(nodes: int = 25, edges: int = 160) -> Data:
    draw = torch.Generator().manual_seed(1)
    ends = torch.randint(nodes, (2, edges), generator=draw)
    both = torch.cat([ends, ends.flip(0)], 1)
    return Data(edge_index=both, edge_attr=torch.arange(2 * edges), num_nodes=nodes)


def make_hetero() -> HeteroData:
    draw = torch.Generator().manual_seed(2)
    data = HeteroData()
    data["user"].num_nodes, data["item"].num_nodes = 20, 15
    ends = torch.stack([torch.randint(n, (90,), generator=draw) for n in (20, 15)])
    data[LIKES].edge_index = ends
    data[LIKED].edge_index = ends.flip(0)
    data[CITES].edge_index = torch.randint(15, (2, 60), generator=draw)
    return data


def pairs(edge_index: Tensor) -> list[tuple[int, int]]:
    return list(map(tuple, edge_index.t().tolist()))


SHAPES = {
    "directional": {},
    "disjoint": {"disjoint": True},
    "replace": {"replace": True},
    "induced": {"subgraph_type": "induced"},
    "bidirectional": {"subgraph_type": "bidirectional"},
    "labor": {"sampling": "labor"},
}


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("neg_sampling", [None, "binary", "triplet"])
def test_the_edges_are_those_without_it_but_for_the_links_and_their_reverses(
    options: dict[str, Any], neg_sampling: str | None
) -> None:
    data = make_data()
    hidden = 0
    loaders = [
        gnnsys.LinkNeighborLoader(
            data, [4, 3], data.edge_index[:, :160], neg_sampling=neg_sampling, batch_size=7,
            hide_links=hide, **options,
        )
        for hide in (True, False)
    ]  # fmt: skip
    for batch, plain in zip(*loaders, strict=True):
        links = set(pairs(data.edge_index[:, batch.input_id]))
        links |= {link[::-1] for link in links}
        assert torch.equal(batch.n_id, plain.n_id)
        wanted = [
            (edge, number)
            for edge, number in zip(
                pairs(plain.n_id[plain.edge_index]), plain.e_id.tolist(), strict=True
            )
            if edge not in links
        ]
        found = pairs(batch.n_id[batch.edge_index])
        assert list(zip(found, batch.e_id.tolist(), strict=True)) == wanted
        assert torch.equal(batch.edge_attr, data.edge_attr[batch.e_id])
        hidden += len(plain.e_id) - len(wanted)
        if "num_sampled_edges" in plain:
            check_hops(batch.num_sampled_edges, plain, links)
    assert hidden > 0


def check_hops(counts: Any, plain: Data, links: set[tuple[int, int]]) -> None:
    edges = pairs(plain.n_id[plain.edge_index])
    first = 0
    for found, count in zip(counts, plain.num_sampled_edges, strict=True):
        assert found == sum(edge not in links for edge in edges[first : first + count])
        first += count


@pytest.mark.parametrize("named", [None, [LIKED]])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_links_of_a_type_are_hidden_there_and_in_the_type_of_their_reverses(
    named: Any, direction: str
) -> None:
    data = make_hetero()
    inputs = EdgeSamplerInput(None, *data[LIKES].edge_index[:, :12], input_type=LIKES)
    out, plain = (
        NeighborSampler(data, [6, 6], sample_direction=direction, **options).sample_from_edges(
            inputs, group=0, epoch=0
        )
        for options in ({"hide_links": True, "reverse_types": named}, {})
    )
    links = set(pairs(torch.stack([inputs.row, inputs.col])))
    for kind, flip in ((LIKES, 1), (LIKED, -1), (CITES, 1)):
        edges = [
            pairs(
                torch.stack(
                    [each.node[kind[0]][each.row[kind]], each.node[kind[-1]][each.col[kind]]]
                )
            )
            for each in (out, plain)
        ]
        kept = [edge for edge in edges[1] if kind == CITES or edge[::flip] not in links]
        assert edges[0] == kept
        assert (len(kept) < len(edges[1])) == (kind != CITES)
        assert sum(out.num_sampled_edges[kind]) == len(kept)


def test_a_type_with_both_ends_alike_is_hidden_both_ways() -> None:
    data = make_hetero()
    link = data[CITES].edge_index[:, :1]
    data[CITES].edge_index = torch.cat([data[CITES].edge_index, link.flip(0)], 1)
    sampler = NeighborSampler(data, [-1], hide_links=True)
    out = sampler.sample_from_edges(EdgeSamplerInput(None, *link, input_type=CITES))
    found = pairs(torch.stack([out.node["item"][out.row[CITES]], out.node["item"][out.col[CITES]]]))
    assert len(found) > 0
    (own,) = pairs(link)
    assert own not in found
    assert own[::-1] not in found


def test_links_of_a_type_that_the_graph_lacks_are_hidden_where_it_leads_back() -> None:
    data = make_hetero()
    links = data[LIKES].edge_index[:, :9]
    del data[LIKES]
    out = NeighborSampler(data, [-1, -1], hide_links=True).sample_from_edges(
        EdgeSamplerInput(None, *links, input_type=LIKES)
    )
    found = ends_of(out, LIKED)
    assert len(found) > 0
    assert not set(pairs(links.flip(0))) & set(found)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("named", [None, [LIKED], []])
def test_reverses_that_are_added_bring_no_link_back(named: Any, keep: bool) -> None:
    data = make_hetero()
    links = data[LIKES].edge_index[:, :12]
    sampler = NeighborSampler(
        data, [-1, -1], subgraph_type="bidirectional", hide_links=True, reverse_types=named
    )
    sampler.keep_orig_edges = keep
    out = sampler.sample_from_edges(EdgeSamplerInput(None, *links, input_type=LIKES))
    own = set(pairs(links))
    assert not own & set(ends_of(out, LIKES))
    back = {edge[::-1] for edge in own}
    assert bool(back & set(ends_of(out, LIKED))) == (named == [])
    if keep:
        assert sum(out.num_sampled_edges[LIKES]) == len(out.orig_row[LIKES])


def ends_of(out: Any, kind: Any) -> list[tuple[int, int]]:
    source, target = out.node[kind[0]][out.row[kind]], out.node[kind[-1]][out.col[kind]]
    return pairs(torch.stack([source, target]))


def test_a_loader_hides_in_the_types_of_its_sampler() -> None:
    data = make_hetero()
    data["item", "seen_by", "user"].edge_index = data[LIKED].edge_index
    sampler = NeighborSampler(data, [-1], hide_links=True, reverse_types=[LIKED])
    for named in (None, [LIKED]):
        loader = loader_of(data, LIKES, neighbor_sampler=sampler, reverse_types=named)
        own = data[LIKED].edge_index[:, :1]
        batch = next(iter(loader))
        ends = [batch[k].n_id[batch[LIKED].edge_index[i]] for i, k in enumerate(("item", "user"))]
        assert not set(pairs(own)) & set(pairs(torch.stack(ends)))
    for other in ([], [LIKED, ("item", "seen_by", "user")]):
        with pytest.raises(ArgumentError, match="drawn as neighbor_sampler says, which has"):
            loader_of(data, LIKES, neighbor_sampler=sampler, reverse_types=other)
    with pytest.raises(ArgumentError, match="cannot be told"):  # although not asked of the loader
        gnnsys.LinkNeighborLoader(
            data, [2], LIKES, neighbor_sampler=NeighborSampler(data, [2], hide_links=True)
        )


def test_links_with_times_are_hidden_from_all_trees() -> None:
    data = make_data()
    data.time = torch.arange(25)
    links = data.edge_index[:, :40]
    loader = gnnsys.LinkNeighborLoader(
        data, [5, 5], links, edge_label_time=torch.full((40,), 30), time_attr="time",
        batch_size=10, hide_links=True,
    )  # fmt: skip
    for batch in loader:
        own = set(pairs(links[:, batch.input_id]))
        found = pairs(batch.n_id[batch.edge_index])
        assert not own & set(found)
        assert not own & {edge[::-1] for edge in found}


def test_pyg_s_loader_and_a_copy_of_the_sampler_hide_them_too() -> None:
    import copy

    from torch_geometric.loader import LinkLoader

    data = make_data()
    sampler = copy.deepcopy(NeighborSampler(data, [-1], hide_links=True))
    for batch in LinkLoader(data, sampler, data.edge_index[:, :50], batch_size=20):
        own = set(pairs(data.edge_index[:, batch.input_id]))
        assert not own & set(pairs(batch.n_id[batch.edge_index]))


# Bad input ---------------------------------------------------------------------------------------


def loader_of(data: Any, kind: Any, **options: Any) -> gnnsys.LinkNeighborLoader:
    return gnnsys.LinkNeighborLoader(data, [2], kind, hide_links=True, **options)


def test_reverse_types_that_cannot_be_told_are_asked_for() -> None:
    data = make_hetero()
    data["item", "seen_by", "user"].edge_index = data[LIKED].edge_index
    with pytest.raises(ArgumentError, match=r"cannot be told.*liked.*seen_by.*give \[\]"):
        loader_of(data, LIKES)
    loader_of(data, LIKES, reverse_types=[])
    with pytest.raises(ArgumentError, match="no edge type from 'item' to 'user'"):
        loader_of(data, LIKES, reverse_types=[CITES])
    data["item", "like", "item"].edge_index = data[CITES].edge_index
    with pytest.raises(ArgumentError, match="cannot be told"):
        loader_of(data, CITES)
    data["item", "rev_c", "item"].edge_index = data[CITES].edge_index
    loader_of(data, CITES)


def test_what_excludes_hide_links_says_so() -> None:
    data = make_data()
    with pytest.raises(ArgumentError, match="reverse_types: given, but the graph has no types"):
        loader_of(data, None, reverse_types=[LIKED])
    with pytest.raises(ArgumentError, match="hide_links: given beside a neighbor_sampler"):
        loader_of(data, None, neighbor_sampler=NeighborSampler(data, [2]))
    typed = make_hetero()
    for given in ({}, {"neighbor_sampler": NeighborSampler(typed, [2])}):
        with pytest.raises(ArgumentError, match=r"reverse_types: .* without hide_links"):
            gnnsys.LinkNeighborLoader(typed, [2], LIKES, reverse_types=[LIKED], **given)

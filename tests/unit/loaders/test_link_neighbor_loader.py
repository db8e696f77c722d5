"""gnnsys.LinkNeighborLoader: PyG's signature, attributes and kinds of negative links."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.loader import LinkNeighborLoader as PygLinkNeighborLoader
from torch_geometric.sampler import NegativeSampling

import gnnsys
from gnnsys.errors import ArgumentError

NODES, EDGES = 400, 2500
LIKES = ("user", "likes", "item")


def make_data() -> Data:
    draw = torch.Generator().manual_seed(1)
    return Data(
        x=torch.randn(NODES, 700, generator=draw),  # enough for a store to read it
        edge_index=torch.randint(NODES, (2, EDGES), generator=draw),
        edge_attr=torch.arange(EDGES),
    )


def make_links() -> Tensor:
    return torch.randint(NODES, (2, 230), generator=torch.Generator().manual_seed(2))


def make_hetero() -> HeteroData:
    draw = torch.Generator().manual_seed(3)
    data = HeteroData()
    data["user"].x = torch.randn(300, 6, generator=draw)
    data["item"].x = torch.randn(90, 4, generator=draw)
    ends = torch.randint(300, (1500,), generator=draw), torch.randint(90, (1500,), generator=draw)
    data[LIKES].edge_index = torch.stack(ends)
    data["item", "liked", "user"].edge_index = data[LIKES].edge_index.flip(0)
    return data


def loader_of(data: Any, **options: Any) -> gnnsys.LinkNeighborLoader:
    return gnnsys.LinkNeighborLoader(data, **{"num_neighbors": [4, 2], "batch_size": 50, **options})


def check_nodes_and_edges(batch: Data, data: Data) -> None:
    assert torch.equal(batch.x, data.x[batch.n_id])
    assert torch.equal(batch.edge_attr, data.edge_attr[batch.e_id])
    assert torch.equal(batch.n_id[batch.edge_index], data.edge_index[:, batch.e_id])
    assert type(batch.edge_index) is Tensor
    assert bool((batch.edge_index[1].diff() >= 0).all())


def everything(loader: gnnsys.LinkNeighborLoader) -> list[list[bytes]]:
    return [
        [bytes(value.numpy()) for value in batch.to_dict().values() if isinstance(value, Tensor)]
        for batch in loader
    ]


def test_every_argument_of_pyg_is_taken_in_its_place_and_with_its_default() -> None:
    ours = inspect.signature(gnnsys.LinkNeighborLoader.__init__).parameters
    theirs = inspect.signature(PygLinkNeighborLoader.__init__).parameters
    names = [name for name in theirs if name != "kwargs"]
    assert list(ours)[: len(names)] == names
    for name in names:
        assert ours[name].default == theirs[name].default, name


@pytest.mark.parametrize("shuffle", [False, True])
def test_links_without_negatives_are_those_given_with_their_labels(shuffle: bool) -> None:
    data, links = make_data(), make_links()
    labels = torch.arange(230) % 7
    loader = loader_of(data, edge_label_index=links, edge_label=labels, shuffle=shuffle)
    seen = []
    for batch in loader:
        check_nodes_and_edges(batch, data)
        assert torch.equal(batch.n_id[batch.edge_label_index], links[:, batch.input_id])
        assert torch.equal(batch.edge_label, labels[batch.input_id])
        seen.append(batch.input_id)
    assert len(loader) == len(seen) == 5
    assert (torch.cat(seen).tolist() == list(range(230))) != shuffle
    assert torch.equal(torch.cat(seen).sort().values, torch.arange(230))


def test_all_edges_of_the_graph_are_links_by_default() -> None:
    data = make_data()
    found = [batch.n_id[batch.edge_label_index] for batch in loader_of(data, batch_size=600)]
    assert torch.equal(torch.cat(found, dim=1), data.edge_index)


@pytest.mark.parametrize("asked", ["binary", NegativeSampling("binary", 2), {"mode": "binary"}])
def test_binary_negatives_follow_the_links_with_label_zero(asked: Any) -> None:
    data, links = make_data(), make_links()
    amount = 2 if isinstance(asked, NegativeSampling) else 1
    for batch in loader_of(data, edge_label_index=links, neg_sampling=asked):
        check_nodes_and_edges(batch, data)
        size = len(batch.input_id)
        assert batch.edge_label_index.shape[1] == size * (1 + amount)
        assert batch.edge_label.tolist() == [1.0] * size + [0.0] * size * amount
        found = batch.n_id[batch.edge_label_index]
        assert torch.equal(found[:, :size], links[:, batch.input_id])


def test_labels_of_classes_make_room_for_the_negatives() -> None:
    labels = torch.arange(230) % 3
    options = {"edge_label_index": make_links(), "edge_label": labels}
    for batch in loader_of(make_data(), neg_sampling_ratio=1.0, **options):
        size = len(batch.input_id)
        assert torch.equal(batch.edge_label[:size], labels[batch.input_id] + 1)
        assert batch.edge_label[size:].tolist() == [0] * size
    with pytest.raises(ValueError, match="edge_label"):
        loader_of(make_data(), neg_sampling="triplet", **options)


def test_triplets_have_targets_that_are_linked_and_targets_that_are_drawn() -> None:
    data, links = make_data(), make_links()
    data.edge_label_index = links
    data.edge_label_time = torch.zeros(230)
    loader = loader_of(
        data, edge_label_index=links, neg_sampling=NegativeSampling("triplet", amount=3)
    )
    drawn = []
    for batch in loader:
        check_nodes_and_edges(batch, data)
        pairs = torch.stack([batch.n_id[batch.src_index], batch.n_id[batch.dst_pos_index]])
        assert torch.equal(pairs, links[:, batch.input_id])
        assert batch.dst_neg_index.shape == (len(batch.input_id), 3)
        drawn.append(batch.n_id[batch.dst_neg_index].view(-1))
        assert "edge_label_index" not in batch
        assert "edge_label_time" not in batch
    assert len(torch.cat(drawn).unique()) > NODES / 2


@pytest.mark.parametrize("neg_sampling", ["binary", "triplet"])
def test_heterogeneous_links_are_named_at_their_type_and_ends(neg_sampling: str) -> None:
    data = make_hetero()
    links = data[LIKES].edge_index[:, :120]
    loader = loader_of(data, edge_label_index=(LIKES, links), neg_sampling=neg_sampling)
    for batch in loader:
        for kind in data.node_types:
            assert torch.equal(batch[kind].x, data[kind].x[batch[kind].n_id])
        for kind in data.edge_types:
            row, col = batch[kind].edge_index
            ends = torch.stack([batch[kind[0]].n_id[row], batch[kind[-1]].n_id[col]])
            assert torch.equal(ends, data[kind].edge_index[:, batch[kind].e_id])
        size = len(batch[LIKES].input_id)
        if neg_sampling == "binary":
            row, col = batch[LIKES].edge_label_index[:, :size]
        else:
            row, col = batch["user"].src_index, batch["item"].dst_pos_index
            assert batch["item"].dst_neg_index.shape == (size,)
        ends = torch.stack([batch["user"].n_id[row], batch["item"].n_id[col]])
        assert torch.equal(ends, links[:, batch[LIKES].input_id])
    whole = loader_of(data, edge_label_index=LIKES, batch_size=1500)
    found = next(iter(whole))[LIKES].edge_label_index
    assert found.shape == (2, 1500)


def test_links_of_a_graph_store_are_those_of_its_data() -> None:
    data = make_data()
    features = gnnsys.FeatureStore()
    features[None, "x", None] = data.x
    graph = Data(edge_index=data.edge_index, num_nodes=NODES)
    options = {"neg_sampling": "binary", "edge_label_index": (None, make_links())}
    stored = loader_of((features, graph), **options)
    plain = loader_of(data, **{**options, "edge_label_index": make_links()})
    for found, expected in zip(stored, plain, strict=True):
        for key in ("x", "n_id", "edge_label_index", "edge_label", "edge_index"):
            assert torch.equal(found[key], expected[key]), key


def test_links_with_times_see_only_what_is_older() -> None:
    data, links = make_data(), make_links()
    data.time = torch.randint(50, (NODES,), generator=torch.Generator().manual_seed(4))
    times = torch.arange(230) % 60
    loader = loader_of(data, edge_label_index=links, edge_label_time=times, time_attr="time")
    for batch in loader:
        assert torch.equal(batch.edge_label_time, times[batch.input_id])
        seeds = torch.zeros(batch.num_nodes, dtype=torch.bool)
        seeds[batch.edge_label_index.view(-1)] = True
        late = batch.time > batch.edge_label_time[batch.batch]
        assert not bool((late & ~seeds).any())
    for given in ({"edge_label_time": times}, {"time_attr": "time"}):
        with pytest.raises(
            ArgumentError, match=r"edge_label_time.*time_attr|time_attr.*edge_label"
        ):
            loader_of(data, edge_label_index=links, **given)


@pytest.mark.parametrize("neg_sampling", [None, "binary", "triplet"])
def test_batches_and_their_negatives_depend_on_seed_epoch_and_number_alone(
    neg_sampling: str | None,
) -> None:
    options = {"edge_label_index": make_links(), "neg_sampling": neg_sampling, "shuffle": True}
    loader = loader_of(make_data(), **options)
    first, second = everything(loader), everything(loader)
    assert first != second
    for other in ({"window": 0}, {"window": 9, "threads": 1}, {"num_workers": 3}):
        torch.manual_seed(99)
        again = loader_of(make_data(), **options, **other)
        assert [everything(again), everything(again)] == [first, second], other
    assert everything(loader_of(make_data(), **options, seed=1)) != first


def test_names_for_links_and_transforms_are_used() -> None:
    names = torch.arange(5000, 5230)
    loader = loader_of(
        make_data(),
        edge_label_index=make_links(),
        input_id=names,
        transform=lambda batch: (batch, "seen"),
    )
    batch, mark = next(iter(loader))
    assert mark == "seen"
    assert torch.equal(batch.input_id, names[:50])
    called, mark = loader([3, 1])
    assert called.input_id.tolist() == [5003, 5001]
    assert mark == "seen"

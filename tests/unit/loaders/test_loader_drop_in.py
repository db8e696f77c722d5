"""The loaders where PyG asks for its own: inference, generators, stores without types."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch_geometric.loader
from torch_geometric.data import Data
from torch_geometric.loader import LinkLoader, NodeLoader
from torch_geometric.nn import GraphSAGE
from torch_geometric.testing import MyFeatureStore, MyGraphStore

import gnnsys

NODES = 120


def make_data(edges: int = 900) -> Data:
    draw = torch.Generator().manual_seed(1)
    return Data(
        x=torch.randn(NODES, 5, generator=draw),
        edge_index=torch.randint(NODES, (2, edges), generator=draw),
    )


def make_stores(data: Data, **of_edges: torch.Tensor) -> tuple[Any, MyGraphStore]:
    features, graphs = gnnsys.FeatureStore(), MyGraphStore()
    features[None, "x", None] = data.x
    for name, value in of_edges.items():
        features[None, name, None] = value
    order = data.edge_index[1].argsort(stable=True)
    edges = tuple(data.edge_index[:, order])
    graphs.put_edge_index(edges, None, "coo", is_sorted=True, size=(NODES, NODES))
    return features, graphs


def test_loaders_are_pygs_loaders() -> None:
    data = make_data()
    nodes, links = gnnsys.NeighborLoader(data, [2]), gnnsys.LinkNeighborLoader(data, [2])
    assert isinstance(nodes, torch_geometric.loader.NeighborLoader)
    assert isinstance(links, torch_geometric.loader.LinkNeighborLoader)
    assert str(nodes).startswith("NeighborLoader(num_neighbors=[2], seeds=120, ")
    assert str(links).startswith("LinkNeighborLoader(num_neighbors=[2], seeds=")


@pytest.mark.parametrize("layout", ["coo", "csr"])
@pytest.mark.parametrize("cache", [False, True])
def test_pygs_inference_layer_by_layer_equals_the_model(layout: Any, cache: bool) -> None:
    torch.manual_seed(0)
    data, model = make_data(), GraphSAGE(5, 8, 2, 3).eval()
    loader = gnnsys.NeighborLoader(data, [-1], batch_size=33, layout=layout)
    expected = model(data.x, data.edge_index)
    for _ in range(2):
        assert torch.allclose(model.inference(loader, cache=cache), expected, atol=1e-5)


# Generators ---------------------------------------------------------------------------------------


def orders_of(loader: Any, epochs: int = 3) -> list[list[list[int]]]:
    return [[batch.input_id.tolist() for batch in loader] for _ in range(epochs)]


@pytest.mark.parametrize("window", [0, 1, 9])
@pytest.mark.parametrize("links", [False, True])
def test_a_generator_sets_the_order_that_pygs_loader_has(links: bool, window: int) -> None:
    data = make_data()
    sampler = gnnsys.NeighborSampler(data, [1])
    ours, theirs = (
        (gnnsys.LinkNeighborLoader, LinkLoader) if links else (gnnsys.NeighborLoader, NodeLoader)
    )
    found, expected = (
        orders_of(
            make(
                data,
                *arguments,
                batch_size=32,
                shuffle=True,
                generator=torch.Generator().manual_seed(7),
                **options,
            )
        )
        for make, arguments, options in (
            (ours, ([1],), {"window": window}),
            (theirs, (sampler,), {}),
        )
    )
    assert found == expected
    assert found[0] != found[1]


def test_a_generator_changes_the_order_alone() -> None:
    def loader(number: int, **options: Any) -> Any:
        return gnnsys.NeighborLoader(
            make_data(),
            [2],
            batch_size=32,
            generator=torch.Generator().manual_seed(number),
            **options,
        )

    assert orders_of(loader(1, shuffle=True)) != orders_of(loader(2, shuffle=True))
    assert orders_of(loader(1, shuffle=True)) == orders_of(loader(1, shuffle=True, seed=5))
    one, other = ([batch.n_id.tolist() for batch in loader(number)] for number in (1, 2))
    assert one == other
    torch.manual_seed(0)
    state = torch.get_rng_state()
    orders_of(loader(1, shuffle=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_copies_of_a_loader_have_the_generator_too() -> None:
    loader = gnnsys.NeighborLoader(
        make_data(),
        [2],
        batch_size=32,
        shuffle=True,
        generator=torch.Generator().manual_seed(1),
    )
    copies = [copy.deepcopy(loader), pickle.loads(pickle.dumps(loader))]
    expected = orders_of(loader)
    assert [orders_of(other) for other in copies] == [expected, expected]


def test_the_rest_of_an_epoch_follows_the_generator() -> None:
    whole, rest = (
        gnnsys.NeighborLoader(
            make_data(),
            [2],
            batch_size=32,
            shuffle=True,
            generator=torch.Generator().manual_seed(1),
        )
        for _ in range(2)
    )
    rest.set_epoch(0, first_batch=2)
    assert orders_of(rest, 1)[0] == orders_of(whole, 1)[0][2:]


# Features in stores without types -----------------------------------------------------------------


@pytest.mark.parametrize("edges", [25, NODES, 900])
@pytest.mark.parametrize("links", [False, True])
@pytest.mark.parametrize("ours", [False, True])
def test_features_of_edges_in_stores_are_those_of_the_edges_or_left_out(
    edges: int, links: bool, ours: bool
) -> None:
    data = make_data(edges)
    edge_attr = torch.arange(edges * 2.0).view(-1, 2)
    stores = make_stores(data, edge_attr=edge_attr)
    if not ours:
        features = MyFeatureStore()
        features.put_tensor(data.x, group_name=None, attr_name="x", index=None)
        features.put_tensor(edge_attr, group_name=None, attr_name="edge_attr", index=None)
        stores = features, stores[1]
    options = {"num_neighbors": [5, 5], "batch_size": 8}
    loader = (
        gnnsys.LinkNeighborLoader(stores, edge_label_index=data.edge_index[:, :16], **options)
        if links
        else gnnsys.NeighborLoader(stores, input_nodes=torch.arange(NODES), **options)
    )
    order = data.edge_index[1].argsort(stable=True)
    for batch in loader:
        assert ("edge_attr" in batch) == ours
        assert not ours or torch.equal(batch.edge_attr, edge_attr[batch.e_id])
        assert torch.equal(batch.x, data.x[batch.n_id])
        found = batch.n_id[batch.edge_index]
        assert torch.equal(found, data.edge_index[:, order][:, batch.e_id])


def test_the_features_of_a_store_are_asked_for_their_size_once() -> None:
    class Counting(MyFeatureStore):
        sizes = 0

        def _get_tensor_size(self, attr: Any) -> Any:
            self.sizes += 1
            return super()._get_tensor_size(attr)

    data = make_data()
    features, graphs = Counting(), make_stores(data)[1]
    features.put_tensor(data.x, group_name=None, attr_name="x", index=None)
    loader = gnnsys.NeighborLoader((features, graphs), [2], batch_size=8)
    for _ in range(2):
        assert all(torch.equal(batch.x, data.x[batch.n_id]) for batch in loader)
        assert features.sizes == 1


def test_times_of_edges_in_a_store_are_no_features_of_nodes() -> None:
    data = make_data(NODES)  # as many edges as nodes
    stamp = torch.arange(NODES)
    stores = make_stores(data, stamp=stamp)
    loader = gnnsys.NeighborLoader(
        stores,
        [2],
        input_nodes=torch.arange(8),
        input_time=torch.zeros(8, dtype=torch.int64),
        time_attr="stamp",
        batch_size=8,
    )
    batch = next(iter(loader))
    assert torch.equal(batch.stamp, stamp[batch.e_id])

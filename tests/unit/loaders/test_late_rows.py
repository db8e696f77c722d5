"""Features that are learnt are gathered after the last update, not ahead of it."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch_geometric.data import Data, HeteroData

import gnnsys
from gnnsys.system.once import warn_once

NODES, EDGES = 300, 1500


def make_data(width: int = 4) -> Data:
    generator = torch.Generator().manual_seed(0)
    return Data(
        x=Parameter(torch.zeros(NODES, width)),
        y=torch.arange(NODES),
        edge_attr=torch.rand(EDGES, 2, generator=generator),
        edge_index=torch.randint(NODES, (2, EDGES), generator=generator),
    )


def train(loader: Any, parameters: list[torch.Tensor], key: str = "x", pause: float = 0.0) -> None:
    """Trains on batches, each of which must have the rows of the update before."""
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    for batch in loader:
        time.sleep(pause)
        for store in batch.stores:
            for name, rows in store.items():
                if name != key:
                    continue
                places = store.n_id if "n_id" in store else store.e_id
                places = store.e_id if key == "edge_attr" else places
                (value,) = [p for p in parameters if p.shape[1:] == rows.shape[1:]]
                assert torch.equal(rows, value[places])
                assert rows.requires_grad
        optimizer.zero_grad()
        sum(store[key].sum() for store in batch.stores if key in store).backward()
        assert all(p.grad is not None for p in parameters)
        optimizer.step()


@pytest.mark.parametrize("pause", [0.0, 0.01])
@pytest.mark.parametrize("window", [0, 1, 4])
def test_rows_are_those_of_the_last_update(window: int, pause: float) -> None:
    data = make_data()
    loader = gnnsys.NeighborLoader(data, [3, 2], batch_size=20, window=window, shuffle=True)
    for _ in range(2):
        train(loader, [data.x], pause=pause)
    assert type(data.x) is Parameter
    assert bool((data.x < 0).any())


def test_rows_of_edges_are_those_of_the_last_update() -> None:
    data = make_data()
    data.x, data.edge_attr = data.x.detach(), Parameter(data.edge_attr)
    train(gnnsys.NeighborLoader(data, [3, 2], batch_size=20), [data.edge_attr], "edge_attr")


def test_each_type_has_the_rows_of_the_last_update() -> None:
    data = HeteroData()
    data["a"].x, data["b"].x = Parameter(torch.zeros(50, 3)), Parameter(torch.zeros(70, 5))
    pairs = torch.stack([torch.randint(50, (400,)), torch.randint(70, (400,))])
    data["a", "to", "b"].edge_index, data["b", "to", "a"].edge_index = pairs, pairs.flip(0)
    loader = gnnsys.NeighborLoader(data, [4, 4], input_nodes="a", batch_size=10)
    train(loader, [data["a"].x, data["b"].x])


def test_links_have_the_rows_of_the_last_update() -> None:
    data = make_data()
    loader = gnnsys.LinkNeighborLoader(data, [3], neg_sampling="binary", batch_size=100)
    train(loader, [data.x])


def test_a_tensor_that_is_computed_anew_is_read_in_its_epoch() -> None:
    weight, fixed = Parameter(torch.ones(4, 4)), torch.rand(NODES, 4)
    data = make_data()
    data.x = fixed @ weight  # no leaf, but its rows lead to one
    batch = next(iter(gnnsys.NeighborLoader(data, [3], batch_size=20)))
    batch.x.sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, fixed[batch.n_id].sum(0).view(-1, 1).expand(4, 4))


@pytest.mark.parametrize("ahead", [None, False, True])
def test_transforms_see_whole_batches(ahead: bool | None) -> None:
    data, seen = make_data(), []

    def look(batch: Data) -> Data:
        seen.append(torch.equal(batch.x, data.x[batch.n_id]) and batch.x.requires_grad)
        return batch

    loader = gnnsys.NeighborLoader(
        data, [3], batch_size=50, transform=look, filter_per_worker=ahead
    )
    train(loader, [data.x])
    assert seen == [True] * len(loader)


def test_calling_the_loader_gives_whole_batches_too() -> None:
    data = make_data()
    loader = gnnsys.NeighborLoader(data, [3], batch_size=50)
    batch = loader([0, 5])
    assert torch.equal(batch.x, data.x[batch.n_id])
    assert batch.x.requires_grad


def test_the_other_attributes_stay_as_they_are_and_in_their_order() -> None:
    data = make_data()
    plain = make_data()
    plain.x = plain.x.detach()
    for batch, expected in zip(
        gnnsys.NeighborLoader(data, [3, 2], batch_size=50),
        gnnsys.NeighborLoader(plain, [3, 2], batch_size=50),
        strict=True,
    ):
        assert list(batch.keys()) == list(expected.keys())
        for key, value in expected.items():
            assert torch.equal(batch[key], value) if torch.is_tensor(value) else True
        assert not batch.edge_attr.requires_grad


def test_it_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    warn_once.cache_clear()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            train(gnnsys.NeighborLoader(data := make_data(), [3], batch_size=50), [data.x])
    assert [record.message for record in caplog.records] == [
        "x: requires grad, so its rows are gathered when a batch is handed over, not ahead: they "
        "are those of the last update"
    ]

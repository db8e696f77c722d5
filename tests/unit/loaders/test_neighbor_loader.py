"""gnnsys.NeighborLoader: PyG's signature and attributes, and batches that depend on little."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.loader import NeighborLoader as PygNeighborLoader

import gnnsys
from gnnsys.errors import ArgumentError, GnnsysError

NODES = 230


def make_data() -> Data:
    draw = torch.Generator().manual_seed(1)
    return Data(
        x=torch.randn(NODES, 7, generator=draw),
        edge_index=torch.randint(NODES, (2, 1800), generator=draw),
        edge_attr=torch.arange(1800),
        y=torch.randint(4, (NODES,), generator=draw),
        train_mask=torch.rand(NODES, generator=draw) < 0.4,
    )


def loader_of(data: Data, **options: Any) -> gnnsys.NeighborLoader:
    return gnnsys.NeighborLoader(data, **{"num_neighbors": [4, 3], "batch_size": 32, **options})


def summary(batch: Data) -> tuple[Any, ...]:
    tensors = (batch.n_id, batch.e_id, batch.edge_index, batch.input_id)
    return (*(tensor.tolist() for tensor in tensors), batch.batch_size)


def epoch_of(loader: gnnsys.NeighborLoader) -> list[tuple[Any, ...]]:
    return [summary(batch) for batch in loader]


def test_every_argument_of_pyg_is_taken_with_its_default() -> None:
    ours = inspect.signature(gnnsys.NeighborLoader.__init__).parameters
    theirs = inspect.signature(PygNeighborLoader.__init__).parameters
    missing = set(theirs) - set(ours) - {"kwargs"}
    assert missing == set()
    for name in set(theirs) - {"kwargs", "self"}:
        assert ours[name].default == theirs[name].default, name
    positional = [n for n, p in theirs.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    own = [n for n, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert own[: len(positional)] == positional


def test_batches_have_the_attributes_of_pyg_and_the_rows_and_edges_of_the_data() -> None:
    data = make_data()
    for batch in loader_of(data, input_nodes=data.train_mask):
        seeds = batch.n_id[: batch.batch_size]
        assert bool(data.train_mask[seeds].all())
        assert torch.equal(batch.input_id, seeds)  # as PyG numbers the seeds of a mask
        assert torch.equal(batch.x, data.x[batch.n_id])
        assert torch.equal(batch.y, data.y[batch.n_id])
        assert torch.equal(batch.edge_attr, data.edge_attr[batch.e_id])
        assert torch.equal(batch.n_id[batch.edge_index], data.edge_index[:, batch.e_id])
        assert sum(batch.num_sampled_nodes) == batch.num_nodes == len(batch.n_id)
        assert sum(batch.num_sampled_edges) == batch.num_edges
        assert batch.num_sampled_nodes[0] == batch.batch_size
        assert len(batch.num_sampled_nodes) == 3
        assert len(batch.num_sampled_edges) == 2


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_visits_every_seed_once(shuffle: bool, drop_last: bool) -> None:
    seeds = torch.arange(0, NODES, 2)
    loader = loader_of(make_data(), input_nodes=seeds, shuffle=shuffle, drop_last=drop_last)
    batches = list(loader)
    assert len(batches) == len(loader) == (3 if drop_last else 4)
    visited = torch.cat([batch.n_id[: batch.batch_size] for batch in batches])
    assert len(visited) == (96 if drop_last else 115)
    assert torch.equal(visited.unique(), visited.sort().values)
    assert set(visited.tolist()) <= set(seeds.tolist())
    assert (visited.tolist() == seeds[: len(visited)].tolist()) != shuffle


def test_order_and_draws_depend_on_seed_and_epoch_alone() -> None:
    data = make_data()
    loader = loader_of(data, shuffle=True, seed=3)
    first, second = epoch_of(loader), epoch_of(loader)
    assert first != second
    torch.manual_seed(99)
    again = loader_of(data, shuffle=True, seed=3, threads=1)
    assert [epoch_of(again), epoch_of(again)] == [first, second]
    again.set_epoch(0)
    assert epoch_of(again) == first
    assert epoch_of(loader_of(data, shuffle=True, seed=4)) != first


@pytest.mark.parametrize("shuffle", [False, True])
def test_workers_threads_and_window_change_no_batch(shuffle: bool) -> None:
    data = make_data()
    expected = epoch_of(loader_of(data, shuffle=shuffle))
    for options in (
        {"num_workers": 1, "prefetch_factor": 3},
        {"num_workers": 2, "persistent_workers": True, "multiprocessing_context": "spawn"},
        {"threads": 1},
        {"threads": 4, "window": 1},
        {"window": 0},
        {"window": 50, "pin_memory": True, "timeout": 30},
    ):
        loader = loader_of(data, shuffle=shuffle, **options)
        assert epoch_of(loader) == expected, options
        loader.set_epoch(0)
        assert epoch_of(loader) == expected, options  # also a second time, as the same epoch


def test_a_sampler_or_batches_of_the_user_set_the_order() -> None:
    data = make_data()
    order = [5, 3, 200, 7]
    found = next(iter(loader_of(data, sampler=order)))
    assert found.n_id[:4].tolist() == order
    loader = gnnsys.NeighborLoader(data, [4, 3], batch_sampler=[[1, 2], [9]])
    assert [batch.n_id[: batch.batch_size].tolist() for batch in loader] == [[1, 2], [9]]
    assert len(loader) == 2
    with pytest.raises(ArgumentError, match="shuffle"):
        loader_of(data, sampler=order, shuffle=True)


def test_transform_and_input_id_are_used() -> None:
    def mark(batch: Data) -> Data:
        batch.marked = batch.num_nodes
        return batch

    names = torch.arange(1000, 1000 + NODES)
    seeds = torch.arange(NODES).flip(0)
    loader = loader_of(make_data(), transform=mark, input_nodes=seeds, input_id=names)
    batch = next(iter(loader))
    assert batch.marked == batch.num_nodes
    assert batch.input_id.tolist() == list(range(1000, 1032))


def test_all_neighbours_equal_k_hop_subgraph() -> None:
    from torch_geometric.utils import k_hop_subgraph

    data = make_data()
    seeds = torch.tensor([4, 9, 30])
    batch = next(iter(loader_of(data, num_neighbors=[-1, -1], input_nodes=seeds, batch_size=3)))
    nodes, _, _, _ = k_hop_subgraph(seeds, 2, data.edge_index, num_nodes=NODES)
    assert torch.equal(batch.n_id.sort().values, nodes)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"num_neighbors": [-2]}, "num_neighbors"),
        ({"threads": -1}, "threads"),
        ({"is_sorted": True}, "is_sorted"),
        ({"window": -1}, "window"),
        ({"layout": "csc"}, "layout"),
        ({"input_time": torch.arange(NODES)}, "time_attr"),
        ({"subgraph_type": "sideways"}, "subgraph_type"),
        ({"num_neighbors": {("a", "to", "b"): [1]}}, "num_neighbors"),
        ({"sampler": [1], "shuffle": True}, "shuffle"),
        ({"batch_size": None}, "batch_size"),
    ],
    ids=str,
)
def test_bad_options_raise_an_error_that_names_them(options: dict[str, Any], says: str) -> None:
    with pytest.raises(GnnsysError, match=says):
        loader_of(make_data(), **options)


@pytest.mark.parametrize("seed", [-1, NODES, 1 << 40])
def test_a_seed_outside_the_graph_raises(seed: int) -> None:
    seeds: Tensor = torch.tensor([3, seed])
    with pytest.raises(ArgumentError, match=str(seed)):
        next(iter(loader_of(make_data(), input_nodes=seeds)))

"""Everything a loader can be given, compared with torch's own indexing of the same data."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch_geometric.typing
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, SequentialSampler
from torch_geometric import EdgeIndex
from torch_geometric.data import Data, HeteroData
from torch_geometric.loader import NodeLoader
from torch_geometric.sampler import BaseSampler, NodeSamplerInput
from torch_geometric.typing import EdgeType

import gnnsys
from gnnsys.errors import ArgumentError

NODES, EDGES = 3000, 12_000
TO: EdgeType = ("author", "writes", "paper")
BACK: EdgeType = ("paper", "by", "author")
CITES: EdgeType = ("paper", "cites", "paper")


def make_data() -> Data:
    """Attributes of every kind; the wide ones are large enough to be read through stores."""
    draw = torch.Generator().manual_seed(1)
    wide = torch.randn(NODES, 200, generator=draw)
    return Data(
        x=wide,
        half=wide.half(),
        whole=torch.randint(-9, 9, (NODES, 3, 40), generator=draw),
        strided=torch.randn(200, NODES, generator=draw).t(),
        trained=torch.randn(NODES, 100, generator=draw, requires_grad=True),
        y=torch.randint(4, (NODES,), generator=draw),
        mask=torch.rand(NODES, generator=draw) < 0.5,
        table=np.arange(NODES * 2.0).reshape(NODES, 2),
        edge_index=torch.randint(NODES, (2, EDGES), generator=draw),
        edge_attr=torch.randn(EDGES, 64, generator=draw),
        edge_mark=torch.arange(EDGES),
        scale=torch.tensor(3.0),
        classes=torch.randn(7, 2, generator=draw),
        name="a graph",
    )


def make_hetero() -> HeteroData:
    draw = torch.Generator().manual_seed(2)
    data = HeteroData()
    data["paper"].x = torch.randn(2500, 130, generator=draw)
    data["paper"].y = torch.arange(2500)
    data["author"].x = torch.randn(700, 9, generator=draw)
    data["lonely"].num_nodes = 5
    for (source, _, target), edges in {TO: 9000, BACK: 4000, CITES: 8000}.items():
        kind = next(kind for kind in (TO, BACK, CITES) if kind[::2] == (source, target))
        ends = (data[source].num_nodes, data[target].num_nodes)
        data[kind].edge_index = torch.stack(
            [torch.randint(end, (edges,), generator=draw) for end in ends]
        )
        data[kind].edge_attr = torch.randn(edges, 40, generator=draw)
    return data


def loader_of(data: Any, **options: Any) -> gnnsys.NeighborLoader:
    return gnnsys.NeighborLoader(data, **{"num_neighbors": [5, 3], "batch_size": 700, **options})


def check_homogeneous(batch: Data, data: Data, either_way: bool = False) -> None:
    node, edge = batch.n_id, batch.e_id
    for key in ("x", "half", "whole", "strided", "trained", "y", "mask"):
        found = batch[key]
        assert type(found) is Tensor
        assert found.dtype == data[key].dtype
        assert torch.equal(found, data[key][node]), key
    assert torch.equal(batch.table, torch.from_numpy(data.table)[node])
    for key in ("edge_attr", "edge_mark"):
        assert torch.equal(batch[key], data[key][edge]), key
    ends, original = node[batch.edge_index], data.edge_index[:, edge]
    same = (ends == original).all(0)
    if either_way:  # a reverse that the graph lacks goes by the number of the edge it reverses
        assert bool((same | (ends == original.flip(0)).all(0)).all())
    assert bool(same.all()) != either_way
    for key in ("scale", "classes", "name"):
        assert batch[key] is data[key]
    assert batch.trained.requires_grad


@pytest.mark.parametrize("layout", ["csr", "coo"])
@pytest.mark.parametrize("subgraph_type", ["directional", "induced", "bidirectional"])
def test_every_attribute_equals_torchs_indexing(layout: Any, subgraph_type: str) -> None:
    data = make_data()
    before = dict(data.to_dict())
    loader = loader_of(data, layout=layout, subgraph_type=subgraph_type)
    for batch in loader:
        check_homogeneous(batch, data, either_way=subgraph_type == "bidirectional")
        assert isinstance(batch.edge_index, EdgeIndex) == (layout == "csr")
        assert type(batch.edge_index) is Tensor or layout == "csr"
    assert loader.data is data
    assert data.to_dict().keys() == before.keys()
    assert all(data[key] is value for key, value in before.items())


@pytest.mark.parametrize("subgraph_type", ["directional", "induced", "bidirectional"])
def test_edges_are_sorted_by_target_in_either_layout(subgraph_type: str) -> None:
    options = {"subgraph_type": subgraph_type, "input_nodes": torch.arange(0, NODES, 2)}
    plain = loader_of(make_data(), layout="coo", **options)
    for batch, coo in zip(loader_of(make_data(), layout="csr", **options), plain, strict=True):
        edges = batch.edge_index
        assert torch.equal(edges.as_tensor(), coo.edge_index)
        assert bool((coo.edge_index[1].diff() >= 0).all())
        edges.validate()


def check_hetero(batch: HeteroData, data: HeteroData) -> None:
    assert batch.node_types == data.node_types
    assert batch.edge_types == data.edge_types
    for kind in ("paper", "author"):
        assert torch.equal(batch[kind].x, data[kind].x[batch[kind].n_id])
        assert sum(batch[kind].num_sampled_nodes) == batch[kind].num_nodes
    assert torch.equal(batch["paper"].y, batch["paper"].n_id)
    for kind in data.edge_types:
        part, (row, col) = batch[kind], batch[kind].edge_index
        found = torch.stack([batch[kind[0]].n_id[row], batch[kind[-1]].n_id[col]])
        assert torch.equal(found, data[kind].edge_index[:, part.e_id])
        assert torch.equal(part.edge_attr, data[kind].edge_attr[part.e_id])
        assert sum(part.num_sampled_edges) == part.num_edges


@pytest.mark.parametrize(
    ("input_nodes", "seeds"),
    [
        ("paper", torch.arange(2500)),
        (("paper", None), torch.arange(2500)),
        (("author", torch.tensor([5, 3, 699])), torch.tensor([5, 3, 699])),
        (("author", torch.arange(700) % 3 == 0), torch.arange(0, 700, 3)),
    ],
    ids=["all", "none", "ids", "mask"],
)
def test_heterogeneous_batches_equal_torchs_indexing_of_each_type(
    input_nodes: Any, seeds: Tensor, request: pytest.FixtureRequest
) -> None:
    data = make_hetero()
    fanouts = {TO: [3, 2], BACK: [2, 2], CITES: [-1, 0]}
    kind = input_nodes if isinstance(input_nodes, str) else input_nodes[0]
    options = {"num_neighbors": fanouts, "batch_size": 400, "layout": "csr"}
    loader = loader_of(data, input_nodes=input_nodes, **options)
    visited = []
    for batch in loader:
        check_hetero(batch, data)
        visited.append(batch[kind].n_id[: batch[kind].batch_size])
        by_id = torch.arange(700) if "mask" in request.node.callspec.id else seeds
        assert torch.equal(visited[-1], by_id[batch[kind].input_id])  # a mask numbers all nodes
        for edge_type in data.edge_types:
            edges = batch[edge_type].edge_index
            assert isinstance(edges, EdgeIndex)
            assert bool((edges[1].diff() >= 0).all())
    assert torch.equal(torch.cat(visited), seeds)


def test_stores_give_the_batches_of_the_data_they_hold() -> None:
    homogeneous = make_data()
    features = gnnsys.FeatureStore()
    features[None, "x", None] = homogeneous.x
    graph = Data(edge_index=homogeneous.edge_index, num_nodes=NODES)
    options = {"input_nodes": torch.arange(NODES)}
    own_class = type("OwnData", (Data,), {})
    loader = loader_of((features, graph), custom_cls=own_class, **options)
    for found, expected in zip(loader, loader_of(homogeneous, **options), strict=True):
        assert type(found) is own_class
        assert torch.equal(found.n_id, expected.n_id)
        assert torch.equal(found.x, expected.x)
        assert torch.equal(found.edge_index, expected.edge_index)

    data = make_hetero()
    features = gnnsys.FeatureStore()
    for kind in ("paper", "author"):
        features[kind, "x", None] = data[kind].x
    pairs = zip(
        loader_of((features, data), input_nodes="paper"),
        loader_of(data, input_nodes="paper"),
        strict=True,
    )
    for stored, expected in pairs:
        for kind in ("paper", "author"):
            assert torch.equal(stored[kind].n_id, expected[kind].n_id)
            assert torch.equal(stored[kind].x, expected[kind].x)
        for edge_type in data.edge_types:
            assert torch.equal(stored[edge_type].edge_index, expected[edge_type].edge_index)


class Frame(torch_geometric.typing.TensorFrame):  # type: ignore[misc]
    """What PyG asks of a TensorFrame: rows of several columns that are indexed together."""

    def __init__(self, columns: dict[str, Tensor]) -> None:
        self.columns = columns

    def __getitem__(self, index: Tensor) -> Frame:
        return Frame({name: column[index] for name, column in self.columns.items()})

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    @property
    def num_rows(self) -> int:
        return len(self)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")


def test_tensor_frames_of_nodes_and_edges_are_indexed_by_their_rows() -> None:
    data = make_data()
    data.tf = Frame({"age": torch.arange(NODES), "pay": torch.randn(NODES)})
    data.edge_tf = Frame({"since": torch.arange(EDGES)})
    for batch in loader_of(data):
        assert torch.equal(batch.tf.columns["age"], batch.n_id)
        assert torch.equal(batch.tf.columns["pay"], data.tf.columns["pay"][batch.n_id])
        assert torch.equal(batch.edge_tf.columns["since"], batch.e_id)


def test_times_of_nodes_and_of_seeds_reach_the_sampler() -> None:
    data = make_data()
    data.time = torch.randint(100, (NODES,), generator=torch.Generator().manual_seed(3))
    seeds, times = torch.arange(0, 400), torch.arange(400) % 100
    loader = loader_of(data, input_nodes=seeds, input_time=times, time_attr="time", batch_size=150)
    for batch in loader:
        assert torch.equal(batch.seed_time, times[batch.input_id])
        sampled = torch.arange(batch.num_nodes) >= batch.batch_size
        assert bool((batch.time <= batch.seed_time[batch.batch])[sampled].all())
        assert torch.equal(batch.x, data.x[batch.n_id])


def test_options_of_the_sampler_reach_it() -> None:
    data = make_data()
    data.weight = (torch.arange(EDGES) % 2).double()
    for batch in loader_of(data, weight_attr="weight", num_neighbors=[2]):
        degree = torch.bincount(batch.edge_index[1], minlength=batch.num_nodes)
        full = torch.bincount(data.edge_index[1], minlength=NODES)[batch.n_id]
        assert bool((batch.weight[(degree < full)[batch.edge_index[1]]] > 0).all())
    one = next(iter(loader_of(data, disjoint=True, batch_size=9)))
    assert int(one.batch.max()) == 8
    same = {
        tuple(b.n_id.tolist())
        for b in loader_of(
            data, input_nodes=torch.zeros(6, dtype=torch.int64), batch_size=1, dependent_batches=3
        )
    }
    assert len(same) == 2
    labor = next(iter(loader_of(data, sampling="labor")))
    assert labor.n_id.tolist() != next(iter(loader_of(data))).n_id.tolist()


def test_changes_of_the_data_are_seen_by_the_next_epoch() -> None:
    data = make_data()
    loader = loader_of(data)
    assert next(iter(loader)).x.shape[1] == 200
    del loader.data.trained
    loader.data.x = torch.randn(NODES, 300)
    loader.data.x_new = torch.randn(NODES, 150)
    data.half[:] = 7  # in place
    batch = next(iter(loader))
    assert torch.equal(batch.x, data.x[batch.n_id])
    assert torch.equal(batch.x_new, data.x_new[batch.n_id])
    assert bool((batch.half == 7).all())
    assert "trained" not in batch


def test_an_attribute_that_a_consumer_replaces_in_a_batch_is_whole_in_the_next() -> None:
    data = make_data()
    for batch in loader_of(data):
        assert torch.equal(batch.y, data.y[batch.n_id])
        batch.y = torch.zeros(3)
        assert not batch.is_node_attr("y")


def test_a_call_samples_the_seeds_at_the_positions_given() -> None:
    data = make_data()
    seeds = torch.arange(NODES).flip(0)
    loader = loader_of(data, input_nodes=seeds, transform=lambda batch: (batch, "transformed"))
    for index in ([4, 0, 9], torch.tensor([4, 0, 9])):
        batch, mark = loader(index)
        assert mark == "transformed"
        assert batch.n_id[:3].tolist() == [NODES - 5, NODES - 1, NODES - 10]
        assert batch.batch_size == 3
        check_homogeneous(batch, data)
    for explicit in (True, False):
        batch, _ = loader_of(data, filter_per_worker=explicit, transform=lambda batch: (batch, ""))(
            [7]
        )
        assert batch.n_id[0] == 7


def test_a_sampler_of_another_kind_serves_too() -> None:
    class Given(BaseSampler):
        """A BaseSampler that knows neither groups nor epochs."""

        edge_permutation = None

        def sample_from_nodes(self, inputs: NodeSamplerInput) -> Any:
            return gnnsys.NeighborSampler(data, [-1]).sample_from_nodes(inputs)

        def sample_from_edges(self, *args: Any, **options: Any) -> Any:
            raise AssertionError("not asked for")

    data = make_data()
    data.edge_index = data.edge_index[:, data.edge_index[1].argsort(stable=True)]
    for batch in loader_of(data, neighbor_sampler=Given(), num_neighbors=None):
        assert torch.equal(batch.x, data.x[batch.n_id])


# Copies and loaders made anew ---------------------------------------------------------------------


def ids_of(loader: Any) -> list[list[int]]:
    return [batch.n_id.tolist() for batch in loader]


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda loader: pickle.loads(pickle.dumps(loader))]
)
def test_copies_and_pickles_give_the_same_batches(again: Callable[[Any], Any]) -> None:
    data = make_data()
    del data.trained  # deepcopy refuses what autograd computed
    loader = loader_of(data, shuffle=True, seed=4)
    first = ids_of(loader)
    other = again(loader)
    second = ids_of(other)
    assert ids_of(loader) == second != first  # each counts its own epochs
    other.sampler.set_epoch(0)
    assert ids_of(other) == first
    for batch in other:
        assert torch.equal(batch.x, data.x[batch.n_id])
    assert other.collate_fn.__self__ is other


def made_anew(loader: DataLoader[Any], sampler: Any) -> DataLoader[Any]:
    """The loader with another sampler, as PyTorch Lightning makes it: from its attributes.

    That is, from every argument of its constructor, or of DataLoader's, that an attribute of the
    same name holds and that is not at its default.
    """
    arguments = dict(inspect.signature(type(loader).__init__).parameters)
    arguments.update(inspect.signature(DataLoader.__init__).parameters)
    attributes = {key: value for key, value in vars(loader).items() if not key.startswith("_")}
    attributes["multiprocessing_context"] = loader.multiprocessing_context
    kwargs = {
        name: attributes[name]
        for name, argument in arguments.items()
        if name in attributes and argument.default is not attributes[name]
    }
    required = {
        name
        for name, argument in arguments.items()
        if argument.kind is argument.POSITIONAL_OR_KEYWORD and argument.default is argument.empty
    }
    assert required - {"self"} <= set(kwargs)
    kwargs |= {"sampler": sampler, "shuffle": False, "batch_sampler": None}
    return type(loader)(**kwargs)


def test_a_loader_is_made_anew_from_its_attributes_with_a_distributed_sampler() -> None:
    data = make_data()
    mask = torch.arange(NODES) % 2 == 0
    loader = loader_of(
        data, input_nodes=mask, seed=9, window=2, layout="coo", replace=True, num_workers=1
    )
    parts = [
        made_anew(loader, DistributedSampler(loader.dataset, 2, rank, shuffle=False))
        for rank in range(2)
    ]
    for part in parts:
        for name in ("seed", "window", "layout", "batch_size", "num_workers", "input_nodes"):
            assert getattr(part, name) is getattr(loader, name)
        assert part.node_sampler is loader.node_sampler
        assert part.filter_per_worker is None
    seeds = [batch.n_id[: batch.batch_size] for part in parts for batch in part]
    assert torch.equal(torch.cat(seeds).sort().values, mask.nonzero().view(-1))
    assert len(parts[0]) == 2
    divided = loader_of(data, rank=0, world_size=2)
    with pytest.raises(ArgumentError, match="sampler divides the seeds among ranks already"):
        made_anew(divided, DistributedSampler(divided.dataset, 2, 0))


def test_the_samplers_of_a_loader_are_told_apart_and_told_epochs() -> None:
    data = make_data()
    plain, shuffled = loader_of(data), loader_of(data, shuffle=True)
    assert isinstance(plain.sampler, SequentialSampler)
    assert isinstance(shuffled.sampler, RandomSampler)
    assert not isinstance(shuffled.sampler, SequentialSampler)
    assert list(plain.sampler) == list(range(NODES))
    expected = [ids_of(shuffled) for _ in range(3)]
    shuffled.batch_sampler.sampler.set_epoch(1)  # as Lightning tells a DistributedSampler
    order = list(shuffled.sampler)
    assert ids_of(shuffled) == expected[1]
    assert sorted(order) == list(range(NODES))
    assert order[:700] == expected[1][0][:700]


def test_a_rest_of_an_epoch_has_the_batches_of_the_whole() -> None:
    data = make_data()
    for options in ({"shuffle": True}, {"batch_sampler": [[1, 2], [3], [4, 5]], "batch_size": 1}):
        loader = loader_of(data, **options)
        whole = [ids_of(loader), ids_of(loader)]
        loader.set_epoch(1, first_batch=2)
        assert ids_of(loader) == whole[1][2:]
        loader.set_epoch(0)
        assert ids_of(loader) == whole[0]


def test_pygs_node_loader_over_our_sampler_gives_the_same_attributes() -> None:
    data = make_data()
    theirs = next(iter(NodeLoader(data, gnnsys.NeighborSampler(data, [5, 3]), batch_size=700)))
    ours = next(iter(loader_of(data, layout="coo")))
    assert set(ours.keys()) == set(theirs.keys())
    for key in theirs.keys():  # noqa: SIM118 - Data is no dict
        assert type(ours[key]) is type(theirs[key]), key


def test_empty_seeds_give_no_batches() -> None:
    none = torch.empty(0, dtype=torch.int64)
    assert list(loader_of(make_data(), input_nodes=none)) == []
    assert list(loader_of(make_data(), input_nodes=none, num_workers=2)) == []
    with pytest.raises(ValueError, match="num_samples"):
        loader_of(make_data(), input_nodes=none, shuffle=True)


def test_an_input_time_without_its_attribute_is_refused() -> None:
    with pytest.raises(ArgumentError, match="time_attr"):
        loader_of(make_data(), input_time=torch.zeros(NODES, dtype=torch.int64))

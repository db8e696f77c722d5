"""What the sampler can be given, and what it says to what it cannot use."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torch_geometric.sampler
from torch_geometric import EdgeIndex
from torch_geometric.data import Data, HeteroData
from torch_geometric.loader import NodeLoader
from torch_geometric.sampler import EdgeSamplerInput, NodeSamplerInput, NumNeighbors
from torch_geometric.testing import MyFeatureStore, MyGraphStore

from gnnsys.errors import ArgumentError, DTypeError, UnsupportedError
from gnnsys.loaders import CSC, LinkNeighborLoader, NeighborLoader, NeighborSampler
from gnnsys.loaders.sampler_checks import choice

WRITES, CITES = ("author", "writes", "paper"), ("paper", "cites", "paper")


def edges_of(seed: int, sources: int, targets: int, count: int) -> torch.Tensor:
    """Sorted by source, so that every layout lists the edges of a target in the same order."""
    draw = np.random.default_rng(seed)
    pairs = np.stack([draw.integers(0, sources, count), draw.integers(0, targets, count)])
    return torch.from_numpy(pairs[:, np.lexsort(pairs[::-1])]).contiguous()


def homogeneous(num_nodes: int = 30) -> Data:
    data = Data(x=torch.arange(num_nodes).view(-1, 1))
    data.edge_index = edges_of(0, num_nodes, num_nodes, 200)
    data.time = torch.arange(num_nodes).flip(0)
    data.stamp = torch.arange(200) % 7
    data.weight = torch.arange(200) % 5
    return data


def heterogeneous() -> HeteroData:
    data = HeteroData()
    data["paper"].x, data["author"].x = torch.zeros(20, 1), torch.zeros(35, 1)
    data[WRITES].edge_index = edges_of(1, 35, 20, 150)
    data[CITES].edge_index = edges_of(2, 20, 20, 80)
    data["paper"].time = torch.arange(20) % 6
    data[CITES].stamp = torch.arange(80) % 9
    data[WRITES].weight = torch.arange(150) % 4
    return data


def draws(sampler: NeighborSampler, node_type: str | None = None, time: Any = None) -> Any:
    inputs = NodeSamplerInput(None, torch.arange(10), time, node_type)
    out = sampler.sample_from_nodes(inputs, group=3, epoch=1)
    parts = (out.node, out.row, out.col, out.edge, out.batch)
    if node_type is None:
        return [None if part is None else part.tolist() for part in parts]
    return [
        None if part is None else {key: value.tolist() for key, value in sorted(part.items())}
        for part in parts
    ]


def flat_nodes(sampler: NeighborSampler, ids: torch.Tensor, when: torch.Tensor) -> list[int]:
    inputs = NodeSamplerInput(ids, ids, when[ids], "paper")
    return sampler.sample_from_nodes(inputs).node["author"].tolist()


# Stores, matrices and other forms of the same graph ----------------------------------------------


def put(graphs: MyGraphStore, kind: Any, edge_index: torch.Tensor, size: Any, layout: str) -> None:
    csc = CSC.from_edges(*edge_index, *size)
    csr = CSC.from_edges(edge_index[1], edge_index[0], size[1], size[0])
    if layout == "csc":
        graphs.put_edge_index((csc.indices, csc.indptr), kind, "csc", size=size)
    elif layout == "csr":
        graphs.put_edge_index((csr.indptr, csr.indices), kind, "csr", size=size)
    elif layout == "sorted":
        pair = csc.indices.long(), csc.targets()
        graphs.put_edge_index(pair, kind, "coo", is_sorted=True, size=size)
    else:
        graphs.put_edge_index(tuple(edge_index), kind, "coo", size=size)


LAYOUTS = ["coo", "sorted", "csc", "csr"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_stores_give_the_batches_of_data(layout, direction):
    data = homogeneous()
    features, graphs = MyFeatureStore(), MyGraphStore()
    features.put_tensor(data.x, group_name=None, attr_name="x", index=None)
    put(graphs, None, data.edge_index, (30, 30), layout)
    asked = {"num_neighbors": [3, 2], "sample_direction": direction}
    stored = NeighborSampler((features, graphs), **asked)
    assert draws(stored) == draws(NeighborSampler(data, **asked))
    assert not stored.is_hetero


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_stores_with_types_give_the_batches_of_data(layout, direction):
    data = heterogeneous()
    features, graphs = MyFeatureStore(), MyGraphStore()
    for node_type in data.node_types:
        features.put_tensor(data[node_type].x, group_name=node_type, attr_name="x", index=None)
    put(graphs, WRITES, data[WRITES].edge_index, (35, 20), layout)
    put(graphs, CITES, data[CITES].edge_index, (20, 20), layout)
    asked = {"num_neighbors": [3, 2], "sample_direction": direction, "disjoint": True}
    stored = NeighborSampler((features, graphs), **asked)
    assert draws(stored, "paper") == draws(NeighborSampler(data, **asked), "paper")
    assert stored.num_nodes == {"paper": 20, "author": 35}


@pytest.mark.parametrize("layout", ["sorted", "csc"])
@pytest.mark.parametrize("name", ["time", "stamp"])
def test_times_in_stores_give_the_batches_of_data(layout, name):
    data = heterogeneous()
    for kind in (WRITES, CITES):  # sorts the user's edges by target and time
        source, target = data[kind].edge_index
        stamp = data[kind].get("stamp", torch.zeros(len(source), dtype=torch.int64))
        key = data["paper"].time[source] if name == "time" and kind == CITES else stamp
        order = torch.from_numpy(np.lexsort([key, target]))
        data[kind].edge_index = data[kind].edge_index[:, order]
        if kind == CITES:
            data[kind].stamp = stamp[order]
    features, graphs = MyFeatureStore(), MyGraphStore()
    for node_type in data.node_types:
        features.put_tensor(data[node_type].x, group_name=node_type, attr_name="x", index=None)
    owner = "paper" if name == "time" else CITES
    features.put_tensor(data[owner][name], group_name=owner, attr_name=name, index=None)
    put(graphs, WRITES, data[WRITES].edge_index, (35, 20), layout)
    put(graphs, CITES, data[CITES].edge_index, (20, 20), layout)
    asked = {"num_neighbors": [2, 2], "time_attr": name, "temporal_strategy": "last"}
    late = torch.full((10,), 4)
    expected = draws(NeighborSampler(data, **asked), "paper", late)
    assert draws(NeighborSampler((features, graphs), **asked), "paper", late) == expected


@pytest.mark.parametrize("kind", ["homogeneous", "typed"])
def test_data_serves_as_its_own_stores(kind):
    data, node_type = (homogeneous(), None) if kind == "homogeneous" else (heterogeneous(), "paper")
    expected = draws(NeighborSampler(data, [3, 2]), node_type)
    assert draws(NeighborSampler((data, data), [3, 2]), node_type) == expected


@pytest.mark.parametrize("form", ["adj_t csr", "adj_t coo", "adj csr", "adj csc", "adj coo"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_sparse_matrices_give_the_batches_of_their_edges(form, direction):
    edge_index = edges_of(3, 30, 30, 100).unique(dim=1)
    asked = {"num_neighbors": [3, 2], "sample_direction": direction}
    plain = NeighborSampler(Data(edge_index=edge_index, num_nodes=30), **asked)
    name, layout = form.split()
    index = edge_index.flip(0) if name == "adj_t" else edge_index
    matrix = torch.sparse_coo_tensor(
        index, torch.ones(index.shape[1]), (30, 30), check_invariants=True
    ).coalesce()
    if layout != "coo":
        matrix = matrix.to_sparse_csr() if layout == "csr" else matrix.to_sparse_csc()
    sampler = NeighborSampler(Data(num_nodes=30, **{name: matrix}), **asked)
    assert draws(sampler)[:3] == draws(plain)[:3]


class TorchSparse:
    """The two methods by which torch-sparse, which cannot be installed here, gives its parts."""

    def __init__(self, rows: torch.Tensor, columns: torch.Tensor, size: int) -> None:
        self.graph = CSC.from_edges(columns, rows, size, size)

    def csr(self):
        return self.graph.indptr, self.graph.indices.long(), None

    def coo(self):
        return self.graph.targets(), self.graph.indices.long(), None


@pytest.mark.parametrize("name", ["adj", "adj_t"])
def test_matrices_of_torch_sparse_are_read_by_their_methods(name):
    edge_index = edges_of(3, 30, 30, 100)
    expected = draws(NeighborSampler(Data(edge_index=edge_index, num_nodes=30), [3, 2]))
    rows, columns = edge_index.flip(0) if name == "adj_t" else edge_index
    data = Data(num_nodes=30, **{name: TorchSparse(rows, columns, 30)})
    assert draws(NeighborSampler(data, [3, 2]))[:3] == expected[:3]


def test_csc_is_sampled_backward_too():
    data = homogeneous()
    csc = CSC.from_edge_index(data.edge_index, 30)
    asked = {"num_neighbors": [3, 2], "sample_direction": "backward"}
    forms = [NeighborSampler(graph, **asked) for graph in (csc, data)]
    pairs = []
    for sampler in forms:
        out = sampler.sample(torch.arange(10), group=0)
        edge = sampler.edge_permutation[out.edge]
        assert torch.equal(out.node[out.row], data.edge_index[0, edge])
        assert torch.equal(out.node[out.col], data.edge_index[1, edge])
        pairs.append(out.node.tolist())
    assert len(pairs[0]) == len(pairs[1])


def test_edge_index_of_types_is_taken():
    data = heterogeneous()
    expected = draws(NeighborSampler(data, [3, 2]), "paper")
    data[WRITES].edge_index = EdgeIndex(data[WRITES].edge_index, sparse_size=(35, 20))
    assert draws(NeighborSampler(data, [3, 2]), "paper") == expected


def test_edges_sorted_by_target_need_no_permutation():
    data = heterogeneous()
    for kind in data.edge_types:
        pairs = data[kind].edge_index
        data[kind].edge_index = pairs[:, torch.argsort(pairs[1], stable=True)]
    sampler = NeighborSampler(data, [3, 2], is_sorted=True)
    assert sampler.edge_permutation == {WRITES: None, CITES: None}
    expected = draws(NeighborSampler(data, [3, 2]), "paper")
    assert draws(sampler, "paper") == expected


def test_nodes_without_edges_are_sampled_alone():
    sampler = NeighborSampler(Data(num_nodes=5), [3, 2])
    out = sampler.sample(torch.tensor([4, 1]), group=0)
    assert out.node.tolist() == [4, 1]
    assert out.num_sampled_nodes == [2, 0, 0]
    data = HeteroData()
    data["a"].num_nodes = data["b"].num_nodes = 3
    data["a", "to", "b"].edge_index = torch.empty(2, 0, dtype=torch.int64)
    typed = NeighborSampler(data, [2]).sample({"b": torch.tensor([2])}, group=0)
    assert {key: value.tolist() for key, value in typed.node.items()} == {"a": [], "b": [2]}


def test_no_seeds_give_an_empty_batch():
    sampler = NeighborSampler(heterogeneous(), [3, 2], disjoint=True)
    none = torch.empty(0, dtype=torch.int64)
    out = sampler.sample_from_nodes(NodeSamplerInput(none, torch.tensor([]), None, "paper"))
    assert all(part.numel() == 0 for part in out.node.values())
    assert all(part.numel() == 0 for part in out.batch.values())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_pygs_loader_takes_the_typed_sampler_and_its_workers_do(num_workers):
    data = heterogeneous()
    sampler = NeighborSampler(data, [3, 2], time_attr="time", threads=2)
    when = torch.full((20,), 3)
    expected = [
        flat_nodes(sampler, torch.arange(first, min(first + 6, 20)), when)
        for first in range(0, 20, 6)
    ]
    loader = NodeLoader(data, sampler, "paper", when, batch_size=6, num_workers=num_workers)
    batches = list(loader)
    assert [batch["author"].n_id.tolist() for batch in batches] == expected
    for batch in batches:
        assert bool(
            (data["paper"].time[batch["paper"].n_id[batch["paper"].batch_size :]] <= 3).all()
        )
        assert torch.equal(
            torch.stack(
                [
                    batch["author"].n_id[batch[WRITES].edge_index[0]],
                    batch["paper"].n_id[batch[WRITES].edge_index[1]],
                ]
            ),
            data[WRITES].edge_index[:, batch[WRITES].e_id],
        )


def test_sampler_is_pygs_with_its_attributes():
    data = heterogeneous()
    sampler = NeighborSampler(data, [3, 2], time_attr="time")
    assert isinstance(sampler, torch_geometric.sampler.NeighborSampler)
    assert sampler.is_hetero
    assert sampler.is_temporal
    assert sampler.disjoint
    assert sampler.num_neighbors == NumNeighbors([3, 2])
    assert sampler.num_neighbors.num_hops == 2
    assert list(sampler.node_time) == ["paper"]
    assert sampler.edge_time is None
    assert not NeighborSampler(data, [3]).disjoint


def test_shared_memory_holds_the_topology():
    sampler = NeighborSampler(heterogeneous(), [3], share_memory=True)
    for graph in sampler.graphs.values():
        assert graph.indptr.is_shared()
        assert graph.indices.is_shared()


def test_directed_is_deprecated():
    with pytest.warns(FutureWarning, match="subgraph_type='induced'"):
        sampler = NeighborSampler(homogeneous(), [3], directed=False)
    expected = draws(NeighborSampler(homogeneous(), [3], subgraph_type="induced"))
    assert draws(sampler) == expected


def test_pickled_options_stay():
    sampler = NeighborSampler(
        heterogeneous(), NumNeighbors({WRITES: [2]}, default=[1]), weight_attr="weight", seed=4
    )
    assert draws(pickle.loads(pickle.dumps(sampler)), "paper") == draws(sampler, "paper")


# Bad input ---------------------------------------------------------------------------------------


def with_attribute(data: Any, key: Any, name: str, value: Any) -> Any:
    (data[key] if key else data)[name] = value
    return data


BAD: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "no such data": ([1, 2], {}, ArgumentError, "data: a list; expected Data"),
    "no such time": (homogeneous(), {"time_attr": "when"}, ArgumentError, "no 'when'"),
    "time of neither": (
        with_attribute(homogeneous(), None, "when", torch.arange(3)),
        {"time_attr": "when"},
        ArgumentError,
        "30 nodes or 200 edges",
    ),
    "no such time in types": (heterogeneous(), {"time_attr": "when"}, ArgumentError, "'when'"),
    "times of both": (
        with_attribute(heterogeneous(), "paper", "stamp", torch.arange(20)),
        {"time_attr": "stamp"},
        ArgumentError,
        r"'paper' and of the edges \('paper', 'cites', 'paper'\)",
    ),
    "times too short": (
        with_attribute(heterogeneous(), "paper", "time", torch.arange(3)),
        {"time_attr": "time"},
        ArgumentError,
        r"time of 'paper': shape \(3,\), expected \(20,\)",
    ),
    "real times": (
        with_attribute(homogeneous(), None, "time", torch.rand(30)),
        {"time_attr": "time"},
        DTypeError,
        "time: dtype torch.float32, expected integers",
    ),
    "no such weight": (homogeneous(), {"weight_attr": "w"}, ArgumentError, "no 'w'"),
    "no such weight in types": (heterogeneous(), {"weight_attr": "w"}, ArgumentError, "'w'"),
    "negative weight": (
        with_attribute(homogeneous(), None, "weight", torch.arange(200) - 1),
        {"weight_attr": "weight"},
        ArgumentError,
        "weight of edge 0 is -1.0",
    ),
    "weight that is no number": (
        with_attribute(heterogeneous(), WRITES, "weight", torch.full((150,), torch.nan)),
        {"weight_attr": "weight"},
        ArgumentError,
        r"'writes', 'paper'\) of edge 0 is nan",
    ),
    "weights that overflow": (
        with_attribute(
            homogeneous(), None, "weight", torch.full((200,), 1e308, dtype=torch.float64)
        ),
        {"weight_attr": "weight"},
        ArgumentError,
        "weight",
    ),
    "two weights an edge": (
        with_attribute(homogeneous(), None, "weight", torch.ones(200, 2)),
        {"weight_attr": "weight"},
        ArgumentError,
        r"shape \(200, 2\), expected \(200,\)",
    ),
    "weights with times": (
        homogeneous(),
        {"weight_attr": "weight", "time_attr": "time"},
        UnsupportedError,
        "weight_attr: not offered together with time_attr",
    ),
    "weights of stores": (
        (heterogeneous(), heterogeneous()),
        {"weight_attr": "weight"},
        UnsupportedError,
        "FeatureStore",
    ),
    "weights of csc": (
        CSC(torch.tensor([0, 0]), torch.empty(0, dtype=torch.int32)),
        {"weight_attr": "weight"},
        ArgumentError,
        "give Data",
    ),
    "times backward": (
        homogeneous(),
        {"time_attr": "time", "sample_direction": "backward"},
        UnsupportedError,
        "backward",
    ),
    "induced trees": (
        homogeneous(),
        {"subgraph_type": "induced", "disjoint": True},
        ArgumentError,
        "'induced' excludes disjoint",
    ),
    "induced times": (
        homogeneous(),
        {"subgraph_type": "induced", "time_attr": "time"},
        ArgumentError,
        "'induced' excludes",
    ),
    "labor with replacement": (
        homogeneous(),
        {"sampling": "labor", "replace": True},
        ArgumentError,
        "'labor' excludes replace",
    ),
    "labor with weights": (
        homogeneous(),
        {"sampling": "labor", "weight_attr": "weight"},
        ArgumentError,
        "'labor' excludes weight_attr",
    ),
    "labor of the newest": (
        homogeneous(),
        {"sampling": "labor", "time_attr": "time", "temporal_strategy": "last"},
        ArgumentError,
        "'labor' excludes temporal_strategy='last'",
    ),
    "window without times": (
        homogeneous(),
        {"time_window": 3},
        ArgumentError,
        "time_window: 3, but no edges of the graph have times.*time_attr",
    ),
    "newest without times of edges": (
        with_attribute(heterogeneous(), "author", "born", torch.arange(35)),
        {"time_attr": "born", "last_n": {CITES: 3}},
        ArgumentError,
        r"last_n: neither edges \('paper', 'cites', 'paper'\) nor nodes 'paper' have times",
    ),
    "window of an unknown type": (
        heterogeneous(),
        {"time_attr": "time", "time_window": {("a", "b", "c"): 3}},
        ArgumentError,
        r"time_window: \('a', 'b', 'c'\) is no edge type of the graph, which has",
    ),
    "window of types without types": (
        homogeneous(),
        {"time_attr": "time", "time_window": {CITES: 3}},
        ArgumentError,
        "time_window: a dict of edge types, but the graph is homogeneous",
    ),
    "negative window": (
        homogeneous(),
        {"time_attr": "time", "time_window": -1},
        ArgumentError,
        "time_window: -1, expected a whole number from 0",
    ),
    "endless window": (
        homogeneous(),
        {"time_attr": "time", "time_window": 2**63},
        ArgumentError,
        "to 9223372036854775807, or None",
    ),
    "real window": (
        homogeneous(),
        {"time_attr": "time", "time_window": 2.5},
        ArgumentError,
        "time_window: 2.5, expected a whole number",
    ),
    "newest none": (
        homogeneous(),
        {"time_attr": "time", "last_n": 0},
        ArgumentError,
        "last_n: 0, expected a whole number from 1",
    ),
    "true newest": (
        homogeneous(),
        {"time_attr": "time", "last_n": True},
        ArgumentError,
        "last_n: True, expected",
    ),
    "window both ways": (
        homogeneous(),
        {"time_attr": "time", "time_window": 3, "subgraph_type": "bidirectional"},
        UnsupportedError,
        "time_window: not offered with subgraph_type='bidirectional'",
    ),
    "no batches share": (homogeneous(), {"dependent_batches": 0}, ArgumentError, "at least 1"),
    "missing edge type": (
        heterogeneous(),
        {"num_neighbors": {WRITES: [3]}},
        ArgumentError,
        r"no entry for the edge type \('paper', 'cites', 'paper'\).*default",
    ),
    "unknown edge type": (
        heterogeneous(),
        {"num_neighbors": {("a", "b", "c"): [3]}},
        ArgumentError,
        r"\('a', 'b', 'c'\) is no edge type",
    ),
    "hops that differ": (
        heterogeneous(),
        {"num_neighbors": {WRITES: [3], CITES: [3, 3]}},
        ArgumentError,
        "1 hops for one edge type, 2 for another",
    ),
    "one number": (
        homogeneous(),
        {"num_neighbors": 5},
        ArgumentError,
        "num_neighbors: 5, expected",
    ),
    "dict without types": (
        homogeneous(),
        {"num_neighbors": {WRITES: [3]}},
        ArgumentError,
        "homogeneous; give a list",
    ),
    "edges beyond a type": (
        with_attribute(heterogeneous(), WRITES, "edge_index", torch.tensor([[35], [0]])),
        {},
        ArgumentError,
        r"'writes', 'paper'\): edge_index: edge 0 has the source 35, outside the nodes \[0, 35\)",
    ),
    "targets beyond a type": (
        with_attribute(heterogeneous(), WRITES, "edge_index", torch.tensor([[0], [20]])),
        {"time_attr": "time"},
        ArgumentError,
        r"edge 0 has the target 20, outside the nodes \[0, 20\)",
    ),
    "edges beyond a type, backward": (
        with_attribute(heterogeneous(), WRITES, "edge_index", torch.tensor([[0, 35], [0, 0]])),
        {"sample_direction": "backward"},
        ArgumentError,
        r"edge 1 has the source 35, outside the nodes \[0, 35\)",
    ),
    "wrong claim of order": (
        heterogeneous(),
        {"is_sorted": True},
        ArgumentError,
        "is_sorted: True, but the targets",
    ),
    "dense matrix": (Data(num_nodes=2, adj=torch.eye(2)), {}, ArgumentError, "adj: a dense tensor"),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_what_does_not_fit_is_one_clear_error(case):
    data, options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        NeighborSampler(data, **{"num_neighbors": [3, 2]} | options)


def test_times_that_do_not_ascend_as_claimed_are_an_error():
    data = Data(
        edge_index=torch.tensor([[0, 1], [2, 2]]), num_nodes=3, time=torch.tensor([5, 4, 6])
    )
    with pytest.raises(ArgumentError, match="in-edges of node 2 the time 5 stands before 4"):
        NeighborSampler(data, [3], time_attr="time", is_sorted=True)


@pytest.mark.parametrize(("layout", "message"), [("coo", "is_sorted=False"), ("csr", "CSR layout")])
def test_stores_for_temporal_sampling_must_be_sorted(layout, message):
    data = homogeneous()
    features, graphs = MyFeatureStore(), MyGraphStore()
    features.put_tensor(data.time, group_name=None, attr_name="time", index=None)
    put(graphs, None, data.edge_index, (30, 30), layout)
    with pytest.raises(ArgumentError, match=message):
        NeighborSampler((features, graphs), [3], time_attr="time")


def test_stores_of_unknown_size_are_an_error():
    graphs = MyGraphStore()
    graphs.put_edge_index(tuple(homogeneous().edge_index), None, "coo", size=None)
    with pytest.raises(ArgumentError, match="number of nodes is not known"):
        NeighborSampler((MyFeatureStore(), graphs), [3])
    with pytest.raises(ArgumentError, match="has no edges"):
        NeighborSampler((MyFeatureStore(), MyGraphStore()), [3])


@pytest.mark.parametrize(
    "name", ["subgraph_type", "temporal_strategy", "sample_direction", "sampling"]
)
def test_unknown_choices_name_those_there_are(name):
    with pytest.raises(ArgumentError, match=f"{name}: 'best', expected one of .*, "):
        choice(name, "best")


@pytest.mark.parametrize("name", ["time_window", "last_n"])
def test_a_loader_refuses_limits_that_its_sampler_does_not_know_of(name):
    data = homogeneous()
    sampler = NeighborSampler(data, [3], time_attr="time")
    options = {"neighbor_sampler": sampler, "time_attr": "time", name: 3}
    with pytest.raises(ArgumentError, match=f"{name}: 3, .* give it to the sampler"):
        NeighborLoader(data, [3], **options)
    with pytest.raises(ArgumentError, match=f"{name}: 3, .* give it to the sampler"):
        LinkNeighborLoader(data, [3], edge_label_time=data.stamp, **options)


@pytest.mark.parametrize("seed", [-1, 20])
def test_a_seed_outside_its_type_names_the_type(seed):
    sampler = NeighborSampler(heterogeneous(), [3])
    with pytest.raises(ArgumentError, match=rf"'paper': seed {seed} at position 1 .*\[0, 20\)"):
        sampler.sample({"paper": torch.tensor([0, seed])}, group=0)


def test_stored_indices_outside_their_type_are_an_error_not_a_wild_read():
    graphs = MyGraphStore()
    indices = torch.tensor([0, 35], dtype=torch.int32)
    graphs.put_edge_index((indices, torch.tensor([0, 1, 2])), WRITES, "csc", size=(35, 2))
    sampler = NeighborSampler((MyFeatureStore(), graphs), [3])
    assert sampler.sample({"paper": torch.tensor([0])}, group=0).node["author"].tolist() == [0]
    with pytest.raises(ArgumentError, match="indices"):
        sampler.sample({"paper": torch.tensor([1])}, group=0)


def test_seeds_of_an_unknown_type_or_none_are_an_error():
    sampler = NeighborSampler(heterogeneous(), [3])
    with pytest.raises(ArgumentError, match=r"'venue': the graph has the node types \['paper'"):
        sampler.sample({"venue": torch.tensor([0])}, group=0)
    with pytest.raises(ArgumentError, match="seeds: Tensor, expected a dict by node type"):
        sampler.sample(torch.tensor([0]), group=0)
    with pytest.raises(ArgumentError, match="input_type: None, but the sampler's graph has types"):
        sampler.sample_from_nodes(NodeSamplerInput(None, torch.tensor([0])))
    plain = NeighborSampler(homogeneous(), [3])
    with pytest.raises(ArgumentError, match=r"input_type: 'paper', but .* has no types"):
        plain.sample_from_nodes(NodeSamplerInput(None, torch.tensor([0]), None, "paper"))


def test_seeds_without_any_time_are_an_error():
    seeds = NodeSamplerInput(None, torch.tensor([0]), None, "author")
    for name in ("time", "stamp"):
        sampler = NeighborSampler(heterogeneous(), [3], time_attr=name)
        with pytest.raises(ArgumentError, match="'author': have no times"):
            sampler.sample_from_nodes(seeds)


def test_real_times_of_seeds_are_an_error():
    sampler = NeighborSampler(homogeneous(), [3], time_attr="time")
    with pytest.raises(DTypeError, match=r"times of the seeds: dtype torch.float32"):
        sampler.sample_from_nodes(NodeSamplerInput(None, torch.tensor([0]), torch.tensor([0.5])))


def test_times_of_seeds_are_only_carried_along_without_times_in_the_graph():
    sampler = NeighborSampler(homogeneous(), [3])
    when = torch.tensor([1])
    out = sampler.sample_from_nodes(NodeSamplerInput(None, torch.tensor([0]), when))
    assert out.metadata == (None, when)


def test_batches_that_depend_on_each_other_need_a_number():
    sampler = NeighborSampler(homogeneous(), [3], dependent_batches=2)
    with pytest.raises(ArgumentError, match=r"dependent_batches: 2, .* use gnnsys.NeighborLoader"):
        sampler.sample_from_nodes(NodeSamplerInput(None, torch.tensor([0])))
    with pytest.raises(ArgumentError, match="dependent_batches"):
        sampler.sample_from_edges(EdgeSamplerInput(None, torch.tensor([0]), torch.tensor([1])))

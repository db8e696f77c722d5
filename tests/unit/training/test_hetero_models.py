"""Models of graphs with types, against their equations and their layers put together by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_geometric.nn
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.nn import HeteroConv, SAGEConv

from gnnsys.errors import ArgumentError
from gnnsys.loaders import NeighborLoader
from gnnsys.training.hetero_models import HeteroClassifier, RelationalConv

TYPES = {"user": 30, "item": 20, "tag": 4}
EDGES = [
    ("user", "buys", "item"),
    ("item", "bought", "user"),
    ("tag", "of", "item"),
    ("user", "knows", "user"),
]


@pytest.fixture
def data() -> HeteroData:
    torch.manual_seed(1)
    graph = HeteroData()
    for kind, count in TYPES.items():
        graph[kind].num_nodes = count
    graph["user"].x = torch.randn(30, 5, dtype=torch.float64)
    graph["item"].x = torch.randn(20, 7, dtype=torch.float64)
    for source, relation, target in EDGES:
        ends = torch.randint(TYPES[source], (40,)), torch.randint(TYPES[target], (40,))
        graph[source, relation, target].edge_index = torch.stack(ends)
    return graph


def make(model: str, **options: Any) -> HeteroClassifier:
    options = {"num_nodes": TYPES, "edge_types": EDGES, "target": "user", **options}
    torch.manual_seed(2)
    return HeteroClassifier(
        model, in_channels={"user": 5, "item": 7}, hidden=8, out_channels=3, layers=2, **options
    ).double().eval()  # fmt: skip


def ids(data: HeteroData) -> dict[str, Tensor]:
    return {kind: torch.arange(count) for kind, count in TYPES.items()}


def test_an_rgcn_layer_is_its_equation(data: HeteroData) -> None:
    conv = RelationalConv(8, [*TYPES], EDGES).double()
    x = {kind: torch.randn(count, 8, dtype=torch.float64) for kind, count in TYPES.items()}
    found = conv(x, data.edge_index_dict)
    for kind, count in TYPES.items():
        for node in range(count):
            wanted = conv.root[kind].weight @ x[kind][node] + conv.root[kind].bias
            for edge_type in EDGES:
                if edge_type[2] != kind:
                    continue
                source, target = data[edge_type].edge_index
                near = x[edge_type[0]][source[target == node]]
                weight = conv.relations.weight[EDGES.index(edge_type)]
                wanted = wanted + sum(row @ weight for row in near) / max(1, len(near))
            torch.testing.assert_close(found[kind][node], wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("model", ["rgcn", "rgat", "hgt", "sage", "gat"])
def test_the_seeds_logits_are_those_of_the_whole_graph(model: str, data: HeteroData) -> None:
    """All neighbours are drawn, so that layers which trim compute what the whole graph's do."""
    edge_types = EDGES if model in ("rgcn", "rgat", "hgt") else [*EDGES, ("item", "has", "tag")]
    if len(edge_types) > len(EDGES):
        data["item", "has", "tag"].edge_index = data["tag", "of", "item"].edge_index.flip(0)
    net = make(model, edge_types=edge_types)
    whole = net(data.x_dict, data.edge_index_dict, ids(data))
    loader = NeighborLoader(data, [-1, -1], ("user", torch.tensor([3, 17, 29])), batch_size=2)
    for batch, seeds in zip(loader, ([3, 17], [29]), strict=True):
        nodes = {kind: batch[kind].n_id for kind in TYPES}
        sizes = batch.num_sampled_nodes_dict, batch.num_sampled_edges_dict
        found = net(batch.x_dict, batch.edge_index_dict, nodes, *sizes)[: len(seeds)]
        torch.testing.assert_close(found, whole[seeds], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("model", ["rgcn", "hgt"])
def test_models_of_pygs_own_layers_give_the_same(model: str, data: HeteroData) -> None:
    net, edges = make(model), data.edge_index_dict
    expected = net(data.x_dict, edges, ids(data))
    for conv in net.gnn.convs:
        if model == "hgt":
            conv.__class__ = torch_geometric.nn.HGTConv
        else:
            conv.relations = HeteroConv({kind: mean_of(conv, kind) for kind in EDGES})
    torch.testing.assert_close(net(data.x_dict, edges, ids(data)), expected, rtol=1e-10, atol=1e-10)


def mean_of(conv: Any, kind: tuple[str, str, str]) -> SAGEConv:
    mean = SAGEConv((8, 8), 8, root_weight=False, bias=False).double()
    mean.lin_l.weight.data = conv.relations.weight[EDGES.index(kind)].detach().t()
    return mean


def test_hgt_keeps_the_rows_of_types_that_get_no_messages(data: HeteroData) -> None:
    net = make("hgt")
    first, second = net.gnn.convs
    with torch.no_grad():
        rows = {kind: net.inputs[kind](data[kind].x).relu() for kind in ("user", "item")}
        rows |= net.embeddings()
        rows = {**rows, **first(rows, data.edge_index_dict)}
        wanted = net.head(second(rows, data.edge_index_dict)["user"])
        found = net(data.x_dict, data.edge_index_dict, ids(data))
    torch.testing.assert_close(found, wanted)
    given = net({**data.x_dict, **net.embeddings()}, data.edge_index_dict)
    torch.testing.assert_close(given, wanted)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": "transformer"}, "'transformer': expected one of rgcn, rgat, hgt, sage, gat"),
        ({"model": "sage"}, "nodes of type tag are the target of no edges"),
        (
            {"model": "gat", "edge_types": [*EDGES, ("item", "has-a", "tag")]},
            "to_hetero cannot have a type of the name 'has-a'; give --model rgcn, rgat or hgt",
        ),
        (
            {"model": "hgt", "num_nodes": {**TYPES, "keys": 2}},
            "HGTConv cannot have a type of the name 'keys'; give --model rgcn or rgat",
        ),
    ],
)
def test_models_that_cannot_be_made_are_told(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        make(**options)


def test_names_of_types_may_be_anything_for_rgcn() -> None:
    nodes = {"a.b c": 3, "keys": 2}
    edge_types = [("a.b c", "is-a", "keys"), ("keys", "rev.is-a", "a.b c")]
    net = HeteroClassifier(
        "rgcn", in_channels={}, num_nodes=nodes, edge_types=edge_types, target="keys",
        hidden=4, out_channels=2, layers=2,
    )  # fmt: skip
    edges = {kind: torch.tensor([[0, 1], [1, 0]]) for kind in edge_types}
    out = net({}, edges, {kind: torch.arange(count) for kind, count in nodes.items()})
    assert out.shape == (2, 2)
    out.sum().backward()

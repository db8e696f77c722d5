"""Layers that run chunk by chunk: equal to PyG's, thrifty, and refused where they cannot."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import (
    ChebConv,
    GATConv,
    GATv2Conv,
    GCN2Conv,
    GCNConv,
    GENConv,
    GINConv,
    GraphConv,
    LayerNorm,
    PairNorm,
    SAGEConv,
    TransformerConv,
)

from gnnsys.errors import ArgumentError, UnsupportedError
from gnnsys.pipeline import DeepModel, GraphLayer, KeyedDropout, Share, deep_layers
from gnnsys.pipeline.edges import full_edges
from gnnsys.pipeline.layer_info import describe_layers
from gnnsys.pipeline.layers import as_layers
from gnnsys.pipeline.models import DEEP_MODELS
from gnnsys.pipeline.partition import partition_graph
from gnnsys.pipeline.way_graph import make_way_graph

NODES = 40
DRAW = torch.Generator().manual_seed(0)
X = torch.randn(NODES, 6, generator=DRAW, dtype=torch.float64)
EDGES = torch.randint(0, NODES - 1, (2, 130), generator=DRAW)


class OwnModule(nn.Module):
    """A user's module that takes a pair, and a shared tensor by name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = SAGEConv(6, 6, aggr="max")

    def forward(self, x: tuple[Tensor, Tensor], edge_index: Tensor, start: Tensor) -> Tensor:
        return self.conv(x, edge_index) + start


CONVS = {
    "GCNConv": lambda: GCNConv(6, 5),
    "GCNConv without loops": lambda: GCNConv(6, 5, normalize=False, bias=False),
    "SAGEConv": lambda: SAGEConv(6, 5),
    "SAGEConv sum, normalized": lambda: SAGEConv(6, 5, aggr="sum", normalize=True),
    "SAGEConv max": lambda: SAGEConv(6, 5, aggr="max"),
    "GATConv": lambda: GATConv(6, 5, heads=2),
    "GATv2Conv": lambda: GATv2Conv(6, 5),
    "GINConv": lambda: GINConv(nn.Sequential(nn.Linear(6, 5), nn.ReLU())),
    "GraphConv": lambda: GraphConv(6, 5),
    "TransformerConv": lambda: TransformerConv(6, 5, heads=2),
    "GENConv": lambda: GENConv(6, 5, norm="layer"),
}


@pytest.mark.parametrize("name", CONVS)
def test_a_convolution_equals_pyg_whole_and_chunk_by_chunk(name: str) -> None:
    torch.manual_seed(1)
    conv = CONVS[name]().double()
    wanted = copy.deepcopy(conv)(X, EDGES)
    (layer,) = as_layers([conv])
    assert isinstance(layer, GraphLayer)
    whole = layer(X, full_edges(EDGES, NODES, layer.kind, dtype=torch.float64))
    torch.testing.assert_close(whole, wanted, rtol=1e-12, atol=1e-12)
    partition = partition_graph(EDGES, NODES, 5)
    part = make_way_graph(EDGES, NODES, partition, kinds=(layer.kind,), dtype=torch.float64)
    rows = layer.before(X[part.vertices], {})
    for block in part.blocks:
        x = X[part.vertices[block.rows]]
        sources = rows[block.sources]
        out = layer.aggregate(sources, rows[block.rows], block.edges[layer.kind], {})
        found = layer.after(out, x, {})
        torch.testing.assert_close(found, wanted[part.vertices[block.rows]], rtol=1e-12, atol=1e-12)


def test_gcn2_and_own_modules_read_shared_tensors() -> None:
    torch.manual_seed(1)
    convs = [GCN2Conv(6, 0.2, 0.5, layer=1), GCN2Conv(6, 0.2, 0.5, layer=2, shared_weights=False)]
    model = DeepModel([Share("x_0"), *convs]).double()
    wanted = convs[1](convs[0](X, X, EDGES), X, EDGES)
    torch.testing.assert_close(model(X, EDGES), wanted, rtol=1e-12, atol=1e-12)
    own = OwnModule().double()
    model = DeepModel([Share("start"), nn.ReLU(), own])
    relu = X.relu()
    torch.testing.assert_close(model(X, EDGES), own((relu, relu), EDGES, X))
    infos = describe_layers(model.layers, 6, torch.float64)
    assert [info.shared_in for info in infos] == [(), (), ("start",)]
    assert infos[0].shared_out == ("start",)


@pytest.mark.parametrize("model", DEEP_MODELS)
def test_deep_models_have_as_many_aggregations_as_layers_of_one_width(model: str) -> None:
    layers = deep_layers(model, in_channels=6, hidden=16, out_channels=3, layers=5)
    infos = describe_layers(as_layers(layers), 6)
    graph = [info for info in infos if info.is_graph]
    assert len(graph) == 5
    assert {info.aggregated for info in graph} == {16}
    assert all(info.has_gradient for info in graph)
    assert infos[-1].out_width == 3
    wanted = sum(p.numel() for layer in layers for p in layer.parameters())
    assert sum(info.parameters for info in infos) == wanted


@pytest.mark.parametrize("model", DEEP_MODELS)
def test_autograd_keeps_what_is_told_and_no_gathered_rows(model: str) -> None:
    """Of a layer over many more edges and sources than targets."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.layout is torch.strided:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    net = DeepModel(deep_layers(model, in_channels=8, hidden=16, out_channels=3, layers=6))
    edges = torch.randint(0, 500, (2, 20_000), generator=torch.Generator().manual_seed(2))
    made = net.make_edges(edges, 500)
    x = torch.randn(500, 8)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        net(x, made).sum()
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    found = sum(nbytes for place, nbytes in kept.items() if place not in weights)
    infos = describe_layers(net.layers, 8)
    told = infos[0].kept.input * 8 * 4 + sum(
        info.kept.inside + (info.kept.output or following) * info.out_width * 4
        for info, following in zip(
            infos, [info.kept.input for info in infos[1:]] + [False], strict=True
        )
    )
    assert found == 500 * told
    assert told <= 4 * 16 * 4 * 8  # at most four rows of each of eight layers


def test_dropout_is_replaced_also_inside() -> None:
    layers = as_layers(
        [nn.Dropout(0.2), nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.4)), GCNConv(6, 6)]
    )
    found = [part for part in layers.modules() if isinstance(part, KeyedDropout)]
    assert [(part.p, part.layer) for part in found] == [(0.2, 0), (0.4, 1)]
    assert not any(isinstance(part, nn.Dropout) for part in layers.modules())


class WithDropout(nn.Module):
    """Drops inside a module that takes edges."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.conv = nn.Dropout(0.5), SAGEConv(6, 6)

    def forward(self, x, edge_index):
        return self.conv(x, edge_index)


SHARED = nn.Linear(6, 6)
REFUSED = [
    ([GCNConv(6, 6), nn.BatchNorm1d(6)], r"layer 1 \(BatchNorm1d\): BatchNorm1d normalises over"),
    ([GCNConv(6, 6), PairNorm()], r"layer 1 \(PairNorm\): PairNorm normalises over vertices"),
    ([GCNConv(6, 6), LayerNorm(6)], r"LayerNorm normalises over vertices"),
    ([GENConv(6, 6)], r"layer 0 \(GENConv\): BatchNorm1d normalises over vertices"),
    ([GATConv(6, 6, dropout=0.5)], r"layer 0 \(GATConv\): dropout=0.5 inside GATConv draws"),
    ([WithDropout()], r"layer 0 \(WithDropout\): has a Dropout inside"),
    ([ChebConv(6, 6, K=2)], r"layer 0 \(ChebConv\): does not take 6 columns of 3 sources for 2"),
    ([GCNConv(6, 6, cached=True)], r"cached=True keeps one graph"),
    ([GCNConv(6, 6, improved=True)], r"improved=True cannot be run chunk by chunk"),
    ([GCNConv(6, 6, flow="target_to_source")], r"flow='target_to_source'"),
    ([GCN2Conv(6, 0.1)], r"reads the shared tensor 'x_0', which no layer before it makes"),
    ([GCNConv(6, 6), nn.Linear(4, 3)], r"layer 1 \(Linear\): does not take 6 columns"),
    ([nn.Linear(6, 3)], r"none of them takes edge_index"),
    ([SHARED, GCNConv(6, 6), SHARED], r"layers 0 and 2 \(Linear\) share a parameter"),
    ([], r"an empty list"),
]


@pytest.mark.parametrize(("modules", "message"), REFUSED)
def test_layers_that_cannot_be_run_chunk_by_chunk_are_refused(modules, message: str) -> None:
    from gnnsys.pipeline.stages import split_layers

    with pytest.raises((ArgumentError, UnsupportedError), match=message):
        split_layers(describe_layers(as_layers(modules), 6), 10, 10, 1)

"""What chunked, pipelined training must equal, and to how many bits."""

from __future__ import annotations

import copy
import itertools
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GCN2Conv, GCNConv, SAGEConv

from gnnsys.pipeline import GNNPipe, Partition, deep_layers
from gnnsys.pipeline.layers import GraphLayer, Share, as_layers
from gnnsys.pipeline.models import DEEP_MODELS, ResGCNLayer
from gnnsys.pipeline.partition import partition_graph
from gnnsys.pipeline.schedule import slot_order
from gnnsys.training.datasets import load_dataset

sys.path.insert(0, str(Path(__file__).parent))
from pipeline_reference import Reference

LAYERS, HIDDEN, CLASSES = 4, 8, 3


def random_graph(seed: int, nodes: int = 37, edges: int = 90) -> Data:
    """A directed graph with loops, duplicates and nodes without edges."""
    draw = torch.Generator().manual_seed(seed)
    data = Data(
        x=torch.randn(nodes, 5, generator=draw, dtype=torch.float64),
        edge_index=torch.randint(0, nodes - 2, (2, edges), generator=draw),
        y=torch.randint(0, CLASSES, (nodes,), generator=draw),
    )
    data.train_mask = torch.rand(nodes, generator=draw) < 0.5
    return data


def layers_of(
    model: str, data: Data, dropout: float = 0.0, layers: int = LAYERS, classes: int = CLASSES
) -> list[nn.Module]:
    torch.manual_seed(11)
    made = deep_layers(
        model,
        in_channels=data.x.shape[1],
        hidden=HIDDEN,
        out_channels=classes,
        layers=layers,
        dropout=dropout,
    )
    return [layer.double() for layer in made]


def pyg_scores(layers: list[nn.Module], data: Data) -> Tensor:
    """The whole graph by PyG's own convolutions; x_0 is what the encoder gives."""
    x, x_0 = data.x, torch.empty(0)
    for layer in layers:
        if isinstance(layer, GCN2Conv):
            x = layer(x, x_0, data.edge_index)
        elif isinstance(layer, GCNConv | SAGEConv):
            x = layer(x, data.edge_index)
        elif isinstance(layer, ResGCNLayer):
            x = x + layer.conv(layer.activate(x), data.edge_index)
        else:
            x = layer(x)
            x_0 = x if isinstance(layer, Share) else x_0
    return x


def full_loss(layers: list[nn.Module], data: Data) -> tuple[float, list[Tensor]]:
    """Loss and gradients of full-graph training."""
    loss = F.cross_entropy(pyg_scores(layers, data)[data.train_mask], data.y[data.train_mask])
    loss.backward()
    return loss.item(), [p.grad for layer in layers for p in layer.parameters()]


def gradients(pipe: GNNPipe, layers: list[nn.Module]) -> list[Tensor]:
    """Of each parameter in the order of the layers; the ways' are the same."""
    found = {name: p.grad for name, p in pipe.named_parameters()}
    return [
        found[f"layers.{i}.{name}"]
        for i, layer in enumerate(as_layers(copy.deepcopy(layers)))
        for name, _ in layer.named_parameters()
    ]


def assert_equal(found: list[Tensor], wanted: list[Tensor]) -> None:
    """To 1e-12 of the largest entry: single ones may be what is left of larger terms."""
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).abs().max() <= 1e-12 * other.abs().max()


def train(pipe: GNNPipe, epochs: int, lr: float = 0.01) -> list[float]:
    optimizer = torch.optim.Adam(pipe.parameters(), lr=lr)
    return [pipe.train_epoch(optimizer) for _ in range(epochs)]


@pytest.mark.parametrize("model", DEEP_MODELS)
@pytest.mark.parametrize(
    ("stages", "ways", "chunks"), [(1, 1, 1), (4, 1, 1), (1, 3, 3), (2, 2, 2), (4, 5, 5)]
)
def test_one_chunk_for_each_way_is_full_graph_training(model, stages, ways, chunks) -> None:
    data = random_graph(seed=stages * ways)
    layers = layers_of(model, data)
    loss, wanted = full_loss(copy.deepcopy(layers), data)
    for gamma, history in ((2.0, "exact"), (-3.5, "zeros")):
        pipe = GNNPipe(
            layers,
            data,
            stages=stages,
            ways=ways,
            chunks=chunks,
            boundary_gradient_scale=gamma,
            history=history,
        )
        (found,) = train(pipe, 1, lr=0.0)
        assert found == pytest.approx(loss, rel=1e-13)
        assert_equal(gradients(pipe, layers), wanted)
        torch.testing.assert_close(pipe.evaluate(), pyg_scores(layers, data).detach())


@pytest.mark.parametrize("model", DEEP_MODELS)
@pytest.mark.parametrize(
    ("ways", "chunks", "period", "gamma", "history"),
    [
        (1, 2, 1, 1.0, "exact"),
        (1, 5, 2, 1.0, "zeros"),
        (1, 6, 3, 2.0, "exact"),
        (2, 6, 2, 1.0, "exact"),
        (3, 6, 3, 2.0, "zeros"),
    ],
)
def test_chunks_equal_one_autograd_graph_with_detached_history(
    model, ways, chunks, period, gamma, history
) -> None:
    data = random_graph(seed=chunks)
    layers = layers_of(model, data)
    pipe = GNNPipe(
        layers,
        data,
        stages=2,
        ways=ways,
        chunks=chunks,
        snapshot_period=period,
        boundary_gradient_scale=gamma,
        history=history,
        seed=5,
    )
    parts = as_layers(copy.deepcopy(layers))
    reference = Reference(parts, data, pipe.partition, ways, period, gamma, history)
    ours = torch.optim.Adam(pipe.parameters(), lr=0.02)
    theirs = torch.optim.Adam(reference.layers.parameters(), lr=0.02)
    for epoch in range(6):
        theirs.zero_grad()
        wanted = reference.epoch(slot_order(chunks // ways, 5, epoch))
        assert pipe.train_epoch(ours) == pytest.approx(wanted.item(), rel=1e-12)
        assert_equal(gradients(pipe, layers), [p.grad for p in reference.layers.parameters()])
        theirs.step()


@pytest.mark.parametrize("model", DEEP_MODELS)
def test_stages_do_not_change_a_bit(model) -> None:
    data = random_graph(seed=3)
    layers = layers_of(model, data, dropout=0.4)
    states = []
    for stages in (1, 2, 3, 4):
        pipe = GNNPipe(layers, data, stages=stages, chunks=6, snapshot_period=2)
        losses = train(pipe, 5)
        states.append((losses, pipe.state_dict(), pipe.evaluate(), pipe.staleness()))
    for losses, state, scores, staleness in states[1:]:
        assert losses == states[0][0]
        assert state.keys() == states[0][1].keys()
        assert all(torch.equal(state[name], states[0][1][name]) for name in state)
        assert torch.equal(scores, states[0][2])
        assert staleness == states[0][3]


def test_ways_change_rounding_alone_where_slots_are_the_same() -> None:
    """Two ways of chunks (a, b) and (c, d) take slots {a, c} and {b, d}, as one way may do."""
    data = random_graph(seed=9)
    layers = layers_of("gcnii", data, dropout=0.5)
    four = partition_graph(data.edge_index, len(data.x), 4)
    a, b, c, d = four.order.split(list(four.chunk_sizes))
    merged = (torch.cat([a, c]).sort().values, torch.cat([b, d]).sort().values)
    two = Partition(torch.cat(merged), (0, len(merged[0]), len(data.x)))
    runs = []
    for ways, partition in ((2, four), (1, two)):
        pipe = GNNPipe(
            layers, data, ways=ways, chunks=2 * ways, partition=partition, snapshot_period=2
        )
        runs.append((train(pipe, 6), pipe.state_dict()))
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-12)
    assert_equal([*runs[0][1].values()], [*runs[1][1].values()])


def test_frozen_weights_become_exact_by_one_refresh_for_each_aggregation() -> None:
    """On a path whose chunks come in the worst order, news passes one chunk an epoch."""
    nodes, layers = 12, 4
    towards_lower = torch.stack([torch.arange(1, nodes), torch.arange(nodes - 1)])
    data = Data(x=torch.eye(nodes, dtype=torch.float64), edge_index=towards_lower)
    data.y, data.train_mask = torch.arange(nodes) % 3, torch.arange(nodes) == 0
    model = layers_of("sage", data, layers=layers)
    for layer in model:  # so that nothing is cut off on the way
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, 0.1, 0.3)
    wanted = full_loss(copy.deepcopy(model), data)[0]
    pipe = GNNPipe(
        model,
        data,
        chunks=nodes,
        snapshot_period=1,
        shuffle=False,
        history="zeros",
        partition=Partition(torch.arange(nodes), tuple(range(nodes + 1))),
    )
    losses = train(pipe, layers + 3, lr=0.0)
    exact = [abs(loss - wanted) < 1e-12 for loss in losses]
    # The encoder is a layer, too: of layers + 1 in all, the last is exact after as many refreshes.
    assert exact == [False] * layers + [True] * 3


class _Linear(GraphLayer):
    """Sums neighbours, times a number that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def before(self, x: Tensor, shared: dict[str, Tensor]) -> Tensor:
        return self.weight * x

    def aggregate(self, sources, targets, edges, shared) -> Tensor:
        return edges.sum(sources)


@pytest.mark.parametrize("crossings", [0, 1, 2])
def test_doubled_gradients_are_unbiased_for_one_crossing_only(crossings: int) -> None:
    """Over all orders of 3 chunks, of a path 0 -> 1 -> 2 under two layers.

    The loss depends on vertex 0's feature by that path alone. A boundary is crossed by a gradient
    if its source's chunk came earlier: in half of the orders for one boundary; for two boundaries
    in 1 of 6 orders, so that 2 * 2 / 6 is not 1.
    """
    chunk_of = {0: [0, 0, 0], 1: [0, 0, 1], 2: [0, 1, 2]}[crossings]
    data = Data(
        x=torch.tensor([[1.0, 0.5], [0.0, 0.0], [0.0, 0.0]], dtype=torch.float64),
        edge_index=torch.tensor([[0, 1], [1, 2]]),
        y=torch.tensor([0, 0, 0]),
        train_mask=torch.tensor([False, False, True]),
    )
    others = [c for c in range(3) if c not in chunk_of]  # chunks of vertices that nobody reads
    data.x = torch.cat([data.x, torch.zeros(len(others), 2, dtype=torch.float64)])
    data.y = torch.zeros(len(data.x), dtype=torch.int64)
    data.train_mask = torch.arange(len(data.x)) == 2
    owner = torch.tensor(chunk_of + others)
    layers = [_Linear(), _Linear()]
    wanted = _first_gradient(GNNPipe(layers, data, chunks=1))
    sums = 0.0
    orders = list(itertools.permutations(range(3)))
    for order in orders:
        place = torch.tensor(order)[owner]
        by_place = place.argsort(stable=True)
        starts = [0, *torch.bincount(place, minlength=3).cumsum(0).tolist()]
        pipe = GNNPipe(
            layers,
            data,
            chunks=3,
            shuffle=False,
            boundary_gradient_scale=2.0,
            partition=Partition(by_place, tuple(starts)),
        )
        sums += _first_gradient(pipe)
    factor = {0: 1.0, 1: 1.0, 2: 4 / 6}[crossings]
    assert sums / len(orders) == pytest.approx(factor * wanted, rel=1e-12)


def _first_gradient(pipe: GNNPipe) -> float:
    """By the number of the first layer, whose rows are vertex 0's."""
    train(pipe, 1, lr=0.0)
    return next(iter(pipe.named_parameters()))[1].grad.item()


@pytest.mark.parametrize("model", ["gcnii", "resgcn"])
@pytest.mark.parametrize("name", ["cora", "actor"])
def test_real_graphs(real_graphs, name, model) -> None:
    with closing(load_dataset(name, str(real_graphs))) as dataset:
        data = Data(x=dataset.features.materialize()[:, :32].double(), y=dataset.node_task.labels)
        data.edge_index = dataset.edge_index()
        data.train_mask = torch.isin(torch.arange(len(data.x)), dataset.node_task.train)
    layers = layers_of(model, data, layers=3, classes=dataset.task.outputs)
    loss, wanted = full_loss(copy.deepcopy(layers), data)
    exact = GNNPipe(layers, data, stages=3, ways=2, chunks=2)
    assert train(exact, 1, lr=0.0)[0] == pytest.approx(loss, rel=1e-12)
    assert_equal(gradients(exact, layers), wanted)
    pipe = GNNPipe(layers, data, stages=3, chunks=4, snapshot_period=2, boundary_gradient_scale=1.0)
    parts = as_layers(copy.deepcopy(layers))
    reference = Reference(parts, data, pipe.partition, 1, 2, 1.0, "exact")
    ours = torch.optim.Adam(pipe.parameters(), lr=0.01)
    theirs = torch.optim.Adam(reference.layers.parameters(), lr=0.01)
    for epoch in range(3):
        theirs.zero_grad()
        loss = reference.epoch(slot_order(4, 0, epoch)).item()
        assert pipe.train_epoch(ours) == pytest.approx(loss, rel=1e-12)
        assert_equal(gradients(pipe, layers), [p.grad for p in reference.layers.parameters()])
        theirs.step()

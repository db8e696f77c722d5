"""What ``GNNPipe`` takes, and what it refuses with a reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv, SAGEConv

from gnnsys.errors import ArgumentError, RowIndexError
from gnnsys.pipeline import DeepModel, GNNPipe, Partition, deep_layers


def graph(nodes: int = 12, edges: int = 30) -> Data:
    draw = torch.Generator().manual_seed(0)
    data = Data(
        x=torch.randn(nodes, 4, generator=draw),
        edge_index=torch.randint(0, nodes, (2, edges), generator=draw),
        y=torch.arange(nodes) % 3,
    )
    data.train_mask = torch.arange(nodes) % 2 == 0
    return data


def layers(count: int = 3) -> list[nn.Module]:
    return deep_layers("gcn", in_channels=4, hidden=8, out_channels=3, layers=count)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunks": 10, "ways": 4}, r"chunks\(10\) % ways\(4\) != 0: .* use chunks=8"),
        ({"stages": 5}, r"stages\(5\) > graph layers\(3\): a stage holds one graph layer"),
        ({"chunks": 13}, r"chunks\(13\) > vertices\(12\): a chunk holds one vertex at least"),
        ({"chunks": 0}, r"chunks\(0\): expected at least 1"),
        ({"snapshot_period": 0}, r"snapshot_period\(0\): expected at least 1"),
        ({"boundary_gradient_scale": float("nan")}, r"expected a finite number"),
        ({"history": "old"}, r"history\('old'\): expected 'exact' or 'zeros'"),
        (
            {"chunks": 2, "partition": Partition(torch.arange(12), (0, 12, 12))},
            r"partition: chunk 1 is empty",
        ),
        (
            {"chunks": 3, "partition": Partition(torch.arange(12), (0, 6, 12))},
            r"partition: has 2 chunks, but chunks=3",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        GNNPipe(layers(), graph(), **options)


def test_data_that_does_not_fit_is_refused() -> None:
    data = graph()
    del data.train_mask
    with pytest.raises(ArgumentError, match="has no train_mask"):
        GNNPipe(layers(), data)
    data.train_mask = torch.ones(12, 10, dtype=torch.bool)
    with pytest.raises(ArgumentError, match=r"shape \(12, 10\) .* choose one split"):
        GNNPipe(layers(), data)
    data.train_mask = torch.zeros(12, dtype=torch.bool)
    with pytest.raises(ArgumentError, match="no vertex to train on"):
        GNNPipe(layers(), data)
    data = graph()
    data.y = data.y[:5]
    with pytest.raises(ArgumentError, match="5 labels != 12 vertices"):
        GNNPipe(layers(), data)
    data = graph()
    data.edge_index[0, 3] = 99
    with pytest.raises(RowIndexError, match="edge 3 joins"):
        GNNPipe(layers(), data, chunks=2)
    pipe = GNNPipe(layers(), graph(), chunks=2)
    with pytest.raises(ArgumentError, match=r"has no layers\.0\.weight; is it of another model"):
        pipe.load_state_dict({})


@pytest.mark.parametrize("edges", ["isolated", "none", "one way", "loops"])
@pytest.mark.parametrize("split", [(1, 1, 4), (2, 2, 4), (3, 1, 12)])
def test_odd_graphs_train_as_the_full_graph_is_evaluated(edges: str, split) -> None:
    data = graph()
    data.edge_index = {
        "isolated": torch.tensor([[0, 1], [1, 0]]),
        "none": torch.empty(2, 0, dtype=torch.int64),
        "one way": torch.stack([torch.arange(11), torch.arange(1, 12)]),
        "loops": torch.arange(12).repeat(2, 1),
    }[edges]
    stages, ways, chunks = split
    pipe = GNNPipe(layers(), data, stages=stages, ways=ways, chunks=chunks)
    optimizer = torch.optim.Adam(pipe.parameters(), lr=0.01)
    assert all(pipe.train_epoch(optimizer) > 0 for _ in range(3))
    model = DeepModel(layers()).eval()
    model.load_state_dict(pipe.state_dict())
    with torch.no_grad():
        wanted = model(data.x, data.edge_index)
    torch.testing.assert_close(pipe.evaluate(), wanted)


def test_labels_may_be_several_and_unknown() -> None:
    data = graph()
    data.y = torch.randint(0, 2, (12, 3), generator=torch.Generator().manual_seed(1)).float()
    data.y[0, 1] = data.y[4] = torch.nan
    made = layers()
    pipe = GNNPipe(made, data, stages=2, ways=2, chunks=2, boundary_gradient_scale=1.0)
    loss = pipe.train_epoch(torch.optim.SGD(pipe.parameters(), lr=0.0))
    model = DeepModel(made)
    model.context.seed = 0
    wanted = data.y[data.train_mask]
    scores = model(data.x, data.edge_index)[data.train_mask]
    known = ~wanted.isnan()
    loss_of_all = nn.functional.binary_cross_entropy_with_logits(scores[known], wanted[known])
    assert loss == pytest.approx(loss_of_all.item(), rel=1e-5)


def test_plain_pyg_layers_train_and_the_first_may_read_the_features() -> None:
    """SAGEConv before any weight: its rows have no gradient, and none is sent for them."""
    data = graph()
    made = [SAGEConv(4, 8), nn.ReLU(), nn.Dropout(0.1), GCNConv(8, 3)]
    pipe = GNNPipe(made, data, ways=2, chunks=2)
    assert [info.has_gradient for info in pipe.infos if info.is_graph] == [False, True]
    pipe.train_epoch(torch.optim.SGD(pipe.parameters(), lr=0.1))
    halo = pipe.ledger()["graph"]
    read = {
        (way, int(s))
        for way in (0, 1)
        for s, t in data.edge_index.T
        if _way(pipe, t) == way != _way(pipe, s)
    }
    assert halo == len(read) * (4 * 1 + 3 * 2) * 4


def _way(pipe: GNNPipe, vertex: torch.Tensor) -> int:
    place = int((pipe.partition.order == vertex).nonzero())
    return int(place >= pipe.partition.starts[1])


def test_optimizer_state_moves_between_splits() -> None:
    made, data = layers(), graph()
    first = GNNPipe(made, data, stages=3, chunks=3)
    ours = torch.optim.Adam(first.parameters(), lr=0.01)
    for _ in range(3):
        first.train_epoch(ours)
    second = GNNPipe(made, data, stages=1, chunks=3)
    theirs = torch.optim.Adam(second.parameters(), lr=0.01)
    second.load_state_dict(first.state_dict())
    second.load_optimizer_state_dict(theirs, first.optimizer_state_dict(ours))
    second.load_history_shards(first.history_shards().values())
    second.epoch = first.epoch
    for _ in range(2):
        assert second.train_epoch(theirs) == first.train_epoch(ours)
    states = first.state_dict(), second.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(("stages", "ways"), [(1, 2), (3, 1), (2, 2), (1, 4)])
def test_shards_of_a_snapshot_are_those_of_any_other_split(stages: int, ways: int) -> None:
    made, data = layers(), graph()
    one = GNNPipe(made, data, chunks=8, stages=1, ways=1)
    (whole,) = one.history_shards().values()
    rows = {name: torch.empty_like(value) for name, value in whole.items() if name != "nodes"}
    for name, value in rows.items():
        value[whole["nodes"]] = whole[name]  # in the order of data
    other = GNNPipe(made, data, chunks=8, stages=stages, ways=ways, history="zeros")
    assert all(
        not v.any() for s in other.history_shards().values() for k, v in s.items() if k != "nodes"
    )
    other.load_history_shards(one.history_shards().values())
    shards = other.history_shards()
    assert [*shards] == [*range(stages * ways)]
    held = [name for shard in shards.values() for name in shard if name != "nodes"]
    assert sorted(held) == sorted([*rows] * ways)
    for shard in shards.values():
        for name in shard.keys() - {"nodes"}:
            assert torch.equal(shard[name], rows[name][shard["nodes"]])
    # And what neighbours of other ways read is there, too: the next epoch is that of one process.
    third = GNNPipe(made, data, chunks=8, stages=stages, ways=ways)
    for name in ("shuffle", "seed"):
        assert getattr(third, name) == getattr(other, name)
    optimizers = [torch.optim.SGD(pipe.parameters(), lr=0.01) for pipe in (other, third)]
    assert other.train_epoch(optimizers[0]) == third.train_epoch(optimizers[1])


def test_without_a_snapshot_there_is_none_to_take() -> None:
    """A chunk to a way reads only rows of its own epoch."""
    made, data = layers(), graph()
    pipes = [GNNPipe(made, data, ways=2, chunks=2) for _ in range(2)]
    assert not pipes[0].reads_snapshots
    assert [[*shard] for shard in pipes[0].history_shards().values()] == [["nodes"]] * 2
    pipes[0].load_history_shards(GNNPipe(made, data, chunks=4).history_shards().values())
    pipes[0].refresh_history()
    optimizers = [torch.optim.SGD(pipe.parameters(), lr=0.0) for pipe in pipes]
    assert pipes[0].train_epoch(optimizers[0]) == pipes[1].train_epoch(optimizers[1])
    assert pipes[0].staleness() == [0.0] * 3
    reader = GNNPipe(made, data, ways=2, chunks=4)
    with pytest.raises(ArgumentError, match=r"of a pipeline with more chunks than ways"):
        reader.load_history_shards(pipes[0].history_shards().values())


def test_shards_of_some_ranks_are_refused() -> None:
    made, data = layers(), graph()
    pipe = GNNPipe(made, data, ways=2, chunks=4)
    shards = pipe.history_shards()
    del shards[1]
    with pytest.raises(
        ArgumentError, match=r"shards: lack \d+ rows of layers.\d, which rank 0 reads"
    ):
        pipe.load_history_shards(shards.values())

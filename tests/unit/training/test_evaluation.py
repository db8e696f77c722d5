"""The nodes that exact evaluation computes, against k-hop subgraphs and whole-graph forwards."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.nn import GAT, GCN, GIN, GraphSAGE
from torch_geometric.utils import k_hop_subgraph

from gnnsys.config.file import resumed_config
from gnnsys.config.train import TrainConfig
from gnnsys.generate import generate_community
from gnnsys.loaders import CSC
from gnnsys.training.evaluation import plan_evaluation, sampled_test_waits, scope_of
from gnnsys.training.exact_inference import run_layers
from gnnsys.training.loop import run_training
from gnnsys.training.model_layers import model_layers

NODES, COLUMNS, HIDDEN = 3_000, 8, 16


@pytest.fixture(scope="module")
def edge_index() -> Tensor:
    """(2, edges): sparse, with self loops, a hub that is everybody's source, and lone nodes."""
    draw = torch.Generator().manual_seed(3)
    edges = torch.randint(0, NODES - 10, (2, 4_000), generator=draw)
    hub = torch.stack([torch.zeros(300, dtype=torch.int64), torch.arange(300)])
    loops = torch.arange(50).repeat(2, 1)
    return torch.cat([edges, hub, loops], 1).unique(dim=1)


def config(layers: int, **options: Any) -> TrainConfig:
    return TrainConfig(dataset="g", layers=layers, hidden=HIDDEN, **options).filled_in()


def scored(count: int) -> Tensor:
    return torch.randperm(NODES, generator=torch.Generator().manual_seed(count))[:count]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_layer_computes_what_the_scored_nodes_depend_on(edge_index: Tensor, layers: int) -> None:
    graph, nodes = CSC.from_edge_index(edge_index, NODES), scored(20)
    scope = scope_of(config(layers), graph, (nodes[:8], nodes[5:]), COLUMNS)
    assert scope.layers is not None
    assert len(scope.layers) == layers
    nbytes = 0
    for number, ids in enumerate(scope.layers):
        hops = layers - 1 - number
        expected = k_hop_subgraph(nodes, hops, edge_index, num_nodes=NODES)[0]
        assert torch.equal(ids, expected)
        edges = int(torch.isin(edge_index[1], ids).sum())
        nbytes += (edges + len(ids)) * (COLUMNS if number == 0 else HIDDEN) * 4
    assert scope.nbytes == nbytes
    assert torch.equal(scope.layers[-1][scope.places(nodes)], nodes)


@pytest.mark.parametrize("in_files", [False, True])
@pytest.mark.parametrize("kind", [GraphSAGE, GCN, GAT, GIN])
def test_logits_are_those_of_the_whole_graph(
    edge_index: Tensor, kind: Any, in_files: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    x, nodes = torch.randn(NODES, COLUMNS), scored(40)
    net = kind(COLUMNS, HIDDEN, num_layers=3, out_channels=5).eval()
    graph = CSC.from_edge_index(edge_index, NODES)
    scope = scope_of(config(3), graph, (nodes,), COLUMNS)
    assert scope.layers is not None
    *_, out = run_layers(
        model_layers(net, graph),
        x,
        graph,
        device=torch.device("cpu"),
        out=tmp_path / "out.npy" if in_files else None,
        block_bytes=20_000,
        only=scope.layers,
    )
    assert len(out) == len(nodes)
    with torch.no_grad():
        expected = net(x, edge_index)[nodes]
    torch.testing.assert_close(out[scope.places(nodes)], expected, atol=1e-4, rtol=1e-4)


def test_the_cheaper_way_is_taken(edge_index: Tensor) -> None:
    graph = CSC.from_edge_index(edge_index, NODES)
    few, most = scored(20), scored(NODES - 100)
    chosen = {
        name: plan_evaluation(config(2, eval=name), graph, few, few, COLUMNS)
        for name in ("auto", "layerwise", "neighborhoods")
    }
    ways = {name: found.scope.way for name, found in chosen.items()}
    assert ways == {
        "auto": "neighborhoods", "layerwise": "layerwise", "neighborhoods": "neighborhoods",
    }  # fmt: skip
    assert chosen["auto"].scope.nbytes < chosen["layerwise"].scope.nbytes
    assert chosen["auto"].all_bytes == chosen["layerwise"].scope.nbytes
    assert plan_evaluation(config(2), graph, most, few, COLUMNS).scope.way == "layerwise"
    forced = plan_evaluation(config(2, eval="neighborhoods"), graph, most, few, COLUMNS)
    assert forced.scope.way == "neighborhoods"


def test_test_nodes_wait_where_they_take_longer_than_training(edge_index: Tensor) -> None:
    graph = CSC.from_edge_index(edge_index, NODES)
    few, most = scored(20), scored(NODES - 100)
    all_bytes = plan_evaluation(config(2), graph, few, most, COLUMNS).all_bytes
    short, long = (
        plan_evaluation(config(2), graph, few, most, COLUMNS, epoch_bytes=nbytes)
        for nbytes in (all_bytes // 10, all_bytes)
    )
    assert (short.test_at_end, long.test_at_end) == (True, False)
    assert short.scope.nbytes < all_bytes // 10
    assert short.nodes == 20
    # Where the validation nodes are as dear, waiting gains nothing.
    assert not plan_evaluation(config(2), graph, most, few, COLUMNS, epoch_bytes=1).test_at_end


@pytest.mark.parametrize(
    ("train", "val", "test", "waits"),
    [(100, 99, 101, False), (100, 100, 101, True), (99, 150, 50, False), (10, 20, 1, False)],
)
def test_sampled_test_nodes_wait_where_they_take_longer_than_training(
    train: int, val: int, test: int, waits: bool
) -> None:
    assert sampled_test_waits(train, val, test) == waits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evaluation") / "g"
    return generate_community(path, nodes=6_000, features=16, degree=6, train=0.02, val=0.01)


@pytest.mark.parametrize("eval_store", ["ram", "files"])
def test_a_run_gets_the_same_scores_in_every_exact_way(
    folder: Path, eval_store: str, tmp_path: Path
) -> None:
    def train(name: Any) -> Any:
        place = "ram" if eval_store == "ram" else str(tmp_path)
        return run_training(
            TrainConfig(dataset=str(folder), epochs=3, eval=name, eval_store=place, fanouts=(3, 3))
        )

    layerwise, neighborhoods, auto = map(train, ("layerwise", "neighborhoods", "auto"))
    vals = [[record.val for record in run.history] for run in (layerwise, neighborhoods, auto)]
    assert vals[1] == pytest.approx(vals[0], abs=2 / 60)  # a node's logits may tie
    assert vals[2] == vals[1]
    assert auto.evaluation["test_at_end"]
    assert 0 < auto.test_seconds < auto.seconds
    assert layerwise.test_seconds == neighborhoods.test_seconds == 0
    assert [record.test for record in auto.history] == [None] * 3
    assert auto.best_epoch == neighborhoods.best_epoch
    assert auto.best_test == pytest.approx(neighborhoods.best_test, abs=1e-3)
    assert list(tmp_path.iterdir()) == []


def test_sampled_evaluation_scores_the_test_nodes_as_their_batches_do(folder: Path) -> None:
    options: dict[str, Any] = {"fanouts": (-1, -1), "hidden": 8, "epochs": 3}  # all neighbours
    exact, sampled = (
        run_training(TrainConfig(dataset=str(folder), eval=way, **options))
        for way in ("layerwise", "sampled")
    )
    assert sampled.test_seconds > 0
    assert [record.test for record in sampled.history] == [None] * 3
    assert [record.val for record in sampled.history] == pytest.approx(
        [record.val for record in exact.history], abs=2 / 60
    )
    assert sampled.best_test == pytest.approx(exact.best_test, abs=1e-3)


@pytest.mark.parametrize(("way", "work"), [("auto", "layer 1 of 2"), ("sampled", "sampled")])
def test_a_run_that_ends_before_the_test_nodes_are_scored_scores_them_when_it_goes_on(
    folder: Path, tmp_path: Path, way: Any, work: str
) -> None:
    options: dict[str, Any] = {"epochs": 2, "fanouts": (3, 3), "hidden": 8, "eval": way}
    whole = run_training(TrainConfig(dataset=str(folder), out=str(tmp_path / "a"), **options))
    told: list[str] = []

    def end(what: str, done: int, total: int) -> None:
        told.append(what)
        if what.startswith("test"):
            os.kill(os.getpid(), signal.SIGTERM)

    config = TrainConfig(dataset=str(folder), out=str(tmp_path / "b"), **options)
    ended = run_training(config, on_evaluation=end)
    assert ended.reason == "interrupted"
    assert ended.best_test == {}
    assert ended.history == whole.history
    assert told[0].startswith(work)
    again = run_training(resumed_config(tmp_path / "b"))
    assert again.reason == "done"
    assert again.best_test == whole.best_test != {}
    assert (again.history, again.best_val) == (whole.history, whole.best_val)

"""Scaled sums of a gin on sampled neighbours: unbiased, and plain where all are drawn."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gnnsys.commands.cli import main
from gnnsys.config.train import TrainConfig
from gnnsys.errors import ArgumentError
from gnnsys.generate import generate_community
from gnnsys.loaders import CSC, NeighborSampler
from gnnsys.system.once import warn_once
from gnnsys.training.loop import run_training
from gnnsys.training.models import NodeClassifier

NODES = 200


@pytest.fixture(scope="module")
def graph() -> CSC:
    """A node with many neighbours, and others with few or none."""
    draw = torch.Generator().manual_seed(0)
    edges = torch.randint(0, NODES - 5, (2, 1_000), generator=draw)
    hub = torch.stack([torch.arange(NODES), torch.zeros(NODES, dtype=torch.int64)])
    return CSC.from_edge_index(torch.cat([edges, hub], 1).unique(dim=1), NODES)


def net_of(layers: int) -> NodeClassifier:
    torch.manual_seed(1)
    return NodeClassifier("gin", in_channels=6, hidden=8, out_channels=3, layers=layers).eval()


def on_sample(net: NodeClassifier, graph: CSC, x: Any, out: Any, scaled: bool) -> Any:
    degrees = graph.indptr.diff()[out.node] if scaled else None
    edges = torch.stack([out.row, out.col])
    hops = out.num_sampled_nodes, out.num_sampled_edges
    return net(x[out.node], edges, *hops, degrees)


@pytest.mark.parametrize("layers", [1, 2, 3])
@torch.no_grad()
def test_with_all_neighbours_scaled_is_plain_and_that_of_the_whole_graph(
    graph: CSC, layers: int
) -> None:
    net, x, seeds = net_of(layers), torch.randn(NODES, 6), torch.tensor([0, 7, 199, 30])
    out = NeighborSampler(graph, [-1] * layers).sample(seeds, 0)
    scaled, plain = (on_sample(net, graph, x, out, each)[:4] for each in (True, False))
    torch.testing.assert_close(scaled, plain)
    whole = net(x, torch.stack([graph.indices.long(), graph.targets()]))[seeds]
    torch.testing.assert_close(scaled, whole, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_mean_over_draws_is_the_sum_over_all(graph: CSC) -> None:
    net, x = net_of(1), 1 + torch.rand(NODES, 6).double()
    conv = net.double().gnn.convs[0]
    conv.nn = torch.nn.Identity()  # what is left is linear in the messages
    seeds = torch.arange(20)
    expected = net(x, torch.stack([graph.indices.long(), graph.targets()]))[:20]
    sampler = NeighborSampler(graph, [3])
    draws = torch.stack(
        [
            on_sample(net, graph, x, sampler.sample(seeds, group), scaled=True)[:20]
            for group in range(3_000)
        ]
    )
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - expected).abs() <= 6 * error + 1e-9).all()
    plain = on_sample(net, graph, x, sampler.sample(seeds, 0), scaled=False)[0]
    assert (plain - expected[0]).abs().max() > 30 * error[0].max()  # of the node with 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_community(tmp_path_factory.mktemp("sums") / "g", nodes=1_000, features=8)


def test_a_run_with_scaled_sums_predicts_either_way(folder: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        dataset=str(folder), out=str(tmp_path / "r"), model="gin", sums="scaled", fanouts=(2, 2),
        epochs=2, hidden=8,
    )  # fmt: skip
    plain = run_training(TrainConfig(dataset=str(folder), model="gin", fanouts=(2, 2), epochs=2,
                                     hidden=8))  # fmt: skip
    assert run_training(config).history[0].loss != plain.history[0].loss
    for name in ("exact", "sampled"):
        options = ["--sampled"] if name == "sampled" else []
        assert main(["predict", str(tmp_path / "r"), "--out", str(tmp_path / name), *options]) == 0
        assert np.load(tmp_path / name / "embeddings.npy").shape == (1_000, 8)


def test_sums_over_few_neighbours_are_warned_of(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def warned(**options: Any) -> bool:
        warn_once.cache_clear()
        caplog.clear()
        options = {"model": "gin", "fanouts": (2, 2), **options}
        with caplog.at_level(logging.WARNING):
            run_training(TrainConfig(dataset=str(folder), epochs=1, hidden=8, **options))
        return any("--sums scaled" in record.message for record in caplog.records)

    assert warned()
    assert not warned(fanouts=(100, 100))
    assert not warned(fanouts=(-1, -1))
    assert not warned(sums="scaled")
    assert not warned(eval="sampled")
    assert not warned(model="sage")


@pytest.mark.parametrize(
    "options", [{"model": "sage"}, {"full_batch": True}, {"sampling": "labor"}]
)
def test_scaled_sums_of_what_is_not_summed_or_not_drawn_are_refused(options: Any) -> None:
    with pytest.raises(ArgumentError, match="--sums scaled"):
        TrainConfig(dataset="g", sums="scaled", **{"model": "gin", **options})

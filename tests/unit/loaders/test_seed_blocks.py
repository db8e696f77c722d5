"""Seeds that are shuffled in blocks: the same for loaders, replay, training and a resumed epoch."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data

import gnnsys
from gnnsys import rng
from gnnsys.cache.trace import read_trace
from gnnsys.config.train import TrainConfig
from gnnsys.errors import ArgumentError
from gnnsys.features.replay import sampled_ids
from gnnsys.generate import generate_community
from gnnsys.loaders import CSC
from gnnsys.loaders.seed_batches import Epochs, ShuffledSeeds
from gnnsys.system import budget
from gnnsys.system.budget import process_budget
from gnnsys.training.loop import run_training

NODES = 300
SEEDS = torch.from_numpy(np.random.default_rng(4).permutation(NODES)[:200])


@settings(deadline=None)
@given(
    seeds=st.lists(st.integers(0, 1000), unique=True, min_size=1, max_size=60),
    block=st.integers(2, 70),
    epoch=st.integers(0, 5),
    first=st.integers(0, 70),
)
def test_blocks_of_sorted_seeds_stay_together(
    seeds: list[int], block: int, epoch: int, first: int
) -> None:
    ids = torch.tensor(seeds, dtype=torch.int64)
    shuffled = ShuffledSeeds(len(ids), Epochs(), 7, block, ids)
    order = shuffled.order(epoch)
    assert torch.equal(shuffled.order(epoch, first), order[:first])
    # By hand: the sorted seeds are cut where the epoch says, and the pieces are shuffled.
    ascending, cut = sorted(seeds), int(rng.permutation(block, 7, epoch)[0])
    pieces = [ascending[:cut]]
    pieces += [ascending[at : at + block] for at in range(cut, len(ascending), block)]
    expected = [seed for piece in rng.permutation(len(pieces), 7, epoch) for seed in pieces[piece]]
    assert ids[order].tolist() == expected


def test_a_block_of_one_is_the_order_that_there_was() -> None:
    order = ShuffledSeeds(200, Epochs(), 3, 1, SEEDS).order(2)
    assert order.tolist() == rng.permutation(200, 3, 2).tolist()


@pytest.mark.parametrize("block", [2, 3, 64])
def test_what_an_order_takes_is_known_before(block: int) -> None:
    count = 100_000
    held = {entry.name: entry.held for entry in process_budget().table()}
    shuffled = ShuffledSeeds(count, Epochs(), 3, block, torch.arange(count))
    now = {entry.name: entry.held for entry in process_budget().table()}
    assert now[budget.SEEDS] - held.get(budget.SEEDS, 0) == 8 * count
    tracemalloc.start()
    shuffled.order(0)
    _, peak = tracemalloc.get_traced_memory()  # of numpy, without the sorted seeds of torch
    tracemalloc.stop()
    most = ShuffledSeeds.most_bytes(count, block)
    assert 0.8 * most < peak + 8 * count <= most + 4096


def make_data() -> Data:
    draw = torch.Generator().manual_seed(1)
    return Data(edge_index=torch.randint(NODES, (2, 2000), generator=draw), num_nodes=NODES)


def loader_of(data: Data, **options: Any) -> gnnsys.NeighborLoader:
    options = {"batch_size": 16, "shuffle": True, "seed": 5, "seed_block": 8, **options}
    return gnnsys.NeighborLoader(data, [3, 2], input_nodes=SEEDS, **options)


def test_a_loader_its_replay_and_the_rest_of_an_epoch_agree() -> None:
    data = make_data()
    loader = loader_of(data)
    epochs = [[batch.n_id.tolist() for batch in loader] for _ in range(2)]
    assert epochs[0] != epochs[1]
    graph = CSC.from_edge_index(data.edge_index, NODES)
    replayed = sampled_ids(graph, SEEDS, [3, 2], batch_size=16, batches=26, seed=5, seed_block=8)
    assert [ids.tolist() for ids in replayed] == epochs[0] + epochs[1]
    rest = loader_of(data)
    rest.set_epoch(1, first_batch=4)
    assert [batch.n_id.tolist() for batch in rest] == epochs[1][4:]
    parts = [loader_of(data, rank=rank, world_size=2) for rank in range(2)]
    assert [batch.n_id.tolist() for batch in parts[1]] == epochs[0][1::2]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"seed_block": 0}, "seed_block: 0, expected at least 1"),
        ({"shuffle": False}, "seed_block: 8, but the order of seeds is not drawn from seed"),
        ({"generator": torch.Generator()}, "seed_block: 8, but the order"),
        ({"shuffle": False, "sampler": [1, 2]}, "seed_block: 8, but the order"),
        (
            {"shuffle": False, "sampler": ShuffledSeeds(200, Epochs(), 5, 4)},
            "seed_block: 8, but the sampler shuffles blocks of 4; give the same, or no sampler",
        ),
    ],
)
def test_blocks_need_an_order_that_is_drawn(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ArgumentError, match=told):
        loader_of(make_data(), **options)


def test_training_draws_the_batches_that_are_replayed(tmp_path: Path) -> None:
    folder = generate_community(tmp_path / "g", nodes=400, classes=4, features=8, degree=8)
    run_training(
        TrainConfig(
            dataset=str(folder),
            epochs=2,
            fanouts=(3, 2),
            hidden=8,
            batch_size=64,
            seed=9,
            seed_block=16,
            cache="50",
            trace=str(tmp_path / "trace"),
            eval_every=2,
        )
    )
    dataset = gnnsys.open_dataset(folder)
    replayed = sampled_ids(
        dataset.graph(), dataset.split("train"), [3, 2], batch_size=64, batches=8, seed=9,
        seed_block=16,
    )  # fmt: skip
    found = read_trace(tmp_path / "trace")
    for ids, expected in zip(found[:8], replayed, strict=True):  # an evaluation follows
        assert set(ids.tolist()) == set(expected.tolist())
    with pytest.raises(ArgumentError, match="--seed-block 16: is for mini-batches"):
        TrainConfig(dataset=str(folder), seed_block=16, full_batch=True)

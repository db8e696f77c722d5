"""Joint batches whose rows are in a cache that the ranks share: each at the rank that asks for it,
and read as often as by one process that has the whole cache."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data

from gnnsys.cache.shared.engine import SharedEngine
from gnnsys.cache.shared.setup import owners_of_rows
from gnnsys.cache.shared.simulator import simulate_ranks
from gnnsys.cache.simulator import simulate
from gnnsys.errors import ArgumentError, GnnsysError
from gnnsys.loaders.cooperative import CooperativeSampler, JointBatch
from gnnsys.loaders.joint_iteration import JointIteration
from gnnsys.loaders.neighbor_sampler import NeighborSampler
from gnnsys.memory import HostStore
from gnnsys.memory.ids import RowIds
from gnnsys.memory.store import AnnouncedStore
from gnnsys.ranks import local_hub
from gnnsys.ranks.local_hub import LocalHub
from gnnsys.unified_tensor import UnifiedTensor

sys.path.insert(0, str(Path(__file__).parent))
from shared_ranks import make_ranks

NODES, CAPACITY, WINDOW = 600, 120, 6
TABLE = torch.randn(NODES, 16, generator=torch.Generator().manual_seed(5))
SEEDS = torch.randperm(NODES, generator=torch.Generator().manual_seed(2))[:480].split(16)


class Shared(AnnouncedStore):
    """What ``CachedStore`` is to an engine, in one of several ranks of a process."""

    tier = "cache"

    def __init__(self, engine: SharedEngine, source: HostStore) -> None:
        self.engine, self.counters = engine, engine._counters
        self.shape, self.encoding = source.shape, source.encoding
        self.retract, self.finish, self.end = engine.retract, engine.finish, engine.end

    @property
    def lookahead(self) -> int:
        return self.engine.lookahead

    def announce(self, ids: Tensor, owner: Any = None) -> Any:
        return self.engine.announce(RowIds(ids), owner)

    def gather(
        self, ids: Tensor, out: Tensor | None = None, stream: Any = None, *, ticket: Any = None
    ) -> Tensor:
        return self.engine.gather(RowIds(ids), out, ticket)


def make_sampler() -> NeighborSampler:
    draw = torch.Generator().manual_seed(1)
    edge_index = (torch.rand(2, 6000, generator=draw) ** 2 * NODES).long()
    return NeighborSampler(Data(edge_index=edge_index, num_nodes=NODES), [4, 3], seed=5)


def make_samplers(world: int, features: list[Any]) -> list[CooperativeSampler]:
    """Of ranks that live in this process, each with a transport for each of its threads."""
    return [
        CooperativeSampler(make_sampler(), features[rank], transport=computing, drawing=drawing)
        for rank, (computing, drawing) in enumerate(
            zip(LocalHub(world).transports, LocalHub(world).transports, strict=True)
        )
    ]


@pytest.mark.parametrize("policy", ["lru", "hybrid"])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_rows_are_cached_by_who_asks_and_read_as_by_one_process(world: int, policy: Any) -> None:
    source = HostStore(TABLE)
    owners = owners_of_rows(NODES, source.row_bytes, world)
    importance = torch.bincount(make_sampler().graph.indices.long(), minlength=NODES)
    scores = importance.numpy().astype("uint16")
    engines = make_ranks(
        world, source=source, owners=owners, capacity=CAPACITY, window=WINDOW, policy=policy,
        scores=scores,
    )  # fmt: skip
    features = [UnifiedTensor(Shared(engine, source)) for engine in engines]
    samplers = make_samplers(world, features)

    def work(rank: int) -> list[Tensor]:
        ids = []
        for epoch in range(2):
            for number, batch in enumerate(samplers[rank].batches(SEEDS, epoch)):
                assert torch.equal(batch.x, TABLE[batch.n_id])
                ids.append(batch.n_id)
                # Draws go ahead of who trains; the next batch is being gathered.
                ahead = min(engines[rank].lookahead - 1, len(SEEDS) - number - 2)
                while len(engines[rank]._tickets) < ahead:
                    time.sleep(0.0005)
        engines[rank].close()
        return ids

    with ThreadPoolExecutor(world) as threads:
        parts = list(threads.map(work, range(world)))
    steps = list(zip(*parts, strict=True))
    one = make_sampler()
    for number, step in enumerate(steps):
        place = {"group": number % len(SEEDS), "epoch": number // len(SEEDS)}
        whole = one.sample(SEEDS[place["group"]], **place).node
        assert sorted(torch.cat(step).tolist()) == sorted(whole.tolist())
    for engine in engines:
        assert set(engine._counters.as_dict()["rows"]) <= {"cache", "file"}
        assert engine.stats.batches == len(steps) == 2 * len(SEEDS)
    reads = sum(engine.stats.reads for engine in engines)
    table: dict[str, Any] = {"num_rows": NODES, "scores": scores, "row_bytes": source.row_bytes}
    if policy == "lru":  # by what was announced before alone: each owner for itself
        trace = [part.numpy() for step in steps for part in step]
        options = {"ranks": world, "shared": True, **table}
        assert reads == simulate_ranks(trace, policy, CAPACITY, **options).misses
    else:
        trace = [torch.cat(step).numpy() for step in steps]
        whole = simulate(trace, policy, CAPACITY, WINDOW, **table).misses
        # An epoch's first steps are planned before more is known: 2 or 3 of 30.
        assert 0.95 * whole < reads < 1.1 * whole


def test_an_iteration_that_all_ranks_leave_is_begun_again() -> None:
    source = HostStore(TABLE)
    engines = make_ranks(2, source=source, owners=owners_of_rows(NODES, source.row_bytes, 2))
    samplers = make_samplers(2, [UnifiedTensor(Shared(engine, source)) for engine in engines])

    def first_batches(rank: int) -> list[JointBatch]:
        batches = samplers[rank].batches(SEEDS, first=3)
        found = [next(batches) for _ in range(2)]
        batches.close()
        return found

    def work(rank: int) -> None:
        for one, again in zip(first_batches(rank), first_batches(rank), strict=True):
            assert torch.equal(one.n_id, again.n_id)
            assert torch.equal(one.x, TABLE[again.n_id])
        assert len(engines[rank]._tickets) == 0
        engines[rank].close()

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(work, range(2)))


def test_after_a_draw_that_failed_a_rank_draws_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are still at that batch, and would take what comes for a part of it."""
    monkeypatch.setattr(local_hub, "_PATIENCE", 2.0)
    samplers = make_samplers(2, [TABLE, TABLE])
    draw = samplers[1]._sampler.sample_hop

    def sample_hop(frontier: Tensor, hop: int, group: int, epoch: int) -> Any:
        if group == 2:
            raise OSError(5, "the disk is gone")
        return draw(frontier, hop, group, epoch)

    monkeypatch.setattr(samplers[1]._sampler, "sample_hop", sample_hop)
    monkeypatch.setattr(JointIteration, "_agreed_count", lambda iteration: 5)

    def work(rank: int) -> tuple[int, BaseException | None]:
        done = 0
        try:
            for _ in samplers[rank].batches(SEEDS):
                done += 1
        except (OSError, GnnsysError) as error:
            return done, error
        return done, None

    with ThreadPoolExecutor(2) as threads:
        (done, lonely), (_, failed) = threads.map(work, range(2))
    assert done == 2
    assert "rank 0 waits for what no rank sends" in str(lonely)
    assert "the disk is gone" in str(failed)


def test_batches_without_features_and_while_others_are_drawn_are_refused() -> None:
    [sampler] = make_samplers(1, [None])
    with pytest.raises(ArgumentError, match="features: None, and batches have their rows"):
        next(sampler.batches(SEEDS))
    [sampler] = make_samplers(1, [TABLE])
    batches = sampler.batches(SEEDS)
    next(batches)
    for draw in (lambda: next(sampler.batches(SEEDS)), lambda: sampler.sample(SEEDS[0], 0)):
        with pytest.raises(ArgumentError, match="an iteration of this sampler's batches is under"):
            draw()
    batches.close()
    assert len(list(sampler.batches(SEEDS[:2]))) == 2

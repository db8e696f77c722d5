"""Loaders over cached files yield the batches that they yield over memory, bit for bit."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_geometric.loader
from torch import Tensor
from torch.utils.data import DataLoader
from torch_geometric.data import Data, HeteroData

import gnnsys
from gnnsys.cache.plan import POLICIES
from gnnsys.cache.stats import CacheStats
from gnnsys.errors import ArgumentError

NODES = 400


def make_data() -> Data:
    draw = torch.Generator().manual_seed(3)
    return Data(
        x=torch.randn(NODES, 8, generator=draw),
        edge_index=torch.randint(NODES, (2, 3000), generator=draw),
    )


def cached(data: Data, folder: Path, **options: Any) -> Data:
    path = folder / "x.npy"
    if not path.exists():
        np.save(path, data.x.numpy())
    degree = torch.bincount(data.edge_index[0], minlength=NODES)
    options = {"cache": 60, "scores": degree, "device": "cpu", **options}
    return Data(x=gnnsys.unified(path, **options), edge_index=data.edge_index)


def stats_of(data: Data) -> CacheStats:
    return data.x.store.stats


def loader_of(data: Any, **options: Any) -> gnnsys.NeighborLoader:
    chosen = {"num_neighbors": [4, 3], "batch_size": 20, "shuffle": True, **options}
    return gnnsys.NeighborLoader(data, **chosen)


def assert_same(found: Iterable[Any], expected: Iterable[Any]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.n_id, other.n_id)
        assert type(one.x) is Tensor
        assert torch.equal(one.x, other.x)


@pytest.mark.parametrize("policy", POLICIES)
def test_batches_equal_those_over_memory_with_every_policy_over_two_epochs(
    policy: Any, tmp_path: Path
) -> None:
    data = make_data()
    ahead = cached(data, tmp_path, policy=policy, window=6, victim_buffer=9, storage="pread")
    one, other = loader_of(ahead), loader_of(data)
    for _ in range(2):
        assert_same(one, other)
    stats = stats_of(ahead)
    assert stats.batches == 40
    assert stats.rows == stats.hits + stats.victim_hits + stats.reads
    assert stats.hits > 0


@pytest.mark.parametrize("window", [0, 1, 5])
def test_an_epoch_that_is_broken_off_and_begun_again_yields_the_same_batches(
    window: int, tmp_path: Path
) -> None:
    data = make_data()
    loader = loader_of(cached(data, tmp_path, storage="pread"), window=window)
    for number, _ in enumerate(loader):
        if number == 3:
            break
    loader.set_epoch(0)
    assert_same(loader, loader_of(data))


def tables_of_an_arena(
    tmp_path: Path, draw: torch.Generator
) -> tuple[HeteroData, HeteroData, gnnsys.CacheArena]:
    """Papers and authors in memory, and the same in files behind one arena."""
    plain, ahead = HeteroData(), HeteroData()
    arena = gnnsys.CacheArena(60 * 3 * 4 + 40)
    for name, rows, width in [("paper", 200, 3), ("author", 90, 5)]:
        plain[name].x = torch.randn(rows, width, generator=draw)
        np.save(tmp_path / f"{name}.npy", plain[name].x.numpy())
        ahead[name].x = gnnsys.unified(tmp_path / f"{name}.npy", cache=arena, device="cpu")
    return plain, ahead, arena


def test_links_node_types_and_an_arena_are_served_too(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(2)
    plain, ahead, arena = tables_of_an_arena(tmp_path, draw)
    writes = torch.stack([torch.randint(90, (900,), generator=draw), torch.arange(900) % 200])
    for data in (plain, ahead):
        data["author", "writes", "paper"].edge_index = writes
        data["paper", "to", "author"].edge_index = writes.flip(0)
    options: dict[str, Any] = {"input_nodes": "paper", "num_neighbors": [2, 2]}
    for one, other in zip(loader_of(ahead, **options), loader_of(plain, **options), strict=True):
        for name in ("paper", "author"):
            assert torch.equal(one[name].x, other[name].x)
    stores = [ahead[name].x.store for name in ("paper", "author")]
    assert sum(store.capacity * store.row_bytes for store in stores) <= arena.budget

    homogeneous = make_data()
    links = [
        gnnsys.LinkNeighborLoader(
            data,
            [3, 2],
            edge_label_index=homogeneous.edge_index,
            batch_size=300,
            neg_sampling="binary",
        )
        for data in (cached(homogeneous, tmp_path), homogeneous)
    ]
    for _ in range(2):
        assert_same(*links)


def test_a_feature_store_with_a_cached_file_is_announced(tmp_path: Path) -> None:
    data = make_data()
    np.save(tmp_path / "x.npy", data.x.numpy())
    plain = HeteroData()
    plain["node"].x = data.x
    plain["node", "to", "node"].edge_index = data.edge_index
    features = gnnsys.FeatureStore()
    features.put_file(tmp_path / "x.npy", "node", "x", cache=0.2, device="cpu")
    options: dict[str, Any] = {"input_nodes": "node", "shuffle": False}
    one, other = loader_of((features, plain), **options), loader_of(plain, **options)
    for batch, expected in zip(one, other, strict=True):
        assert torch.equal(batch["node"].x, expected["node"].x)
    stats = features.table("node", "x").store.stats
    assert stats.batches == 20
    assert stats.hits > 0


def test_stock_loaders_are_served_without_tickets(tmp_path: Path) -> None:
    data = make_data()
    ahead = cached(data, tmp_path, cache=0.3)

    class Sampler(gnnsys.NeighborSampler):
        """PyG's own loader, with the sampler that is installed here."""

    loader = torch_geometric.loader.NodeLoader(
        ahead, Sampler(data, [4, 3]), batch_size=50, shuffle=False
    )
    for batch in loader:
        assert torch.equal(batch.x, data.x[batch.n_id])
    assert stats_of(ahead).batches == 8


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("storage", ["mmap", "pread"])
def test_worker_processes_read_through_the_file(storage: Any, tmp_path: Path) -> None:
    data = make_data()
    x = cached(data, tmp_path, storage=storage).x
    assert torch.equal(x[:5], data.x[:5])  # the cache is in use before the fork

    class Rows(torch.utils.data.Dataset[Tensor]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, part: int) -> Tensor:
            return x[torch.arange(part, NODES, 4)]

    before = x.store.stats
    for part, rows in enumerate(DataLoader(Rows(), batch_size=None, num_workers=2)):
        assert torch.equal(rows, data.x[part::4])
    assert x.store.stats == before
    assert torch.equal(x[5:9], data.x[5:9])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_iterates_over_the_file_while_its_parent_does(tmp_path: Path) -> None:
    data = make_data()
    loader = loader_of(cached(data, tmp_path, storage="pread"))
    batches = iter(loader)
    first = next(batches)
    child = os.fork()
    if child == 0:
        try:
            loader.set_epoch(0)
            assert_same(loader, loader_of(data))
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert_same([first, *batches], loader_of(data))


def test_the_loader_samples_as_far_ahead_as_the_cache_asks_within_bytes(tmp_path: Path) -> None:
    data = make_data()
    ahead = cached(data, tmp_path, window=8)
    tickets = ahead.x.store._engine()._tickets

    def most_waiting(window_bytes: int | str) -> int:
        batches = iter(loader_of(ahead, window=2, window_bytes=window_bytes))
        for _ in range(3):
            next(batches)
        deadline = time.monotonic() + 0.3  # for the sampling thread to go as far as it does
        while time.monotonic() < deadline and len(tickets) != ahead.x.store.lookahead - 1:
            time.sleep(0.001)
        time.sleep(0.05)  # a batch that is fetched at this moment counts until it is there
        return len(tickets)

    assert most_waiting("64MB") == ahead.x.store.lookahead - 1 == 10
    assert most_waiting(1) <= 2


@pytest.mark.parametrize("given", [-1, "lots"])
def test_window_bytes_that_are_no_bytes_are_refused(given: Any) -> None:
    with pytest.raises(ArgumentError, match="window_bytes"):
        loader_of(make_data(), window_bytes=given)


def await_tickets(data: Data, count: int) -> None:
    """Until a sampling thread is ahead of the one batch that is fetched while nobody takes it."""
    tickets = data.x.store._engine()._tickets
    deadline = time.monotonic() + 20
    while len(tickets) < count and time.monotonic() < deadline:
        time.sleep(0.001)
    assert len(tickets) >= count


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("cache", [60, "1MB"])
def test_validation_within_an_epoch_yields_the_batches_of_both(
    cache: Any, window: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As Lightning iterates: a few batches first, then all of them every few training steps."""
    plain = make_data()
    ahead = cached(plain, tmp_path, cache=cache, window=window)
    train, train_plain = loader_of(ahead, window=window), loader_of(plain)
    val, val_plain = (loader_of(data, batch_size=90, shuffle=False) for data in (ahead, plain))
    sanity, _ = iter(val), iter(val_plain)
    left_open = [next(sanity)]
    for _ in range(2):
        expected = list(train_plain)
        for number, batch in enumerate(train):
            assert_same([batch], [expected[number]])
            if number % 6 == 5:
                assert_same(val, val_plain)
    val_plain.set_epoch(0)
    assert_same([*left_open, *sanity], val_plain)
    stats = stats_of(ahead)
    assert stats.rows == stats.hits + stats.victim_hits + stats.reads + stats.copies
    assert len(caplog.records) <= 1


def test_a_second_loader_is_served_and_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = make_data()
    shared = cached(data, tmp_path, storage="pread", window=4)
    batches = iter(loader_of(shared))
    first = [next(batches)]
    await_tickets(shared, 3)
    before = stats_of(shared)
    other = loader_of(shared, batch_size=30)
    assert_same(other, loader_of(data, batch_size=30))
    assert torch.equal(shared.x[[3, 1, 3]], data.x[[3, 1, 3]])
    # The batch that was on its way to the consumer of the first may be among them.
    assert (stats_of(shared) - before).batches in (15, 16)
    assert_same([*first, *batches], loader_of(data))
    stats = stats_of(shared)
    assert stats.batches == 14 + 1 + 20
    assert stats.rows == stats.hits + stats.victim_hits + stats.reads + stats.copies
    assert len(caplog.records) == 1
    other.set_epoch(0)
    assert_same(other, loader_of(data, batch_size=30))
    assert len(caplog.records) == 1


def test_a_second_loader_that_fails_or_is_left_keeps_nobody_waiting(tmp_path: Path) -> None:
    data = make_data()
    ahead = cached(data, tmp_path)

    def fail(batch: Any) -> Any:
        raise ValueError("broken")

    batches = iter(loader_of(ahead))
    first = next(batches)
    await_tickets(ahead, 3)
    broken, left = iter(loader_of(ahead, transform=fail)), iter(loader_of(ahead))
    with pytest.raises(ValueError, match="broken"):
        next(broken)
    next(left)
    assert_same([first, *batches], loader_of(data))
    del left
    third = loader_of(ahead)
    assert_same(third, loader_of(data))
    assert len(ahead.x.store._engine()._tickets) == 0


def test_tables_of_an_arena_serve_two_loaders(tmp_path: Path) -> None:
    plain, ahead, _ = tables_of_an_arena(tmp_path, torch.Generator().manual_seed(2))
    for data in (plain, ahead):
        data["author", "writes", "paper"].edge_index = torch.stack(
            [torch.arange(900) % 90, torch.arange(900) * 7 % 200]
        )
    papers, authors = (
        [loader_of(data, input_nodes=name, num_neighbors=[2, 2]) for data in (ahead, plain)]
        for name in ("paper", "author")
    )
    for number, (one, other) in enumerate(zip(*papers, strict=True)):
        pairs = [(one, other), *(zip(*authors, strict=True) if number == 3 else [])]
        for found, expected in pairs:
            for name in ("paper", "author"):
                assert torch.equal(found[name].x, expected[name].x)


def test_with_every_row_resident_nothing_is_read_and_the_loader_does_not_look_further(
    tmp_path: Path,
) -> None:
    data = make_data()
    ahead = cached(data, tmp_path, cache="1MB")
    assert_same(loader_of(ahead), loader_of(data))
    store = ahead.x.store
    assert store.lookahead == 0
    assert (store.stats.hits, store.stats.reads) == (store.stats.rows, 0)
    assert store.stats.prefilled == NODES
    assert list(store.counters.tiers()) == ["cache"]

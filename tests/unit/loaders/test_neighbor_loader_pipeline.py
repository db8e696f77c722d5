"""The loaders' threads: what they hold, where user code runs, how they end; announced stores."""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.sampler import SamplerOutput

import gnnsys
from gnnsys.memory import HostStore
from gnnsys.memory.table_file import read_error
from gnnsys.system.once import warn_once

NODES = 300


def make_data(width: int = 3) -> Data:
    draw = torch.Generator().manual_seed(1)
    return Data(
        x=torch.randn(NODES, width, generator=draw),
        edge_index=torch.randint(NODES, (2, 2000), generator=draw),
    )


def loader_of(data: Any, **options: Any) -> gnnsys.NeighborLoader:
    return gnnsys.NeighborLoader(data, **{"num_neighbors": [4, 3], "batch_size": 20, **options})


def own_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("gnnsys-")]


class CountingSampler(gnnsys.NeighborSampler):
    """Knows how many batches it has sampled."""

    sampled = 0

    def sample_from_nodes(self, *args: Any, **options: Any) -> Any:
        self.sampled += 1
        return super().sample_from_nodes(*args, **options)


@pytest.mark.parametrize("window", [1, 4, 8])
def test_a_slow_consumer_finds_no_more_than_window_batches_sampled(window: int) -> None:
    data = make_data()
    sampler = CountingSampler(data, [4, 3])
    loader = loader_of(data, neighbor_sampler=sampler, window=window)
    for taken, _ in enumerate(loader, start=1):
        time.sleep(0.01)
        assert sampler.sampled <= taken + window
    assert sampler.sampled == len(loader) == 15


def test_a_thousand_epochs_leave_no_thread_and_no_memory() -> None:
    loader = loader_of(make_data(width=1000), batch_size=100, shuffle=True)
    process = psutil.Process()

    def run(epochs: int) -> int:
        for epoch in range(epochs):
            for batch in loader:
                assert batch.x.shape[1] == 1000
                if epoch % 3 == 0:
                    break
        return process.memory_info().rss

    warm = run(50)
    grown = run(1000) - warm
    assert own_threads() == []
    assert grown < 16 << 20, f"{grown} bytes in 1000 epochs of batches of 1.2 MB"


def test_peak_memory_is_below_four_batches_at_a_window_of_eight(
    tmp_path: Path, run_forked: Callable[..., Any]
) -> None:
    script = """
import resource, sys, torch, gnnsys
from torch_geometric.data import Data
draw = torch.Generator().manual_seed(0)
nodes = 100_000
data = Data(x=torch.randn(nodes, 256, generator=draw), num_nodes=nodes,
            edge_index=torch.randint(nodes, (2, 1_000_000), generator=draw))
loader = gnnsys.NeighborLoader(data, [10, 5], batch_size=1024, window=8, threads=2)
small = gnnsys.NeighborLoader(data, [1], batch_size=8, window=8, threads=2)
next(iter(small))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
size_of = lambda batch: sum(
    v.numel() * v.element_size() for v in batch.to_dict().values() if isinstance(v, torch.Tensor))
before, size = peak(), 0
for number, batch in zip(range(40), loader):
    size = max(size, size_of(batch))
print((peak() - before) / size, size)
"""
    done = run_forked(script, tmp_path)
    assert done.returncode == 0, done.stderr
    batches, size = (float(number) for number in done.stdout.split())
    assert size > 40e6
    assert batches < 4


def test_transform_runs_in_the_consumers_thread_unless_it_is_asked_to_run_ahead() -> None:
    def note(batch: Data) -> Data:
        batch.thread = threading.current_thread().name
        return batch

    def run(**options: Any) -> set[str]:
        return {batch.thread for batch in loader_of(make_data(), transform=note, **options)}

    here = threading.current_thread().name
    assert run() == run(filter_per_worker=False) == run(num_workers=2) == {here}
    assert run(filter_per_worker=True) == {"gnnsys-fetch_0"}
    assert run(filter_per_worker=True, window=0) == {here}


def test_a_transform_may_use_the_global_random_state() -> None:
    def jitter(batch: Data) -> Data:
        batch.noise = torch.rand(3)
        return batch

    def run(**options: Any) -> list[list[float]]:
        torch.manual_seed(7)
        return [b.noise.tolist() for b in loader_of(make_data(), transform=jitter, **options)]

    assert run() == run(window=0) == run(window=9, threads=1)


def test_transform_sampler_output_changes_what_is_gathered() -> None:
    def keep_seeds(out: SamplerOutput) -> SamplerOutput:
        seeds = out.num_sampled_nodes[0]
        return SamplerOutput(
            out.node[:seeds], out.row[:0], out.col[:0], out.edge[:0], metadata=out.metadata
        )

    data = make_data()
    for window in (0, 4):
        loader = loader_of(data, transform_sampler_output=keep_seeds, window=window)
        for number, batch in enumerate(loader):
            assert batch.n_id.tolist() == list(range(20 * number, 20 * number + 20))
            assert torch.equal(batch.x, data.x[batch.n_id])
            assert batch.num_edges == 0


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("stage", ["transform", "transform_sampler_output", "seed"])
def test_an_error_comes_at_its_batch_says_which_and_ends_the_epoch(window: int, stage: str) -> None:
    data = make_data()
    calls = []

    def fail_third(value: Any) -> Any:
        calls.append(value)
        if len(calls) == 3:
            raise ZeroDivisionError("third")
        return value

    seeds = torch.arange(NODES)
    if stage == "seed":
        seeds[55] = NODES + 5
        options: dict[str, Any] = {}
    else:
        options = {stage: fail_third}
    batches = iter(loader_of(data, input_nodes=seeds, window=window, **options))
    next(batches), next(batches)
    kind = gnnsys.errors.ArgumentError if stage == "seed" else ZeroDivisionError
    says = {"seed": "batch 2 of epoch 0, sampling: .*305", "transform": "^third$"}
    with pytest.raises(kind, match=says.get(stage, "batch 2 of epoch 0, sampling: third")):
        next(batches)
    assert list(batches) == []
    assert own_threads() == []


def test_broken_off_and_abandoned_epochs_leave_no_thread() -> None:
    loader = loader_of(make_data())
    for _ in loader:
        break
    abandoned = [iter(loader) for _ in range(3)]
    next(abandoned[0])
    assert own_threads()
    del abandoned
    assert own_threads() == []


def test_several_iterators_of_one_loader_are_epochs_of_their_own() -> None:
    loader = loader_of(make_data(), shuffle=True)
    expected = [[batch.n_id.tolist() for batch in loader] for _ in range(2)]
    loader.set_epoch(0)
    pairs = list(zip(loader, loader, strict=True))
    assert [[pair[i].n_id.tolist() for pair in pairs] for i in range(2)] == expected


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_iterates_while_its_parent_does() -> None:
    loader = loader_of(make_data())
    expected = [batch.n_id.tolist() for batch in loader]
    loader.set_epoch(0)
    batches = iter(loader)
    found = [next(batches).n_id.tolist()]
    child = os.fork()
    if child == 0:
        try:
            loader.set_epoch(0)
            os._exit(0 if [batch.n_id.tolist() for batch in loader] == expected else 1)
        except BaseException:
            os._exit(2)
    deadline = time.monotonic() + 30
    done, status = 0, 0
    while not done and time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    if not done:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert done, "the child hangs"
    assert os.waitstatus_to_exitcode(status) == 0
    assert found + [batch.n_id.tolist() for batch in batches] == expected


def test_num_workers_is_said_once_to_be_threads(caplog: pytest.LogCaptureFixture) -> None:
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for workers in (2, 0, 100):
            list(loader_of(make_data(), num_workers=workers, worker_init_fn=pytest.fail))
    assert [record.message for record in caplog.records if "num_workers" in record.message] != []
    assert len(caplog.records) == 1


# Stores that are told ahead -----------------------------------------------------------------------


class AheadStore(HostStore):
    """Host memory that holds its callers to the order of announced batches."""

    lookahead = 0
    world_size = 1

    def __init__(self, source: Tensor, fails_at: int = -1, error: Exception | None = None) -> None:
        super().__init__(source)
        self.waiting: list[tuple[int, Tensor]] = []  # tickets that were given and not redeemed
        self.given = 0
        self.most = 0
        self.retracted: list[int] = []
        self.finished_after: list[int] = []  # how many were given
        self.fails_at = fails_at
        self.error = error or OSError(5, "the disk is gone")

    def announce(self, ids: Tensor, owner: Any = None) -> int:
        assert owner is not None
        self.given += 1
        self.waiting.append((self.given, ids.clone()))
        self.most = max(self.most, len(self.waiting))
        return self.given

    def gather(
        self, ids: Tensor, out: Tensor | None = None, *, ticket: int | None = None
    ) -> Tensor:
        if ticket is not None:
            if ticket == self.fails_at:
                raise self.error
            due, announced = self.waiting.pop(0)
            assert due == ticket
            assert torch.equal(ids, announced)
        return super().gather(ids, out)

    def finish(self, owner: Any = None) -> None:
        assert owner is not None
        self.finished_after.append(self.given)

    def end(self, owner: Any = None) -> None:
        assert owner is not None
        self.retracted += [due for due, _ in self.waiting[:1]]
        self.waiting = []


def unify(store: AheadStore) -> gnnsys.UnifiedTensor:
    return gnnsys.UnifiedTensor(store)


@pytest.mark.parametrize("window", [0, 1, 5])
def test_an_announced_store_is_told_each_batch_in_order_and_asked_for_it(window: int) -> None:
    data = make_data()
    store = AheadStore(data.x)
    ahead = Data(x=unify(store), edge_index=data.edge_index)
    for batch in loader_of(ahead, window=window, shuffle=True):
        assert type(batch.x) is Tensor
        assert torch.equal(batch.x, data.x[batch.n_id])
    assert store.given == 15
    assert store.finished_after in ([], [15])  # the iteration may end before
    assert store.waiting == store.retracted == []
    assert 1 <= store.most <= max(1, window)


@pytest.mark.parametrize("window", [1, 5])
def test_announced_batches_are_retracted_when_the_epoch_is_broken_off(window: int) -> None:
    data = make_data()
    store = AheadStore(data.x)
    loader = loader_of(Data(x=unify(store), edge_index=data.edge_index), window=window)
    for _ in range(3):
        for number, _ in enumerate(loader):
            if number == 4:
                break
        assert store.waiting == []
    assert len(store.retracted) <= 3
    assert torch.equal(loader([5, 7]).x[:2], data.x[[5, 7]])  # without a ticket


@pytest.mark.parametrize("window", [0, 5])
def test_a_store_that_fails_ends_the_epoch_and_keeps_no_ticket(window: int) -> None:
    data = make_data()
    store, other = AheadStore(data.x, fails_at=4), AheadStore(data.x * 2)
    ahead = Data(x=unify(store), edge_index=data.edge_index, z=unify(other))
    batches = iter(loader_of(ahead, window=window))
    for _ in range(3):
        next(batches)
    with pytest.raises(OSError, match=r"batch 3 of epoch 0, fetching: .*the disk is gone"):
        next(batches)
    assert store.waiting == other.waiting == []
    assert store.retracted == [4]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(5, "the disk is gone", "x.npy"), "the disk is gone: 'x.npy'$"),
        (read_error("x.npy", 7, 5), r"x\.npy: cannot be read at byte 7 \(Input/output error\);"),
        (gnnsys.errors.ResourceError("no thread left"), "no thread left$"),
        (MemoryError("no room"), "no room$"),
    ],
)
def test_an_error_of_a_store_keeps_its_kind_number_and_text(error: Exception, says: str) -> None:
    data = make_data()
    ahead = Data(x=unify(AheadStore(data.x, 2, error)), edge_index=data.edge_index)
    batches = iter(loader_of(ahead, window=3))
    next(batches)
    with pytest.raises(type(error), match=f"batch 1 of epoch 0, fetching: {says}") as caught:
        next(batches)
    assert getattr(caught.value, "errno", None) == getattr(error, "errno", None)
    assert "None" not in str(caught.value)


def test_a_transform_of_the_sampler_output_is_announced_as_it_left_it() -> None:
    data = make_data()
    store = AheadStore(data.x)

    def drop_neighbours(out: SamplerOutput) -> SamplerOutput:
        empty = out.row[:0]
        return SamplerOutput(out.node[:20], empty, empty, empty, metadata=out.metadata)

    ahead = Data(x=unify(store), edge_index=data.edge_index)
    for batch in loader_of(ahead, transform_sampler_output=drop_neighbours):
        assert torch.equal(batch.x, data.x[batch.n_id])
        assert batch.num_nodes == 20


def test_node_types_and_feature_stores_are_announced_too() -> None:
    draw = torch.Generator().manual_seed(2)
    paper, author = torch.randn(60, 3, generator=draw), torch.randn(40, 5, generator=draw)
    writes = torch.stack([torch.randint(40, (200,), generator=draw), torch.arange(200) % 60])
    data = HeteroData()
    data["paper"].x, data["author"].x = unify(AheadStore(paper)), unify(AheadStore(author))
    data["paper"].num_nodes, data["author"].num_nodes = 60, 40
    data["author", "writes", "paper"].edge_index = writes
    data["paper", "to", "author"].edge_index = writes.flip(0)
    stores = [data["paper"].x.store, data["author"].x.store]
    loader = loader_of(data, input_nodes="paper", num_neighbors=[2, 2])
    for batch in loader:
        assert torch.equal(batch["paper"].x, paper[batch["paper"].n_id])
        assert torch.equal(batch["author"].x, author[batch["author"].n_id])
    assert [store.given for store in stores] == [3, 3]
    assert [store.waiting for store in stores] == [[], []]

    features = gnnsys.FeatureStore()
    features["paper", "x", None] = unify(AheadStore(paper))
    features["author", "x", None] = author
    for batch in loader_of((features, data), input_nodes="paper", num_neighbors=[2, 2]):
        assert torch.equal(batch["paper"].x, paper[batch["paper"].n_id])
        assert torch.equal(batch["author"].x, author[batch["author"].n_id])
    told = features.table("paper", "x").store
    assert (told.given, told.waiting) == (3, [])


def test_a_loader_under_way_does_not_keep_the_process_from_ending(
    tmp_path: Path, run_forked: Callable[..., Any]
) -> None:
    script = (
        "import torch, gnnsys\n"
        "from torch_geometric.data import Data\n"
        "data = Data(x=torch.eye(500), edge_index=torch.randint(500, (2, 5000)))\n"
        "batches = iter(gnnsys.NeighborLoader(data, [5, 5], batch_size=5))\n"
        "print(next(batches).batch_size)\n"
    )
    done = run_forked(script, tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "5\n")


def test_a_batch_keeps_its_rows_after_the_loader_went_on() -> None:
    data = make_data(width=2000)
    loader = loader_of(data)
    kept = list(loader)
    del loader
    gc.collect()
    for batch in kept:
        assert torch.equal(batch.x, data.x[batch.n_id])

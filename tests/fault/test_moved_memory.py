"""Memory that moves: torch frees a tensor's when it is sent to a process, shared or replaced.

Here small: tests/fault/loader_stress.py does the same to a thousand loaders under AddressSanitizer.
"""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.loader import NodeLoader
from torch_geometric.testing import MyGraphStore

import gnnsys
from gnnsys._core import CachePlanner, Sampler
from gnnsys.cache.store import CachedStore
from gnnsys.errors import ArgumentError
from gnnsys.loaders import CSC
from gnnsys.loaders.lookahead import stages_paused
from gnnsys.memory import FileStore, HostStore

# Large enough for the C library to give the memory of each array back to the kernel at once: who
# reads it afterwards is killed.
NODES, EDGES = 100_000, 400_000


@pytest.fixture(scope="module")
def edges() -> Tensor:
    return torch.randint(NODES, (2, EDGES), generator=torch.Generator().manual_seed(0))


def send(value: Any) -> Any:
    """As torch.multiprocessing sends it to another process."""
    return ForkingPickler.loads(ForkingPickler.dumps(value))


def scrub() -> None:
    """Fills memory that was freed with other things."""
    gc.collect()
    for size in (NODES, EDGES, 2 * EDGES):
        torch.full((size,), -1, dtype=torch.int64)


def typed_data(edges: Tensor) -> HeteroData:
    data = HeteroData()
    data["a"].num_nodes = data["b"].num_nodes = NODES
    data["a", "to", "b"].edge_index = edges
    data["b", "to", "a"].edge_index = edges.flip(0)
    return data


SAMPLERS: dict[str, Callable[[Tensor], gnnsys.NeighborSampler]] = {
    "plain": lambda edges: gnnsys.NeighborSampler(Data(edge_index=edges, num_nodes=NODES), [3, 3]),
    "weighted": lambda edges: gnnsys.NeighborSampler(
        Data(edge_index=edges, num_nodes=NODES, w=torch.rand(EDGES)), [3, 3], weight_attr="w"
    ),
    "times of nodes": lambda edges: gnnsys.NeighborSampler(
        Data(edge_index=edges, num_nodes=NODES, t=torch.arange(NODES)), [3, 3], time_attr="t"
    ),
    "times of edges": lambda edges: gnnsys.NeighborSampler(
        Data(edge_index=edges, num_nodes=NODES, t=torch.arange(EDGES)), [3, 3], time_attr="t"
    ),
    "induced": lambda edges: gnnsys.NeighborSampler(
        Data(edge_index=edges, num_nodes=NODES), [3, 3], subgraph_type="induced"
    ),
    "labor": lambda edges: gnnsys.NeighborSampler(
        Data(edge_index=edges, num_nodes=NODES), [3, 3], sampling="labor"
    ),
    "backward": lambda edges: gnnsys.NeighborSampler(
        Data(edge_index=edges, num_nodes=NODES), [3, 3], sample_direction="backward"
    ),
    "typed": lambda edges: gnnsys.NeighborSampler(typed_data(edges), [3, 3]),
}


def sample(sampler: gnnsys.NeighborSampler) -> list[Tensor]:
    seeds = torch.arange(0, NODES, NODES // 50)
    if sampler.is_hetero:
        out = sampler.sample({"b": seeds}, group=3)
        parts = [out.node, out.row, out.col, out.edge]
        return [value for part in parts for value in part.values()]
    out = sampler._sample(seeds, torch.full_like(seeds, NODES), group=3)
    return [out.node, out.row, out.col, out.edge]


def equal(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_sampler_that_was_sent_away_samples_what_it_did(kind: str, edges: Tensor) -> None:
    sampler = SAMPLERS[kind](edges)
    expected = sample(sampler)
    for _ in range(2):
        other = send(sampler)
        scrub()
        assert equal(sample(sampler), expected)
        assert equal(sample(other), expected)
        assert all(array.is_shared() for array in sampler._typed_graph.arrays())


def test_processes_have_one_copy_of_a_graph_in_common(edges: Tensor) -> None:
    sampler = SAMPLERS["plain"](edges)
    other, another = send(sampler), send(sampler)
    other.graph.indices[0] = 7
    assert sampler.graph.indices[0] == another.graph.indices[0] == 7


def test_a_graph_that_was_sent_away_is_read_where_it_is_from_then_on(edges: Tensor) -> None:
    sampler = SAMPLERS["plain"](edges)
    before = sampler._native.get()
    assert sampler._native.get() is before
    send(sampler)
    assert sampler._native.get() is not before  # which keeps the first memory


def csc_of(edges: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    order = edges[1].argsort(stable=True)
    indptr = torch.zeros(NODES + 1, dtype=torch.int64)
    indptr[1:] = edges[1].bincount(minlength=NODES).cumsum(0)
    return indptr, edges[0][order], order


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.share_memory_(),
        lambda x: x.untyped_storage().share_memory_(),
        lambda x: send(x),
        lambda x: x.set_(torch.zeros(1, dtype=x.dtype)),
        lambda x: setattr(x, "data", torch.zeros(1, dtype=x.dtype)),
        lambda x: x.resize_(1),
    ],
    ids=["share", "share storage", "send", "set", "data", "shrink"],
)
@pytest.mark.parametrize("wide", [False, True])
def test_arrays_of_a_graph_may_move_or_be_replaced(
    change: Callable[[Tensor], Any], wide: bool, edges: Tensor
) -> None:
    indptr, indices, order = csc_of(edges)
    indices = indices if wide else indices.int()
    plain = gnnsys.NeighborSampler(CSC(indptr, indices, order), [3, 3])
    typed = gnnsys.NeighborSampler(CSC(indptr, indices, order), [3, 3], sampling="labor")
    expected = sample(plain), sample(typed)
    for array in (indptr, indices, order):
        change(array)
    scrub()
    assert equal(sample(plain), expected[0])
    assert equal(sample(typed), expected[1])


@pytest.mark.parametrize("attribute", ["edge_index", "t", "w"])
def test_what_a_user_does_to_their_own_tensors_changes_no_sample(
    attribute: str, edges: Tensor
) -> None:
    data = Data(
        edge_index=edges.clone(), num_nodes=NODES, t=torch.arange(NODES), w=torch.rand(EDGES)
    )
    samplers = [
        gnnsys.NeighborSampler(data, [3, 3], time_attr="t"),
        gnnsys.NeighborSampler(data, [3, 3], weight_attr="w"),
    ]
    expected = [sample(sampler) for sampler in samplers]
    data[attribute].share_memory_()
    data[attribute].zero_()
    scrub()
    assert equal(sample(samplers[0]), expected[0])
    assert equal(sample(samplers[1]), expected[1])


def test_compressed_edges_of_a_store_may_move(edges: Tensor) -> None:
    indptr, indices, _ = csc_of(edges)
    graph = MyGraphStore()
    graph.put_edge_index((indices, indptr), edge_type=None, layout="csc", size=(NODES, NODES))
    sampler = gnnsys.NeighborSampler((gnnsys.FeatureStore(), graph), [3, 3])
    expected = sample(sampler)
    for array in (indptr, indices):
        array.share_memory_()
    scrub()
    assert equal(sample(sampler), expected)


# Loaders ------------------------------------------------------------------------------------------


def loader_of(edges: Tensor, **options: Any) -> gnnsys.NeighborLoader:
    x = torch.arange(NODES * 4.0).view(NODES, 4)  # more than a mebibyte: gathered in C++
    data = Data(x=x, edge_index=edges, y=torch.arange(NODES))
    options = {"num_neighbors": [4, 3], "batch_size": 500, "threads": 2, **options}
    return gnnsys.NeighborLoader(data, **options)


def check(batch: Data, edges: Tensor) -> None:
    assert torch.equal(batch.n_id[batch.edge_index], edges[:, batch.e_id])
    assert torch.equal(batch.x, torch.arange(NODES * 4.0).view(NODES, 4)[batch.n_id])
    assert torch.equal(batch.y, batch.n_id)


@pytest.mark.parametrize("window", [0, 4])
def test_a_loader_may_be_sent_away_in_the_middle_of_an_epoch(window: int, edges: Tensor) -> None:
    loader = loader_of(edges, window=window)
    expected = [batch.n_id for batch, _ in zip(loader, range(6), strict=False)]
    loader.set_epoch(0)
    batches = iter(loader)
    for number in range(6):
        other = send(loader)
        scrub()
        batch = next(batches)
        check(batch, edges)
        assert torch.equal(batch.n_id, expected[number])
        other.set_epoch(0)
        assert torch.equal(next(iter(other)).n_id, expected[0])


def test_threads_may_send_a_loader_while_others_iterate(edges: Tensor) -> None:
    loader = loader_of(edges)
    stop, failures = threading.Event(), []

    def send_again_and_again() -> None:
        while not stop.is_set():
            try:
                send(copy.deepcopy(loader))
                send(loader)
            except Exception as error:
                failures.append(error)

    thread = threading.Thread(target=send_again_and_again)
    thread.start()
    try:
        for batch, _ in zip(loader, range(40), strict=False):
            check(batch, edges)
    finally:
        stop.set()
        thread.join()
    assert not failures


_SPAWN = """
    import torch
    import torch.multiprocessing as mp
    from torch_geometric.data import Data
    import gnnsys

    def work(rank, loader, found):
        found.put(next(iter(loader)).n_id.tolist())

    if __name__ == "__main__":
        edges = torch.randint(2_000_000, (2, 4_000_000))
        data = Data(edge_index=edges, num_nodes=2_000_000)
        loader = gnnsys.NeighborLoader(data, [3, 3], batch_size=64)
        expected = next(iter(loader)).n_id.tolist()
        loader.set_epoch(0)
        found = mp.get_context("spawn").SimpleQueue()
        mp.spawn(work, args=(loader, found), nprocs=1)
        assert found.get() == expected
        assert next(iter(loader)).n_id.tolist() == expected
"""


def test_a_spawned_process_and_its_parent_read_the_same_batches(tmp_path: Path) -> None:
    (tmp_path / "spawn.py").write_text(dedent(_SPAWN))  # a spawned process imports it again
    done = subprocess.run(
        [sys.executable, "spawn.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_stock_loader_with_workers_shares_the_samplers_memory(edges: Tensor) -> None:
    data = Data(edge_index=edges, num_nodes=NODES)
    sampler = gnnsys.NeighborSampler(data, [3], share_memory=True)
    plain = gnnsys.NeighborSampler(data, [3])
    assert all(array.is_shared() for array in sampler._typed_graph.arrays())
    options = {"batch_size": 1000, "input_nodes": torch.arange(4000)}
    loader = NodeLoader(data, sampler, num_workers=2, **options)
    for batch, expected in zip(loader, NodeLoader(data, plain, **options), strict=True):
        assert torch.equal(batch.e_id, expected.e_id)


def test_tensors_move_only_while_no_batch_is_made(edges: Tensor) -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold(out: Any) -> Any:
        entered.set()
        leave.wait(20)
        return out

    loader = loader_of(edges, transform_sampler_output=hold)
    batches = iter(loader)
    consumer = threading.Thread(target=next, args=(batches,))
    consumer.start()
    assert entered.wait(20)
    paused = threading.Event()

    def pause() -> None:
        with stages_paused():
            paused.set()

    mover = threading.Thread(target=pause)
    mover.start()
    assert not paused.wait(0.2)
    leave.set()
    assert paused.wait(20)
    for thread in (mover, consumer):
        thread.join()
    batches.close()


# Rows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.share_memory_(),
        lambda x: send(x),
        lambda x: x.set_(torch.zeros(2, 3)),
        lambda x: setattr(x, "data", torch.zeros(2, 3)),
        lambda x: x.resize_(5, 3),
        lambda x: x.resize_(2 * NODES, 3),
    ],
    ids=["share", "send", "set", "data", "shrink", "grow"],
)
def test_a_store_reads_the_rows_that_it_was_given(change: Callable[[Tensor], Any]) -> None:
    x = torch.arange(NODES * 3.0).view(NODES, 3)
    expected = x.clone()
    store = HostStore(x)
    change(x)
    scrub()
    ids = torch.randint(NODES, (1000,))
    assert torch.equal(store.gather(ids), expected[ids])


def test_a_store_whose_memory_was_taken_away_says_so() -> None:
    x = torch.arange(NODES * 3.0).view(NODES, 3)
    store = HostStore(x)
    x.untyped_storage().resize_(0)
    with pytest.raises(ArgumentError, match="storage has 0 bytes left of the 1200000"):
        store.gather(torch.tensor([1]))
    x.untyped_storage().resize_(1_200_000)
    assert store.gather(torch.tensor([1])).shape == (1, 3)


@pytest.mark.parametrize("change", ["set_", "data"])
def test_a_loader_reads_features_anew_in_the_next_epoch(change: str, edges: Tensor) -> None:
    loader = loader_of(edges)
    x = loader.data.x
    next(iter(loader))
    replaced = torch.arange(NODES * 2.0).view(NODES, 2)
    if change == "set_":
        x.set_(replaced)
    else:
        x.data = replaced
    batch = next(iter(loader))
    assert torch.equal(batch.x, replaced[batch.n_id])


# Native objects -----------------------------------------------------------------------------------


def test_a_native_sampler_holds_what_the_conversion_of_an_argument_made(edges: Tensor) -> None:
    indptr, indices, _ = (array.numpy() for array in csc_of(edges))
    seeds = np.arange(100)

    def made(indptr: np.ndarray, indices: np.ndarray) -> Sampler:
        return Sampler([NODES], [(0, 0, indptr, indices)], [None], [None], [None])

    def batch(sampler: Sampler) -> list[np.ndarray]:
        out = sampler.sample([(0, seeds, None)], [[3]], False, False, False, False, 0, 0, 0)
        return [out[0][0], out[2][0], out[3][0]]

    expected = batch(made(indptr, indices))
    # Neither is what the constructor takes as it is: both step over entries.
    sampler = made(np.repeat(indptr, 2)[::2], np.repeat(indices, 2)[::2])
    scrub()
    for found, value in zip(batch(sampler), expected, strict=True):
        assert np.array_equal(found, value)


def test_a_planner_holds_its_scores() -> None:
    scores = np.arange(NODES, dtype=np.uint16)

    def plan(values: np.ndarray) -> list[int]:
        planner = CachePlanner(NODES, 100, "static", 4, values, 0, True)
        del values
        scrub()
        return planner.prefilled.tolist()

    assert plan(np.repeat(scores, 2)[::2]) == plan(scores)


def test_scores_of_a_cache_may_move(tmp_path: Any) -> None:
    np.save(tmp_path / "x.npy", np.zeros((NODES, 2), np.float32))
    scores = torch.arange(NODES).to(torch.uint16)
    expected = scores.numpy().copy()
    store = CachedStore(FileStore(tmp_path / "x.npy"), cache=10, scores=scores)
    scores.share_memory_().zero_()
    scrub()
    assert np.array_equal(store._options["scores"], expected)

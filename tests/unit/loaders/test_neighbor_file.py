"""Neighbours read of a file: the batches of a graph in memory, whatever stays there; and faults."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gnnsys.errors import ArgumentError, FileFormatError, StorageError, UnsupportedError
from gnnsys.loaders import CSC, NeighborSampler
from gnnsys.system.extension import core

NODES, EDGES = 3000, 40_000
PARTS = ("node", "row", "col", "edge")


@pytest.fixture(scope="module", params=[np.int32, np.int64], ids=["int32", "int64"])
def graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CSC whose degrees differ much, some of them 0, the last block not full."""
    rng = np.random.default_rng(5)
    ends = np.sort((rng.random(EDGES) ** 3 * NODES).astype(np.int64))
    folder = tmp_path_factory.mktemp("graph")
    np.save(folder / "indptr.npy", np.searchsorted(ends, np.arange(NODES + 1)))
    np.save(folder / "indices.npy", rng.integers(0, NODES, EDGES).astype(request.param))
    return folder


def opened(folder: Path, storage: Any = "auto", kept: Any = ()) -> CSC:
    """The graph, read of its file, with blocks of neighbours in memory."""
    found = CSC.from_files(folder / "indptr.npy", folder / "indices.npy")
    assert found.file is not None
    found.file.read_past_cache(storage)
    found.file.keep(np.array(kept, np.int64))
    return found


def in_memory(folder: Path) -> CSC:
    arrays = (torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("indptr", "indices"))
    return CSC(*arrays)


@pytest.mark.parametrize("storage", ["auto", "pread"])
@pytest.mark.parametrize(
    ("fanouts", "options"),
    [
        ([7, 4], {}),
        ([5, -1], {}),
        ([5, 3], {"replace": True}),
        ([5, 3], {"disjoint": True}),
        ([6, 4], {"sampling": "labor"}),
        ([6, 4], {"sampling": "labor", "disjoint": True}),
        ([5, 3], {"subgraph_type": "induced"}),
    ],
    ids=lambda value: "-".join(map(str, value)) or "uniform",
)
def test_batches_are_those_of_a_graph_in_memory(
    graph: Path, storage: str, fanouts: list[int], options: dict[str, Any]
) -> None:
    blocks = opened(graph).file.native.blocks
    seeds = torch.randperm(NODES, generator=torch.Generator().manual_seed(3))[:700]
    expected = NeighborSampler(in_memory(graph), fanouts, threads=1, **options)
    for threads, kept in ((1, []), (3, range(0, blocks, 2)), (2, range(blocks))):
        sampler = NeighborSampler(opened(graph, storage, kept), fanouts, threads=threads, **options)
        for group in range(2):
            batch, wanted = sampler.sample(seeds, group), expected.sample(seeds, group)
            for part in PARTS:
                assert torch.equal(getattr(batch, part), getattr(wanted, part)), part


def test_weighted_batches_are_those_of_a_graph_in_memory(graph: Path) -> None:
    weight = np.random.default_rng(1).random(EDGES)
    batches = []
    for found in (in_memory(graph), opened(graph, kept=[1, 2])):
        indptr, indices = found.indptr.numpy(), found.indices.numpy()
        files = [found.file.native] if found.file else []
        sampler = core.Sampler(
            [NODES], [(0, 0, indptr, indices)], [None], [None], [weight], files=files
        )
        seeds = [(0, np.arange(100, 500), None)]
        batches.append(sampler.sample(seeds, [[4, 3]], False, False, False, False, 1, 2, 3))
    assert all(np.array_equal(a, b) for a, b in zip(batches[0][0], batches[1][0], strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(batches[0][3], batches[1][3], strict=True))


def test_several_samplers_read_one_file_at_once(graph: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    found, plain = opened(graph, kept=[0, 3, 4]), in_memory(graph)
    samplers = [NeighborSampler(found, [6, 5], threads=2, seed=s) for s in range(2)]
    expected = [NeighborSampler(plain, [6, 5], threads=1, seed=s) for s in range(2)]
    seeds = torch.arange(600)

    def draw(number: int) -> bool:
        batch = samplers[number % 2].sample(seeds, number)
        return torch.equal(batch.node, expected[number % 2].sample(seeds, number).node)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(draw, range(24)))


def test_what_is_served_is_counted_by_tier(graph: Path) -> None:
    found = opened(graph, kept=[0])
    sampler = NeighborSampler(found, [-1])
    per_block = found.file.per_block
    batch = sampler.sample(torch.arange(NODES), 0)
    counts = found.file.counts()
    assert counts["topology_kept"] == per_block
    assert counts["topology_read"] == EDGES - per_block == len(batch.row) - per_block
    pages = -(-(found.file.nbytes + 128) // 4096)  # of which the block in memory spares one
    assert counts["topology_pages"] in (pages - 1, pages)
    assert counts["topology_requests"] >= 1
    assert in_memory(graph).file is None
    assert CSC.from_files(graph / "indptr.npy", graph / "indices.npy").file.counts() == {}


def test_blocks_weigh_what_is_drawn_of_their_nodes() -> None:
    indptr = np.array([0, 3, 3, 11, 12])
    rank = np.array([65535, 9, 0, 9999], np.uint16)
    for importance, use in (
        (None, np.sqrt(np.diff(indptr))),
        (rank, (rank + 1.0) ** 4),
    ):
        drawn = use * np.minimum(np.diff(indptr), 2) / np.maximum(np.diff(indptr), 1)
        of_edges = np.repeat(drawn, np.diff(indptr))
        weight = np.empty(3)
        core.weigh_blocks(indptr, importance, 2, 4, weight)
        np.testing.assert_allclose(weight, of_edges.reshape(3, 4).sum(1))


@pytest.fixture
def copy(graph: Path, tmp_path: Path) -> Path:
    for name in ("indptr.npy", "indices.npy"):
        (tmp_path / name).write_bytes((graph / name).read_bytes())
    return tmp_path


@pytest.mark.parametrize("mode", ["mmap", "mmap-random", "uring", "pread"])
def test_a_file_that_shrinks_is_one_error_and_ends_nothing(copy: Path, mode: str) -> None:
    found = CSC.from_files(copy / "indptr.npy", copy / "indices.npy")
    if mode == "mmap-random":
        found.file.read_at_random()
    elif mode != "mmap":
        found = opened(copy, "auto" if mode == "uring" else mode)
    sampler = NeighborSampler(found, [-1])
    os.truncate(copy / "indices.npy", 20_000)
    with pytest.raises(FileFormatError, match=r"indices\.npy: truncated: .* the file at 20000"):
        sampler.sample(torch.arange(NODES), 0)


@pytest.mark.parametrize("sampling", ["uniform", "labor"])
def test_a_neighbour_that_is_no_node_is_refused(copy: Path, sampling: Any) -> None:
    indices = np.load(copy / "indices.npy", mmap_mode="r+")
    indices[12_345] = NODES + 7
    indices.flush()
    sampler = NeighborSampler(opened(copy), [-1], sampling=sampling)
    with pytest.raises(ArgumentError, match=f"indices hold the node {NODES + 7} at position 12345"):
        sampler.sample(torch.arange(NODES), 0)


def test_a_disk_that_fails_is_one_error_that_names_the_place(graph: Path) -> None:
    # A folder's handle: its reads fail as those of a broken disk do, with another errno.
    size = len(np.load(graph / "indices.npy", mmap_mode="r"))
    wide = np.load(graph / "indices.npy", mmap_mode="r").dtype == np.int64
    found = in_memory(graph)
    handle = os.open(graph, os.O_RDONLY)
    try:
        file = core.NeighborFile("graph/indices.npy", handle, size, 0, wide, False)
    finally:
        os.close(handle)
    sampler = core.Sampler(
        [NODES], [(0, 0, found.indptr.numpy(), found.indices.numpy())], [None], [None], [None],
        files=[file],
    )  # fmt: skip
    with pytest.raises(StorageError, match=r"graph/indices\.npy: cannot be read at byte 0 \(Is a"):
        sampler.sample([(0, np.arange(NODES), None)], [[-1]], *[False] * 4, 0, 0, 0)
    with pytest.raises(StorageError, match="cannot be read at byte"):
        file.keep(np.array([1, 2]))


def test_arguments_that_do_not_fit_are_refused(graph: Path, monkeypatch: Any) -> None:
    found = opened(graph)
    blocks = found.file.native.blocks
    for wrong in ([2, 1], [0, 0], [-1], [blocks]):
        with pytest.raises(ArgumentError, match="do not ascend strictly within the file"):
            found.file.native.keep(np.array(wrong, np.int64))
    with pytest.raises(ArgumentError, match="neighbours of another number or type than indices"):
        core.Sampler(
            [NODES], [(0, 0, found.indptr.numpy(), np.zeros(EDGES, np.int16).astype(np.int32))],
            [None], [None], [None], files=[core.NeighborFile("f", 0, 5, 0, False, False)],
        )  # fmt: skip
    monkeypatch.setattr("gnnsys.memory.direct_rows.uring_refusal", lambda depth: "none here")
    with pytest.raises(UnsupportedError, match="'uring' cannot be used: none here"):
        found.file.read_past_cache("uring")

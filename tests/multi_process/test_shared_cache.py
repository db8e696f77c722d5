"""A cache that ranks share, as processes: its rows and counts, losses, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gnnsys.generate import generate_community

LOADERS = """
    import os
    import numpy as np
    import torch
    import torch.distributed as dist
    from torch_geometric.data import Data
    import gnnsys
    from gnnsys.errors import (
        ArgumentError, DeviceError, RankFailedError, TooLargeError, UnsupportedError,
    )
    from gnnsys.system.budget import process_budget
    from gnnsys.system.gpu import HostExecutorDevice
    from gnnsys.system.gpu.peer_memory import OUT_OF_MEMORY, HostPeerMemory

    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    rows = torch.from_numpy(np.load({path!r}))
    generator = torch.Generator().manual_seed(1)
    edge_index = torch.randint(0, len(rows), (2, 4000), generator=generator)

    def refuse(*_):
        raise DeviceError("no peer access")

    def fill(device, nbytes):
        raise DeviceError("cudaErrorMemoryAllocation", OUT_OF_MEMORY)

    def batches(x, seeds):
        return gnnsys.NeighborLoader(
            Data(x=x, edge_index=edge_index), [4, 3], input_nodes=torch.arange(seeds),
            batch_size=8, seed=2, rank=rank, world_size=world,
        )

    for how in ("shm", "exchange", "peer"):
        x = gnnsys.unified(
            {path!r}, cache=0.3, shared=how, storage="pread",
            device="simt" if how == "peer" else "cpu",
        )
        inner = batches(x, 24)
        asked = 0
        for epoch, leaves_at in enumerate((99, 2, 99)):
            for number, batch in enumerate(batches(x, 8 * (3 * world + 1))):
                assert torch.equal(batch.x, rows[batch.n_id])
                asked += len(batch.n_id)
                if number == leaves_at:
                    break
                if number == 1:  # in the middle of an epoch, as a validation
                    for batch in inner:
                        assert torch.equal(batch.x, rows[batch.n_id])
                        asked += len(batch.n_id)
        served = x.store.counters.as_dict()["rows"]
        assert sum(served.values()) >= asked  # a batch may be there that the loop has left
        assert min(served.values()) > 0 and set(served) == {{"cache", "peer", "file"}}
        if rank == 0:  # by itself
            alone = gnnsys.NeighborLoader(
                Data(x=x, edge_index=edge_index), [4], input_nodes=torch.arange(20), batch_size=8,
            )
            assert all(torch.equal(batch.x, rows[batch.n_id]) for batch in alone)
            after = x.store.counters.as_dict()["rows"]
            assert after["peer"] > served["peer"] and after["cache"] > served["cache"]
        print(how, sum(x.store.stats.as_dict()[name] for name in ("hits", "reads", "copies")))
    ids, allocate = torch.tensor([3, 599, 3]), HostExecutorDevice.peer_memory
    for kind, method in ((HostExecutorDevice, "peer_memory"), (HostPeerMemory, "open")):
        HostExecutorDevice.peer_memory = allocate
        if rank == 1:
            setattr(kind, method, refuse)
        x = gnnsys.unified({path!r}, cache=10, shared=True, device="simt")
        assert torch.equal(x.store.gather(ids, ticket=x.store.announce(ids)), rows[ids])
    try:
        gnnsys.unified({path!r}, cache=10, shared="peer", device="simt")
    except UnsupportedError as error:
        print(error)
    if rank == 1:
        HostExecutorDevice.peer_memory = fill
    try:
        gnnsys.unified({path!r}, cache=10, shared=True, device="simt")
    except (RankFailedError, TooLargeError) as error:
        print(error)
    try:
        gnnsys.unified({path!r}, cache=10 + rank, shared=True)
    except ArgumentError as error:
        print(error)
    process_budget().total = 0 if rank == 1 else None
    try:
        gnnsys.unified({path!r}, cache=10, shared=True)
    except (RankFailedError, TooLargeError) as error:
        print(error)
"""

LOSSES = """
    import bisect
    from gnnsys.config.train import TrainConfig
    from gnnsys.features.options import FeatureOptions
    from gnnsys.training.loop import run_training
    from gnnsys.training.datasets import load_dataset

    for cache, how, device, joint in (
        ("none", "auto", "cpu", False), ("0.2", "auto", "cpu", False),
        ("0.2", "exchange", "cpu", False), ("0.2", "none", "cpu", False),
        ("0.2", "peer", "simt", False), ("none", "auto", "cpu", True),
        ("0.2", "exchange", "cpu", True),
    ):
        result = run_training(
            TrainConfig(
                dataset={graph!r}, cache=cache, share_cache=how, cooperative=joint, hidden=8,
                fanouts=(4, 3), batch_size=32, seed=3, threads=1, device=device, sampler="cpu",
                epochs=2,
                victim_buffer="0" if cache == "none" else "2KB", storage="pread",
            )
        )
        print([epoch.loss for epoch in result.history], result.best_test)
        print(sorted(result.counters.as_dict()["rows"]))

    options = FeatureOptions(cache="0.2", storage="mmap")
    dataset = load_dataset({graph!r}, options=options, device="cpu", ranks=2)
    graph, scores = dataset.graph, dataset.features.store._options["scores"]
    tables = [graph.indptr, graph.indices, dataset.node_task.labels, dataset.node_task.train]
    addresses = [each.data_ptr() for each in tables] + [scores.ctypes.data]
    with open("/proc/self/maps") as maps:
        areas = [line.split() for line in maps]
    starts = [int(area[0].split("-")[0], 16) for area in areas]
    print(*(areas[bisect.bisect(starts, address) - 1][4] for address in addresses))
    print(*sorted(area[4] for area in areas if area[5:] == [{graph!r} + "/features.npy"]))
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    found = tmp_path_factory.mktemp("rows") / "x.npy"
    np.save(found, np.random.default_rng(3).standard_normal((600, 24), dtype=np.float32))
    return str(found)


def test_rows_that_other_ranks_hold_are_those_of_the_file(path: str, start_ranks) -> None:
    outcomes = start_ranks(LOADERS.format(path=path), 3).outputs()
    for rank, (status, out, errors) in enumerate(outcomes):
        assert status == 0, errors
        *ways, no_peer, full, refusal, shortage = out.splitlines()
        assert [way.split()[0] for way in ways] == ["shm", "exchange", "peer"]
        told = "rank 1 cannot read the memory of rank 0 (no peer access)"
        assert f"shared='peer': {told}; use shared='auto'" in no_peer
        for why in (told, "rank 1 cannot let others read its memory (no peer access)"):
            assert f"in host memory, not in that of GPUs, which ranks cannot share: {why}" in errors
        assert full.startswith("rank 1: " if rank != 1 else "cache: this rank's part")
        assert "(cudaErrorMemoryAllocation); give a smaller cache=" in full
        assert "rank 1 has cache 11 != 10 of rank 0" in refusal
        assert shortage.startswith("rank 1: " if rank != 1 else "cache: 10 rows")
        assert "cache: 10 rows and a victim buffer of 0 rows" in shortage


def test_losses_are_those_without_a_cache_and_tables_are_held_once(
    tmp_path: Path, start_ranks
) -> None:
    graph = str(generate_community(tmp_path / "graph", nodes=300, seed=1))
    outcomes = start_ranks(LOSSES.format(graph=graph), 2).outputs()
    for status, out, errors in outcomes:
        assert status == 0, errors
        *trained, files, features = out.splitlines()
        losses, tiers = trained[::2], trained[1::2]
        assert len(losses) == 7
        assert (len(set(losses[:5])), len(set(losses[5:]))) == (1, 1)
        assert tiers[0] == tiers[5] == "['file']"
        # Rows of joint batches are in the cache of the rank that asks for them.
        shared = [False, True, True, False, True, False, False]
        assert ["'peer'" in each for each in tiers] == shared
        assert "'cache'" in tiers[6]
        assert len(set(files.split()) - {"0"}) == 5  # of mapped files; the same on all ranks, below
        assert features
    assert outcomes[0][1] == outcomes[1][1]

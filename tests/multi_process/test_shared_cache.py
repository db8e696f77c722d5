"""A cache that ranks share, as processes: its rows and counts, losses, faults."""

from __future__ import annotations

import signal
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
    from gnnsys.errors import ArgumentError, RankFailedError, TooLargeError
    from gnnsys.system.budget import process_budget

    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    rows = torch.from_numpy(np.load({path!r}))
    generator = torch.Generator().manual_seed(1)
    edge_index = torch.randint(0, len(rows), (2, 4000), generator=generator)

    def batches(x, seeds):
        return gnnsys.NeighborLoader(
            Data(x=x, edge_index=edge_index), [4, 3], input_nodes=torch.arange(seeds),
            batch_size=8, seed=2, rank=rank, world_size=world,
        )

    for how in ("shm", "exchange"):
        x = gnnsys.unified({path!r}, cache=0.3, shared=how, storage="pread")
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
        print(how, sum(x.store.stats.as_dict()[name] for name in ("hits", "reads", "copies")))
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
    import os
    from gnnsys.config.train import TrainConfig
    from gnnsys.training.loop import run_training

    for cache, how in (("none", "auto"), ("0.2", "auto"), ("0.2", "exchange"), ("0.2", "none")):
        result = run_training(
            TrainConfig(
                dataset={graph!r}, cache=cache, share_cache=how, hidden=8, fanouts=(4, 3),
                batch_size=32, seed=3, threads=1, device="cpu", epochs=2, victim_buffer=
                "0" if cache == "none" else "2KB", storage="pread",
            )
        )
        print([epoch.loss for epoch in result.history], result.best_test)
        print(sorted(result.counters.as_dict()["rows"]))
"""

ENDLESS = """
    import torch
    import torch.distributed as dist
    from torch_geometric.data import Data
    import gnnsys
    from gnnsys.ranks import liveness

    liveness.Liveness.__init__.__defaults__ = (0.3, 4.0, 30.0)
    dist.init_process_group("gloo")
    x = gnnsys.unified({path!r}, cache=20, shared=True, storage="pread")
    data = Data(x=x, edge_index=torch.randint(0, 600, (2, 4000)))
    loader = gnnsys.NeighborLoader(
        data, [4], batch_size=8, rank=dist.get_rank(), world_size=dist.get_world_size()
    )
    for epoch in range(1 << 30):
        for batch in loader:
            pass
        if epoch == 3:
            print("gathering", flush=True)
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
        shm, exchange, refusal, shortage = out.splitlines()
        assert (shm.split()[0], exchange.split()[0]) == ("shm", "exchange")
        assert "rank 1 has cache 11 != 10 of rank 0" in refusal
        assert shortage.startswith("rank 1: " if rank != 1 else "cache: 3 rows")
        assert "cache: 3 rows and a victim buffer of 0 rows" in shortage


def test_losses_are_those_without_a_cache(tmp_path: Path, start_ranks) -> None:
    graph = str(generate_community(tmp_path / "graph", nodes=300, seed=1))
    outcomes = start_ranks(LOSSES.format(graph=graph), 2).outputs()
    for status, out, errors in outcomes:
        assert status == 0, errors
        losses, tiers = out.splitlines()[::2], out.splitlines()[1::2]
        assert len(losses) == 4
        assert len(set(losses)) == 1
        assert tiers[0] == "['file']"
        assert ["'peer'" in each for each in tiers] == [False, True, True, False]
    assert outcomes[0][1] == outcomes[1][1]


def test_a_killed_rank_ends_the_gathers_of_the_others(path: str, start_ranks) -> None:
    ranks = start_ranks(ENDLESS.format(path=path), 3)
    for process in ranks.processes:
        process.wait_for("gathering")
    ranks.processes[1].send_signal(signal.SIGKILL)
    for rank in (0, 2):
        status, _, errors = ranks.processes[rank].outcome()
        assert status == 1
        assert "RankFailedError: batch" in errors.splitlines()[-1]
        assert "rank 1 of 3 is gone or no longer answers" in errors.splitlines()[-1]

"""A cache in the memory of a GPU: the rows and the decisions of the one on the CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch

from gnnsys.cache import CachedStore
from gnnsys.memory import FileStore

ROWS, BATCHES = 400, 12

RANKS = """
    import numpy as np
    import torch
    import torch.distributed as dist
    import gnnsys

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    rows = torch.from_numpy(np.load({path!r}))
    store = gnnsys.unified({path!r}, cache=80, shared="peer", device={device!r}).store
    draw = torch.Generator().manual_seed(rank)
    batches = [torch.randint(len(rows), (100,), generator=draw) for _ in range({batches} + rank)]
    tickets = [store.announce(ids) for ids in batches]
    for ids, ticket in zip(batches, tickets):
        found = store.gather(ids, ticket=ticket)
        assert found.device.type == torch.device({torch_device!r}).type
        assert torch.equal(found.cpu(), rows[ids])
    store.end()
    assert store.counters.as_dict()["rows"]["peer"] > 0
    store.close()
"""


@pytest.mark.parametrize("columns", [1, 7, 300])
@pytest.mark.parametrize("policy", ["hybrid", "lru"])
def test_rows_and_decisions_are_those_of_the_cpu(
    gpu: Any, policy: Any, columns: int, tmp_path: Path
) -> None:
    table = np.random.default_rng(columns).standard_normal((ROWS, columns)).astype(np.float16)
    np.save(tmp_path / "rows.npy", table)
    stores = [
        CachedStore(
            FileStore(tmp_path / "rows.npy", storage="pread"),
            cache=80,
            victim_buffer=20,
            policy=policy,
            window=3,
            scores=torch.arange(ROWS),
            device=device,
        )
        for device in ("cpu", gpu.name)
    ]
    draw = torch.Generator().manual_seed(6)
    batches = [torch.randint(ROWS, (100,), generator=draw) for _ in range(BATCHES)]
    tickets = [[store.announce(ids) for ids in batches] for store in stores]
    for number, ids in enumerate(batches):
        cpu, ours = (
            store.gather(ids, ticket=given[number])
            for store, given in zip(stores, tickets, strict=True)
        )
        assert torch.equal(cpu, torch.from_numpy(table)[ids])
        assert ours.device == gpu.torch_device
        assert torch.equal(ours.cpu(), cpu)
    cpu_stats, our_stats = (store.stats.as_dict() for store in stores)
    assert our_stats | {"io_wait_seconds": 0} == cpu_stats | {"io_wait_seconds": 0}


def test_ranks_read_each_others_rows(gpu: Any, tmp_path: Path) -> None:
    path, script = tmp_path / "rows.npy", tmp_path / "ranks.py"
    np.save(path, np.random.default_rng(5).standard_normal((ROWS, 33)).astype(np.float16))
    device = {"device": gpu.name, "torch_device": str(gpu.torch_device)}
    script.write_text(dedent(RANKS.format(path=str(path), batches=BATCHES, **device)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    ran = subprocess.run([*torchrun, script], capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr

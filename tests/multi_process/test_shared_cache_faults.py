"""What goes wrong on one rank of those with one cache: all are told, soon, and nothing is left."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np

OPENED = """
    import gc, os, resource, threading, time
    import numpy as np
    import torch
    import torch.distributed as dist
    from torch_geometric.data import Data
    import gnnsys
    from gnnsys.errors import GnnsysError

    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    path = {path!r} + f"/x-{{rank}}.npy"
    rows = np.random.default_rng(3).standard_normal((600, 24), dtype=np.float32)
    np.save(path, rows)
    start, begin = threading.Thread.start, gnnsys.unified(path, cache=9, shared=True)

    def what_is_open():
        gc.collect()
        threads = [each.name for each in threading.enumerate()]
        return len(os.listdir("/proc/self/fd")), sorted(threads)

    def refuse_threads(prefix):
        def refuse(thread):
            if thread.name.startswith(prefix):
                raise RuntimeError("can't start new thread")
            start(thread)

        threading.Thread.start = refuse

    def limit(what, most):
        resource.setrlimit(what, (most, resource.getrlimit(what)[1]))

    def attempt(*break_it):
        dist.barrier()
        before = what_is_open()
        dist.barrier()
        limits = {{what: resource.getrlimit(what) for what in (FILES, BYTES)}}
        if rank == 1:
            break_it[0](*break_it[1:])
        try:
            gnnsys.unified(path, cache=20, shared=True, storage="pread")
        except (GnnsysError, OSError) as error:
            told = f"{{type(error).__name__}}: {{error}}"
        for what, most in limits.items():
            resource.setrlimit(what, most)
        threading.Thread.start = start
        dist.barrier()
        until = time.monotonic() + 5
        while (after := what_is_open()) != before:  # rank 0 has a connection of each, too
            assert time.monotonic() < until, (told, after, before)
        dist.barrier()
        print(told, flush=True)

    FILES, BYTES = resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE
    for prefix in ("", "gnnsys-hear-2", "gnnsys-owner"):
        attempt(refuse_threads, prefix)
    for more in (0, 7):
        attempt(limit, FILES, what_is_open()[0] - 1 + more)
    attempt(limit, BYTES, 4096)

    x = gnnsys.unified(path, cache=0.3, shared=True, storage="pread")
    edges = torch.randint(0, 600, (2, 4000), generator=torch.Generator().manual_seed(1))
    loader = gnnsys.NeighborLoader(
        Data(x=x, edge_index=edges), [4], batch_size=8, rank=rank, world_size=world
    )
    for batch in loader:
        assert np.array_equal(batch.x.numpy(), rows[batch.n_id])
    dist.barrier()
    if rank == 1:
        os.truncate(path, 4096)
    try:
        for batch in loader:
            pass
    except GnnsysError as error:
        print(f"{{type(error).__name__}}: {{error}}")

    np.save(path, rows)
    data = Data(x=gnnsys.unified(path, cache=0.3, shared=True), edge_index=edges)
    loader = gnnsys.NeighborLoader(data, [4], batch_size=8, rank=rank, world_size=world)
    first = threading.Event()

    def gather():
        while True:
            for batch in loader:
                first.set()

    threading.Thread(target=gather, daemon=True).start()
    assert first.wait(60)  # and the process ends
"""

ENDLESS = """
    import torch
    import torch.distributed as dist
    from torch_geometric.data import Data
    import gnnsys
    from gnnsys.ranks import liveness

    liveness.Liveness.__init__.__defaults__ = (0.3, 4.0, 30.0)
    dist.init_process_group("gloo")
    x = gnnsys.unified({path!r}, cache=20, shared={how!r}, storage="pread")
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


def test_a_rank_that_is_refused_something_ends_all_and_leaves_nothing(
    tmp_path: Path, start_ranks
) -> None:
    told = []
    for status, out, errors in start_ranks(OPENED.format(path=str(tmp_path)), 3).outputs():
        assert status == 0, errors
        told.append(out.splitlines())
    first, refused, last = told
    assert first[:-1] == last[:-1]
    threads, files, memory, read = refused[:3], refused[3:5], refused[5], refused[6]
    for text in threads:
        assert "ResourceError: [Errno 11] the system starts no more threads (gnnsys-" in text
    for text in files:
        assert "Too many open files" in text or "(ulimit -n)" in text
    assert memory.endswith(" bytes of shared memory: File too large")
    assert f"{tmp_path}/x-1.npy" in read
    for text, others in zip(refused[:6], first, strict=False):
        assert others == "RankFailedError: rank 1: " + text.partition(": ")[2]
    for others in (first[6], last[6]):
        assert f"rank 1: {tmp_path}/x-1.npy" in others


def test_ranks_that_are_killed_or_stopped_are_named_and_leave_nothing(
    tmp_path: Path, start_ranks
) -> None:
    np.save(tmp_path / "x.npy", np.ones((600, 24), np.float32))
    faults = (
        ("shm", 3, signal.SIGKILL),
        ("exchange", 3, signal.SIGKILL),
        ("auto", 2, signal.SIGSTOP),
    )
    started = []
    for how, world, number in faults:  # while those before wait for a sign of life
        ranks = start_ranks(ENDLESS.format(path=str(tmp_path / "x.npy"), how=how), world)
        for process in ranks.processes:
            process.wait_for("gathering")
        ranks.processes[1].send_signal(number)
        started.append((world, ranks))
    for world, ranks in started:
        for rank in {0, world - 1} - {1}:
            status, _, errors = ranks.processes[rank].outcome()
            assert status == 1
            assert "RankFailedError: batch" in errors.splitlines()[-1]
            assert f"rank 1 of {world} is gone or no longer answers" in errors.splitlines()[-1]
    stopped = started[-1][1].processes[1]
    stopped.send_signal(signal.SIGCONT)
    status, _, errors = stopped.outcome(20)
    assert status == 1
    assert "rank 0 of 2 is gone or no longer answers" in errors.splitlines()[-1]

"""A sampler that is refused memory says so, wherever that happens, and samples on afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHILD = """
import resource, sys
import torch
from gnnsys.loaders import CSC, NeighborSampler

def limit(headroom):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    soft = resource.RLIM_INFINITY if headroom is None else used + headroom
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

def parts(out):
    return [out.node, out.row, out.col, out.edge]

threads, options = int(sys.argv[1]), eval(sys.argv[2])
graph = CSC(torch.arange(0, 4001, 4), torch.arange(4000, dtype=torch.int32) % 1000)

def make(fanout=1024):
    return NeighborSampler(graph, [fanout], replace=True, threads=threads, **options)

seeds = torch.arange(600)
make(1).sample(seeds, group=0)  # starts the threads, which need memory of their own
sampler = make()
refused = 0
for headroom in range(0, 100 << 20, 1 << 20):
    limit(headroom)
    try:
        out = sampler.sample(seeds, group=1)
    except MemoryError:
        refused += 1
        continue
    finally:
        limit(None)
    break
expected = make().sample(seeds, group=1)
assert all(map(torch.equal, parts(out), parts(expected)))
print(refused)
"""


@pytest.mark.parametrize("options", [{}, {"disjoint": True}], ids=["uniform", "disjoint"])
@pytest.mark.parametrize("threads", [1, 2, 16])
def test_a_batch_without_memory_is_a_memory_error(threads, options):
    # One limit above the other, so that each allocation is the one that fails.
    command = [sys.executable, "-c", CHILD, str(threads), repr(options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd="/")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 3

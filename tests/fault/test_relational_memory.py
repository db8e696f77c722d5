"""A step of a relational layer in memory that PyG's layer, with a matrix for each edge, exceeds."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

# 20,000 edges with a matrix of 64 x 64 each take 312 MiB in PyG's forward.
STEPS = """
import resource
import torch
from torch_geometric.nn import RGATConv as PlainRGATConv
from gnnsys.rel import RGATConv

NODES, EDGES, RELATIONS, WIDTH = 4000, 20_000, 50, 64

def limit(headroom):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (used + headroom, hard))

def step(layer, edges):
    x = torch.ones(NODES, WIDTH).cumsum(0).sin().requires_grad_()
    layer(x, edge_index[:, :edges], edge_type[:edges]).sum().backward()
    return x.grad

torch.manual_seed(0)
edge_index = torch.randint(NODES, (2, EDGES))
edge_type = torch.randint(RELATIONS, (EDGES,))
plain = PlainRGATConv(WIDTH, WIDTH, RELATIONS, dim=1)
layer = RGATConv.from_pyg(plain)
torch.testing.assert_close(step(layer, 100), step(plain, 100), rtol=1e-4, atol=1e-4)
limit(160 << 20)
assert step(layer, EDGES).isfinite().all()
print("ours is done")
try:
    step(plain, EDGES)
except (MemoryError, RuntimeError) as error:
    print("PyG's is not:", "allocate" in str(error))
"""


def test_attention_of_relations_fits_where_that_of_pyg_does_not(
    run_forked: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = run_forked(STEPS, tmp_path)
    assert done.stdout.splitlines() == ["ours is done", "PyG's is not: True"], done.stderr

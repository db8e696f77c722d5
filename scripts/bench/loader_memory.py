"""Peak memory of gnnsys' loader beside graph and features, each time in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import BenchError
from passes import LoaderPass, PassWork, make_data
from peers import Peer, PeerError
from rmat import RmatSpec, open_rmat
from torch_geometric.data import Data
from workers.protocol import open_channel, serve

from gnnsys import NeighborLoader

__all__ = ["measure_memory", "memory_line"]


def measure_memory(folder: Path, work: PassWork, threads: int, window: int) -> dict[str, Any]:
    """How much more memory a pass over the work's batches takes than there was before it.

    The consumer lets a batch go when it gets the next.

    Args:
        folder: of the graph and its features.
        work: what to load.
        threads: of the loader.
        window: batches that the loader samples ahead.

    Returns:
        "before_bytes": resident with graph, features and the loader that has not started;
        "peak_bytes"; "largest_batch_bytes", of all tensors of the largest batch; "batches_worth",
        the difference of the first two divided by the last. Or "error".
    """
    spec = work.graph.spec
    request = {
        "job": "memory",
        "scale": spec.scale,
        "degree": spec.degree,
        "seed": spec.seed,
        "fanouts": work.fanouts,
        "batch_size": work.batch_size,
        "batches": work.batches,
        "threads": threads,
        "window": window,
    }
    settings = {"threads": threads, "fanouts": work.fanouts, "window": window}
    try:
        with Peer(Path(sys.executable), Path(__file__), [str(folder)]) as process:
            return {**settings, **process.ask(request)}
    except PeerError as error:
        return {**settings, "error": str(error)}


def memory_line(found: dict[str, Any]) -> str:
    """A result of ``measure_memory`` as a line to print."""
    threads, fanouts, window = found["threads"], found["fanouts"], found["window"]
    start = f"memory: threads {threads}, fanouts {fanouts}, window {window}: "
    if "error" in found:
        return start + f"FAILED: {found['error']}"
    beside = (found["peak_bytes"] - found["before_bytes"]) / 2**20
    largest = found["largest_batch_bytes"] / 2**20
    return start + (
        f"{found['batches_worth']:.2f} batches' worth beside graph and features "
        f"({beside:.0f} MiB; the largest batch {largest:.0f} MiB)"
    )


def _measure(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    spec = RmatSpec(scale=request["scale"], degree=request["degree"], seed=request["seed"])
    graph = open_rmat(folder, spec)
    fanouts, size, batches = (request[name] for name in ("fanouts", "batch_size", "batches"))
    work = PassWork(graph, fanouts, size, batches, rounds=1)
    threads = request["threads"]
    torch.set_num_threads(threads)
    data = make_data(graph, np.load(folder / "features.npy"), labels=None)
    loading = LoaderPass(data, work, threads, window=request["window"])
    largest = 0

    def note_size(batch: Data) -> None:
        nonlocal largest
        tensors = [value for value in batch.to_dict().values() if isinstance(value, torch.Tensor)]
        largest = max(largest, sum(tensor.numel() * tensor.element_size() for tensor in tensors))

    _load_code(data)
    _give_back_freed_memory()
    before = _read_status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    loading.run(1, note_size)
    peak = _read_status("VmHWM")
    return {
        "before_bytes": before,
        "peak_bytes": peak,
        "largest_batch_bytes": largest,
        "batches_worth": (peak - before) / largest,
    }


def _load_code(data: Data) -> None:
    """Else the first use of library code would count as memory of the loader."""
    next(iter(NeighborLoader(data, [1], input_nodes=torch.arange(8), batch_size=8)))


def _give_back_freed_memory() -> None:
    """Else what loading the graph left behind would serve the loader unseen."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _read_status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    if found is None:
        raise BenchError(f"/proc/self/status: has no {name}")
    return int(found[1]) << 10


def _serve() -> None:
    folder = Path(sys.argv[1])
    serve(open_channel(), {}, {"memory": lambda request: _measure(folder, request)})


if __name__ == "__main__":
    _serve()

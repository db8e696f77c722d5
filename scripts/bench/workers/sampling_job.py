"""What all sampling workers share: load the graph, sample timed batches, hand one out for checks.

Runs in a peer's environment: standard library, numpy and torch only.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from protocol import Clock, serve
from torch import Tensor

__all__ = ["Graph", "Sampler", "load_graph", "serve_sampler"]


@dataclass
class Graph:
    """In-neighbours of every node."""

    indptr: Tensor  # (nodes + 1,) int64
    indices: Tensor  # (edges,) of the ids' type
    seeds: Tensor  # (seeds,) of the ids' type

    def batch(self, number: int, size: int, count: int = 1) -> Tensor:
        """Seeds of ``count`` successive batches; after the last seed comes the first."""
        positions = torch.arange(number * size, (number + count) * size) % len(self.seeds)
        return self.seeds[positions]


@dataclass
class Sampler:
    """A peer's way to sample one batch, ``fanouts`` being nearest the seeds first."""

    count: Callable[[Tensor, list[int]], int]
    """Samples; returns the number of edges."""
    export: Callable[[Tensor, list[int]], dict[str, Tensor]]
    """Samples; returns the arrays that the check of this peer wants."""


def load_graph(folder: str, ids: torch.dtype) -> Graph:
    """Reads what rmat.py wrote, with node ids of type ``ids``."""
    names = ("indptr", "indices", "seeds")
    indptr, indices, seeds = (np.load(Path(folder) / f"{name}.npy") for name in names)
    # numpy converts, because its large arrays ask for huge pages and those of torch do not.
    dtype = np.int64 if ids == torch.int64 else np.int32
    arrays = (indptr, indices.astype(dtype), seeds.astype(dtype))
    return Graph(*(torch.from_numpy(array) for array in arrays))


def serve_sampler(channel: Any, graph: Graph, sampler: Sampler, versions: dict[str, str]) -> None:
    """Answers the jobs "sample" and "export".

    Args:
        channel: of ``protocol.open_channel``.
        graph: whose seeds are taken.
        sampler: to time.
        versions: of the peer.
    """

    def sample_until(
        request: dict[str, Any], first: int, batches: int, seconds: float
    ) -> tuple[int, int]:
        """Samples so many batches, and more until it took so long; returns batches and edges."""
        start, done, edges = time.perf_counter(), 0, 0
        while done < batches or time.perf_counter() - start < seconds:
            seeds = graph.batch(first + done, request["batch_size"])
            edges += sampler.count(seeds, request["fanouts"])
            done += 1
        return done, edges

    def sample(request: dict[str, Any]) -> dict[str, Any]:
        torch.set_num_threads(request["threads"])
        sample_until(request, request["warm_first"], 1, request["warm_seconds"])
        with Clock() as clock:
            done, edges = sample_until(
                request, request["first"], request["batches"], request["least_seconds"]
            )
        amounts = {"edges": edges, "batches": done}
        return {"seconds": clock.seconds, "cpu_seconds": clock.cpu_seconds, "amounts": amounts}

    def export(request: dict[str, Any]) -> dict[str, Any]:
        torch.set_num_threads(request["threads"])
        seeds = graph.batch(request["first"], request["batch_size"])
        arrays = sampler.export(seeds, request["fanouts"])
        np.savez(request["file"], **{name: array.numpy() for name, array in arrays.items()})
        return {}

    ready = {"python": platform.python_version(), "torch": torch.__version__, **versions}
    serve(channel, ready, {"sample": sample, "export": export})

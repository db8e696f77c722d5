"""What the workers of relational layers share: runs of a model, their time and their memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from protocol import Clock, serve
from relational_graph import RelationGraph
from resident import peak_bytes, restart_peak, settled_bytes

__all__ = ["MakeModel", "serve_model"]

_PEAK_RUNS = 2  # what an optimizer keeps is there in the second

MakeModel = Callable[[RelationGraph, dict[str, Any], dict[str, torch.Tensor]], torch.nn.Module]
"""Makes the model of a request, with the given weights, for a graph."""


class ModelJob:
    """Answers requests about one model at a time."""

    def __init__(self, make: MakeModel) -> None:
        self._make = make

    def open(self, request: dict[str, Any]) -> dict[str, Any]:
        """Makes the model for a graph, with inputs, and gradients of its outputs."""
        torch.set_num_threads(request["threads"])
        vars(self).pop("_model", None)  # what it keeps must not lie beside the next one
        graph = RelationGraph.load(Path(request["graph"]))
        with np.load(request["weights"]) as arrays:
            weights = {name: torch.from_numpy(arrays[name]) for name in arrays}
        self._model = self._make(graph, request, weights)
        rng = np.random.default_rng(1)
        size = (graph.num_nodes, request["width"])
        self._x = torch.from_numpy(rng.standard_normal(size, dtype=np.float32)).requires_grad_()
        self._gradient = torch.from_numpy(rng.standard_normal(size, dtype=np.float32))
        # A rate of 0 costs as much as any and leaves the weights that all sides have.
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=0.0)
        return {}

    def export(self, request: dict[str, Any]) -> dict[str, Any]:
        """Writes the outputs to a file."""
        with torch.no_grad():
            np.save(request["file"], self._model(self._x).numpy())
        return {}

    def peak(self, request: dict[str, Any]) -> dict[str, Any]:
        """How much memory there was before the first runs, and at most during them."""
        before = settled_bytes()
        restart_peak()
        with Clock() as clock:
            self._run(request["what"])
        for _ in range(_PEAK_RUNS - 1):
            self._run(request["what"])
        return {
            "before_bytes": before,
            "peak_bytes": peak_bytes(),
            "first_seconds": clock.seconds,
        }

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Runs until ``least_seconds`` are over."""
        runs, seconds, cpu_seconds = 0, 0.0, 0.0
        while runs == 0 or seconds < request["least_seconds"]:
            with Clock() as clock:
                self._run(request["what"])
            runs += 1
            seconds += clock.seconds
            cpu_seconds += clock.cpu_seconds
        return {"seconds": seconds, "cpu_seconds": cpu_seconds, "runs": runs}

    def _run(self, what: str) -> None:
        if what == "forward":
            with torch.no_grad():
                self._model(self._x)
            return
        self._x.grad = None
        self._optimizer.zero_grad()
        self._model(self._x).backward(self._gradient)
        self._optimizer.step()


def serve_model(channel: TextIO, make: MakeModel, versions: dict[str, Any]) -> None:
    """Serves until standard input ends."""
    job = ModelJob(make)
    jobs = {"open": job.open, "export": job.export, "peak": job.peak, "run": job.run}
    serve(channel, versions, jobs)

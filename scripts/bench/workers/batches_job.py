"""What all workers of whole mini-batches share: deliver a stretch of batches, train on it, check.

Runs in a peer's environment: standard library, numpy and torch only.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from protocol import Clock, serve
from torch import Tensor

__all__ = ["BatchPeer", "read_features", "read_labels", "serve_batches"]

Request = dict[str, Any]


@dataclass
class BatchPeer:
    """A peer's way to deliver batches and to train on them."""

    open: Callable[[Request], Iterable[Any]]
    """Batches over the request's ``batch_size``, ``fanouts``, ``first``, number of ``count`` and
    loader processes ``workers``."""
    measure: Callable[[Any], dict[str, float]]
    """A batch's "nodes", "edges" and "bytes" of features."""
    export: Callable[[Any], dict[str, Tensor]]
    """The arrays of a batch that the check wants."""
    make_step: Callable[[Request], Callable[[Any], Tensor]] | None = None
    """Of a peer that trains, too: a function that trains a new model on a batch and returns the
    loss: the request's ``model``, of ``hidden`` width, for as many ``classes``, with a layer for
    each of the ``fanouts``, by Adam with learning rate ``lr``."""


def read_features(folder: str) -> Tensor:
    """(nodes, dim) float32 of rmat.py, in memory."""
    return torch.from_numpy(np.load(Path(folder) / "features.npy"))


def read_labels(arguments: list[str]) -> Tensor | None:
    """(nodes,) int64 from the file that is the first argument, if there is one."""
    return torch.from_numpy(np.load(arguments[0])) if arguments else None


def serve_batches(channel: Any, peer: BatchPeer, versions: dict[str, str]) -> None:
    """Answers the jobs "load", "train", "export" and "loss".

    A request's batches are ``warm`` ones before the clock starts, those that are timed, ``batches``
    of them, and ``ahead`` that a loader may prepare meanwhile.
    """
    steps: dict[tuple[Any, ...], Callable[[Any], Tensor]] = {}

    def pass_over(request: Request, consume: Callable[[Any], object]) -> dict[str, Any]:
        torch.set_num_threads(request["threads"])
        timed = request["batches"]
        count = request["warm"] + timed + request["ahead"]
        batches = iter(peer.open({**request, "count": count}))
        for _ in range(request["warm"]):
            consume(next(batches))
        amounts: Counter[str] = Counter()
        with Clock() as clock:
            for _ in range(timed):
                batch = next(batches)
                consume(batch)
                amounts.update(batches=1, **peer.measure(batch))
        return {"seconds": clock.seconds, "cpu_seconds": clock.cpu_seconds, "amounts": amounts}

    def load(request: Request) -> dict[str, Any]:
        return pass_over(request, lambda batch: None)

    def train(request: Request) -> dict[str, Any]:
        assert peer.make_step is not None
        key = (request["model"], *request["fanouts"])
        if key not in steps:
            steps[key] = peer.make_step(request)
        return pass_over(request, steps[key])

    def first_batch(request: Request) -> Any:
        torch.set_num_threads(request["threads"])
        return next(iter(peer.open({**request, "count": 1})))

    def export(request: Request) -> dict[str, Any]:
        arrays = peer.export(first_batch(request))
        np.savez(request["file"], **{name: array.numpy() for name, array in arrays.items()})
        return {}

    def loss(request: Request) -> dict[str, Any]:
        assert peer.make_step is not None
        batch = first_batch(request)
        models = request["models"]
        return {name: float(peer.make_step({**request, "model": name})(batch)) for name in models}

    ready = {"python": platform.python_version(), "torch": torch.__version__, **versions}
    serve(channel, ready, {"load": load, "train": train, "export": export, "loss": loss})

"""Trains an embedding for a while: python embedding_job.py FOLDER"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from protocol import Clock, open_channel, serve
from torch import Tensor
from torch.nn.functional import softplus

import gnnsys
from gnnsys import nn
from gnnsys.system.budget import resident_memory

_MIX = 0x9E3779B1  # odd: multiplying by it numbers 2^k rows anew
_SEED, _LR = 7, 0.05
_OPTIMIZERS = {
    "adagrad": (torch.optim.Adagrad, nn.Adagrad),
    "sparse_adam": (torch.optim.SparseAdam, nn.SparseAdam),
}


def batches(request: dict[str, Any]) -> Iterator[Tensor]:
    """(3, batch) ids of sources, their targets, and targets that are none."""
    rows, shape = request["rows"], (3, request["batch"])
    draw = torch.Generator().manual_seed(_SEED)
    for _ in range(request["warm"] + request["batches"]):
        share = torch.rand(shape, dtype=torch.float64, generator=draw)
        # Ranks by Zipf's law with exponent 1: their logarithms are uniform.
        rank = rows**share if request["ids"] == "zipf" else rows * share
        yield (rank.long().clamp(max=rows - 1) * _MIX) % rows


def make(folder: Path, request: dict[str, Any]) -> int:
    """Makes the table where it is not there; returns the anonymous memory of a process that has
    trained a small one."""
    if not folder.exists():
        torch.manual_seed(_SEED)
        _open(folder, request, request["rows"], cache=1).store.close()
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        model = _open(Path(place) / "small", request, 64, cache=32)
        optimizer = _OPTIMIZERS[request["optimizer"]][1](model.parameters())
        train_batches(model, optimizer, [torch.zeros(3, 2, dtype=torch.long)])
        model.store.close()
    return resident_memory().anonymous


def train(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Trains batches, of which the last ones are timed, and digests their losses."""
    torch.set_num_threads(request["threads"])
    in_memory, in_folder = _OPTIMIZERS[request["optimizer"]]
    if request["mode"] == "memory":
        torch.manual_seed(_SEED)
        model: Any = torch.nn.Embedding(request["rows"], request["dim"], sparse=True)
        optimizer: Any = in_memory(model.parameters(), lr=_LR)
    else:
        model = _open(folder, request, request["rows"], request["cache"])
        optimizer = in_folder(model.parameters(), lr=_LR)
    ids = [*batches(request)]
    losses = train_batches(model, optimizer, ids[: request["warm"]])
    before = _served(model)
    with Clock() as clock:
        losses += train_batches(model, optimizer, ids[request["warm"] :])
    return {
        "seconds": clock.seconds,
        "cpu_seconds": clock.cpu_seconds,
        "losses": hashlib.sha256(torch.stack(losses).numpy().tobytes()).hexdigest(),
        "rows": {tier: rows - before.get(tier, 0) for tier, rows in _served(model).items()},
    }


def train_batches(model: Any, optimizer: Any, ids: list[Tensor]) -> list[Tensor]:
    """Losses of scores of edges: products of rows, against those of edges that are none."""
    losses = []
    for batch, following in zip_longest(ids, ids[1:]):
        if following is not None and isinstance(model, nn.Embedding):
            model.prefetch(following)
        source, target, other = model(batch)
        edges, none = (source * target).sum(1), (source * other).sum(1)
        loss = softplus(-edges).mean() + softplus(none).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def _open(folder: Path, request: dict[str, Any], rows: int, cache: Any) -> nn.Embedding:
    return nn.Embedding(
        rows, request["dim"], folder=folder, optimizer=request["optimizer"], cache=cache,
        threads=request["threads"],
    )  # fmt: skip


def _served(model: Any) -> dict[str, int]:
    if not isinstance(model, nn.Embedding):
        return {}
    return {tier: count.rows for tier, count in model.store.counters.tiers().items()}


def main() -> None:
    """Serves until standard input ends."""
    channel = open_channel()
    folder = Path(sys.argv[1])
    jobs = {
        "make": lambda ask: {"bytes": make(folder, ask)},
        "train": lambda ask: train(folder, ask),
    }
    serve(channel, {"gnnsys": gnnsys.__version__}, jobs)


if __name__ == "__main__":
    main()

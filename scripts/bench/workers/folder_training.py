"""Trains on a dataset folder for some batches: python folder_training.py FOLDER

Features come from memory, or from their file through gnnsys' cache; all else is the same.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from protocol import Clock, open_channel, serve

import gnnsys
from gnnsys.cache.importance import out_degree
from gnnsys.training.models import NodeClassifier

_LR = 0.01


def open_features(dataset: gnnsys.Dataset, request: dict[str, Any]) -> gnnsys.UnifiedTensor:
    """The dataset's features where the request wants them."""
    threads = request["threads"]
    if request["cache"] is None:
        table = torch.from_numpy(np.array(dataset.node_table("features")))
        return gnnsys.unified(table, threads=threads)
    return dataset.features(
        threads=threads,
        storage=request["storage"],
        cache=request["cache"],
        policy=request["policy"],
        window=request["window"] or "auto",
        scores=out_degree(dataset.graph().indices.numpy(), dataset.num_nodes()),
    )


def train(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Trains a new model on the first batches of an epoch."""
    torch.set_num_threads(request["threads"])
    torch.manual_seed(0)
    dataset = gnnsys.open_dataset(folder)
    features, graphs = dataset.stores(threads=request["threads"])
    x = open_features(dataset, request)
    features[None, "x", None] = x
    loader = gnnsys.NeighborLoader(
        (features, graphs),
        request["fanouts"],
        input_nodes=dataset.split("train"),
        batch_size=request["batch_size"],
        shuffle=True,
        threads=request["threads"],
    )
    loader.set_epoch(request["epoch"])
    model = NodeClassifier(
        "sage",
        in_channels=x.shape[1],
        hidden=request["hidden"],
        out_channels=int(np.max(dataset.node_table("labels"))) + 1,
        layers=len(request["fanouts"]),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=_LR)
    losses: list[str] = []
    rows = 0

    def step(batch: Any) -> None:
        nonlocal rows
        optimizer.zero_grad()
        out = model(batch.x, batch.edge_index, batch.num_sampled_nodes, batch.num_sampled_edges)[
            : batch.batch_size
        ]
        loss = F.cross_entropy(out, batch.y[: batch.batch_size])
        loss.backward()
        optimizer.step()
        rows += len(batch.x)
        losses.append(loss.item().hex())

    def take(count: int) -> int:
        done = len(losses)
        for batch in islice(batches, count):
            step(batch)
        return len(losses) - done

    batches: Iterator[Any] = iter(loader)
    take(request["warm"])
    before, rows = _stats(x), 0
    with Clock() as clock:
        timed = take(request["batches"])
    amounts = {"batches": timed, "rows": rows}
    return {
        "seconds": clock.seconds,
        "cpu_seconds": clock.cpu_seconds,
        "amounts": amounts,
        "losses": losses,
        "counts": {key: value - before[key] for key, value in _stats(x).items()},
    }


def _stats(x: Any) -> dict[str, float]:
    stats = getattr(x.store, "stats", None)
    return dataclasses.asdict(stats) if stats is not None else {}


def main() -> None:
    """Serves until standard input ends."""
    channel = open_channel()
    folder = Path(sys.argv[1])
    serve(channel, {"gnnsys": gnnsys.__version__}, {"train": lambda ask: train(folder, ask)})


if __name__ == "__main__":
    main()

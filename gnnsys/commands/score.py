"""``gnnsys score``: finds the importance of nodes and stores it with the dataset."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from gnnsys.config.score import ScoreConfig
from gnnsys.dataset.folder import open_dataset
from gnnsys.dataset.importance import store_score
from gnnsys.errors import StorageError, UnsupportedError
from gnnsys.features.importance import importance, ranked_importance
from gnnsys.features.replay import training_seeds
from gnnsys.pages.tables import pairs_on_terminal
from gnnsys.system.progress import work_progress
from gnnsys.system.records import json_text

__all__ = ["run_command"]

_SHARES = (0.01, 0.05, 0.1, 0.25)


def run_command(config: ScoreConfig) -> int:
    """Computes, stores and tells."""
    begun = time.perf_counter()
    folder = Path(config.dataset)
    dataset = open_dataset(folder)
    if dataset.heterogeneous:
        raise UnsupportedError(
            f"{folder}: heterogeneous; gnnsys score takes homogeneous graphs so far"
        )
    if not os.access(folder, os.W_OK):
        raise StorageError(f"{folder}: cannot be written, and the importance is stored there")
    about: dict[str, Any] = {}
    seeds, seeds_are = training_seeds(dataset)
    if config.score == "presample":
        about = {
            "fanouts": list(config.fanouts),
            "batch_size": config.batch_size,
            "batches": config.batches,
            "seed": config.seed,
        }
    graph = dataset.graph()
    with work_progress() as progress:
        values = importance(
            config.score,
            graph,
            seeds=seeds,
            **about,
            threads=config.threads,
            progress=progress,
        )
    ranked = ranked_importance(config.score, values, graph)
    file = store_score(folder, ranked, config.score, **about)
    facts = {
        "dataset": str(dataset.path),
        "score": config.score,
        **about,
        "seeds": seeds_are if about else None,
        "nodes": len(values),
        "zero": int((values == 0).sum()),
        "top": top_shares(values),
        "file": str(file.absolute()),
        "seconds": time.perf_counter() - begun,
    }
    if config.json:
        print(json_text(facts))
    else:
        title = f"{facts['score']} of {facts['dataset']}"
        Console().print(pairs_on_terminal(title, _rows(facts)))
    return 0


def top_shares(values: NDArray[Any]) -> dict[str, float]:
    """What part of the sum the first 1, 5, 10 and 25 % of the nodes have; {} where it is 0.

    >>> top_shares(np.arange(100) == 7)
    {'0.01': 1.0, '0.05': 1.0, '0.1': 1.0, '0.25': 1.0}
    """
    ascending = np.sort(values)
    total = ascending.sum(dtype=np.float64)
    if total == 0:
        return {}
    return {
        str(share): float(
            ascending[-max(1, round(share * len(values))) :].sum(dtype=np.float64) / total
        )
        for share in _SHARES
    }


def _rows(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "nodes", f"{facts['nodes']:,}, {facts['zero']:,} of them without any"
    if facts["seeds"]:
        yield "sampled from", facts["seeds"]
    for share, part in facts["top"].items():
        yield f"first {float(share):.0%} of the nodes", f"{part:.1%} of the {facts['score']}"
    yield "stored", facts["file"]
    yield "time", f"{facts['seconds']:.1f} s"

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
from torch import Tensor

from gnnsys.config.score import ScoreConfig
from gnnsys.dataset.folder import Dataset, open_dataset
from gnnsys.dataset.format import NODE_TYPE
from gnnsys.dataset.importance import store_score
from gnnsys.errors import ArgumentError, StorageError
from gnnsys.features.importance import (
    importance_of_types,
    ranked_importance_of_types,
    ranked_types,
)
from gnnsys.features.replay import target_of
from gnnsys.pages.tables import pairs_on_terminal
from gnnsys.system.progress import work_progress
from gnnsys.system.records import json_text
from gnnsys.training.planned_seeds import planned_seeds
from gnnsys.training.seed_tasks import NODE

__all__ = ["run_command"]

_SHARES = (0.01, 0.05, 0.1, 0.25)


def run_command(config: ScoreConfig) -> int:
    """Computes, stores and tells."""
    begun = time.perf_counter()
    folder = Path(config.dataset)
    dataset = open_dataset(folder)
    if not ranked_types(dataset):
        raise ArgumentError(
            f"{folder}: no node type has features, which are what importance is of; convert it "
            "again with features"
        )
    if not os.access(folder, os.W_OK):
        raise StorageError(f"{folder}: cannot be written, and the importance is stored there")
    sampling, seeds, seeds_are = _sampling(config, dataset)
    about = ({"task": config.task} if config.task != NODE else {}) | sampling
    with work_progress() as progress:
        values = importance_of_types(
            config.score,
            dataset,
            seeds=seeds,
            **sampling,
            threads=config.threads,
            progress=progress,
        )
    ranked = ranked_importance_of_types(config.score, values, dataset)
    files = store_score(folder, ranked, config.score, **about)
    facts = {
        "dataset": str(dataset.path),
        "score": config.score,
        **about,
        "seeds": seeds_are,
        **_told(values, files, dataset.heterogeneous),
        "seconds": time.perf_counter() - begun,
    }
    if config.json:
        print(json_text(facts))
    else:
        title = f"{facts['score']} of {facts['dataset']}"
        Console().print(pairs_on_terminal(title, _rows(facts)))
    return 0


def _sampling(
    config: ScoreConfig, dataset: Dataset
) -> tuple[dict[str, Any], Tensor | None, str | None]:
    """How presampling draws batches, around which nodes, and which these are; {} and None where
    nothing is sampled."""
    if config.target is not None:
        target_of(dataset, config.target)
    if config.score != "presample":
        return {}, None, None
    target, seeds, seeds_are = planned_seeds(dataset, config.target, config.task)
    sampling = {
        **({"target": target} if dataset.heterogeneous else {}),
        "fanouts": list(config.fanouts),
        "batch_size": config.batch_size,
        "batches": config.batches,
        "seed": config.seed,
    }
    return sampling, seeds, seeds_are


def _told(
    values: dict[str, NDArray[Any]], files: dict[str, Path], heterogeneous: bool
) -> dict[str, Any]:
    """Of all nodes that are ranked, and of several types of each."""
    counts = np.concatenate([*values.values()])
    every = {
        "nodes": len(counts),
        "zero": int((counts == 0).sum()),
        "top": top_shares(counts),
    }
    if not heterogeneous:
        return {**every, "file": str(files[NODE_TYPE].absolute())}
    total = counts.sum(dtype=np.float64)
    return every | {
        "types": {
            kind: {
                "nodes": len(each),
                "zero": int((each == 0).sum()),
                "share": float(each.sum(dtype=np.float64) / total) if total else 0.0,
                "file": str(files[kind].absolute()),
            }
            for kind, each in values.items()
        }
    }


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
    types: dict[str, dict[str, Any]] = facts.get("types", {})
    yield "nodes", f"{facts['nodes']:,}, {facts['zero']:,} of them without any"
    for kind, each in types.items():
        yield (
            f"nodes of type {kind}",
            f"{each['nodes']:,}, {each['zero']:,} of them without any; {each['share']:.1%} of the "
            f"{facts['score']}",
        )
    if facts["seeds"]:
        yield "sampled from", facts["seeds"]
    for share, part in facts["top"].items():
        yield f"first {float(share):.0%} of the nodes", f"{part:.1%} of the {facts['score']}"
    for file in [each["file"] for each in types.values()] or [facts["file"]]:
        yield "stored", file
    yield "time", f"{facts['seconds']:.1f} s"

"""How far a clustering run is, and the checkpoint of it.

``checkpoint.pt`` has what the next batch depends on, and is written as that of a training run is:
replaced whole, with checksums.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnnsys.errors import FileFormatError
from gnnsys.training.checkpoint import CHECKPOINT, read_parts, write_parts

__all__ = [
    "ClusterCheckpoint",
    "ClusterEpoch",
    "EpochInHand",
    "SeedResult",
    "SeedState",
    "load_clusters",
    "save_clusters",
]


@dataclass(frozen=True, slots=True)
class ClusterEpoch:
    """What one epoch gave; number 0 is the start, before any training."""

    number: int
    loss: float
    contrastive: float
    clustering: float
    metrics: dict[str, float]
    """Of the clusters at that point; empty without labels."""

    modularity: float | None
    """Of the clusters at that point, if epochs are selected by it."""


@dataclass(slots=True)
class SeedResult:
    """A seed that is trained, or being trained."""

    seed: int
    epochs: list[ClusterEpoch] = field(default_factory=list)
    selected: ClusterEpoch | None = None
    """The one whose clusters are kept."""

    assignments: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """(N,)."""

    embeddings: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    """(N, dim)."""

    state: dict[str, Tensor] = field(default_factory=dict)
    """Weights of the encoder, and ``centers`` (K, dim)."""

    seconds: float = 0.0


@dataclass(slots=True)
class EpochInHand:
    """An epoch of sampled batches that has begun."""

    weights: dict[str, Tensor]
    """As ``SeedResult.state``, when it began."""

    z: Tensor
    """(N, dim): what they embed."""

    sums: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))
    """(3,): the loss and its two parts, times nodes, of the batches so far."""

    nodes: int = 0
    """Of the batches so far."""


@dataclass(kw_only=True, slots=True)
class SeedState:
    """All that the next batch of a seed depends on."""

    result: SeedResult
    """So far."""

    phase: Literal["reconstruct", "contrast", "train"] = "reconstruct"
    start: int = 0
    """Encoders that were trained up to the comparison before."""

    epoch: int = 0
    """In hand, of the phase."""

    batch: int = 0
    """Batches of it that are done."""

    models: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Weights, by the model's name."""

    optimizer: dict[str, Any] | None = None
    """None: a new one."""

    torch_rng: Tensor | None = None
    """None: as the seed begins."""

    cuda_rng: list[Tensor] = field(default_factory=list)

    order: Tensor | None = None
    """(N,): that in which the epoch in hand reconstructs nodes."""

    clusters: Tensor | None = None
    """(N,): those of the contrastive loss alone."""

    worth: float | None = None
    """Modularity of the best start so far."""

    best: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Its models."""

    hand: EpochInHand | None = None


@dataclass(kw_only=True, slots=True)
class ClusterCheckpoint:
    """All that the next batch of a run depends on."""

    config: dict[str, Any]
    """Options that a resumed run cannot change."""

    dataset: str
    """Digest of the graph."""

    seeds: list[dict[str, Any]]
    """What the result tells of those that are trained."""

    first: SeedResult | None
    """The first of them."""

    seed: SeedState | None
    """The one in hand."""

    metrics_bytes: int
    """Length of ``metrics.jsonl``."""


def save_clusters(run: Path, checkpoint: ClusterCheckpoint) -> None:
    """Writes ``checkpoint.pt``.

    Raises:
        StorageError: the folder cannot be written.
    """
    write_parts(run / CHECKPOINT, _plain(checkpoint))


def load_clusters(run: Path) -> ClusterCheckpoint:
    """Reads it.

    Raises:
        MissingFileError, FileFormatError: it is not there, damaged, or of another kind of run.
    """
    path = run / CHECKPOINT
    parts = read_parts(path)
    try:
        first, seed = parts["first"], parts["seed"]
        parts |= {"first": first and _result(first), "seed": seed and _seed(seed)}
        return ClusterCheckpoint(**parts)
    except (AttributeError, KeyError, TypeError) as error:
        raise FileFormatError(f"{path}: parts are missing ({error})") from error


def _plain(value: Any) -> Any:
    """Records as dicts and arrays as tensors, none of them copied."""
    if dataclasses.is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _result(parts: dict[str, Any]) -> SeedResult:
    selected = parts["selected"]
    return SeedResult(
        **parts
        | {
            "epochs": [ClusterEpoch(**each) for each in parts["epochs"]],
            "selected": selected and ClusterEpoch(**selected),
            "assignments": parts["assignments"].numpy(),
            "embeddings": parts["embeddings"].numpy(),
        }
    )


def _seed(parts: dict[str, Any]) -> SeedState:
    hand = parts["hand"]
    made = {"result": _result(parts["result"]), "hand": hand and EpochInHand(**hand)}
    return SeedState(**parts | made)

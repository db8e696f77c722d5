"""What the records of a clustering run say of its seeds. Reads no file."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["CURVES", "Seed", "SeedEnd", "SeedEpoch", "group_seeds", "spread"]

CURVES = {
    "loss": "Loss",
    "contrastive": "Contrastive loss",
    "clustering": "Clustering loss",
    "modularity": "Modularity",
    "acc": "Accuracy",
    "nmi": "NMI",
    "ari": "ARI",
    "f1": "Macro F1",
}
"""Fields of an epoch that a page shows, and their titles."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedEpoch:
    """What one epoch of a seed gave: an ``epoch`` of the file."""

    seed: int
    epoch: int
    """From 0, the start."""

    selected: int
    """The epoch whose clusters are kept so far."""

    seconds: float
    """Since the seed began."""

    loss: float
    contrastive: float
    clustering: float
    modularity: float | None = None
    """None where epochs are not selected by it."""

    acc: float | None = None
    """None without labels; so the other scores."""

    nmi: float | None = None
    ari: float | None = None
    f1: float | None = None

    def value(self, curve: str) -> float | None:
        """One of ``CURVES``; None where the run has it not."""
        found: float | None = getattr(self, curve)
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedEnd:
    """A seed that is trained: a ``seed`` of the file."""

    seed: int
    sizes: tuple[int, ...]
    """Nodes of each cluster in the selected epoch."""


@dataclass(frozen=True, slots=True)
class Seed:
    """A seed with its epochs, of which there is one at least."""

    number: int
    epochs: Sequence[SeedEpoch]
    end: SeedEnd | None
    """None while it is trained."""

    @property
    def selected(self) -> SeedEpoch:
        """The epoch whose clusters are kept so far."""
        number = self.last.selected
        return next((each for each in self.epochs if each.epoch == number), self.last)

    @property
    def last(self) -> SeedEpoch:
        return self.epochs[-1]


def group_seeds(epochs: Iterable[SeedEpoch], ends: Iterable[SeedEnd]) -> list[Seed]:
    """The seeds of a run in the order in which they were trained."""
    by_seed: dict[int, dict[int, SeedEpoch]] = {}
    for epoch in epochs:
        by_seed.setdefault(epoch.seed, {})[epoch.epoch] = epoch
    ended = {end.seed: end for end in ends}
    return [Seed(seed, list(found.values()), ended.get(seed)) for seed, found in by_seed.items()]


def spread(values: Iterable[float | None]) -> tuple[float, float | None] | None:
    """Mean and deviation of values; the latter of one value is None, both of none are.

    >>> spread([1.0, 3.0]), spread([2.0]), spread([None])
    ((2.0, 1.4142135623730951), (2.0, None), None)
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    if len(known) == 1 or not all(map(math.isfinite, known)):
        return sum(known) / len(known), None
    return statistics.mean(known), statistics.stdev(known)

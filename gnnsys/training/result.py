"""What a training run gives, and what it ran on."""

from __future__ import annotations

import dataclasses
import platform
import resource
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
import torch
import torch_geometric

from gnnsys._version import __version__
from gnnsys.config.run_files import result_name
from gnnsys.config.train import TrainConfig
from gnnsys.counters import Counters
from gnnsys.system.machine import cpu_model, usable_cores

__all__ = ["EpochRecord", "TrainResult", "machine", "versions"]


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """What one epoch gave."""

    epoch: int
    """From 1."""

    loss: float
    """Mean over the training nodes, or links."""

    val: float | None
    """Validation score after the epoch; None where it was not evaluated."""

    test: float | None
    """Test score at the best validation epoch so far; None before the first."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training run gave."""

    config: TrainConfig
    """With every default filled in."""

    metric: str
    """What the best epoch was chosen by: one of ``gnnsys.choices.METRICS``."""

    reason: str
    """Why it ended: done, early stop or interrupted."""

    history: tuple[EpochRecord, ...]

    best_epoch: int
    """The first epoch with the best validation score, from 1; 0 before any evaluation."""

    best_val: dict[str, float]
    """Validation metrics by name at the best epoch; accuracy is always among them, or rmse, mae and
    r2 of a regression, or mrr and hits@k of links."""

    best_test: dict[str, float]
    """Test metrics at the best epoch, likewise."""

    seconds: float
    """Wall time of training and validation."""

    load_seconds: float
    """Of these, those in which training waited for batches; 0 where it is of the whole graph."""

    test_seconds: float
    """Of these, those that scoring the test nodes once at the end took; 0 where epochs did."""

    counters: Counters
    """Feature rows and bytes served, by tier."""

    reads: dict[str, float]
    """Counts of the cache and its reads; ``gnnsys.features.statistics.read_counts`` names them."""

    memory: dict[str, Any]
    """Bytes by name, as planned and as held at the end, and what was resident; see
    ``gnnsys.training.memory.memory_facts``."""

    evaluation: dict[str, Any] = field(default_factory=dict)
    """How mini-batch training was evaluated exactly, and why; see
    ``gnnsys.training.evaluation.Evaluation``. Bytes are of the rows that layers gather."""

    padding: dict[str, Any] = field(default_factory=dict)
    """Where mini-batches are padded: ``node_share`` and ``edge_share`` of padding since the run was
    begun or resumed; ``nodes`` and ``edges`` of a batch by hop, padding included."""

    offload: dict[str, Any] = field(default_factory=dict)
    """Where activations leave memory, of the first process's last step whose like was planned for:
    see ``gnnsys.offload.StepStats``; bytes, seconds."""

    parallel: dict[str, Any] | None = None
    """Of deep models: stages, ways, chunks; bytes sent by kind, by all ranks and by each; seconds
    waited; peak memory of each process; staleness of each layer in the last epoch."""

    ranks: list[dict[str, Any]] = field(default_factory=list)
    """Of each of several ranks that share mini-batches, since the run was begun or resumed: its
    machine; rows and bytes served by tier; reads; seconds waited for batches; what it sent and how
    long it waited for others, by kind; memory: ``peak``, ``resident``, and ``own``, in which pages
    that ranks share are divided."""

    @property
    def peak_rss(self) -> int:
        """Bytes of this process that were resident at most, or of all ranks: the sum of theirs, but
        for what they share with each other."""
        if not self.ranks:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        sizes = [each["memory"] for each in self.ranks]
        return sum(size["peak"] - (size["resident"] - size["own"]) for size in sizes)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: metrics, time, rows and bytes by tier, reads, memory, versions, options."""
        return {
            **{f"test_{result_name(name)}": value for name, value in self.best_test.items()},
            **{f"val_{result_name(name)}": value for name, value in self.best_val.items()},
            "metric": self.metric,
            "best_epoch": self.best_epoch,
            "epochs": len(self.history),
            "reason": self.reason,
            "loss": self.history[-1].loss if self.history else None,
            "seconds": self.seconds,
            "load_seconds": self.load_seconds,
            "test_seconds": self.test_seconds,
            **self.counters.as_dict(),
            "reads": self.reads,
            "memory": self.memory,
            "evaluation": self.evaluation,
            "padding": self.padding,
            "offload": self.offload,
            "parallel": self.parallel,
            "ranks": self.ranks,
            "peak_rss": self.peak_rss,
            "versions": versions(),
            "config": dataclasses.asdict(self.config),
        }


def versions() -> dict[str, str]:
    """Of gnnsys and of what it stands on."""
    return {
        "gnnsys": __version__,
        "torch": torch.__version__,
        "torch_geometric": torch_geometric.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def machine() -> dict[str, Any]:
    """Processor, cores that may be used, memory in bytes."""
    return {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "platform": platform.platform(),
    }

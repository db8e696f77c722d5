"""What a training run's options come to, worked out once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gnnsys.config.checks import check_bytes
from gnnsys.config.parallel import check_world, is_deep
from gnnsys.config.train import TrainConfig
from gnnsys.errors import ArgumentError
from gnnsys.features.options import FeatureOptions, TopologyOptions
from gnnsys.ranks.environment import world_around
from gnnsys.system.threads import local_world_size

if TYPE_CHECKING:
    import torch

__all__ = ["Run", "resolve"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A training run with nothing left to decide. What trains takes this, and works out no more."""

    config: TrainConfig
    """With every default filled in, and folders absolute."""

    device: torch.device
    """What a rank computes on."""

    deep: bool
    """Whether the model is a list of layers with an encoder and a decoder."""

    ranks: int
    """Processes that share the mini-batches; 1 with ``--parallel``."""

    local_ranks: int
    """Those of them on this machine."""

    stages: int
    """Runs of layers, S; 1 without ``--parallel``."""

    ways: int
    """Ranks that share a stage, W; 1 without ``--parallel``."""

    chunks: int
    """Parts of the vertices, K; 1 without ``--parallel``."""

    features: FeatureOptions
    """How the features are read."""

    topology: TopologyOptions
    """How the neighbours are read."""

    memory: int | None
    """Bytes that the run may take; None for what the control group or the machine leaves."""

    timed: bool = False
    """Whether neighbours are sampled with regard to the times of seeds: see
    ``gnnsys.training.seed_times``, which looks into the dataset."""


def resolve(config: TrainConfig) -> Run:
    """What the options come to here: with the devices of this machine and the ranks that are there.

    Raises:
        ArgumentError: no dataset, a device that is not there, or options that do not fit the ranks.

    >>> run = resolve(TrainConfig(dataset="cora", layers=3, device="cpu"))
    >>> run.config.fanouts, run.stages * run.ways, run.device.type
    ((15, 10, 5), 1, 'cpu')
    """
    from gnnsys.system.device import choose_device

    if not config.dataset:
        raise ArgumentError("no dataset given; name one, as in gnnsys train demo")
    check_world(config)
    config = config.filled_in()
    features = FeatureOptions.of(config)
    if config.full_batch:  # read once
        features = dataclasses.replace(features, cache="none")
    ranks = 1 if config.parallel else world_around() or 1
    if ranks > 1:
        config = dataclasses.replace(config, ranks=ranks)
    return Run(
        config=config,
        device=choose_device(config.device),
        deep=is_deep(config),
        ranks=ranks,
        local_ranks=local_world_size() if ranks > 1 else 1,
        stages=config.stages or 1,
        ways=config.ways or 1,
        chunks=config.chunks or 1,
        features=features,
        topology=TopologyOptions.of(config),
        memory=check_bytes("memory", config.memory),
    )

"""What steps are made of: the sampler of mini-batches, arithmetic, compilation."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gnnsys.config.train import TrainConfig
from gnnsys.errors import BuildError
from gnnsys.loaders import NeighborSampler
from gnnsys.system.device import SIMT
from gnnsys.system.gpu.kernels import MOST_FANOUT
from gnnsys.system.machine import cpu_flags, cpu_model

__all__ = ["compile_model", "make_autocast", "make_sampler", "spread_seeds"]

_log = logging.getLogger(__name__)
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Of processors that multiply bfloat16, in the kernel's words."""


def make_sampler(
    config: TrainConfig,
    source: Any,
    *,
    device: Literal["cpu", "cuda", "simt"] | None = None,
    time_attr: str | None = None,
    **more: Any,
) -> NeighborSampler:
    """What draws the mini-batches of a run.

    Args:
        config: filled in.
        source: a graph as ``NeighborSampler`` takes it.
        device: that draws the same batches; None for that of the options.
        time_attr: name of the times in ``source``, where neighbours are to be no later than seeds.
        **more: further options of ``NeighborSampler``.
    """
    timed = time_attr is not None
    return NeighborSampler(
        source,
        list(config.fanouts or ()),
        seed=config.seed,
        threads=config.threads,
        sampling=config.sampling,
        dependent_batches=config.dependent_batches,
        device="cpu" if timed else device or _sampler_device(config),
        time_attr=time_attr,
        temporal_strategy=config.temporal if timed else "uniform",
        time_window=config.time_window if timed else None,
        last_n=config.last_n if timed else None,
        **more,
    )


def spread_seeds(nodes: Tensor, count: int) -> Tensor:
    """At most so many of (n,) ids, from all over them.

    >>> spread_seeds(torch.arange(9), 4)
    tensor([0, 2, 4, 6])
    """
    return nodes[:: max(1, len(nodes) // count)][:count]


def _sampler_device(config: TrainConfig) -> Literal["cpu", "cuda", "simt"]:
    """That draws the neighbours of mini-batches."""
    if config.sampler == "gpu":
        return "simt" if config.device == SIMT else "cuda"
    can = config.sampling == "uniform" and max(config.fanouts or (0,)) <= MOST_FANOUT
    return "simt" if config.sampler == "auto" and config.device == SIMT and can else "cpu"


def compile_model(model: nn.Module, device: torch.device) -> Callable[..., Tensor]:
    """A model by ``torch.compile``.

    Raises:
        BuildError: there is no compiler for it.
    """
    # As torch chooses it, and Triton on a GPU.
    names = [os.environ.get("CXX", "g++")] if device.type == "cpu" else ["cc", "gcc", "clang"]
    if not any(map(shutil.which, names)):
        raise BuildError(
            f"--compile: torch.compile needs a compiler, and {' or '.join(names)} is not on PATH; "
            "install one, or leave --compile out"
        )
    return torch.compile(model)


def make_autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """The arithmetic of ``--precision``; warns where that is slower than fp32."""
    if config.precision == "bf16" and device.type == "cpu" and not _BF16_FLAGS & {*cpu_flags()}:
        _log.warning(
            "--precision bf16: %s has no bfloat16 multiplication (%s), so fp32 is faster here",
            cpu_model(), ", ".join(sorted(_BF16_FLAGS))
        )  # fmt: skip
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")

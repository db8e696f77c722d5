"""Options about activations that leave memory, and how they fit the others."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from gnnsys.choices import Size
from gnnsys.config.checks import check_bytes
from gnnsys.config.links import LinkOptions
from gnnsys.errors import ArgumentError

if TYPE_CHECKING:
    from gnnsys.config.train import TrainConfig

__all__ = ["OffloadOptions", "check_offload", "offload_folder"]


@dataclass(kw_only=True, slots=True)
class OffloadOptions(LinkOptions):
    """Where activations go. Stands on the options before it, for a class with slots has one base
    with fields."""

    offload: Annotated[str, "auto|none|DIR"] = "none"
    """What a step saves for its backward takes less memory: bit masks, results computed again, and
    what exceeds --activation-budget moves to the host's memory (of a GPU) and to a file, which has
    no name and is gone with the run. DIR: a folder on the disk to use, made where it is not there;
    auto: that of temporary files. See docs/offload.md."""

    activation_budget: Size | None = None
    """Bytes (2GB) of activations that --offload leaves in memory, of each process; on a GPU, in its
    own. Default: half of what is left at the first step."""


def offload_folder(offload: str) -> str | None:
    """The folder that ``--offload`` names; None for that of temporary files.

    >>> offload_folder("auto"), offload_folder("/tmp")
    (None, '/tmp')
    """
    return None if offload in ("", "auto", "none") else os.path.abspath(offload)


def check_offload(config: TrainConfig) -> None:
    """Raises ArgumentError for options that do not fit each other."""
    budget = check_bytes("activation-budget", config.activation_budget)
    if config.offload == "none":
        if budget is not None and config.resume is None:
            raise ArgumentError(
                f"--activation-budget {config.activation_budget}: goes with --offload auto or DIR"
            )
        return
    if not config.offload:
        raise ArgumentError("--offload: expected auto, none or a folder")
    if config.compile:
        raise ArgumentError(
            f"--offload {config.offload}: does not go with --compile, whose steps save what the "
            "compiler chooses; leave one of them out"
        )

"""How the options about epochs packed before they run fit the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gnnsys.config.checks import check_bytes, check_least
from gnnsys.errors import ArgumentError

if TYPE_CHECKING:
    from gnnsys.config.train import TrainConfig

__all__ = ["check_packing"]

_PLANNED = ("hybrid", "lookahead")
"""Policies that look ahead."""


def check_packing(config: TrainConfig) -> None:
    """Raises ArgumentError for options that do not fit each other."""
    check_least(config, 1, "reuse_samples")
    check_bytes("pack-space", config.pack_space)
    if config.full_batch and (config.pack or config.reuse_samples > 1):
        given = "--pack" if config.pack else f"--reuse-samples {config.reuse_samples}"
        raise ArgumentError(f"{given}: is for mini-batches; leave it or --full-batch out")
    for name in ("pack_space", "pack_folder"):
        value = getattr(config, name)
        if value is not None and not config.pack:
            raise ArgumentError(f"--{name.replace('_', '-')} {value}: goes with --pack")
    if not config.pack:
        return
    if config.cache == "none":
        raise ArgumentError("--pack --cache none: packs what a cache misses; leave one of them out")
    if config.policy not in _PLANNED:
        raise ArgumentError(
            f"--pack --policy {config.policy}: plans an epoch by all of its batches, which "
            f"{' and '.join(_PLANNED)} look at; give one of these, or leave --pack out"
        )
    for name, default in (("window", "auto"), ("victim_buffer", "0")):
        value = getattr(config, name)
        if value != default:
            raise ArgumentError(
                f"--pack --{name.replace('_', '-')} {value}: an epoch is planned over all of its "
                "batches, without a victim buffer; leave one of them out"
            )

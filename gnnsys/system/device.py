"""The device that a run computes on."""

from __future__ import annotations

import torch

from gnnsys.errors import ArgumentError

__all__ = ["SIMT", "choose_device"]

SIMT = "simt"
"""The CPU, where a GPU's kernels gather: each of their threads is executed there."""


def choose_device(device: str) -> torch.device:
    """The device that ``--device`` stands for.

    Raises:
        ArgumentError: cuda, where there is none.
    """
    if device == SIMT:
        return torch.device("cpu")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ArgumentError("--device cuda: torch finds no CUDA device; use --device cpu")
    return torch.device(device)

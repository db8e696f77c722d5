"""Activations of ``gnnsys train`` that leave memory."""

from __future__ import annotations

from pathlib import Path

from gnnsys.config.checks import check_bytes
from gnnsys.config.offload import offload_folder
from gnnsys.config.train import TrainConfig
from gnnsys.offload import ActivationOffload
from gnnsys.system.files import as_storage_error

__all__ = ["made_folder", "make_offload"]


def make_offload(config: TrainConfig) -> ActivationOffload | None:
    """What the steps of a run are to be within; None for nothing.

    Raises:
        StorageError: the folder cannot be made.
    """
    if config.offload == "none":
        return None
    folder = made_folder(config.offload)
    budget = check_bytes("activation-budget", config.activation_budget)
    return ActivationOffload(budget, folder=folder)


def made_folder(offload: str) -> str | None:
    """The folder that ``--offload`` names, which is made; None for that of temporary files.

    Raises:
        StorageError: it cannot be made.
    """
    folder = offload_folder(offload)
    if folder is not None:
        with as_storage_error(Path(folder)):
            Path(folder).mkdir(parents=True, exist_ok=True)
    return folder

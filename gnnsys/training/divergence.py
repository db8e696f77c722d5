"""A run whose loss or weights become NaN or infinite is told of at once, and ended."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gnnsys.config.train import TrainConfig
from gnnsys.errors import DivergedError
from gnnsys.training.checkpoint import CHECKPOINT

__all__ = ["DivergenceWatch", "all_finite"]

_log = logging.getLogger(__name__)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no element is NaN or infinite.

    >>> all_finite([torch.ones(3)]), all_finite([torch.ones(3), torch.tensor([1.0, torch.inf])])
    (True, False)
    """
    found = [torch.isfinite(tensor).all() for tensor in tensors]
    return not found or bool(torch.stack(found).all())  # one wait for a GPU


class DivergenceWatch:
    """Tells of losses and weights that are not finite, as ``--nan-loss`` says.

    With stop, both methods raise DivergedError; with go-on, the first of them warns.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._told = False

    def bad_loss(self, loss: float, place: str, batch: Any) -> None:
        """After a step whose loss is not finite.

        Args:
            loss: of the step.
            place: where the run is, in words.
            batch: that the step took, whose features ``x``, if it has them, are looked at; ``of``
                says of which type its nodes are, where there are several.
        """
        cause = _bad_features(batch) or f"try a lower --lr than {self._config.lr:g}"
        self._tell(f"the loss is {loss} in {place}; {cause}")

    def bad_weights(self, place: str) -> None:
        """Before weights that are not finite would be judged; they are never kept."""
        way = f"try a lower --lr than {self._config.lr:g}"
        self._tell(f"weights are NaN or infinite in {place}; {way}")

    def _tell(self, what: str) -> None:
        if self._config.nan_loss == "stop":
            run = Path(self._config.resume or self._config.out or "")
            kept = (run / CHECKPOINT).is_file()
            way = f"the checkpoint in {run} is from before; " if kept else ""
            raise DivergedError(
                f"{self._config.dataset}: {what}; {way}--nan-loss go-on trains on nevertheless"
            )
        if not self._told:
            _log.warning("%s: %s; training goes on as asked", self._config.dataset, what)
        self._told = True


def _bad_features(batch: Any) -> str:
    x = getattr(batch, "x", None)
    if not isinstance(x, Tensor):
        return ""
    bad = ~torch.isfinite(x.float()).all(1)
    if not bad.any():
        return ""
    node = int(batch.n_id[bad.nonzero()[0]])
    nodes = f"nodes{getattr(batch, 'of', '')}"
    return f"features of {int(bad.sum())} of its {nodes} are NaN or infinite, such as node {node}"

"""Options about the way from gradients to weights, and how they fit each other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from gnnsys.config.checks import check_least
from gnnsys.config.parallel import is_deep
from gnnsys.errors import ArgumentError

if TYPE_CHECKING:
    from gnnsys.config.train import TrainConfig

__all__ = ["BALANCED", "OptimisationOptions", "check_optimisation", "parse_class_weights"]

BALANCED = "balanced"
"""Class weights that make up for how often a class occurs."""

_OF_SCHEDULES = {
    "lr_factor": ("step", "plateau"),
    "lr_every": ("step",),
    "lr_patience": ("plateau",),
    "lr_min": ("cosine", "plateau"),
    "lr_epochs": ("cosine",),
}
"""Which schedules an option is for."""


@dataclass(kw_only=True, slots=True)
class OptimisationOptions:
    """What is minimised, and by which steps."""

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """adam; adamw, whose --weight-decay shrinks weights apart from their gradients; or sgd, with
    --momentum."""

    momentum: float | None = None
    """Of --optimizer sgd. Default: 0.9."""

    embedding_optimizer: Literal["sparse_adam", "adagrad"] = "sparse_adam"
    """Of the embeddings of node types without features: a step changes those rows alone that its
    batch uses, by --lr and without --weight-decay."""

    lr_schedule: Literal["constant", "step", "cosine", "plateau"] = "constant"
    """How the learning rate goes on from --lr. step: times --lr-factor every --lr-every epochs;
    cosine: from step to step down to --lr-min, which is reached with --lr-epochs; plateau: times
    --lr-factor after --lr-patience evaluations without a better validation score."""

    warmup_epochs: float = 0.0
    """Epochs, or a part of one, in which the learning rate rises from step to step, evenly. cosine
    begins after them."""

    lr_factor: float | None = None
    """Of step and plateau. Default: 0.1."""

    lr_every: int | None = None
    """Epochs, of step. Default: 30."""

    lr_patience: int | None = None
    """Evaluations, of plateau. Default: 10."""

    lr_min: float | None = None
    """The least learning rate of cosine and plateau. Default: 0."""

    lr_epochs: int | None = None
    """Epochs by which cosine has come down; then it stays there. Default: --epochs."""

    clip_norm: float | None = None
    """Gradients of all weights together that are longer are shortened to this length (2-norm)."""

    class_weights: Annotated[str, "balanced|X,X,..."] | None = None
    """What an error in each class counts in the loss: balanced, as much more as the class is rarer
    among the training nodes; or a number for each class. Of several labels a node: what a label
    that is there counts, where one that is not counts 1."""

    loss: Literal["mse", "l1", "huber"] | None = None
    """Of a regression: squared or absolute differences, or squared ones below 1 and absolute ones
    above. Default: mse. Classes have cross entropy."""


def check_optimisation(config: TrainConfig) -> None:
    """Raises ArgumentError for options that do not fit each other."""
    check_least(config, 1, "lr_every", "lr_patience", "lr_epochs")
    if not config.warmup_epochs >= 0:
        raise ArgumentError(f"--warmup-epochs {config.warmup_epochs}: expected at least 0")
    if config.momentum is not None and config.optimizer != "sgd":
        raise ArgumentError(
            f"--momentum {config.momentum}: goes with --optimizer sgd; {config.optimizer} has its "
            "own"
        )
    for name, schedules in _OF_SCHEDULES.items():
        value = getattr(config, name)
        if value is not None and config.lr_schedule not in schedules:
            raise ArgumentError(
                f"--{name.replace('_', '-')} {value}: goes with --lr-schedule "
                f"{' or '.join(schedules)}, not {config.lr_schedule}"
            )
    _check_between("momentum", config.momentum, 0, 1)
    _check_between("lr_factor", config.lr_factor, 0, 1, open_below=True)
    _check_between("lr_min", config.lr_min, 0, config.lr)
    _check_between("clip_norm", config.clip_norm, 0, math.inf, open_below=True)
    _check_warmup(config)
    if config.class_weights is not None:
        parse_class_weights(config.class_weights)
    for name in ("clip_norm", "class_weights", "loss"):
        if getattr(config, name) is not None and is_deep(config):
            way = f"--model {config.model}" if config.parallel is None else "--parallel"
            raise ArgumentError(
                f"--{name.replace('_', '-')} {getattr(config, name)}: the layers of a pipeline "
                f"have no part in it; leave it or {way} out"
            )


def _check_between(
    name: str, value: float | None, least: float, below: float, open_below: bool = False
) -> None:
    if value is None or ((least < value or (least == value and not open_below)) and value < below):
        return
    begin = f"above {least}" if open_below else f"at least {least}"
    end = "" if below == math.inf else f" and below {below:g}"
    raise ArgumentError(f"--{name.replace('_', '-')} {value:g}: expected {begin}{end}")


def _check_warmup(config: TrainConfig) -> None:
    end = config.lr_epochs or config.epochs
    if config.lr_schedule == "cosine" and end is not None and config.warmup_epochs >= end:
        raise ArgumentError(
            f"--warmup-epochs {config.warmup_epochs:g}: expected fewer than the {end} epochs by "
            "which cosine comes down"
        )


def parse_class_weights(text: str) -> tuple[float, ...] | None:
    """The weights that are given; None where they are balanced.

    >>> parse_class_weights("1,2.5"), parse_class_weights("balanced")
    ((1.0, 2.5), None)

    Raises:
        ArgumentError: neither, or a weight below 0, or none above.
    """
    if text == BALANCED:
        return None
    try:
        weights = tuple(map(float, text.replace(",", " ").split()))
    except ValueError:
        weights = ()
    if not (weights and all(0 <= weight < math.inf for weight in weights) and any(weights)):
        raise ArgumentError(
            f"--class-weights {text}: expected {BALANCED}, or numbers from 0 between commas, one "
            "for each class, such as 1,2.5"
        )
    return weights
